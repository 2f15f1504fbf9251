"""What all parts of the model are made of: a mapping of the policy file, strictly read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from proxy.core.rules.policy import Policy

BUILT_IN = Policy()  # the defaults of most keys


class Section(BaseModel):
    """One mapping of the policy file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


def choice(default: object, description: str) -> Any:
    """Return a field for an enum, given by its value as text."""
    return Field(default=default, strict=False, description=description)
