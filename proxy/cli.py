"""The `overcoat` command. The launcher (`overcoat/__main__.py`) runs it. Each subcommand is in a module of
`proxy.commands`, which is imported when the subcommand is used.
"""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any

import click
from click.shell_completion import CompletionItem

from proxy.late import load_late
from proxy.processes.secrecy import keep_private
from proxy.processes.signals import take_over_signals

_COMMANDS = {
    "serve": ("proxy.commands.serve", "Run the sidecar."),
    "run": (
        "proxy.commands.run",
        "Run a program with a sidecar of its own, for as long as the program runs.",
    ),
    "env": ("proxy.commands.env", "Print what makes programs use and trust a running sidecar."),
    "check": ("proxy.commands.policy", "Check the policy; say what it does, or everything that is wrong with it."),
    "explain": ("proxy.commands.explain", "Say what would happen to a request for a URL, and why."),
    "suggest": ("proxy.commands.suggest", "Write a policy for what decision lines show."),
    "schema": ("proxy.commands.policy", "Print the JSON Schema of the policy file."),
    "pins": ("proxy.commands.pins", "Show, test, spare and import the pins of servers' keys."),
    "keys": ("proxy.commands.keys", "Make keys; seal and open values by hand."),
    "password": ("proxy.commands.password", "Print the hash of a password, for users of the proxy."),
    "ca": ("proxy.commands.ca", "Print the local CA's certificate, for apps to trust; replace the CA."),
    "healthcheck": ("proxy.commands.health", "Ask a running sidecar whether it is ready."),
    "completion": ("proxy.commands.completion", "Print a script that makes your shell complete commands."),
    "demo": ("proxy.commands.demo", "Show the main job on real connections, and check it."),
}


_POLICY_FILE = re.compile(r"\.ya?ml\b")


_NO_COMMAND = re.compile(r"No such command '(.*)'")


def _meant(name: str, ctx: click.Context | None) -> str:
    """Return which command was meant by a name that is none in this context's group, as far as that is clear."""
    from difflib import get_close_matches  # noqa: PLC0415  # for who mistyped alone: nobody else pays for it

    if _POLICY_FILE.search(name):
        return f"; a policy file is named with -p: overcoat serve -p {name}"
    group = ctx.command if ctx is not None else None
    found = get_close_matches(name, group.list_commands(ctx) if ctx and isinstance(group, click.Group) else (), 1)
    return f"; did you mean {found[0]}?" if found else ""


class _Commands(click.Group):
    """A group that imports a subcommand only when it is used, so that help is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=text) for name, (_, text) in _COMMANDS.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)  # its options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "serve":
            take_over_signals()  # before the imports, the slowest part of the start
            load_late()
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if error.message.startswith("Got unexpected extra argument") and _POLICY_FILE.search(error.message):
                raise click.UsageError(f"{error.message}; a policy file is named with -p", error.ctx) from None
            if found := _NO_COMMAND.match(error.message):
                raise click.UsageError(
                    f"No such command {found[1]!r}{_meant(found[1], error.ctx)}", error.ctx
                ) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overcoat", prog_name="overcoat")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Overcoat: a sidecar proxy that an unmodified app wears like a coat.

    The app keeps speaking plain http to its proxy; what leaves is https only, only to pinned servers, with the marked
    JSON fields encrypted.

    Example: overcoat check -p overcoat.yaml && overcoat serve -p overcoat.yaml
    """
    # cryptography's, of serial numbers that are 0 or negative: OpenSSL decides on such certificates, and there are some
    warnings.filterwarnings("ignore", message="Parsed a serial number")
    keep_private(is_limited=ctx.invoked_subcommand != "run")
