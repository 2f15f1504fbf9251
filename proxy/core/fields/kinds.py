"""Chooses how the marked values of a body are found, by what its label (Content-Type) says and by what the body is.
`proxy.core.fields.bodies` calls it with each decoded body.

Rules of this module:

- Many servers read JSON whatever the label says. So what begins like JSON counts as JSON under any label but those of
  several texts, multipart forms and binary formats; and a body under a label of JSON is JSON, or denied.
- An entry has nothing to do with a body of another kind than it marks fields in; then its `other_bodies` counts.
- In an array of requests, or of answers (JSON-RPC, GraphQL), an entry's selectors count for each of them, too, and in a
  multipart form for each part that says it is JSON.
- What is labelled as a JSON Patch is one. In a request, so is an array that looks like one, since servers may read it
  as one; in a response it is what it is, for whoever seals it and for whoever opens it.
- What could be read in two ways, in both of which something is marked, is denied.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from urllib.parse import unquote

from proxy.core.decisions import Denied
from proxy.core.fields import forms, graphqlrequests, jsonpatch, lines, multipart, splice
from proxy.core.fields.automaton import Marks, in_each
from proxy.core.fields.entries import FieldEntry, OtherBodies, Work
from proxy.core.fields.forms import FieldNames, unreadable
from proxy.core.fields.jsontext import NotJson, Span, find_spans, member_path
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.responses import is_lines, is_sequence, may_be_json
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.spans import MAX_VALUES
from proxy.core.fields.splice import Job, Spliced
from proxy.core.reasons import Reason

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # RFC 9110's token, not a secret
_MEDIA_TYPE = re.compile(rf"[ \t]*+({_TOKEN})/({_TOKEN})[ \t]*+(?:;|\Z)")
_PATCH = "json-patch+json"
_BINARY_TYPES = frozenset(("image", "audio", "video", "font", "model"))
_BINARY_FORMATS = ("grpc", "protobuf", "cbor", "msgpack")
_ARRAY = re.compile(rb"[ \t\r\n]*+\[")

MAX_TEXTS = 20_000  # in one body: each costs some time, however short it is

# One walk over an array tells what it is an array of: requests, answers to them, or operations of a patch.
_OF_REQUESTS = ("jsonrpc", "method", "params", "query", "variables", "operationName", "extensions")
_OF_ANSWERS = ("result", "error", "data", "errors")
_LOOK = [
    Marks((parse_selector(text),), ignore_case=True)
    for text in (f"$[*][{','.join(map(repr, _OF_REQUESTS + _OF_ANSWERS))}]", "$[*].op", "$[*].path")
]


# The path of a member that no operation has, or of what is in it.
_BESIDE = re.compile(r"\$\[\*\](?!\.(?:op|path|from|value)(?![A-Za-z0-9_]))[.\[]", re.IGNORECASE)
_WHOLE = re.compile(r"\$(?:\[\*\])?")  # that of all of a patch, or of an operation
_MEMBERS = [Marks((parse_selector("$[*].*"),))]
_NO_PATCH = frozenset((Reason.BODY_UNREADABLE, Reason.BODY_TOO_LARGE))


class Kind(StrEnum):
    """What a body is."""

    JSON = "JSON"
    LINES = "JSON lines"
    SEQUENCE = "a JSON text sequence"
    PATCH = "a JSON Patch"
    FORM = "a form"
    MULTIPART = "a multipart form"
    GRAPHQL = "a GraphQL query"
    OTHER = "no JSON"


_OF_JSON = frozenset((Kind.JSON, Kind.LINES, Kind.SEQUENCE, Kind.PATCH))


def label_of(content_types: Sequence[str]) -> Kind | None:
    """Return what the Content-Type says; None if it says nothing, or nothing that can be read.

    Args:
        content_types: the values of all fields of that name.

    Raises:
        Denied: BODY_UNREADABLE, if it cannot be read, and some servers may see a form in it.
    """
    return _label_of(tuple(content_types))


@lru_cache(maxsize=32)
def _label_of(content_types: tuple[str, ...]) -> Kind | None:
    text = ",".join(content_types).lower()
    found = _MEDIA_TYPE.match(text)
    if found is None or len(content_types) > 1:
        if "multipart" in text or "urlencoded" in text:
            raise unreadable("the Content-Type cannot be read in one way only", "send one media type (RFC 9110)")
        return Kind.JSON if "json" in text else None
    top, sub = found.groups()
    if "json" in sub:
        if is_lines(sub):
            return Kind.LINES
        if is_sequence(sub):
            return Kind.SEQUENCE
        return Kind.PATCH if sub == _PATCH else Kind.JSON
    if top == "multipart":
        return Kind.MULTIPART if sub == "form-data" else Kind.OTHER
    if top == "application" and sub == "x-www-form-urlencoded":
        return Kind.FORM
    return Kind.GRAPHQL if sub == "graphql" else Kind.OTHER


def is_patch(content_types: Sequence[str]) -> bool:
    """Tell whether a body is labelled as a JSON Patch (RFC 6902).

    Args:
        content_types: the values of Content-Type.
    """
    found = _MEDIA_TYPE.match(content_types[0].lower()) if len(content_types) == 1 else None
    return found is not None and found[2] == _PATCH


def kind_of(content_types: Sequence[str], text: bytes, *, pause: Pause = never) -> Kind:
    """Return what a body is.

    Args:
        content_types: the values of Content-Type.
        text: the decoded body, not empty.
        pause: called again and again meanwhile.

    Raises:
        Denied: BODY_UNREADABLE, as `label_of`.
    """
    label = label_of(content_types)
    if label is Kind.FORM:
        return Kind.JSON if may_be_json(text) else Kind.FORM
    if label is Kind.GRAPHQL:
        return Kind.JSON if _is_json(text, pause) else Kind.GRAPHQL
    if label is not None and label is not Kind.OTHER:
        return label
    if is_binary(content_types):
        return Kind.OTHER
    return Kind.JSON if may_be_json(text) or _is_json(text, pause) else Kind.OTHER


def is_binary(content_types: Sequence[str]) -> bool:
    """Tell whether a body is labelled as a format in which nobody looks for JSON."""
    found = _MEDIA_TYPE.match(content_types[0].lower()) if len(content_types) == 1 else None
    return found is not None and (found[1] in _BINARY_TYPES or any(each in found[2] for each in _BINARY_FORMATS))


def _is_json(text: bytes, pause: Pause) -> bool:
    try:
        find_spans(text, (), pause=pause)
    except NotJson:
        return False
    return True


def takes(entry: FieldEntry, kind: Kind) -> bool:
    """Tell whether an entry may mark something in a body of a kind."""
    if kind in (Kind.FORM, Kind.MULTIPART):
        return bool(entry.form or entry.graphql_arguments)
    return kind in _OF_JSON or (kind is Kind.GRAPHQL and bool(entry.graphql_arguments))


def check_other(entries: Sequence[FieldEntry], kind: Kind) -> bool:
    """Tell whether entries have anything to do with a body of a kind.

    Raises:
        Denied: BODY_NOT_JSON, if an entry has not, and does not let it pass.
    """
    if kind in _OF_JSON:
        return bool(entries)
    for entry in entries:
        if not takes(entry, kind) and entry.work is Work.ENCRYPT and entry.other_bodies is OtherBodies.DENY:
            raise Denied(
                Reason.BODY_NOT_JSON,
                f"the body has fields to protect, but it is {kind}, in which the rule marks none",
                "send JSON, name the fields of forms in the entry's `form`, or let it pass with `other_bodies: pass`",
            )
    return any(takes(entry, kind) for entry in entries)


def splice_body(
    text: bytes,
    content_types: Sequence[str],
    entries: Sequence[FieldEntry],
    jobs: Sequence[Job],
    most: int,
    *,
    of_request: bool = True,
    pause: Pause = never,
) -> Spliced:
    """Replace the marked values of a body of any kind.

    Args:
        text: the decoded body, not empty.
        content_types: the values of Content-Type.
        entries: what is marked; all of them do the same work.
        jobs: what to do with the values of each entry.
        most: the greatest number of values.
        of_request: whether it is a request's.
        pause: called again and again meanwhile.

    Raises:
        Denied: it cannot be read, it is of another kind, or a transform says so.
        ValueError: a transform returned something that is not JSON.
    """
    kind = kind_of(content_types, text, pause=pause)
    opens_parts = kind is Kind.MULTIPART and entries[0].work is Work.DECRYPT  # a mirror opens the JSON in any upload
    if not check_other(entries, kind) and not opens_parts:
        return Spliced(text, (0,) * len(jobs))
    match kind:
        case Kind.FORM:
            graphqlrequests.check_form(text, entries, pause)
            return forms.splice_form(text, names_of(entries), jobs, most, pause=pause)
        case Kind.MULTIPART:
            parts, boundary = Parts(entries, jobs, most, pause=pause), multipart.boundary_of(content_types[0])
            return _splice_pieces(text, multipart.pieces_of(text, boundary, parts.is_kept), boundary, parts)
        case Kind.GRAPHQL:
            graphqlrequests.check_query(forms.decoded_utf8(text), entries, pause)
            return Spliced(text, (0,) * len(jobs))
        case _:
            spliced = _splice_as(kind, text, entries, jobs, most, of_request=of_request, pause=pause)
            if label_of(content_types) is Kind.FORM:
                _check_form_too(text, entries, pause)
            return spliced


def names_of(entries: Sequence[FieldEntry]) -> FieldNames:
    """Return the names of form fields that entries mark."""
    return forms.field_names(
        tuple(entry.form for entry in entries), tuple(entry.marks.ignore_case for entry in entries)
    )


def _check_form_too(text: bytes, entries: Sequence[FieldEntry], pause: Pause) -> None:
    """Refuse JSON under the label of a form in which servers that believe the label find a marked field."""
    names = names_of(entries)
    if names.exact and any(names.job_of(field.name) is not None for field in forms.fields(text, pause)):
        raise unreadable("the body is JSON, labelled as a form, and has a marked field if it is read as one")


def _splice_as(
    kind: Kind,
    text: bytes,
    entries: Sequence[FieldEntry],
    jobs: Sequence[Job],
    most: int,
    *,
    of_request: bool = True,
    pause: Pause,
) -> Spliced:
    """Replace the marked values of a body of one of the kinds of JSON."""
    if kind in (Kind.LINES, Kind.SEQUENCE):
        return _splice_texts(text, entries, jobs, most, records=kind is Kind.SEQUENCE, pause=pause)
    if kind is Kind.PATCH or of_request:
        return splice_json(text, entries, jobs, most, is_labelled=kind is Kind.PATCH, pause=pause)
    return splice_text(text, jobs, most, pause=pause)


# -- JSON


def splice_json(
    text: bytes,
    entries: Sequence[FieldEntry],
    jobs: Sequence[Job],
    most: int,
    *,
    is_labelled: bool = False,
    pause: Pause = never,
) -> Spliced:
    """Replace the marked values of one JSON text of a request, or of a JSON Patch; see `splice_body`.

    Args:
        text: the text.
        entries: what is marked.
        jobs: what to do with the values of each entry.
        most: the greatest number of values.
        is_labelled: whether it is labelled as a JSON Patch.
        pause: called again and again meanwhile.
    """
    holds_requests, is_array = False, _ARRAY.match(text) is not None
    if is_labelled and not is_array:
        raise unreadable(
            "the body is labelled as a JSON Patch, and is no array", "send a JSON Patch as RFC 6902 has it"
        )
    if is_array:
        spans = splice.spans_of(text, _LOOK, pause=pause)
        of = [0] * len(_LOOK)
        for span in spans:
            of[span.job] += 1
        holds_requests = of[0] > 0
        if is_labelled or (of[1] and of[2]):
            patched = jsonpatch.splice_patch(text, jobs, most, pause=pause)
            if is_labelled:
                _check_beside(text, jobs, pause)
                return patched
            if patched.total:
                if splice.spans_of(text, [job.marks for job in jobs], pause=pause):
                    raise unreadable("the body has marked values both as a JSON Patch and as it is")
                return patched
    if any(entry.graphql_arguments for entry in entries):
        graphqlrequests.check_json(text, entries, pause)
    return _splice_each(text, jobs, most, pause) if holds_requests else splice.splice(text, jobs, most, pause=pause)


def _check_beside(text: bytes, jobs: Sequence[Job], pause: Pause) -> None:
    """Refuse a patch of which an operation has a marked member beside those of RFC 6902, whether it is marked itself,
    has something marked in it, or stands in an operation that is marked whole.
    """
    marked = splice.spans_of(text, [job.marks for job in jobs], pause=pause)
    whole = [span for span in marked if _WHOLE.fullmatch(span.path)]
    members = splice.spans_of(text, _MEMBERS, pause=pause) if whole else []
    starts = [span.start for span in whole]
    for span in members:
        number = bisect(starts, span.start) - 1
        if number >= 0 and span.end <= whole[number].end:
            marked.append(span)
    if any(_BESIDE.match(span.path) for span in marked):
        raise unreadable("an operation of the patch has a marked member beside those of RFC 6902")


def splice_text(
    text: bytes, jobs: Sequence[Job], most: int = MAX_VALUES, *, is_labelled: bool = False, pause: Pause = never
) -> Spliced:
    """Replace the marked values of one JSON text of a response, which may be an array of answers.

    Args:
        text: the text.
        jobs: what to do with the values.
        most: the greatest number of values.
        is_labelled: whether it is to be opened, and labelled as a JSON Patch. If it can be read as one, what is marked
            in it as one is opened, or else what is marked in it as it is.
        pause: called again and again meanwhile.

    Raises:
        Denied: it cannot be read, or a transform says so.
        ValueError: a transform returned something that is not JSON.
    """
    if is_labelled and _ARRAY.match(text):
        try:
            patched = jsonpatch.splice_patch(text, jobs, most, pause=pause)
        except Denied as denied:
            if denied.reason not in _NO_PATCH:
                raise
        else:
            if patched.total:
                return patched
    if _ARRAY.match(text) and splice.spans_of(text, _LOOK[:1], pause=pause):
        return _splice_each(text, jobs, most, pause)
    return splice.splice(text, jobs, most, pause=pause)


def _splice_each(text: bytes, jobs: Sequence[Job], most: int, pause: Pause) -> Spliced:
    """Replace what is marked in an array of requests or answers, and in each of them."""
    doubled = [*jobs, *(replace(job, marks=in_each(job.marks)) for job in jobs)]
    spliced = splice.splice(text, doubled, most, pause=pause)
    return _as_of(spliced, [*range(len(jobs))] * 2, len(jobs))


def _as_of(spliced: Spliced, owners: Sequence[int], count: int) -> Spliced:
    """Return what was spliced by more jobs as if it had been by those that own them."""
    counts = [0] * count
    for number, owner in zip(spliced.counts, owners, strict=True):
        counts[owner] += number
    return Spliced(spliced.body, tuple(counts), tuple(span._replace(job=owners[span.job]) for span in spliced.spans))


def _splice_texts(
    text: bytes, entries: Sequence[FieldEntry], jobs: Sequence[Job], most: int, *, records: bool, pause: Pause
) -> Spliced:
    if text.count(b"\x1e" if records else b"\n") > MAX_TEXTS:
        raise Denied(
            Reason.BODY_TOO_LARGE, f"the body has more than {MAX_TEXTS} JSON texts", "send it in smaller parts"
        )
    pieces: list[bytes] = []
    copied, counts = 0, [0] * len(jobs)
    replaced: list[Span] = []
    for start, end in lines.texts(text, records=records):
        spliced = splice_json(text[start:end], entries, jobs, most, pause=pause)
        if not spliced.total:
            continue
        pieces += (text[copied:start], spliced.body)
        copied = end
        counts = [one + more for one, more in zip(counts, spliced.counts, strict=True)]
        forms.check_number(sum(counts), most)
        replaced += [span._replace(start=start + span.start, end=start + span.end) for span in spliced.spans]
    if not replaced:
        return Spliced(text, tuple(counts))
    return Spliced(b"".join((*pieces, text[copied:])), tuple(counts), tuple(replaced))


# -- multipart forms


class Parts:
    """Replaces the marked parts of a multipart form, one after the other."""

    def __init__(self, entries: Sequence[FieldEntry], jobs: Sequence[Job], most: int, *, pause: Pause = never) -> None:
        self._pause = pause
        self._entries, self._jobs, self._most = entries, jobs, most
        self._names = names_of(entries)
        # A mirror opens every GraphQL request: of its entries none has `graphql_arguments`.
        self._is_graphql = any(entry.graphql_arguments or entry.work is Work.DECRYPT for entry in entries)
        self.counts = [0] * len(jobs)
        self.spans: list[Span] = []

    def is_kept(self, head: multipart.PartHead) -> bool:
        """Tell whether a part may be changed, and so must be whole.

        Raises:
            Denied: BODY_UNREADABLE, if some servers take its name for a marked one.
        """
        name = head.name
        if "%" in name and self._names.job_of(unquote(name)) is not None:
            raise unreadable("a part has a marked name with an escape in it, which servers read differently")
        is_request = self._is_graphql and name in ("query", "variables")
        is_marked = self._names.job_of(name) is not None or self._json_in(head) is not None
        return is_marked or is_request or name == "_charset_"

    def replaced(self, value: multipart.Value, boundary: bytes) -> bytes:
        """Return what takes the place of a part that is kept.

        Raises:
            Denied: it cannot be protected.
        """
        self._pause()
        name, text = value.head.name, value.text
        job = self._names.job_of(name)
        kind = self._json_in(value.head) if job is None else None
        multipart.check_kept(value, may_be_file=kind is not None)
        if job is not None:
            replacement = self._jobs[job].transform(forms.as_json(text), member_path(name))
            if replacement is None:
                return text
            new = forms.from_json(replacement)
            self.counts[job] += 1
            self.spans.append(Span(value.start, value.start + len(text), member_path(name), job))
        elif kind is not None and text:
            spliced = _splice_as(kind, text, self._entries, self._jobs, self._most, pause=self._pause)
            new = spliced.body
            self.counts = [one + more for one, more in zip(self.counts, spliced.counts, strict=True)]
            self.spans += [
                each._replace(start=value.start + each.start, end=value.start + each.end) for each in spliced.spans
            ]
        else:
            if name in ("query", "variables"):
                graphqlrequests.check_form(b"%s=%s" % (name.encode(), forms.encoded(text)), self._entries, self._pause)
            return text
        forms.check_number(sum(self.counts), self._most)
        if b"--" + boundary in new:
            raise unreadable("a part would have the form's boundary in it")
        return new

    def _json_in(self, head: multipart.PartHead) -> Kind | None:
        """Return the kind of JSON that a part says it is; None if it is none."""
        label = label_of([head.content_type]) if head.content_type else None
        if label in _OF_JSON:
            return label
        return Kind.JSON if self._is_graphql and head.name == graphqlrequests.OPERATIONS else None


def _splice_pieces(text: bytes, pieces: Iterable[bytes | multipart.Value], boundary: bytes, parts: Parts) -> Spliced:
    new = [parts.replaced(each, boundary) if isinstance(each, multipart.Value) else each for each in pieces]
    if not parts.spans:
        return Spliced(text, tuple(parts.counts))
    return Spliced(b"".join(new), tuple(parts.counts), tuple(parts.spans))
