"""One decision line a request, whatever becomes of it; metrics that agree with the lines and stay bounded.

Proves ARCHITECTURE's rule 7 (say why) and the part of rule 6 that concerns paths: a query is never written.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.core.reasons import Reason
from tests.e2e import wire
from tests.e2e.app import Way, ask, client_hello, connect, decision_of, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.processes import children
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Decision, Metrics, Sidecar, SidecarFailed, labels_of, overcoat_command, series_of
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.waiting import wait_until

HOSTS = ("pay.example", "never.example", "pinned.example", "plain.example", "other.example")
NO_PIN = "sha256/" + "A" * 42 + "E="

POLICY = """
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{file: {pay}}}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: never, hosts: [never.example], plain_http: reject, https: reject}}
      - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["{pin}"], expires: 2099-12-31}}}}
      - {{name: plain, hosts: [plain.example], plain_http: allow}}
      - {{name: nohttps, hosts: [nohttps.example], plain_http: allow, https: reject}}
"""

LINE = {
    "id": str, "user": str | None, "trace_id": str | None, "upstream": str | None,
    "time": str, "client": str, "method": str, "destination": str | None, "path": str, "rule": str | None, "mode": str,
    "action": str, "outcome": str, "reason": str | None, "would_deny": bool, "tls": str | None,
    "key_exchange": str | None, "pin": str | None, "encrypted": int, "decrypted": int, "status": int | None,
    "bytes_sent": int, "bytes_received": int, "seconds": float,
}  # fmt: skip


class Zoo:
    """Every way that a request can end, each done once to one sidecar.

    Attributes:
        lines: the decision line of each, by its name.
        all_lines: every line until the sidecar had ended.
        metrics: the metrics before that.
    """

    def __init__(self, sidecar: Sidecar, authority: Authority, roots: Path) -> None:
        self.sidecar = sidecar
        self.authority = authority
        self.roots = roots
        self.lines: dict[str, Decision] = {}
        self.all_lines: list[Decision] = []
        self.metrics: Metrics
        self.upstream: TlsUpstream

    def visit(self) -> None:
        """Do all of it, and wait for each line before the next is caused."""
        ways = [name for name in dir(self) if name.startswith("do_")]
        for count, name in enumerate(ways, start=1):
            respond = getattr(self, name.replace("do_", "answer_"), None) or (lambda _: wire.response(200, b"{}"))
            with TlsUpstream(self.authority, *HOSTS, respond=respond) as self.upstream:
                getattr(self, name)()
                self.lines[name.removeprefix("do_")] = self.sidecar.wait_for_decisions(count)[-1]
        self.metrics = self.sidecar.metrics()

    def ask(self, host: str, path: str = "/a/b?secret=query", way: Way = Way.HTTP, body: bytes = b"") -> None:
        """Send a request, and ignore the answer."""
        ask(self.sidecar, self.upstream, host, path, way=way, body=body)

    def do_upgraded(self) -> None:
        self.ask("pay.example", body=b'{"ssn":1,"x":{"ssn":2}}')

    def do_inspected(self) -> None:
        self.ask("pay.example", way=Way.CONNECT, body=b'{"ssn":1}')

    def do_plain(self) -> None:
        with PlainUpstream(respond=lambda _: wire.response(204)) as plain:
            ask(self.sidecar, plain, "plain.example", method="GET", headers=())

    def do_tunnelled(self) -> None:
        with connect(self.sidecar, f"other.example:{self.upstream.port}") as client:
            client.start_tls("other.example", self.roots)
            for path in ("/1", "/2"):
                client.send(request(path, "other.example"))
                assert client.read_response().status == 200

    def do_tunnel_unused(self) -> None:
        with connect(self.sidecar, f"other.example:{self.upstream.port}"):
            pass

    def do_http_rejected(self) -> None:
        self.ask("never.example")

    def do_https_rejected(self) -> None:
        with RawClient(self.sidecar.address) as client:
            client.send(b"CONNECT never.example:443 HTTP/1.1\r\nHost: never.example:443\r\n\r\n")
            assert client.read_response().status == 403

    def do_https_rejected_inside(self) -> None:
        with (
            connect(self.sidecar, f"nohttps.example:{self.upstream.port}") as client,
            pytest.raises((ssl.SSLEOFError, ConnectionResetError)),
        ):
            client.start_tls("nohttps.example", self.roots)

    def do_not_json(self) -> None:
        self.ask("pay.example", body=b"ssn=078")

    def do_malformed(self) -> None:
        with RawClient(self.sidecar.address) as client:
            client.send(b"GET http://pay.example/?canary HTTP/1.1\r\nHost : pay.example\r\n\r\n")
            assert client.read_response().status == 400

    def do_not_for_a_proxy(self) -> None:
        with RawClient(self.sidecar.address) as client:
            client.send(b"GET /?canary HTTP/1.1\r\nHost: pay.example\r\n\r\n")
            assert client.read_response().status == 400

    def do_unreachable(self) -> None:
        self.upstream.close()
        self.ask("other.example")

    def do_tunnel_unreachable(self) -> None:
        self.upstream.close()
        with RawClient(self.sidecar.address) as client:
            authority = f"other.example:{self.upstream.port}"
            client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert client.read_response().status == 502

    def do_pin_mismatch(self) -> None:
        self.ask("pinned.example", way=Way.CONNECT)

    def do_upstream_died(self) -> None:
        self.ask("pay.example")

    @staticmethod
    def answer_upstream_died(_: RecordedRequest) -> bytes:
        raise ConnectionResetError

    def do_response_cut(self) -> None:
        with open_way(self.sidecar, "pay.example", self.upstream.port) as client:
            client.send(request(f"http://pay.example:{self.upstream.port}/", f"pay.example:{self.upstream.port}"))
            assert client.read_to_end().endswith(b"half")

    @staticmethod
    def answer_response_cut(_: RecordedRequest) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        raise ConnectionResetError

    def do_aborted_while_asking(self) -> None:
        with open_way(self.sidecar, "pay.example", self.upstream.port) as client:
            authority = f"pay.example:{self.upstream.port}"
            client.send(request(f"http://{authority}/", authority, body=b'{"ssn":"078"}')[:-5])

    def do_aborted_while_answered(self) -> None:
        with open_way(self.sidecar, "pay.example", self.upstream.port) as client:
            authority = f"pay.example:{self.upstream.port}"
            client.send(request(f"http://{authority}/", authority))
            client.read_until(b"half")

    @staticmethod
    def answer_aborted_while_answered(_: RecordedRequest) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\nhalf"
        for _piece in range(100):
            time.sleep(0.01)
            yield b"x" * 1000

    def do_ca_not_trusted(self) -> None:
        with (
            connect(self.sidecar, f"pay.example:{self.upstream.port}") as client,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            client.start_tls("pay.example", self.roots)

    def do_app_left_its_tls(self) -> None:
        with connect(self.sidecar, f"pay.example:{self.upstream.port}") as client:
            client.send(client_hello("pay.example"))
            client.read_exactly(10)  # and leaves what else has come: that makes a reset of its end

    def do_not_http(self) -> None:
        with connect(self.sidecar, f"pay.example:{self.upstream.port}") as client:
            client.send(b"SSH-2.0-OpenSSH_9.9\r\n")
            assert client.read_to_end() == b""

    def do_plain_inside_connect(self) -> None:
        with connect(self.sidecar, f"pay.example:{self.upstream.port}") as client:
            client.send(request("/a/b?secret=query", f"pay.example:{self.upstream.port}", body=b'{"ssn":1}'))
            assert client.read_response().status == 200


EXPECTED: dict[str, Decision] = {
    "upgraded": {"action": "upgrade", "status": 200, "rule": "pay", "encrypted": 2, "path": "/a/b", "tls": "TLSv1.3"},
    "inspected": {"action": "inspect", "status": 200, "rule": "pay", "encrypted": 1, "path": "/a/b"},
    "plain": {"action": "allow", "status": 204, "rule": "plain", "method": "GET", "tls": None},
    "tunnelled": {"action": "tunnel", "status": None, "rule": None, "method": "CONNECT", "path": ""},
    "tunnel_unused": {"action": "tunnel", "status": None, "bytes_sent": 0, "bytes_received": 0},
    "http_rejected": {"action": "deny", "reason": "plain_http_rejected", "status": 403, "path": "/a/b"},
    "https_rejected": {"action": "deny", "reason": "https_rejected", "status": 403, "method": "CONNECT"},
    "https_rejected_inside": {"action": "deny", "reason": "https_rejected", "status": None, "method": "CONNECT"},
    "not_json": {"action": "deny", "reason": "body_not_json", "status": 422, "encrypted": 0, "bytes_sent": 0},
    "malformed": {"action": "deny", "reason": "bad_request", "status": 400, "destination": None},
    "not_for_a_proxy": {"action": "deny", "reason": "bad_request", "status": 400, "destination": None},
    "unreachable": {"action": "upgrade", "outcome": "upstream_failed", "reason": "upstream_unreachable", "status": 502},
    "tunnel_unreachable": {"action": "tunnel", "outcome": "upstream_failed", "status": 502, "method": "CONNECT"},
    "pin_mismatch": {"action": "deny", "reason": "pin_mismatch", "status": 502, "pin": "mismatch", "rule": "pinned"},
    "upstream_died": {"action": "upgrade", "outcome": "upstream_failed", "reason": "upstream_failed", "status": 502},
    "response_cut": {
        "action": "upgrade",
        "outcome": "upstream_cut",
        "reason": "upstream_cut",
        "status": None,
        "rule": "pay",
        "encrypted": 0,
        "bytes_received": 4,
    },
    "aborted_while_asking": {"rule": "pay", "outcome": "app_left", "status": None, "encrypted": 0, "bytes_sent": 0},
    "aborted_while_answered": {"rule": "pay", "action": "upgrade", "outcome": "app_left"},
    "app_left_its_tls": {
        "action": "inspect",
        "outcome": "app_left",
        "reason": "app_tls_failed",
        "status": None,
        "method": "CONNECT",
        "rule": "pay",
    },
    "ca_not_trusted": {
        "action": "inspect",
        "outcome": "app_left",
        "reason": "app_tls_failed",
        "status": None,
        "method": "CONNECT",
        "rule": "pay",
    },
    "not_http": {"action": "deny", "reason": "not_http", "status": None, "method": "CONNECT"},
    "plain_inside_connect": {"action": "upgrade", "status": 200, "encrypted": 1, "path": "/a/b"},
}


@pytest.fixture(scope="module")
def zoo(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A sidecar's whole life, recorded."""
    folder = tmp_path_factory.mktemp("zoo")
    policy = POLICY.format(pay=Receiver("pay").write_public(folder), pin=NO_PIN)
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        zoo = Zoo(sidecar, authority, authority.write_pem(folder / "upstreams.pem"))
        with RawClient(sidecar.address) as idle:  # a connection without a request has no line
            idle.send(b"\r\n")
            zoo.visit()
        assert sidecar.stop() == 0
        zoo.all_lines = sidecar.decisions()
    return zoo


