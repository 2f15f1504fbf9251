"""The manual page, made from the commands themselves: `docs/generate.py` writes it to `config/overcoat.1`, and a wheel
installs that as `man overcoat`.

Rules of this module:

- All that click knows is in it: each command, argument and option with its help. The rest is written here.
- It depends on the code only, so it has no date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import click

from proxy.cli import main

_ENVIRONMENT = (
    ("OVERCOAT_POLICY", "The policy file, where no -p names one."),
    ("OVERCOAT_LISTEN, OVERCOAT_ADMIN, OVERCOAT_PROBES, OVERCOAT_MODE", "Override the same keys of the policy."),
    ("OVERCOAT_DATA", "The folder of the local CA, in place of ~/.local/share/overcoat."),
    ("OVERCOAT_SHARE_CA", "Start although another sidecar uses the same data directory, as --share-ca."),
    ("OVERCOAT_CONSTRAIN_CA", "A local CA that `serve` makes may sign for the hosts alone that the policy inspects."),
    ("OVERCOAT_PUBLISH_CA", "A folder for the local CA's certificate, as --publish-ca."),
    ("SSL_CERT_FILE", "The trusted roots, where the policy says `roots: system`."),
    ("NO_COLOR", "No colours on a terminal."),
)
_SIGNALS = (
    ("SIGTERM, SIGINT, SIGQUIT", "Drain: take no new connection, let run what runs for drain_timeout, and end."),
    ("SIGHUP", "Read the policy again. A change of its files does the same, unless --no-watch is given."),
    ("SIGUSR1", "Open the file of --lines again, once it was renamed."),
)
_HELP = ("-h, --help", "Show this message and exit.")
_STATUS = (
    ("0", "Done."),
    ("1", "Failed; or something was cut off at the end of draining."),
    ("2", "Wrong use, or a bad policy."),
)


def manual_text() -> str:
    """Return the page, in the language of man(7)."""
    context = click.Context(main, info_name="overcoat", **main.context_settings)
    lines = [
        '.\\" Made by docs/generate.py from the commands; change them instead.',
        '.TH OVERCOAT 1 "" "Overcoat" "User Commands"',
        ".ad l",
        ".nh",  # a hyphen at a line's end would get into what is copied
        ".SH NAME",
        f"overcoat \\- {_plain('a sidecar proxy: https only, pinned servers, encrypted JSON fields')}",
        ".SH SYNOPSIS",
        ".B overcoat",
        ".I COMMAND",
        r"[\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(main.help or ""),
        ".SH COMMANDS",
        *_commands(main, context),
    ]
    for title, listed in (("ENVIRONMENT", _ENVIRONMENT), ("SIGNALS", _SIGNALS), ("EXIT STATUS", _STATUS)):
        lines += [f".SH {title}", *_list(listed)]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group) and not command.invoke_without_command:
            yield from _commands(command, own)
            continue
        yield f".SS {_plain(own.command_path)}"
        yield f".B {_plain(own.command_path)}"
        yield _plain(" ".join(command.collect_usage_pieces(own)))
        yield ".PP"
        yield from _paragraphs(command.help or "")
        options = [param for param in command.params if isinstance(param, click.Option)]
        records = [option.get_help_record(own) for option in options]  # None for a hidden one
        # click makes the option for help but once, with the names of the context in which it was first asked for.
        yield from _list([*(record for record in records if record is not None), _HELP])
        if isinstance(command, click.Group):
            yield from _commands(command, own)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; what follows click's backspace keeps its lines."""
    for number, paragraph in enumerate(part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()):
        lines = [line.strip() for line in paragraph.strip().split("\n")]
        if number:
            yield ".PP"
        if lines[0] == "\b":
            yield from (".nf", *map(_plain, lines[1:]), ".fi")
        else:
            yield _plain(" ".join(lines))


def _list(listed: Sequence[tuple[str, str]]) -> Iterator[str]:
    for term, text in listed:
        yield from (".TP", f".B {_plain(term)}", _plain(" ".join(text.split())))


def _plain(text: str) -> str:
    """Return a text as man(7) shows it unchanged."""
    safe = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return rf"\&{safe}" if safe.startswith((".", "'")) else safe
