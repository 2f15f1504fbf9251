"""The server's side: a mirror listener opens what was sealed for its server, and seals what the server answers.

Proves ARCHITECTURE.md, rules 1 to 5, of a listener that is a server: what does not open never gets to the server, and
what cannot be sealed never leaves; a host that it does not stand for gets 421; plain http goes to its own server alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import JSON, careless, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import Answer, RawClient, curl
from tests.e2e.connection import RecordedRequest
from tests.e2e.grpcs import DEADLINE, Service, unary_unary
from tests.e2e.mirrors import NAME, listener_of, mirror, peer, peer2, rule_of_mirror, write_identity
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.waiting import wait_until

TOLD = (
    ("Set-Cookie", "__Host-id=1; Secure; Path=/"),
    ("Set-Cookie", "__Secure-a=2; Secure; Domain=pay.example"),
    ("Strict-Transport-Security", "max-age=60"),
    ("Location", f"http://{NAME}:8443/next"),
)
EVENTS = (("Content-Type", "text/event-stream"),)
ANSWER = b'{ "token" : "secret-of-the-server", "n": 1.50, "items": [{"secret":null}] }'


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    """Whose key opens requests."""
    return Receiver("srv-1")


@pytest.fixture(scope="module")
def app() -> Receiver:
    """Whose key opens responses."""
    return Receiver("app-1", Alg.A256KW)


def answering(request_: RecordedRequest) -> bytes:
    """Answer as the path says."""
    match request_.target.partition("?")[0]:
        case "/json":
            body, fields = ANSWER, (("ETag", '"abc"'), ("Accept-Ranges", "bytes"), ("Content-Digest", "sha-256=:AA==:"))
            return wire.response(200, body, headers=(("Content-Type", "application/json"), *fields))
        case "/html":
            return wire.response(500, b"<p>secret-of-the-server", headers=(("Content-Type", "text/html"),))
        case "/signed":
            return wire.response(200, ANSWER, headers=(*JSON, ("X-Signature", "b" * 64)))
        case "/part":
            return wire.response(206, ANSWER, headers=(*JSON, ("Content-Range", "bytes 0-9/99")))
        case "/large":
            return wire.response(200, b'{"token":"%s"}' % (b"x" * 2_000_000), headers=JSON)
        case "/fields":
            return wire.response(200, b"{}", headers=(*JSON, *TOLD, ("Alt-Svc", 'h3=":443"')))
        case "/mislabelled":
            return wire.response(200, b'{"token":"secret-of-the-server"}\n', headers=EVENTS)
        case "/packets":
            return wire.response(200, b'data: 42["x",{"token":"secret-of-the-server"}]\n\n', headers=EVENTS)
        case "/answers":
            body = b'data: [{"jsonrpc":"2.0","id":1,"token":"secret-of-the-server"}]\n\n'
            return wire.response(200, body, headers=EVENTS)
        case "/none":
            return wire.response(200, b'{"n":1}', headers=(*JSON, ("ETag", '"abc"')))
        case _:
            return wire.response(200, request_.body, headers=JSON)


@pytest.fixture(scope="module")
def server() -> Iterator[PlainUpstream]:
    """The server behind the mirror, which speaks plain http."""
    with PlainUpstream(respond=answering) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def beside(
    tmp_path_factory: pytest.TempPathFactory,
    server: PlainUpstream,
    authority: Authority,
    receiver: Receiver,
    app: Receiver,
) -> Iterator[Sidecar]:
    """The mirror."""
    folder = tmp_path_factory.mktemp("mirror")
    with mirror(folder, server, authority, receiver, app) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    """The file of the authority's certificate."""
    return authority.write_pem(tmp_path_factory.mktemp("trusted") / "ca.pem")


type Own = Callable[..., Sidecar]


@pytest.fixture
def own(tmp_path: Path, server: PlainUpstream, authority: Authority, receiver: Receiver, app: Receiver) -> Own:
    """Return what makes a mirror for one test: in its folder and beside the server, if it says nothing else."""

    def make(behind: PlainUpstream | TlsUpstream | int = server, *, folder: Path = tmp_path, **options: Any) -> Sidecar:
        return mirror(folder, behind, authority, receiver, app, **options)

    return make


