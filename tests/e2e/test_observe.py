"""Observe mode changes nothing and denies nothing, and says of each request what enforcing would have done.

Proves ARCHITECTURE's rule 7 (say why) for a policy that is being tried out: the same requests are sent to an enforcing
twin of the same policy, and what the observing one announced is what the enforcing one does.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.core.http.heads import MAX_HEAD_BYTES
from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import JSON, Fields, ask, connect, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import Accepted, RawClient, send_until_blocked
from tests.e2e.http2 import Http2Client
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Decision, Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.waiting import wait_until

HOSTS = ("pay.example", "old.example", "no.example", "pinned.example", "opened.example", "other.example")
NO_PIN = "sha256/" + "A" * 42 + "E="

POLICY = """
    mode: {mode}
    limits: {{held_body: 2048}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{file: {pay}}}}}
      old: {{alg: ECDH-ES+A256KW, primary: {{file: {pay}, not_after: {yesterday}}}}}
      app: {{alg: A256KW, primary: {{file: {app}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: old, hosts: [old.example], request: [{{encrypt: ["$..ssn"], key: old}}]}}
      - {{name: never, hosts: [no.example], plain_http: reject, https: reject}}
      - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["{pin}"]}}}}
      - {{name: opened, hosts: [opened.example], response: [{{decrypt: ["$.card"], key: app}}]}}
