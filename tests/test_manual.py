"""The manual page: it has every command and every option, and `man` finds nothing wrong with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import click
import pytest

from docs.manual import _plain, manual_text
from proxy.cli import main


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands(command, own)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield own.command_path, command, own


ALL = list(commands(main, click.Context(main, info_name="overcoat", **main.context_settings)))


def sections() -> dict[str, str]:
    """Return the text below each heading."""
    found = re.split(r"^\.S[SH] (.*)\n", manual_text(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize(("path", "command", "context"), ALL, ids=[path for path, _, _ in ALL])
def test_each_command_is_there_with_all_that_it_takes(
    path: str, command: click.Command, context: click.Context
) -> None:
    text = sections()[_plain(path)]
    for param in command.get_params(context):
        if isinstance(param, click.Argument):
            assert _plain(param.make_metavar(context)) in text
        elif isinstance(param, click.Option) and not param.hidden:
            assert all(_plain(name) in text for name in (*param.opts, *param.secondary_opts))
            assert _plain(" ".join((param.help or "").split())) in text
    first, _, _ = (command.help or "").partition("\n\n")
    assert _plain(" ".join(first.replace("\b", "").split())) in " ".join(text.split())


def test_it_has_nothing_else() -> None:
    assert {each for each in sections() if each.startswith("overcoat ")} == {_plain(path) for path, _, _ in ALL}


def test_man_shows_it_without_a_complaint() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("there is no groff here")
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tutf8", "-K", "utf8", "-P-cbou"],
        input=manual_text(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert "overcoat keys new" in done.stdout
    assert re.search(r"EXIT STATUS\s+0\s+Done\.", done.stdout)


@pytest.mark.parametrize(("text", "made"), [(".x -y", r"\&.x \-y"), ("'a", r"\&'a"), (r"a\b", r"a\eb")])
def test_nothing_in_a_text_is_a_request_to_it(text: str, made: str) -> None:
    assert _plain(text) == made
