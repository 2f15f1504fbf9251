"""A look into a body that passes: what is kept of it, and what is noted."""

from __future__ import annotations

import gzip

import pytest
from mitmproxy import http

from addons.exchange import Exchange
from addons.observing import Watch
from proxy.core.fields.shapes import MOST_BYTES
from proxy.core.rules.policy import Mode, Policy

BODY = b'{"password":"hunter2","a":[1,2,3]}'


def watched(*pieces: bytes, coding: str | None = None) -> tuple[Exchange, Watch]:
    """Pass a body by a watch; see that it goes on as it came."""
    exchange = Exchange(Policy(mode=Mode.OBSERVE), "127.0.0.1")
    request = http.Request.make(
        "POST", "http://a.example/", headers=http.Headers(((b"content-encoding", coding.encode()),) if coding else ())
    )
    passed: list[bytes] = []
    watch = Watch(exchange, request, lambda data: passed.append(data) or data)  # type: ignore[func-returns-value]  # short
    for piece in pieces:
        assert watch(piece) == piece
    assert passed == list(pieces)
    return exchange, watch


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_it_notes_at_the_end_however_the_body_was_cut(size: int) -> None:
    pieces = [BODY[at : at + size] for at in range(0, len(BODY), size)]
    assert watched(*pieces)[0].looks_secret == {}
    assert watched(*pieces, b"")[0].looks_secret == {"$.password": "password"}


def test_it_reads_gzip_and_nothing_of_what_it_cannot_read() -> None:
    assert watched(gzip.compress(BODY), b"", coding="gzip")[0].looks_secret == {"$.password": "password"}
    assert watched(BODY, b"", coding="br")[0].looks_secret == {}
    assert watched(b"")[0].looks_secret == {}


def test_it_keeps_only_the_beginning() -> None:
    exchange, watch = watched(BODY, *[b" " * 1000] * 100)
    assert len(watch._kept) == MOST_BYTES
    watch(b"")
    assert not watch._kept
    assert exchange.looks_secret == {"$.password": "password"}