def post(sidecar: Sidecar, trusted: Path, body: bytes, path: str = "/echo", **options: object) -> Answer:
    """Send one request over HTTP/1.1 and TLS."""
    with peer(sidecar, trusted) as client:
        client.send(request(path, NAME, body=body, **options))  # type: ignore[arg-type]  # as `request` takes them
        return client.read_response()


def newest(server: PlainUpstream, path: str) -> RecordedRequest:
    """Return the last request for a path."""
    return [each for each in server.requests if each.target == path][-1]


class TestRequests:
    @pytest.mark.parametrize("version", [1, 2])
    def test_what_was_sealed_for_the_server_arrives_as_it_was(
        self, beside: Sidecar, server: PlainUpstream, receiver: Receiver, trusted: Path, version: int
    ) -> None:
        number = receiver.seal(b'"4111\\u0031 "', NAME, "$.card.number")
        inner = receiver.seal(b'{ "a" : 1.0e0 }', NAME, "$.x[*].secret")
        body = b'{ "card":{"number": ' + number + b' } ,"plain":"as it is", "x":[{"secret":' + inner + b"}]}\n"
        path = f"/opened{version}"
        if version == 1:
            assert post(beside, trusted, body, path).status == 200
        else:
            client = peer2(beside, trusted)
            assert (
                client.read(client.send(NAME, path, headers=[("content-type", "application/json")], body=body)).status
                == 200
            )
        got = newest(server, path)
        assert (
            got.body == b'{ "card":{"number": "4111\\u0031 " } ,"plain":"as it is", "x":[{"secret":{ "a" : 1.0e0 }}]}\n'
        )
        assert got.headers.get("content-length") == str(len(got.body))
        assert got.headers.get("host") == NAME
        line = beside.wait_for_decision(lambda line: line["path"] == path)
        assert (line["action"], line["rule"], line["decrypted"]) == ("mirror", "pay", 2)
        assert (line["destination"], line["upstream"]) == (f"{NAME}:443", f"127.0.0.1:{server.port}")

    def test_the_server_sees_what_it_would_see_alone(
        self, beside: Sidecar, server: PlainUpstream, trusted: Path
    ) -> None:
        """Host, order and case of fields, and what proxies before have noted, as they came; and nothing is added."""
        fields = (
            ("X-Forwarded-For", "203.0.113.9"),
            ("cOOkie", "_oc0123456789abcdef_a=1; __Host-b=2"),
            ("Origin", f"https://{NAME}"),
            ("Referer", f"https://{NAME}/x"),
            ("Accept-Encoding", "gzip"),
            ("Content-Type", "application/json"),
        )
        sent = request("/alone?q=%20", f"{NAME}:8443", headers=fields, body=b"[1]")
        with peer(beside, trusted) as client:
            client.send(sent)
            assert client.read_response().status == 200
        assert newest(server, "/alone?q=%20").raw == sent

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("name", ["Transfer_Encoding", "content_length", "X_Length"])
    def test_no_name_comes_to_the_server_that_it_may_take_for_the_framings(
        self, beside: Sidecar, server: PlainUpstream, trusted: Path, name: str, version: int
    ) -> None:
        """Else a peer could begin the next peer's request, on a connection of the pool."""
        path = f"/{name}/{version}"
        before, status = len(server.requests), 200 if name == "X_Length" else 400
        if version == 1:
            with peer(beside, trusted) as client:
                client.send(request(path, NAME, headers=((name, "chunked"),), body=b"[]"))
                assert client.read_response().status == status
        else:
            two = peer2(beside, trusted)
            assert two.read(two.send(NAME, path, headers=[(name.lower(), "5")], body=b"[]")).status == status
        assert len(server.requests) == before + (status == 200)

    @pytest.mark.parametrize("change", ["host", "path", "key", "byte", "truncated"])
    def test_a_value_that_does_not_open_never_gets_to_the_server(
        self, beside: Sidecar, server: PlainUpstream, receiver: Receiver, trusted: Path, change: str
    ) -> None:
        sealed = receiver.seal(b'"hunter"', "other.example" if change == "host" else NAME, "$.card.number")
        if change == "path":
            sealed = receiver.seal(b'"hunter"', NAME, "$.card.cvv")
        elif change == "key":
            sealed = Receiver("srv-1").seal(b'"hunter"', NAME, "$.card.number")
        elif change == "byte":
            at = sealed.index(b"..") if b".." in sealed else sealed.rindex(b".") + 3
            sealed = sealed[:at] + (b"A" if sealed[at : at + 1] != b"A" else b"B") + sealed[at + 1 :]
        elif change == "truncated":
            sealed = sealed[:-3] + b'"'
        before = len(server.requests)
        answer = post(beside, trusted, b'{"card":{"number":' + sealed + b"}}", f"/wrong-{change}")
        assert (answer.status, answer.json()["reason"]) == (422, "request_not_opened")
        line = beside.wait_for_decision(lambda line: line["path"] == f"/wrong-{change}")
        assert (line["reason"], line["outcome"]) == ("request_not_opened", "denied")
        assert b"hunter" not in answer.body
        assert len(server.requests) == before

    def test_a_body_that_says_it_is_json_and_is_none_is_refused(self, beside: Sidecar, trusted: Path) -> None:
        answer = post(beside, trusted, b'{"card":', "/broken")
        assert (answer.status, answer.json()["reason"]) == (422, "request_not_opened")

    def test_other_bodies_pass_as_they_are(self, beside: Sidecar, server: PlainUpstream, trusted: Path) -> None:
        body = b"{not json"
        with peer(beside, trusted) as client:
            client.send(
                request("/json?other", NAME, headers=(("Content-Type", "application/octet-stream"),), body=body)
            )
            assert client.read_response().status == 200
        assert newest(server, "/json?other").body == body

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("text/plain", b'[{"secret":%s}' + b',{"secret":0}' * 4096 + b"]"),
            ("text/plain; charset=iso-8859-1", b'{"secret":%s}'),
            ("application/x-www-form-urlencoded; charset=iso-8859-1", b"card=%s"),
        ],
    )
    def test_no_token_passes_in_another_body_that_could_not_be_read(
        self, beside: Sidecar, server: PlainUpstream, receiver: Receiver, trusted: Path, content_type: str, body: bytes
    ) -> None:
        token = receiver.seal(b'"4111"', "other.example", "$.secret")
        body = body.replace(b"%s", token.strip(b'"') if b"=%s" in body else token)
        before = len(server.requests)
        with peer(beside, trusted) as client:
            client.send(request("/unread", NAME, headers=(("Content-Type", content_type),), body=body))
            answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (422, "request_not_opened")
        assert len(server.requests) == before


