"""What the commands share: tables say what is in their cells, whatever that looks like; JSON controls no terminal."""

from __future__ import annotations

import json

import pytest

from proxy.commands.shared import echo_json, plain_table, wide_console


@pytest.mark.parametrize("text", ["[fd00::1]", "1:ab:b", "2001:db8:a:b::c", "[bold]a[/bold]", ":warning:"])
def test_a_cell_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would read names of pictures and of styles in it, and addresses have both forms."""
    table = plain_table("host")
    table.add_row(text)
    wide_console().print(table)
    assert text in capsys.readouterr().out.split()


def test_json_is_what_it_was_and_no_command_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names in certificates are somebody else's; xterm takes U+009B for the start of a command."""
    value = {"né": ["\x9b31m\x7f\u202e\U000e0001\x1b]0;x\x07", "日本 1"]}
    echo_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert out.replace("\n", "").isprintable()
    assert "né" in out
    assert "日本 1" in out
