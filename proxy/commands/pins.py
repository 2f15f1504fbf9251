"""`overcoat pins`: what a pin's owner runs: `fetch` shows the keys of servers, `check` tests the policy's pins on them,
`backup` makes a spare key, `import` writes rules from the pins of other programs. Each is in a module of its own.
"""

from __future__ import annotations

import click

from proxy.commands.pinsbackup import backup
from proxy.commands.pinscheck import check
from proxy.commands.pinsfetch import fetch
from proxy.commands.pinsimport import import_


@click.group(short_help="Show, test, spare and import the pins of servers' keys.")
def pins() -> None:
    """Show, test, spare and import the pins of servers' keys.

    \b
    Example: overcoat pins fetch -p overcoat.yaml api.pay.example
    """


for command in (fetch, check, backup, import_):
    pins.add_command(command)
