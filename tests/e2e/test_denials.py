"""Whatever is denied, the app, or the person before it, is told what to change: in problem details, and on the page.

Proves ARCHITECTURE's rule 7 (say why) for denials as they really happen, each for a cause of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority, Variant
from tests.e2e.clients import Answer, RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.test_gate import hashed
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOSTS = dict.fromkeys(
    ("up.example", "pinned.example", "late.example", "held.example", "old.example", "once.example"), "127.0.0.1"
)
NO_PIN = "sha256/" + "A" * 42 + "E="
PAGE = "Accept: text/html\r\n"
JSON = "Content-Type: application/json\r\n"
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"
POLICY = """
    via: coat
    limits: {{held_body: 1024, request_seconds: 1, header_count: 30, connect_seconds: 1}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}
      old: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}, not_after: 2020-01-01}}}}
    rules:
      - {{name: shut, hosts: [shut.example], plain_http: reject}}
      - {{name: no-https, hosts: [closed.example], https: reject}}
      - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["{pin}"]}}}}
      - {{name: late, hosts: [late.example], pins: {{any_of: ["{pin}"], expires: 2020-01-01}}}}
      - name: held
        hosts: [held.example]
        request:
          - {{encrypt: ["$.ssn"], form: [ssn], graphql_arguments: [ssn], key: pay}}
          - {{encrypt: ["$.ssn"], key: pay, required: true, when: {{paths: [/needed]}}}}
        response: [{{decrypt: ["$.token"], key: pay}}]
      - {{name: old, hosts: [old.example], request: [{{encrypt: ["$.ssn"], key: old}}]}}
      - {{name: once, hosts: [once.example], request: [{{encrypt: ["$.ssn"], key: pay, already_sealed: deny}}]}}
