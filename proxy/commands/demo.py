"""`overcoat demo`: runs the cases of `proxy.demo` on real connections, shows what was sent and what arrived, and checks
it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.commands.serve import fail

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from proxy.demo.cases import Case


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the cases as JSON.")
def demo(as_json: bool) -> None:
    """Show the main job: real TLS upstreams on loopback, the sidecar as a process, a client that knows HTTP_PROXY only.

    Exits with 1 if any protection did not hold.

    Example: overcoat demo
    """
    from rich.console import Console

    from proxy.demo.cases import run_cases
    from proxy.demo.sidecar import DemoFailed

    try:
        with tempfile.TemporaryDirectory(prefix="overcoat-demo-") as directory:
            cases = run_cases(Path(directory))
    except DemoFailed as e:
        raise fail(str(e)) from None
    held = sum(not case.failures for case in cases)
    if as_json:
        rows = [{"case": case.title, "held": not case.failures, "failures": case.failures} for case in cases]
        click.echo(json.dumps({"held": held, "of": len(cases), "cases": rows}, indent=1))
    else:
        show(cases, Console())
    if held < len(cases):
        raise click.exceptions.Exit(1)


_TELLING = ("what the app sent", "what the upstream received", "what the app was told")
_STYLES = ("", "cyan", "")
_WIDE = 110  # columns of a terminal that can show all three side by side


def show(cases: list[Case], console: Console) -> None:
    """Print the cases, side by side if there is room, and the verdict."""
    from rich.text import Text

    from proxy.demo.sidecar import client_name

    console.print(f"\nOvercoat, shown with real TLS upstreams and {client_name()} (which knows only HTTP_PROXY)\n")
    if console.width >= _WIDE:
        _show_table(cases, console)
    else:
        _show_list(cases, console)
    held = sum(not case.failures for case in cases)
    verdict = f"{held} of {len(cases)} protections held"
    style = "bold green" if held == len(cases) else "bold red"
    console.print(Text(f"\n{verdict}\n", style=style))


def _show_table(cases: list[Case], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True, box=box.HORIZONTALS)
    table.add_column("", width=2)
    table.add_column("protection", ratio=2, overflow="fold")
    for telling, ratio, style in zip(_TELLING, (3, 4, 3), _STYLES, strict=True):
        table.add_column(telling, ratio=ratio, style=style, overflow="fold")
    for case in cases:
        mark, title = _title(case)
        table.add_row(mark, title, *(Text(said) for said in (case.sent, case.received, case.told)))
    console.print(table)


def _show_list(cases: list[Case], console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for case in cases:
        mark, title = _title(case)
        console.print(Text.assemble(mark, " ", title))
        for telling, said, style in zip(_TELLING, (case.sent, case.received, case.told), _STYLES, strict=True):
            console.print(Padding(Text(telling, style="dim"), (0, 0, 0, 2)))
            console.print(Padding(Text(said, style=style), (0, 0, 0, 6)))
        console.print()


def _title(case: Case) -> tuple[Text, Text]:
    from rich.text import Text

    mark = Text("✗", style="bold red") if case.failures else Text("✓", style="bold green")
    title = Text(case.title, style="bold")
    for failure in case.failures:
        title.append(f"\n{failure}", style="red")
    return mark, title
