"""`overcoat pins import`: writes rules from the pins of another program.

Rules of this module:

- What could not be carried over is said twice: as comments in the rules, and on standard error.
- Nothing of the policy in force is read or changed: who imports looks at the rules, and takes them over.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from proxy.commands.failed import Failed

_TITLES = {
    "android": "Android's network security configuration",
    "okhttp": "OkHttp's CertificatePinner",
    "hpkp": "a Public-Key-Pins field",
    "trustkit": "TrustKit's configuration",
}


@click.command("import")
@click.option("--format", "kind", type=click.Choice(tuple(_TITLES)), help="Whose pins they are; else found out.")
@click.option("--host", help="Of a Public-Key-Pins field: the host that sent it.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
def import_(kind: str | None, host: str | None, file: Path) -> None:
    """Write rules from the pins of another program: FILE, or standard input for a dash.

    It reads Android's network_security_config.xml, the CertificatePinner of OkHttp in Java or Kotlin text, a
    Public-Key-Pins field, and TrustKit's property list or dictionary (Swift, Objective-C). Where hosts overlap, the
    most specific comes first: here the first rule that names a host counts.

    \b
    Example: overcoat pins import network_security_config.xml > overcoat.yaml
    """
    from proxy.core.pinimport.reading import MOST_BYTES, Kind, NotReadable, import_pins, kind_of
    from proxy.core.pinimport.rules import as_policy
    from proxy.disk.reading import read_regular

    try:
        data = sys.stdin.buffer.read(MOST_BYTES + 1) if str(file) == "-" else read_regular(file, MOST_BYTES)[0]
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None
    found = Kind(kind) if kind is not None else kind_of(data)
    if found is None:
        raise Failed(f"{file}: this looks like none of {', '.join(_TITLES)}; --format says which it is")
    try:
        imported = import_pins(data, found, host)
    except NotReadable as error:
        raise Failed(f"{file}: {error}") from None
    for note in (*imported.notes, *(note for rule in imported.rules for note in rule.notes)):
        click.echo(f"note: {note}", err=True)
    if not any(rule.pins for rule in imported.rules):
        raise Failed(f"{file}: no pin in it could be carried over")
    click.echo(as_policy(imported, f"The pins of {_TITLES[found.value]}."), nl=False)
    click.echo(
        "The app's own pinning must not hold behind the sidecar: it would see the local CA's certificates, and refuse "
        "them. Look at the rules, and try them: overcoat pins check.",
        err=True,
    )
