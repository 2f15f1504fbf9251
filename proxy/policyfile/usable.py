"""What of a policy file is right, where not all is: so that one run finds all that is wrong with it.

Rules of this module:

- What the model refuses is taken out, as little of it as can be, until the model takes the rest.
- Who judges the rest can tell what was taken out, and speaks of places as they are in the file.
- Nothing of this is ever used as a policy: it is refused already.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.policyfile.model import PolicyFile
from proxy.policyfile.yamltext import Steps

# Stands for what is needed, and wrong, where more can be said of what is beside it. Nothing is ever said of these.
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
    """The right part of a policy file.

    Attributes:
        file: what the model takes.
        wrong: what it does not, by its place in the file.
        kept: of each list of which something was taken out, the places that the rest has in the file.
    """

    file: PolicyFile
    wrong: set[Steps] = field(default_factory=set)
    kept: dict[Steps, list[int]] = field(default_factory=dict)

    def is_about_wrong(self, steps: Steps) -> bool:
        """Tell whether something at these steps was taken out, or is part of what was."""
        return any(each[: len(steps)] == steps[: len(each)] for each in self.wrong)

    def in_file(self, place: Steps, step: str | int) -> str | int:
        """Return the step in the file that a step from this place is."""
        return self.kept[place][step] if isinstance(step, int) and place in self.kept else step

    def numbered[T](self, steps: Steps, items: Sequence[T]) -> Iterator[tuple[int, T]]:
        """Yield the items of the list at these steps, each with its place in the file."""
        return zip(self.kept.get(steps, range(len(items))), items, strict=True)


def usable_part(data: object) -> Usable:
    """Return the right part of a policy file's data.

    Args:
        data: what the YAML says, as `proxy.policyfile.yamltext` reads it.
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
    """Return the steps of what is wrong, so ordered that what is taken out does not move what still is to be."""
    found = set()
    for error in errors:
        steps = tuple(step for step in error["loc"] if step != "[key]")
        is_missing = error["type"] == "missing" and steps[-1] not in _PLACEHOLDERS
        found.add(steps[:-1] if is_missing else steps)  # there is nothing to be said of what lacks it
    outermost = (steps for steps in found if not any(steps[:end] in found for end in range(len(steps))))
    return sorted(outermost, key=lambda steps: [(isinstance(step, int), step) for step in steps], reverse=True)


def _take_out(rest: Any, steps: Steps, usable: Usable) -> None:
    container = rest
    place: Steps = ()
    for step in steps[:-1]:
        place = (*place, usable.in_file(place, step))
        container = container[step]
    last = steps[-1]
    place_of_it = (*place, usable.in_file(place, last))
    usable.wrong.add(place_of_it)
    if isinstance(last, int):
        usable.kept.setdefault(place, list(range(len(container)))).pop(last)
        del container[last]
    elif last in container:
        del container[last]
    else:
        container[last] = _PLACEHOLDERS[last]
        usable.kept.pop(place_of_it, None)


def _copied(data: object) -> Any:
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list) else data
