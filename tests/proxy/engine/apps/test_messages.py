"""Both directions of a WebSocket that is read: what goes on, when it waits, and what is said at its end."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.messages import Plan
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.selectors import parse_selector
from proxy.core.http.permessage import Deflater, Parameters
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.reasons import Reason
from proxy.engine.apps.messages import Relay
from tests.e2e.websockets import BINARY, CLOSE, PING, TEXT, frame

LIMIT = 10_000
SEALS = FieldEntry((parse_selector("$.a"),), KeySet("k", Alg.A256KW, new_key(Alg.A256KW)), name="request[0]")
OPENS = FieldEntry(SEALS.selectors, SEALS.keys, Work.DECRYPT, name="response[0]")


class Talk:
    """Stands for the conversation that has switched."""

    def __init__(self) -> None:
        self.to_upstream: list[bytes] = []
        self.to_app: list[bytes] = []
        self.seen: list[tuple[bytes, bool, bool]] = []
        self.held = {True: False, False: False}
        self.is_congested = {True: False, False: False}
        self.steps: list[tuple[Callable[[bool], None], bool]] = []
        self.told: list[object] = []
        self.long: list[Callable[[], object]] = []  # messages that take long, which are done when a test says so
        self.denied: Denied | None = None
        self.words: tuple[Denied, bytes, bytes] | None = None

    def switched_from_app(self, data: bytes) -> None:
        self.to_upstream.append(data)

    def switched_to_app(self, data: bytes) -> None:
        self.to_app.append(data)

    def message(self, payload: bytes, *, is_text: bool, from_app: bool) -> bytes:
        if self.denied is not None:
            raise self.denied
        self.seen.append((payload, is_text, from_app))
        return payload.replace(b"secret", b"*")

    def long_message(
        self,
        payload: bytes,
        write: Callable[[bytes, Pause], bytes],
        then: Callable[[Callable[[], bytes]], object],
        *,
        is_text: bool,
        from_app: bool,
    ) -> None:
        def do() -> bytes:
            return write(self.message(payload, is_text=is_text, from_app=from_app), never)

        self.long.append(lambda: then(do))

    def hold_side(self, from_app: bool, is_held: bool) -> None:
        self.held[from_app] = is_held

    def is_side_congested(self, of_app: bool) -> bool:
        return self.is_congested[of_app]

    def later(self, step: Callable[[bool], None], argument: bool) -> None:
        self.steps.append((step, argument))

    def note_switched(self, denied: Denied) -> None:
        self.told.append(denied.reason)

    def end_switched(self) -> None:
        self.told.append("ended")

    def break_switched(self, denied: Denied, to_app: bytes, to_upstream: bytes) -> None:
        self.words = denied, to_app, to_upstream

    def switched_end(self) -> None:
        raise AssertionError("the relay ends it")

    def gone(self) -> None:
        self.told.append("gone")

    def app_congested(self, is_congested: bool) -> None:
        self.told.append(is_congested)

    def turn(self) -> None:
        """Run what was left for the next turn."""
        steps, self.steps = self.steps, []
        for step, argument in steps:
            step(argument)


def relay(talk: Talk, *, seals: bool = True, opens: bool = True, observes: bool = False, **more: object) -> Relay:
    plan = Plan((SEALS,) if seals else (), (OPENS,) if opens else (), Parameters(**more) if more else None)  # type: ignore[arg-type]  # by name
    return Relay(talk, plan, LIMIT, observes=observes)


def unmasked(data: bytes) -> bytes:
    """Return the payload of a client's short frame."""
    mask, payload = data[2:6], data[6:]
    return bytes(each ^ mask[at % 4] for at, each in enumerate(payload))


def reason(word: bytes, *, is_masked: bool) -> tuple[int, str]:
    """Return the status and the reason of a close frame."""
    assert word[0] == CLOSE
    payload = unmasked(word) if is_masked else word[2:]
    return struct.unpack(">H", payload[:2])[0], payload[2:].decode()


