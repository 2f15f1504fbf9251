"""No secret is ever written: not to standard output or error, not to a metric, not into a denial.

Proves ARCHITECTURE's rule 6. Every request of `SCENARIOS` carries canaries where an app carries secrets; whatever
becomes of it, none of them is found in anything that Overcoat itself says. What an upstream answers is its own to say,
so answers that are passed on are not searched, and each scenario checks that it has the outcome it is meant to have.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.core.jose.keys import Alg
from proxy.core.jose.keywriting import to_jwk
from tests.e2e import wire
from tests.e2e.app import Way, connect, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Client
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream

ROOT = Path(__file__).resolve().parents[2]
HOSTS = (
    "pay.example",
    "old.example",
    "app.example",
    "never.example",
    "pinned.example",
    "other.example",
    "kinds.example",
)
CARD, BEARER, QUERY, PROXY, COOKIE, ANSWER = (
    f"canary-{name}-{digits}" for name, digits in zip("cbqpka", ("41", "42", "43", "44", "45", "46"), strict=True)
)
USER = base64.b64encode(f"user:{PROXY}".encode()).decode()
BODY = b'{"ssn":"%s","n":1}' % CARD.encode()
SECRETS = (
    ("Authorization", f"Bearer {BEARER}"),
    ("Cookie", f"session={COOKIE}"),
    ("Proxy-Authorization", f"Basic {USER}"),
    ("Proxy-Authorization", f"Bearer {PROXY}"),
    ("Content-Type", "application/json"),
)

POLICY = """
    limits: {{held_body: 4096}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{file: {pay}}}}}
      old: {{alg: ECDH-ES+A256KW, primary: {{file: {pay}, not_after: {yesterday}}}}}
      app: {{alg: A256KW, primary: {{file: {app}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - name: kinds
        hosts: [kinds.example]
        request:
          - {{encrypt: ["$.ssn"], form: [ssn], graphql_arguments: [ssn], key: pay, when: {{paths: [/k]}}}}
          - {{encrypt: ["$.ssn"], form: [ssn], key: pay, required: true, when: {{paths: [/needed]}}}}
      - {{name: old, hosts: [old.example], request: [{{encrypt: ["$..ssn"], key: old}}]}}
      - {{name: app, hosts: [app.example], response: [{{decrypt: ["$.card"], key: app}}]}}
      - {{name: never, hosts: [never.example], plain_http: reject, https: reject}}
      - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["sha256/{pin}="]}}}}