class TestLines:
    @pytest.mark.parametrize("name", EXPECTED)
    def test_a_request_has_a_line_that_tells_how_it_ended(self, zoo: Zoo, name: str) -> None:
        assert {key: zoo.lines[name][key] for key in EXPECTED[name]} == EXPECTED[name]

    def test_it_is_the_only_one(self, zoo: Zoo) -> None:
        assert zoo.lines.keys() == EXPECTED.keys()
        assert len(zoo.all_lines) == len(EXPECTED)

    def test_every_line_has_every_field_of_its_type(self, zoo: Zoo) -> None:
        for line in zoo.all_lines:
            assert line.keys() - {"detail", "fields", "field_failures", "pins_seen", "pins_wanted"} == LINE.keys()
            assert sum(line.get("fields", {}).values()) == line["encrypted"] + line["decrypted"]
            assert line.get("fields") != {}
            assert [name for name, kind in LINE.items() if not isinstance(line[name], kind)] == []
            assert line["client"] == "127.0.0.1"
            assert abs(datetime.fromisoformat(line["time"]) - datetime.now(UTC)).total_seconds() < 300
            assert 0 <= line["seconds"] < 10

    def test_a_denial_tells_its_detail(self, zoo: Zoo) -> None:
        assert all(line["detail"] for line in zoo.all_lines if line["outcome"] != "ok")
        assert "local CA" in zoo.lines["ca_not_trusted"]["detail"]

    @pytest.mark.parametrize(
        ("name", "detail"),
        [
            ("response_cut", "the upstream closed the connection before its response was whole"),
            ("aborted_while_asking", "the app ended it before the response was complete"),
            ("aborted_while_answered", "the app ended it before the response was complete"),
        ],
    )
    def test_what_did_not_come_to_its_end_has_no_status_and_says_whose_doing_it_was(
        self, zoo: Zoo, name: str, detail: str
    ) -> None:
        assert (zoo.lines[name]["status"], zoo.lines[name]["detail"]) == (None, detail)

    def test_no_line_has_a_query(self, zoo: Zoo) -> None:
        assert "?" not in "".join(line["path"] for line in zoo.all_lines)
        assert not re.search("canary|secret", zoo.sidecar.stdout + zoo.sidecar.stderr + zoo.metrics.text)

    @pytest.mark.parametrize(("size", "shown"), [(2048, "x" * 2047), (63_000, "x" * 2047 + "…")])
    def test_a_long_path_is_cut(self, sidecar: Sidecar, size: int, shown: str) -> None:
        target = f"http://10.0.0.1:{size}"
        with RawClient(sidecar.address) as client:
            client.send(request(f"{target}/{'x' * (size - 1)}?secret", target.removeprefix("http://")))
            assert client.read_response().status == 403
        line = sidecar.wait_for_decision(lambda line: line["destination"] == target.removeprefix("http://"))
        assert line["path"] == f"/{shown}"

    def test_a_tunnel_that_the_app_closes_is_over_at_once(
        self, sidecar: Sidecar, authority: Authority, roots: Path
    ) -> None:
        with TlsUpstream(authority, "other.example") as upstream:
            with connect(sidecar, f"other.example:{upstream.port}") as client:
                client.start_tls("other.example", roots)
                client.send(request("/", "other.example"))
                assert client.read_response().status == 200  # with unread bytes, its end would be a reset
            line = decision_of(sidecar, upstream)
        assert (line["action"], line["reason"]) == ("tunnel", None)
        assert line["seconds"] < 0.5

    def test_bytes_are_those_of_the_bodies_as_they_went_and_came(self, zoo: Zoo) -> None:
        assert zoo.lines["upgraded"]["bytes_sent"] > 600  # two tokens
        assert zoo.lines["upgraded"]["bytes_received"] == 2
        assert zoo.lines["tunnelled"]["bytes_sent"] > 500  # TLS and all
        assert zoo.lines["tunnelled"]["bytes_received"] > 500


