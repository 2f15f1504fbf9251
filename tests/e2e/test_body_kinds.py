"""Bodies of every kind that could be read in another way, or whose marked fields cannot be sealed, are denied.

Proves ARCHITECTURE's rules 1 (closed when in doubt) and 5 (touch only what is marked) for forms, multipart forms,
lines, sequences, batches, patches and GraphQL; what arrives of those that pass is in `test_body_table`. Each body that
is denied has a twin that passes, and differs from it in one property.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from tests.e2e import bodies
from tests.e2e.app import ask, assert_denied, decision_of, fresh
from tests.e2e.bodies import FORM, MULTIPART, REQUESTS, Body, Value, assert_sealed, part
from tests.e2e.certificates import Authority
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = (*bodies.HOSTS, "json.example", "needed.example")

POLICY = """
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}}}
    rules:
{rules}
      - name: json
        hosts: [json.example]
        request: [{{encrypt: ["$.ssn"], key: pay}}]
      - name: needed
        hosts: [needed.example]
        request: [{{encrypt: ["$.ssn"], form: [ssn], key: pay, required: true}}]
"""


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("kinds")
    policy = POLICY.format(pay=receiver.write_public(folder), rules=bodies.RULES)
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream that goes by all names of the policy."""
    return fresh(lambda: tls_upstream(*HOSTS))


class TestWhatArrives:
    @pytest.mark.parametrize("kind", REQUESTS)
    def test_the_line_counts_what_was_sealed(self, sidecar: Sidecar, upstream: TlsUpstream, kind: str) -> None:
        body = REQUESTS[kind]
        headers = (("Content-Type", body.content_type),)
        assert ask(sidecar, upstream, body.host, headers=headers, body=body.plain).status == 200
        assert decision_of(sidecar, upstream)["encrypted"] == len(body.values)

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

    @pytest.mark.parametrize("kind", ["form", "multipart"])
    def test_a_form_where_no_entry_names_its_fields(self, sidecar: Sidecar, upstream: TlsUpstream, kind: str) -> None:
        body = REQUESTS[kind]
        headers = (("Content-Type", body.content_type),)
        answer = ask(sidecar, upstream, "json.example", headers=headers, body=body.plain)
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
    def test_variables_of_persisted_queries_are_sealed(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        pieces = (b'{"extensions":{},"variables":{"ssn":', Value(b"1", "$.variables.ssn"), b"}}")
        body = Body("application/json", pieces, "graph.example")
        assert ask(sidecar, upstream, body.host, body=body.plain).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_sealed(got.body, body, receiver, body.host)

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
