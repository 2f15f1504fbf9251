"""The admin listener, asked over a socket: three paths, two methods, and nothing that a request contained."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, Metric

import proxy.processes.admin
from proxy.core.rules.policy import Policy
from proxy.processes.admin import MAX_FIELDS, MAX_OPEN, MAX_REQUEST_LINE, Admin, admin_app, bind_admin, probes_app
from proxy.processes.status import Sidecar
from tests.waiting import wait_until


@dataclass
class Running:
    admin: Admin
    ready: list[bool] = field(default_factory=lambda: [True])

    def ask(self, request: bytes) -> bytes:
        with socket.create_connection(self.admin.address, 5) as client:
            client.sendall(request)
            answer = b""
            while data := client.recv(65536):
                answer += data
        return answer

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes, bytes]:
        """Return the status, the head and the body of the answer."""
        head, _, body = self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), head, body


def told(registry: CollectorRegistry, is_ready: Callable[[], bool] = lambda: True) -> Sidecar:
    """Return a sidecar to tell about."""
    return Sidecar("1.2.3", 1, 0.0, registry, is_ready, Policy, lambda: 0.0, [])


@pytest.fixture
def running() -> Iterator[Running]:
    registry = CollectorRegistry()
    Counter("overcoat_examples", "An example.", registry=registry).inc(3)
    ready = [True]
    admin = Admin(bind_admin("127.0.0.1", 0), admin_app(told(registry, lambda: ready[0])))
    yield Running(admin, ready)
    admin.close()


class TestPaths:
    def test_metrics_are_prometheus_text(self, running: Running) -> None:
        status, head, body = running.get("/metrics")
        assert status == 200
        assert b"overcoat_examples_total 3.0" in body
        assert b"text/plain" in head

    def test_live_is_200_while_it_serves(self, running: Running) -> None:
        assert running.get("/live")[::2] == (200, b"live\n")

    def test_ready_says_what_it_is_told(self, running: Running) -> None:
        assert running.get("/ready")[::2] == (200, b"ready\n")
        running.ready[0] = False
        assert running.get("/ready")[::2] == (503, b"not ready\n")
        assert running.get("/live")[0] == 200

    def test_a_query_does_not_matter(self, running: Running) -> None:
        assert running.get("/ready?verbose=1")[0] == 200

    @pytest.mark.parametrize("path", ["/status", "/metrics/", "/Metrics", "/policy/../metrics", "/debug", "/live%00"])
    def test_any_other_path_is_404_and_is_not_repeated(self, running: Running, path: str) -> None:
        status, _, body = running.get(path)
        assert status == 404
        assert path.encode() + b" " not in body

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
    @pytest.mark.parametrize("path", ["/metrics", "/live"])
    def test_any_other_method_is_405(self, running: Running, method: str, path: str) -> None:
        assert running.get(path, method)[0] == 405

    @pytest.mark.parametrize("path", ["/metrics", "/live", "/ready", "/other"])
    def test_head_is_get_without_a_body(self, running: Running, path: str) -> None:
        status, _, body = running.get(path, "HEAD")
        assert status == running.get(path)[0]
        assert body == b""

    def test_answers_are_not_to_be_kept(self, running: Running) -> None:
        assert b"Cache-Control: no-store" in running.get("/ready")[1]


class TestBadScrapers:
    def test_an_accept_field_that_cannot_be_read_is_none(
        self, running: Running, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for accept in (b"application/openmetrics-text; version=abc", b"application/openmetrics-text; version=1.x"):
            answer = running.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: %s\r\n\r\n" % accept)
            assert answer.startswith(b"HTTP/1.0 200 ")
            assert b"overcoat_examples_total 3.0" in answer
        assert capfd.readouterr().err == ""

    def test_one_that_the_answer_to_fails_costs_a_line_and_no_traceback(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails() -> bool:
            raise RuntimeError("what nobody may read")

        admin = Admin(bind_admin("127.0.0.1", 0), probes_app(fails))
        with caplog.at_level(logging.ERROR):
            assert Running(admin).get("/ready")[0] == 500
            admin.close()
        assert "could not be answered: RuntimeError in fails" in caplog.text
        assert capfd.readouterr().err == ""
        assert "nobody may read" not in caplog.text

    def test_one_that_reads_nothing_costs_a_line_and_no_traceback(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(proxy.processes.admin._Handler, "timeout", 0.2)
        registry = CollectorRegistry()
        for number in range(40):
            Counter(f"overcoat_{number}", "x" * 1_000_000, registry=registry)
        admin = Admin(bind_admin("127.0.0.1", 0), admin_app(told(registry)))
        with caplog.at_level(logging.INFO), socket.create_connection(admin.address, 5) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: "ended early: TimeoutError" in caplog.text)
        admin.close()
        assert "ended early: TimeoutError" in caplog.text
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(("spare", "status"), [(2, b"200"), (-1, b"431")])
    def test_fields_are_read_up_to_a_limit(self, running: Running, spare: int, status: bytes) -> None:
        """The probes listener answers strangers: http.server alone takes 6 MiB of each."""
        first = b"X: " + b"a" * 40_000 + b"\r\n"
        second = b"Y: " + b"a" * (MAX_FIELDS - spare - len(first) - 5) + b"\r\n"
        assert running.ask(b"GET /live HTTP/1.1\r\n" + first + second + b"\r\n").split(b" ")[1] == status

    def test_a_request_line_without_end_is_refused(self, running: Running) -> None:
        assert running.ask(b"GET /%s" % (b"a" * (MAX_REQUEST_LINE - 4))).startswith(b"HTTP/1.0 414 ")

    @pytest.mark.parametrize("request_bytes", [b"\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"G" * 70_000])
    def test_what_is_no_request_is_answered_or_closed_and_the_next_one_works(
        self, running: Running, request_bytes: bytes
    ) -> None:
        assert not running.ask(request_bytes + b"\r\n\r\n").startswith(b"HTTP/1.0 200")
        assert running.get("/live")[0] == 200

    @pytest.mark.parametrize("line", [b"GET 4711 x HTTP/1.1", b"GET / HTTP/4711.4711", b"4711", b"GET / 4711"])
    def test_nothing_of_what_is_no_request_is_repeated(self, running: Running, line: bytes) -> None:
        assert b"4711" not in running.ask(line + b"\r\n\r\n")

    def test_one_that_goes_away_costs_a_line_and_no_traceback(
        self, running: Running, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with caplog.at_level(logging.INFO, "overcoat"):
            with socket.create_connection(running.admin.address, 5) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(b"GET /met")
            wait_until(lambda: caplog.records)
        assert [record.getMessage() for record in caplog.records] == [
            "a request to the admin listener ended early: ConnectionResetError"
        ]
        assert "Traceback" not in capfd.readouterr().err

    def test_one_that_says_nothing_is_hung_up_on(
        self, running: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(proxy.processes.admin._Handler, "timeout", 0.1)
        with socket.create_connection(running.admin.address, 5) as client:
            assert running.get("/live")[0] == 200  # it holds up nobody else
            assert client.recv(1) == b""
        assert "Traceback" not in capfd.readouterr().err


def test_it_listens_on_ipv6_as_well() -> None:
    try:
        admin = Admin(bind_admin("::1", 0), probes_app(lambda: True))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    try:
        with urllib.request.urlopen(f"http://[::1]:{admin.address[1]}/live", timeout=5) as answer:
            assert answer.status == 200
    finally:
        admin.close()


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        bind_admin("127.0.0.1", taken.getsockname()[1])


def test_closed_it_takes_no_more_connections(running: Running) -> None:
    address = running.admin.address
    running.admin.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 1)
    running.admin = Admin(bind_admin("127.0.0.1", 0), probes_app(lambda: True))


def descriptors_left(count: int) -> None:
    """Let this process open so many more files, and no more."""
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + count, hard))


@pytest.fixture
def limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("limits")
def test_it_answers_where_no_descriptor_is_left(running: Running) -> None:
    clients = [socket.socket() for _ in range(3)]  # theirs are taken before
    descriptors_left(0)
    with pytest.raises(OSError, match="Too many open files"):
        os.open(os.devnull, os.O_RDONLY)
    for client in clients:
        with client:
            client.settimeout(5)
            client.connect(running.admin.address)
            client.sendall(b"GET /live HTTP/1.0\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.0 200 OK")
            while client.recv(4096):
                pass
        time.sleep(0.3)  # the descriptor is kept again: this client has just given its own back


@pytest.mark.usefixtures("limits")
def test_and_where_that_one_is_in_use_who_asks_waits_and_nothing_spins(running: Running) -> None:
    clients = [socket.socket() for _ in range(2)]
    descriptors_left(0)
    first, second = clients
    with first, second:
        for client in clients:
            client.settimeout(5)
            client.connect(running.admin.address)
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2
        first.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        while first.recv(4096):
            pass
        second.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        assert second.recv(4096).startswith(b"HTTP/1.0 200 OK")


def test_of_many_connections_the_oldest_go(running: Running) -> None:
    with contextlib.ExitStack() as closing:
        idle = [closing.enter_context(socket.create_connection(running.admin.address, 5)) for _ in range(MAX_OPEN)]
        time.sleep(0.3)
        assert running.get("/live")[0] == 200
        idle[0].settimeout(2)
        assert idle[0].recv(1) == b""
        idle[-1].sendall(b"GET /live HTTP/1.0\r\n\r\n")
        assert idle[-1].recv(4096).startswith(b"HTTP/1.0 200 OK")


class Making:
    """A collector whose metrics take as long to make as a test wants.

    Attributes:
        text: what they say of themselves.
        is_free: once it is set, they are made.
        now: how many are being made.
        most: how many were at once.
    """

    def __init__(self) -> None:
        self.text = "An example."
        self.is_free = threading.Event()
        self.now = self.most = 0
        self._guard = threading.Lock()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        with self._guard:
            self.now += 1
            self.most = max(self.most, self.now)
        self.is_free.wait(10)
        with self._guard:
            self.now -= 1
        yield CounterMetricFamily("overcoat_made", self.text, 4711)


@pytest.fixture
def making() -> Iterator[tuple[Running, Making]]:
    registry, slow = CollectorRegistry(), Making()
    registry.register(slow)
    admin = Admin(bind_admin("127.0.0.1", 0), admin_app(told(registry)))
    yield Running(admin), slow
    slow.is_free.set()
    admin.close()


def answering() -> int:
    """Return how many threads answer requests."""
    return sum("process_request_thread" in each.name for each in threading.enumerate())


class TestManyScrapers:
    """All threads that make metrics take turns with the one that serves apps: sixteen of them made it twenty times as
    slow, and with hundreds of rules a thousand times.
    """

    def test_one_is_answered_after_the_other_and_probes_at_once(self, making: tuple[Running, Making]) -> None:
        running, slow = making
        with contextlib.ExitStack() as closing:
            waiting = [closing.enter_context(socket.create_connection(running.admin.address, 5)) for _ in range(4)]
            for each in waiting:
                each.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: slow.now and answering() == 4)
            assert running.get("/live")[0] == 200
            slow.is_free.set()
            for each in waiting:
                answer = b""
                while data := each.recv(65536):
                    answer += data
                assert b"overcoat_made_total 4711" in answer
        assert slow.most == 1

    def test_so_many_wait_and_no_more(self, making: tuple[Running, Making]) -> None:
        running, slow = making
        with contextlib.ExitStack() as closing:
            for _ in range(4 * MAX_OPEN):
                client = closing.enter_context(socket.create_connection(running.admin.address, 5))
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: slow.now and answering() <= MAX_OPEN + 1)
            assert running.get("/live")[0] == 200
        slow.is_free.set()
        wait_until(lambda: answering() == 0)
        assert slow.most == 1

    def test_who_reads_slowly_holds_up_no_other(self, making: tuple[Running, Making]) -> None:
        running, slow = making
        slow.text = "too much for all buffers on its way " * 500_000
        slow.is_free.set()
        with socket.create_connection(running.admin.address, 5) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: slow.most == 1 and slow.now == 0)
            assert running.get("/metrics")[0] == 200
            assert answering() == 1
