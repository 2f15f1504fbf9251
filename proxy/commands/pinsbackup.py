"""`overcoat pins backup`: makes a spare key for a server, before it is needed, and says where its pin belongs.

Rules of this module:

- The private half is created with mode 0600 before its first byte is written, and is never printed; no file is
  overwritten.
- The request for a certificate (CSR) names the host in subjectAltName: a CA can sign it on the day on which the key in
  use is lost.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.commands.failed import Failed
from proxy.commands.pinsshared import destination_in, owner_of, rule_of
from proxy.commands.shared import echo_json, json_option, load_or_exit, policy_option
from proxy.core.rules.policy import Policy, Rule

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

    from proxy.core.destinations import Destination

TYPES = ("P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096")
_LONGEST_COMMON_NAME = 64  # X.520's upper bound


@click.command()
@policy_option
@json_option
@click.option("--type", "kind", type=click.Choice(TYPES), default=TYPES[0], show_default=True, help="The key's type.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Where the files go; else here.",
)
@click.argument("server", metavar="HOST[:PORT]")
def backup(option: str | None, as_json: bool, kind: str, out: Path, server: str) -> None:
    """Make a spare key for a server of yours, and a request for its certificate (CSR); print the spare's pin.

    HOST-spare.key.pem (mode 0600) and HOST-spare.csr.pem are written. Pin the spare beside the key in use, put its
    private half where the server's own would not be lost with it, and have the CSR signed on the day you need it.

    \b
    Example: overcoat pins backup -p overcoat.yaml api.pay.example
    """

    policy = load_or_exit(option, as_json=as_json)
    try:
        destination = destination_in(policy, server)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST[:PORT]") from None
    key_file, request_file, pin = _make(destination.host, kind, out)
    rule = rule_of(policy, destination)
    where = _where(policy, rule, destination)
    if as_json:
        said = {
            "host": destination.host,
            "type": kind,
            "pin": pin,
            "key": str(key_file),
            "csr": str(request_file),
            "belongs": where,
        }
        echo_json(said)
        return
    click.echo(pin)
    click.echo(f"The key: {key_file} (mode 0600). Its request for a certificate: {request_file}.", err=True)
    click.echo(f"{where}:", err=True)
    click.echo(f"      - {pin}  # a spare of {datetime.now(UTC).date()}, not in use yet", err=True)
    click.echo(
        "Keep the key where it is not lost or stolen together with the server's own. On the day it is needed, have the "
        "request signed, and test the answer: overcoat pins check --candidate FILE.",
        err=True,
    )


def _where(policy: Policy, rule: Rule | None, destination: Destination) -> str:
    """Return where in the policy the pin belongs."""
    if rule is None:
        return f"No rule of this policy names {destination}: in a new rule for it, under pins.any_of"
    place = "upstream_proxy.pins.any_of" if not rule.hosts else f"rules[{policy.rules.index(rule)}].pins.any_of"
    how = "is to have pins, under" if rule.pins is None else "has its pins at"
    return f"{owner_of(rule)} of {policy.source} {how} {place}; add the spare there"


def _make(host: str, kind: str, folder: Path) -> tuple[Path, Path, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    from proxy.core.pins import pin_of_public_key_info
    from proxy.disk.keyfiles import create_file

    key = _makers()[kind]()
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, host)] if len(host) <= _LONGEST_COMMON_NAME else []
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    request = request.add_extension(x509.SubjectAlternativeName([name]), critical=not subject)
    signed = request.sign(key, hashes.SHA256())
    stem = f"{host.replace(':', '-')}-spare"
    key_file, request_file = folder / f"{stem}.key.pem", folder / f"{stem}.csr.pem"
    try:
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        create_file(key_file, secret, mode=0o600)
        try:
            create_file(request_file, signed.public_bytes(Encoding.PEM), mode=0o644)
        except OSError:
            key_file.unlink()  # just made, and not used by anybody yet
            raise
    except FileExistsError as error:
        raise Failed(f"{error.filename}: exists already, and keys are never overwritten") from None
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from None
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key_file, request_file, str(pin_of_public_key_info(info))


def _makers() -> dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]]:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def of_rsa(bits: int) -> Callable[[], Any]:
        return lambda: rsa.generate_private_key(65537, bits)

    return {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        **{f"RSA-{bits}": of_rsa(bits) for bits in (2048, 3072, 4096)},
    }
