"""How much work a request is, in steps of Python's interpreter: that does not depend on the machine, nor on what else
it does.

Rules of this module:

- A ceiling is some three per cent above what is needed. Who makes requests cheaper lowers it; who makes them dearer by
  that much has a reason, and says it.
- The ceilings are for one version of Python, since others have other steps; what is compared within one run is not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.http2 import speak
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

PROGRAM = Path(__file__).with_name("programs") / "counted.py"
STREAMS = 16  # at once
ROUNDS = 5
BODY = (
    b'{"id": "ord_2291384", "amount": 12995, "card": {"number": "4111111111111111", "cvv": "737", "expires": "2029"}, '
    b'"owner": {"name": "Ada Example", "ssn": "078-05-1120"}, "iban": "DE02120300000000202051", "note": "third floor"}'
)
OF_ONE_VERSION = pytest.mark.skipif(
    sys.version_info[:2] != (3, 13), reason="the ceilings are counted in steps of Python 3.13; others have other steps"
)


class Counted:
    """A sidecar whose steps are counted, and the work that is given to it.

    Attributes:
        waited: of the steps that were counted last, those of a request for which its upstream or the app waited.
    """

    def __init__(self, sidecar: Sidecar, upstream: TlsUpstream, file: Path) -> None:
        self.waited = 0.0
        self.sidecar = sidecar
        self.name = f"localhost:{upstream.port}"
        self._file = file

    def steps(self, work: Callable[[], object], count: int) -> float:
        """Return the steps of one of `count` requests, which `work` makes."""
        on, begun = self._file.with_name("steps.on"), self._file.with_name("steps.counts")
        for _ in range(2):  # what is kept from one request for the next is there by then
            work()
        on.touch()
        wait_until(begun.exists, "counting has begun")
        work()
        on.unlink()
        wait_until(self._file.exists, "the count is there")
        found, waited = map(int, self._file.read_text().split())
        self._file.unlink()
        self.waited = waited / count
        return found / count

    def get(self, client: RawClient, target: str, host: str, more: str = "") -> None:
        client.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n{more}\r\n".encode())
        assert client.read_response().status == 200

    def kept_open(self) -> float:
        """Return the steps of an upgraded request on an open connection."""
        with RawClient(self.sidecar.address) as client:
            count = STREAMS * ROUNDS

            def work() -> None:
                for _ in range(count):
                    self.get(client, "http://localhost/a", "localhost")

            return self.steps(work, count)

    def posted(self, host: str) -> float:
        """Return the steps of a POST to a host, on an open connection."""
        head = f"POST http://{host}/a HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        message = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
        with RawClient(self.sidecar.address) as client:
            count = 4 * STREAMS * ROUNDS  # as many as five stocks of what sealing makes in advance

            def work() -> None:
                for _ in range(count):
                    client.send(message)
                    assert client.read_response().status == 200

            return self.steps(work, count)

    def on_new_connections(self) -> float:
        """Return the steps of one for which the app connects anew."""

        def work() -> None:
            for _ in range(STREAMS):
                with RawClient(self.sidecar.address) as client:
                    self.get(client, "http://localhost/a", "localhost", "Connection: close\r\n")
                    assert client.read_to_end() == b""

        return self.steps(work, STREAMS)

    def inspected(self) -> float:
        """Return the steps of an inspected request on open connections, of which there are as many as streams."""
        clients = [connect(self.sidecar, self.name) for _ in range(STREAMS)]
        for client in clients:
            client.start_tls("localhost", self.sidecar.ca_file)
        head = f"GET /a HTTP/1.1\r\nHost: {self.name}\r\nAccept: */*\r\n\r\n".encode()

        def work() -> None:
            for _ in range(ROUNDS):
                for client in clients:
                    client.send(head)
                for client in clients:
                    assert client.read_response().status == 200

        return self.steps(work, STREAMS * ROUNDS)

    def in_streams(self) -> float:
        """Return the steps of an inspected request in HTTP/2."""
        client = speak(self.sidecar, self.name)
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", self.name), (":path", "/a")]

        def work() -> None:
            for _ in range(ROUNDS):
                streams = [client.begin_raw([*fields, ("accept", "*/*")], last=True) for _ in range(STREAMS)]
                assert {client.read(stream).status for stream in streams} == {200}

        return self.steps(work, STREAMS * ROUNDS)


@pytest.fixture(scope="module")
def counted(authority: Authority, sender: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    folder = tmp_path_factory.mktemp("counted")
    with TlsUpstream(authority, "localhost", "127.0.0.1") as upstream:
        # Without a key agreement: how many of these there are depends on time.
        policy = f"""
            keys: {{app: {{alg: A256KW, primary: {{kid: app, file: {sender.write_private(folder)}}}}}}}
            rules:
              - {{name: counted, hosts: [localhost], https_port: {upstream.port}, https: inspect}}
              - name: sealed
                hosts: [127.0.0.1]
                https_port: {upstream.port}
                request: [{{encrypt: ["$.card.number", "$.card.cvv", "$.owner.ssn", "$.iban"], key: app}}]
        """
        command = [sys.executable, "-P", str(PROGRAM), str(folder / "steps")]
        with Sidecar(policy, folder, authority=authority, command=command) as sidecar:
            yield Counted(sidecar, upstream, folder / "steps")


@OF_ONE_VERSION
def test_of_a_request_on_an_open_connection(counted: Counted) -> None:
    assert 3000 < counted.kept_open() < 5280


@OF_ONE_VERSION
def test_nobody_waits_for_what_can_be_done_after_a_write(counted: Counted) -> None:
    """The decision line, the counters, the pool: a third of the steps. After a pause, when the processor has other
    things at hand, each step takes four times as long.
    """
    counted.kept_open()
    assert 2000 < counted.waited < 3120


@OF_ONE_VERSION
def test_of_one_with_four_fields_to_be_sealed(counted: Counted) -> None:
    assert 3000 < counted.posted("127.0.0.1") < 8720


def test_sealing_four_fields_costs_half_of_all_else_at_most(counted: Counted) -> None:
    assert counted.posted("127.0.0.1") / counted.posted("localhost") < 1.5


@OF_ONE_VERSION
def test_of_one_on_a_new_connection(counted: Counted) -> None:
    # The least of three: in which order connections begin is chance, and so is what they share.
    assert 3000 < min(counted.on_new_connections() for _ in range(3)) < 8400


@OF_ONE_VERSION
def test_of_one_in_http2(counted: Counted) -> None:
    assert 3000 < counted.in_streams() < 6310


def test_http2_costs_little_more_than_http1(counted: Counted) -> None:
    """In steps; in processor time it costs less, since a connection of many streams needs fewer calls of the system."""
    assert counted.in_streams() / counted.inspected() < 1.25
