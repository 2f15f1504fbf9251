"""`overcoat pins`: which keys a server has, for people who write pins.

Rules of this module:

- A pin is printed only if the server's chain is valid for its name, by the policy's own roots.
- Who prints pins is told that they come over the network, and are to be compared before they are trusted.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from proxy.commands.failed import Failed
from proxy.commands.shared import destination_of, json_option, load_or_exit, plain_table, policy_option, wide_console
from proxy.core.policy import HTTPS_PORT, Policy

if TYPE_CHECKING:
    from cryptography import x509

    from proxy.core.destinations import Destination


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


def _destination(policy: Policy, server: str) -> Destination:
    destination = destination_of(server, HTTPS_PORT)
    rule = policy.rule_for(destination)
    if rule is None or rule.https_port is None:
        return destination
    return destination_of(server, rule.https_port)


def _fetch(policy: Policy, destination: Destination) -> dict[str, Any]:
    """Return what is to be shown, in plain values."""
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
    return {
        "server": destination.authority,
        "tls_version": seen.tls_version,
        "chain": [_certificate(each) for each in seen.chain],
    }


def _certificate(certificate: x509.Certificate) -> dict[str, str]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from proxy.core.pins import certificate_pin, spki_pin

    der = certificate.public_bytes(Encoding.DER)
    return {
        "pin": str(spki_pin(der)),
        "certificate_pin": str(certificate_pin(der)),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def _print(shown: dict[str, Any]) -> None:
    chain = shown["chain"]
    click.echo(f"{shown['server']}, {shown['tls_version']}: its certificate is valid. The keys of its verified chain:")
    table = plain_table("pin", "of", "until")
    for depth, certificate in enumerate(chain):
        what = "the server" if depth == 0 else "the root" if depth == len(chain) - 1 else "an intermediate CA"
        subject = f": {_printable(certificate['subject'])}" if certificate["subject"] else ""
        table.add_row(certificate["pin"], Text(what + subject), certificate["not_after"][:10])
    wide_console().print(table)
    click.echo(f'For the rule:  pins: {{any_of: ["{chain[0]["pin"]}"]}}')
    click.echo("Compare it first, over another channel than this network; and add the pin of a backup key.", err=True)


def _printable(text: str) -> str:
    """Leave nothing in a name that could steer a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