"""

MakePlain = Callable[..., PlainUpstream]


@dataclass(frozen=True)
class Twins:
    """Two sidecars with one policy, and who may open what."""

    observing: Sidecar
    enforcing: Sidecar
    app: Receiver


@pytest.fixture(scope="module")
def twins(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """Both modes of the same policy."""
    pay, app = Receiver("pay"), Receiver("app", Alg.A256KW)
    sidecars = []
    for mode in ("observe", "enforce"):
        folder = tmp_path_factory.mktemp(mode)
        policy = POLICY.format(
            mode=mode,
            pin=NO_PIN,
            pay=pay.write_public(folder),
            app=app.write_private(folder),
            yesterday=(datetime.now(UTC) - timedelta(days=1)).date(),
        )
        sidecars.append(Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")))
    with sidecars[0] as observing, sidecars[1] as enforcing:
        yield Twins(observing, enforcing, app)


@pytest.fixture
def plain() -> Iterator[MakePlain]:
    """Makes a plain upstream: what an app without the sidecar would have talked to."""
    made = []

    def make(**options: object) -> PlainUpstream:
        made.append(fresh(lambda: PlainUpstream(**options)))  # type: ignore[arg-type]  # passed on
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


def assert_observed(line: Decision, **expected: object) -> None:
    """Check a decision line of observe mode, and that nothing was done."""
    assert line["mode"] == "observe"
    assert line["action"] in ("allow", "tunnel")
    assert line["encrypted"] == line["decrypted"] == 0
    assert {name: line[name] for name in expected} == expected


class TestPlainHttp:
    @pytest.mark.parametrize(
        ("host", "body", "expected"),
        [
            ("other.example", b"anything", {"would": "upgrade", "would_deny": False, "reason": None, "rule": None}),
            ("pay.example", b'{"ssn":1,"a":{"ssn":2}}', {"would": "upgrade", "would_deny": False, "would_encrypt": 2}),
            (
                "no.example",
                b"{}",
                {"would": "deny", "would_deny": True, "reason": "plain_http_rejected", "rule": "never"},
            ),
        ],
    )
    def test_it_stays_plain_and_the_line_says_what_would_have_been(
        self, twins: Twins, plain: MakePlain, host: str, body: bytes, expected: dict[str, object]
    ) -> None:
        upstream = plain()
        answer = ask(twins.observing, upstream, host, "/v1?q=1", body=body)
        assert answer.status == 200
        # What an app without a proxy would have sent, byte for byte.
        assert upstream.received == request("/v1?q=1", f"{host}:{upstream.port}", body=body)
        assert_observed(decision_of(twins.observing, upstream), action="allow", status=200, **expected)

    def test_a_chunked_body_passes_in_its_own_pieces_and_before_it_is_whole(
        self, twins: Twins, plain: MakePlain
    ) -> None:
        upstream = plain()
        authority = f"pay.example:{upstream.port}"
        with open_way(twins.observing, "pay.example", upstream.port) as client:
            whole = request(f"http://{authority}/", authority, chunks=[b'{"ssn"', b":1}"])
            client.send(whole[:-12])
            upstream.wait_for_bytes(b'{"ssn"')
            client.send(whole[-12:])
            assert client.read_response().status == 200
        assert upstream.received == request("/", authority, chunks=[b'{"ssn"', b":1}"])
        assert_observed(decision_of(twins.observing, upstream), would_encrypt=1)


REFUSED: dict[str, tuple[str, bytes, Fields]] = {
    "body_not_json": ("pay.example", b"ssn=078", JSON),
    "encoding_unsupported": ("pay.example", b"{}", (("Content-Encoding", "compress"),)),
    "body_too_large": ("pay.example", gzip.compress(b'{"ssn":1}' + b" " * 3000), (("Content-Encoding", "gzip"),)),
    "signed_body": ("pay.example", b'{"ssn":1}', (("Content-Digest", "sha-256=:AA==:"),)),
    "key_unavailable": ("old.example", b'{"ssn":1}', JSON),
    "host_mismatch": ("pay.example", b'{"ssn":1}', JSON),
}


class TestDenials:
    @pytest.mark.parametrize("reason", REFUSED)
    def test_what_enforcing_denies_passes_with_that_reason_in_its_line(
        self, twins: Twins, plain: MakePlain, tls_upstream: Callable[..., TlsUpstream], reason: str
    ) -> None:
        host, body, headers = REFUSED[reason]

        def send(sidecar: Sidecar, upstream: TlsUpstream | PlainUpstream) -> tuple[int, bytes]:
            authority = f"{host}:{upstream.port}"
            named = f"other.example:{upstream.port}" if reason == "host_mismatch" else authority
            with RawClient(sidecar.address) as client:
                client.send(request(f"http://{authority}/v1", named, headers=headers, body=body))
                return client.read_response().status, request("/v1", named, headers=headers, body=body)

        secure = fresh(lambda: tls_upstream(*HOSTS))
        status, _ = send(twins.enforcing, secure)
        enforced = decision_of(twins.enforcing, secure)
        assert (enforced["action"], enforced["reason"], enforced["status"]) == ("deny", reason, status)
        secure.assert_no_application_bytes()

        upstream = plain()
        status, sent = send(twins.observing, upstream)
        assert status == 200
        assert upstream.received == sent
        line = decision_of(twins.observing, upstream)
        assert_observed(line, would="deny", would_deny=True, reason=reason, status=200)
        counted = twins.observing.metrics().value("overcoat_requests_total", action="deny", reason=reason)
        assert counted == twins.enforcing.metrics().value("overcoat_requests_total", action="deny", reason=reason)

    def test_a_body_too_large_by_its_length_passes_whole(self, twins: Twins, plain: MakePlain) -> None:
        upstream, body = plain(), b'{"ssn":"' + b"x" * 300_000 + b'"}'
        assert ask(twins.observing, upstream, "pay.example", body=body).status == 200
        assert upstream.wait_for_requests(1)[0].body == body
        assert_observed(decision_of(twins.observing, upstream), would_deny=True, reason="body_too_large")

    @pytest.mark.parametrize("headers", [JSON, (*JSON, ("Content-Encoding", "gzip"))], ids=["text", "no gzip"])
    @pytest.mark.parametrize(
        ("sizes", "reason"),
        [((2048,), None), ((2049,), "body_too_large"), ((2048, 1), "body_too_large"), ((2047, 1, 1), "body_too_large")],
    )
    def test_one_without_a_length_is_too_large_where_it_would_be(
        self,
        twins: Twins,
        plain: MakePlain,
        tls_upstream: Callable[..., TlsUpstream],
        sizes: tuple[int, ...],
        reason: str | None,
        headers: Fields,
    ) -> None:
        chunks = [b'{"ssn":1}'.ljust(sizes[0]), *(b" " * size for size in sizes[1:])]
        if reason is None and headers != JSON:
            reason = "encoding_unsupported"
        secure, upstream = fresh(lambda: tls_upstream(*HOSTS)), plain()
        ask(twins.enforcing, secure, "pay.example", headers=headers, chunks=chunks)
        assert decision_of(twins.enforcing, secure)["reason"] == reason
        assert ask(twins.observing, upstream, "pay.example", headers=headers, chunks=chunks).status == 200
        line = decision_of(twins.observing, upstream)
        assert_observed(line, reason=reason, would_deny=reason is not None, would_encrypt=0 if reason else 1)

    def test_the_twin_of_all_of_them_is_encrypted_when_enforcing(
        self, twins: Twins, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        secure = fresh(lambda: tls_upstream(*HOSTS))
        assert ask(twins.enforcing, secure, "pay.example", body=b'{"ssn":1}').status == 200
        line = decision_of(twins.enforcing, secure)
        assert (line["mode"], line["action"], line["encrypted"], line["would_deny"]) == ("enforce", "upgrade", 1, False)
        assert "would" not in line


class TestHttps:
    @pytest.mark.parametrize(
        ("host", "would", "reason"),
        [
            ("other.example", "tunnel", None),
            ("pay.example", "inspect", None),
            ("no.example", "deny", "https_rejected"),
        ],
    )
    def test_it_is_carried_end_to_end_even_where_it_would_be_opened(
        self, twins: Twins, tls_upstream: Callable[..., TlsUpstream], roots: Path, host: str, would: str, reason: str
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        body = b'{"ssn":"078"}'
        with connect(twins.observing, f"{host}:{upstream.port}") as client:
            client.start_tls(host, roots)  # the upstream's own authority, which signs nothing here
            assert client.peer_certificate == upstream.identity.certificate.public_bytes(Encoding.DER)
            client.send(request("/v1", host, body=body))
            assert client.read_response().status == 200
        assert upstream.received == request("/v1", host, body=body)
        line = decision_of(twins.observing, upstream)
        assert_observed(line, action="tunnel", method="CONNECT", would=would, would_deny=bool(reason), reason=reason)
        assert line["bytes_sent"] > len(body)
        assert line["bytes_received"] > 0

    def test_another_server_name_than_the_connect_host_passes_and_is_told(
        self, twins: Twins, tls_upstream: Callable[..., TlsUpstream], roots: Path
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        with connect(twins.observing, f"pay.example:{upstream.port}") as client:
            client.start_tls("other.example", roots)
            client.send(request("/", "other.example"))
            assert client.read_response().status == 200
        assert_observed(decision_of(twins.observing, upstream), would="deny", reason="host_mismatch", would_deny=True)

    def test_a_connect_whose_host_field_names_another_host_passes_and_is_told(
        self, twins: Twins, tls_upstream: Callable[..., TlsUpstream], roots: Path
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        head = f"CONNECT pay.example:{upstream.port} HTTP/1.1\r\nHost: other.example:{upstream.port}\r\n\r\n".encode()
        with RawClient(twins.enforcing.address) as client:
            client.send(head)
            assert client.read_response(method="CONNECT").status == 421
        upstream.assert_untouched()
        with RawClient(twins.observing.address) as client:
            client.send(head)
            assert client.read_response(method="CONNECT").status == 200
            client.start_tls("pay.example", roots)
            client.send(request("/", "pay.example"))
            assert client.read_response().status == 200
        assert_observed(decision_of(twins.observing, upstream), would="deny", reason="host_mismatch", would_deny=True)

    def test_a_connect_that_names_no_clear_destination_is_refused_all_the_same(self, twins: Twins) -> None:
        with RawClient(twins.observing.address) as client:
            client.send(b"CONNECT 127.1:443 HTTP/1.1\r\nHost: 127.1:443\r\n\r\n")
            answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (400, "bad_request")
        assert twins.observing.metrics().value("overcoat_hook_failures_total") == 0

    def test_what_is_neither_tls_nor_http_passes_and_is_told(self, twins: Twins, plain: MakePlain) -> None:
        upstream = plain()
        with connect(twins.observing, f"pay.example:{upstream.port}") as client:
            client.send(b"SSH-2.0-OpenSSH_9.9\r\n")
            client.finish()
            client.read_to_end()
        assert upstream.received == b"SSH-2.0-OpenSSH_9.9\r\n"
        assert_observed(decision_of(twins.observing, upstream), would="deny", reason="not_http", would_deny=True)

    def test_so_does_a_line_that_is_longer_than_any_head(self, twins: Twins) -> None:
        said = b"SEND " + b"x" * (2 * MAX_HEAD_BYTES)  # like a method, and no end of it
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with connect(twins.observing, f"pay.example:{port}") as client:
                server, _ = listener.accept()
                with Accepted(server) as far:
                    client.send(said)
                    assert far.read_exactly(len(said)) == said
                    far.send(b"250 ok\r\n")
                    assert client.read_until(b"\r\n") == b"250 ok\r\n"
            line = twins.observing.wait_for_decision(lambda line: line["destination"] == f"pay.example:{port}")
        assert_observed(line, would="deny", reason="not_http", would_deny=True)

    @pytest.mark.parametrize("said", [b"", b"GE", b"\x16\x03"])
    def test_an_app_that_ends_its_side_early_is_passed_on(self, twins: Twins, said: bytes) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            connect(twins.observing, f"pay.example:{listener.getsockname()[1]}") as client,
        ):
            server, _ = listener.accept()
            with server:
                server.settimeout(5)
                client.send(said)
                client.finish()
                got = b""
                while piece := server.recv(100):
                    got += piece
                assert got == said
                server.sendall(b"bye")
            assert client.read_to_end() == b"bye"

    def test_a_server_that_speaks_first_is_heard(self, twins: Twins) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with connect(twins.observing, f"pay.example:{port}") as client:
                server, _ = listener.accept()
                with server:
                    server.settimeout(5)
                    server.sendall(b"220 hello\r\n")
                    assert client.read_until(b"\r\n") == b"220 hello\r\n"
                    client.send(b"EHLO me\r\n")
                    assert server.recv(100) == b"EHLO me\r\n"

    def test_an_app_that_does_not_read_stops_a_server_that_speaks_first(self, twins: Twins) -> None:
        most = 64 * 1024 * 1024
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with connect(twins.observing, f"pay.example:{port}") as client:
                server, _ = listener.accept()
                with Accepted(server) as far:
                    assert send_until_blocked(far._socket, bytes(most)) < most
                    client.send(b"EHLO me\r\n")  # what is spoken is known from here on
                    assert far.read_until(b"\r\n") == b"EHLO me\r\n"
                    assert send_until_blocked(far._socket, bytes(most)) < most

    def test_plain_http_is_known_however_it_is_cut(self, twins: Twins, plain: MakePlain) -> None:
        upstream = plain()
        authority = f"pay.example:{upstream.port}"
        whole = request("/v1", authority, body=b'{"ssn":1}')
        with connect(twins.observing, authority) as client:
            for piece in (whole[:2], whole[2:10], whole[10:40], whole[40:]):
                client.send(piece)
                time.sleep(0.05)
            assert client.read_response().status == 200
        assert upstream.received == whole
        line = twins.observing.wait_for_decision(
            lambda line: (line["destination"], line["method"]) == (authority, "POST")
        )
        assert_observed(line, would="upgrade", would_encrypt=1, status=200)

    def test_so_is_http_2(self, twins: Twins, plain: MakePlain) -> None:
        upstream = plain()  # it speaks none, and would be asked in it
        authority = f"pay.example:{upstream.port}"
        with connect(twins.observing, authority) as client:
            app = Http2Client(client)
            pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", authority), (":path", "/v1")]
            assert app.read(app.begin_raw(pseudo, last=True)).status == 502
        line = twins.observing.wait_for_decision(
            lambda line: (line["destination"], line["method"]) == (authority, "POST")
        )
        assert (line["mode"], line["would"], line["path"], line["reason"]) == (
            "observe",
            "upgrade",
            "/v1",
            "upstream_failed",
        )


class TestLooks:
    """What looks like a secret is noted by its path; no value gets out, and no name that may be one."""

    VALUES = (
        *(
            "4111111111111111",
            "4242 4242 4242 4242",
            "737",
            "hunter2-and-more",
            "078-05-1120",
            "DE89370400440532013000",
        ),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.dozjgNryP4J3jVmNHl0w5N",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    )
    NAMES = ("Zk3xQ9vB7nM2wR5tYu8", "sk_live_4eC39HqLyjWDarjt", "jane.doe@mail.example", "4012888888881881")

    def body(self) -> bytes:
        card, spaced, code, password, ssn, iban, jwt, digest, key = self.VALUES
        first, second, mail, number = self.NAMES
        return json.dumps(
            {
                "card": {"number": card, "cvv": code},
                "others": [{"number": spaced}],
                "user": {"password": password, "ssn": ssn, "name": "Jane"},
                "bank": {"iban": iban},
                "accessToken": jwt,
                "digest": digest,
                "by": {first: {"token": key}, second: key, mail: {"pwd": password}, number: ssn},
                "amount": 12,
            }
        ).encode()

    @pytest.mark.parametrize("host", ["other.example", "pay.example", "opened.example"])
    def test_its_paths_are_in_the_line_and_no_value_is_anywhere(
        self, twins: Twins, plain: MakePlain, host: str
    ) -> None:
        upstream, body = plain(), self.body()
        assert ask(twins.observing, upstream, host, "/v1", body=body).status == 200
        assert upstream.received.endswith(body)
        line = decision_of(twins.observing, upstream)
        assert line["looks_secret"] == {
            "$.card.number": "card_number",
            "$.card.cvv": "card_code",
            "$.others[*].number": "card_number",
            "$.user.password": "password",
            "$.user.ssn": "national_id",
            "$.bank.iban": "iban",
            "$.accessToken": "token",
            "$.digest": "token",
            "$.by.*.token": "token",
            "$.by.*": "token",
            "$.by.*.pwd": "password",
        }
        pages = [twins.observing.admin_get(page)[1] for page in ("/metrics", "/policy", "/")]
        said = (twins.observing.stdout, twins.observing.stderr, *map(str, pages))
        assert "$.card.number" in said[0]
        for secret in (*self.VALUES, *self.NAMES):
            if len(secret) < 8:
                continue  # three digits are in many numbers
            assert not [where for where in said if secret in where], secret

    def test_enforcing_notes_nothing(self, twins: Twins, tls_upstream: Callable[..., TlsUpstream]) -> None:
        secure = fresh(lambda: tls_upstream(*HOSTS))
        assert ask(twins.enforcing, secure, "other.example", body=self.body()).status == 200
        assert "looks_secret" not in decision_of(twins.enforcing, secure)


class TestResponses:
    def test_a_sealed_response_is_not_opened_and_the_offer_of_codings_not_narrowed(
        self, twins: Twins, plain: MakePlain
    ) -> None:
        body = b'{"card":' + twins.app.seal(b"1", "opened.example", "$.card") + b"}"
        upstream = plain(respond=lambda _: wire.response(200, body))
        answer = ask(twins.observing, upstream, "opened.example", method="GET", headers=(("Accept-Encoding", "br"),))
        assert answer.body == body
        assert upstream.wait_for_requests(1)[0].headers.get("accept-encoding") == "br"
        assert_observed(decision_of(twins.observing, upstream), would="upgrade", status=200)


MIXED = """
    mode: {mode}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{file: {pay}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], mode: {of_pay}, request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: never, hosts: [no.example], mode: {of_pay}, plain_http: reject, https: reject}}
      - {{name: pinned, hosts: [pinned.example], mode: {of_pay}, pins: {{any_of: ["{pin}"]}}}}
      - {{name: old, hosts: ["old.example:443"]}}
      - {{name: rest, hosts: [old.example], mode: {of_pay}}}
      - {{name: odd, hosts: ["opened.example:443"], mode: {of_pay}, plain_http: reject}}
      - {{name: shut, hosts: [opened.example], https: reject}}
