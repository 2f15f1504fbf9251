"""`overcoat pins fetch`: shows the pins of servers' keys, for people who write pins into a policy.

Rules of this module:

- A pin is printed only if the server's chain is valid for its name, according to the policy's roots; or with
  `--insecure`, which names itself in whatever is printed, and prints nothing that could be pasted.
- The output says that the pins came over the network, and must be compared before they are trusted.
- If the policy has pins and none matches, this may be the very attack that pins are for. Then nothing is printed that
  could be pasted into the policy, and the exit status is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from proxy.commands.pinsshared import destination_in, owner_of, printable, rule_of, said_of, shake_hands
from proxy.commands.shared import echo_json, json_option, load_or_exit, policy_option, today, wide_console
from proxy.core.decisions import Denied
from proxy.core.rules.policy import Policy, Rule

if TYPE_CHECKING:
    from cryptography import x509

    from proxy.core.destinations import Destination
    from proxy.core.pins import PinSet
    from proxy.engine.probe import Shown

_NOT_VERIFIED = "NOT VERIFIED (--insecure)"
_LEVELS = {"leaf": "the server", "intermediate": "an intermediate CA", "root": "the root"}


@click.command()
@policy_option
@json_option
@click.option("--insecure", is_flag=True, help="Show what a server sends although nobody vouches for it.")
@click.argument("servers", metavar="HOST[:PORT]…", nargs=-1, required=True)
def fetch(option: str | None, as_json: bool, insecure: bool, servers: tuple[str, ...]) -> None:
    """Shake hands with servers as the sidecar would, and show the keys of their verified chains with their pins.

    The policy says which roots to trust, and which way to go. Without a PORT it is the https_port of the host's rule,
    or 443. Nothing but the handshake is sent. Compare a pin over another channel before you trust it.

    Where the policy has pins for a host, it says which match; if none does, it exits with 1. With --json, one server
    gives an object, several a list of them.

    \b
    Example: overcoat pins fetch -p overcoat.yaml api.pay.example
    """
    policy = load_or_exit(option, as_json=as_json)
    try:
        wanted = [destination_in(policy, server) for server in servers]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST[:PORT]") from None
    seen = shake_hands(policy, wanted, unverified=insecure)
    shown = [
        _described(policy, destination, found, insecure=insecure)
        for destination, found in seen.items()
        if not isinstance(found, Denied)
    ]
    if as_json and shown:
        echo_json(shown[0] if len(servers) == 1 else shown)
    for each in () if as_json else shown:
        _print(each)
    for found in seen.values():
        if isinstance(found, Denied):
            click.echo(f"error: {said_of(found)}", err=True)
    for each in shown:
        _warn(each, as_json=as_json)
    if len(shown) < len(seen) or any(each["result"] == "mismatch" for each in shown):
        raise SystemExit(1)


def _described(policy: Policy, destination: Destination, seen: Shown, *, insecure: bool) -> dict[str, Any]:
    """Return what to show of a server, as plain values."""
    from proxy.core.pinlife.advice import advice_on

    rule = rule_of(policy, destination)
    pins = rule.pins if rule is not None and not insecure else None
    whose = owner_of(rule) if rule is not None else ""
    chain = [_certificate(each, pins, depth, seen.chain) for depth, each in enumerate(seen.chain)]
    found = [pin for each in chain for pin in each["matches"]]
    wanted = [str(pin) for pin in pins.any_of] if pins is not None else []
    return {
        "server": destination.authority,
        "verified": not insecure,
        "tls_version": seen.tls_version,
        "chain": chain,
        "pinned_by": whose if pins is not None else None,
        "result": None if pins is None else "match" if found else "mismatch",
        "not_in_chain": [pin for pin in wanted if pin not in found],
        "pins_expire": pins.expires.isoformat() if pins is not None and pins.expires else None,
        "pins_expired": pins is not None and pins.have_ended(today()),
        "refused": rule is not None and pins is not None and not found and _refuses(policy, rule, pins),
        "pins_after_expiry": pins.after_expiry.value if pins is not None and pins.expires else None,
        "advice": [] if insecure else advice_on(seen.chain),
    }


def _refuses(policy: Policy, rule: Rule, pins: PinSet) -> bool:
    """Tell whether the sidecar refuses a server none of whose keys is pinned. An upstream proxy's pins hold always."""
    from proxy.core.pins import PinVerdict

    is_proxy = not rule.hosts
    verdict = PinVerdict.EXPIRED if pins.have_ended(today()) else PinVerdict.MISMATCH
    return pins.refuses(verdict) and (is_proxy or not policy.observes(rule))


