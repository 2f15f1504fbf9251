"""Which addresses are this process's own, however they are spelled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

from addons.exchange import Exchange
from addons.metrics import Metrics
from addons.sessions import Session
from proxy.core.destinations import Destination
from proxy.core.pins import Pin, PinSet
from proxy.core.rules.policy import HostPattern, Https, Listener, PlainHttp, Policy, Rule
from proxy.core.rules.trust import Trust
from proxy.disk.ca import LocalCa
from proxy.engine.accepting import Door
from proxy.engine.apps.http1 import AppHttp1
from proxy.engine.roots import NoRoots, find_roots, upstream_context
from proxy.engine.server import BindError, Engine, bind, is_same_machine
from proxy.engine.sockets import Reading
from proxy.engine.transport import SocketTransport
from proxy.engine.upstreams import dialling, opening


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("::1", "127.0.0.1", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("fe80::1%lo", "fe80::1", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("127.0.0.1", "192.0.2.7", False),
        ("192.0.2.7", "127.0.0.1", False),
    ],
)
def test_two_addresses_of_one_machine(one: str, other: str, same: bool) -> None:
    assert is_same_machine((one, 1), (other, 2)) is same


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    path = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def engine(policy: Policy, folder: Path) -> Engine:
    return Engine(
        policy, LocalCa.open(folder / "ca", datetime.now(UTC)), Metrics(CollectorRegistry()), lambda line: None
    )


def test_small_pieces_are_sent_at_once_both_ways() -> None:
    def sends_at_once(transport: asyncio.BaseTransport) -> bool:
        return bool(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async def check() -> None:
        loop = asyncio.get_running_loop()
        accepted: list[asyncio.BaseTransport] = []

        class Taking(Reading):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.append(transport)

        (((_, listening),),) = bind(Listener("127.0.0.1", 0), 1)
        listening.listen()
        door = Door(loop, listening, Taking)
        door.open()
        dialled = await dialling._try(loop, socket.AF_INET, listening.getsockname()[:2])
        ours = SocketTransport(loop, dialled, Reading())
        await asyncio.sleep(0.05)
        found = [sends_at_once(each) for each in (ours, *accepted)]
        door.close()
        for each in (ours, *accepted):
            each.abort()  # type: ignore[attr-defined]  # they are asyncio.Transport
        assert found == [True, True]

    asyncio.run(check())


def test_an_own_address_is_known_by_its_port_on_this_machine(roots: Path, tmp_path: Path) -> None:
    async def check() -> None:
        policy = Policy(listen=(Listener("127.0.0.1", 0),), trust=Trust(roots=roots))
        running = engine(policy, tmp_path)
        ((bound,),) = bind(policy.listen[0], 1)
        await running.listen([bound])
        port = bound.socket.getsockname()[1]
        running.guard(("127.0.0.1", 9464))
        for own in (port, 9464):
            assert running.is_own_address(("127.0.0.1", 5), ("127.0.0.1", own))
            assert running.is_own_address(("::1", 5), ("::1", own))
            assert running.is_own_address(("192.0.2.7", 5), ("192.0.2.7", own))  # a wildcard listener is there, too
            assert not running.is_own_address(("192.0.2.7", 5), ("192.0.2.8", own))
        assert not running.is_own_address(("127.0.0.1", 5), ("127.0.0.1", 9463 if port != 9463 else 9462))
        await running.drain()

    asyncio.run(check())


@pytest.mark.parametrize("count", [1, 3])
def test_a_listener_that_cannot_be_bound_is_named_in_one_line(count: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf"^cannot listen on forward://127\.0\.0\.1:{port}: [^\n]+$") as refused:
            bind(Listener("127.0.0.1", port), count)
    assert "; something else listens there, such as another sidecar: end it" in str(refused.value)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EADDRINUSE, "; something else listens there, such as another sidecar: end it, or take another port"),
        (
            errno.EADDRNOTAVAIL,
            "; this machine has no such address: 127.0.0.1 is its own, 0.0.0.0 means all that it has",
        ),
        (errno.EACCES, "; this user may not take so low a port: take one from 1024 on"),
        (errno.ENOBUFS, "no buffer space available"),
    ],
)
def test_what_helps_where_a_listener_cannot_be_bound_is_said(number: int, said: str) -> None:
    assert str(BindError("127.0.0.1:80", OSError(number, os.strerror(number)))).endswith(said)


def test_each_worker_gets_a_socket_of_its_own_for_each_address() -> None:
    shares = bind(Listener("127.0.0.1", 0), 3)
    assert len(shares) == 3
    bound = [place.socket for share in shares for place in share]
    assert len({sock.fileno() for sock in bound}) == 3
    assert len({sock.getsockname() for sock in bound}) == 1  # port 0 was chosen once
    for sock in bound:
        sock.close()


CANARY = "canary-4111"


@pytest.mark.parametrize("where", ["_dial", "eof_received"])
def test_what_raises_outside_hooks_ends_the_connection_and_is_logged_without_its_message(
    where: str, roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def boom(*_: object) -> None:
        raise RuntimeError(CANARY)

    async def check() -> None:
        running = engine(Policy(listen=(Listener("127.0.0.1", 0),), trust=Trust(roots=roots)), tmp_path)
        ((bound,),) = bind(Listener("127.0.0.1", 0), 1)
        await running.listen([bound])
        host, port = bound.socket.getsockname()
        if where == "_dial":
            monkeypatch.setattr(opening, "dial", boom)
        else:
            monkeypatch.setattr(AppHttp1, "eof", boom)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
        if where == "eof_received":
            writer.write_eof()
            await asyncio.sleep(0.1)
            writer.transport.abort()
        else:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
        while running.connections:
            await asyncio.sleep(0.01)
        await running.drain()

    asyncio.run(check())
    assert "RuntimeError in boom (test_server.py:" in caplog.text
    assert CANARY not in caplog.text


class TestRoots:
    def test_the_policys_file_is_the_one(self, roots: Path) -> None:
        assert find_roots(Trust(roots=roots)) == roots

    def test_a_named_file_is_the_one_even_if_it_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
        assert find_roots(Trust()) == tmp_path / "missing.pem"
        with pytest.raises(NoRoots, match=r"missing\.pem"):
            upstream_context(Trust())

    def test_without_one_it_is_the_systems_bundle(self, roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.setattr("proxy.engine.roots._SYSTEM_BUNDLES", (str(roots),))
        monkeypatch.setattr("ssl.get_default_verify_paths", lambda: _NoPaths)
        assert find_roots(Trust()) == roots

    def test_none_at_all_is_an_error_that_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        monkeypatch.setattr("proxy.engine.roots._SYSTEM_BUNDLES", ())
        monkeypatch.setattr("ssl.get_default_verify_paths", lambda: _NoPaths)
        with pytest.raises(NoRoots, match=r"trust\.roots"):
            find_roots(Trust())

    @pytest.mark.parametrize("content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
    def test_a_file_without_certificates_is_an_error(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text(content)
        with pytest.raises(NoRoots, match=r"empty\.pem holds no readable PEM certificates"):
            upstream_context(Trust(roots=tmp_path / "empty.pem"))

    @pytest.mark.parametrize("more", [0, 1])
    def test_one_that_is_too_large_is_an_error_and_none_that_was_read_in_part(
        self, roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
    ) -> None:
        large = tmp_path / "large.pem"
        large.write_bytes(roots.read_bytes() + b"\n" * 10)
        monkeypatch.setattr("proxy.engine.roots.MAX_ROOTS_BYTES", large.stat().st_size - more)
        with pytest.raises(NoRoots, match=r"large\.pem has more than") if more else contextlib.nullcontext():
            upstream_context(Trust(roots=large))


class _NoPaths:
    cafile = None


def test_what_is_open_ends_with_its_pins(tmp_path: Path, roots: Path) -> None:
    today = date(2026, 7, 1)
    hosts, pin = (HostPattern("exact", "api.example"),), (Pin("spki", bytes(32)),)

    async def why(last_day: date) -> str | None:
        rule = Rule("pay", hosts, PlainHttp.UPGRADE, Https.INSPECT, pins=PinSet(pin, last_day))
        policy = Policy(trust=Trust(roots), rules=(rule,))
        session = Session(policy, "127.0.0.1")
        session.unfinished.add(Exchange(policy, "127.0.0.1", "GET", asked=Destination("api.example", 443), rule=rule))
        return engine(policy, tmp_path)._outlived(session, today, is_due=False)

    assert asyncio.run(why(today)) is None
    assert asyncio.run(why(date(2026, 6, 30))) == "the pins of rule pay have ended"
