"""Marked fields in bodies of every kind arrive as JWEs that their receiver opens, and every other byte as it was sent.

Proves ARCHITECTURE's rules 1 (closed when in doubt), 3 (nothing leaves early) and 5 (touch only what is marked) for
forms, multipart forms, lines, sequences, batches, patches and GraphQL, each as it is and in gzip, in HTTP/1.1 and
HTTP/2. Each body that is denied has a twin that passes, and differs from it in one property.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from tests.e2e.app import Fields, ask, assert_denied, decision_of, fresh
from tests.e2e.certificates import Authority
from tests.e2e.http2 import Http2Upstream, speak
from tests.e2e.receiver import TOKEN, Marked, Pieces, Receiver, plain
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("pay.example", "json.example", "needed.example", "graph.example")

POLICY = """
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}}}
    rules:
      - name: pay
        hosts: [pay.example]
        request:
          - encrypt: ["$.card.number", "$.ssn", "$.params.ssn"]
            form: [card_number, "card[cvv]"]
            key: pay
      - name: json
        hosts: [json.example]
        request: [{{encrypt: ["$.ssn"], key: pay}}]
      - name: needed
        hosts: [needed.example]
        request: [{{encrypt: ["$.ssn"], form: [ssn], key: pay, required: true}}]
      - name: graph
        hosts: [graph.example]
        request:
          - encrypt: ["$.variables.ssn"]
            graphql_arguments: [ssn]
            key: pay
"""

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=xYz"


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    """Who the fields are encrypted for."""
    return Receiver("pay")


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("kinds")
    policy = POLICY.format(pay=receiver.write_public(folder))
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream that goes by all names of the policy."""
    return fresh(lambda: tls_upstream(*HOSTS))


@pytest.fixture
def http2_upstream(authority: Authority) -> Iterator[Http2Upstream]:
    """The same, which speaks HTTP/2."""
    with fresh(lambda: Http2Upstream(authority, *HOSTS)) as upstream:
        yield upstream


@dataclass(frozen=True, slots=True)
class Text(Marked):
    """A marked value that stands in a body as text, and not as JSON.

    Attributes:
        text: what it stands for.
    """

    text: str = ""


def part(name: str, more: str = "") -> bytes:
    return f'--xYz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()


BODIES: dict[str, tuple[str, Pieces]] = {
    "form": (
        FORM,
        (
            b"a=1&card_number=",
            Text(b"41%201+1%C3%A9", "$.card_number", "41 1 1é"),
            b"&b=%zz+&%63ard_number=",
            Text(b"", "$.card_number", ""),
            b"&card%5Bcvv%5D=",
            Text(b'1"\\', "$['card[cvv]']", '1"\\'),
            b"&CARD_NUMBER=x&ssn=free",
        ),
    ),
    "multipart": (
        MULTIPART,
        (
            part("note") + b'{"ssn":"free"}\r\n' + part("card_number"),
            Text(b'4111\r\n "\\\xc3\xa9', "$.card_number", '4111\r\n "\\é'),
            b"\r\n" + part("f", '; filename="x.bin"\r\nContent-Type: a/b') + bytes(range(256)) * 9 + b"\r\n",
            part("card[cvv]"),
            Text(b"12", "$['card[cvv]']", "12"),
            b"\r\n--xYz--\r\n",
        ),
    ),
    "json": ("application/vnd.api+json", (b' {"ssn" : ', Marked(b'"078"', "$.ssn"), b',"x":1.0}\n')),
    "json as a form": (FORM, (b'{"ssn":', Marked(b'"0&7=8"', "$.ssn"), b"}")),
    "json as text": ("text/plain;charset=UTF-8", (b'{"ssn":', Marked(b"[1 ]", "$.ssn"), b"}")),
    "lines": (
        "application/x-ndjson",
        (b'{"ssn":', Marked(b"1", "$.ssn"), b'}\r\n\n{"x":1}\n {"ssn": ', Marked(b'"2"', "$.ssn"), b"}"),
    ),
    "sequence": (
        "application/json-seq",
        (b'\x1e{"ssn":', Marked(b"1", "$.ssn"), b'}\n\x1e{"ssn":\n', Marked(b"2", "$.ssn"), b"}\n"),
    ),
    "batch": (
        "application/json-rpc",
        (
            b'[{"jsonrpc":"2.0","params":{"ssn":',
            Marked(b'"1"', "$[*].params.ssn"),
            b'}},{"jsonrpc":"2.0","params":["ssn"]},{"params":{"ssn" :',
            Marked(b"{}", "$[*].params.ssn"),
            b"}}]",
        ),
    ),
    "patch": (
        "application/json-patch+json",
        (
            b'[{"op":"test","path":"/ssn","value":',
            Marked(b"1", "$.ssn"),
            b'},{"op":"add","path":"/card","value":{"number":',
            Marked(b'"4111"', "$.card.number"),
            b',"cvv":1}},{"op":"remove","path":"/card/number"},{"op":"add","value" : ',
            Marked(b"[0]", "$.card.number[*]"),
            b',"path":"/c\\u0061rd/number/0"}]',
        ),
    ),
    "merge patch": ("application/merge-patch+json", (b'{"ssn":', Marked(b"null", "$.ssn"), b"}")),
}