def _certificate(
    certificate: x509.Certificate, pins: PinSet | None, depth: int, chain: Sequence[x509.Certificate]
) -> dict[str, Any]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from proxy.core.pins import certificate_pin, level_of, matching_pins, spki_pin

    der = certificate.public_bytes(Encoding.DER)
    return {
        "level": level_of(depth, len(chain)).value,
        "pin": str(spki_pin(der)),
        "certificate_pin": str(certificate_pin(der)),
        "matches": [str(pin) for pin in matching_pins(pins, der)] if pins is not None else [],
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "key": _kind_of_key(certificate),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _kind_of_key(certificate: x509.Certificate) -> str:
    """Return a key's kind in one word, such as RSA-2048 or P-256."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "a kind that is unknown here"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        names = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
        return names.get(key.curve.name, key.curve.name)
    names_of = {ed25519.Ed25519PublicKey: "Ed25519", ed448.Ed448PublicKey: "Ed448"}
    return next((name for kind, name in names_of.items() if isinstance(key, kind)), type(key).__name__)


def _print(shown: dict[str, Any]) -> None:
    from rich.text import Text
    from rich.tree import Tree

    chain = shown["chain"]
    server, version = shown["server"], shown["tls_version"]
    if shown["verified"]:
        title = f"{server}, {version}: its certificate is valid. The keys of its verified chain, from the root:"
    else:
        title = f"{server}, {version}: {_NOT_VERIFIED}. Whoever answered has sent these certificates:"
    tree = branch = Tree(Text(title, overflow="fold"), guide_style="dim")
    ordered = reversed(chain) if shown["verified"] else chain
    for each in ordered:
        what = _LEVELS[each["level"]] if shown["verified"] else "sent"
        lines = [
            f"{what}: {printable(each['subject']) or '(no subject)'}",
            f"issued by {printable(each['issuer'])}",
            f"{each['key']}, {each['not_before'][:10]} until {each['not_after'][:10]}{_match_text(shown, each)}",
            each["pin"] if shown["verified"] else f"{each['pin']} {_NOT_VERIFIED}",
        ]
        # A pin that is broken over two lines can be neither compared nor searched for.
        node = branch.add(Text("\n".join(lines), no_wrap=True, overflow="ignore"))
        branch = node if shown["verified"] else branch
    wide_console().print(tree, soft_wrap=True)
    if not shown["verified"]:
        return
    for advice in shown["advice"]:
        click.echo(f"Advice: {advice}.")
    if shown["result"] is None:
        click.echo(f'For the rule:  pins: {{any_of: ["{chain[0]["pin"]}"]}}')
        return
    for each in chain:
        for pin in each["matches"]:
            click.echo(f"{shown['pinned_by']} pins {_LEVELS[each['level']]}: {pin}")
    for pin in shown["not_in_chain"]:
        click.echo(f"{shown['pinned_by']} also pins what is not in this chain: {pin}")


def _match_text(shown: dict[str, Any], certificate: dict[str, Any]) -> str:
    if shown["pinned_by"] is None:
        return ""
    kinds = {"certificate" if pin.startswith("cert-") else "key" for pin in certificate["matches"]}
    return f", in the policy ({' and '.join(sorted(kinds))})" if kinds else ", not in the policy"


def _warn(shown: dict[str, Any], *, as_json: bool) -> None:
    if not shown["verified"]:
        click.echo(
            f"warning: {shown['server']}: {_NOT_VERIFIED}: nobody vouches for these keys, and the sidecar would send "
            "nothing there; never pin one of them for having seen it here",
            err=True,
        )
    elif shown["result"] == "mismatch":
        _warn_of_mismatch(shown)
    elif shown["pins_expired"]:
        then = "denies the host" if shown["pins_after_expiry"] == "enforce" else "lets any valid certificate pass"
        click.echo(
            f"warning: the pins of {shown['pinned_by']} expired on {shown['pins_expire']}, so the sidecar {then}: "
            "compare the keys over another channel than this network, then renew them and expires",
            err=True,
        )
    elif shown["result"] is None and not as_json:
        click.echo(
            "Compare it first, over another channel than this network; and add the pin of a backup key.", err=True
        )


def _warn_of_mismatch(shown: dict[str, Any]) -> None:
    """Print what a mismatch may mean, and what to do; nothing that could be pasted."""
    server = shown["chain"][0]
    count = len(shown["not_in_chain"])
    pins = "the one pin" if count == 1 else f"any of the {count} pins"
    does = "the sidecar sends nothing to it"
    if not shown["refused"]:
        does = "the sidecar sends to it all the same, since the policy has these pins refuse nothing"
    for line in (
        f"error: pin_mismatch: nothing in the verified chain has {pins} of {shown['pinned_by']}",
        f"Its certificate is valid from {server['not_before'][:10]} on, issued by {printable(server['issuer'])}.",
        "Either the server's key was changed, or somebody else answers in its name, with a certificate from a CA that "
        f"is trusted. From here both look the same; {does}.",
        "Ask the server's operator for the key, over another channel than this network. A change is one that they know "
        "of: they name a key of this chain, all of it, and then it goes into the policy, beside a backup.",
        "If they do not know the key, or other networks see another one, it is an attack: change nothing in the "
        "policy, and tell the operator and the issuer.",
    ):
        click.echo(line, err=True)
