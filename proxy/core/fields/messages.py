"""Encrypts or decrypts the marked fields of one WebSocket message, or says why it must not go on. The addon
`addons.messages` calls it with each message of a WebSocket whose rule has entries.

Rules of this module:

- A message is a body of its own: a value is bound to the host, and to its path in the message.
- A text message to be sealed is one JSON text, or several, each of which ends with a record separator (SignalR's JSON
  protocol). A binary one may be the same; any other is denied, since nobody here knows what is in it.
- A message to be opened that is no JSON passes, as a body without a label does.
- A WebSocket may outlive a key: whether that may still seal is asked for each message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxy.core.decisions import Denied, Reason
from proxy.core.fields import bodies
from proxy.core.fields.bodies import BodyHead, Changed
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.responses import may_be_json
from proxy.core.fields.values import Setting
from proxy.core.http.permessage import Parameters

MAX_RECORDS = 1024  # in one message
_RECORD_END = b"\x1e"
_JSON, _NOTHING = BodyHead(("application/json",)), BodyHead()


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
        head = _before(payload, entries, setting, is_text=is_text)
        return _records(payload, entries, lambda record: bodies.change(record, head, entries, setting))
    except Denied as denied:
        if setting.of_request or entries[0].work is Work.DECRYPT or denied.reason is Reason.RESPONSE_NOT_SEALED:
            raise
        raise bodies.unchangeable(Work.ENCRYPT, denied.detail, denied.entries) from None


def count_marked(payload: bytes, entries: Sequence[FieldEntry], setting: Setting, *, is_text: bool) -> tuple[int, ...]:
    """Return how many values `change` would encrypt, for each entry; see there.

    Raises:
        Denied: as `change` would.
    """
    head = _before(payload, entries, setting, is_text=is_text)

    def count(record: bytes) -> Changed:
        return Changed(record, bodies.count_marked(record, head, entries, setting))

    return _records(payload, entries, count).counts


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


def _before(payload: bytes, entries: Sequence[FieldEntry], setting: Setting, *, is_text: bool) -> BodyHead:
    if len(payload) > setting.limit:
        raise too_large(entries, setting.limit, of_request=setting.of_request)
    if entries[0].work is not Work.ENCRYPT:
        return _NOTHING
    if not is_text and payload and not may_be_json(payload):
        raise Denied(
            Reason.BODY_NOT_JSON,
            "a binary message is not JSON, and may hold fields to protect in a form that is not read",
            "send JSON, or narrow the rule's `when` to the WebSockets that have fields to encrypt",
        )
    bodies.check_before(_JSON, entries, setting.today)
    return _JSON


def _records(payload: bytes, entries: Sequence[FieldEntry], step: Callable[[bytes], Changed]) -> Changed:
    if not payload.endswith(_RECORD_END):
        return step(payload)
    if payload.count(_RECORD_END) > MAX_RECORDS:
        raise _too_much(f"more than {MAX_RECORDS} records")
    counts = [0] * len(entries)
    pieces: list[bytes] = []
    for record in payload[:-1].split(_RECORD_END):
        changed = step(record)
        counts = [one + more for one, more in zip(counts, changed.counts, strict=True)]
        if sum(counts) > bodies.MAX_SEALED:
            raise _too_much("too many fields to protect")
        pieces += (changed.body, _RECORD_END)
    return Changed(b"".join(pieces) if any(counts) else payload, tuple(counts))


def _too_much(what: str) -> Denied:
    return Denied(Reason.BODY_TOO_LARGE, f"a message has {what}", "send it in smaller parts")
