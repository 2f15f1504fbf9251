"""How a command says that its work failed."""

from __future__ import annotations

from typing import IO, Any

import click


class Failed(click.ClickException):
    """An error of the command's work, as against wrong use: one line, exit status 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message the way every line of this command's errors looks."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)
