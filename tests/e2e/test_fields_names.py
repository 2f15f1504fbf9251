"""What an entry says of names (`match`) and of texts inside strings (`inside`), as the upstream and the app see it.

Go's encoding/json takes a member for a struct's field `ssn` if the name equals it by Unicode's simple case folding:
`"SSN"`, `"Ssn"`, and `"ſsn"` with U+017F, which is an `s` there; of duplicates the last one counts. System.Text.Json
does the same for ASCII with PropertyNameCaseInsensitive, which ASP.NET Core sets. So an app that is free to choose how
it writes a name could get a value to such a server unsealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import Way, ask, assert_denied, decision_of, fresh
from tests.e2e.certificates import Authority
from tests.e2e.receiver import Marked, Pieces, Receiver, assert_only_marked_changed, plain
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("loose.example", "exact.example", "inside.example", "deep.example")

POLICY = """
    keys: {{app: {{alg: A256KW, primary: {{kid: app, file: {app}}}}}}}
    rules:
      - name: loose
        hosts: [loose.example]
        request:
          - {{encrypt: ["$.ssn", "$..card.number"], key: app, match: ignore_case}}
          - {{encrypt: ["$.Exact"], key: app, match: exact}}
        response: [{{decrypt: ["$.ssn"], key: app, match: ignore_case}}]
      - name: exact
        hosts: [exact.example]
        request: [{{encrypt: ["$.ssn"], key: app}}]
        response: [{{decrypt: ["$.ssn"], key: app}}]
      - name: inside
        hosts: [inside.example]
        request:
          - {{encrypt: ["$.card.number", "$..ssn"], key: app, inside: "$.Records[*].Message"}}
          - {{encrypt: ["$.token"], key: app}}
        response: [{{decrypt: ["$.card.number"], key: app, inside: $.Message}}]
      - name: deep
        hosts: [deep.example]
        request: [{{encrypt: [$.a], key: app, inside: [$.m, $.m], match: ignore_case}}]
"""


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    """Whose key seals and opens."""
    return Receiver("app", Alg.A256KW)


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("names")
    policy = POLICY.format(app=receiver.write_private(folder))
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream that goes by all names of the policy."""
    return fresh(lambda: tls_upstream(*HOSTS))


VARIANTS: Pieces = (
    b'{ "ssn":',
    Marked(b'"078-05-1120"', "$.ssn"),
    b', "SSN" : ',
    Marked(b'"078-05-1121"', "$.SSN"),
    b',"\\u0053sn":',
    Marked(b"1122", "$.Ssn"),
    b',"\xc5\xbfsn":',
    Marked(b'"078-05-1123"', r"$['\u017fsn']"),
    b',"\xef\xbd\x93\xef\xbd\x93\xef\xbd\x8e":',
    Marked(b"{}", r"$['\uff53\uff53\uff4e']"),
    b',"x":[{"CARD":{"Number":',
    Marked(b'"4111"', "$.x[*].CARD.Number"),
    b'}}], "Exact":',
    Marked(b"2", "$.Exact"),
    b',"EXACT":"free", "ssn ":"free","s-sn":"free"}',
)


class TestMatch:
    @pytest.mark.parametrize("way", Way)
    def test_every_variant_of_a_name_is_sealed_and_all_other_bytes_stay(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, way: Way
    ) -> None:
        assert ask(sidecar, upstream, "loose.example", way=way, body=plain(VARIANTS)).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, VARIANTS, receiver, "loose.example")
        assert decision_of(sidecar, upstream)["encrypted"] == 7
        assert b"078-05" not in got.body

    def test_without_it_only_the_exact_name_is(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        pieces = (b'{"ssn":', Marked(b"1", "$.ssn"), b',"SSN":"free","\xef\xbd\x93\xef\xbd\x93\xef\xbd\x8e":"free"}')
        ask(sidecar, upstream, "exact.example", body=plain(pieces))
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receiver, "exact.example")

    @pytest.mark.parametrize(("host", "opens"), [("loose.example", True), ("exact.example", False)])
    def test_of_responses_variants_are_opened_likewise(
        self, sidecar: Sidecar, tls_upstream: Callable[..., TlsUpstream], receiver: Receiver, host: str, opens: bool
    ) -> None:
        body = b'{"SSN": %s }' % receiver.seal(b"[1]", host, "$.SSN")
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: wire.response(200, body)))
        answer = ask(sidecar, upstream, host, method="GET", body=b"")
        assert answer.body == (b'{"SSN": [1] }' if opens else body)