class TestResponses:
    @pytest.mark.parametrize("version", [1, 2])
    def test_what_is_marked_leaves_sealed(self, beside: Sidecar, app: Receiver, trusted: Path, version: int) -> None:
        if version == 1:
            with peer(beside, trusted) as client:
                client.send(request("/json", NAME, method="GET", headers=()))
                answer = client.read_response()
            body, headers = answer.body, answer.headers.get
        else:
            two = peer2(beside, trusted)
            message = two.read(two.send(NAME, "/json", method="GET"))
            body, headers = message.body, message.get
        assert b"secret-of-the-server" not in body
        told = json.loads(body)
        assert app.open(told["token"].encode(), host=NAME, path="$.token") == b'"secret-of-the-server"'
        assert app.open(told["items"][0]["secret"].encode(), host=NAME, path="$.items[*].secret") == b"null"
        assert re.fullmatch(rb'{ "token" : "[^"]+", "n": 1.50, "items": \[{"secret":"[^"]+"}\] }', body)
        assert headers("etag") == 'W/"abc"'
        assert (headers("accept-ranges"), headers("content-digest")) == (None, None)
        assert headers("content-length") == str(len(body))

    def test_a_response_without_marked_values_is_as_it_came(self, beside: Sidecar, trusted: Path) -> None:
        with peer(beside, trusted) as client:
            client.send(request("/none", NAME, method="GET", headers=()))
            answer = client.read_response()
        assert (answer.body, answer.headers.get("etag")) == (b'{"n":1}', '"abc"')

    def test_fields_are_told_as_they_are_but_one_that_leads_past_the_mirror(
        self, beside: Sidecar, trusted: Path
    ) -> None:
        with peer(beside, trusted) as client:
            client.send(request("/fields", NAME, method="GET", headers=()))
            answer = client.read_response()
        told = [field for field in answer.headers.fields if field[0] not in ("Content-Type", "Content-Length")]
        assert told == list(TOLD)

    @pytest.mark.parametrize("path", ["/html", "/signed", "/part", "/large"])
    def test_nothing_of_a_response_that_cannot_be_sealed_leaves(
        self, beside: Sidecar, trusted: Path, path: str
    ) -> None:
        with peer(beside, trusted) as client:
            client.send(request(path, NAME, method="GET", headers=()))
            answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (502, "response_not_sealed")
        assert b"secret-of-the-server" not in answer.body
        line = beside.wait_for_decision(lambda line: line["path"] == path)
        assert (line["reason"], line["encrypted"]) == ("response_not_sealed", 0)

    @pytest.mark.parametrize("path", ["/mislabelled", "/packets"])
    def test_nothing_of_json_that_is_no_event_leaves(self, beside: Sidecar, trusted: Path, path: str) -> None:
        with peer(beside, trusted) as client:
            client.send(request(path, NAME, method="GET", headers=()))
            assert b"secret-of-the-server" not in client.read_to_end()
        line = beside.wait_for_decision(lambda line: line["path"] == path)
        assert (line["reason"], line["encrypted"]) == ("response_not_sealed", 0)

    def test_what_is_marked_in_an_array_of_answers_leaves_sealed_in_a_stream_too(
        self, beside: Sidecar, app: Receiver, trusted: Path
    ) -> None:
        answer = post(beside, trusted, b"{}", "/answers")
        sealed = json.loads(answer.body.removeprefix(b"data: "))[0]["token"]
        assert app.open(sealed.encode(), host=NAME, path="$[*].token") == b'"secret-of-the-server"'

    def test_servers_are_asked_for_whole_bodies(self, beside: Sidecar, server: PlainUpstream, trusted: Path) -> None:
        fields = (("Range", "bytes=0-3"), ("If-Match", 'W/"abc"'), ("Accept-Encoding", "br, gzip"))
        with peer(beside, trusted) as client:
            client.send(request("/json?ranged", NAME, method="GET", headers=fields))
            client.read_response()
        got = newest(server, "/json?ranged")
        assert got.headers.get("range") is None
        assert got.headers.get("if-match") == '"abc"'


