"""`overcoat pins`: shows the pins of a server's keys, for people who write pins into a policy.

Rules of this module:

- A pin is printed only if the server's chain is valid for its name, according to the policy's roots.
- The output says that the pins came over the network, and must be compared before they are trusted.
- If the policy has pins and none matches, this may be the very attack that pins are for. Then nothing is printed that
  could be pasted into the policy, and the exit status is 1.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click

from proxy.commands.failed import Failed
from proxy.commands.shared import (
    destination_of,
    json_option,
    load_or_exit,
    policy_option,
    today,
)
from proxy.core.destinations import HTTPS_PORT
from proxy.core.rules.policy import Policy, Rule

if TYPE_CHECKING:
    from cryptography import x509

    from proxy.core.destinations import Destination
    from proxy.core.pins import PinSet


@click.group(short_help="Show the pins of a server's keys.")
def pins() -> None:
    """Show the pins of a server's keys.

    \b
    Example: overcoat pins fetch -p overcoat.yaml api.pay.example
    """


@pins.command()
@policy_option
@json_option
@click.argument("server", metavar="HOST[:PORT]")
def fetch(option: str | None, as_json: bool, server: str) -> None:
    """Shake hands with a server as the sidecar would, and show the pins of the keys in its verified chain.

    The policy says which roots to trust, and which way to go. Without a PORT it is the https_port of the host's rule,
    or 443. Nothing but the handshake is sent. Compare a pin over another channel before you trust it.

    Where the policy has pins for the host, it says which match; if none does, it exits with 1.

    \b
    Example: overcoat pins fetch -p overcoat.yaml api.pay.example
    """
    policy = load_or_exit(option, as_json=as_json)
    try:
        destination = _destination(policy, server)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST[:PORT]") from None
    shown = _fetch(policy, destination)
    if as_json:
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _print(shown)
    if shown["result"] == "mismatch":
        _warn_of_mismatch(shown)
        raise SystemExit(1)
    if shown["pins_expired"]:
        click.echo(
            f"warning: the pins of {shown['pinned_by']} expired on {shown['pins_expire']}, so the sidecar denies the "
            "host: compare the keys over another channel than this network, then renew them and expires",
            err=True,
        )
    elif shown["result"] is None and not as_json:
        click.echo(
            "Compare it first, over another channel than this network; and add the pin of a backup key.", err=True
        )


def _destination(policy: Policy, server: str) -> Destination:
    if "/" in server:
        raise ValueError("only the host is named here, and its port if need be: leave https:// out, and any path")
    destination = destination_of(server, HTTPS_PORT)
    rule = policy.rule_for(destination)
    if rule is None or rule.https_port is None:
        return destination
    return destination_of(server, rule.https_port)


def _fetch(policy: Policy, destination: Destination) -> dict[str, Any]:
    """Return what to show, as plain values."""
    from proxy.core.decisions import Denied
    from proxy.engine.probe import probe
    from proxy.engine.tls import NoRoots

    try:
        seen = asyncio.run(probe(policy, destination))
    except Denied as denied:
        hint = f"; {denied.hint}" if denied.hint else ""
        raise Failed(f"{denied.reason.code}: {denied.detail}{hint}") from None
    except NoRoots as error:
        raise Failed(str(error)) from None
    rule = _rule_of(policy, destination)
    pins = rule.pins if rule is not None else None
    whose = f"rule {rule.name}" if rule is not None and rule.hosts else "upstream_proxy"
    chain = [_certificate(each, pins) for each in seen.chain]
    found = [pin for each in chain for pin in each["matches"]]
    wanted = [str(pin) for pin in pins.any_of] if pins is not None else []
    return {
        "server": destination.authority,
        "tls_version": seen.tls_version,
        "chain": chain,
        "pinned_by": whose if pins is not None else None,
        "result": None if pins is None else "match" if found else "mismatch",
        "not_in_chain": [pin for pin in wanted if pin not in found],
        "pins_expire": pins.expires.isoformat() if pins is not None and pins.expires else None,
        "pins_expired": pins is not None and pins.expires is not None and pins.expires < today(),
    }


def _rule_of(policy: Policy, destination: Destination) -> Rule | None:
    """Return the rule with the pins for a destination; for the upstream proxy itself, the rule that holds its pins."""
    proxy = policy.upstream_proxy
    return proxy.rule if proxy is not None and proxy.destination == destination else policy.rule_for(destination)


def _certificate(certificate: x509.Certificate, pins: PinSet | None) -> dict[str, Any]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from proxy.core.pins import certificate_pin, matching_pins, spki_pin

    der = certificate.public_bytes(Encoding.DER)
    return {
        "pin": str(spki_pin(der)),
        "certificate_pin": str(certificate_pin(der)),
        "matches": [str(pin) for pin in matching_pins(pins, der)] if pins is not None else [],
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _print(shown: dict[str, Any]) -> None:
    chain = shown["chain"]
    click.echo(f"{shown['server']}, {shown['tls_version']}: its certificate is valid. The keys of its verified chain:")
    for depth, certificate in enumerate(chain):  # each pin on its own line, which is never wrapped
        subject = f": {_printable(certificate['subject'])}" if certificate["subject"] else ""
        known = f", {_match_text(certificate)}" if shown["pinned_by"] else ""
        click.echo(f"  {certificate['pin']}")
        click.echo(f"    {_level(depth, len(chain))}{subject}; until {certificate['not_after'][:10]}{known}")
    if shown["result"] is None:
        click.echo(f'For the rule:  pins: {{any_of: ["{chain[0]["pin"]}"]}}')
        return
    for depth, certificate in enumerate(chain):
        for pin in certificate["matches"]:
            click.echo(f"{shown['pinned_by']} pins {_level(depth, len(chain))}: {pin}")
    for pin in shown["not_in_chain"]:
        click.echo(f"{shown['pinned_by']} also pins what is not in this chain: {pin}")


def _level(depth: int, length: int) -> str:
    return "the server" if depth == 0 else "the root" if depth == length - 1 else "an intermediate CA"


def _match_text(certificate: dict[str, Any]) -> str:
    kinds = {"certificate" if pin.startswith("cert-") else "key" for pin in certificate["matches"]}
    return f"in the policy ({' and '.join(sorted(kinds))})" if kinds else "not in the policy"


def _warn_of_mismatch(shown: dict[str, Any]) -> None:
    """Print what a mismatch may mean, and what to do; nothing that could be pasted."""
    server = shown["chain"][0]
    count = len(shown["not_in_chain"])
    pins = "the one pin" if count == 1 else f"any of the {count} pins"
    for line in (
        f"error: pin_mismatch: nothing in the verified chain has {pins} of {shown['pinned_by']}",
        f"Its certificate is valid from {server['not_before'][:10]} on, issued by {_printable(server['issuer'])}.",
        "Either the server's key was changed, or somebody else answers in its name, with a certificate from a CA that "
        "is trusted. From here both look the same; the sidecar sends nothing to it.",
        "Ask the server's operator for the key, over another channel than this network. A change is one that they know "
        "of: they name a key of this chain, all of it, and then it goes into the policy, beside a backup.",
        "If they do not know the key, or other networks see another one, it is an attack: change nothing in the "
        "policy, and tell the operator and the issuer.",
    ):
        click.echo(line, err=True)


def _printable(text: str) -> str:
    """Remove from a name all characters that could control a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
