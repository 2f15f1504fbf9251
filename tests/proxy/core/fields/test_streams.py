"""Bodies that are changed while they come: when each text goes on, with what, and what ends them."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial

import brotli
import pytest
import zstandard

from proxy.core.decisions import Denied
from proxy.core.fields.bodies import BodyHead
from proxy.core.fields.entries import FieldEntry, OnFailure, Work
from proxy.core.fields.responses import Label
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.streams import MAX_OF_A_PIECE, MAX_TEXTS, Stream
from proxy.core.fields.values import MAX_OPENED, Setting
from proxy.core.jose.jwe import MAX_TOKEN_CHARACTERS, open_token
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import seal
from proxy.core.reasons import Reason

TODAY = date(2026, 11, 30)
KEY = new_key(Alg.A256KW, kid="one")
KEYS = KeySet("app", Alg.A256KW, KEY)
DENY = FieldEntry((parse_selector("$.ssn"),), KEYS, Work.DECRYPT, name="response[0]")
PASS = replace(DENY, on_failure=OnFailure.PASS)
SEAL = replace(DENY, work=Work.ENCRYPT)
HOST = "api.example"
LIMIT = 4096
PLACE = Place(HOST, "$.ssn")


def token(value: bytes = b'"078"', host: str = HOST) -> bytes:
    return json.dumps(seal(value, KEYS, Place(host, "$.ssn"))).encode()


class Failures:
    def __init__(self) -> None:
        self.found: list[tuple[str, Reason]] = []

    def __call__(self, name: str, reason: Reason) -> None:
        self.found.append((name, reason))


def stream(label: Label, *entries: FieldEntry, coding: str | None = None, failed: Failures | None = None) -> Stream:
    setting = Setting(HOST, LIMIT, TODAY, failed=failed or Failures())
    return Stream(label, BodyHead((), coding), entries or (DENY,), lambda: setting)


def wrapped(label: Label, text: bytes) -> bytes:
    return {Label.LINES: text + b"\n", Label.RECORDS: b"\x1e" + text + b"\n", Label.EVENTS: b"data: " + text + b"\n\n"}[
        label
    ]


KINDS = pytest.mark.parametrize("label", [Label.LINES, Label.RECORDS, Label.EVENTS])


def refused(step: Callable[[], object]) -> Denied:
    with pytest.raises(Denied) as denied:
        step()
    return denied.value


@KINDS
def test_an_array_of_answers_is_sealed_and_opened_answer_by_answer(label: Label) -> None:
    text = wrapped(label, b'[{"jsonrpc":"2.0","id":1,"ssn":"078"}, {"error":1,"ssn":2}]')
    sealed = stream(label, SEAL).feed(text)
    assert b'"078"' not in sealed
    assert sealed.count(b"eyJ") == 2
    assert stream(label).feed(sealed) == text
    other = wrapped(label, b'[{"id":1,"ssn":"078"}]')
    assert stream(label, SEAL).feed(other) == other


class TestOpened:
    @KINDS
    def test_each_text_goes_on_with_its_fields_opened(self, label: Label) -> None:
        body = stream(label)
        for number in range(3):
            sealed = wrapped(label, b' {"n" : %d.0, "ssn":%s}' % (number, token()))
            assert body.feed(sealed[:-1]) == b""
            assert body.feed(sealed[-1:]) == wrapped(label, b' {"n" : %d.0, "ssn":"078"}' % number)
            assert body.take() == (1,)
        assert body.feed(b"") == b""
        assert body.take() == (0,)

    @KINDS
    @pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
    def test_one_in_a_coding_goes_on_without_it(self, label: Label, coding: str) -> None:
        text = b"".join(wrapped(label, b'{"ssn":%s}' % token()) for _ in range(3))
        coded = text
        for name in coding.split(", "):
            make = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.compress}
            coded = make[name](coded)
        body = stream(label, coding=coding)
        got = b"".join(body.feed(coded[at : at + 5]) for at in range(0, len(coded), 5)) + body.feed(b"")
        assert got == wrapped(label, b'{"ssn":"078"}') * 3

    @pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
    def test_what_a_coder_has_flushed_goes_on_at_once(self, coding: str) -> None:
        zipped = {"gzip": 31, "deflate": 15}
        feed: Callable[[bytes], bytes]
        if coding in zipped:
            deflate = zlib.compressobj(wbits=zipped[coding])
            feed = lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)  # noqa: E731
        elif coding == "br":
            brotlis = brotli.Compressor()
            feed = lambda data: brotlis.process(data) + brotlis.flush()  # noqa: E731
        else:
            zstd = zstandard.ZstdCompressor().compressobj()
            feed = lambda data: zstd.compress(data) + zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)  # noqa: E731
        body = stream(Label.EVENTS, coding=coding)
        for _ in range(3):
            assert body.feed(feed(b'data: {"ssn":%s}\n\n' % token())) == b'data: {"ssn":"078"}\n\n'
        assert "cut off" in refused(lambda: body.feed(b"")).detail

    def test_a_text_at_the_end_needs_no_end(self) -> None:
        body = stream(Label.LINES)
        assert body.feed(b'{"ssn":%s}' % token()) == b""
        assert body.feed(b"") == b'{"ssn":"078"}'

    def test_an_event_over_several_lines_is_one_text(self) -> None:
        sealed = b'event: x\r\ndata: {"a":1,\r\nid: 5\r\ndata: "ssn":\r\ndata:%s}\r\n\r\n' % token(b'{\n "x":\r1}')
        opened = b'event: x\r\ndata: {"a":1,\r\nid: 5\r\ndata: "ssn":\r\ndata:{\r\ndata:  "x":\r\ndata:1}}\r\n\r\n'
        assert stream(Label.EVENTS).feed(sealed) == opened

    @pytest.mark.parametrize("data", [b"[DONE]", b"ping", b"", b"{x}", b"[exampleexampleexample.com]", b"[C:\\x]"])
    def test_data_that_are_no_json_pass_where_no_token_can_be_in_them(self, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        assert stream(Label.EVENTS).feed(event) == event

    @pytest.mark.parametrize("data", [b"{'ssn': %s}", b"[%s", b'{"ssn":%s,}'])
    def test_data_that_are_no_json_do_not_pass_with_a_token(self, data: bytes) -> None:
        for value in (token(), token().replace(b"eyJ", b"\\u0065yJ")):
            denied = refused(lambda value=value: stream(Label.EVENTS).feed(b"data: %s\n\n" % (data % value)))  # type: ignore[misc]  # its own
            assert denied.reason is Reason.DECRYPTION_FAILED


class TestSealed:
    @KINDS
    def test_fields_are_sealed_text_by_text(self, label: Label) -> None:
        body = stream(label, SEAL)
        got = body.feed(wrapped(label, b'{"a": 1, "ssn":"078"}'))
        sealed = got[got.index(b"eyJ") : got.rindex(b'"')]
        assert got == wrapped(label, b'{"a": 1, "ssn":"%s"}' % sealed)
        assert open_token(sealed.decode(), KEYS, PLACE, TODAY) == b'"078"'
        assert body.take() == (1,)

    def test_a_value_over_several_lines_leaves_one(self) -> None:
        got = stream(Label.EVENTS, SEAL).feed(b'data: {"ssn": [1,\nid: 1\ndata:  2],\ndata: "b":1}\n\n')
        lines = got.split(b"\n")
        assert lines[0].startswith(b'data: {"ssn": "eyJ')
        assert lines[1:] == [b"id: 1", b'data: "b":1}', b"", b""]

    @pytest.mark.parametrize("data", [b"[DONE]", b"ping"])
    def test_the_end_of_a_stream_passes(self, data: bytes) -> None:
        event = b"data: " + data + b"\n\n"
        assert stream(Label.EVENTS, SEAL).feed(event) == event

    @pytest.mark.parametrize(
        ("label", "text"),
        [
            (Label.EVENTS, b"{x}"),
            (Label.EVENTS, b'42["event",{"ssn":"078"}]'),
            (Label.EVENTS, b"[1] [2]"),
            (Label.EVENTS, b'"078'),
            (Label.LINES, b"ping"),
        ],
    )
    def test_what_is_no_json_does_not(self, label: Label, text: bytes) -> None:
        denied = refused(lambda: stream(label, SEAL).feed(wrapped(label, text)))
        assert denied.reason is Reason.RESPONSE_NOT_SEALED

    @pytest.mark.parametrize(
        "before", [b"", b": c\n", b"data: 1\n", b"data: 1\n\n", b"\xef\xbb\xbf", b"data: 1\rid: 2\r"]
    )
    @pytest.mark.parametrize("line", [b'{"ssn":"078"}', b'\t [{"ssn":"078"}]', b'"078"'])
    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\ndata: 1\n\n"])
    def test_a_line_of_json_among_those_of_events_does_not(self, before: bytes, line: bytes, end: bytes) -> None:
        def tell(body: Stream, data: bytes, size: int, out: list[bytes]) -> None:
            for start in range(0, len(data), size):
                out.append(body.feed(data[start : start + size]))
            out.append(body.feed(b""))

        data = before + line + end
        for size in (1, 5, len(data)):
            out: list[bytes] = []
            denied = refused(partial(tell, stream(Label.EVENTS, SEAL), data, size, out))
            assert denied.reason is Reason.RESPONSE_NOT_SEALED
            assert b"078" not in b"".join(out)
        out = []
        tell(stream(Label.EVENTS), data, len(data), out)
        assert b"".join(out) == data  # where fields are opened it passes

    @pytest.mark.parametrize("line", [b'id: [{"topic":1}]', b': {"a":1}', b"event: {x}", b"retry", b"x[1]", b"x {"])
    def test_other_lines_of_events_do(self, line: bytes) -> None:
        body = stream(Label.EVENTS, SEAL)
        data = b"data: 1\n" + line + b"\n\n" + line
        assert body.feed(data) + body.feed(b"") == data

    def test_neither_does_another_coding_nor_what_is_too_long(self) -> None:
        assert refused(lambda: stream(Label.LINES, SEAL, coding="dcb")).reason is Reason.ENCODING_UNSUPPORTED
        assert refused(lambda: stream(Label.LINES, SEAL).feed(b" " * 5000)).reason is Reason.RESPONSE_NOT_SEALED

    def test_a_value_whose_token_would_be_too_long_is_denied(self) -> None:
        setting = Setting(HOST, 2 * MAX_TOKEN_CHARACTERS, TODAY)
        body = Stream(Label.LINES, BodyHead(), [SEAL], lambda: setting)
        denied = refused(lambda: body.feed(b'{"ssn":"%s"}\n' % (b"0" * MAX_TOKEN_CHARACTERS)))
        assert denied.reason is Reason.RESPONSE_NOT_SEALED

    @pytest.mark.parametrize("is_there", [True, False])
    def test_what_is_required_must_be_in_one_text(self, is_there: bool) -> None:
        body = stream(Label.LINES, replace(SEAL, required=True))
        assert body.feed(b'{"a":1}\n') == b'{"a":1}\n'
        if is_there:
            body.feed(b'{"ssn":1}\n{"a":1}')
            assert body.feed(b"") == b'{"a":1}'
        else:
            assert "requires" in refused(lambda: body.feed(b"")).detail

    def test_nothing_is_sealed_in_a_signed_body(self) -> None:
        setting = Setting(HOST, LIMIT, TODAY)
        body = Stream(Label.LINES, BodyHead(signature="the field X-Signature"), [SEAL], lambda: setting)
        assert body.feed(b'{"a":1}\n') == b'{"a":1}\n'
        denied = refused(lambda: body.feed(b'{"ssn":1}\n'))
        assert "the field X-Signature covers the body" in denied.detail


FAULTS = [
    pytest.param(b'{"ssn":%s}' % token(host="other.example"), Reason.DECRYPTION_FAILED, id="another place"),
    pytest.param(b'{"ssn":%s}' % token(b'1,"admin":true'), Reason.DECRYPTION_FAILED, id="not one value"),
    pytest.param(b'{"ssn":%s,}' % token(), Reason.BODY_NOT_JSON, id="no JSON"),
    pytest.param(b'{"ssn":%s,"a":"' % token() + b"x" * LIMIT + b'"}', Reason.BODY_TOO_LARGE, id="too long"),
]


class TestFailures:
    @KINDS
    @pytest.mark.parametrize(("text", "reason"), FAULTS)
    def test_what_is_not_opened_ends_the_body(self, label: Label, text: bytes, reason: Reason) -> None:
        failed = Failures()
        body = stream(label, failed=failed)
        good = wrapped(label, b'{"ssn":%s}' % token())
        assert body.feed(good) == wrapped(label, b'{"ssn":"078"}')
        denied = refused(lambda: body.feed(wrapped(label, text)))
        assert denied.reason is Reason.DECRYPTION_FAILED
        assert "078" not in f"{denied} {denied.hint}"
        assert not failed.found
        assert reason is not None

    @KINDS
    @pytest.mark.parametrize(("text", "reason"), FAULTS)
    def test_or_goes_on_as_it_came_where_the_entry_says_so(self, label: Label, text: bytes, reason: Reason) -> None:
        failed = Failures()
        body = stream(label, PASS, failed=failed)
        good = wrapped(label, b'{"ssn":%s}' % token())
        bad = wrapped(label, text)
        assert body.feed(good + bad + good) == wrapped(label, b'{"ssn":"078"}').join([b"", bad, b""])
        assert failed.found == [("response[0]", reason)]
        assert body.take() == (2,)

    def test_a_body_goes_on_only_if_all_entries_say_so(self) -> None:
        other = replace(DENY, selectors=(parse_selector("$.other"),), name="response[1]")
        assert refused(lambda: stream(Label.LINES, PASS, other).feed(b"no %s\n" % token()))
        failed = Failures()
        text = b'{"other":%s,"ssn":%s}\n' % (b"1", token(host="b.example"))  # a value is about its entry
        assert stream(Label.LINES, PASS, other, failed=failed).feed(text) == text
        assert failed.found == [("response[0]", Reason.DECRYPTION_FAILED)]

    @KINDS
    @pytest.mark.parametrize("entry", [DENY, PASS])
    def test_what_cannot_be_decoded_ends_it_in_any_case(self, label: Label, entry: FieldEntry) -> None:
        coded = gzip.compress(wrapped(label, b"{}"))
        for body in (coded[:-1], coded + b"x", b"x" + coded):
            reader = stream(label, entry, coding="gzip")
            assert (
                refused(lambda reader=reader, body=body: (reader.feed(body), reader.feed(b""))).reason  # type: ignore[misc]
                is Reason.DECRYPTION_FAILED
            )

    def test_a_piece_that_decodes_to_too_much_ends_it(self) -> None:
        line = b"1" * 1023 + b"\n"
        most = gzip.compress(line * (MAX_OF_A_PIECE // 1024))
        assert len(stream(Label.LINES, coding="gzip").feed(most)) == MAX_OF_A_PIECE
        bomb = gzip.compress(line * (MAX_OF_A_PIECE // 1024 + 1))
        assert refused(lambda: stream(Label.LINES, PASS, coding="gzip").feed(bomb)).reason is Reason.DECRYPTION_FAILED
        body = stream(Label.LINES, coding="gzip")
        for piece in itertools.batched(bomb, len(bomb) // 2 + 1):  # each piece has a limit of its own
            body.feed(bytes(piece))

    def test_a_piece_that_decodes_to_too_many_texts_ends_it(self) -> None:
        assert stream(Label.LINES, coding="gzip").feed(gzip.compress(b"1\n" * MAX_TEXTS)) == b"1\n" * MAX_TEXTS
        bomb = gzip.compress(b"1\n" * (MAX_TEXTS + 1))
        assert "JSON texts" in refused(lambda: stream(Label.LINES, PASS, coding="gzip").feed(bomb)).detail
        assert stream(Label.LINES).feed(b"1\n" * (MAX_TEXTS + 1))  # one without a coding cannot grow

    @pytest.mark.parametrize(
        ("value", "is_read"),
        [
            (b'"eyJ.a.b.c.d"', True),
            (b'"IHsi.a.b.c.d"', True),
            (b'"x.y.%s.z.%s"' % (b"a" * 16, b"b" * 22), True),
            (b'{"protected":"","ciphertext":""}', True),
            (b'"\\u0065yJ.a.b.c.d"', True),
            (b'"1.5 a.b.c.d.e exit"', False),
        ],
    )
    def test_a_text_goes_on_unread_only_if_no_token_can_be_in_it(self, value: bytes, is_read: bool) -> None:
        line = b'{"ssn":%s}\n' % value
        if is_read:
            assert refused(lambda: stream(Label.LINES).feed(line)).reason is Reason.DECRYPTION_FAILED
        else:
            assert stream(Label.LINES).feed(line) == line

    def test_each_piece_has_a_limit_of_its_own_for_the_work(self) -> None:
        rsa = new_key(Alg.RSA_OAEP_256, kid="rsa")
        keys = KeySet("rsa", Alg.RSA_OAEP_256, rsa)
        entry = replace(DENY, keys=keys)
        most = int(MAX_OPENED / keys.opening_cost)
        sealed = json.dumps(seal(b"1", keys, PLACE)).encode()
        setting = Setting(HOST, LIMIT, TODAY)
        body = Stream(Label.LINES, BodyHead(), [entry], lambda: setting)
        line = b'{"ssn":%s}\n' % sealed
        assert most > 2
        assert body.feed(line * 3).count(b"1") == 3

    @pytest.mark.parametrize("head", [BodyHead(["text/event-stream; charset=utf-16"]), BodyHead((), "dcb")])
    def test_a_head_that_cannot_be_read_is_refused_at_once(self, head: BodyHead) -> None:
        setting = Setting(HOST, LIMIT, TODAY)
        assert (
            refused(lambda: Stream(Label.EVENTS, head, [PASS], lambda: setting)).reason is Reason.ENCODING_UNSUPPORTED
        )