"""


@pytest.fixture(scope="module")
def seen(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar that enforces; only some of its rules observe."""
    folder = tmp_path_factory.mktemp("seen")
    key = Receiver("pay").write_public(folder)
    policy = MIXED.format(mode="enforce", of_pay="observe", pay=key, pin=NO_PIN)
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def kept(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar that observes; only some of its rules enforce."""
    folder = tmp_path_factory.mktemp("kept")
    key = Receiver("pay").write_public(folder)
    policy = MIXED.format(mode="observe", of_pay="enforce", pay=key, pin=NO_PIN)
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


class TestOneRule:
    """A rule observes in a policy that enforces, and the other way round."""

    def test_its_plain_http_passes_and_the_line_says_what_would_have_been(
        self, seen: Sidecar, plain: MakePlain
    ) -> None:
        upstream, body = plain(), b'{"ssn":1,"a":{"ssn":2}}'
        assert ask(seen, upstream, "pay.example", "/v1", body=body).status == 200
        assert upstream.received == request("/v1", f"pay.example:{upstream.port}", body=body)
        line = decision_of(seen, upstream)
        assert_observed(line, would="upgrade", would_upgrade=True, would_encrypt=2, would_pin=None, would_deny=False)

    def test_what_it_would_deny_passes(self, seen: Sidecar, plain: MakePlain) -> None:
        upstream = plain()
        assert ask(seen, upstream, "no.example", body=b"{}").status == 200
        line = decision_of(seen, upstream)
        assert_observed(line, would="deny", would_upgrade=False, would_deny=True, reason="plain_http_rejected")

    def test_its_https_is_not_opened(
        self, seen: Sidecar, tls_upstream: Callable[..., TlsUpstream], roots: Path
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        with connect(seen, f"pay.example:{upstream.port}") as client:
            client.start_tls("pay.example", roots)
            client.send(request("/", "pay.example"))
            assert client.read_response().status == 200
        assert_observed(decision_of(seen, upstream), would="inspect", would_deny=False)

    def test_a_handshake_of_ours_tells_whether_a_pin_would_have_matched(
        self, seen: Sidecar, kept: Sidecar, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        authority = f"pinned.example:{upstream.port}"
        for sidecar, status in ((seen, 200), (kept, 502)):
            with RawClient(sidecar.address) as client:  # an https target outside CONNECT
                client.send(request(f"https://{authority}/", authority))
                assert client.read_response().status == status
        line = decision_of(seen, upstream)
        assert (line["would_pin"], line["would_deny"], line["reason"]) == ("mismatch", True, "pin_mismatch")
        line = decision_of(kept, upstream)
        assert (line["pin"], line["action"], line["reason"]) == ("mismatch", "deny", "pin_mismatch")
        assert "would_pin" not in line

    def test_the_other_hosts_are_protected(self, seen: Sidecar, tls_upstream: Callable[..., TlsUpstream]) -> None:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert ask(seen, upstream, "other.example", body=b"{}").status == 200
        line = decision_of(seen, upstream)
        assert (line["mode"], line["action"], line["status"]) == ("enforce", "upgrade", 200)

    def test_a_rule_that_enforces_does_so_where_the_policy_observes(
        self, kept: Sidecar, plain: MakePlain, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        secure = fresh(lambda: tls_upstream(*HOSTS))
        assert ask(kept, secure, "pay.example", body=b'{"ssn":1}').status == 200
        line = decision_of(kept, secure)
        assert (line["mode"], line["action"], line["encrypted"]) == ("enforce", "upgrade", 1)
        upstream = plain()
        assert ask(kept, upstream, "other.example", body=b"{}").status == 200
        assert_observed(decision_of(kept, upstream), would="upgrade", rule=None)

    def test_a_connect_is_open_to_anything_only_if_plain_http_is_observed_there_too(self, seen: Sidecar) -> None:
        with connect(seen, "old.example:80") as client:  # nobody listens there, and nobody is asked
            client.send(b"SSH-2.0-OpenSSH_9.9\r\n")
            assert client.read_to_end() == b""
        line = seen.wait_for_decision(lambda line: line["destination"] == "old.example:80")
        assert (line["rule"], line["action"], line["reason"], line["bytes_sent"]) == ("rest", "deny", "not_http", 0)

    def test_a_connect_for_plain_http_that_is_observed_is_let_in_where_https_is_rejected(self, seen: Sidecar) -> None:
        with connect(seen, "opened.example:80"):
            pass  # it was answered with 200
        with RawClient(seen.address) as client:
            client.send(b"CONNECT opened.example:81 HTTP/1.1\r\nHost: opened.example:81\r\n\r\n")
            assert client.read_response(method="CONNECT").status == 403

    def test_it_is_announced(self, seen: Sidecar, kept: Sidecar) -> None:
        assert "rule pay: mode observe protects nothing" in seen.stderr
        assert "mode observe (but in pay, never, pinned, rest, odd) protects nothing" in kept.stderr


class TestPins:
    """A handshake beside what passes tells whether the pins would have matched."""

    POLICY = """
        mode: observe
        destinations: {{allow: [{allowed}]}}
        rules:
          - {{name: right, hosts: [pay.example], https_port: {port}, pins: {{any_of: ["{pin}"]}}}}
          - {{name: wrong, hosts: [no.example], https_port: {port}, pins: {{any_of: ["{no_pin}"]}}}}
          - {{name: none, hosts: [other.example], https_port: {port}}}
    """

    def test_with_what_passes_over_http_and_over_https(
        self,
        authority: Authority,
        tls_upstream: Callable[..., TlsUpstream],
        plain: MakePlain,
        roots: Path,
        tmp_path: Path,
    ) -> None:
        secure, upstream = fresh(lambda: tls_upstream(*HOSTS)), plain()
        policy = self.POLICY.format(allowed="loopback", port=secure.port, pin=secure.identity.pin, no_pin=NO_PIN)
        with Sidecar(policy, tmp_path, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:

            def line_of(host: str, port: int) -> Decision:
                return [line for line in sidecar.decisions() if line["destination"] == f"{host}:{port}"][-1]

            def passes_plain(host: str, pin: str | None) -> bool:
                before = len(sidecar.decisions())
                assert ask(sidecar, upstream, host, body=b"{}").status == 200
                sidecar.wait_for_decisions(before + 1)
                return bool(line_of(host, upstream.port)["would_pin"] == pin)

            wait_until(lambda: passes_plain("pay.example", "match"))
            wait_until(lambda: passes_plain("no.example", "mismatch"))
            assert passes_plain("other.example", None)
            assert_observed(line_of("pay.example", upstream.port), would="upgrade", would_deny=False, reason=None)
            mismatch = line_of("no.example", upstream.port)
            assert_observed(mismatch, would="deny", would_upgrade=False, would_deny=True, reason="pin_mismatch")
            assert mismatch["status"] == 200
            secure.assert_no_application_bytes()
            assert len(secure.wait_for_connections(2)) == 2  # one for each rule, however many requests there were

            def passes_tunnelled(host: str, pin: str) -> bool:
                before = len(sidecar.decisions())
                with connect(sidecar, f"{host}:{secure.port}") as client:
                    client.start_tls(host, roots)
                sidecar.wait_for_decisions(before + 1)
                return bool(line_of(host, secure.port)["would_pin"] == pin)

            wait_until(lambda: passes_tunnelled("pay.example", "match"))
            wait_until(lambda: passes_tunnelled("no.example", "mismatch"))
            assert_observed(line_of("no.example", secure.port), action="tunnel", would="deny", reason="pin_mismatch")

    def test_what_enforcing_would_not_reach_is_not_reached_by_it(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], plain: MakePlain, tmp_path: Path
    ) -> None:
        secure, upstream = fresh(lambda: tls_upstream(*HOSTS)), plain()
        policy = self.POLICY.format(allowed="private", port=secure.port, pin=secure.identity.pin, no_pin=NO_PIN)
        with Sidecar(policy, tmp_path, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
            for _ in range(2):
                assert ask(sidecar, upstream, "pay.example", body=b"{}").status == 200
            for line in sidecar.wait_for_decisions(2):
                assert_observed(line, would="deny", would_pin=None, reason="destination_forbidden")
        secure.assert_untouched()


def test_the_mode_is_announced_where_it_can_be_seen(twins: Twins) -> None:
    said = [json.loads(line) for line in twins.observing.stderr.splitlines()]
    assert any(each["level"] == "warning" and "mode observe protects nothing" in each["message"] for each in said)
    assert "protects nothing" not in twins.enforcing.stderr
    assert twins.observing.metrics().value("overcoat_info", mode="observe") == 1
    assert twins.enforcing.metrics().value("overcoat_info", mode="enforce") == 1
