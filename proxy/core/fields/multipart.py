"""Reads multipart forms (RFC 7578, RFC 2046) piece by piece: marked parts are kept and replaced, everything else passes
as it came. `proxy.core.fields.kinds` calls it for a body that is held, `addons.uploads` for one that streams.

Rules of this module:

- There is one reading of a form, or none. Denied is all that parsers read differently: a delimiter that is not whole or
  not on a line of its own, text before the first or behind the last one, line ends without CR, folded fields, a
  parameter that comes twice, `name*`, escapes in names, encoded words, transfer encodings, parts in parts, a form that
  is cut off.
- No more of a part is kept than its head, unless it is marked; and of that no more than the limit.
- A name is compared as `proxy.core.fields.forms` does, and bound to the same place. A part of a marked name is text in
  UTF-8, and no file. One that says it is JSON may be a file: browsers say so of what a script makes (`Blob`).
- What is put in place of a part never has the boundary in it.
- Reading takes linear time, however the pieces are cut. No message has a name or a value of the body in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from proxy.core.decisions import Denied
from proxy.core.fields.forms import check_charset, unreadable
from proxy.core.jose.place import read_media_type
from proxy.core.reasons import Reason

MAX_PARTS = 1000
MAX_PART_HEAD = 8 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_FIELD = re.compile(rb"(%s):[ \t]*+((?:[^\x00-\x1f\x7f]|\t)*+)" % _TOKEN)
_PARAMETER = re.compile(rb'[ \t]*+;[ \t]*+(%s)=(?:"([^"]*+)"|(%s))' % (_TOKEN, _TOKEN))
_PLAIN_CODINGS = frozenset((b"7bit", b"8bit", b"binary"))
_UTF8 = ("utf-8", "utf8", "us-ascii")
_HINT = "send the form as browsers do (RFC 7578)"


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type of `multipart/form-data` names.

    Raises:
        Denied: BODY_UNREADABLE, if there is none, or it can be read in several ways.
    """
    try:
        _, parameters = read_media_type(content_type)
    except ValueError:
        raise unreadable("the Content-Type of the form cannot be read in one way only", _HINT) from None
    boundary = parameters.get("boundary", "")
    if "\\" in content_type or parameters.keys() - {"boundary", "charset"} or not _BOUNDARY.fullmatch(boundary):
        raise unreadable(
            "the Content-Type of the form names no boundary, or one that servers may read differently", _HINT
        )
    return boundary.encode("ascii")


@dataclass(frozen=True, slots=True)
class PartHead:
    """The head of a part.

    Attributes:
        name: the field's name.
        is_file: whether it has a filename.
        is_text: whether it may be text in UTF-8.
        content_type: what it says of itself; empty if nothing.
    """

    name: str
    is_file: bool
    is_text: bool
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """The value of a part that is kept.

    Attributes:
        head: the head of the part.
        start: the offset of its first byte in the form.
        text: the whole value.
    """

    head: PartHead
    start: int
    text: bytes


class _State(Enum):
    FIRST = auto()  # the first delimiter is to come
    HEAD = auto()  # the head of a part
    KEEPING = auto()  # a part that is marked
    PASSING = auto()  # one that is not
    DELIMITED = auto()  # a delimiter has come, and what is behind it says whether it is the last one
    LAST = auto()  # only the end of the line may come


