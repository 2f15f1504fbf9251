"""One id ties a request's denial, its line and its metric together; a line says who asked, of whom, in which trace.

Proves ARCHITECTURE's rule 7 (say why): who has one of them finds the others.
"""

from __future__ import annotations

import re
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proxy.core.who.clients import hash_password
from tests.e2e.app import client_hello, connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient, curl
from tests.e2e.http2 import speak
from tests.e2e.scripted import scripted_upstream
from tests.e2e.sidecar import ROOT, Decision, Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.waiting import wait_until

HOSTS = dict.fromkeys(("plain.example", "never.example", "inspected.example"), "127.0.0.1")
POLICY = """
    rules:
      - {name: plain, hosts: [plain.example], plain_http: allow}
      - {name: never, hosts: [never.example], plain_http: reject, https: reject}
      - {name: inspected, hosts: [inspected.example], https: inspect}
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
# Starts the command so that what is under way is looked at often.
HASTY = f"""
import sys
sys.path.append({str(ROOT)!r})
from proxy import timelimits
timelimits.UNDER_WAY_SECONDS, timelimits.LINE_SECONDS = 0.1, 0.5
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""


USERS = f"""
    clients:
      users: [{{name: ann, password_hash: "{hash_password("secret", bytes(16))}"}}]
"""


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with Sidecar(POLICY, tmp_path_factory.mktemp("ids"), authority=authority, hosts=HOSTS) as running:
        yield running


def exemplars(sidecar: Sidecar) -> dict[str, dict[str, str]]:
    """Return the labels of each series that has an exemplar, by the id that this has."""
    asked = urllib.request.Request(f"{sidecar.admin_url}/metrics", headers={"Accept": "application/openmetrics-text"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # untyped there
    samples = [sample for family in families for sample in family.samples if sample.exemplar is not None]
    return {sample.exemplar.labels["id"]: dict(sample.labels) for sample in samples if sample.exemplar is not None}


class TestOneId:
    def check(self, sidecar: Sidecar, instance: str, line: Decision) -> None:
        assert instance == f"urn:uuid:{line['id']}"
        assert uuid.UUID(line["id"]).version == 8
        labels = exemplars(sidecar)[line["id"]]
        assert (labels["reason"], labels["outcome"]) == (line["reason"], line["outcome"])

    def test_of_a_denied_request(self, sidecar: Sidecar) -> None:
        answer = curl("http://never.example/one", proxy=sidecar.proxy_url)
        self.check(sidecar, answer.json()["instance"], sidecar.wait_for_decision(lambda line: line["path"] == "/one"))

    def test_of_one_on_a_page(self, sidecar: Sidecar) -> None:
        answer = curl("-H", "Accept: text/html", "http://never.example/page", proxy=sidecar.proxy_url)
        line = sidecar.wait_for_decision(lambda line: line["path"] == "/page")
        found = re.search(r"id <code>([^<]+)</code>", answer.body.decode())
        assert found is not None
        self.check(sidecar, f"urn:uuid:{found[1]}", line)

    def test_of_a_denied_connect(self, sidecar: Sidecar) -> None:
        with RawClient(sidecar.address) as client:
            client.send(b"CONNECT never.example:443 HTTP/1.1\r\nHost: never.example:443\r\n\r\n")
            instance = client.read_response(method="CONNECT").json()["instance"]
        self.check(
            sidecar, instance, sidecar.wait_for_decision(lambda line: line["destination"] == "never.example:443")
        )

    def test_of_what_was_no_request(self, sidecar: Sidecar) -> None:
        with RawClient(sidecar.address) as client:
            client.send(b"GET http://plain.example/ HTTP/1.1\r\nHost : plain.example\r\n\r\n")
            instance = client.read_response().json()["instance"]
        self.check(sidecar, instance, sidecar.wait_for_decision(lambda line: line["reason"] == "bad_request"))

    def test_of_what_was_none_in_http2(self, sidecar: Sidecar, authority: Authority) -> None:
        with TlsUpstream(authority, "inspected.example") as upstream:
            client = speak(sidecar, f"inspected.example:{upstream.port}")
            fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "a b")]
            message = client.read(client.begin_raw(fields, last=True))
            client.close()
        instance = re.search(rb'"instance": "([^"]+)"', message.body)
        assert instance is not None
        told = instance[1].decode()
        self.check(sidecar, told, sidecar.wait_for_decision(lambda line: told.endswith(line["id"])))

    def test_no_two_are_the_same_and_a_good_end_needs_none(self, sidecar: Sidecar) -> None:
        with PlainUpstream() as upstream:
            for _ in range(3):
                assert curl(upstream.url(host="plain.example"), proxy=sidecar.proxy_url).status == 200
            to = f"plain.example:{upstream.port}"
            assert sidecar.wait_for_decision(lambda line: line["destination"] == to)
        ids = [line["id"] for line in sidecar.decisions()]
        assert len(set(ids)) == len(ids)
        assert "ok" not in {labels["outcome"] for labels in exemplars(sidecar).values()}