class TestHosts:
    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (f"GET /host HTTP/1.1\r\nHost: {NAME}\r\n\r\n", 200),
            (f"GET /host HTTP/1.1\r\nHost: {NAME.upper()}.:8443\r\n\r\n", 200),
            (f"GET https://{NAME}/host HTTP/1.1\r\nHost: {NAME}\r\n\r\n", 200),
            (f"GET http://{NAME}/host HTTP/1.1\r\nHost: {NAME}\r\n\r\n", 200),
            ("GET /host HTTP/1.0\r\n\r\n", 200),
            ("GET /host HTTP/1.1\r\nHost: other.example\r\n\r\n", 421),
            ("GET /host HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 421),
            (f"GET https://other.example/host HTTP/1.1\r\nHost: {NAME}\r\n\r\n", 421),
            (f"GET https://{NAME}/host HTTP/1.1\r\nHost: other.example\r\n\r\n", 421),
            (f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\n\r\n", 400),
            (f"GET /host HTTP/1.1\r\nHost: {NAME}\r\nHost: {NAME}\r\n\r\n", 400),
        ],
    )
    def test_only_hosts_for_which_it_stands_are_served(
        self, beside: Sidecar, server: PlainUpstream, trusted: Path, head: str, status: int
    ) -> None:
        before = len(server.requests)
        with peer(beside, trusted) as client:
            client.send(head.encode())
            answer = client.read_response()
        assert answer.status == status
        assert len(server.requests) == before + (status == 200)
        if status == 421:
            assert answer.json()["reason"] == "misdirected"
            assert answer.headers.get("content-type") == "application/problem+json"

    def test_after_a_421_the_connection_serves_on(self, beside: Sidecar, trusted: Path) -> None:
        with peer(beside, trusted) as client:
            client.send(request("/host", "other.example", method="GET", headers=()))
            assert client.read_response().status == 421
            client.send(request("/host", NAME, method="GET", headers=()))
            assert client.read_response().status == 200

    def test_so_it_is_over_http2(self, beside: Sidecar, trusted: Path) -> None:
        client = peer2(beside, trusted)
        assert client.read(client.send("other.example", "/host", method="GET")).status == 421
        assert client.read(client.send(f"{NAME}:8443", "/host", method="GET")).status == 200

    @pytest.mark.parametrize(("name", "status"), [(NAME, 200), (None, 200), ("other.example", 421)])
    def test_the_tls_server_name_counts_as_well(self, beside: Sidecar, name: str | None, status: int) -> None:
        with RawClient(beside.address) as client:
            client.start_tls(name, context=careless())
            client.send(request("/host", NAME, method="GET", headers=()))
            assert client.read_response().status == status

    def test_a_line_of_a_misdirected_request_says_no_destination(self, beside: Sidecar, trusted: Path) -> None:
        with peer(beside, trusted) as client:
            client.send(request("/misdirected", "other.example", method="GET", headers=()))
            client.read_response()
        line = beside.wait_for_decision(lambda line: line["path"] == "/misdirected")
        assert (line["destination"], line["rule"], line["action"], line["reason"]) == (
            None,
            None,
            "deny",
            "misdirected",
        )


