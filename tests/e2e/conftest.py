"""Fixtures of the end-to-end tests: the certificate authority, keys, and upstreams that close by themselves.

A test asks for what it needs and starts its own sidecar:

    def test_a_plain_request_leaves_as_https(authority, tls_upstream, tmp_path):
        upstream = tls_upstream("127.0.0.1")
        with Sidecar("mode: enforce", tmp_path, authority=authority) as sidecar:
            curl(upstream.url("/v1"), proxy=sidecar.proxy_url)
        (request,) = upstream.wait_for_requests(1)
        assert request.target == "/v1"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.core.jose.keys import Alg
from tests.e2e.certificates import Authority
from tests.e2e.receiver import Receiver
from tests.e2e.upstream import PlainUpstream, SlowUpstream, TlsUpstream


@pytest.fixture(scope="session")
def authority() -> Authority:
    """An authority that the sidecars of the tests trust; a session has one, since it never changes."""
    return Authority()


@pytest.fixture
def roots(authority: Authority, tmp_path: Path) -> Path:
    """The authority's certificate in a file, for clients that ask the upstream directly."""
    return authority.write_pem(tmp_path / "authority.pem")


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    """Who fields are sealed for, under the kid `pay`."""
    return Receiver("pay")


@pytest.fixture(scope="module")
def sender() -> Receiver:
    """Who seals what the app's own key opens: `app`, which is symmetric."""
    return Receiver("app", Alg.A256KW)


@pytest.fixture
def tls_upstream(authority: Authority) -> Iterator[Callable[..., TlsUpstream]]:
    """Makes `TlsUpstream`s under the authority, with the arguments of that class, and closes them after the test."""
    with ExitStack() as stack:
        yield lambda *names, **options: stack.enter_context(TlsUpstream(authority, *names, **options))


@pytest.fixture
def plain_upstream() -> Iterator[PlainUpstream]:
    """A server without TLS, which must receive nothing, or only what a test allows."""
    with PlainUpstream() as upstream:
        yield upstream


@pytest.fixture
def slow() -> Iterator[SlowUpstream]:
    """A plain server that answers when it is told to."""
    with SlowUpstream() as upstream:
        yield upstream
