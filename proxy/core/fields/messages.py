"""Encrypts or decrypts the marked fields of one WebSocket message, or says why it must not go on. The addon
`addons.messages` calls it with each message of a WebSocket whose rule has entries.

Rules of this module:

- A message is a body of its own: a value is bound to the host, and to its path in the message.
- A text message to be sealed is one JSON text, or several, each of which ends with a record separator (SignalR's JSON
  protocol). A binary one may be the same; if not, it is a body of another kind, for which an entry's `other_bodies`
  counts.
- `graphql_arguments` counts for the query of a request in a message's `payload` (graphql-transport-ws), too.
- A message to be opened that is no JSON passes, as a body without a label does.
- A WebSocket may outlive a key: whether that may still seal is asked for each message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxy.core.decisions import Denied
from proxy.core.fields import bodies, kinds, splice
from proxy.core.fields.automaton import Marks
from proxy.core.fields.bodies import BodyHead, Changed
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.kinds import Kind
from proxy.core.fields.pauses import Pause
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.values import Setting
from proxy.core.http.permessage import Parameters
from proxy.core.reasons import Reason

MAX_RECORDS = 1024  # in one message
_RECORD_END = b"\x1e"
_JSON, _NOTHING = BodyHead(("application/json",)), BodyHead()
_PAYLOAD = [Marks((parse_selector("$.payload"),))]


@dataclass(frozen=True, slots=True)
class Plan:
    """How the messages of one WebSocket are read.

    Attributes:
        request: the entries that are about the app's messages.
        response: those that are about the server's.
        deflate: the compression that both sides have agreed on, or None.
    """

    request: tuple[FieldEntry, ...]
    response: tuple[FieldEntry, ...]
    deflate: Parameters | None = None


def change(payload: bytes, entries: Sequence[FieldEntry], setting: Setting, *, is_text: bool) -> Changed:
    """Do with the fields of a message what entries say; all of them do the same work.

    Args:
        payload: the whole message, inflated.
        entries: which fields, and with which keys.
        setting: what counts beside the message.
        is_text: whether it is a text message.

    Raises:
        Denied: the fields cannot be encrypted or decrypted.
    """
    try:
        if _may_pass(payload, entries, setting, is_text=is_text):
            return Changed(payload, (0,) * len(entries))
        return _records(
            payload, entries, setting.pause, lambda record, head: bodies.change(record, head, entries, setting)
        )
    except Denied as denied:
        if setting.of_request or entries[0].work is Work.DECRYPT or denied.reason is Reason.RESPONSE_NOT_SEALED:
            raise
        raise bodies.unchangeable(Work.ENCRYPT, denied.detail, denied.entries) from None


def count_marked(payload: bytes, entries: Sequence[FieldEntry], setting: Setting, *, is_text: bool) -> tuple[int, ...]:
    """Return how many values `change` would encrypt, for each entry; see there.

    Raises:
        Denied: as `change` would.
    """
    if _may_pass(payload, entries, setting, is_text=is_text):
        return (0,) * len(entries)

    def count(record: bytes, head: BodyHead) -> Changed:
        return Changed(record, bodies.count_marked(record, head, entries, setting))

    return _records(payload, entries, setting.pause, count).counts


def too_large(entries: Sequence[FieldEntry], limit: int, *, of_request: bool) -> Denied:
    """Return the denial of a message that is too long to be held.

    Args:
        entries: the entries that are about it.
        limit: the greatest length in bytes.
        of_request: whether it is the app's.
    """
    why, names = f"a message is longer than the {limit} bytes that are held", tuple(entry.name for entry in entries)
    work = entries[0].work
    if not of_request:
        return bodies.unchangeable(work, why, names)
    return Denied(Reason.REQUEST_NOT_OPENED if work is Work.DECRYPT else Reason.BODY_TOO_LARGE, why, entries=names)


def _may_pass(payload: bytes, entries: Sequence[FieldEntry], setting: Setting, *, is_text: bool) -> bool:
    """Tell whether a message passes unread: a binary one that is no JSON.

    Raises:
        Denied: it is too long; or it is one of these, and an entry does not let it pass.
    """
    if len(payload) > setting.limit:
        raise too_large(entries, setting.limit, of_request=setting.of_request)
    if (
        is_text
        or not payload
        or entries[0].work is Work.DECRYPT
        or kinds.kind_of((), payload, pause=setting.pause) is not Kind.OTHER
    ):
        return False
    kinds.check_other(entries, Kind.OTHER)
    return True


def _check_queries(record: bytes, entries: Sequence[FieldEntry], pause: Pause) -> None:
    """Check the GraphQL request in a message's `payload`; that of the message itself is checked as that of a body."""
    if not entries:
        return
    for span in splice.spans_of(record, _PAYLOAD, pause=pause):
        kinds.splice_json(record[span.start : span.end], entries, (), bodies.MAX_SEALED, pause=pause)


def _records(
    payload: bytes, entries: Sequence[FieldEntry], pause: Pause, step: Callable[[bytes, BodyHead], Changed]
) -> Changed:
    seals = entries[0].work is Work.ENCRYPT
    head, graphql = _JSON if seals else _NOTHING, [entry for entry in entries if seals and entry.graphql_arguments]
    if not payload.endswith(_RECORD_END):
        _check_queries(payload, graphql, pause)
        return step(payload, head)
    if payload.count(_RECORD_END) > MAX_RECORDS:
        raise _too_much(f"more than {MAX_RECORDS} records")
    counts = [0] * len(entries)
    pieces: list[bytes] = []
    for record in payload[:-1].split(_RECORD_END):
        _check_queries(record, graphql, pause)
        changed = step(record, head)
        counts = [one + more for one, more in zip(counts, changed.counts, strict=True)]
        if sum(counts) > bodies.MAX_SEALED:
            raise _too_much("too many fields to protect")
        pieces += (changed.body, _RECORD_END)
    return Changed(b"".join(pieces) if any(counts) else payload, tuple(counts))


def _too_much(what: str) -> Denied:
    return Denied(Reason.BODY_TOO_LARGE, f"a message has {what}", "send it in smaller parts")