class TestTls:
    def test_plain_http_to_it_is_told_that_it_speaks_https(self, beside: Sidecar, server: PlainUpstream) -> None:
        before = len(server.requests)
        with RawClient(beside.address) as client:
            client.send(request("/plain", NAME, method="GET", headers=()))
            answer = client.read_response()
        assert (answer.status, "https" in answer.json()["detail"]) == (400, True)
        assert len(server.requests) == before

    def test_a_peer_that_does_not_trust_it_leaves_a_line(self, beside: Sidecar, tmp_path: Path) -> None:
        other = Authority().write_pem(tmp_path / "other.pem")
        with RawClient(beside.address) as client, pytest.raises(ssl.SSLCertVerificationError):
            client.start_tls(NAME, other)
        line = beside.wait_for_decision(lambda line: line["reason"] == "app_tls_failed")
        assert (line["outcome"], line["status"]) == ("app_left", None)
        assert "did not complete TLS: it sent the alert unknown_ca, " in line["detail"]
        time.sleep(0.2)  # until the connection is over, too
        assert sum(each["reason"] == "app_tls_failed" for each in beside.decisions()) == 1

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_it_speaks_tls_1_2_and_1_3(self, beside: Sidecar, trusted: Path, version: ssl.TLSVersion) -> None:
        context = ssl.create_default_context(cafile=str(trusted))
        context.minimum_version = context.maximum_version = version
        with RawClient(beside.address) as client:
            client.start_tls(NAME, context=context)
            client.send(request("/host", NAME, method="GET", headers=()))
            assert client.read_response().status == 200

    def test_nothing_older(self, beside: Sidecar) -> None:
        context = careless()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with RawClient(beside.address) as client, pytest.raises(ssl.SSLError):
            client.start_tls(NAME, context=context)

    def test_a_server_that_speaks_tls_is_verified_as_any_upstream(
        self, own: Own, authority: Authority, trusted: Path, tmp_path: Path
    ) -> None:
        for known, status in ((authority, 200), (Authority(), 502)):
            with (
                TlsUpstream(known, "127.0.0.1", respond=answering) as behind,
                own(behind, folder=tmp_path / str(status)) as sidecar,
            ):
                answer = post(sidecar, trusted, b"{}")
                assert answer.status == status
                if status == 502:
                    assert answer.json()["reason"] == "certificate_invalid"
                    behind.assert_no_application_bytes()


def elsewhere(sidecar: Sidecar) -> None:
    """Let the entries of a mirror's policy be about one path only."""
    text = re.sub(r"(- \{.*)\}$", r"\1, when: {paths: [/sealed]}}", sidecar.policy_file.read_text(), flags=re.MULTILINE)
    assert text.count("/sealed") == 2
    sidecar.policy_file.write_text(text)