def check(body: bytes, pieces: Pieces, receiver: Receiver, host: str = "pay.example") -> None:
    """Check that what arrived has tokens in place of the marked values, and is the same between them."""

    def pattern_of(piece: bytes | Marked) -> bytes:
        if isinstance(piece, bytes):
            return re.escape(piece)
        return b"(%s)" % TOKEN if isinstance(piece, Text) else b'"(%s)"' % TOKEN

    pattern = b"".join(map(pattern_of, pieces))
    found = re.fullmatch(pattern, body, re.DOTALL)
    assert found is not None, f"bytes outside the marked values changed: {body!r}"
    marked = [piece for piece in pieces if isinstance(piece, Marked)]
    for token, piece in zip(found.groups(), marked, strict=True):
        value = receiver.open(token, host=host, path=piece.path)
        if isinstance(piece, Text):
            assert json.loads(value) == piece.text
        else:
            assert value == piece.value


class TestWhatArrives:
    @pytest.mark.parametrize("coding", ["identity", "gzip"])
    @pytest.mark.parametrize("kind", BODIES)
    def test_in_http_1(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, kind: str, coding: str
    ) -> None:
        content_type, pieces = BODIES[kind]
        body = plain(pieces)
        fields: Fields = (("Content-Type", content_type),)
        if coding == "gzip":
            body, fields = gzip.compress(body), (*fields, ("Content-Encoding", coding))
        assert ask(sidecar, upstream, "pay.example", headers=fields, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("content-length") == str(len(got.body))
        assert got.headers.get("content-type") == content_type
        check(gzip.decompress(got.body) if coding == "gzip" else got.body, pieces, receiver)
        count = sum(isinstance(piece, Marked) for piece in pieces)
        assert decision_of(sidecar, upstream)["encrypted"] == count

    @pytest.mark.parametrize("coding", ["identity", "gzip"])
    @pytest.mark.parametrize("kind", BODIES)
    def test_in_http_2(
        self, sidecar: Sidecar, http2_upstream: Http2Upstream, receiver: Receiver, kind: str, coding: str
    ) -> None:
        content_type, pieces = BODIES[kind]
        body = gzip.compress(plain(pieces)) if coding == "gzip" else plain(pieces)
        authority = f"pay.example:{http2_upstream.port}"
        client = speak(sidecar, authority)
        fields = [("content-type", content_type), ("content-encoding", coding)]
        assert client.read(client.send(authority, headers=fields, body=body)).status == 200
        client.close()
        (got,) = http2_upstream.wait_for_messages(1)
        check(gzip.decompress(got.body) if coding == "gzip" else got.body, pieces, receiver)

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            (FORM, b"a=%zz&b&=c&&card_number&card_numbers=1;2"),
            (MULTIPART, part("ssn") + b"1\r\n--xYz--"),
            ("application/x-ndjson", b'\n{"a":1}\n\n'),
            ("application/json-patch+json", b'[{"op":"add","path":"/cards/-","value":{"number":1}}]'),
            ("application/json", b'[{"ssn":1}]'),
            (FORM, b""),
            (MULTIPART, b""),
        ],
    )
    def test_where_nothing_is_marked_the_very_same_bytes_arrive(
        self, sidecar: Sidecar, upstream: TlsUpstream, content_type: str, body: bytes
    ) -> None:
        headers = (("Content-Type", content_type),)
        assert ask(sidecar, upstream, "pay.example", headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.body == body


DENIED = {
    # content type, what is denied, what passes
    "a bad escape in a name": (FORM, b"c%zzrd=1&card_number=1", b"c%20rd=1&card_number=1"),
    "a bad escape in a marked value": (FORM, b"card_number=%f", b"card_number=%20"),
    "a marked value in Latin-1": (FORM, b"card_number=%e9", b"card_number=%c3%a9"),
    "a spelling of PHP": (FORM, b"card.number=1", b"cord.number=1"),
    "an array of PHP": (FORM, b"card_number[]=1", b"cord_number[]=1"),
    "a semicolon": (FORM, b"a=1;card_number=1", b"a=1%3Bcard_number=1"),
    "another charset in the form": (FORM, b"_charset_=latin-1&card_number=1", b"_charset_=UTF-8&card_number=1"),
    "json that is a form, too": (FORM, b'{"a":"&card_number=1"}', b'{"a":"&cord_number=1"}'),
    "text before the first delimiter": (MULTIPART, b"x\r\n" + part("a") + b"1\r\n--xYz--", part("a") + b"1\r\n--xYz--"),
    "text behind the last one": (MULTIPART, part("a") + b"1\r\n--xYz--x", part("a") + b"1\r\n--xYz--\r\n"),
    "no last delimiter": (MULTIPART, part("a") + b"1\r\n", part("a") + b"1\r\n--xYz--"),
    "line ends without CR": (MULTIPART, part("a") + b"1\n--xYz--", part("a") + b"1\r\n--xYz--"),
    "a name twice": (
        MULTIPART,
        part("a", '; name="card_number"') + b"1\r\n--xYz--",
        part("a", '; filename="card_number"') + b"1\r\n--xYz--",
    ),
    "a marked file": (
        MULTIPART,
        part("card_number", '; filename="x"') + b"1\r\n--xYz--",
        part("card_number") + b"1\r\n--xYz--",
    ),
    "a marked part in another charset": (
        MULTIPART,
        part("card_number", "\r\nContent-Type: text/plain; charset=utf-16") + b"1\r\n--xYz--",
        part("card_number", "\r\nContent-Type: text/plain; charset=utf-8") + b"1\r\n--xYz--",
    ),
    "a part in base64": (
        MULTIPART,
        part("card_number", "\r\nContent-Transfer-Encoding: base64") + b"MQ==\r\n--xYz--",
        part("card_number", "\r\nContent-Transfer-Encoding: binary") + b"MQ==\r\n--xYz--",
    ),
    "parts in a part": (
        MULTIPART,
        part("a", "\r\nContent-Type: multipart/mixed; boundary=x") + b"1\r\n--xYz--",
        part("a", "\r\nContent-Type: text/plain") + b"1\r\n--xYz--",
    ),
    "an escaped boundary": ('multipart/form-data; boundary="x\\Yz"', part("a") + b"1\r\n--xYz--", None),
    "two boundaries": (f"{MULTIPART}; boundary=b", part("a") + b"1\r\n--xYz--", None),
    "an operation with two paths": (
        "application/json-patch+json",
        b'[{"op":"add","path":"/x","path":"/ssn","value":1}]',
        b'[{"op":"add","path":"/x","path_":"/ssn","value":1}]',
    ),
    "an operation with a path in another case": (
        "application/json-patch+json",
        b'[{"op":"add","path":"/x","Path":"/ssn","value":1}]',
        b'[{"op":"add","path":"/x","value":1}]',
    ),
    "a move to a marked place": (
        "application/json-patch+json",
        b'[{"op":"move","from":"/x","path":"/ssn"}]',
        b'[{"op":"move","from":"/x","path":"/ssm"}]',
    ),
}


class TestDenied:
    @pytest.mark.parametrize("name", DENIED)
    def test_what_could_be_read_in_another_way(self, sidecar: Sidecar, upstream: TlsUpstream, name: str) -> None:
        content_type, body, twin = DENIED[name]
        headers = (("Content-Type", content_type),)
        answer = ask(sidecar, upstream, "pay.example", headers=headers, body=body)
        assert answer.status == 422
        assert_denied(sidecar, upstream, answer, "body_unreadable")
        headers = (("Content-Type", content_type if twin else MULTIPART),)
        assert ask(sidecar, upstream, "pay.example", headers=headers, body=twin or body).status == 200

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("application/x-ndjson", b'{"ssn":1}\n{"ssn"\n:1}'),
            ("application/json", b'{"ssn":1}\n{"ssn":2}\n'),
            ("application/json-seq", b'{"ssn":1\x1e{"ssn":1}'),
            ("text/plain", b"ssn=1"),
            ("multipart/mixed; boundary=xYz", part("card_number") + b"1\r\n--xYz--"),
            ("application/graphql", b"{a}"),
        ],
    )
    def test_what_is_no_body_of_its_kind(
        self, sidecar: Sidecar, upstream: TlsUpstream, content_type: str, body: bytes
    ) -> None:
        answer = ask(sidecar, upstream, "pay.example", headers=(("Content-Type", content_type),), body=body)
        assert_denied(sidecar, upstream, answer, "body_not_json")

    @pytest.mark.parametrize(("content_type", "body"), [BODIES[kind] for kind in ("form", "multipart")])
    def test_a_form_where_no_entry_names_its_fields(
        self, sidecar: Sidecar, upstream: TlsUpstream, content_type: str, body: Pieces
    ) -> None:
        answer = ask(sidecar, upstream, "json.example", headers=(("Content-Type", content_type),), body=plain(body))
        assert_denied(sidecar, upstream, answer, "body_not_json")


