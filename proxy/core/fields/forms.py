"""Finds the marked fields of a form (`application/x-www-form-urlencoded`), and puts other values in their place; says
also which names of form fields are marked, for multipart forms, too. `proxy.core.fields.kinds` calls it.

Rules of this module:

- Fields are what stands between `&` (WHATWG URL, section 5.1). All fields of a marked name count.
- Names are compared decoded. A name that some servers take for a marked one, though it is another (`card.number` and
  `card_number[]` for PHP, `a=1;card_number=4`), is denied, not guessed.
- An escape in a name that is none, and a name or a marked value that is not UTF-8, are denied.
- A marked value is sealed as a JSON string, and bound to the place that it would have if the form were an object.
- Every other byte stays as it came. No message has a name or a value of the body in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote_plus, unquote_to_bytes

from proxy.core.decisions import Denied
from proxy.core.fields.jsontext import Span, member_path, string_value
from proxy.core.fields.names import FOLDS, folded
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.splice import Job, Spliced
from proxy.core.reasons import Reason

MAX_FIELDS = 10_000  # of one form; an honest one has a hundred

_HALF = re.compile("[\ud800-\udfff]")
_PERCENT, _DECODED = ord("%"), 64 * 1024  # bytes that are decoded at once
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SEPARATORS = str.maketrans({"[": "_", ".": "_", " ": "_"})
_BEHIND = ("", "[", ".", " ")  # what ends a name, and what begins a part of it
_UTF8 = frozenset((b"utf-8", b"utf8"))


def unreadable(why: str, hint: str = "") -> Denied:
    """Return the denial of a body that its receiver might read in another way."""
    return Denied(Reason.BODY_UNREADABLE, why, hint)


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The names of form fields that the entries of a rule mark; made by `field_names`.

    Attributes:
        exact: the entry's number by the name.
        by_folded: the entry's number by the folded name, of entries that ignore case.
        similar: what a name looks like to servers that write its separators in another way.
        longest: the greatest length of a name, in characters, that folding may make one of these.
    """

    exact: dict[str, int]
    by_folded: dict[str, int]
    similar: tuple[str, ...]
    longest: int

    def job_of(self, name: str) -> int | None:
        """Return the number of the entry that marks a field; None if none does.

        Args:
            name: the field's name, decoded.

        Raises:
            Denied: BODY_UNREADABLE, if some servers take it for a marked name.
        """
        job = self.exact.get(name)
        if job is None and self.by_folded:
            job = self.by_folded.get(_folded(name[: self.longest + 1]))
        if job is None and self.similar:
            self._check(name)
        return job

    def _check(self, name: str) -> None:
        """Refuse a name that PHP, Rails, Spring or a reader in C takes for a marked one, or for a part of it."""
        stripped = name.partition("\0")[0].lstrip().replace("]", "")
        if self.by_folded:
            stripped = _folded(stripped[: self.longest + 1])
        spelled = stripped.translate(_SEPARATORS)
        for each in self.similar:
            if spelled.startswith(each) and stripped[len(each) : len(each) + 1] in _BEHIND:
                raise unreadable(
                    "the name of a field is one that some servers take for a marked one, written in another way",
                    "spell it as the entry's `form` does, or name this spelling there, too",
                )


def _folded(name: str) -> str:
    return folded(name.encode()).decode()


@lru_cache(maxsize=256)
def field_names(names: tuple[tuple[str, ...], ...], ignoring_case: tuple[bool, ...]) -> FieldNames:
    """Return what is known of the marked names.

    Args:
        names: those of each entry.
        ignoring_case: for each entry, whether it ignores case.
    """
    exact: dict[str, int] = {}
    by_folded: dict[str, int] = {}
    for job, (each, ignores) in enumerate(zip(names, ignoring_case, strict=True)):
        for name in each:
            exact.setdefault(name, job)
            if ignores:
                by_folded.setdefault(_folded(name), job)
    spelled = {name.lstrip().replace("]", "").translate(_SEPARATORS).rstrip("_") for name in exact}
    if by_folded:
        spelled = {_folded(each) for each in spelled}
    longest = max((len(name.encode()) for name in (*by_folded, *spelled)), default=0)
    return FieldNames(exact, by_folded, tuple(sorted(spelled)), (longest + 1) * FOLDS)


def as_json(text: bytes) -> bytes:
    """Return the JSON string of a field's value.

    Raises:
        Denied: BODY_UNREADABLE, if the value is not UTF-8.
    """
    return json.dumps(decoded_utf8(text), ensure_ascii=False).encode()