"""


@dataclass(frozen=True)
class Scenario:
    """A request full of secrets, and the reason it is denied with.

    Attributes:
        reason: the reason of the denial, or None for an answer of the upstream.
        host: whom it asks.
        body: its body.
        headers: fields beside `SECRETS`.
        target: the path and query.
        raw: a change to the request's bytes.
        respond: the upstream's answer.
        way: how it is sent.
    """

    reason: str | None
    host: str = "pay.example"
    body: bytes = BODY
    headers: tuple[tuple[str, str], ...] = ()
    target: str = f"/v1?token={QUERY}"
    raw: Callable[[bytes], bytes] = field(default=lambda whole: whole)
    respond: Callable[[RecordedRequest], bytes] = field(default=lambda _: wire.response(200, b"{}"))
    way: Way = Way.HTTP


def swap(pattern: bytes, replacement: str) -> Callable[[bytes], bytes]:
    """Return a change to a request: what a pattern matches, by something else."""
    return lambda whole: re.sub(pattern, lambda _: replacement.encode(), whole)


def answers(raw: bytes) -> Callable[[RecordedRequest], bytes]:
    """Return an upstream that answers these bytes and closes."""

    def respond(_: RecordedRequest) -> Iterator[bytes]:
        yield raw
        raise ConnectionResetError

    return respond  # type: ignore[return-value]  # pieces are as good as bytes


def json_answer(body: bytes) -> Callable[[RecordedRequest], bytes]:
    """Return an upstream that answers 200 with a JSON body."""
    return lambda _: wire.response(200, body)


FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"
PART_OF_FORM = b'--b\r\nContent-Disposition: form-data; name="ssn"\r\n\r\n'


def in_kind(content_type: str, body: bytes, reason: str = "body_unreadable") -> Scenario:
    """Return a request with a body of another kind."""
    label = swap(b"Content-Type: application/json", f"Content-Type: {content_type}")
    return Scenario(reason, host="kinds.example", target=f"/k?token={QUERY}", body=body, raw=label)


CODING = b"Transfer-Encoding: "
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ECHO = ANSWER.encode()
PART = b"HTTP/1.1 206 OK\r\nContent-Range: " + ECHO + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(ECHO), ECHO)
UNLABELLED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{%s" % (len(ECHO) + 1, ECHO)

SCENARIOS = {
    "good": Scenario(None),
    "good, inspected": Scenario(None, way=Way.CONNECT),
    "good, gzip": Scenario(None, body=gzip.compress(BODY), headers=(("Content-Encoding", "gzip"),)),
    "good, no path": Scenario(None, target=f"?token={QUERY}"),
    # denials by the body
    "NaN": Scenario("body_not_json", body=BODY.replace(b"1}", b"NaN}")),
    "cut short in the secret": Scenario("body_not_json", body=BODY[:17]),
    "cut short behind it": Scenario("body_not_json", body=BODY[:-1]),
    "a raw control character in the secret": Scenario("body_not_json", body=BODY.replace(b"canary", b"can\nary")),
    "the secret as a name": Scenario("body_not_json", body=b'{"%s" 1}' % CARD.encode()),
    "an unknown escape in the secret": Scenario("body_not_json", body=BODY.replace(b"canary-", b"canary-\\x")),
    "the secret bare": Scenario("body_not_json", body=CARD.encode()),
    "the secret behind the text": Scenario("body_not_json", body=b"{} " + CARD.encode()),
    "half a surrogate in a name": Scenario("body_not_json", body=b'{"\\ud800%s":1}' % CARD.encode()),
    "invalid UTF-8 in the secret": Scenario("body_not_json", body=BODY.replace(b"-c-", b"-\xff-")),
    "a form": Scenario("body_not_json", body=b"ssn=" + CARD.encode()),
    "too large": Scenario("body_too_large", body=BODY + b" " * 5000),
    "a bomb": Scenario(
        "body_too_large", body=gzip.compress(BODY + b" " * 5000), headers=(("Content-Encoding", "gzip"),)
    ),
    "an unknown coding": Scenario("encoding_unsupported", headers=(("Content-Encoding", f"x-{BEARER}"),)),
    "damaged gzip": Scenario("encoding_unsupported", headers=(("Content-Encoding", "gzip"),)),
    "a signature": Scenario("signed_body", headers=(("X-Hub-Signature-256", f"sha256={BEARER}"),)),
    "a signature in the query": Scenario("signed_body", target=f"/?X-Amz-Signature={QUERY}"),
    "a digest": Scenario("signed_body", headers=(("Content-Digest", f"sha-256=:{BEARER}:"),)),
    "an expired key": Scenario("key_unavailable", host="old.example"),
    "a form with a bad escape": in_kind(FORM, b"ssn=%%x%s" % CARD.encode()),
    "a form with a name that is spelled otherwise": in_kind(FORM, b"ssn[%s]=1" % CARD.encode()),
    "a form in Latin-1": in_kind(FORM, b"ssn=%s\xe9" % CARD.encode()),
    "a multipart form that is cut off": in_kind(MULTIPART, b"%s%s\r\n" % (PART_OF_FORM, CARD.encode())),
    "a multipart form with a bad head": in_kind(MULTIPART, b"--b\r\n%s\r\n\r\n\r\n--b--" % CARD.encode()),
    "a patch without a path": in_kind("application/json-patch+json", b'[{"value":"%s"}]' % CARD.encode()),
    "a query that is none": in_kind("application/json", b'{"query":"{%s"}' % CARD.encode()),
    "a literal": in_kind("application/json", b'{"query":"{a(ssn:\\"%s\\")}"}' % CARD.encode(), "graphql_literal"),
    "nothing that is required": Scenario(
        "fields_missing", host="kinds.example", target=f"/needed?token={QUERY}", body=BODY.replace(b"ssn", b"sn")
    ),
    # denials by the head
    "rejected": Scenario("plain_http_rejected", host="never.example"),
    "a header without a colon": Scenario("bad_request", raw=swap(b"Authorization:", "Authorization")),
    "a folded header": Scenario("bad_request", raw=swap(b"Bearer ", "Bearer\r\n ")),
    "a NUL in a header": Scenario("bad_request", raw=swap(b"Bearer ", "Bearer\0")),
    "a bare LF": Scenario("bad_request", raw=swap(b"\r\nCookie", "\nCookie")),
    "a length that is none": Scenario("bad_request", raw=swap(rb"Length: \d+", f"Length: {BEARER}")),
    "a coding that is none": Scenario("bad_request", raw=swap(rb"Content-Length: \d+", f"Transfer-Encoding: {BEARER}")),
    "userinfo in the target": Scenario("bad_request", raw=swap(b"http://", f"http://user:{PROXY}@")),
    "userinfo in Host": Scenario("bad_request", raw=swap(b"Host: ", f"Host: user:{PROXY}@")),
    "a fragment": Scenario("bad_request", target=f"/#access_token={QUERY}"),
    "a port that is none": Scenario("bad_request", raw=swap(rb"(?<=example):\d+/v1", f":{QUERY}/v1")),
    "a host that is none": Scenario("bad_request", raw=swap(b"http://pay", f"http://-{QUERY}")),
    "a scheme that is none": Scenario("bad_request", raw=swap(b" http:", f" {QUERY}:")),
    "a space in the target": Scenario("bad_request", target=f"/?a=b {QUERY}"),
    "not for a proxy": Scenario("bad_request", raw=swap(rb" http://[^/]+/", " /")),
    "a head too large": Scenario("headers_too_large", headers=(("X-Long", BEARER * 7000),)),
    "another Host": Scenario("host_mismatch", raw=swap(b"Host: pay", "Host: other")),
    # denials by the upstream
    "another key": Scenario("pin_mismatch", host="pinned.example"),
    "garbage": Scenario("upstream_failed", respond=answers(ECHO + b"\r\n\r\n")),
    "a garbled status": Scenario("upstream_failed", respond=answers(b"HTTP/1.1 %s OK\r\n\r\n" % ECHO)),
    "a garbled header": Scenario("upstream_failed", respond=answers(HEAD + ECHO + b"\r\n\r\n")),
    "an invalid header name": Scenario("upstream_failed", respond=answers(HEAD + b"a b: " + ECHO + b"\r\n\r\n")),
    "a garbled length": Scenario("upstream_failed", respond=answers(HEAD + b"Content-Length: " + ECHO + b"\r\n\r\n")),
    "two lengths": Scenario(
        "upstream_failed", respond=answers(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + ECHO)
    ),
    "a garbled coding": Scenario("upstream_failed", respond=answers(HEAD + CODING + ECHO + b"\r\n\r\n")),
    "an endless head": Scenario("upstream_failed", respond=answers(HEAD + b"X: " + ECHO * 10_000)),
    "nothing": Scenario("upstream_failed", respond=answers(b"")),
    # denials by the response's body
    "a token in another form": Scenario(
        "decryption_failed",
        "app.example",
        respond=json_answer(b'{"card":{"protected":"%s","ciphertext":"%s"}}' % (ECHO, ECHO)),
    ),
    "half a token": Scenario(
        "decryption_failed", "app.example", respond=json_answer(b'{"card":"eyJlbmMiOjF9.b.c.d.%s"}' % ECHO)
    ),
    "a part": Scenario("decryption_failed", "app.example", respond=lambda _: PART),
    "no JSON by any label": Scenario("decryption_failed", "app.example", respond=lambda _: UNLABELLED),
    "no JSON": Scenario("decryption_failed", "app.example", respond=json_answer(b'{"card":' + ECHO)),
    "a header that is no JSON": Scenario(
        "decryption_failed",
        "app.example",
        respond=json_answer(b'{"card":"%s.AA.AA.AA.AA"}' % base64.urlsafe_b64encode(b'{"alg":"' + ECHO).rstrip(b"=")),
    ),
}  # fmt: skip


class Record:
    """A sidecar, and all that it said.

    Attributes:
        said: the denials' bodies and header fields.
        secret_keys: what of its private keys must not show.
    """

    def __init__(self, sidecar: Sidecar, authority: Authority, secret_keys: list[str]) -> None:
        self.sidecar = sidecar
        self.authority = authority
        self.secret_keys = secret_keys
        self.said = b""

    def run(self, scenario: Scenario) -> TlsUpstream:
        """Send a scenario's request and check its outcome; return the upstream, closed."""
        with TlsUpstream(self.authority, *HOSTS, respond=scenario.respond) as upstream:
            authority = f"{scenario.host}:{upstream.port}"
            target = f"http://{authority}{scenario.target}" if scenario.way is Way.HTTP else scenario.target
            whole = request(target, authority, headers=(*SECRETS, *scenario.headers), body=scenario.body)
            changed = scenario.raw(whole)
            with open_way(self.sidecar, scenario.host, upstream.port, scenario.way) as client:
                client.send(changed)
                answer = client.read_response()
        if scenario.reason is None:
            assert answer.status == 200, answer
        else:
            assert answer.headers.get("content-type") == "application/problem+json", answer
            assert answer.json()["reason"] == scenario.reason
            self.said += answer.body + repr(answer.headers).encode()
        return upstream

    def assert_silent(self) -> None:
        """Check that nothing that was ever said has a canary or a key in it."""
        said = {
            "standard output": self.sidecar.stdout,
            "standard error": self.sidecar.stderr,
            "metrics": self.sidecar.metrics().text,
            "answers": self.said.decode("utf-8", "backslashreplace"),
        }
        for what, text in said.items():
            for secret in ("canary", USER, *self.secret_keys):
                assert secret not in text, f"{secret} was written to {what}"
                assert secret[::-1] not in text