def in_string(text: str) -> str:
    """Write a text as JSON strings are written, with more escapes than are needed."""
    return json.dumps(text).replace("/", "\\/").replace("r", "\\u0072")


class TestInside:
    def test_values_in_texts_inside_strings_are_sealed_and_all_escapes_round_them_stay(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver
    ) -> None:
        first = in_string('{"a/b": "\\u00e9 é", "card": {"number": @1}, "ssn" : @2}')
        second = in_string('[{"ssn": @3, "card":{"number":"in no root"}}]')
        whole = f'{{ "Records":[{{"Message":{first}}}, {{"Message" : {second}}},{{"Message":null}}],"token":@4}}'
        values = ('"4111"', '{"deep":[1, 2]}', "null", "1")
        sent = whole
        for number, value in enumerate(values, 1):
            sent = sent.replace(f"@{number}", value if number == 4 else json.dumps(value)[1:-1])
        assert ask(sidecar, upstream, "inside.example", body=sent.encode()).status == 200
        (got,) = upstream.wait_for_requests(1)
        outer = got.json()
        one, two = (json.loads(record["Message"]) for record in outer["Records"][:2])
        tokens = (one["card"]["number"], one["ssn"], two[0]["ssn"], outer["token"])
        message = "$.Records[*].Message"
        paths = (f"{message}$.card.number", f"{message}$.ssn", f"{message}$[*].ssn", "$.token")
        rest = whole
        for number, (token, path, value) in enumerate(zip(tokens, paths, values, strict=True), 1):
            assert receiver.open(token.encode(), host="inside.example", path=path) == value.encode()
            rest = rest.replace(f"@{number}", f'"{token}"' if number == 4 else f'\\"{token}\\"')
        assert got.body == rest.encode()
        assert decision_of(sidecar, upstream)["encrypted"] == 4

    @pytest.mark.parametrize("held", [b'"no hunter"', b"{}", b"41", b'""', rb'"{\"card\":{\"hunter\":4111}"'])
    def test_what_holds_no_json_is_denied(self, sidecar: Sidecar, upstream: TlsUpstream, held: bytes) -> None:
        answer = ask(sidecar, upstream, "inside.example", body=b'{"Records":[{"Message":%s}]}' % held)
        assert_denied(sidecar, upstream, answer, "body_not_json")
        assert b"hunter" not in answer.body

    @pytest.mark.parametrize("held", [b"null", rb'"{\"card\":{}}"', rb'"[]"'])
    def test_what_holds_json_without_anything_marked_passes_as_it_came(
        self, sidecar: Sidecar, upstream: TlsUpstream, held: bytes
    ) -> None:
        body = b'{"Records":[{"Message":%s}]}' % held
        assert ask(sidecar, upstream, "inside.example", body=body).status == 200
        assert upstream.wait_for_requests(1)[0].body == body

    def test_texts_in_texts(self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver) -> None:
        body = json.dumps({"M": json.dumps({"m": '{"A": "4111"}', "a": 1}), "a": 2}).encode()
        assert ask(sidecar, upstream, "deep.example", body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        token = json.loads(json.loads(got.json()["M"])["m"])["A"]
        assert receiver.open(token.encode(), host="deep.example", path="$.M$.m$.A") == b'"4111"'
        assert got.body == body.replace(b"4111", token.encode())

    def test_in_responses_a_value_is_opened_and_escaped_as_its_string_needs_it(
        self, sidecar: Sidecar, tls_upstream: Callable[..., TlsUpstream], receiver: Receiver
    ) -> None:
        token = receiver.seal('{"a": "é\\n"}'.encode(), "inside.example", "$.Message$.card.number").decode()
        body = '{"Message" : "{\\u0022card\\":{\\"number\\":%s}}"}'
        sent = (body % token.replace('"', '\\"')).encode()
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: wire.response(200, sent)))
        answer = ask(sidecar, upstream, "inside.example", method="GET", body=b"")
        assert answer.body.decode() == body % '{\\"a\\": \\"é\\\\n\\"}'

    def test_in_responses_a_string_without_json_stays_as_it_is(
        self, sidecar: Sidecar, tls_upstream: Callable[..., TlsUpstream]
    ) -> None:
        sent = b'{"Message":"no JSON"}'
        upstream = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: wire.response(200, sent)))
        assert ask(sidecar, upstream, "inside.example", method="GET", body=b"").body == sent
