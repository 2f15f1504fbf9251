"""Changes the JSON texts in a stream of server-sent events (`text/event-stream`, the HTML Standard, section 9.2), which
comes piece by piece. `proxy.core.fields.streams` makes one for each such body.

Rules of this module:

- An event goes on as soon as the blank line behind it is there, and lines before its first `data` line at once. Lines
  end with CRLF, LF or CR, also where a piece ends in between; a byte order mark at the start is no part of a line.
- The text of an event is what its `data` lines hold, joined by LF. A changed text is written back as `data` lines, in
  the places of those that were there. All other lines stay as they came.
- A line that begins like JSON is none of an event. Readers of events pass over it, but one that guesses may not.
- White space of JSON that would end a line does so: it stays white space.
- No event is held, or changed, that is longer than the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from proxy.core.decisions import Denied
from proxy.core.fields.lines import Change, too_long

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")
_DATA_START = re.compile(rb"(?<![^\r\n])data(?=[:\r\n])")
# A line of JSON among those of events: all that an event has begin with a letter or a colon.
_STRAY = re.compile(rb"(?<![^\r\n])[\x00 \t]*+[{\[\"]")
# A data line: what stands before its value, the value, and its end.
_DATA = re.compile(rb"(?<![^\r\n])(data(?:: ?+|(?![^\r\n])))([^\r\n]*+)(\r\n|\n|\r|\Z)")


class Events:
    """A stream of events."""

    def __init__(
        self,
        change: Change,
        limit: int,
        skip: Callable[[Denied], object],
        stray: Callable[[], object] = lambda: None,
    ) -> None:
        """Start.

        Args:
            change: what happens to the text of each event.
            limit: the greatest length of an event that is held, in bytes.
            skip: called for an event that is longer. It raises, or lets the event go on as it comes.
            stray: called where a line begins like JSON, so that it is none of an event. It raises, or lets it go on.
        """
        self._stray = stray
        self._change = change
        self._limit = limit
        self._skip = skip
        self._held = bytearray()  # what is not on its way yet; it starts with a line
        self._has_begun = False  # whether a byte order mark can come no more
        self._has_data = False  # whether that line is the first data line of an event
        self._searched = 0  # before which nothing is searched any more
        self._skips = False  # whether the rest of an event goes on as it comes

    def feed(self, data: bytes) -> bytes:
        """Take a piece, and return what can go on."""
        held, out = self._held, list[bytes]()
        held += data
        at = 0
        if not self._has_begun and not _BOM.startswith(held):
            self._has_begun = True
            if held.startswith(_BOM):
                out.append(_BOM)
                del held[: len(_BOM)]
        while True:
            if self._skips or self._has_data:
                found = _EVENT_END.search(held, max(at, self._searched))
                if found is None:
                    break
                event = bytes(held[at : found.end()])
                if not self._skips and len(event) > self._limit:
                    self._skip(too_long(self._limit))
                    self._skips = True
                out.append(event if self._skips else self._changed(event))
                at = self._searched = found.end()
                self._skips = self._has_data = False
            else:
                since = max(at, self._searched)  # before that a line goes on that is no data, unless its first is
                found = _DATA_START.match(held, at) or _DATA_START.search(held, since)
                start = found.start() if found is not None else max(at, _end_of_lines(held, since))
                out.append(self._others(bytes(held[at:start])))
                at = self._searched = start
                if found is None:
                    break
                self._has_data = True
        del held[:at]
        self._searched = max(len(held) - 5, 0)  # a line's end and `data`, or the first of two ends
        self._bound(out)
        return b"".join(out)

    @property
    def held(self) -> int:
        """How many bytes of an event are held."""
        return len(self._held)

    def end(self) -> bytes:
        """Return what is left when the stream is complete, which may be an event without a blank line behind it."""
        event, is_event = bytes(self._held), self._has_data and not self._skips
        self._held.clear()
        return self._changed(event) if is_event else self._others(event)

    def _others(self, lines: bytes) -> bytes:
        """Return lines, once those that are no data have been looked at."""
        if _STRAY.search(lines) is not None:
            self._stray()
        return lines

    def _bound(self, out: list[bytes]) -> None:
        held = self._held
        if not self._skips and len(held) > self._limit:
            self._skip(too_long(self._limit))
            self._skips = True
        if self._skips:  # a line's end may be the first part of the event's
            start = len(held.rstrip(b"\r\n"))
            out.append(bytes(held[:start]))
            del held[:start]
            self._searched = 0

    def _changed(self, event: bytes) -> bytes:
        found = list(_DATA.finditer(self._others(event)))
        text = b"\n".join([each[2] for each in found])
        changed = self._change(text)
        if changed is text:
            return event
        lines = _LINE_END.split(changed)
        last = found[-1]
        out: list[bytes] = []
        at = 0
        for number, line in enumerate(lines):
            each = found[min(number, len(found) - 1)]
            if number < len(found):
                out.append(event[at : each.start()])
                at = each.end()
            out += (_lead(each[1], line), line, each[3] or b"\n")
        for each in found[len(lines) :]:
            out += [event[at : each.start()]] if each.start() > at else []
            at = each.end()
            if out[-1].endswith(b"\r") and event[at : at + 1] == b"\n":
                out.append(b":" + each[3])  # a comment: without it, CR and LF would become one end of a line
        if not last[3] and len(lines) >= len(found):
            out.pop()  # the end of the last line, which had none
        out.append(event[at:])
        return b"".join(out)


def _lead(lead: bytes, line: bytes) -> bytes:
    """Return what stands before a line: one blank behind the colon is no part of it."""
    if line.startswith(b" "):
        return b"data: "
    return b"data:" if line and lead == b"data" else lead


def _end_of_lines(held: bytearray, since: int) -> int:
    """Return the index behind the last line that ends behind an index; 0 if none does."""
    return max(held.rfind(b"\n", since), held.rfind(b"\r", since)) + 1
