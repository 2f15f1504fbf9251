"""`when` cannot be walked round: what a server may read as a marked request is one, whatever the request line says.

Proves ARCHITECTURE's rule 1 (fail closed) for `when`: in each case the marked field arrives sealed or not at all. The
policy marks PUT requests to one path; an nginx, a Symfony, a Rails, an Express or an IIS takes each of these for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.app import JSON, Fields, Way, ask, assert_denied, connect, decision_of, fresh
from tests.e2e.certificates import Authority
from tests.e2e.http2 import Http2Client
from tests.e2e.receiver import Marked, Receiver, assert_only_marked_changed, plain
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOST = "pay.example"
SSN = b'{"ssn":"078"}'
PIECES = (b'{"ssn":', Marked(b'"078"', "$.ssn"), b"}")
FORM: Fields = (("Content-Type", "application/x-www-form-urlencoded"),)
MULTIPART: Fields = (("Content-Type", "multipart/form-data; boundary=b"),)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("when")
    policy = f"""
        keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {receiver.write_public(folder)}}}}}}}
        rules:
          - name: pay
            hosts: [{HOST}]
            request:
              - {{encrypt: ["$.ssn"], key: pay, when: {{methods: [PUT], paths: [/v1/pay]}}}}
    """
    with Sidecar(policy, folder, authority=authority, hosts={HOST: "127.0.0.1"}) as running:
        yield running


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    return fresh(lambda: tls_upstream(HOST))


PATHS = (
    *(
        "/v1/pay%0a",
        "/v1/pay%00",
        "/v1/pay%00.png",
        "/v1/pay%0d%0a",
        "/v1/pay%09",
        "/v1/pay%20",
        "/v1/pay.",
        "/v1/pay/",
    ),
    *("/V1/PAY", "/v1%2fpay", "/v1/pay;a=b", "/v1/p%2561y", "/v1%5cpay", "/v1/%ef%bd%90ay", "/v1/%c0%af../v1/pay"),
    *("/v1/pay%c2%a0", "/v1/pay%e2%80%8b", "/v1/pay%3fx", "/v1/pay%23", "/v1/pay.json", "/v1/pay%", "//v1/pay"),
    *("/v1/pay.json/", "/v1/pay.JSON", "/v1/pay/.json", "/v1/pay.json%20/"),
)
OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "x_http_method_override")
ELSEWHERE = ("X-Original-URL", "X-Rewrite-URL", "X-Original-URI", "X_Original_URL")


class TestSealed:
    @pytest.mark.parametrize("path", PATHS)
    def test_at_a_path_that_a_server_may_read_as_the_marked_one(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, path: str
    ) -> None:
        assert ask(sidecar, upstream, HOST, path, method="PUT", body=SSN).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.target == path  # it goes on as it came
        assert_only_marked_changed(got.body, PIECES, receiver, HOST)

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("name", OVERRIDES)
    def test_with_a_field_that_asks_for_the_marked_method(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, name: str, way: Way
    ) -> None:
        fields = (*JSON, (name, "put"))
        assert ask(sidecar, upstream, HOST, "/v1/pay", way=way, headers=fields, body=SSN).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert (got.method, got.headers.get(name)) == ("POST", "put")
        assert_only_marked_changed(got.body, PIECES, receiver, HOST)

    @pytest.mark.parametrize("name", ELSEWHERE)
    def test_with_a_field_that_names_the_marked_path(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, name: str
    ) -> None:
        fields = (*JSON, (name, "/v1/pay?x=1"))
        assert ask(sidecar, upstream, HOST, "/other", method="PUT", headers=fields, body=SSN).status == 200
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, PIECES, receiver, HOST)

    @pytest.mark.parametrize("query", ["_method=PUT", "a=1&%5Fmethod=put", ".method=PUT", "X-HTTP-Method-Override=PUT"])
    def test_with_a_query_that_asks_for_the_marked_method(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, query: str
    ) -> None:
        assert ask(sidecar, upstream, HOST, f"/v1/pay?{query}", body=SSN).status == 200
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, PIECES, receiver, HOST)

    def test_with_a_member_of_its_body_that_asks_for_it(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        pieces = (b'{"\\u005fmethod":"PUT","ssn":', Marked(b'"078"', "$.ssn"), b"}")
        assert ask(sidecar, upstream, HOST, "/v1/pay", body=plain(pieces)).status == 200
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receiver, HOST)

    def test_over_http_2(self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver) -> None:
        authority = f"{HOST}:{upstream.port}"
        client = Http2Client.open(connect(sidecar, authority), HOST, sidecar.ca_file)
        for path, method, fields in (
            ("/v1/pay%0a", "PUT", []),
            ("/v1/pay", "POST", [("x-http-method-override", "PUT")]),
            ("/v1/pay?_method=PUT", "POST", []),
            ("/x", "PUT", [("x-original-url", "/v1/pay")]),
        ):
            stream = client.begin(
                authority, path, method=method, headers=[("content-type", "application/json"), *fields]
            )
            client.go_on(stream, SSN, last=True)
            assert client.read(stream).status == 200
        client.close()
        for got in upstream.wait_for_requests(4):
            assert_only_marked_changed(got.body, PIECES, receiver, HOST)

    @pytest.mark.parametrize("has_length", [False, True])
    def test_with_a_member_of_a_body_of_http_2_that_asks_for_it(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, has_length: bool
    ) -> None:
        """There a body needs no field that announces it."""
        pieces = (b'{"_method":"PUT","ssn":', Marked(b'"078"', "$.ssn"), b"}")
        body, authority = plain(pieces), f"{HOST}:{upstream.port}"
        client = Http2Client.open(connect(sidecar, authority), HOST, sidecar.ca_file)
        fields = [("content-type", "application/json"), *([("content-length", str(len(body)))] if has_length else [])]
        assert client.read(client.send(authority, "/v1/pay", headers=fields, body=body)).status == 200
        client.close()
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receiver, HOST)


class TestDenied:
    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            (FORM, b"ssn=078&_method=PUT"),
            (FORM, b"ssn=078&_m%65thod=put"),
            (FORM, b"_method[]=PUT&ssn=078"),
            ((), b"ssn=078&_method=PUT"),
            (MULTIPART, b'--b\r\nContent-Disposition: form-data; name="_method"\r\n\r\nPUT\r\n--b--\r\n'),
            (JSON, b'{"_method":"PUT","ssn":"078",}'),
        ],
    )
    def test_a_body_that_asks_for_the_marked_method_and_is_no_json(
        self, sidecar: Sidecar, upstream: TlsUpstream, headers: Fields, body: bytes
    ) -> None:
        answer = ask(sidecar, upstream, HOST, "/v1/pay", headers=headers, body=body)
        assert_denied(sidecar, upstream, answer, "body_not_json")

    @pytest.mark.parametrize("chunked", [False, True])
    def test_one_that_is_too_large_to_be_looked_into(
        self, sidecar: Sidecar, upstream: TlsUpstream, chunked: bool
    ) -> None:
        body = b"x=" + b"a" * (1024 * 1024)
        sent = {"chunks": [body]} if chunked else {"body": body}
        answer = ask(sidecar, upstream, HOST, "/v1/pay", headers=FORM, **sent)  # one of both
        assert_denied(sidecar, upstream, answer, "body_too_large")


class TestTwins:
    """The same in all, but for the one thing that makes it a marked request: it passes as it came."""

    @pytest.mark.parametrize(
        ("method", "path", "headers", "body"),
        [
            ("PUT", "/v1/payx", JSON, SSN),
            ("PUT", "/v1/pay/x", JSON, SSN),
            ("POST", "/v1/pay", JSON, SSN),
            ("POST", "/v1/pay", (*JSON, ("X-HTTP-Method-Override", "PATCH")), SSN),
            ("POST", "/v1/pay?method=PUT", JSON, SSN),
            ("PUT", "/x", (*JSON, ("X-Original-URL", "/v1/payx")), SSN),
            ("POST", "/v1/pay", FORM, b"ssn=078&_method=PATCH"),
            ("POST", "/v1/pay", FORM, b"ssn=078&payment_method=PUT"),
            ("POST", "/v1/other", FORM, b"ssn=078&_method=PUT"),
            (
                "POST",
                "/v1/pay",
                MULTIPART,
                b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n_method\r\n--b--\r\n',
            ),
            ("POST", "/v1/pay", JSON, b'{"a":{"_method":"PUT"},"ssn":"078"}'),
            ("POST", "/v1/pay", JSON, b'{"ssn":"078",}'),
        ],
    )
    def test_what_is_not_marked_passes_as_it_came(
        self, sidecar: Sidecar, upstream: TlsUpstream, method: str, path: str, headers: Fields, body: bytes
    ) -> None:
        assert ask(sidecar, upstream, HOST, path, method=method, headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert (got.target, got.body) == (path, body)
        line = decision_of(sidecar, upstream)
        assert (line["encrypted"], line["bytes_sent"]) == (0, len(body))

    def test_a_large_body_of_a_kind_that_nobody_looks_into_streams(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        body = b"_method=PUT&" + b"a" * (1024 * 1024)
        headers = (("Content-Type", "application/octet-stream"),)
        assert ask(sidecar, upstream, HOST, "/v1/pay", headers=headers, body=body).status == 200
        assert upstream.wait_for_requests(1)[0].body == body


class TestExplain:
    @pytest.mark.parametrize(
        ("arguments", "applies"),
        [
            (["-X", "PUT", "/v1/pay%0a"], True),
            (["-X", "POST", "/v1/pay"], False),
            (["-X", "POST", "-H", "X-HTTP-Method-Override: PUT", "/v1/pay"], True),
            (["-X", "POST", "/v1/pay?_method=PUT"], True),
            (["-X", "PUT", "-H", "X-Rewrite-URL: /v1/pay", "/x"], True),
            (["-X", "PUT", "-H", "X-Rewrite-URL: /v1/x", "/x"], False),
        ],
    )
    def test_it_says_the_same(self, sidecar: Sidecar, arguments: list[str], applies: bool) -> None:
        *options, path = arguments
        (said, *_) = json.loads(
            sidecar.run("explain", "-p", str(sidecar.policy_file), "--json", *options, f"https://{HOST}{path}")
        )["requests"]
        assert [each["selectors"] for each in said["encrypt"]] == ([["$.ssn"]] if applies else [])

    def test_a_body_that_asks_for_the_marked_method_counts_there_too(self, sidecar: Sidecar, tmp_path: Path) -> None:
        body = tmp_path / "body"
        body.write_bytes(b"ssn=078&_method=PUT")
        form = ("-H", "Content-Type: application/x-www-form-urlencoded")
        text = sidecar.run(
            "explain", "-p", str(sidecar.policy_file), "--json", "--body", str(body), *form, f"https://{HOST}/v1/pay"
        )
        assert json.loads(text)["requests"][0]["denied"] == ["body_not_json"]
