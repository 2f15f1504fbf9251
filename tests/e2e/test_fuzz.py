"""Arbitrary bytes, cut at arbitrary places, at every way in: nothing of them reaches an upstream in plain text.

Proves ARCHITECTURE's rules 1 to 3 against what nobody thought of: after each input the process lives, its memory is
bounded, and the upstream's plain port has received nothing. The inputs are the same each time.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream

GROWTH = 24 * 1024 * 1024
POLICY = """
    listen: ["forward://127.0.0.1:0", "socks5://127.0.0.1:0", "reverse://127.0.0.1:0?to=https://127.0.0.1:{port}"]
    limits: {{request_seconds: 1, idle_seconds: 2}}
    destinations: {{allow: [loopback]}}
    defaults: {{https: {https}}}
"""


@pytest.fixture(scope="module")
def plain() -> Iterator[PlainUpstream]:
    with PlainUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["tunnel", "inspect"])
def sidecar(
    request: pytest.FixtureRequest,
    authority: Authority,
    plain: PlainUpstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sidecar]:
    policy = POLICY.format(port=plain.port, https=request.param)
    with Sidecar(policy, tmp_path_factory.mktemp("fuzz"), authority=authority) as running:
        yield running
        assert "failed" not in running.stderr, running.stderr


# What HTTP, TLS and SOCKS are made of, and what tears them apart.
_NAMES = st.sampled_from((b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect", b"X"))
_VALUES = st.sampled_from(
    (b"127.0.0.1", b"0", b"5", b"-1", b"chunked", b"close", b"h2c", b"100-continue", b"a, b", b"\xff", b"", b"1" * 300)
)
_FIELDS = st.builds(
    lambda name, sep, value: name + sep + value, _NAMES, st.sampled_from((b": ", b":", b" :", b"")), _VALUES
)
_METHODS = st.sampled_from((b"GET", b"POST", b"CONNECT", b"PRI", b"OPTIONS", b"get", b"G", b"\x16\x03\x01"))
_ENDS = st.sampled_from((b"\r\n", b"\n", b"\r", b"", b"\r\n "))


def _targets(port: int) -> st.SearchStrategy[bytes]:
    here = b"127.0.0.1:%d" % port
    return st.sampled_from(
        (b"http://%s/" % here, b"https://%s/x?y" % here, here, b"/", b"*", b"http://a@%s/" % here, b"http:///", b"\x00")
    )


def _heads(port: int) -> st.SearchStrategy[bytes]:
    line = st.builds(
        lambda method, target, version, end: method + b" " + target + version + end,
        _METHODS,
        _targets(port),
        st.sampled_from((b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"", b"  HTTP/1.1")),
        _ENDS,
    )
    fields = st.lists(st.tuples(_FIELDS, _ENDS), max_size=5).map(lambda all_: b"".join(a + b for a, b in all_))
    rest = st.sampled_from((b"\r\n", b"", b"\r\n5\r\nhello\r\n0\r\n\r\n", b"\r\nbody", b"\r\nGET / HTTP/1.1\r\n\r\n"))
    return st.builds(lambda a, b, c: a + b + c, line, fields, rest)


def _inputs(port: int) -> st.SearchStrategy[bytes]:
    greeting = st.sampled_from((b"\x05\x01\x00", b"\x05\x02\x00\x02", b"\x05\xff", b"\x04\x01"))
    request = st.just(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2))
    connect = st.just(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (port, port))
    hello = st.just(b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03" + bytes(41))
    here = b"127.0.0.1:%d" % port
    good = st.sampled_from(
        (
            b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\n\r\n" % (here, here),
            b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % here,
            b"POST http://%s/ HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\n\r\nhello" % (here, here),
            b"POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % here,
            b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01"
            + port.to_bytes(2)
            + b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % here,
        )
    )
    whole = st.builds(lambda start, rest: start + b"".join(rest), good, st.lists(st.binary(max_size=30), max_size=2))
    piece = st.one_of(_heads(port), st.binary(max_size=64), greeting, request, connect, hello)
    return st.one_of(whole, st.lists(piece, min_size=1, max_size=5).map(b"".join))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc (Linux)")
@pytest.mark.parametrize("way", [0, 1, 2], ids=["forward", "socks5", "reverse"])
def test_no_bytes_get_out_in_plain_text_or_bring_it_down(sidecar: Sidecar, plain: PlainUpstream, way: int) -> None:
    host, _, port = sidecar.listen[way].rpartition(":")
    before, lines, connections = sidecar.resident_bytes(), len(sidecar.decisions()), len(plain.connections)

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(_inputs(plain.port), st.lists(st.integers(0, 400), max_size=4), st.booleans())
    def throw(data: bytes, cuts: list[int], inside: bool) -> None:
        with socket.create_connection((host, int(port)), 5) as connection, contextlib.suppress(OSError):
            connection.settimeout(0.02)
            if inside and way == 0:
                name = b"127.0.0.1:%d" % plain.port
                connection.sendall(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (name, name))
                connection.recv(4096)
            at = 0
            for cut in [*sorted(cuts), len(data)]:
                connection.sendall(data[at:cut])
                at = max(at, cut)
                with contextlib.suppress(TimeoutError):
                    connection.recv(4096)
        assert plain_bytes(plain) == b""

    throw()
    plain.settle()
    assert plain_bytes(plain) == b""
    assert len(plain.connections) > connections + 5  # or the inputs would be too wild to prove anything
    assert len(sidecar.decisions()) > lines + 50
    assert sidecar.admin_get("/live")[0] == 200
    assert sidecar.resident_bytes() - before < GROWTH


def _frame(kind: int, flags: int, stream: int, payload: bytes, lie: int) -> bytes:
    return (len(payload) + lie).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _frames(name: str) -> st.SearchStrategy[bytes]:
    asked = [(":scheme", "https"), (":authority", name), (":path", "/")]
    blocks = (
        Encoder().encode([(":method", "POST"), *asked]),
        Encoder().encode([(":method", "GET"), *asked, ("x", "1")]),
        Encoder().encode([(":method", "GET"), (":path", "/"), ("connection", "x"), ("X", "\n")]),
        b"\x82\x87\x84",  # a GET of / over https that names no host
        b"\xff\xff\xff\xff\x0f",
        b"",
    )
    odd = (bytes(4), b"\xff" * 6, b"\0\1\xff\xff\xff\xff")
    whole = st.builds(
        _frame, st.just(1), st.sampled_from((4, 5)), st.sampled_from((1, 3)), st.sampled_from(blocks[:2]), st.just(0)
    )
    wild = st.builds(
        _frame,
        st.sampled_from((0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 77)),
        st.sampled_from((0, 1, 4, 5, 8, 0x20, 0xFF)),
        st.sampled_from((0, 1, 1, 3, 3, 5, 2, 2**31 - 1)),
        st.one_of(st.sampled_from((*blocks, *odd)), st.binary(max_size=40)),
        st.sampled_from((0, 0, 0, 0, 0, 0, 1, 16000)),
    )
    return st.one_of(whole, wild)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc (Linux)")
def test_nor_do_frames_of_http2(authority: Authority, plain: PlainUpstream, tmp_path: Path) -> None:
    name, connections = f"127.0.0.1:{plain.port}", len(plain.connections)
    with Sidecar(POLICY.format(port=plain.port, https="inspect"), tmp_path, authority=authority) as sidecar:
        context = ssl.create_default_context(cafile=str(sidecar.ca_file))
        context.set_alpn_protocols(["h2"])
        before = sidecar.resident_bytes()

        @settings(max_examples=200, deadline=None, derandomize=True, database=None)
        @given(
            st.lists(_frames(name), min_size=1, max_size=8), st.lists(st.integers(0, 300), max_size=3), st.booleans()
        )
        def throw(frames: list[bytes], cuts: list[int], has_settings: bool) -> None:
            first = _frame(4, 0, 0, b"", 0) if has_settings else b""
            data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + first + b"".join(frames)
            with RawClient(sidecar.address) as client, contextlib.suppress(OSError):
                client.send(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                client.read_until(b"\r\n\r\n")
                client.start_tls("127.0.0.1", context=context)
                at = 0
                for cut in [*sorted(cuts), len(data)]:
                    client.send(data[at:cut])
                    at = max(at, cut)
                client._socket.settimeout(0.02)
                while client._socket.recv(4096):
                    pass
            assert plain_bytes(plain) == b""

        throw()
        plain.settle()
        assert plain_bytes(plain) == b""
        assert len(plain.connections) > connections  # so far some came; a busy machine dials for few in time
        assert sidecar.admin_get("/live")[0] == 200
        assert sidecar.resident_bytes() - before < GROWTH
        assert "failed" not in sidecar.stderr


def plain_bytes(plain: PlainUpstream) -> bytes:
    """Return what arrived that does not begin a TLS handshake, as every connection that goes out must."""
    return b"".join(c.received for c in plain.connections if not b"\x16\x03\x01".startswith(bytes(c.received[:3])))
