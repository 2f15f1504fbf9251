"""The error with which a command reports that its work failed. `proxy.commands.keys`, `pins`, `run` and `env` raise
it.
"""

from __future__ import annotations

from typing import IO, Any

import click


class Failed(click.ClickException):
    """The command's work failed (as opposed to wrong use): one line of error, exit status 1 if no other is given."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click has it on the class, and reads it from the exception

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message in the form of all errors of this command."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)
