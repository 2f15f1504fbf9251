"""The denials of a server for which the policy's pins do not vouch: what was pinned, what the server has shown, and
what to do. The addon `addons.pinning` and its callback note them.

Rules of this module:

- What is shown of a server's key is its pin: it can be compared with what its operator says, and copied.
- Nothing says that a key should simply be added: first its operator confirms it.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.decisions import Denied
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.pins import PinCheck, PinSet, PinVerdict, mismatch_facts, spki_pin
from proxy.core.reasons import Reason


def ended(pins: PinSet, rule: str | None) -> Denied:
    """Return the denial of everything that stands under pins whose last day has passed.

    Args:
        pins: the pins.
        rule: the name of their rule; None for those of the upstream proxy.
    """
    return Denied(Reason.PINS_EXPIRED, f"the pins of {_whose(rule)} expired on {pins.expires}")


def unpinned(
    pins: PinSet, found: PinCheck, verified_chain: Sequence[bytes], destination: Destination, rule: str | None
) -> Denied:
    """Return the denial of a server that its pins do not vouch for.

    Args:
        pins: the pins.
        found: what came of checking its chain.
        verified_chain: that chain (DER), from the leaf to the root.
        destination: the server.
        rule: as for `ended`.
    """
    if found.verdict is PinVerdict.EXPIRED:
        denied = ended(pins, rule)
        if found.matches or pins.refuses(PinVerdict.EXPIRED):
            return denied
        return denied.again(f"{denied.detail}, and no key of the verified chain of {destination.host} matches them")
    where = "the rule's pins.any_of" if rule is not None else "upstream_proxy.pins.any_of"
    shown = destination.url_host if destination.port == HTTPS_PORT else destination.authority
    return Denied(
        Reason.PIN_MISMATCH,
        f"{_whose(rule)} pins {destination.host}, and no key of its verified chain matches; "
        f"the server's key is {spki_pin(verified_chain[0])}",
        f"if the server's operator confirms that key, add it to {where}; "
        f"run overcoat pins fetch {shown} for all keys of the chain",
        facts=mismatch_facts(pins, verified_chain),
    )


def _whose(rule: str | None) -> str:
    return "upstream_proxy" if rule is None else f"rule {rule}"
