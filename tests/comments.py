"""Makes comments of a policy that `overcoat suggest` has written part of it, as its reader is told to."""

from __future__ import annotations

PROTECTIONS = (
    *("keys:", "receiver: {"),
    *("pins:", "any_of:", "- sha256/"),
    *("request:", "- encrypt:", '- "$', "key: receiver", "match: "),
)


def uncomment(text: str, beginnings: tuple[str, ...]) -> str:
    """Return a policy in which the comments that begin like this are none."""
    return "".join(_without_mark(row, beginnings) for row in text.splitlines(keepends=True))


def _without_mark(row: str, beginnings: tuple[str, ...]) -> str:
    bare = row.lstrip(" ")
    is_meant = bare.startswith("# ") and bare[2:].strip().startswith(beginnings)
    return row.replace("# ", "", 1) if is_meant else row