"""


@dataclass(frozen=True)
class World:
    """A sidecar, and the ports of upstreams that are right or wrong."""

    sidecar: Sidecar
    ports: dict[str, int]
    token: str = ""

    def ask(self, target: str, more: str, body: str = "") -> Answer:
        """Send a request, with a Host field that names its target unless there is another one."""
        body = body.replace("TOKEN", self.token)
        for name, port in self.ports.items():
            target = target.replace(name, str(port))
        method = "POST" if body else "GET"
        host = "" if "Host:" in more else f"Host: {target.split('/')[2]}\r\n"
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        with RawClient(self.sidecar.address) as client:
            client.send(f"{method} {target} HTTP/1.1\r\n{host}{more}{length}\r\n{body}".encode())
            return client.read_response()


def respond(request: RecordedRequest) -> Iterator[bytes]:
    """Answer in a way that the path names."""
    if request.target == "/garbage":
        yield b"garbage\r\n\r\n"
    elif request.target == "/spin":
        yield wire.response(301, headers=(("Location", f"https://{request.headers.get('host')}/spin"),))
    else:
        yield wire.response(200, b'{"token": "eyJlbmMiOjF9.no.JWE"}', headers=(("Content-Type", "application/json"),))


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("denials")
    receiver = Receiver("pay")
    policy = POLICY.format(key=receiver.write_private(folder), pin=NO_PIN)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # as many as wait to be accepted; the kernel answers no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            nobody = reserved.getsockname()[1]
        ports = {
            "SECURE": stack.enter_context(TlsUpstream(authority, *HOSTS, respond=respond)).port,
            "EXPIRED": stack.enter_context(TlsUpstream(authority, *HOSTS, variant=Variant.EXPIRED)).port,
            "PLAIN": stack.enter_context(PlainUpstream()).port,
            "FULL": full.getsockname()[1],
            "NOBODY": nobody,
        }
        sidecar = stack.enter_context(Sidecar(policy, folder, authority=authority, hosts=HOSTS))
        yield World(sidecar, ports, receiver.seal(b"1", "once.example", "$.ssn").decode())


def assert_says_what_to_do(details: Answer, reason: str, page: Answer | None = None) -> None:
    """Check that a denial has this reason and a hint, and that the page says the same."""
    problem = details.json()
    assert problem["reason"] == reason, problem
    assert len(problem["hint"]) > 10
    if page is not None:
        assert page.headers.get("content-type") == "text/html; charset=utf-8"
        assert f"<p>What to do: {escape(problem['hint'])}.</p>" in page.body.decode()


@pytest.mark.parametrize(
    ("reason", "target", "more", "body"),
    [
        ("bad_request", "http://up.example:SECURE/", "Host: a b\r\n", ""),
        ("host_mismatch", "http://up.example:SECURE/", "Host: other.example\r\n", ""),
        ("request_loop", "http://up.example:SECURE/", "Via: 1.1 coat\r\n", ""),
        ("plain_http_rejected", "http://shut.example/", "", ""),
        ("https_rejected", "http://closed.example/", "", ""),
        ("https_rejected", "https://closed.example/", "", ""),
        ("destination_forbidden", "http://10.0.0.1/", "", ""),
        ("upstream_unreachable", "http://unknown.example/", "", ""),
        ("upstream_unreachable", "http://up.example:NOBODY/", "", ""),
        ("upstream_timeout", "http://up.example:FULL/", "", ""),
        ("tls_failed", "http://up.example:PLAIN/", "", ""),
        ("certificate_invalid", "http://up.example:EXPIRED/", "", ""),
        ("pin_mismatch", "http://pinned.example:SECURE/", "", ""),
        ("pins_expired", "http://late.example:SECURE/", "", ""),
        ("upstream_failed", "http://up.example:SECURE/garbage", "", ""),
        ("redirect_loop", "http://up.example:SECURE/spin", "", ""),
        ("body_not_json", "http://held.example:SECURE/", JSON, "{"),
        ("body_unreadable", "http://held.example:SECURE/", FORM, "s%sn=1"),
        ("graphql_literal", "http://held.example:SECURE/", JSON, '{"query": "{a(ssn: 1)}"}'),
        ("fields_missing", "http://held.example:SECURE/needed", JSON, '{"sn": 1}'),
        ("body_too_large", "http://held.example:SECURE/", JSON, f'{{"ssn": "{"1" * 1024}"}}'),
        ("encoding_unsupported", "http://held.example:SECURE/", f"{JSON}Content-Encoding: compress\r\n", '{"ssn": 1}'),
        ("signed_body", "http://held.example:SECURE/", f"{JSON}Content-MD5: x\r\n", '{"ssn": 1}'),
        ("key_unavailable", "http://old.example:SECURE/", JSON, '{"ssn": 1}'),
        ("already_sealed", "http://once.example:SECURE/", JSON, '{"ssn": TOKEN}'),
        ("decryption_failed", "http://held.example:SECURE/", "", ""),
    ],
)
def test_a_denied_request_says_what_to_do(world: World, reason: str, target: str, more: str, body: str) -> None:
    assert_says_what_to_do(world.ask(target, more, body), reason, world.ask(target, more + PAGE, body))


def test_the_twin_in_which_nothing_is_wrong_passes(world: World) -> None:
    assert world.ask("http://up.example:SECURE/", PAGE).status == 200


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("bad_request", "GET / HTTP/1.1\r\nHost: up.example\r\n\r\n"),
        ("bad_request", "GET http://up.example/ HTTP/1.1\r\nHost : up.example\r\n\r\n"),
        ("bad_request", "CONNECT up.example HTTP/1.1\r\nHost: up.example\r\n\r\n"),
        ("headers_too_large", f"GET http://up.example/{'x' * 70_000} HTTP/1.1\r\nHost: up.example\r\n\r\n"),
        ("headers_too_large", f"GET http://up.example/ HTTP/1.1\r\nHost: up.example\r\n{'X: 1\r\n' * 30}\r\n"),
        ("request_timeout", "GET http://up.example/ HTTP/1.1\r\n"),
        ("request_timeout", "POST http://held.example/ HTTP/1.1\r\nHost: held.example\r\nContent-Length: 2\r\n\r\n{"),
    ],
)
def test_so_does_a_denial_of_what_is_no_request(world: World, reason: str, sent: str) -> None:
    with RawClient(world.sidecar.address) as client:
        client.send(sent.encode())
        assert_says_what_to_do(client.read_response(), reason)


@pytest.mark.parametrize(
    ("reason", "policy"),
    [
        ("client_forbidden", "clients: {allow: [127.0.0.2]}"),
        ("too_many_connections", "limits: {client_connections: 1}"),
        ("too_many_connections", "limits: {connections: 1}"),
    ],
)
def test_so_does_one_to_who_may_not_even_connect(
    authority: Authority, tmp_path: Path, reason: str, policy: str
) -> None:
    with (
        Sidecar(policy, tmp_path, authority=authority) as sidecar,
        RawClient(sidecar.address),
        RawClient(sidecar.address) as client,
    ):
        assert_says_what_to_do(client.read_response(), reason)


def test_so_does_one_to_who_shows_no_credentials(authority: Authority, tmp_path: Path) -> None:
    policy = f"clients: {{users: [{{name: app, password_hash: '{hashed('eins')}'}}]}}"
    with Sidecar(policy, tmp_path, authority=authority) as sidecar:
        world = World(sidecar, {})
        url = "http://up.example/"
        assert_says_what_to_do(world.ask(url, ""), "proxy_authentication_required", world.ask(url, PAGE))


def test_so_does_one_of_an_upstream_proxy_that_is_not_there(authority: Authority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with Sidecar(f"upstream_proxy: {{url: 'http://127.0.0.1:{port}'}}", tmp_path, authority=authority) as sidecar:
        world = World(sidecar, {})
        url = "http://up.example/"
        assert_says_what_to_do(world.ask(url, ""), "upstream_proxy_failed", world.ask(url, PAGE))
