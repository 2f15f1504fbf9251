"""What is said of a policy that is refused. The policy file's reader makes these errors, the commands print them, and
the process that serves gets them from the one that has read the policy.

Rules of this module:

- It imports nothing of what reads a policy file, so that a process may know the errors without that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicyError:
    """One error in a policy.

    Attributes:
        file: the policy file as it was named; "" for an error in an environment variable or a flag.
        line: from 1; 0 if the error has no position in a file.
        column: from 1; 0 as above.
        path: the key or entry, such as `rules[0].pins.any_of[1]`; or the variable or flag.
        message: what is wrong and what would be right.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        position = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (position, self.path, self.message) if part)


class PolicyErrors(Exception):
    """The policy is refused.

    Attributes:
        errors: everything that is wrong with it, in the order of the file.
    """

    def __init__(self, errors: Iterable[PolicyError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


def shown(text: str, limit: int = 60) -> str:
    """Return text in quotes for a message, shortened if it is long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
