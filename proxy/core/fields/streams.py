"""Changes the marked fields of a body that goes on while it comes: one with a JSON text a line, behind each record
separator, or in each server-sent event. The addon `addons.encryption` feeds it with such a response.

Rules of this module:

- Each text goes on as soon as it is complete, with its fields changed; nothing waits for the end.
- A body with content codings is decoded, and goes on without them: no coder holds a text back then.
- What fails in a text ends the body, unless all entries say `on_failure: pass`; then this text goes on as it came. What
  cannot be decoded always ends it, as what came before went on without its coding.
- Where fields are opened, a text goes on unread if no token can be in it, and so do data of an event that are no JSON.
  Where they are sealed, each text must be JSON, but for data of an event in which nothing is an object or array, and
  `[DONE]`; and no other line of an event stream may be JSON.
- One piece must not make all others wait: what it decodes to, and the work on its fields, is limited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from proxy.core.decisions import Denied
from proxy.core.fields import bodies, encodings, events, kinds, lines, splice, values
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.pauses import SHORT
from proxy.core.fields.responses import Label, may_be_json
from proxy.core.fields.values import Setting
from proxy.core.jose.jwe import JweError
from proxy.core.reasons import Reason

# What one piece, of 16 KiB mostly, may decode to.
MAX_OF_A_PIECE = 1024 * 1024  # bytes
MAX_TEXTS = 16 * 1024

_KINDS: dict[Label, type[lines.Lines] | type[lines.Sequence]] = {
    Label.LINES: lines.Lines,
    Label.RECORDS: lines.Sequence,
}
_DONE = b"[DONE]"  # how streams of language models end
_BRACE = re.compile(rb"[{\[]")  # what JSON with names or elements has, and be it behind a number (socket.io)
# Without any of these, no string can be what `jwe.is_token` takes for a token, and no object what
# `jwe.is_json_serialized` takes for one: a header, which starts with a brace or blanks, and a dot; an IV between dots;
# a member; an escape.
_MAY_HOLD = re.compile(rb"(?<![A-Za-z0-9_-])[eCDI][A-Za-z0-9_-]*+\.|\.[A-Za-z0-9_-]{16}\.|\"ciphertext\"|\\u")
# The beginning of a token that can be opened, among other text; or an escape of one of its characters.
_TOKEN = re.compile(rb"(?<![A-Za-z0-9_-])e[w-z0-9_-][A-Za-z0-9_-]{30,}+\.|\\u00[2-7]")


class Stream:
    """A body that is changed while it comes."""

    def __init__(
        self, label: Label, head: bodies.BodyHead, entries: Sequence[FieldEntry], setting: Callable[[], Setting]
    ) -> None:
        """Start.

        Args:
            label: what its type says; one of those that `streams` allows.
            head: what its header fields say.
            entries: which fields, and with which keys; all of them do the same work.
            setting: returns what counts beside the body, which may go on for days.

        Raises:
            Denied: ENCODING_UNSUPPORTED.
        """
        self.entries = entries
        self._now = setting
        self._setting = setting()
        self._head = head
        self._required = bodies.Required(entries)
        self._opens = entries[0].work is Work.DECRYPT
        self._is_events = label is Label.EVENTS
        self._jobs: Sequence[splice.Job] | None = None
        self._left = MAX_TEXTS
        self._counts = [0] * len(entries)
        limit = self._setting.limit
        self._texts: lines.Lines | lines.Sequence | events.Events
        if label is Label.EVENTS:
            self._texts = events.Events(self._change, limit, self._fail, self._stray)
        else:
            self._texts = _KINDS[label](self._change, limit, self._fail)
        bodies.check_charset(head.content_types)
        self._decoder = encodings.Decoder(encodings.parse_encoding(head.content_encoding))

    def feed(self, data: bytes) -> bytes:
        """Take a piece of the body as it came, or its end, which is an empty piece; return what can go on.

        Raises:
            Denied: it cannot go on: DECRYPTION_FAILED, or RESPONSE_NOT_SEALED.
        """
        self._jobs, self._left = None, MAX_TEXTS  # each piece has its share of work
        self._setting = self._now()
        try:
            if data:
                pieces = self._decoder.feed(data, max(MAX_OF_A_PIECE, len(data)))
                return b"".join(map(self._texts.feed, pieces))
            self._decoder.end()
            rest = self._texts.end()
            self._required.check()
            return rest
        except Denied as denied:
            raise self._ended(denied) from None

    def takes_long(self, data: bytes) -> bool:
        """Tell whether it may take long to feed a piece."""
        return bool(self._decoder.codings) or self._texts.held + len(data) > SHORT

    def take(self) -> tuple[int, ...]:
        """Return how many values were changed for each entry since this was last asked."""
        counts, self._counts = tuple(self._counts), [0] * len(self.entries)
        return counts

    def _change(self, text: bytes) -> bytes:
        self._setting.pause()
        self._left -= 1
        if self._left < 0 and self._decoder.codings:
            raise Denied(Reason.BODY_TOO_LARGE, f"a piece of the body decodes to more than {MAX_TEXTS} JSON texts")
        if self._opens and _MAY_HOLD.search(text) is None:
            return text
        if self._jobs is None:
            work = values.opening if self._opens else values.sealing
            self._jobs = self._required.watching(work(self.entries, self._setting))
        try:
            spliced = kinds.splice_text(text, self._jobs, bodies.MAX_SEALED, pause=self._setting.pause)
        except Denied as denied:
            if denied.reason is not Reason.BODY_NOT_JSON or not self._is_no_text(text):
                self._fail(denied)
            return text
        except JweError:
            raise bodies.too_large(self._setting.limit) from None
        except ValueError:
            self._fail(bodies.not_one_value())
            return text
        bodies.check_signature(self._head, self.entries, spliced.counts)
        for index, count in enumerate(spliced.counts):
            self._counts[index] += count
        return spliced.body

    def _is_no_text(self, data: bytes) -> bool:
        """Tell whether data of an event may pass though they are no JSON."""
        if not self._is_events:
            return False
        if self._opens:
            return not may_be_json(data) or _TOKEN.search(data) is None
        return data == _DONE or not (may_be_json(data) or _BRACE.search(data) is not None)

    def _stray(self) -> None:
        """Take note of a line of JSON that is none of an event."""
        if not self._opens:
            self._fail(Denied(Reason.BODY_NOT_JSON, "a line of the event stream is JSON, and no line of an event"))

    def _fail(self, denied: Denied) -> None:
        """Let a text go on as it came, or raise."""
        if not bodies.passes(denied, self.entries, self._setting):
            raise denied

    def _ended(self, denied: Denied) -> Denied:
        return bodies.unchangeable(self.entries[0].work, denied.detail, denied.entries)
