"""The entries of a rule's `request` and `response` lists: which values are encrypted or decrypted, with which keys, and
in which requests. The policy file's reader makes them; `addons.encryption` asks them for each request.

Rules of this module:

- An entry is complete when the policy file has been read: it cannot fail at request time.
- A request that servers may read in several ways matches a `when` if one of these readings does.
- Matching a glob takes linear time, whatever the length of the path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from importlib import import_module

from proxy.core.fields.automaton import Marks
from proxy.core.fields.envelopes import Envelope
from proxy.core.fields.readings import Readings
from proxy.core.fields.selectors import Selector
from proxy.core.jose.keys import KeySet


@dataclass(frozen=True, slots=True)
class PathGlob:
    """A glob over URL paths: `*` matches within one segment, and `**` matches any number of whole segments, also none.

    It ignores the case of letters, as some servers do.
    """

    text: str
    pattern: re.Pattern[str]

    @staticmethod
    def parse(text: str) -> PathGlob:
        """Compile a glob.

        `/v1/**` matches `/v1`, too, just as `**.example` matches `example` itself.

        Raises:
            ValueError: it does not start with `/`, has a query or a fragment, or `**` is only part of a segment.
        """
        if not text.startswith("/"):
            raise ValueError(f"a path glob starts with '/', not {text[:1]!r}")
        if "?" in text or "#" in text:
            raise ValueError("a path glob has no query and no fragment")
        if set("{}\\") & set(text) or any(character.isspace() for character in text):
            raise ValueError("a path glob has no braces, backslashes or blanks; '*' stands for what varies")
        *segments, last = text[1:].split("/")
        if any(segment in ("", ".", "..", ".*") or segment[0] == ":" for segment in [*segments, last or "/"]):
            raise ValueError("a path glob has no empty or dot segments, and '*', not ':name' or '.*', for what varies")
        if "%" in text:
            raise ValueError(
                "a path glob is written decoded, without percent-escapes: requests are compared decoded, too"
            )
        runs = [""]  # the regexes of the segments between one `**` and the next
        for segment in text[1:].split("/"):
            if segment == "**":
                runs.append("")
            elif "**" in segment:
                raise ValueError("'**' stands for whole segments: write it between slashes, as in /v1/**")
            else:
                runs[-1] += _segment_regex(segment)
        first, *later = runs
        if not later:
            return PathGlob(text, re.compile(first, re.IGNORECASE))
        # A run has a fixed number of segments, so its first match leaves most of the path to the next run. The atomic
        # group keeps that match: without it, the time could grow as a power of the path's length.
        middle = "".join(f"(?>{_ANY_SEGMENTS}?{run})" for run in later[:-1])
        return PathGlob(text, re.compile(f"{first}{middle}{_ANY_SEGMENTS}{later[-1]}", re.IGNORECASE))

    def matches(self, path: str) -> bool:
        """Tell whether a path, without its query, matches."""
        return self.pattern.fullmatch(path) is not None


_ANY_SEGMENTS = "(?:/[^/]*)*"


def _segment_regex(segment: str) -> str:
    first, *later = (re.escape(literal) for literal in segment.split("*"))
    if not later:
        return f"/{first}(?=/|\\Z)"
    middle = "".join(f"(?>[^/]*?{literal})" for literal in later[:-1])
    return f"/{first}{middle}[^/]*{later[-1]}(?=/|\\Z)"


@dataclass(frozen=True, slots=True)
class When:
    """Which requests of a rule an entry applies to; None means all of them."""

    methods: frozenset[str] | None = None
    paths: tuple[PathGlob, ...] | None = None

    def applies(self, found: Readings) -> bool:
        """Tell whether the entry applies to a request in one of its readings.

        If servers read a path or a method in too many ways, it may be any path or method, and the entry applies.

        Args:
            found: the readings of the request; see `proxy.core.fields.readings`.
        """
        if self.methods is not None and found.methods is not None and self.methods.isdisjoint(found.methods):
            return False
        if self.paths is None or found.paths is None:
            return True
        return any(glob.matches(path) for glob in self.paths for path in found.paths)


class Work(StrEnum):
    """What happens to the values that an entry selects."""

    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"


class Signed(StrEnum):
    """What happens to a request whose body is signed, where a field of it must be encrypted."""

    DENY = "deny"
    PASS = "pass"  # noqa: S105  # not a password


class Match(StrEnum):
    """How the names of members are compared with those of selectors."""

    EXACT = "exact"
    IGNORE_CASE = "ignore_case"


class AlreadySealed(StrEnum):
    """What happens to a value that must be encrypted, and was sealed for the same place before."""

    KEEP = "keep"
    SEAL = "seal"
    DENY = "deny"


class OtherBodies(StrEnum):
    """What happens to a request whose body is of a kind in which an entry marks nothing."""

    DENY = "deny"
    PASS = "pass"  # noqa: S105  # not a password


class Digests(StrEnum):
    """What happens to digests of a request's body that nothing signs, where a field of it must be encrypted."""

    DENY = "deny"
    DROP = "drop"
    RECOMPUTE = "recompute"


class OnFailure(StrEnum):
    """What happens to what should be decrypted, and cannot be."""

    DENY = "deny"
    PASS = "pass"  # noqa: S105  # not a password


@dataclass(frozen=True, slots=True)
class FieldEntry:
    """One entry of a rule's `request` or `response` list. All entries of one list do the same work.

    Attributes:
        selectors: which values.
        keys: with which keys.
        work: what happens to them.
        when: in which requests.
        signed: what happens to a request whose body is signed.
        inside: selectors of the strings in whose JSON text these values stand; see `Marks`.
        match: how names are compared.
        marks: all three, as bodies are searched.
        name: what lines and metrics call it: its place in the rule, as in `request[0]`.
        already_sealed: what happens to a value that is sealed already.
        pad: what is sealed is made longer, up to a multiple of so many bytes; 1 for not at all.
        envelope: the object in which a sealed value stands, or None if it stands there alone.
        rename: the name that a member has once its value was replaced; None for the name that it had.
        form: the names of marked fields in forms.
        graphql_arguments: arguments of GraphQL queries that must not be literals.
        required: whether a request in which nothing is found is denied.
        other_bodies: what happens to other bodies.
    """

    selectors: tuple[Selector, ...]
    keys: KeySet
    work: Work = Work.ENCRYPT
    when: When = When()
    signed: Signed = Signed.DENY
    name: str = ""
    inside: tuple[Selector, ...] = ()
    match: Match = Match.EXACT
    already_sealed: AlreadySealed = AlreadySealed.KEEP
    pad: int = 1
    envelope: Envelope | None = None
    rename: str | None = None
    form: tuple[str, ...] = ()
    graphql_arguments: frozenset[str] = frozenset()
    required: bool = False
    other_bodies: OtherBodies = OtherBodies.DENY
    on_failure: OnFailure = OnFailure.DENY
    digests: Digests = Digests.DENY
    signed_headers: frozenset[bytes] = frozenset()
    marks: Marks = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        marks = Marks(self.selectors, self.inside, self.match is Match.IGNORE_CASE, is_strict=self.work is Work.ENCRYPT)
        object.__setattr__(self, "marks", marks)  # frozen once it is complete
        # No request should wait for these, which takes up to a tenth of a second; without entries nobody needs them.
        import_module("msgspec")
        if self.graphql_arguments:
            import_module("proxy.core.fields.graphql")

    def __reduce__(self) -> tuple[type[FieldEntry], tuple[object, ...]]:
        """Have another process make it anew, so that it is complete there, too."""
        return FieldEntry, tuple(getattr(self, each.name) for each in fields(self) if each.init)
