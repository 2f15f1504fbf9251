"""Lets bodies pass that need not be held: the parts of multipart forms in which nothing is marked, and bodies of other
kinds that an entry lets pass. The addon `addons.encryption` asks it while a body is held.

Rules of this module:

- A body that fits the limit is held whole, so that its length is right, and nothing of it leaves if it is denied. Only
  a longer multipart form streams: what is marked in it is held part by part, each within the limit.
- It never looks complete if it is denied in the middle: its last delimiter passes at the end.
- What cannot be opened is denied, held or not; or the rest goes on as it came, where all entries say
  `on_failure: pass`.
- What begins like JSON is held whatever its label says, unless that is of a binary format.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.decisions import Denied
from proxy.core.fields import kinds, multipart, values
from proxy.core.fields.bodies import MAX_SEALED, BodyHead, Required, check_signature, not_one_value, too_large
from proxy.core.fields.bodies import passes as passes_unopened
from proxy.core.fields.entries import FieldEntry, OtherBodies, Work
from proxy.core.fields.kinds import Kind
from proxy.core.fields.pauses import SHORT
from proxy.core.fields.responses import may_be_json
from proxy.core.fields.values import Setting
from proxy.core.jose import jwe
from proxy.core.reasons import Reason

MOST_LOOKED_AT = 1024  # bytes at the beginning of a body, which tell what it is

_BLANKS = b"\x00 \t\r\n\xef\xbb\xbf\xff\xfe"


def may_stream(head: BodyHead, entries: Sequence[FieldEntry]) -> bool:
    """Tell whether a body is a multipart form that may be longer than what is held.

    Args:
        head: what its header fields say.
        entries: what is marked; not empty.
    """
    try:
        is_multipart = head.content_encoding is None and kinds.label_of(head.content_types) is Kind.MULTIPART
        # A field of the head that names the key (`values.kid_fields`) would come too late.
        if not is_multipart or any(entry.keys.form.kid_field is not None for entry in entries):
            return False
        # On a mirror each may hold a GraphQL request that is to be opened.
        return kinds.check_other(entries, Kind.MULTIPART) or entries[0].work is Work.DECRYPT
    except Denied:
        return False


def passes(head: BodyHead, entries: Sequence[FieldEntry], beginning: bytes) -> bool | None:
    """Tell whether a body is of another kind, and passes as it comes; None if more of it must be seen.

    Args:
        head: what its header fields say.
        entries: what is marked; not empty.
        beginning: the first bytes of the body, as it came.
    """
    for entry in entries:
        if entry.work is Work.ENCRYPT and (entry.other_bodies is OtherBodies.DENY or entry.required):
            return False
    try:
        kind = kinds.label_of(head.content_types) or Kind.OTHER
    except Denied:
        return False
    if any(kinds.takes(entry, kind) for entry in entries):
        return False
    if kind is Kind.MULTIPART and entries[0].work is Work.DECRYPT:
        return False
    if kind is Kind.MULTIPART or kinds.is_binary(head.content_types):
        return True
    # A text without names in it, such as 1, may be JSON as well, which counts if all of a text is marked.
    if head.content_encoding is not None or any(not each.segments for entry in entries for each in entry.selectors):
        return False
    if may_be_json(beginning):
        return False
    return True if len(beginning.lstrip(_BLANKS)) > 0 else None if len(beginning) < MOST_LOOKED_AT else False


class Upload:
    """A multipart form that streams, while its marked parts are held and changed.

    Attributes:
        counts: how many values of each entry were changed so far.
    """

    def __init__(self, head: BodyHead, entries: Sequence[FieldEntry], setting: Setting) -> None:
        """Start.

        Raises:
            Denied: the form cannot be read, or there is no key.
        """
        self._head = head
        self._entries = entries
        self._setting = setting
        self._limit = setting.limit
        self._came = bytearray()  # what has come and not gone on yet
        self._is_given_up = False
        self._boundary = b""
        try:
            self._boundary = multipart.boundary_of(head.content_types[0])
        except Denied as denied:
            self._rest_after(denied)
        self._required = Required(entries)
        jobs = values.sealing if entries[0].work is Work.ENCRYPT else values.opening
        self._parts = kinds.Parts(
            entries, self._required.watching(jobs(entries, setting)), MAX_SEALED, pause=setting.pause
        )
        self._reader = multipart.FormReader(self._boundary, self._parts.is_kept, setting.limit)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values of each entry were changed so far."""
        return tuple(self._parts.counts)

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to feed a piece."""
        return self._reader.held + len(data) > SHORT

    def feed(self, data: bytes) -> bytes:
        """Take a piece of the form, and return what may go on.

        Raises:
            Denied: it cannot be protected.
        """
        if self._is_given_up:
            return data
        self._came += data
        out: list[bytes] = []
        try:
            for piece in self._reader.feed(data):
                out.append(self._changed(piece))
                del self._came[: len(piece if isinstance(piece, bytes) else piece.text)]
        except Denied as denied:
            out.append(self._rest_after(denied))
        except ValueError:
            out.append(self._rest_after(not_one_value()))
        return b"".join(out)

    def end(self) -> bytes:
        """Return the rest of the form, which is complete.

        Raises:
            Denied: it is not, or nothing was found that must be there.
        """
        if self._is_given_up:
            return b""
        try:
            rest = self._reader.end()
        except Denied as denied:
            return self._rest_after(denied)
        self._required.check()
        return rest

    def _rest_after(self, denied: Denied) -> bytes:
        """Return what has not gone on yet, as it came, if the entries let pass what cannot be opened.

        Raises:
            Denied: they do not.
        """
        if not passes_unopened(denied, self._entries, self._setting):
            raise self._told(denied) from None
        self._is_given_up = True
        return bytes(self._came)

    def _told(self, denied: Denied) -> Denied:
        """Return the denial that the app is told: of a mirror that a request is not opened."""
        if self._entries[0].work is Work.ENCRYPT:
            return denied
        detail = f"the request cannot be decrypted: {denied.detail}"
        return Denied(Reason.REQUEST_NOT_OPENED, detail, entries=denied.entries)

    def _changed(self, piece: bytes | multipart.Value) -> bytes:
        if isinstance(piece, bytes):
            return piece
        try:
            changed = self._parts.replaced(piece, self._boundary)
        except jwe.JweError:
            raise too_large(self._limit) from None
        check_signature(self._head, self._entries, self._parts.counts)
        return changed