class TestMetrics:
    def test_requests_are_counted_by_rule_and_end_as_the_lines_say(self, zoo: Zoo) -> None:
        assert series_of(zoo.metrics) == Counter(labels_of(line) for line in zoo.all_lines)

    def test_an_app_that_does_not_trust_the_local_ca_has_a_reason_of_its_own(self, zoo: Zoo) -> None:
        refusals = zoo.metrics.value("overcoat_requests_total", rule="pay", outcome="app_left", reason="app_tls_failed")
        assert refusals == 2  # one in words, and one that only left

    def test_fields_and_bytes_and_times_and_pins_agree_with_the_lines(self, zoo: Zoo) -> None:
        value = zoo.metrics.value
        for rule in ("pay", "plain", "pinned", "-"):
            of_rule = [line for line in zoo.all_lines if (line["rule"] or "-") == rule]
            assert value("overcoat_request_seconds_count", rule=rule) == len(of_rule)
            for direction in ("sent", "received"):
                total = sum(line[f"bytes_{direction}"] for line in of_rule)
                assert value("overcoat_body_bytes_total", rule=rule, direction=direction) == total
        assert value("overcoat_fields_total", rule="pay", entry="request[0]", direction="encrypted") == 4
        failed = [line for line in zoo.all_lines if line.get("field_failures")]
        assert [line["field_failures"] for line in failed] == [{"request[0]": {"body_not_json": 1}}]
        assert value("overcoat_field_failures_total", entry="request[0]", reason="body_not_json") == 1
        assert value("overcoat_field_failures_total") == 1
        assert value("overcoat_fields_total") == 4
        assert value("overcoat_pin_checks_total", rule="pinned", result="mismatch") == 1
        assert value("overcoat_pin_checks_total") == 1
        assert value("overcoat_hook_failures_total") == 0
        assert value("overcoat_decision_lines_lost_total") == 0
        end_of_day = datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
        assert value("overcoat_pins_expire_timestamp_seconds", rule="pinned") == end_of_day

    def test_open_connections_are_counted(self, sidecar: Sidecar) -> None:
        def count() -> float:
            return sidecar.metrics().value("overcoat_client_connections")

        wait_until(lambda: count() == 0)
        with RawClient(sidecar.address), RawClient(sidecar.address):
            wait_until(lambda: count() == 2)
        wait_until(lambda: count() == 0)

    def test_nothing_that_a_client_chooses_becomes_a_label(self, sidecar: Sidecar) -> None:
        def send(number: int) -> None:
            host = f"h{number}.example:{1000 + number}"
            with RawClient(sidecar.address) as client:
                head = f"M{number} http://{host}/p{number}?q={number} HTTP/1.1\r\nHost: {host}\r\nX{number}: y\r\n\r\n"
                client.send(head.encode())
                assert client.read_response().status == 502  # no such name

        def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
            return {(name, tuple(sorted(labels.items()))) for name, labels, _ in sidecar.metrics().samples}

        send(0)
        before = series()
        for number in range(1, 201):
            send(number)
        assert series() == before
        assert sidecar.metrics().value("overcoat_requests_total", reason="upstream_unreachable") == 201


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar with the built-in defaults."""
    hosts = {"other.example": "127.0.0.1"}
    with Sidecar("", tmp_path_factory.mktemp("defaults"), authority=authority, hosts=hosts) as sidecar:
        yield sidecar


class TestSeries:
    """What is counted is there at 0 before it happens, or Prometheus sees no increase when it does."""

    def policy(self, workers: int, *names: str) -> str:
        """Return a policy with a pinned rule of each name."""
        rules = [f'  - {{name: {name}, hosts: [{name}.example], pins: {{any_of: ["{NO_PIN}"]}}}}' for name in names]
        return "\n".join([f"workers: {workers}", "rules:", *rules])

    def denials(self, sidecar: Sidecar, rule: str) -> dict[str, float]:
        """Return how often a rule's requests ended for each reason; "-" are those without one."""
        metrics = sidecar.metrics()
        found = [has["reason"] for has in metrics.labels("overcoat_requests_total") if has["rule"] == rule]
        return {reason: metrics.value("overcoat_requests_total", rule=rule, reason=reason) for reason in found}

    @pytest.mark.parametrize("workers", [1, 2])
    def test_it_is_from_the_start_and_after_each_reload_and_stays_when_workers_are_replaced(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path, workers: int
    ) -> None:
        upstream = tls_upstream("b.example")
        nothing = dict.fromkeys(["-", *(reason.code for reason in Reason)], 0.0)
        with Sidecar(
            self.policy(workers, "a"), tmp_path, authority=authority, hosts={"b.example": "127.0.0.1"}
        ) as sidecar:
            assert self.denials(sidecar, "a") == self.denials(sidecar, "-") == nothing
            assert self.denials(sidecar, "b") == {}
            reload(sidecar, self.policy(workers, "a", "b"))
            assert self.denials(sidecar, "b") == nothing
            ask(sidecar, upstream, "b.example")
            sidecar.wait_for_decisions(1)
            once = {**nothing, "pin_mismatch": 1}
            assert self.denials(sidecar, "b") == once
            if workers > 1:
                for child in children(sidecar.pid):
                    os.kill(child, signal.SIGKILL)
                wait_until(lambda: self.is_ready(sidecar), seconds=20)
                assert self.denials(sidecar, "b") == once

    def is_ready(self, sidecar: Sidecar) -> bool:
        try:
            return sidecar.run("healthcheck", "--timeout", "30") == "ready\n"
        except SidecarFailed:
            return False