class TestWhatGoesOn:
    def test_a_message_goes_on_once_it_is_whole_and_in_one_frame(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(0x01, b"a sec"))
        assert talk.to_upstream == []
        both.feed(frame(0x80, b"ret"))
        (sent,) = talk.to_upstream
        assert (sent[:2], unmasked(sent)) == (b"\x81\x83", b"a *")
        both.feed_from_upstream(frame(BINARY, b"secrets", mask=None))
        assert talk.to_app == [b"\x82\x02*s"]
        assert talk.seen == [(b"a secret", True, True), (b"secrets", False, False)]

    def test_control_frames_pass_between_the_fragments(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(0x01, b"a") + frame(PING, b"p"))
        (ping,) = talk.to_upstream
        assert (ping[:2], unmasked(ping)) == (b"\x89\x81", b"p")

    @pytest.mark.parametrize("step", [1, 1000])
    def test_a_direction_without_entries_goes_on_as_it_comes(self, step: int) -> None:
        talk = Talk()
        both = relay(talk, opens=False)
        data = frame(0x01, b"secret" * 5000, mask=None) + frame(PING, b"x", mask=None) + frame(0x80, b"", mask=None)
        for at in range(0, len(data), step):
            both.feed_from_upstream(data[at : at + step])
        assert b"".join(talk.to_app) == data
        assert talk.seen == []

    def test_what_came_compressed_goes_on_compressed_for_each_side_alone(self) -> None:
        talk = Talk()
        both = relay(talk, client_bits=10, client_forgets=True)
        compressor = Deflater(10, forgets=True)
        both.feed(frame(0xC1, compressor.deflate(b"words words words secret")) + frame(TEXT, b"plain"))
        ((first, _), (second, _)) = [(payload, text) for payload, text, _ in talk.seen]
        assert (first, second) == (b"words words words secret", b"plain")
        (sent,) = talk.to_upstream
        assert sent[0] == 0xC1
        assert frame(TEXT, b"plain")[:2] in sent


