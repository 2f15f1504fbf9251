"""Whatever a body holds, work on it pauses so often that others are served meanwhile.

What is counted is the lines of Python that run between two pauses, whosever they are; so the speed of the machine does
not matter. Compiled parsers and regular expressions are no lines: of these a whole text takes some milliseconds.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from functools import partial

import pytest
import zstandard

from proxy.core.decisions import Denied
from proxy.core.fields import bodies, encodings, forms, messages, streams, uploads
from proxy.core.fields.bodies import BodyHead
from proxy.core.fields.encodings import Encoding
from proxy.core.fields.entries import FieldEntry, Match, OtherBodies, Work
from proxy.core.fields.pauses import STEP, never
from proxy.core.fields.responses import Label
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.values import Setting
from proxy.core.jose.keys import Alg, KeySet, new_key

LENGTH = 128 * 1024
MOST = (
    60_000  # lines: `STEP` bytes of the least items have 30,000 of them, some milliseconds; a whole text has a million
)
KEY = new_key(Alg.A256KW, kid="k")
KEYS = KeySet("k", KEY.alg, KEY)
SETTING = Setting("h", 1 << 20, date(2026, 1, 1), of_request=True)
JSON = BodyHead(("application/json",))
FORM = BodyHead(("application/x-www-form-urlencoded",))
LINES = BodyHead(("application/x-ndjson",))
MULTIPART = BodyHead(("multipart/form-data; boundary=b'b",))
PATCH = BodyHead(("application/json-patch+json",))
TOOL = 4


class Counter:
    """Counts lines between pauses."""

    def __init__(self) -> None:
        self.lines = 0
        self.most = 0
        self.pauses = 0

    def line(self, *_: object) -> None:
        self.lines += 1

    def pause(self) -> None:
        self.pauses += 1
        self.most = max(self.most, self.lines)
        self.lines = 0


@contextmanager
def counting() -> Iterator[Counter]:
    counter = Counter()
    sys.monitoring.use_tool_id(TOOL, "pauses")
    sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, counter.line)
    sys.monitoring.set_events(TOOL, sys.monitoring.events.LINE)
    try:
        yield counter
    finally:
        sys.monitoring.set_events(TOOL, 0)
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, None)
        sys.monitoring.free_tool_id(TOOL)
        counter.pause()


def entry(*selectors: str, **others: object) -> FieldEntry:
    return replace(FieldEntry(tuple(map(parse_selector, selectors)), KEYS), **others)  # type: ignore[arg-type]  # by name


def filled(unit: bytes, lead: bytes = b"", end: bytes = b"", length: int = LENGTH) -> bytes:
    return lead + unit * ((length - len(lead) - len(end)) // len(unit)) + end


def array_of(unit: bytes) -> bytes:
    return filled(unit + b",", b"[", unit + b"]")


def array_with(count: int, unit: bytes) -> bytes:
    return b"[" + b",".join([unit] * count) + b"]"


def inside(depth: int, text: bytes) -> bytes:
    for _ in range(depth):
        text = json.dumps({"m": text.decode()}).encode()
    return text


PART = b'--b\'b\r\nContent-Disposition: form-data; name="ssn"\r\n\r\n1\r\n'
QUERY = json.dumps({"query": "{" + "a(b:$b){c}" * 1300 + "}"}).encode()
SHALLOW = json.dumps({"query": "{" + "a " * 8000 + "}"}).encode()
IN_STRING = {"inside": (parse_selector("$.m"),)}
GRAPHQL = {"graphql_arguments": frozenset(("ssn",))}
BODIES: dict[str, tuple[bytes, BodyHead, FieldEntry]] = {
    "small items, all looked at": (array_of(b"1"), JSON, entry("$[5].*")),
    "… counted from the end": (array_of(b"1"), JSON, entry("$[-1].*")),
    "… that are no JSON at the end": (array_of(b"[1]")[:-1] + b",x]", JSON, entry("$..ssn")),
    "deep arrays": (b"[" * 32000 + b"]" * 32000, JSON, entry("$..[0].ssn")),
    "members of a marked name": (array_of(b'{"ssn":{}}'), JSON, entry("$..ssn.x")),
    "escapes in names": (array_of(b'{"\\u0061":1}'), JSON, entry("$..ssn")),
    "names that are not ASCII": (array_of('{"é":1}'.encode()), JSON, entry("$..ssn", match=Match.IGNORE_CASE)),
    "values to seal": (array_with(4000, b'{"ssn":1}'), JSON, entry("$[*].ssn")),
    "escapes inside": (inside(1, b'{"ssn":1,"a":["' + b"\\n" * 20_000 + b'"],"b":2}'), JSON, entry("$.b", **IN_STRING)),
    "many texts inside": (
        array_with(4000, b'{"m":"{}"}'),
        JSON,
        entry("$.b", inside=(parse_selector("$[*].m"),)),
    ),
    "lines": (filled(b'[{"a":1}]\n'), LINES, entry("$.ssn")),
    "a patch": (array_with(1900, b'{"op":"add","path":"/a"}'), PATCH, entry("$.ssn")),
    "a form": (filled(b"a=1&")[: 4 * 9999], FORM, entry("$.a", form=("ssn", "a[b]"), match=Match.IGNORE_CASE)),
    "a form to seal": (filled(b"ssn=1&")[: 6 * 4000], FORM, entry("$.a", form=("ssn",))),
    "a multipart form": (filled(PART, length=900 * len(PART)) + b"--b--\r\n", MULTIPART, entry("$.a", form=("ssn",))),
    "a GraphQL query": (QUERY, JSON, entry("$.a", **GRAPHQL)),
    "a GraphQL query without arguments": (SHALLOW, JSON, entry("$.a", **GRAPHQL)),
    "empty members of gzip": (
        gzip.compress(b"{}") + gzip.compress(b"") * 6000,
        BodyHead(JSON.content_types, "gzip"),
        entry("$.a"),
    ),
    "pieces of zstd": (
        zstandard.compress(bytes(range(256)) * 4, 1) * 2000,
        BodyHead(("a/b",), "zstd"),
        entry("$.a", other_bodies=OtherBodies.PASS),
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_little_is_done_between_two_pauses(name: str) -> None:
    body, head, one = BODIES[name]
    with suppress(Denied):
        bodies.change(body, head, [one], SETTING)  # makes what is kept for the next body
    with counting() as counter, suppress(Denied):
        bodies.change(body, head, [one], SETTING._replace(pause=counter.pause))
    assert counter.most < MOST
    assert counter.pauses > 5


@pytest.mark.parametrize("name", BODIES)
def test_the_same_comes_out_with_and_without_pauses(name: str) -> None:
    body, head, one = BODIES[name]

    def outcome(setting: Setting) -> object:
        try:
            return bodies.count_marked(body, head, [one], setting)
        except Denied as denied:
            return denied.reason, denied.detail

    assert outcome(SETTING) == outcome(SETTING._replace(pause=lambda: 1))


def tokens(count: int) -> bytes:
    body = b"[" + b",".join([b'{"ssn":1}'] * count) + b"]"
    return bodies.change(body, JSON, [entry("$[*].ssn")], SETTING).body


@pytest.mark.parametrize("of_request", [True, False])
def test_values_to_open(of_request: bool) -> None:
    opening = SETTING._replace(of_request=of_request)
    body, one = tokens(3000), entry("$[*].ssn", work=Work.DECRYPT)
    with counting() as counter:
        changed = bodies.change(body, JSON, [one], opening._replace(pause=counter.pause))
    assert changed.counts == (3000,)
    assert counter.most < MOST


def test_a_message() -> None:
    payload = (b'{"a":[' + b'{"b":1},' * 100 + b"1]}\x1e") * 200
    with counting() as counter:
        messages.change(payload, [entry("$..ssn", "$.*[0]")], SETTING._replace(pause=counter.pause), is_text=True)
    assert counter.most < MOST


def fed(stream: streams.Stream | uploads.Upload, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        assert stream.takes_long(piece)
        stream.feed(piece)


def test_a_response_with_many_texts() -> None:
    head = BodyHead(("application/x-ndjson",), "gzip")
    with counting() as counter:
        setting = SETTING._replace(of_request=False, pause=counter.pause)
        one = entry("$.ssn", work=Work.DECRYPT)
        fed(streams.Stream(Label.LINES, head, [one], lambda: setting), [gzip.compress(b"1\n" * 16_000)])
    assert counter.most < MOST


def test_a_part_of_an_upload() -> None:
    with counting() as counter:
        setting = SETTING._replace(pause=counter.pause)
        upload = uploads.Upload(MULTIPART, [entry("$.a", form=("ssn",))], setting)
        fed(upload, [PART * 900])
    assert counter.most < MOST


@pytest.mark.parametrize("label", [Label.LINES, Label.RECORDS, Label.EVENTS])
def test_a_short_piece_does_not_take_long_unless_much_is_held(label: Label) -> None:
    stream = streams.Stream(label, BodyHead(), [entry("$.ssn", work=Work.DECRYPT)], lambda: SETTING)
    assert not stream.takes_long(b"data: 1")
    assert stream.takes_long(b"1" * 5000)
    stream.feed(b'data: ["' + b"1" * 5000)
    assert stream.takes_long(b"1")


def test_a_long_part_that_is_not_marked_is_not_held() -> None:
    upload = uploads.Upload(MULTIPART, [entry("$.a", form=("ssn",))], SETTING)
    upload.feed(PART.replace(b"ssn", b"xyz")[:-2] + b"1" * 5000)
    assert not upload.takes_long(b"1")
    upload.feed(b"\r\n" + PART[:-2] + b"1" * 5000)
    assert upload.takes_long(b"1")


def test_long_names_and_values_of_forms_are_decoded_in_pieces() -> None:
    counter = Counter()
    for lead in (b"", b"a", b"ab"):  # a piece may end within an escape
        text = lead + b"%61" * 100_000
        assert forms.decoded(text, counter.pause) == lead + b"a" * 100_000
    assert counter.pauses == 3 * (300_000 // (64 * 1024))


def test_codings_are_put_on_one_by_one() -> None:
    counter = Counter()
    encodings.encode(b"1" * STEP, (Encoding.GZIP, Encoding.BR), pause=counter.pause)
    assert counter.pauses == 2


def test_a_pause_may_end_the_work() -> None:
    class Enough(BaseException):
        pass

    left = 5

    def pause() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Enough

    with pytest.raises(Enough):
        bodies.change(array_of(b"1"), JSON, [entry("$[5].*")], SETTING._replace(pause=pause))
    assert never() is None  # type: ignore[func-returns-value]  # what it returns says nothing


def test_a_name_that_is_too_long_to_be_marked_is_not_folded() -> None:
    loose = entry("$.ssn", match=Match.IGNORE_CASE, form=("ssn",))
    count = partial(bodies.count_marked, entries=[loose], setting=SETTING)
    for head, text in ((JSON, '{"%s":1}'), (FORM, "%s=1")):
        assert count((text % "ſSN").encode(), head) == (1,)
        assert count((text % ("ſSN" + "ﷺ" * 40)).encode(), head) == (0,)
        assert count((text % ("ſSN" * 40)).encode(), head) == (0,)
