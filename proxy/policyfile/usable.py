"""Finds the usable part of a policy file that has errors, so that one run can report the errors in the rest, too.
`proxy.policyfile.build` calls it if the model refuses the file.

Rules of this module:

- Whatever the model refuses is taken out, as little as possible, until the model accepts the rest.
- Later checks can ask what was taken out, and report positions as they are in the file.
- The rest is never used as a policy: the file is refused already.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.policyfile.model.whole import MARKERS, PolicyFile
from proxy.policyfile.yamltext import Steps

# Stand-ins for required values that are wrong, so that their neighbours can be checked. They cause no errors
# themselves.
_PLACEHOLDERS: dict[str | int, object] = {
    "version": 1,
    "name": "unnamed",
    "hosts": ["unnamed.invalid:1"],
    "encrypt": ["$"],
    "decrypt": ["$"],
    "any_of": ["sha256/" + base64.b64encode(hashlib.sha256(b"unnamed").digest()).decode("ascii")],
    "url": "https://unnamed.invalid:443",
}


@dataclass(slots=True)
class Usable:
    """The usable part of a policy file.

    Attributes:
        file: the part that the model accepts.
        wrong: the positions in the file of what it refuses.
        kept: for each list that lost an entry, the positions in the file of the entries that are left.
    """

    file: PolicyFile
    wrong: set[Steps] = field(default_factory=set)
    kept: dict[Steps, list[int]] = field(default_factory=dict)

    def is_about_wrong(self, steps: Steps) -> bool:
        """Tell whether the value at these steps was taken out, or is part of one that was."""
        return any(each[: len(steps)] == steps[: len(each)] for each in self.wrong)

    def in_file(self, at: Steps, step: str | int) -> str | int:
        """Return the step in the file for a step in the usable part."""
        return self.kept[at][step] if isinstance(step, int) and at in self.kept else step

    def numbered[T](self, steps: Steps, items: Sequence[T]) -> Iterator[tuple[int, T]]:
        """Yield the items of the list at these steps, each with its number in the file."""
        return zip(self.kept.get(steps, range(len(items))), items, strict=True)


def usable_part(data: object) -> Usable:
    """Return the usable part of a policy file's data.

    Args:
        data: the data that `proxy.policyfile.yamltext` has read.
    """
    usable = Usable(PolicyFile(version=1))
    rest = _copied(data) if isinstance(data, dict) else {}
    while True:
        try:
            usable.file = PolicyFile.model_validate(rest)
        except ValidationError as error:
            for steps in _to_take_out(error.errors(include_url=False)):
                _take_out(rest, steps, usable)
        else:
            return usable


def _to_take_out(errors: list[ErrorDetails]) -> list[Steps]:
    """Return the steps of all wrong values, in an order in which removing one does not move those that follow."""
    found = set()
    for error in errors:
        steps = tuple(step for step in error["loc"] if step not in MARKERS)
        is_missing = error["type"] == "missing" and steps[-1] not in _PLACEHOLDERS
        found.add(steps[:-1] if is_missing else steps)  # without it, the mapping round it cannot be checked
    outermost = (steps for steps in found if not any(steps[:end] in found for end in range(len(steps))))
    return sorted(outermost, key=lambda steps: [(isinstance(step, int), step) for step in steps], reverse=True)


def _take_out(rest: Any, steps: Steps, usable: Usable) -> None:
    container = rest
    at: Steps = ()
    for step in steps[:-1]:
        at = (*at, usable.in_file(at, step))
        container = container[step]
    last = steps[-1]
    leaf = (*at, usable.in_file(at, last))
    usable.wrong.add(leaf)
    if isinstance(last, int):
        usable.kept.setdefault(at, list(range(len(container)))).pop(last)
        del container[last]
    elif last in container:
        del container[last]
    else:
        container[last] = _PLACEHOLDERS[last]
        usable.kept.pop(leaf, None)


def _copied(data: object) -> Any:
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list) else data