class FormReader:
    """Reads one form."""

    def __init__(self, boundary: bytes, is_kept: Callable[[PartHead], bool], limit: int) -> None:
        """Start.

        Args:
            boundary: the form's boundary.
            is_kept: whether a part is kept. It may raise `Denied`.
            limit: the greatest length of a part that is kept.
        """
        self._mark = b"--" + boundary
        self._is_kept = is_kept
        self._limit = limit
        self._state = _State.FIRST
        self._unread = bytearray()
        self._offset = 0  # of the first unread byte
        self._searched = 0  # unread bytes in which nothing begins that is looked for
        self._head: PartHead | None = None
        self._parts = 0

    @property
    def held(self) -> int:
        """How many bytes are held of a part that is kept."""
        return len(self._unread) if self._state is _State.KEEPING else 0

    def feed(self, data: bytes) -> Iterator[bytes | Value]:
        """Yield what comes with a piece of the form: bytes that pass, and values that are kept, in their order.

        Raises:
            Denied: BODY_UNREADABLE or BODY_TOO_LARGE.
        """
        self._unread += data
        while True:
            before = self._state, len(self._unread)
            yield from self._step()
            if (self._state, len(self._unread)) == before:
                return

    def end(self) -> bytes:
        """Return what passes at the end of the form.

        Raises:
            Denied: BODY_UNREADABLE.
        """
        if self._state is not _State.LAST or bytes(self._unread) not in (b"", b"\r\n"):
            raise unreadable("the form ends before its last delimiter, or goes on behind it", _HINT)
        return b"--" + self._unread

    def _step(self) -> Iterator[bytes | Value]:
        match self._state:
            case _State.FIRST:
                if len(self._unread) >= len(self._mark):
                    if not self._unread.startswith(self._mark):
                        raise unreadable("the form does not begin with its boundary", _HINT)
                    yield self._take(len(self._mark))
                    self._state = _State.DELIMITED
            case _State.DELIMITED:
                if len(self._unread) >= 2:
                    yield from self._delimited(self._take(2))
            case _State.HEAD:
                yield from self._read_head()
            case _State.LAST:
                if len(self._unread) > 2:
                    raise unreadable("the form goes on behind its last delimiter", _HINT)
            case _:
                yield from self._read_body()

    def _delimited(self, behind: bytes) -> Iterator[bytes]:
        if behind not in (b"\r\n", b"--"):
            raise unreadable("a delimiter of the form is followed by something else on its line", _HINT)
        self._state = _State.HEAD if behind == b"\r\n" else _State.LAST
        if self._state is _State.HEAD:  # else it passes at the end, so that nothing looks complete that is not
            yield behind
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Denied(Reason.BODY_TOO_LARGE, f"the form has more than {MAX_PARTS} parts", "send it in smaller parts")

    def _read_head(self) -> Iterator[bytes]:
        # The empty line behind the head; a head without fields has no name.
        end = self._unread.find(b"\r\n\r\n", self._searched, MAX_PART_HEAD)
        if end < 0:
            self._searched = max(len(self._unread) - 3, 0)
            if len(self._unread) >= MAX_PART_HEAD:
                raise Denied(Reason.BODY_TOO_LARGE, f"the head of a part has more than {MAX_PART_HEAD} bytes", _HINT)
            return
        head = bytes(self._unread[:end])
        if self._mark in head:
            raise unreadable("the form's boundary stands in the head of a part", _HINT)
        self._head = read_head(head)
        self._state = _State.KEEPING if self._is_kept(self._head) else _State.PASSING
        yield self._take(end + 4)

    def _read_body(self) -> Iterator[bytes | Value]:
        found = self._unread.find(self._mark, self._searched)
        keeps = self._state is _State.KEEPING
        if found < 0:
            # A mark may begin in what is unread, and so may the line end before it.
            clear = max(len(self._unread) - len(self._mark) - 1, 0)
            self._searched = clear
            if keeps:
                self._check_length(clear)
            elif clear:
                yield self._take(clear)
            return
        if found < 2 or self._unread[found - 2 : found] != b"\r\n":
            raise unreadable("the form's boundary stands within a part, or is not alone on its line", _HINT)
        if keeps:
            assert self._head is not None
            self._check_length(found - 2)
            start = self._offset
            yield Value(self._head, start, self._take(found - 2))
        yield self._take(len(self._mark) + 2 if keeps else found + len(self._mark))
        self._state = _State.DELIMITED

    def _check_length(self, length: int) -> None:
        if length > self._limit:
            raise Denied(
                Reason.BODY_TOO_LARGE,
                f"a marked part of the form has more than the {self._limit} bytes that are held",
                "raise limits.held_body if it must pass",
            )

    def _take(self, length: int) -> bytes:
        taken = bytes(self._unread[:length])
        del self._unread[:length]
        self._offset += length
        self._searched = 0
        return taken


