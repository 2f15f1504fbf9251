"""`overcoat suggest`: reads decision lines, and writes a policy for what they show.

Rules of this module:

- Nothing is asked of any server unless the user says so (`--try`, `--pins`); then only what the policy allows.
- The policy goes to standard output, alone; what is said about it, to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.commands.failed import Failed
from proxy.commands.shared import load_or_exit, plain_table, policy_option

if TYPE_CHECKING:
    from proxy.commands.seen import Seen
    from proxy.commands.suggestion import Findings
    from proxy.core.rules.policy import Policy


@click.command()
@policy_option
@click.option("--try", "tries", is_flag=True, help="Ask the servers over http and https, and say what differs.")
@click.option("--pins", is_flag=True, help="Fetch the pins of the servers' keys.")
@click.argument("lines", required=False, type=click.Path(path_type=Path), metavar="[LINES]")
def suggest(*, option: str | None, tries: bool, pins: bool, lines: Path | None) -> None:
    """Write a policy for what apps have asked for. LINES is a file of decision lines; else they come on stdin.

    Run apps through `overcoat serve --mode observe` first. What is suggested observes, too, and has as comments what
    you must decide. The policy of -p says which servers --try and --pins may reach, and which roots they trust.

    \b
    Example:
      overcoat suggest --try lines.json > suggested.yaml
    """
    from proxy.commands.suggestion import Findings, policy_text

    seen = _read(lines)
    found = Findings(seen)
    if tries or pins:
        found = _ask(load_or_exit(option, as_json=False), seen, tries=tries, pins=pins)
    click.echo(policy_text(found), nl=False)
    _tell(found)


def _read(lines: Path | None) -> Seen:
    from proxy.commands.seen import read_lines

    if lines is None or str(lines) == "-":
        if sys.stdin is None or (lines is None and sys.stdin.isatty()):
            raise click.UsageError("name a file of decision lines, or send them on standard input")
        return read_lines(sys.stdin.buffer)
    try:
        with lines.open("rb") as opened:
            return read_lines(opened)
    except OSError as error:
        raise click.BadParameter(f"{lines}: {error.strerror}", param_hint="LINES") from None


def _ask(policy: Policy, seen: Seen, *, tries: bool, pins: bool) -> Findings:
    from proxy.commands.suggestion import Findings, by_use, https_target
    from proxy.commands.tried import fetch_keys, try_upgrades
    from proxy.engine.roots import NoRoots

    try:
        upgrades = try_upgrades(policy, seen.hosts) if tries else {}
        targets = {name: https_target(name, host, upgrades.get(name)) for name, host in by_use(seen)}
        keys = fetch_keys(policy, targets) if pins else {}
    except NoRoots as error:
        raise Failed(str(error)) from None
    return Findings(seen, upgrades, keys)


def _tell(found: Findings) -> None:
    """Say on standard error what was read; on a terminal, with a table."""
    seen = found.seen
    if sys.stderr.isatty() and seen.hosts:
        _print_table(found)
    hosts = len(seen.hosts)
    lines = f"{seen.lines} decision line{'' if seen.lines == 1 else 's'}"
    click.echo(f"{lines}, {hosts} host{'' if hosts == 1 else 's'}", err=True)
    for count, what in (
        (seen.torn, "lines are torn, and were passed over"),
        (seen.foreign, "lines are no decision lines, and were passed over"),
        (seen.left_out, "lines are about hosts beyond the first that there is room for"),
    ):
        if count:
            click.echo(f"warning: {count} {what}", err=True)


def _print_table(found: Findings) -> None:
    from rich.console import Console

    from proxy.commands.suggestion import by_use

    table = plain_table("host", "http", "https", "denied", "upgrade", "fields")
    for name, host in by_use(found.seen):
        tried = found.upgrades.get(name)
        upgrade = "" if not host.plain else "?" if tried is None else "no" if not tried.works else "works"
        if tried is not None and tried.works and tried.is_same is False:
            upgrade = "differs"
        numbers = [str(number or "") for number in (host.plain.total(), host.https.total(), host.denied.total())]
        table.add_row(name, *numbers, upgrade, str(len(host.fields) or ""))
    Console(stderr=True, highlight=False, emoji=False, markup=False).print(table)
