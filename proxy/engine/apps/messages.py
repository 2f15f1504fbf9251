"""A WebSocket whose messages may have marked fields: reads both of its directions, and passes messages on once the
addons have seen them. `conversation` makes one in the place of a `Switched` where the rule has entries for it.
`proxy.core.http.websocket` knows the frames.

Rules of this module:

- A direction with entries goes on message by message: each is held until it is whole, up to `limits.held_body`, and
  sent in one frame. Its bytes are the same unless fields of it are replaced.
- A direction without entries goes on frame by frame, as it comes; only that its frames are frames is checked.
- In observe mode bytes go on as they come, and a copy of the app's is read.
- Control frames pass, in their order. Whoever does not keep to the protocol, or sends what cannot be protected, is told
  why in a close frame, and so is the other side; nothing of that message has gone on.
- One turn does a bounded part of the work, and nothing is read from a side while its bytes wait here or on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from proxy.core.decisions import Denied
from proxy.core.fields.messages import Plan, too_large
from proxy.core.fields.pauses import SHORT, Pause
from proxy.core.http import websocket
from proxy.core.http.permessage import Inflater, Parameters, TooLarge, deflater
from proxy.core.http.websocket import BadFrame, Control, Frames, Message, Messages, Part, Passing, Writer
from proxy.core.reasons import Reason
from proxy.engine.apps.websocket import Switchable, Switched

_TURN = 1024  # what is done in one turn, as a number of small frames
_OF_MESSAGE = 16  # what looking into a message costs, in the same unit, beside its length
_COST_BITS = 12  # so many bytes cost as much as a small frame: 4 KiB
_NO_COMPRESSION = Parameters()
_CODES = {
    Reason.BODY_TOO_LARGE: websocket.TOO_BIG,
    Reason.INTERNAL_ERROR: websocket.INTERNAL_ERROR,
}


class Talk(Switchable, Protocol):
    """The conversation that has switched."""

    def switched_to_app(self, data: bytes) -> None:
        """Called with bytes for the app."""

    def message(self, payload: bytes, *, is_text: bool, from_app: bool) -> bytes:
        """Show a message to the addons; return what is to go on.

        Raises:
            Denied: nothing is.
        """

    def long_message(
        self,
        payload: bytes,
        write: Callable[[bytes, Pause], bytes],
        then: Callable[[Callable[[], bytes]], object],
        *,
        is_text: bool,
        from_app: bool,
    ) -> None:
        """Do the same piece by piece, and `write` what is to go on; then call `then` with what returns the frame, or
        raises, perhaps at once.
        """

    def hold_side(self, from_app: bool, is_held: bool) -> None:
        """Read no more from one side, or go on."""

    def is_side_congested(self, of_app: bool) -> bool:
        """Tell whether a side takes no more for now."""

    def later(self, step: Callable[[bool], None], argument: bool) -> None:
        """Run a step in the next turn."""

    def note_switched(self, denied: Denied) -> None:
        """Note why enforcing would have ended it."""

    def end_switched(self) -> None:
        """End it in order."""

    def break_switched(self, denied: Denied, to_app: bytes, to_upstream: bytes) -> None:
        """End it for a reason, with a last word to each side."""


class _Way:
    """One direction.

    Attributes:
        frames: its frames.
        entries: what is to be done with its messages.
        is_copy: whether the bytes have gone on already.
        is_read: whether it is read at all.
        reader: reads its messages.
        writer: writes what goes on.
        has_closed: whether a close frame has gone on.
        waits: whether there may be more to do than was done so far.
        is_busy: whether a message is shown to the addons; nothing behind it is read meanwhile.
        has_ended: whether nothing more will come.
    """

    def __init__(self, plan: Plan, limit: int, *, from_app: bool, observes: bool) -> None:
        terms = plan.deflate or _NO_COMPRESSION
        bits, forgets = terms.server_bits, terms.server_forgets
        if from_app:
            bits, forgets = terms.client_bits, terms.client_forgets
        may_compress = plan.deflate is not None
        self.frames = Frames(is_masked=from_app, may_compress=may_compress)
        self.entries = plan.request if from_app else plan.response
        self.is_copy = observes
        self.is_read = bool(self.entries) or not observes
        self.reader: Messages | Passing = Passing(self.frames)
        compresses = False
        if self.entries:
            self.reader = Messages(self.frames, limit, Inflater(bits, forgets=forgets) if may_compress else None)
            compresses = may_compress and not observes
        self.writer = Writer(deflater(bits, forgets=forgets) if compresses else None, is_masked=from_app)
        self.has_closed = False
        self.waits = False
        self.is_busy = False
        self.has_ended = False

    @property
    def is_between(self) -> bool:
        """Whether what was sent on ends with a whole frame."""
        return bool(self.entries) or self.frames.is_between


class Relay(Switched):
    """Both directions of a WebSocket: the app's speaker, and what the upstream's bytes are given to."""

    def __init__(self, conversation: Talk, plan: Plan, limit: int, *, observes: bool) -> None:
        """Start.

        Args:
            conversation: the conversation that has switched.
            plan: how messages are to be read.
            limit: the greatest length of a message in bytes.
            observes: whether bytes go on as they come, and fields are only counted.
        """
        super().__init__(conversation)
        self._talk = conversation
        self._limit = limit
        self._ways = {side: _Way(plan, limit, from_app=side, observes=observes) for side in (True, False)}
        self._is_over = False

    # -- what both sides do

    def feed(self, data: bytes) -> None:
        """Take bytes of the app."""
        self._take(data, from_app=True)

    def feed_from_upstream(self, data: bytes) -> None:
        """Take bytes of the upstream."""
        self._take(data, from_app=False)

    def eof(self) -> None:
        """End it, once what has come is passed on: the app has ended it."""
        self._end(from_app=True)

    def eof_from_upstream(self) -> None:
        """End it, once what has come is passed on: the upstream has ended it."""
        self._end(from_app=False)

    def congested(self, is_congested: bool) -> None:
        """Pass back-pressure on; go on with what waits for the app."""
        super().congested(is_congested)
        self._go_on(is_congested, from_app=False)

    def upstream_congested(self, is_congested: bool) -> None:
        """Go on with what waits for the upstream."""
        self._go_on(is_congested, from_app=True)

    # -- the work

    def _take(self, data: bytes, *, from_app: bool) -> None:
        way = self._ways[from_app]
        if self._is_over:
            return
        if way.is_copy:
            self._send(data, from_app=from_app)
        if way.is_read:
            way.frames.feed(data)
            if not way.waits:
                self._run(from_app)

    def _end(self, *, from_app: bool) -> None:
        way = self._ways[from_app]
        way.has_ended = True
        if not way.waits:
            self._talk.end_switched()

    def _go_on(self, is_congested: bool, *, from_app: bool) -> None:
        if not is_congested and self._ways[from_app].waits:
            self._run(from_app)

    def _send(self, data: bytes, *, from_app: bool) -> None:
        if from_app:
            self._talk.switched_from_app(data)
        else:
            self._talk.switched_to_app(data)

    def _wait(self, from_app: bool, waits: bool) -> None:
        self._ways[from_app].waits = waits
        self._talk.hold_side(from_app, waits)

    def _run(self, from_app: bool) -> None:
        """Do a part of the work of one direction."""
        way = self._ways[from_app]
        if self._is_over or way.is_busy:
            return
        if self._talk.is_side_congested(not from_app) and not way.is_copy:
            self._wait(from_app, True)  # until that side takes more
            return
        out: list[bytes] = []
        left, why, long = _TURN, None, None
        try:
            while left > 0 and (item := way.reader.read()) is not None:
                if isinstance(item, Message) and len(item.payload) > SHORT:
                    long = item
                    break
                left -= self._pass(item, way, out, from_app)
        except BadFrame as e:
            why = e.code, _broken(e.detail, from_app)
        except TooLarge:  # only of messages that are held
            why = websocket.TOO_BIG, too_large(way.entries, self._limit, of_request=from_app)
        except Denied as denied:
            why = _CODES.get(denied.reason, websocket.POLICY_VIOLATION), denied
        if out:
            self._send(b"".join(out), from_app=from_app)
        if why is not None:
            self._break(*why, from_app=from_app)
        elif long is not None:
            self._show(long, from_app)
        elif left <= 0:
            self._wait(from_app, True)
            self._talk.later(self._run, from_app)
        else:
            self._wait(from_app, False)
            if way.has_ended:
                self._talk.end_switched()

    def _show(self, message: Message, from_app: bool) -> None:
        """Show a long message to the addons, and go on with what is behind it in a later turn."""
        self._ways[from_app].is_busy = True
        self._wait(from_app, True)
        is_text = message.opcode == websocket.TEXT
        write, then = partial(self._written, message, from_app), partial(self._shown, from_app)
        self._talk.long_message(message.payload, write, then, is_text=is_text, from_app=from_app)

    def _written(self, message: Message, from_app: bool, payload: bytes, pause: Pause) -> bytes:
        """Return the frame of what is to go on of a long message."""
        way, message.payload = self._ways[from_app], payload
        return b"" if way.is_copy else way.writer.message(message, pause)

    def _shown(self, from_app: bool, result: Callable[[], bytes]) -> None:
        way = self._ways[from_app]
        way.is_busy = False
        if self._is_over:
            return
        try:
            frame = result()
        except Denied as denied:
            self._break(_CODES.get(denied.reason, websocket.POLICY_VIOLATION), denied, from_app=from_app)
            return
        if frame:
            self._send(frame, from_app=from_app)
        self._talk.later(self._run, from_app)

    def _pass(self, item: Message | Control | Part, way: _Way, out: list[bytes], from_app: bool) -> int:
        """Pass on what was read; return what that costs."""
        if isinstance(item, Control):
            if not way.is_copy:
                out.append(way.writer.control(item))
                way.has_closed = item.opcode == websocket.CLOSE
            return 1
        if isinstance(item, Part):
            if not way.entries:
                out.append(item.raw)
            return 1 + (len(item.raw) >> _COST_BITS)
        is_text, cost = item.opcode == websocket.TEXT, _OF_MESSAGE + (len(item.payload) >> _COST_BITS)
        item.payload = self._talk.message(item.payload, is_text=is_text, from_app=from_app)
        if not way.is_copy:
            out.append(way.writer.message(item))
        return cost

    def _break(self, code: int, denied: Denied, *, from_app: bool) -> None:
        """End it for a reason; whoever is to blame is told another status than the other side."""
        way = self._ways[from_app]
        if way.is_copy:
            way.is_read = False
            self._wait(from_app, False)
            self._talk.note_switched(denied)
            return
        self._is_over = True
        words = {
            side: self._last_word(code if side is from_app else websocket.INTERNAL_ERROR, denied, to_app=side)
            for side in (True, False)
        }
        self._talk.break_switched(denied, words[True], words[False])

    def _last_word(self, code: int, denied: Denied, *, to_app: bool) -> bytes:
        way = self._ways[not to_app]
        if not way.is_between or way.has_closed:  # it would stand in the middle of a frame, or behind the last
            return b""
        payload = websocket.close_payload(code, f"overcoat: {denied.reason.code}: {denied.detail}")
        return way.writer.control(Control(websocket.CLOSE, payload))


def _broken(detail: str, from_app: bool) -> Denied:
    if from_app:
        return Denied(Reason.BAD_REQUEST, f"the app does not keep to WebSocket: {detail}", "see what the app sends")
    return Denied(Reason.UPSTREAM_CUT, f"the upstream does not keep to WebSocket: {detail}")