def read_head(text: bytes) -> PartHead:
    """Read the head of a part, without the empty line behind it.

    Raises:
        Denied: BODY_UNREADABLE.
    """
    disposition: bytes | None = None
    content_type: bytes | None = None
    for line in text.split(b"\r\n"):
        field = _FIELD.fullmatch(line)
        if field is None:
            raise unreadable("the head of a part has a line that is no header field", _HINT)
        match field[1].lower():
            case b"content-disposition" if disposition is None:
                disposition = field[2]
            case b"content-type" if content_type is None:
                content_type = field[2]
            case b"content-disposition" | b"content-type":
                raise unreadable("the head of a part has a field twice", _HINT)
            case b"content-transfer-encoding" if field[2].strip().lower() not in _PLAIN_CODINGS:
                raise unreadable("a part of the form is coded (Content-Transfer-Encoding)", "send parts as they are")
    if disposition is None:
        raise unreadable("a part of the form has no Content-Disposition", _HINT)
    name, is_file = _disposition(disposition)
    if content_type is None:
        return PartHead(name, is_file, is_text=True)
    return PartHead(name, is_file, _is_text(content_type), content_type.decode("latin-1"))


def _disposition(value: bytes) -> tuple[str, bool]:
    """Return the name that a Content-Disposition gives, and whether there is a filename."""
    kind = value.partition(b";")[0]
    if kind.strip(b" \t").lower() != b"form-data":
        raise unreadable("a part of the form has another Content-Disposition than form-data", _HINT)
    parameters: dict[bytes, bytes] = {}
    position = len(kind)
    while found := _PARAMETER.match(value, position):
        name = found[1].lower()
        if name in parameters:
            raise unreadable("a part's Content-Disposition has a parameter twice", _HINT)
        parameters[name] = found[2] if found[2] is not None else found[3]
        position = found.end()
    if value[position:].strip(b" \t") or parameters.keys() - {b"name", b"filename", b"filename*"}:
        raise unreadable("a part's Content-Disposition has something else than a name and a filename", _HINT)
    if any(each.endswith(b"\\") for each in parameters.values()):  # some parsers read an escaped quote there
        raise unreadable("a part's Content-Disposition has an escaped quote", _HINT)
    if b"name" not in parameters:
        raise unreadable("a part of the form has no name", _HINT)
    name = parameters[b"name"]
    if b"\\" in name or b"=?" in name:
        raise unreadable("a part's name has an escape, which servers read differently", _HINT)
    try:
        return name.decode(), len(parameters) > 1
    except UnicodeDecodeError:
        raise unreadable("a part's name is not UTF-8", _HINT) from None


def _is_text(content_type: bytes) -> bool:
    """Tell whether a part may be text in UTF-8.

    Raises:
        Denied: it has parts itself.
    """
    kind = content_type.lower().lstrip(b" \t")
    if kind.startswith((b"multipart/", b"message/")):
        raise unreadable("a part of the form has parts itself", "send each file in a part of its own")
    try:
        _, parameters = read_media_type(content_type.decode("latin-1"))
    except ValueError:
        return False
    return parameters.get("charset", "utf-8").lower() in _UTF8


def check_kept(value: Value, *, may_be_file: bool) -> None:
    """Check that the value of a part that is kept is text, and no file.

    Args:
        value: the part.
        may_be_file: whether a file is as good.

    Raises:
        Denied: BODY_UNREADABLE.
    """
    if value.head.name == "_charset_":
        check_charset(value.text)
    elif (value.head.is_file and not may_be_file) or not value.head.is_text:
        raise unreadable(
            "a marked part of the form is a file, or no text in UTF-8", "send it as an ordinary field, or take it out"
        )


def pieces_of(text: bytes, boundary: bytes, is_kept: Callable[[PartHead], bool]) -> Iterator[bytes | Value]:
    """Yield what a whole form consists of.

    Raises:
        Denied: BODY_UNREADABLE or BODY_TOO_LARGE.
    """
    reader = FormReader(boundary, is_kept, len(text))
    yield from reader.feed(text)
    yield reader.end()