class TestTurns:
    def test_one_turn_does_a_part_and_nothing_is_read_meanwhile(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(b"".join(frame(TEXT, b"%d" % number) for number in range(200)))
        assert len(talk.seen) == 64
        assert talk.held == {True: True, False: False}
        both.feed(frame(TEXT, b"last"))  # what was under way already
        assert len(talk.seen) == 64
        turns = 0
        while talk.steps:
            turns += 1
            talk.turn()
        assert turns == 3
        assert [payload for payload, *_ in talk.seen] == [b"%d" % number for number in range(200)] + [b"last"]
        assert not talk.held[True]

    def test_so_it_is_with_tiny_frames(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(PING) * 3000)
        assert len(talk.steps) == 1
        talk.turn()
        talk.turn()
        assert not talk.held[True]
        assert len(b"".join(talk.to_upstream)) == 3000 * 6

    def test_nothing_more_is_done_for_a_side_that_takes_no_more(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(b"".join(frame(TEXT, b"%d" % number) for number in range(100)))
        talk.is_congested[False] = True
        talk.turn()
        assert len(talk.seen) == 64
        assert (talk.held[True], talk.steps) == (True, [])
        talk.is_congested[False] = False
        both.upstream_congested(False)
        assert len(talk.seen) == 100
        assert not talk.held[True]
        both.upstream_congested(False)  # nothing waits
        both.upstream_congested(True)

    def test_so_it_is_with_the_app(self) -> None:
        talk = Talk()
        both = relay(talk)
        talk.is_congested[True] = True
        both.feed_from_upstream(frame(TEXT, b"a", mask=None))
        assert (talk.to_app, talk.held[False]) == ([], True)
        both.congested(True)
        assert talk.to_app == []
        talk.is_congested[True] = False
        both.congested(False)
        assert talk.to_app == [b"\x81\x01a"]
        assert talk.told == [True, False]

    @pytest.mark.parametrize("by_app", [True, False])
    def test_an_end_comes_after_what_has_come_before_it(self, by_app: bool) -> None:
        talk = Talk()
        both = relay(talk)
        data = frame(TEXT, b"a", mask=b"1234" if by_app else None) * 100
        (both.feed if by_app else both.feed_from_upstream)(data)
        (both.eof if by_app else both.eof_from_upstream)()
        assert talk.told == []
        talk.turn()
        assert talk.told == ["ended"]
        assert len(talk.seen) == 100

    def test_an_end_without_anything_before_it_is_the_end(self) -> None:
        for ends in (Relay.eof, Relay.eof_from_upstream):
            talk = Talk()
            ends(relay(talk))
            assert talk.told == ["ended"]


class TestEnds:
    def test_whoever_breaks_the_protocol_is_told_and_so_is_the_other(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(TEXT, b"good") + frame(0x83, b"bad"))
        assert [payload for payload, *_ in talk.seen] == [b"good"]
        assert talk.to_upstream != []  # what was good before it
        assert talk.words is not None
        denied, to_app, to_upstream = talk.words
        assert (denied.reason, denied.entries) == (Reason.BAD_REQUEST, ())
        code, text = reason(to_app, is_masked=False)
        assert (code, text) == (1002, f"overcoat: bad_request: {denied.detail}")
        assert reason(to_upstream, is_masked=True) == (1011, text)

    def test_an_upstream_that_does_has_cut_it(self) -> None:
        talk = Talk()
        relay(talk).feed_from_upstream(frame(TEXT, b"\xff", mask=None))
        assert talk.words is not None
        denied, to_app, to_upstream = talk.words
        assert denied.reason is Reason.UPSTREAM_CUT
        assert (reason(to_app, is_masked=False)[0], reason(to_upstream, is_masked=True)[0]) == (1011, 1007)

    @pytest.mark.parametrize(
        ("why", "code"), [(Reason.BODY_NOT_JSON, 1008), (Reason.BODY_TOO_LARGE, 1009), (Reason.INTERNAL_ERROR, 1011)]
    )
    def test_a_message_that_must_not_go_on_ends_it(self, why: Reason, code: int) -> None:
        talk = Talk()
        both = relay(talk)
        talk.denied = Denied(why, "a sentence")
        both.feed(frame(TEXT, b"secret") + frame(TEXT, b"more"))
        assert talk.words is not None
        assert talk.words[0] is talk.denied
        assert reason(talk.words[1], is_masked=False) == (code, f"overcoat: {why.code}: a sentence")
        assert talk.to_upstream == []
        both.feed(frame(TEXT, b"later"))
        both.feed_from_upstream(frame(TEXT, b"later", mask=None))
        assert (talk.to_upstream, talk.to_app) == ([], [])

    def test_a_turn_that_comes_after_the_end_does_nothing(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(TEXT, b"a") * 100)
        both.feed_from_upstream(b"\xff\xff")
        assert talk.words is not None
        talk.turn()
        assert len(talk.seen) == 64

    def test_one_that_is_too_long_is_a_failure_of_its_entries(self) -> None:
        for step, mask, why, name in (
            (Relay.feed, b"1234", Reason.BODY_TOO_LARGE, "request[0]"),
            (Relay.feed_from_upstream, None, Reason.DECRYPTION_FAILED, "response[0]"),
        ):
            talk = Talk()
            step(relay(talk), frame(TEXT, b"x" * (LIMIT + 1), mask=mask))
            assert talk.words is not None
            denied, to_app, to_upstream = talk.words
            assert (denied.reason, denied.entries) == (why, (name,))
            codes = {reason(to_app, is_masked=False)[0], reason(to_upstream, is_masked=True)[0]}
            assert codes == {1009, 1011}

    def test_no_word_stands_in_the_middle_of_a_frame_or_behind_the_last(self) -> None:
        talk = Talk()
        both = relay(talk, opens=False)
        both.feed_from_upstream(frame(TEXT, b"abc", mask=None)[:3])
        both.feed(frame(0x83))
        assert talk.words is not None
        assert talk.words[1] == b""
        assert reason(talk.words[2], is_masked=True)[0] == 1011
        talk = Talk()
        both = relay(talk)
        both.feed_from_upstream(frame(CLOSE, b"\x03\xe8", mask=None))
        both.feed(frame(0x83))
        assert talk.words is not None
        assert talk.words[1] == b""


class TestObserving:
    def test_bytes_go_on_as_they_come_and_messages_of_the_app_are_seen(self) -> None:
        talk = Talk()
        both = relay(talk, opens=False, observes=True)
        data = frame(0x01, b"a sec") + frame(PING) + frame(0x80, b"ret")
        for at in range(0, len(data), 3):
            both.feed(data[at : at + 3])
        both.feed_from_upstream(b"anything")
        assert (b"".join(talk.to_upstream), talk.to_app) == (data, [b"anything"])
        assert talk.seen == [(b"a secret", True, True)]

    def test_what_would_have_ended_it_is_noted_once_and_bytes_go_on(self) -> None:
        talk = Talk()
        both = relay(talk, opens=False, observes=True)
        both.feed(frame(0x83) + frame(TEXT, b"a"))
        both.feed(frame(TEXT, b"b"))
        assert talk.told == [Reason.BAD_REQUEST]
        assert b"".join(talk.to_upstream) == frame(0x83) + frame(TEXT, b"a") + frame(TEXT, b"b")
        assert (talk.seen, talk.words, talk.held[True]) == ([], None, False)

    def test_a_slow_side_does_not_stop_the_counting(self) -> None:
        talk = Talk()
        both = relay(talk, opens=False, observes=True)
        talk.is_congested[False] = True
        both.feed(frame(TEXT, b"a") * 100)
        talk.turn()
        assert len(talk.seen) == 100


class TestLongMessages:
    TEXT = b"secret" * 1000

    def test_what_is_behind_one_waits_until_it_is_done(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(TEXT, b"1") + frame(TEXT, self.TEXT) + frame(TEXT, b"2"))
        both.feed(frame(TEXT, b"3"))
        assert [payload for payload, *_ in talk.seen] == [b"1"]
        assert talk.held[True]
        assert not talk.held[False]
        both.upstream_congested(False)  # which lets it go on only if nothing else holds it
        talk.turn()
        assert [payload for payload, *_ in talk.seen] == [b"1"]
        talk.long.pop()()
        talk.turn()
        assert [payload for payload, *_ in talk.seen] == [b"1", self.TEXT, b"2", b"3"]
        assert not talk.held[True]
        sent = b"".join(talk.to_upstream)
        assert len(sent) == 3 * 7 + 8 + 1000

    def test_the_other_side_goes_on_meanwhile(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed_from_upstream(frame(TEXT, self.TEXT, mask=None))
        both.feed(frame(TEXT, b"1"))
        assert [payload for payload, *_ in talk.seen] == [b"1"]
        assert talk.held == {True: False, False: True}

    def test_one_that_is_denied_ends_it(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(TEXT, self.TEXT))
        talk.denied = Denied(Reason.BODY_NOT_JSON, "no JSON")
        talk.long.pop()()
        assert talk.words is not None
        assert talk.words[0] is talk.denied
        assert talk.to_upstream == []

    def test_one_that_comes_too_late_goes_nowhere(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(TEXT, self.TEXT))
        both.feed_from_upstream(frame(0x83, mask=None))  # no frame that there is: it is over
        assert talk.words is not None
        talk.long.pop()()
        assert talk.to_upstream == []
        assert talk.steps == []

    def test_an_end_behind_one_waits_for_it(self) -> None:
        talk = Talk()
        both = relay(talk)
        both.feed(frame(TEXT, self.TEXT))
        both.eof()
        assert talk.told == []
        talk.long.pop()()
        talk.turn()
        assert talk.told == ["ended"]

    def test_where_bytes_have_gone_on_already_it_is_only_seen(self) -> None:
        talk = Talk()
        both = relay(talk, observes=True)
        data = frame(TEXT, self.TEXT)
        both.feed(data)
        talk.long.pop()()
        talk.turn()
        assert talk.to_upstream == [data]
        assert [payload for payload, *_ in talk.seen] == [self.TEXT]
