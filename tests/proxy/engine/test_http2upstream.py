"""A request's head, as an upstream of HTTP/2 is sent it."""

from __future__ import annotations

import hpack
import pytest
from mitmproxy import http

from proxy.engine.flows import new_request
from proxy.engine.http2upstream import _fields
from proxy.engine.messages import headers_of


def request(*fields: tuple[bytes, bytes]) -> http.Request:
    return new_request(
        "a.example",
        443,
        b"GET",
        scheme=b"https",
        authority=b"",
        path=b"/p?q",
        version=b"HTTP/2.0",
        headers=headers_of(((b"Host", b"a.example"), *fields)),
    )


def test_the_host_is_the_authority_and_names_are_lower_case() -> None:
    assert _fields(request((b"X-Note", b"A"), (b"x-note", b"b")), te=False) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"a.example"),
        (b":path", b"/p?q"),
        (b"x-note", b"A"),
        (b"x-note", b"b"),
    ]


@pytest.mark.parametrize(
    "name", [b"Transfer-Encoding", b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Upgrade", b"TE"]
)
def test_what_is_about_one_connection_stays_here(name: bytes) -> None:
    assert _fields(request((name, b"trailers"), (b"a", b"1")), te=False)[4:] == [(b"a", b"1")]


def test_that_trailers_are_taken_is_said_where_the_app_has() -> None:
    assert _fields(request(), te=True)[4:] == [(b"te", b"trailers")]


@pytest.mark.parametrize("name", [b"Authorization", b"cookie"])
def test_what_is_secret_is_kept_in_no_table(name: bytes) -> None:
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    fields = _fields(request((name, b"secret"), (b"a", b"1")), te=False)
    found = {each[0]: each.indexable for each in decoder.decode(encoder.encode(fields), raw=True)}
    assert (found[name.lower()], found[b"a"]) == (False, True)
