"""The error with which a command reports that its work failed. `proxy.commands.keys`, `pins`, `run` and `env` raise
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def key_failures(file: Path | None = None) -> Iterator[None]:
    """Turn the errors of keys, files and tokens into one line each."""
    from proxy.core.destinations import BadDestination
    from proxy.core.jose.jwe import JweError
    from proxy.core.jose.keys import BadKey
    from proxy.disk.keyfiles import KeyFileError

    try:
        yield
    except BadKey as error:
        raise Failed(f"{file}: {error}" if file else str(error)) from None
    except BadDestination as error:
        raise click.BadParameter(str(error), param_hint="--host") from None
    except (KeyFileError, JweError) as error:
        raise Failed(str(error)) from None
    except FileExistsError as error:
        raise Failed(f"{error.filename}: exists already, and keys are never overwritten") from None
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)) from None
