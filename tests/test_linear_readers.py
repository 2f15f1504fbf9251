"""Whatever reads what a peer sent takes linear time: unfriendly text of the greatest size, at each of them.

`READERS` has them all: each is tried on short units over and over, behind what leads to where they cost most, and
before what makes them fail. `tests/test_linear_regexes.py` does the same for each regular expression by itself; here it
is the code round them: loops, joins, look-ups from the start.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial

import pytest
import zstandard

from proxy.core.decisions import Denied
from proxy.core.destinations import Destination, canonical_host, parse_authority
from proxy.core.fields import (
    bodies,
    encodings,
    events,
    graphql,
    graphqlrequests,
    kinds,
    lines,
    messages,
    multipart,
    responses,
)
from proxy.core.fields.automaton import Marks
from proxy.core.fields.entries import FieldEntry, PathGlob, When
from proxy.core.fields.envelopes import Envelope
from proxy.core.fields.jsontext import find_spans, string_value
from proxy.core.fields.readings import readings, with_body
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.shapes import shapes
from proxy.core.fields.signatures import covering
from proxy.core.fields.splice import Job, splice
from proxy.core.fields.values import Setting
from proxy.core.http import cookies, heads, hops, names, permessage, problems, websocket
from proxy.core.http.framing import BadFraming, ChunkedBody
from proxy.core.http.redirects import Trail
from proxy.core.jose import encoding
from proxy.core.jose.jwe import JweError, open_token
from proxy.core.jose.jwksets import fitting_keys
from proxy.core.jose.keymaterial import Alg, SecretBytes
from proxy.core.jose.keys import Bind, Key, KeySet
from proxy.core.jose.place import Place
from proxy.core.pinimport.reading import Kind, import_pins
from proxy.core.rules import appview, hsts
from proxy.core.who import credentials
from proxy.core.who.addresses import parse_ip
from proxy.engine.apps.sniffing import listen
from proxy.engine.messages import request_of
from tests.growth import TOO_MUCH, growth

HEAD = 64 * 1024
BODY = 1024 * 1024
TOKEN = 1024 * 1024
A, B = Destination("a.example", 80), Destination("a.example", 443)
VIEW = appview.View(A, lambda _: B, lambda _: A)
DELIVERY = cookies.Delivery(over_tls=True, is_translated=True, host="a.b.c.d.example")
KEY = Key("k", Alg.A256KW, SecretBytes(bytes(32)))
KEYS = KeySet("keys", Alg.A256KW, KEY, (), Bind.PLACE)
GLOBS = tuple(PathGlob.parse(text) for text in ("/v1/**/a*b*c/**/x*y", "/**/a/*/**/b", "/a/**/**/c*c*c", "/*a*a*a"))
ENVELOPE = Envelope("e")
DAY = date(2026, 1, 1)
SELECTORS = tuple(parse_selector(text) for text in ("$..ssn", "$.a[-1].b", "$.*[*]..x"))
LOOSE = Marks(SELECTORS, ignore_case=True)
INSIDE = Marks(SELECTORS, inside=(parse_selector("$.m"), parse_selector("$.m")))

COMMON = (
    *(" ", "\t", "a", "0", ".", ",", ";", ":", "=", "/", '"', '\\"', "\\", "'", "<", ">", "[", "]", "(", "%", "-", "_"),
    *("@", "&", "?", "#", "*", "~", "é", "a,", "a;", "a=", "a=b;", "a.", ".a", ":a", " a", "a ", ", ", "; ", '"a"'),
    *('"\\', "%2f", "/.", "../", "/a", "//", "<a>;", "<", '"<', "=,", "q=0,", "http://", "charset", "charset="),
    *("proto=", "url="),
)


@dataclass(frozen=True)
class Reader:
    """Something that reads what a peer sent.

    Attributes:
        read: takes a text.
        most: its greatest length.
        leads: what may stand before the units.
        ends: what may stand behind them.
        units: further units.
        is_plain: whether these are all that make sense.
    """

    read: Callable[[str], object]
    most: int = HEAD
    leads: Sequence[str] = ("",)
    ends: Sequence[str] = ("", "\x01")
    units: Sequence[str] = ()
    is_plain: bool = False


def field(value: str) -> bytes:
    return value.encode("latin-1", "replace")


def chunks(text: str) -> None:
    ChunkedBody().feed(field(text))


def dripped(text: str) -> None:
    body = ChunkedBody()
    for at in range(len(text)):
        body.feed(field(text[at]))


def end_of_head(text: str, *, of_request: bool, step: int = HEAD) -> None:
    data, end = field(text), heads.HeadEnd(of_request=of_request)
    for at in range(0, len(data), step):
        end.find(data[: at + step])


def json_text(text: str) -> None:
    find_spans(text.encode(), [Marks(SELECTORS)])


def spliced(text: str) -> None:
    splice(text.encode(), [Job(Marks(SELECTORS), lambda value, _: value)])


FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"
PART = '--b\r\nContent-Disposition: form-data; name="ssn"'
ENTRIES = [FieldEntry(tuple(SELECTORS), KEYS, form=("ssn", "a[b]"), graphql_arguments=frozenset(("ssn",)))]
JOBS = [Job(ENTRIES[0].marks, lambda value, _: value)]


def multipart_in_drops(text: str) -> None:
    reader = multipart.FormReader(b"b", lambda head: head.name == "ssn", BODY)
    for at in range(len(text)):
        for _ in reader.feed(field(text[at])):
            pass


def opened(header: str) -> None:
    open_token(f"{encoding.base64url(header.encode())}.a.a.a.a", KEYS, Place("a", "$"), date(2026, 1, 1))


def response(name: bytes) -> Callable[[str], object]:
    return lambda value: appview.response_fields(((name, field(value)),), VIEW, "http://a.example")


def request(name: bytes) -> Callable[[str], object]:
    return lambda value: appview.request_fields(((name, field(value)),), VIEW)


def redirect(location: str, path: str = "/") -> None:
    Trail().follow("GET", 301, A, path, ((b"Location", field(location)),))


def head(line: str) -> Callable[[str], object]:
    return lambda text: heads.read_request_head(field(line.replace("@", text)) + b"\r\nHost: a\r\n\r\n")


def target(text: str) -> None:
    request_of(heads.RequestHead(b"GET", field(text), True, (), 0), None, is_tls=False)


def members(text: str, coding: str = "gzip", member: bytes = gzip.compress(b"", mtime=0)) -> None:  # once
    """Read a body of as many tiny members, frames or blocks as fit into so many bytes."""
    encodings.decode(member * (len(text) // len(member)), encodings.parse_encoding(coding), BODY)


def blocks(text: str, coding: str, piece: Callable[[], bytes], start: bytes) -> None:
    """Read a stream that never ends, of tiny blocks."""
    block = piece()
    with suppress(Denied):
        encodings.decode(start + block * (len(text) // len(block)), encodings.parse_encoding(coding), BODY)


def in_a_row(text: str, kind: type[lines.Lines] | type[lines.Sequence] | type[events.Events], step: int = BODY) -> None:
    """Read a body of several JSON texts, which comes in pieces."""
    body, data = kind(lambda each: each, 2 * BODY, lambda _: None), text.encode()
    for at in range(0, len(data), step):
        body.feed(data[at : at + step])
    body.end()


def frames(text: str, *, step: int = BODY, deflates: bool = False) -> None:
    """Read the frames of a WebSocket, which come in pieces."""
    source = websocket.Frames(is_masked=True, may_compress=deflates)
    reader = websocket.Messages(source, BODY, permessage.Inflater(None, forgets=False) if deflates else None)
    data = field(text)
    for at in range(0, len(data), step):
        source.feed(data[at : at + step])
        while reader.read() is not None:
            pass


def answers(text: str) -> None:
    permessage.offers([text])
    permessage.agreed([text, "permessage-deflate"], [text])


def records(text: str) -> None:
    """Read a WebSocket message of several JSON texts."""
    entry = FieldEntry(tuple(SELECTORS), KEYS)
    messages.count_marked(text.encode() + b"\x1e", [entry], Setting("a", BODY, date(2026, 1, 1)), is_text=True)


def changed_events(text: str) -> None:
    """Read events whose text becomes another one, of fewer lines."""
    events.Events(lambda _: b"1\r2", 2 * BODY, lambda _: None).feed(text.encode() + b"\n\n")


def when(path: str) -> None:
    When(None, GLOBS).applies(readings("GET", path))


def with_fields(*names: bytes) -> Callable[[str], object]:
    return lambda text: readings("POST", "/", fields=tuple((name, field(text)) for name in names))


READERS: dict[str, Reader] = {
    **{
        f"pins of {kind}": Reader(
            lambda text, kind=kind: import_pins(text.encode(), kind, "a.example"),  # type: ignore[misc]  # of a default
            BODY // 256,
            leads=("", '.add("a", ', "kTSKPinnedDomains: [", "kTSKPinnedDomains: @{", "<network-security-config>"),
            units=('"', '"a",', "[", "(", "a:", "a=", "/*", "//", "<b>", ";", "\\", '.add("a","sha256/b")', '@{@"a":'),
        )
        for kind in Kind
    },
    "a query": Reader(
        lambda text: readings("POST", "/", text),
        leads=("", "_method="),
        units=("_", "_method=a&", "_method", "x-http-method-", "%5f", "&_"),
    ),
    "an override of the method": Reader(with_fields(b"X-HTTP-Method-Override"), units=("PUT,", "-")),
    "an override of the path": Reader(
        with_fields(b"X-Original-URL", b"X-Forwarded-Prefix"), leads=("", "/", "http:", "http://"), units=("/a?", "+")
    ),
    "a form": Reader(
        lambda text: with_body(readings("POST", "/"), text.encode(), ["multipart/form-data"]),
        BODY // 8,
        leads=("", "content-disposition:", 'content-disposition: form-data; name="'),
        units=(
            "_",
            "_method=a&",
            "_method",
            "x-http-method-",
            "%5f",
            "&_",
            "content-disposition",
            'name="',
            "\r\n a",
            "a",
        ),
        is_plain=True,
    ),
    "JSON that may name a method": Reader(
        lambda text: with_body(readings("POST", "/"), text.encode(), ["application/json"]),
        BODY // 8,
        leads=("", "{"),
        ends=("", '"_method":"PUT"}'),
        units=('"_method":"PUT",', "\\u005f", '"a":1,', '{"_method":'),
        is_plain=True,
    ),
    "a request's method": Reader(head("@ / HTTP/1.1")),
    "a request's target": Reader(head("GET @ HTTP/1.1"), leads=("", "/", "http://")),
    "a request's version": Reader(head("GET / HTTP/@")),
    "a field's name": Reader(head("GET / HTTP/1.1\r\n@: a"), units=("\r\na: ",)),
    "a field's value": Reader(head("GET / HTTP/1.1\r\nX: @"), units=("\r\n", "\r\nX: a", "\r\n ")),
    "Content-Length": Reader(head("GET / HTTP/1.1\r\nContent-Length: @"), units=("1",)),
    "Transfer-Encoding": Reader(head("GET / HTTP/1.1\r\nTransfer-Encoding: @"), units=("chunked,",)),
    "a response's head": Reader(lambda text: heads.read_response_head(field(f"HTTP/1.1 200 {text}\r\n\r\n"))),
    "a response's status line": Reader(lambda text: heads.read_response_head(field(f"HTTP/1.1 {text}\r\n\r\n"))),
    "what may become a head": Reader(lambda text: heads.can_become_a_head(field(text)), leads=("", "GET ")),
    "the end of a request's head": Reader(lambda text: end_of_head(text, of_request=True), units=("\r", "\r\n", "\n")),
    "the end of a request's head, byte by byte": Reader(
        lambda text: end_of_head(text, of_request=True, step=1),
        HEAD // 4,
        leads=("", "GET /", "GET / HTTP/1.1\r\n"),
        ends=("",),
        units=("a", "\r", "a: b\r\n"),
        is_plain=True,
    ),
    "the end of a response's head, byte by byte": Reader(
        lambda text: end_of_head(text, of_request=False, step=1),
        HEAD // 4,
        ends=("",),
        units=("a", "\r", "a: b\r\n"),
        is_plain=True,
    ),
    "an absolute target": Reader(target, leads=("", "/", "http://", "https://a", "ws://a?", "http://a:")),
    "Connection": Reader(lambda text: hops.without_hop(((b"Connection", field(text)),)), units=("close,",)),
    "Upgrade": Reader(lambda text: hops.without_hop(((b"Upgrade", field(text)), (b"Connection", b"upgrade")))),
    "a trailer's name": Reader(
        lambda text: hops.trailers_to_relay(((field(text), b""),)),
        leads=("", "content-", "content-security-policy", "x-forwarded-", "access-control-"),
        units=("a_", "content-", "if-", "proxy-", "x-http-method"),
    ),
    "Sec-WebSocket-Extensions": Reader(
        answers,
        leads=("", "permessage-deflate", "permessage-deflate;", 'permessage-deflate; a="'),
        units=("permessage-deflate,", "client_max_window_bits;", "a=b;", 'a="b";', ";a"),
    ),
    "the frames of a WebSocket": Reader(
        frames,
        BODY // 4,
        leads=("", "\x01\x80abcd", "\x81\xfe\xff\xffabcd", "\x82\xff\x00\x00\x00\x00\x00\x08\x00\x00abcd"),
        ends=("", "\x80\x80abcd"),
        units=("\x00\x80abcd", "\x00\x81abcda", "\x89\x80abcd", "\x8a\x81abcda", "\x81\x80abcd", "\x82\x82abcdxy"),
    ),
    "the frames of a WebSocket, byte by byte": Reader(
        partial(frames, step=1),
        HEAD // 4,
        leads=("", "\x01\x80abcd", "\x82\xff\x00\x00\x00\x00\x00\x08\x00\x00abcd"),
        ends=("",),
        units=("\x00\x80abcd", "\x00\x81abcda", "\x89\x80abcd", "\x89\xfdabcd"),
        is_plain=True,
    ),
    "compressed messages of a WebSocket": Reader(
        partial(frames, deflates=True),
        BODY // 4,
        leads=("", "\x41\x80\x00\x00\x00\x00"),
        ends=("", "\x80\x80abcd"),
        units=(
            "\xc1\x81\x00\x00\x00\x00\x00",
            "\xc2\x83\x00\x00\x00\x00\xaaV*",
            "\x00\x83\x00\x00\x00\x00\x00\x00\x00",
            "\x00\x85\x00\x00\x00\x00\x00\x00\x00\xff\xff",
        ),
        is_plain=True,
    ),
    "a WebSocket message of several records": Reader(
        records,
        BODY // 8,
        leads=("", "{}", '{"ssn":1}'),
        ends=("", "\x01"),
        units=("\x1e", "{}\x1e", '{"ssn":1}\x1e', '{"x":'),
        is_plain=True,
    ),
    "Max-Forwards": Reader(lambda text: hops.one_forward_less(((b"Max-Forwards", field(text)),))),
    "Via": Reader(
        lambda text: hops.has_come_through([text], "a"), units=("1.1 a,", "1.1 (", "1 a a"), leads=("", "1.1 ")
    ),
    "Set-Cookie": Reader(
        lambda text: cookies.Cookies("tag").received(((b"Set-Cookie", field(text)),), DELIVERY, frozenset(("a",))),
        leads=("", "a=b;", "__Host-a=b; Secure; ", "a=b; domain=", "_oc0123456789abcdef_"),
        units=("secure;", "domain=a;", "path=/;", "_oc", "__Host-"),
    ),
    "Cookie": Reader(
        lambda text: cookies.Cookies("tag").sent(((b"Cookie", field(f"_oc;{text}")),), DELIVERY),
        leads=("", "_oc0123456789abcdef_"),
        units=("_oc0123456789abcdef_a=b;", "_oc;"),
    ),
    "the names of cookies": Reader(lambda text: cookies.names_sent(((b"Cookie", field(text)),))),
    "Strict-Transport-Security": Reader(hsts.parse_field, leads=("", "max-age=", 'a="'), units=("max-age=1;", 'a="')),
    "a redirect's Location": Reader(
        redirect, leads=("", "http://", "http://a/", "//", "?", "#"), units=("./", "a/../")
    ),
    "the path of a redirected request": Reader(
        lambda text: redirect("http://a.example/", f"/{text}"), units=("a/../",)
    ),
    "a relative redirect": Reader(lambda text: redirect("../" * (len(text) // 3), f"/{text}"), units=("a/",)),
    "a host": Reader(canonical_host, leads=("", "[", "[::", "1.", "0x"), units=("::", "xn--")),
    "an authority": Reader(lambda text: parse_authority(text, 80), leads=("", "[", "a:", "[::1]:")),
    "an address": Reader(parse_ip, leads=("", "::", "1.1.1."), units=("::", "1:")),
    "Host": Reader(lambda text: names.check_host_fields([text], A, 80), leads=("", "a:")),
    "a TLS server name": Reader(lambda text: names.check_server_name(text, A)),
    "Proxy-Authorization": Reader(credentials.read_basic, leads=("", "Basic "), units=("YTph", "QUFB")),
    "Accept": Reader(problems.wants_page, units=("text/html,", "*/*;q=0,", "text/html;q=0;")),
    "Accept-Encoding": Reader(bodies.acceptable, units=("gzip;q=0,", "br,", "q=0."), leads=("", "gzip;")),
    "Content-Type": Reader(
        lambda text: bodies.check_before(bodies.BodyHead([text]), [], date(2026, 1, 1)),
        leads=("", "application/json;", "a;charset=", 'a; charset="', "a;charset"),
        units=('charset="', "charset=utf-8;", "charset;", "charset =", "CHARSET"),
    ),
    "whether it is JSON": Reader(
        lambda text: responses.label_of([text]), leads=("", "a/", "a/json"), units=("json", "a/b,", "+json")
    ),
    "whether it may be JSON": Reader(
        lambda text: responses.may_be_json(field(text)), BODY // 8, leads=("", "\xef\xbb\xbf"), units=("\x00", " \x00")
    ),
    "If-None-Match": Reader(
        lambda text: responses.asked(((b"If-None-Match", field(text)),)),
        units=('W/"a",', 'W/"', 'W/""'),
        leads=("", 'W/"'),
    ),
    "events": Reader(
        partial(in_a_row, kind=events.Events),
        BODY // 4,
        units=("\n", "\r", "data:a\n", "data\r", ":\n"),
        leads=("", "data:"),
    ),
    "events in pieces": Reader(
        partial(in_a_row, kind=events.Events, step=7), HEAD // 4, units=("\n", "data:a\n", ":\r"), leads=("", "data:")
    ),
    "events that change": Reader(changed_events, BODY, units=("data:a\n", "data\r"), leads=("data:",)),
    "If-Match": Reader(
        lambda text: responses.asked(((b"If-Match", field(text)),)),
        leads=("", '"', "W/"),
        units=('W/"a",', "W/", '"a" '),
    ),
    "ETag": Reader(lambda text: responses.told(((b"ETag", field(text)),), with_length=True), leads=("", '"', "W/")),
    "Content-Encoding": Reader(encodings.parse_encoding, units=("gzip,",)),
    "a path": Reader(when, leads=("", "/", "/v1/", "/v1/a", "/a"), units=("/a/b", "/ab/c", "abc", "/ab", "/v1", "%61")),
    "a chunk's line": Reader(chunks, leads=("", "1", "1;", "1\r\na\r\n"), units=("f", ";", "1\r\na\r\n", "\r\n", "\r")),
    "a trailer": Reader(chunks, leads=("0\r\n", "0\r\nX:", "0\r\nX: a"), units=("X: a\r\n", "\r\n", "\r")),
    "a chunk's line, byte by byte": Reader(
        dripped, 4096, leads=("1;",), ends=("",), units=("1\r\na\r\n",), is_plain=True
    ),
    "a trailer, byte by byte": Reader(
        dripped, HEAD // 4, leads=("0\r\nX:",), ends=("",), units=("X: a\r\n",), is_plain=True
    ),
    "JSON": Reader(
        json_text,
        BODY // 8,
        leads=("", "[", '{"', '{"a":', '["', "[1", '{"a":[1,'),
        ends=("", "]", '"]', "\x01"),
        units=(
            "[",
            '{"a":',
            '["\\',
            "1",
            "-",
            "1e",
            "\\u0061",
            '"\\',
            "1,",
            '"a":1,',
            "[],",
            '{"ssn":1},',
            "true",
            "[[],",
        ),
        is_plain=True,
    ),
    "what is selected in JSON": Reader(
        spliced,
        BODY // 8,
        leads=("[", '{"a":['),
        ends=("1]", '{"ssn":1}]', "1"),
        units=('{"ssn":1},', '"\\u0073",', "[", "[[1],", '{"a":'),
        is_plain=True,
    ),
    "names in any case": Reader(
        lambda text: find_spans(text.encode(), [LOOSE]),
        BODY // 8,
        leads=("", "[", '{"', '{"a":[', '{"\\u0061'),
        ends=("", "]", '":1}', "1}"),
        units=('"SSN":1,', '{"ſsn":', "é", "\\u017f", '"é":1,', '{"\\u0053SN":1},', "[[", "İ"),
        is_plain=True,
    ),
    "texts inside strings": Reader(
        lambda text: find_spans(json.dumps({"m": json.dumps({"m": text})}).encode(), [INSIDE]),
        BODY // 16,
        leads=("", "[", '{"', '{"m":"'),
        ends=("", "1]", '":1}', '"}'),
        units=('{"ssn":1},', '"\\\\', "\\u0061", "é", "1,", "[", '{\\"ssn\\":1},'),
        is_plain=True,
    ),
    "what looks like a secret": Reader(
        lambda text: shapes(text.encode()),
        HEAD // 2,
        leads=("", "[", '{"a":', '["', '{"password":"', '["eyJ', '["4'),
        ends=("", '"]', '"}'),
        units=(
            "[",
            '{"a":',
            "1",
            "1 ",
            "1-",
            "a",
            "aB1",
            "A ",
            "aB3.",
            "-",
            '"a":"4111111111111111",',
            '"a":[],',
            "\\\\",
        ),
        is_plain=True,
    ),
    "a JSON string": Reader(lambda text: string_value(f'"{text}"'.encode()), BODY, units=("\\u0061", "\\n", "\\ud83d")),
    "a token's header": Reader(
        opened,
        TOKEN // 4,
        leads=("", "{", '{"alg":', '{"alg":"', '{"alg":1.', '{"a":['),
        units=('"a":1,', '{"a":', "[", "1", "\\u0061", "e", '"kid":"', "[[],"),
    ),
    "a JWK Set by URL": Reader(
        lambda text: fitting_keys(b'{"keys":[' + text.encode() + b'{"kty":"EC"}]}', alg=Alg.RSA_OAEP_256, today=DAY),
        256 * 1024,
        units=('{"kty":"RSA","n":"AQAB","e":"AQAB"},', '{"kty":"RSA","kid":"a","n":"', "[{},", '{"a":'),
    ),
    "a token": Reader(lambda text: open_token(text, KEYS, None, date(2026, 1, 1)), TOKEN, units=("a.", "AAAA", "....")),
    "an envelope": Reader(
        lambda text: (ENVELOPE.content(text.encode()), ENVELOPE.members(text.encode())),
        BODY // 4,  # beyond that, what counts are the pages of memory
        leads=("", "{", '{"e":"', '{"e":"a"', '{"e":'),
        units=('"e":"a",', '{"e":', '"', "\\\\", '\\"', " ", "a"),
    ),
    "what stands in a token": Reader(encoding.unbase64url, TOKEN, units=("AAAA", "____")),
    "a form's fields": Reader(
        lambda text: kinds.splice_body(field(text), [FORM], ENTRIES, JOBS, 100),
        BODY,
        leads=("", "ssn=", "ssn[", "s%73n="),
        units=("a=1&", "ssn=1&", "ssn.", "%41", "&", ";", "+", "a;ssn&", "[", "="),
        is_plain=True,
    ),
    "a multipart form": Reader(
        lambda text: kinds.splice_body(field(text), [MULTIPART], ENTRIES, JOBS, 100),
        BODY,
        leads=("", "--b", "--b\r\n", PART, PART + "\r\n\r\n", '--b\r\ncontent-disposition: form-data; name="ssn'),
        ends=("", "\r\n--b--"),
        units=("--b\r\n", "\r\n--", "\r", "\n", "-", ";name=a", "a", 'X: "\r\n', PART + "\r\n\r\n\r\n"),
        is_plain=True,
    ),
    "a multipart form, byte by byte": Reader(
        multipart_in_drops,
        BODY // 8,
        leads=(PART, PART + "\r\n\r\n", PART.replace("ssn", "x") + "\r\n\r\n"),
        units=("\r\n--", "\r", "-", "a", ";a="),
        is_plain=True,
    ),
    "the head of a part": Reader(
        lambda text: multipart.read_head(field(text)),
        multipart.MAX_PART_HEAD,
        leads=("", "Content-Disposition: form-data", "Content-Disposition: form-data; name=", "Content-Type: "),
        units=(";name=a", '; a="b"', '"', "\\", "\t", " ", "X: a\r\n", "a/b;"),
    ),
    "a form's boundary": Reader(multipart.boundary_of, leads=("", "a/b;boundary="), units=(";boundary=a", '"', "\\")),
    "lines of JSON": Reader(
        lambda text: kinds.splice_body(field(text), ["application/x-ndjson"], ENTRIES, JOBS, 100),
        BODY // 8,
        ends=("",),
        units=("\n", "1\n", " ", '{"ssn":1}\n', "[]\n", '{"a":1}\n', "[[],{}]\n"),
        is_plain=True,
    ),
    "a sequence of JSON": Reader(
        lambda text: kinds.splice_body(field(text), ["application/json-seq"], ENTRIES, JOBS, 100),
        BODY // 8,
        ends=("",),
        units=("\x1e", "\x1e1", " ", '\x1e{"ssn":1}'),
        is_plain=True,
    ),
    "a JSON Patch": Reader(
        lambda text: kinds.splice_body(field(text), ["application/json-patch+json"], ENTRIES, JOBS, 100),
        BODY // 4,
        leads=('[{"op":"add","path":"', '[{"op":"add","path":"/ssn","value":', "["),
        ends=('"}]', "]"),
        units=("/a", "~1", "a", "[", '{"op":"add","path":"/ssn","value":1},', '{"op":"add","path":"/a/b/c"},', "1,"),
        is_plain=True,
    ),
    "an array of requests": Reader(
        lambda text: kinds.splice_body(field(text), ["application/json"], ENTRIES, JOBS, 100),
        BODY // 4,
        leads=("[",),
        ends=("1]",),
        units=('{"jsonrpc":1},', '{"query":"{a}"},', '{"op":1},', "1,", '{"query":"{a(ssn:$ssn)}","variables":{}},'),
        is_plain=True,
    ),
    "a GraphQL query": Reader(
        lambda text: graphql.variables_of(text, frozenset(("ssn",))),
        graphql.MAX_QUERY,
        leads=("", "{", "{a(ssn:", '{a(ssn:"', '{a(ssn:"""', "#", "query($a:"),
        ends=("", "}", ")}", '")}'),
        units=("a ", "a{", "[", "{a:", "1", '\\"', "\\u0061", "\n", "#\n", ",", "$a", "...F ", "@a ", '""" '),
        is_plain=True,
    ),
    "GraphQL in a URL": Reader(
        lambda text: graphqlrequests.check_target(text, ENTRIES),
        leads=("", "query=", "variables=", "operations=["),
        units=("query=&", "a=1&", "%7B", "[", "1,", "&"),
    ),
    "a gzip file's members": Reader(members, BODY // 2, ends=("",), units=("a",), is_plain=True),
    "zstd's frames": Reader(
        partial(members, coding="zstd", member=zstandard.compress(b"")),
        BODY // 2,
        ends=("",),
        units=("a",),
        is_plain=True,
    ),
    "members within another coding": Reader(partial(members, coding="gzip, gzip"), BODY // 2, ends=("",), units=("a",)),
    "blocks of deflate": Reader(
        partial(blocks, coding="deflate", piece=lambda: bytes((0, 0, 0, 0xFF, 0xFF)), start=b""), BODY, is_plain=True
    ),
    "blocks of zstd": Reader(
        partial(blocks, coding="zstd", piece=lambda: bytes(3), start=b"\x28\xb5\x2f\xfd\x00\x58"), BODY, is_plain=True
    ),
    "lines": Reader(partial(in_a_row, kind=lines.Lines), BODY, units=("\n", "\r\n", "a\n")),
    "records": Reader(
        partial(in_a_row, kind=lines.Sequence), BODY // 4, units=("\n", "\x1e", "{\n", '"\n', "]\n"), leads=("", "{")
    ),
    "lines in pieces": Reader(partial(in_a_row, kind=lines.Lines, step=7), HEAD, units=("\n",)),
    "records in pieces": Reader(
        partial(in_a_row, kind=lines.Sequence, step=7), HEAD // 4, units=("\n", "\x1e"), leads=("", "{")
    ),
    "the first bytes": Reader(
        lambda text: listen(field(text)),
        leads=("", "GET", "\x16\x03\x01", "\x16\x03\x01\x40\x00\x01\x00", "\x16\x03\x01\x00\x01\x01"),
        units=("\x16\x03\x01\x00\x01\x01", "\x00", "\xff", "\x00\x00\x00\x01", "GET "),
    ),
}
for _name in (
    "Origin",
    "Referer",
    "Destination",
    "Forwarded",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "Front-End-Https",
):
    READERS[_name] = Reader(
        request(_name.lower().encode()),
        leads=("", "http://", "http://a", ";proto=", "proto", 'proto="http'),
        units=("http,", 'proto="http";', ";proto", "; proto = http", "off", "80", ",http"),
    )
for _name in (
    *("Location", "Content-Location", "Access-Control-Allow-Origin", "Timing-Allow-Origin", "Refresh", "Link"),
    "Content-Security-Policy",
):
    READERS[_name] = Reader(
        response(_name.lower().encode()),
        leads=("", "https://a", "0;url=", "0", "<https://a", '"'),
        units=(
            "https://a,",
            "0;",
            "; url =",
            '<a>; rel="a", ',
            '"\\"',
            "<https://a>",
            "upgrade-insecure-requests;",
            ";,",
        ),
    )

READS_NOTHING_OF = (Denied, BadFraming, JweError, ValueError, websocket.BadFrame, permessage.TooLarge)


def repeated(lead: str, unit: str, end: str, length: int) -> str:
    """Return a text in which a unit is repeated until it is this long."""
    return lead + unit * (length // len(unit) + 1) + end


def texts(reader: Reader) -> Iterator[tuple[str, Callable[[int], str]]]:
    """Yield texts, as functions of their length: a reader's own units in all ways, and the common ones in two."""
    shapes = list(itertools.product(reader.leads, reader.units, reader.ends))
    if not reader.is_plain:
        shapes += itertools.product(dict.fromkeys((reader.leads[0], reader.leads[-1])), COMMON, reader.ends[-1:])
    for lead, unit, end in dict.fromkeys(shapes):
        yield (
            f"{lead!r} {unit!r} {end!r}",
            partial(repeated, lead, unit, end),
        )


@pytest.mark.parametrize("name", READERS)
def test_it_takes_linear_time(name: str) -> None:
    reader = READERS[name]

    def read(text: str) -> None:
        with suppress(*READS_NOTHING_OF):
            reader.read(text)

    for what, make in texts(reader):
        assert growth(read, make, reader.most) < TOO_MUCH, what


class TestManyFields:
    """The same for as many fields as there may be: none looks through all the others."""

    @pytest.mark.parametrize("name", [b"Link", b"Set-Cookie", b"Connection", b"Cookie", b"Via", b"Host"])
    def test_their_number_matters_no_more_than_their_length(self, name: bytes) -> None:
        def read(fields: heads.Fields) -> None:
            with suppress(*READS_NOTHING_OF):
                hops.without_hop(fields)
                cookies.Cookies("tag").received(fields, DELIVERY)
                appview.response_fields(cookies.Cookies("tag").sent(fields, DELIVERY), VIEW)
                heads.read_request_head(
                    b"GET / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % each for each in fields) + b"\r\n"
                )

        assert growth(read, lambda count: ((name, b'<https://a>; "'),) * count, 16 * 1024) < TOO_MUCH

    @pytest.mark.parametrize(
        ("name", "value"), [(b"Signature", b"a"), (b"Authorization", b"HMAC a"), (b"X-Content-Sha256", b"a")]
    )
    def test_those_of_signatures(self, name: bytes, value: bytes) -> None:
        beside = (b"X-Content-Sha256", b"UNSIGNED-PAYLOAD")

        def read(fields: heads.Fields) -> None:
            assert covering(fields) is None

        assert growth(read, lambda count: (beside, *((name, value),) * count), 10_000) < TOO_MUCH


class TestManyNames:
    """The same for as many different methods and paths as a request may name."""

    @pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json"])
    def test_of_methods_in_a_body(self, kind: str) -> None:
        def body(length: int) -> bytes:
            if kind == "application/json":
                return b"{" + b",".join(b'"_method":"%s"' % each for each in words(length // 17)) + b"}"
            return b"&".join(b"_method=%s" % each for each in words(length // 13))

        def read(text: bytes) -> None:
            with_body(readings("POST", "/"), text, [kind])

        assert growth(read, body, 2 * BODY) < TOO_MUCH  # of a sixteenth, the half is not small yet

    def test_of_paths_behind_prefixes(self) -> None:
        def fields(length: int) -> heads.Fields:
            names = (b"X-Forwarded-Prefix", b"X-Original-URL")
            return tuple((name, b"/" + word) for word in words(length // 50) for name in names)

        assert growth(lambda found: readings("POST", "/", fields=found), fields, HEAD) < TOO_MUCH


def words(count: int) -> Iterator[bytes]:
    """Yield so many different words of four letters."""
    return map(bytes, itertools.islice(itertools.product(b"abcdefghijklmnopqrstuvwxyz", repeat=4), count))


def test_a_reader_that_does_not_is_found() -> None:
    def slow(text: str) -> int:
        return sum(each == "b" for at in range(len(text)) for each in text[at:])  # nothing of it is linear

    # Other work on the machine may make the shorter text's share look greater, as it may for any; seldom three times.
    assert max(growth(slow, lambda length: "a" * length, 4 * 1024) for _ in range(3)) >= TOO_MUCH


def test_these_texts_reach_what_reads_them() -> None:
    # Twins: what is read there is not refused at its first byte.
    assert json.loads(string_value(b'"[1]"') or "") == [1]
    assert zlib.decompress(gzip.compress(b""), 31) == b""
    assert appview.response_fields(((b"link", b"<https://a.example/>"),), VIEW) == ((b"link", b"<http://a.example/>"),)