class TestRequired:
    @pytest.mark.parametrize(
        ("method", "content_type", "body", "passes"),
        [
            ("POST", "application/json", b'{"ssn":1}', True),
            ("POST", "application/json", b'{"SSN":1}', False),
            ("POST", FORM, b"ssn=1", True),
            ("POST", FORM, b"ss=1", False),
            ("POST", MULTIPART, part("ssn") + b"1\r\n--xYz--", True),
            ("POST", MULTIPART, part("ss") + b"1\r\n--xYz--", False),
            ("POST", "application/json", b"", False),
            ("GET", "application/json", b"", False),
        ],
    )
    def test_a_request_without_marked_fields_is_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream, method: str, content_type: str, body: bytes, passes: bool
    ) -> None:
        headers = (("Content-Type", content_type),)
        answer = ask(sidecar, upstream, "needed.example", method=method, headers=headers, body=body)
        if passes:
            assert answer.status == 200
        else:
            assert_denied(sidecar, upstream, answer, "fields_missing")


class TestGraphql:
    QUERY = b"query($ssn: String) {person(ssn: $ssn) {id}}"

    def pieces(self) -> Pieces:
        return (b'{"query":"%s","variables":{"ssn":' % self.QUERY, Marked(b'"078"', "$.variables.ssn"), b"}}")

    def test_variables_are_sealed(self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver) -> None:
        assert ask(sidecar, upstream, "graph.example", body=plain(self.pieces())).status == 200
        (got,) = upstream.wait_for_requests(1)
        check(got.body, self.pieces(), receiver, "graph.example")

    def test_so_they_are_in_batches_persisted_queries_and_uploads(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        persisted = (b'{"extensions":{},"variables":{"ssn":', Marked(b"1", "$.variables.ssn"), b"}}")
        batch = (b'[{"query":"{a}"},{"variables":{"ssn":', Marked(b"1", "$[*].variables.ssn"), b"}}]")
        upload = (
            part("operations") + b'{"query":"{a}","variables":{"f":null,"ssn":',
            Marked(b"1", "$.variables.ssn"),
            b"}}\r\n"
            + part("map")
            + b'{"0":["variables.f"]}\r\n'
            + part("0", '; filename="x"')
            + b"\xff\r\n--xYz--\r\n",
        )
        for pieces, kind in ((persisted, "application/json"), (batch, "application/json"), (upload, MULTIPART)):
            headers = (("Content-Type", kind),)
            assert ask(sidecar, upstream, "graph.example", headers=headers, body=plain(pieces)).status == 200
        for got, pieces in zip(upstream.wait_for_requests(3), (persisted, batch, upload), strict=True):
            check(got.body, pieces, receiver, "graph.example")

    @pytest.mark.parametrize(
        ("query", "passes"),
        [
            ('{person(ssn: "078") {id}}', False),
            ('{person(sn: "078") {id}}', True),
            ("{p(in: {a: [{ssn: 78}]})}", False),
            ('{...F} fragment F on P {a: p(ssn: "078")}', False),
            ('query($s: S = "078") {p(ssn: $s)}', False),
            ("{p(ssn: $ssn)}", True),
        ],
    )
    @pytest.mark.parametrize("how", ["json", "query", "url"])
    def test_a_literal_of_a_marked_argument_is_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream, query: str, passes: bool, how: str
    ) -> None:
        if how == "json":
            answer = ask(sidecar, upstream, "graph.example", body=json.dumps({"query": query}).encode())
        elif how == "query":
            headers = (("Content-Type", "application/graphql"),)
            answer = ask(sidecar, upstream, "graph.example", headers=headers, body=query.encode())
        else:
            target = f"/graphql?query={quote(query)}&variables=%7B%7D"
            answer = ask(sidecar, upstream, "graph.example", target, method="GET")
        if passes:
            assert answer.status == 200, answer
        else:
            assert_denied(sidecar, upstream, answer, "graphql_literal")

    def test_marked_variables_in_a_url_are_denied(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        assert ask(sidecar, upstream, "graph.example", "/?variables=%7B%22sn%22:1%7D", method="GET").status == 200
        answer = ask(sidecar, upstream, "graph.example", "/?variables=%7B%22ssn%22:1%7D", method="GET")
        assert answer.json()["reason"] == "graphql_literal"
        assert len(upstream.wait_for_requests(1)) == 1

    def test_a_variable_that_nobody_seals_is_denied(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        body = {"query": "query($x: S) {person(ssn: $x)}", "variables": {"x": "078"}}
        answer = ask(sidecar, upstream, "graph.example", body=json.dumps(body).encode())
        assert_denied(sidecar, upstream, answer, "graphql_literal")

    def test_a_hostile_query_is_denied(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        body = json.dumps({"query": "{a" * 3000 + "}" * 3000}).encode()
        answer = ask(sidecar, upstream, "graph.example", body=body)
        assert_denied(sidecar, upstream, answer, "body_unreadable")