def start(authority: Authority, folder: Path, wrapper: str | None = None) -> tuple[Sidecar, list[str]]:
    """Return a sidecar of the policy, not started, and what of its keys is secret.

    Args:
        authority: whom it trusts.
        folder: its folder.
        wrapper: Python code to run in its process before the product starts.
    """
    pay, app = Receiver("pay"), Receiver("app", Alg.A256KW)
    policy = POLICY.format(
        pay=pay.write_private(folder),  # the private half where the public one would do: it must not show either
        app=app.write_private(folder),
        yesterday=(datetime.now(UTC) - timedelta(days=1)).date(),
        pin="A" * 42 + "E",
    )
    hosts = dict.fromkeys(HOSTS, "127.0.0.1")
    command = None
    if wrapper is not None:
        script = folder / "wrapper.py"
        paths = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); sys.path.append({str(ROOT)!r})\n"
        script.write_text(f"{paths}import named_hosts; named_hosts.install({hosts!r})\n{wrapper}\n")
        command = [sys.executable, "-P", str(script)]
    secrets = [to_jwk(pay.key, private=True)["d"], to_jwk(app.key, private=True)["k"]]
    return Sidecar(policy, folder, authority=authority, hosts=hosts, command=command), secrets


@pytest.fixture(scope="module")
def record(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    """One sidecar for all scenarios; after each, all that it ever said is searched."""
    sidecar, secrets = start(authority, tmp_path_factory.mktemp("secrets"))
    with sidecar:
        yield Record(sidecar, authority, secrets)


class TestNothingIsWritten:
    @pytest.mark.parametrize("name", SCENARIOS)
    def test_whatever_becomes_of_a_request(self, record: Record, name: str) -> None:
        lines = len(record.sidecar.decisions())
        record.run(SCENARIOS[name])
        record.sidecar.wait_for_decision(lambda _: len(record.sidecar.decisions()) > lines)
        record.assert_silent()

    def test_whatever_becomes_of_a_tunnel(self, record: Record, authority: Authority, roots: Path) -> None:
        proof = f"Proxy-Authorization: Basic {USER}\r\n".encode()
        with TlsUpstream(authority, *HOSTS) as upstream:
            name = f"other.example:{upstream.port}"
            for head, status in (
                (f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n", 200),
                (f"CONNECT {name} HTTP/1.1\r\nHost: never.example:1\r\n", 421),
                (f"CONNECT {name}/{QUERY} HTTP/1.1\r\nHost: {name}\r\n", 400),
                ("CONNECT never.example:443 HTTP/1.1\r\nHost: never.example:443\r\n", 403),
            ):
                with RawClient(record.sidecar.address) as client:
                    client.send(head.encode() + proof + b"\r\n")
                    answer = client.read_response(method="CONNECT")
                    assert answer.status == status
                    if status == 200:
                        client.start_tls("other.example", roots)
                        client.send(request(f"/?{QUERY}", name, headers=SECRETS, body=BODY))
                        assert client.read_response().status == 200
                    record.said += answer.body if status != 200 else b""
            with connect(record.sidecar, f"pay.example:{upstream.port}") as client:
                client.send(b"SSH-2.0-" + CARD.encode() + b"\r\n")
                assert client.read_to_end() == b""
        record.assert_silent()

    def test_the_search_would_find_a_canary(self, record: Record) -> None:
        silent = Record(record.sidecar, record.authority, record.secret_keys)
        silent.said = f'{{"detail": "{CARD}"}}'.encode()
        with pytest.raises(AssertionError, match="written to answers"):
            silent.assert_silent()
        # And the canaries do reach the upstream where they should: the requests above carried them.
        upstream = record.run(SCENARIOS["good"])
        assert QUERY.encode() in upstream.received
        assert BEARER.encode() in upstream.received
        assert CARD.encode() not in upstream.received


class TestProxyAuthorization:
    @pytest.mark.parametrize("way", Way)
    def test_it_ends_at_the_proxy(self, record: Record, way: Way) -> None:
        upstream = record.run(Scenario(None, way=way))
        (got,) = upstream.requests
        assert "proxy-authorization" not in got.headers
        assert got.headers.get("authorization") == f"Bearer {BEARER}"
        assert PROXY.encode() not in upstream.received
        assert USER.encode() not in upstream.received

    def test_it_ends_at_the_proxy_where_plain_http_is_allowed(self, authority: Authority, tmp_path: Path) -> None:
        with (
            Sidecar("defaults: {plain_http: allow}", tmp_path, authority=authority) as sidecar,
            PlainUpstream() as upstream,
            RawClient(sidecar.address) as client,
        ):
            name = f"127.0.0.1:{upstream.port}"
            client.send(request(f"http://{name}/", name, headers=(*SECRETS, ("Proxy-Connection", "keep-alive"))))
            assert client.read_response().status == 200
        assert b"proxy-" not in upstream.received.lower()


RAISES = f"""
import importlib

def raises(*_, **__):
    raise ValueError("{CARD} {BEARER}")

def break_name(module, name):
    *outer, last = name.split(".")
    holder = importlib.import_module(module)
    for part in outer:
        holder = getattr(holder, part)
    getattr(holder, last)  # a name that has moved elsewhere: the sidecar doesn't start
    setattr(holder, last, raises)
"""
START = "\nfrom proxy.cli import main\nmain()"


def _broken(module: str, name: str) -> str:
    return f"break_name({module!r}, {name!r})"


FAULTS = {
    "in a request hook": _broken("addons.encryption", "Encryption.request"),
    "in the telemetry": _broken("addons.telemetry", "Telemetry.response"),
    "in a verification callback": _broken("addons.verification", "_check"),
}
FAULTS_IN_HTTP_1 = FAULTS | {
    "in the reading of a head": _broken("proxy.engine.messages", "request_of"),
    "in the reading of a body": _broken("proxy.engine.apps.conversation", "Conversation.request_data"),
    "in the dialling": _broken("proxy.engine.upstreams.route", "dial"),
    "in the TLS": _broken("proxy.engine.tlsstream", "TlsStream.handshake"),
    "in the pool": _broken("proxy.engine.upstreams.pool", "Pool.take"),
    "in the response's head": _broken("proxy.engine.apps.conversation", "Conversation.response_head"),
    "in the response's body": _broken("proxy.engine.apps.conversation", "Conversation.response_data"),
    "in the response's end": _broken("proxy.engine.upstreams.pool", "Pool.give"),
    "in a timer": _broken("proxy.engine.apps.socket", "AppSocket._watch_idle"),
    "in a timer that was set": """
import proxy.engine.apps.socket as a
original = a.AppSocket._watch_idle
def watch_once(self):
    a.AppSocket._watch_idle = raises
    original(self)
a.AppSocket._watch_idle = watch_once
import dataclasses
import proxy.processes.apart as r
hear = r.Reading.hear
def impatient(self):
    answer = hear(self)
    if answer is None:
        return None
    limits = dataclasses.replace(answer.policy.limits, idle_seconds=0.01)
    return dataclasses.replace(answer, policy=dataclasses.replace(answer.policy, limits=limits))
r.Reading.hear = impatient
import proxy.engine.upstreams.opening as c
async def never(*_):
    await a.asyncio.sleep(60)
c.dial = never
""",
    "in a pause": _broken("proxy.engine.apps.socket", "AppSocket.hold"),
    "in the end of a connection": _broken("proxy.engine.apps.http1", "AppHttp1.gone"),
}
FAULTS_IN_HTTP_2 = FAULTS | {
    "in the state of a connection": _broken("proxy.engine.http2state", "State.receive_data"),
    "in what a frame means": _broken("proxy.engine.apps.http2", "AppHttp2.event"),
    "in a stream": _broken("proxy.engine.apps.http2stream", "AppHttp2Stream.data"),
    "in an answer": _broken("proxy.engine.apps.http2stream", "AppHttp2Stream.begin"),
    "in the conversation": _broken("proxy.engine.apps.conversation", "Conversation.request_end"),
    "in the dialling": _broken("proxy.engine.upstreams.route", "dial"),
    "in the end of a connection": _broken("proxy.engine.apps.http2", "AppHttp2.gone"),
}


class TestFaults:
    @pytest.mark.parametrize("name", FAULTS_IN_HTTP_1)
    def test_an_exception_that_quotes_secrets_is_named_without_its_message(
        self, authority: Authority, tmp_path: Path, name: str
    ) -> None:
        def fail(sidecar: Sidecar, upstream: TlsUpstream) -> bytes:
            host = f"pay.example:{upstream.port}"
            headers = (*SECRETS, ("Connection", "close"))
            # It may be closed at once, even while it is being opened. A timeout is neither: an app must not wait for
            # what has failed.
            with contextlib.suppress(ConnectionError), RawClient(sidecar.address) as client:
                with contextlib.suppress(ConnectionError):
                    sent = request(f"http://{host}/?{QUERY}", host, headers=headers, body=BODY)
                    client.send(
                        sent * 200 if name == "in a pause" else sent
                    )  # much that comes too early makes it pause
                return client.read_to_end()
            return b""

        run_fault(authority, tmp_path, FAULTS_IN_HTTP_1[name], fail)

    @pytest.mark.parametrize("name", FAULTS_IN_HTTP_2)
    def test_nor_is_it_where_the_app_speaks_http_2(self, authority: Authority, tmp_path: Path, name: str) -> None:
        def fail(sidecar: Sidecar, upstream: TlsUpstream) -> bytes:
            host = f"pay.example:{upstream.port}"
            with connect(sidecar, host) as client, contextlib.suppress(OSError, AssertionError):  # closed within
                h2 = Http2Client.open(client, "pay.example", sidecar.ca_file)
                headers = [(name.lower(), value) for name, value in SECRETS]
                return h2.read(h2.send(host, f"/?{QUERY}", headers=headers, body=BODY)).body
            return b""

        run_fault(authority, tmp_path, FAULTS_IN_HTTP_2[name], fail)


def run_fault(authority: Authority, folder: Path, fault: str, fail: Callable[[Sidecar, TlsUpstream], bytes]) -> None:
    """Run a sidecar with a fault in it, let an app run into it, and check what is said of it."""
    sidecar, secrets = start(authority, folder, RAISES + fault + START)
    with sidecar, TlsUpstream(authority, *HOSTS, respond=json_answer(b"{}")) as upstream:
        record = Record(sidecar, authority, secrets)
        record.said += fail(sidecar, upstream)
        assert CARD.encode() not in upstream.received  # a fault never lets the plaintext through
        record.assert_silent()
        assert sidecar.admin_get("/live")[0] == 200
    assert "ValueError" in sidecar.stderr + sidecar.stdout
    assert "canary" not in sidecar.stdout + sidecar.stderr


class TestKeyFiles:
    def test_a_broken_key_is_refused_without_being_quoted(self, authority: Authority, tmp_path: Path) -> None:
        secret = base64.urlsafe_b64encode(b"canary-key-canary-key-canary-key").rstrip(b"=").decode()
        broken = {
            "a.jwk": json.dumps({"kty": "oct", "k": secret + "!"}),
            "b.jwk": '{"kty":"oct","k":"' + secret,
            "c.pem": f"-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n",
            "d.txt": secret + "AAAA",  # no 32 bytes
            "e.jwk": json.dumps({"kty": "oct", "k": secret, "kid": 7, "alg": secret}),
        }
        policy = "version: 1\nkeys:\n"
        for name, content in broken.items():
            (tmp_path / name).write_text(content)
            (tmp_path / name).chmod(0o600)
            policy += f"  {name[0]}: {{alg: A256KW, primary: {{file: {name}}}}}\n"
        policy += f"  f: {{alg: A256KW, primary: {{file: '{broken['a.jwk']}'}}}}\n"
        policy += "  g: {alg: A256KW, primary: {key: {env: SOME_KEY}}}\n"
        policy += f"  h: {{alg: A256KW, primary: {{key: '{secret}'}}}}\n"
        sidecar = Sidecar(policy, tmp_path, authority=authority, env={"SOME_KEY": secret + "AAAA"})
        with pytest.raises(AssertionError, match="status 2"):
            sidecar.start()
        assert sidecar.stderr.count("policy.yaml:") == 8
        assert secret not in sidecar.stderr + sidecar.stdout
