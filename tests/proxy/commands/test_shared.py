"""What the commands share: tables say what is in their cells, whatever that looks like."""

from __future__ import annotations

import pytest

from proxy.commands.shared import plain_table, wide_console


@pytest.mark.parametrize("text", ["[fd00::1]", "1:ab:b", "2001:db8:a:b::c", "[bold]a[/bold]", ":warning:"])
def test_a_cell_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would read names of pictures and of styles in it, and addresses have both forms."""
    table = plain_table("host")
    table.add_row(text)
    wide_console().print(table)
    assert text in capsys.readouterr().out.split()