def from_json(value: bytes) -> bytes:
    """Return the text that takes a field's place.

    Raises:
        Denied: DECRYPTION_FAILED, if the value is no JSON string.
    """
    text = string_value(value)
    if text is None or _HALF.search(text):
        raise Denied(Reason.DECRYPTION_FAILED, "a form's field opens to something that is no text")
    return text.encode()


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a form.

    Attributes:
        name: its name, decoded.
        begin: the offset of its name's first byte.
        start: the offset of its value's first byte.
        end: the offset after it.
    """

    name: str
    begin: int
    start: int
    end: int


def fields(text: bytes, pause: Pause = never) -> Iterator[Field]:
    """Yield the fields of a form or a query.

    Args:
        text: the form, or the query.
        pause: called before each.

    Raises:
        Denied: BODY_UNREADABLE for a name that cannot be decoded; BODY_TOO_LARGE for too many fields.
    """
    if text.count(b"&") + text.count(b";") >= MAX_FIELDS:
        raise Denied(Reason.BODY_TOO_LARGE, f"the form has more than {MAX_FIELDS} fields", "send it in smaller parts")
    begin = 0
    for pair in text.split(b"&"):
        pause()
        name, equals, _ = pair.partition(b"=")
        yield Field(decoded(name, pause).decode(), begin, begin + len(name) + len(equals), begin + len(pair))
        begin += len(pair) + 1


def decoded(text: bytes, pause: Pause = never) -> bytes:
    """Return the bytes that stand in a name or a value, without escapes; they are UTF-8.

    Args:
        text: the name or value as it stands in the form.
        pause: called again and again meanwhile.

    Raises:
        Denied: BODY_UNREADABLE.
    """
    if _BAD_ESCAPE.search(text):
        raise unreadable("a form has a percent sign that begins no escape", "write it as %25")
    text = text.replace(b"+", b" ")
    pieces: list[bytes] = []
    start = 0
    while len(text) - start > _DECODED:
        end = start + _DECODED
        end -= 1 if text[end - 1] == _PERCENT else 2 if text[end - 2] == _PERCENT else 0  # not within an escape
        pieces.append(unquote_to_bytes(text[start:end]))
        start = end
        pause()
    plain = b"".join((*pieces, unquote_to_bytes(text[start:])))
    decoded_utf8(plain)
    return plain


def encoded(text: bytes) -> bytes:
    """Return a value as it stands in a form (WHATWG URL, section 5.2)."""
    return quote_plus(text, "*").encode("ascii")


def decoded_utf8(text: bytes) -> str:
    """Return the text of UTF-8.

    Raises:
        Denied: BODY_UNREADABLE.
    """
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise unreadable("the body is not UTF-8", "send forms and queries in UTF-8") from None


def splice_form(text: bytes, names: FieldNames, jobs: Sequence[Job], most: int, *, pause: Pause = never) -> Spliced:
    """Replace the values of the marked fields of a form.

    Args:
        text: the decoded body.
        names: which fields are marked; the number of an entry is that of its job.
        jobs: what to do with their values. A transform gets a JSON string, and must return one.
        most: the greatest number of values.
        pause: called again and again meanwhile.

    Raises:
        Denied: BODY_UNREADABLE, BODY_TOO_LARGE, or what a transform raises.
    """
    spans: list[Span] = []
    for field in fields(text, pause):
        job = names.job_of(field.name)
        if field.name == "_charset_":
            check_charset(text[field.start : field.end])
        _check_semicolons(text[field.begin : field.end], names)
        if job is not None and text[field.start - 1 : field.start] == b"=":  # without `=`, there is no value
            spans.append(Span(field.start, field.end, member_path(field.name), job))
    check_number(len(spans), most)
    pieces: list[bytes] = []
    copied, counts = 0, [0] * len(jobs)
    replaced: list[Span] = []
    for span in spans:
        pause()
        replacement = jobs[span.job].transform(as_json(decoded(text[span.start : span.end], pause)), span.path)
        if replacement is not None:
            pieces += (text[copied : span.start], encoded(from_json(replacement)))
            copied = span.end
            counts[span.job] += 1
            replaced.append(span)
    if not replaced:
        return Spliced(text, tuple(counts))
    return Spliced(b"".join((*pieces, text[copied:])), tuple(counts), tuple(replaced))


def check_number(count: int, most: int) -> None:
    """Check that a body has not too many marked values.

    Raises:
        Denied: BODY_TOO_LARGE.
    """
    if count > most:
        raise Denied(
            Reason.BODY_TOO_LARGE,
            f"the body has {count} fields to protect, and {most} are the most",
            "send it in smaller parts",
        )


def check_charset(value: bytes) -> None:
    """Check the value of a field `_charset_`, by which some servers decode all others (RFC 7578, section 4.6).

    Raises:
        Denied: BODY_UNREADABLE.
    """
    if value.strip().lower() not in _UTF8:
        raise unreadable("the form says in `_charset_` that it is not UTF-8", "send forms in UTF-8")


def _check_semicolons(field: bytes, names: FieldNames) -> None:
    """Refuse a form in which servers that separate fields by `;`, too, find a marked field."""
    for pair in field.split(b";")[1:]:
        if names.job_of(decoded(pair.partition(b"=")[0]).decode()) is not None:
            raise unreadable(
                "the form has a marked field behind a `;`, which some servers take for a separator",
                "separate fields by `&`, and write `;` as %3B",
            )