class TestAdmin:
    @pytest.mark.parametrize(
        ("path", "status"), [("/live", 200), ("/ready", 200), ("/", 200), ("/nothing", 404), ("/metrics/x", 404)]
    )
    def test_live_and_ready_are_answered(self, sidecar: Sidecar, path: str, status: int) -> None:
        assert sidecar.admin_get(path)[0] == status

    def test_it_takes_get_and_head_only(self, sidecar: Sidecar) -> None:
        host, _, port = sidecar.admin_url.removeprefix("http://").rpartition(":")
        for method, status in (("POST", 405), ("DELETE", 405), ("HEAD", 200)):
            with RawClient((host, int(port))) as client:
                client.send(f"{method} /ready HTTP/1.0\r\n\r\n".encode())
                assert client.read_response(method=method).status == status


class TestStandardOutput:
    HOSTS = {"other.example": "127.0.0.1"}  # noqa: RUF012  # it is never changed

    def serve(self, authority: Authority, folder: Path, redirection: str, deadline: float = 30.0) -> Sidecar:
        """Return a sidecar whose standard output is redirected by a shell."""
        command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *overcoat_command(self.HOSTS)]
        return Sidecar("", folder, authority=authority, command=command, deadline=deadline)

    def requests(self, sidecar: Sidecar, upstream: TlsUpstream, count: int) -> None:
        """Send requests on one connection; all must be answered."""
        authority = f"other.example:{upstream.port}"
        with RawClient(sidecar.address) as client:
            for _ in range(count):
                client.send(request(f"http://{authority}/", authority, body=b"{}"))
                assert client.read_response().status == 200

    def lost(self, sidecar: Sidecar, count: int) -> None:
        """Wait until this many lines are counted as lost."""
        wait_until(lambda: sidecar.metrics().value("overcoat_decision_lines_lost_total") == count)

    def test_requests_go_on_where_it_is_closed_and_the_lost_lines_are_counted(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
    ) -> None:
        upstream = tls_upstream("other.example")
        with self.serve(authority, tmp_path, ">&-") as sidecar:
            self.requests(sidecar, upstream, 5)
            self.lost(sidecar, 5)
            assert sidecar.metrics().value("overcoat_hook_failures_total") == 0

    def test_requests_go_on_where_its_reader_is_gone(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
    ) -> None:
        upstream = tls_upstream("other.example")
        fifo = tmp_path / "lines"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        with self.serve(authority, tmp_path, f'>"{fifo}"') as sidecar:
            os.close(reader)
            self.requests(sidecar, upstream, 5)
            self.lost(sidecar, 5)

    def test_requests_go_on_where_nobody_reads_and_a_late_reader_misses_nothing(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
    ) -> None:
        upstream = tls_upstream("other.example")
        fifo = tmp_path / "lines"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)  # so that it is full soon
        with self.serve(authority, tmp_path, f'>"{fifo}"') as sidecar:
            self.requests(sidecar, upstream, 300)
            self.lost(sidecar, 0)
            got = b""
            end = time.monotonic() + 5
            while got.count(b"\n") < 300 and time.monotonic() < end:
                try:
                    got += os.read(reader, 65536)
                except BlockingIOError:
                    time.sleep(0.01)
            assert got.count(b"\n") == 300
        os.close(reader)

    def test_a_reader_that_never_reads_does_not_hold_up_the_end(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
    ) -> None:
        upstream = tls_upstream("other.example")
        fifo = tmp_path / "lines"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        with self.serve(authority, tmp_path, f'>"{fifo}"') as sidecar:
            self.requests(sidecar, upstream, 300)  # more than 64 KiB, which a pipe holds
            start = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - start < 10
        left = 300 - os.read(reader, 1024 * 1024).count(b"\n")
        assert left > 0
        assert f"decision lines that were lost by the end: {left}" in sidecar.stderr
        os.close(reader)
