"""`overcoat completion` prints the script by which a shell completes commands and options; click makes it."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that makes your shell complete Overcoat's commands and options.

    For bash, put the line of the example into ~/.bashrc; for zsh the same with zsh into ~/.zshrc, after compinit; for
    fish: overcoat completion fish > ~/.config/fish/completions/overcoat.fish

    Example: eval "$(overcoat completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(ctx.find_root().command, {}, "overcoat", "_OVERCOAT_COMPLETE")
    # Not bash's own `source`, which starts a bash to look at its version: the script may be for another machine.
    click.echo(ShellComplete.source(made))