class TestWhoAndWhere:
    def test_a_trace_is_named_where_its_field_is_right_and_goes_on(self, sidecar: Sidecar) -> None:
        with PlainUpstream() as upstream:
            for path, value, expected in (("/right", PARENT, TRACE), ("/wrong", f"00-{'0' * 32}-1-1", None)):
                url = upstream.url(path, host="plain.example")
                assert curl("-H", f"traceparent: {value}", url, proxy=sidecar.proxy_url).status == 200
                line = sidecar.wait_for_decision(lambda line, path=path: line["path"] == path)  # type: ignore[misc]
                assert line["trace_id"] == expected
                assert upstream.requests[-1].headers.get("traceparent") == value

    def test_the_upstream_is_the_address_that_was_dialled(self, sidecar: Sidecar) -> None:
        with PlainUpstream() as upstream:
            assert curl(upstream.url("/where", host="plain.example"), proxy=sidecar.proxy_url).status == 200
            line = sidecar.wait_for_decision(lambda line: line["path"] == "/where")
            assert (line["upstream"], line["user"]) == (f"127.0.0.1:{upstream.port}", None)
        assert curl("http://never.example/nowhere", proxy=sidecar.proxy_url).status == 403
        assert sidecar.wait_for_decision(lambda line: line["path"] == "/nowhere")["upstream"] is None

    def test_the_user_is_named_also_inside_connect(self, authority: Authority, tmp_path: Path) -> None:
        policy = POLICY + USERS
        with (
            TlsUpstream(authority, "inspected.example") as upstream,
            Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar,
        ):
            proxy = sidecar.proxy_url.replace("http://", "http://ann:secret@")
            url = upstream.url("/inside", scheme="https", host="inspected.example")
            assert curl(url, url, proxy=proxy, ca_file=sidecar.ca_file).status == 200
            assert curl("http://never.example/ann", proxy=proxy).status == 403
            assert curl("http://never.example/wrong", proxy=proxy.replace("secret", "guess")).status == 407
            lines = sidecar.wait_for_decisions(4)
        users = [(line["path"], line["user"]) for line in lines]
        assert users == [("/inside", "ann"), ("/inside", "ann"), ("/ann", "ann"), ("/wrong", None)]


class TestOpenTunnels:
    """Their bytes and their lines come while they run, with the id of their last line."""

    @pytest.fixture
    def hasty(self, tmp_path: Path) -> Iterator[Sidecar]:
        policy = "defaults: {plain_http: allow}"
        with Sidecar(policy, tmp_path, command=[sys.executable, "-P", "-c", HASTY]) as running:
            yield running

    def lines_of(self, sidecar: Sidecar, authority: str) -> list[Decision]:
        return [line for line in sidecar.lines() if line["destination"] == authority]

    def check(
        self, sidecar: Sidecar, authority: str, kind: str, sent: int, received: int, end: Callable[[], None]
    ) -> None:
        """Check what is told of something that is open, while it is, and at its end."""
        wait_until(lambda: len(self.lines_of(sidecar, authority)) >= 3, seconds=20)
        wait_until(lambda: sidecar.metrics().value("overcoat_in_flight", kind=kind) == 1)
        value = sidecar.metrics().value
        assert value("overcoat_body_bytes_total", direction="sent") == sent
        assert value("overcoat_body_bytes_total", direction="received") == received
        assert sidecar.decisions() == []
        first, *others = self.lines_of(sidecar, authority)
        end()
        last = sidecar.wait_for_decision(lambda line: line["destination"] == authority)
        assert (first["event"], first["outcome"], first["bytes_sent"]) in (("opened", None, 0), ("opened", None, sent))
        for line in others:
            assert (line["event"], line["outcome"]) == ("running", None)
            assert (line["bytes_sent"], line["bytes_received"]) == (sent, received)
        assert "event" not in last
        assert (last["outcome"], last["bytes_sent"], last["bytes_received"]) == ("ok", sent, received)
        assert {line["id"] for line in (first, *others, last)} == {last["id"]}
        value = sidecar.metrics().value
        assert value("overcoat_body_bytes_total", direction="sent") == sent
        assert value("overcoat_body_bytes_total", direction="received") == received
        assert value("overcoat_requests_total") == 1
        wait_until(lambda: sidecar.metrics().value("overcoat_in_flight") == 0)

    def test_a_tunnel(self, hasty: Sidecar) -> None:
        with scripted_upstream("127.0.0.1", None) as far:
            client = connect(hasty, far.authority)
            server = far.accept()
            hello = client_hello()
            client.send(hello)
            assert server.read_exactly(len(hello)) == hello
            server.send(b"some")
            assert client.read_exactly(4) == b"some"

            def end() -> None:
                client.close()
                server.close()

            self.check(hasty, far.authority, "tunnel", len(hello), 4, end)

    def test_a_web_socket(self, hasty: Sidecar) -> None:
        with (
            scripted_upstream("127.0.0.1", None) as far,
            RawClient(hasty.address) as client,
        ):
            offer = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n"
            client.send(far.request("/", offer))
            server = far.accept()
            server.read_head()
            server.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nsome")
            client.read_until(b"some")
            client.send(b"hello")
            assert server.read_exactly(5) == b"hello"
            self.check(hasty, far.authority, "websocket", 5, 4, client.finish)