class TestAsAnyListener:
    def test_a_new_certificate_is_taken_over_when_its_files_change(
        self, own: Own, authority: Authority, trusted: Path, tmp_path: Path
    ) -> None:
        with own() as sidecar:

            def shown() -> bytes:
                with peer(sidecar, trusted) as client:
                    return client.peer_certificate

            old = shown()
            with peer(sidecar, trusted) as kept:
                renewed = authority.issue(NAME)
                write_identity(tmp_path, renewed)
                wait_until(lambda: shown() != old, "the new certificate is shown", seconds=20)
                assert shown() == ssl.PEM_cert_to_DER_cert(renewed.chain_pem[0].decode())
                kept.send(request("/host", NAME, method="GET", headers=()))  # with the one with which it began
                assert kept.read_response().status == 200
            write_identity(tmp_path, authority.issue("other.example"))
            wait_until(lambda: "does not name" in sidecar.stderr, "a wrong one is refused", seconds=20)
            assert shown() != old  # the one before stays in force
            assert sidecar.metrics().value("overcoat_mirror_certificate_expiry_timestamp_seconds", host=NAME) > 0

    def test_plain_peers_are_served_if_they_are_listed(
        self, own: Own, server: PlainUpstream, receiver: Receiver, tmp_path: Path
    ) -> None:
        for who, status in (("127.0.0.0/8", 200), ("10.0.0.0/8", 403)):
            listener = listener_of(server, more=f"&from={who}")
            with (
                own(folder=tmp_path / who[:2], listener=listener) as sidecar,
                RawClient(sidecar.address) as client,
            ):
                body = b'{"x":{"secret":' + receiver.seal(b"1", NAME, "$.x.secret") + b"}}"
                client.send(request("/plainly", NAME, body=body))
                answer = client.read_response()
                assert answer.status == status
                if status == 403:
                    assert answer.json()["reason"] == "client_forbidden"
                    assert answer.json()["detail"] == "the mirror listener lets nobody at 127.0.0.1 connect"
                    assert "`from`" in answer.json()["hint"]  # clients.allow says nothing here
                else:
                    assert newest(server, "/plainly").body == b'{"x":{"secret":1}}'

    def test_observe_mode_changes_nothing(
        self, own: Own, server: PlainUpstream, receiver: Receiver, trusted: Path
    ) -> None:
        with own(rule="mode: observe") as sidecar:
            body = b'{"x":{"secret":' + receiver.seal(b"1", NAME, "$.x.secret") + b"}}"
            assert post(sidecar, trusted, body, "/observed").body == body
            assert newest(server, "/observed").body == body
            with peer(sidecar, trusted) as client:
                client.send(request("/json?observed", NAME, method="GET", headers=()))
                assert client.read_response().body == ANSWER
            with peer(sidecar, trusted) as client:
                client.send(request("/host", "other.example", method="GET", headers=()))
                assert client.read_response().status == 421
            line = sidecar.wait_for_decision(lambda line: line["path"] == "/observed")
            assert (line["mode"], line["action"], line["outcome"]) == ("observe", "mirror", "observed")

    def test_a_server_of_http_1_1_is_asked_in_that_whatever_its_peers_speak(
        self, beside: Sidecar, server: PlainUpstream, trusted: Path
    ) -> None:
        client = peer2(beside, trusted)
        fields = [("te", "trailers"), ("content-type", "application/json"), ("content-length", "2")]
        stream = client.begin(NAME, "/trailers", headers=fields)
        client.go_on(stream, b"{}", last=True)
        assert client.read(stream).status == 200
        assert newest(server, "/trailers").body == b"{}"

    def test_grpc_passes_where_nothing_in_it_is_marked(self, own: Own, authority: Authority) -> None:
        options = (("grpc.ssl_target_name_override", NAME), ("grpc.default_authority", NAME))
        with Service(None) as service:
            sidecar = own(service.port)
            elsewhere(sidecar)
            trust = grpc.ssl_channel_credentials(authority.pem)
            with sidecar, grpc.secure_channel(sidecar.listen[0], trust, options) as channel:
                assert unary_unary(channel, "Echo")(b"\x00hello\xff", timeout=DEADLINE) == b"\x00hello\xff"

    def test_its_server_is_never_reached_through_another_proxy(self, own: Own, trusted: Path) -> None:
        with PlainUpstream() as proxy:
            more = f"\n    upstream_proxy: {{url: 'http://127.0.0.1:{proxy.port}'}}\n"
            with own(more=more) as sidecar:
                assert post(sidecar, trusted, b"{}").status == 200
            proxy.assert_untouched()

    def test_several_processes_show_the_same(self, own: Own, receiver: Receiver, trusted: Path) -> None:
        with own(more="\n    workers: 2\n") as sidecar:
            for _ in range(8):
                body = b'{"x":{"secret":' + receiver.seal(b"1", NAME, "$.x.secret") + b"}}"
                assert post(sidecar, trusted, body).status == 200

    def test_a_server_that_is_not_there_is_said_and_is_asked_no_other_way(self, own: Own, trusted: Path) -> None:
        with PlainUpstream() as gone:
            sidecar = own(gone)
        with sidecar:
            answer = post(sidecar, trusted, b"{}")
        assert (answer.status, answer.json()["reason"]) == (502, "upstream_unreachable")
        assert "mirror" in answer.json()["hint"]

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_nothing_leaves_for_its_host_by_another_listener(
        self, own: Own, server: PlainUpstream, scheme: str
    ) -> None:
        both = f"{listener_of(server)}', 'forward://127.0.0.1:0"
        with own(listener=both) as sidecar:
            proxy = f"http://{sidecar.listen[1]}"
            answer = curl(f"{scheme}://{NAME}/leaving", proxy=proxy, ca_file=sidecar.ca_file)
            line = sidecar.wait_for_decision(lambda line: line["reason"] == "destination_forbidden")
        assert answer.status in {0, 403}
        assert f"stands for {NAME}" in line["detail"]
        assert not [each for each in server.requests if each.target == "/leaving"]

    def test_what_it_would_do_is_explained(self, beside: Sidecar, receiver: Receiver, tmp_path: Path) -> None:
        body = tmp_path / "body.json"
        body.write_bytes(b'{"card":{"number":' + receiver.seal(b"1", NAME, "$.card.number") + b"}}")
        (told,) = json.loads(beside.run("explain", "-p", "policy.yaml", "--json", "--body", str(body), NAME))[
            "requests"
        ]
        assert (told["action"], told["rule"], told["denied"]) == ("mirror", "pay", [])
        assert [entry["selectors"] for entry in told["decrypt"]] == [["$.card.number", "$..secret"]]
        assert [entry["selectors"] for entry in told["encrypt"]] == [["$.token", "$..secret"]]
        assert [place["path"] for place in told["places"]] == ["$.card.number"]
        said = beside.run("explain", "-p", "policy.yaml", f"https://{NAME}/v1")
        assert "mirror: requests are opened for the server behind it, and its responses are sealed" in said
        assert "mirror: requests are opened, responses sealed" in beside.run("check", "-p", "policy.yaml")
        wrong = tmp_path / "wrong.json"
        wrong.write_bytes(b'{"card":{"number":' + receiver.seal(b"1", NAME, "$.card.cvv") + b"}}")
        (told,) = json.loads(beside.run("explain", "-p", "policy.yaml", "--json", "--body", str(wrong), NAME))[
            "requests"
        ]
        assert told["denial"]["reason"] == "request_not_opened"

    def test_a_websocket_passes_where_nothing_in_it_is_marked(self, own: Own, trusted: Path) -> None:
        def switch(got: RecordedRequest) -> bytes:
            key = (got.headers.get("sec-websocket-key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            fields = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            return b"HTTP/1.1 101 Switching Protocols\r\n" + fields.encode() + b"\x81\x02hi"

        with PlainUpstream(respond=switch) as talking:
            sidecar = own(talking)
            elsewhere(sidecar)
            with sidecar, peer(sidecar, trusted) as client:
                fields = (
                    ("Connection", "Upgrade"),
                    ("Upgrade", "websocket"),
                    ("Sec-WebSocket-Version", "13"),
                    ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
                )
                client.send(request("/talk", NAME, method="GET", headers=fields))
                assert client.read_response().status == 101
                assert client.read_exactly(4) == b"\x81\x02hi"


def test_no_app_is_served_on_a_connection_that_a_mirror_opened(own: Own, trusted: Path) -> None:
    """Other ways lead to a mirror's server than to a host of that name: nothing is shared, in observe mode either."""
    with PlainUpstream() as server:
        listener = listener_of(server).replace("http://127.0.0.1", f"http://{NAME}") + "', 'forward://127.0.0.1:0"
        with own(server, listener=listener, more="    mode: observe\n", hosts={NAME: "127.0.0.1"}) as sidecar:
            with peer(sidecar, trusted) as client:
                client.send(request("/mirrored", NAME, method="GET"))
                assert client.read_response().status == 200
            authority = f"{NAME}:{server.port}"
            with RawClient(sidecar.addresses[1]) as client:
                client.send(f"GET http://{authority}/from-here HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
                assert client.read_response().status == 200
        assert len(server.connections) == 2


def without_form(folder: Path, receiver: Receiver, app: Receiver, more: str = "") -> str:
    """Return the mirror's rule without `form`: only the JSON in uploads is opened."""
    text = rule_of_mirror(folder, receiver, app).replace(", form: [card]", more)
    return f"limits: {{held_body: 1024}}\n{dedent(text)}"


UPLOAD = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
UPLOADS = {  # each unreadable for one cause, but the first
    "fine": (UPLOAD, b"--b--\r\n"),
    "an escape in a file's name": (UPLOAD.replace(b'"%s"', b'"%s"; filename="a\\".txt"'), b"--b--\r\n"),
    "no end": (UPLOAD, b""),
    "something before the boundary": (b"preamble\r\n" + UPLOAD, b"--b--\r\n"),
}


@pytest.mark.parametrize("on_failure", ["deny", "pass"])
@pytest.mark.parametrize("length", [100, 5000], ids=["held", "streamed"])
@pytest.mark.parametrize("kind", UPLOADS)
def test_an_upload_that_cannot_be_read_is_denied_held_or_not_also_without_form(
    server: PlainUpstream,
    authority: Authority,
    receiver: Receiver,
    app: Receiver,
    trusted: Path,
    tmp_path: Path,
    kind: str,
    length: int,
    on_failure: str,
) -> None:
    write_identity(tmp_path, authority.issue(NAME))
    more = ", on_failure: pass" if on_failure == "pass" else ""
    policy = f"listen: ['{listener_of(server)}']\n" + without_form(tmp_path, receiver, app, more)
    part, end = UPLOADS[kind]
    body = part % (b"x", b"", b"x" * length) + end
    path = f"/json?{quote(kind)}-{length}-{on_failure}"
    with Sidecar(policy, tmp_path, authority=authority) as sidecar, peer(sidecar, trusted) as client:
        fields = (("Content-Type", "multipart/form-data; boundary=b"),)
        client.send(request(path, NAME, headers=fields, body=body))
        if kind == "fine" or on_failure == "pass":
            assert client.read_response().status == 200
            assert newest(server, path).body == body
            return
        answer = client.read_response()
        line = sidecar.wait_for_decision()
    assert (line["reason"], line["outcome"]) == ("request_not_opened", "denied")
    assert answer.status == 422
    assert not any(each.target == path for each in server.requests)


def test_no_session_is_kept_for_a_peer_that_keeps_none_itself(
    own: Own, trusted: Path, authority: Authority, tmp_path: Path
) -> None:
    """Each would take 1 KiB, and OpenSSL keeps 20,480 for each certificate. Who takes tickets resumes them."""

    def resumes(address: tuple[str, int], roots: Path, options: int, name: str, ask: bytes = b"") -> bool:
        tls = ssl.create_default_context(cafile=str(roots))
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        tls.options |= options
        session, was_resumed = None, None
        for _ in range(2):
            with socket.create_connection(address, 5) as raw:
                if ask:
                    raw.sendall(ask)
                    assert raw.recv(100).startswith(b"HTTP/1.1 200")
                with tls.wrap_socket(raw, server_hostname=name, session=session) as stream:
                    session, was_resumed = stream.session, stream.session_reused
                    with contextlib.suppress(OSError):
                        stream.unwrap()  # OpenSSL resumes no session that has not ended in order
        return bool(was_resumed)

    inspects = "listen: ['forward://127.0.0.1:0']\ndefaults: {https: inspect}\n"
    inside = b"CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\r\n"
    folder = tmp_path / "forward"
    folder.mkdir()
    with PlainUpstream() as server, own(server) as beside, Sidecar(inspects, folder, authority=authority) as before:
        for options, is_resumed in ((ssl.OP_NO_TICKET, False), (0, True)):
            assert resumes(beside.address, trusted, options, NAME) is is_resumed
            assert resumes(before.address, before.ca_file, options, "api.example", inside) is is_resumed
