"""Marked fields of requests arrive as JWEs that their receiver opens, and every other byte as it was sent.

Proves ARCHITECTURE's rule 3 (nothing leaves early: a body that must be encrypted is never streamed) and rule 5 (touch
only what is marked), and the wire format that docs/keys.md describes. What must be refused instead is in
`test_fields_denied`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator

import brotli
import pytest

from proxy.core.jose.keys import Alg
from tests.e2e.app import JSON, Way, ask, decision_of, fresh, open_way, request
from tests.e2e.certificates import Authority
from tests.e2e.clients import curl, urllib_request
from tests.e2e.codings import coded_as, decoded_from
from tests.e2e.receiver import TOKEN, Marked, Pieces, Receiver, assert_only_marked_changed, plain
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("pay.example", "x25519.example", "rsa.example", "aes.example", "two.example", "when.example", "all.example")

# All that a careless re-serialisation would change: blanks, order, duplicates, escapes, numbers, other scripts.
WEIRD: Pieces = (
    b' {\t"z" : 1.50E+0400 ,\r\n"a":-0, "card" : { "number"  : ',
    Marked(b'"4111 \\u0031111 \xf0\x9f\x92\xb3"', "$.card.number"),
    b',"name":"\\u0041\\/\\n \xc3\xa9\xe2\x82\xac", "cvv" :',
    Marked(b"0.120e-1", "$.card.cvv"),
    b'\n},"dup":1,"dup" : 2, "big": 123456789012345678901234567890.0,\n"items":[ {"id":1,"secret":',
    Marked(b'{ "deep" : [1 , 2,{ } ] }', "$.items[*].secret"),
    b'} , {"secret" :\t',
    Marked(b"null", "$.items[*].secret"),
    b'},{"id":3}],  "person":{"x":{"ssn":',
    Marked(b'"078-05-1120"', "$.person.x.ssn"),
    b'}}, "list":[',
    Marked(b'"first"', "$.list[*]"),
    b', "middle"  ,',
    Marked(b"true", "$.list[*]"),
    b'],"odd name":{"a b":',
    Marked(b"[]", "$['odd name']['a b']"),
    b'}, "html":"<\\/script>", "":{}  } \n',
)

POLICY = """
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      okp: {{alg: ECDH-ES+A256KW, primary: {{kid: okp, file: {okp}}}}}
      rsa: {{alg: RSA-OAEP-256, primary: {{kid: rsa, file: {rsa}}}}}
      aes: {{alg: A256KW, primary: {{kid: aes, file: {aes}}}}}
    rules:
      - name: pay
        hosts: [pay.example]
        request:
          - encrypt: ["$.card.number", "$.card.cvv", "$..ssn", "$.items[*].secret", "$.list[0]", "$.list[-1]",
                      "$['odd name']['a b']"]
            key: pay
      - {{name: okp, hosts: [x25519.example], request: [{{encrypt: ["$.card.number"], key: okp}}]}}
      - {{name: rsa, hosts: [rsa.example], request: [{{encrypt: ["$.card.number"], key: rsa}}]}}
      - {{name: aes, hosts: [aes.example], request: [{{encrypt: ["$.card.number"], key: aes}}]}}
      - name: two
        hosts: [two.example]
        request:
          - {{encrypt: ["$.card.number"], key: pay}}
          - {{encrypt: ["$.card", "$.holder"], key: okp}}
          - {{encrypt: ["$.only_put"], key: rsa, when: {{methods: [PUT]}}}}
      - name: when
        hosts: [when.example]
        request:
          - encrypt: ["$.card"]
            key: pay
            when: {{methods: [POST, PUT], paths: ["/v1/charges", "/v2/*/pay", "/v3/**"]}}
      - {{name: all, hosts: [all.example], request: [{{encrypt: ["$"], key: pay}}]}}
"""


@pytest.fixture(scope="module")
def receivers() -> dict[str, Receiver]:
    """A receiver for each key set of the policy."""
    return {
        "pay": Receiver("pay"),
        "okp": Receiver("okp", curve="X25519"),
        "rsa": Receiver("rsa", Alg.RSA_OAEP_256),
        "aes": Receiver("aes", Alg.A256KW),
    }


@pytest.fixture(scope="module")
def sidecar(
    authority: Authority, receivers: dict[str, Receiver], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """One sidecar for all tests here: its policy changes in none of them."""
    folder = tmp_path_factory.mktemp("fields")
    policy = POLICY.format_map({name: receiver.write_public(folder) for name, receiver in receivers.items()})
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """An upstream that goes by all names of the policy."""
    return fresh(lambda: tls_upstream(*HOSTS))


class TestWhatArrives:
    @pytest.mark.parametrize("way", Way)
    def test_so_they_are_in_what_a_gateway_makes_grpc_of(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver], way: Way
    ) -> None:
        """Transcoding (google.api.http) is done behind it: an app sends JSON, to a path with a colon in it."""
        pieces: Pieces = (b'{"person":{"name":"people/1","ssn":', Marked(b'"078"', "$.person.ssn"), b"}}")
        path = "/v1/people/1:update?updateMask=ssn"
        assert ask(sidecar, upstream, "pay.example", path, way=way, method="PATCH", body=plain(pieces)).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.target == path
        assert_only_marked_changed(got.body, pieces, receivers["pay"], "pay.example")

    @pytest.mark.parametrize("way", Way)
    def test_marked_values_are_tokens_for_their_receiver_and_all_other_bytes_are_the_same(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver], way: Way
    ) -> None:
        body = plain(WEIRD)
        assert ask(sidecar, upstream, "pay.example", "/v1?x=%20", way=way, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, WEIRD, receivers["pay"], "pay.example")
        assert got.headers.get("content-length") == str(len(got.body))
        assert got.target == "/v1?x=%20"
        assert decision_of(sidecar, upstream)["encrypted"] == 8
        assert b"4111 " not in got.body
        assert b"078-05" not in upstream.received

    def test_every_other_header_field_goes_through_as_it_came(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        fields = (("cOnTent-type", "application/json;Charset=UTF-8"), ("X-A", "1"), ("ETag", '"x"'), ("X-a", "2"))
        ask(sidecar, upstream, "pay.example", headers=fields, body=b'{"card":{"number":1}}')
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.fields[1:-1] == fields
        assert {name for name, _ in got.headers.fields} == {"Host", *dict(fields), "Content-Length"}

    @pytest.mark.parametrize(
        ("host", "name", "alg"),
        [
            ("pay.example", "pay", "ECDH-ES+A256KW"),
            ("x25519.example", "okp", "ECDH-ES+A256KW"),
            ("rsa.example", "rsa", "RSA-OAEP-256"),
            ("aes.example", "aes", "A256KW"),
        ],
    )
    def test_each_algorithm_is_opened_by_a_receiver_without_the_product(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver], host: str, name: str, alg: str
    ) -> None:
        pieces = (b'{"card":{"number":', Marked(b'"4111"', "$.card.number"), b"}}")
        assert ask(sidecar, upstream, host, body=plain(pieces)).status == 200
        (got,) = upstream.wait_for_requests(1)
        (token,) = assert_only_marked_changed(got.body, pieces, receivers[name], host)
        header, value = receivers[name].open_alone(token)
        assert (header["alg"], value) == (alg, b'"4111"')

    def test_the_same_value_never_gives_the_same_token_twice(self, sidecar: Sidecar, upstream: TlsUpstream) -> None:
        for _ in range(2):
            ask(sidecar, upstream, "pay.example", body=b'{"ssn":"1","b":{"ssn":"1"}}')
        tokens = re.findall(TOKEN, b"".join(got.body for got in upstream.wait_for_requests(2)))
        assert len(tokens) == 4
        for part, different in ((1, 2), (2, 4), (3, 4), (4, 4)):  # wrapped key, IV, ciphertext, tag
            assert len({token.split(b".")[part] for token in tokens}) == different

    def test_an_escaped_name_is_the_name_it_stands_for(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        pieces = (b'{"\\u0073s\\u006e": ', Marked(b'"078"', "$.ssn"), b', "ss\\\\n": "free", "SSN": "free"}')
        ask(sidecar, upstream, "pay.example", body=plain(pieces))
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receivers["pay"], "pay.example")

    def test_both_of_two_duplicates_are_encrypted(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        value = [Marked(b'"%d"' % digit, "$.card.number") for digit in range(4)]
        pieces = (
            *(b'{"card":{"number":', value[0], b',"number":', value[1]),
            *(b',"n\\u0075mber":', value[2], b'},"card":{"number":', value[3], b"}}"),
        )
        ask(sidecar, upstream, "pay.example", body=plain(pieces))
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receivers["pay"], "pay.example")

    def test_several_entries_encrypt_for_several_receivers_and_the_outermost_value_counts(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        ask(sidecar, upstream, "two.example", body=b'{"card":{"number":"4111"},"holder":"Ada","only_put":1}')
        first = upstream.wait_for_requests(1)[0].json()
        okp = receivers["okp"]
        assert okp.open(first["card"].encode(), host="two.example", path="$.card") == b'{"number":"4111"}'
        assert okp.open(first["holder"].encode(), host="two.example", path="$.holder") == b'"Ada"'
        assert first["only_put"] == 1
        ask(sidecar, upstream, "two.example", method="PUT", body=b'{"only_put":1,"card":2}')
        second = upstream.wait_for_requests(2)[1].json()
        assert receivers["rsa"].open(second["only_put"].encode(), host="two.example", path="$.only_put") == b"1"

    @pytest.mark.parametrize("value", [b"1", b'"x"', b"null", b'{"a":[1]}', b"[ ]"])
    def test_a_selector_for_the_root_makes_the_whole_text_one_token(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver], value: bytes
    ) -> None:
        pieces = (b" \n", Marked(value, "$"), b"\t")
        ask(sidecar, upstream, "all.example", body=plain(pieces))
        assert_only_marked_changed(upstream.wait_for_requests(1)[0].body, pieces, receivers["pay"], "all.example")

    def test_a_value_of_a_megabyte_is_encrypted_whole(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        pieces = (b'{"ssn":', Marked(b'"' + b"x" * 500_000 + b'"', "$.ssn"), b',"y":"' + b"z" * 500_000 + b'"}')
        assert ask(sidecar, upstream, "pay.example", body=plain(pieces)).status == 200
        got = upstream.wait_for_requests(1)[0].body
        token = json.loads(got)["ssn"].encode()
        assert receivers["pay"].open(token, host="pay.example", path="$.ssn") == pieces[1].value
        assert got == b'{"ssn":"' + token + b'"' + pieces[2]

    @pytest.mark.parametrize("client", ["curl", "urllib"])
    def test_ordinary_clients_need_to_know_nothing(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver], client: str
    ) -> None:
        pieces = (b'{"card":{"number":', Marked(b'"4111"', "$.card.number"), b"}}")
        for scheme in ("http", "https"):
            url = upstream.url("/v1", scheme=scheme, host="pay.example")
            if client == "curl":
                sent = ("-H", "content-type: application/json", "-d", plain(pieces).decode())
                answer = curl(*sent, url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
            else:
                answer = urllib_request(url, proxy=sidecar.proxy_url, body=plain(pieces), ca_file=sidecar.ca_file)
            assert answer.status == 200, answer.error
        for got in upstream.wait_for_requests(2):
            assert_only_marked_changed(got.body, pieces, receivers["pay"], "pay.example")


class TestFraming:
    def test_a_chunked_request_is_put_together_and_stays_chunked(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        body = plain(WEIRD)
        chunks = [body[start : start + 7] for start in range(0, len(body), 7)]  # cuts through every marked value
        assert ask(sidecar, upstream, "pay.example", chunks=chunks).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(got.body, WEIRD, receivers["pay"], "pay.example")
        assert got.headers.get("transfer-encoding") == "chunked"
        assert "content-length" not in got.headers

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize(
        "coding", ["gzip", "x-gzip", "GZip", "deflate", "br", "zstd", "gzip, br", "identity, zstd,deflate"]
    )
    def test_a_coded_body_arrives_in_the_same_codings_with_its_fields_encrypted(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver], coding: str, way: Way
    ) -> None:
        headers = (*JSON, ("Content-Encoding", coding))
        body = coded_as(coding, plain(WEIRD))
        assert ask(sidecar, upstream, "pay.example", way=way, headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.headers.get("content-encoding") == coding
        assert got.headers.get("content-length") == str(len(got.body))
        assert_only_marked_changed(decoded_from(coding, got.body), WEIRD, receivers["pay"], "pay.example")

    def test_two_fields_name_codings_in_their_order_and_deflate_stays_raw(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        headers = (*JSON, ("Content-Encoding", "deflate"), ("Content-Encoding", "br"))
        body = brotli.compress(zlib.compress(plain(WEIRD), wbits=-15))
        assert ask(sidecar, upstream, "pay.example", headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        decoded = zlib.decompress(brotli.decompress(got.body), -15)
        assert_only_marked_changed(decoded, WEIRD, receivers["pay"], "pay.example")

    def test_every_member_of_a_gzip_body_counts(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        body = plain(WEIRD)
        members = b"".join(gzip.compress(body[start : start + 50]) for start in range(0, len(body), 50))
        ask(sidecar, upstream, "pay.example", headers=(*JSON, ("Content-Encoding", "gzip")), body=members)
        (got,) = upstream.wait_for_requests(1)
        assert_only_marked_changed(gzip.decompress(got.body), WEIRD, receivers["pay"], "pay.example")

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            pytest.param(b' {"free" : [1.0 , 2],\n"card":{"Number":"x"}} ', JSON, id="json"),
            pytest.param(gzip.compress(b"[1]", 1) + gzip.compress(b" "), (("Content-Encoding", "gzip"),), id="gzip"),
            pytest.param(b"[]", (("Content-Type", "text/plain"), ("Content-Encoding", "identity")), id="no object"),
            pytest.param(b'"ssn"', (("Content-Digest", "sha-256=:AA==:"),), id="a digest that stays right"),
        ],
    )  # fmt: skip
    def test_where_nothing_is_selected_the_very_same_bytes_arrive(
        self, sidecar: Sidecar, upstream: TlsUpstream, body: bytes, headers: tuple[tuple[str, str], ...]
    ) -> None:
        assert ask(sidecar, upstream, "pay.example", headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.body == body
        assert got.headers.fields[1:] == (*headers, ("Content-Length", str(len(body))))
        assert decision_of(sidecar, upstream)["encrypted"] == 0

    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    @pytest.mark.parametrize("coding", [(), (("Content-Encoding", "gzip"),)])
    def test_an_empty_body_passes(
        self, sidecar: Sidecar, upstream: TlsUpstream, method: str, coding: tuple[tuple[str, str], ...]
    ) -> None:
        assert ask(sidecar, upstream, "pay.example", method=method, headers=coding).status == 200
        assert upstream.wait_for_requests(1)[0].body == b""

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("chunked", [False, True])
    def test_nothing_of_a_body_leaves_before_it_is_whole(
        self, sidecar: Sidecar, upstream: TlsUpstream, way: Way, chunked: bool
    ) -> None:
        body = b'{"free":"' + b"x" * 100_000 + b'","ssn":"078"}'
        authority = f"pay.example:{upstream.port}"
        target = f"http://{authority}/" if way is Way.HTTP else "/"
        whole = request(
            target, authority, **({"chunks": [body[:50_000], body[50_000:]]} if chunked else {"body": body})
        )
        with open_way(sidecar, "pay.example", upstream.port, way) as client:
            client.send(whole[:-20])
            # A second request is answered behind the first's bytes: the sidecar has read them by then.
            ask(sidecar, upstream, "when.example", "/elsewhere", body=b"no json")
            upstream.wait_for_requests(1)
            upstream.settle()
            assert b"xxx" not in upstream.received
            client.send(whole[-20:])
            assert client.read_response().status == 200
        assert len(upstream.wait_for_requests(2)[1].body) > len(body)

    def test_several_requests_on_one_connection_are_each_encrypted(
        self, sidecar: Sidecar, upstream: TlsUpstream, receivers: dict[str, Receiver]
    ) -> None:
        authority = f"pay.example:{upstream.port}"
        with open_way(sidecar, "pay.example", upstream.port) as client:
            for number in range(5):
                client.send(request(f"http://{authority}/{number}", authority, body=b'{"ssn":%d}' % number))
                assert client.read_response().status == 200
        for number, got in enumerate(upstream.wait_for_requests(5)):
            token = got.json()["ssn"].encode()
            assert receivers["pay"].open(token, host="pay.example", path="$.ssn") == b"%d" % number


class TestWhen:
    BODY = b'{"card":"4111"}'

    def encrypted(self, sidecar: Sidecar, upstream: TlsUpstream, path: str, method: str = "POST") -> bool:
        """Tell whether the card of a request arrives as a token; a request that is denied is no answer."""
        answer = ask(sidecar, upstream, "when.example", path, method=method, body=self.BODY)
        assert answer.status == 200, answer
        (got,) = upstream.wait_for_requests(1)
        assert got.target == path
        assert (got.body == self.BODY) == (b"4111" in got.body)
        return got.body != self.BODY

    @pytest.mark.parametrize("method", ["POST", "PUT"])
    def test_a_named_method_and_path_is_encrypted(self, sidecar: Sidecar, upstream: TlsUpstream, method: str) -> None:
        assert self.encrypted(sidecar, upstream, "/v1/charges", method)

    @pytest.mark.parametrize(
        ("path", "method"),
        [
            pytest.param("/v1/charges", "PATCH", id="another method"),
            pytest.param("/v1/refunds", "POST", id="another path"),
            pytest.param("/v1/charges/1", "POST", id="a path below one without a star"),
            pytest.param("/v2/a/b/pay", "POST", id="two segments for one star"),
            pytest.param("/v1/refunds?x=/v1/charges", "POST", id="the path in the query"),
        ],
    )
    def test_what_is_not_named_is_left_alone(
        self, sidecar: Sidecar, upstream: TlsUpstream, path: str, method: str
    ) -> None:
        assert not self.encrypted(sidecar, upstream, path, method)

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/charges?x=1",
            "/v2/anything/pay",
            "/v2/%61nything/p%61y",
            "/v3/a",
            "/v3/a/b/c?d",
            "/v3/",
            "/v3",
            "/v1/%63harges",
            "//v1//charges",
            "/v1//../charges",
            "/a%2fb/../v1/charges",
            "/v1;%2fx/charges",
            "/v1/%2563harges",
            "/v1/./charges",
            "/./v1/charges",
            "/x/../v1/charges",
            "/../v1/charges",
            "/v1/charges/x/..",
            "/v1/charges/.",
            "/v1/charges/",
            "/v1/%2e/charges",
            "/x/%2E%2e/v1/charges",
            "/v1%2fcharges",
            "/v1\\charges",
            "/v1/charges;session=1",
            "/v1;a=b/charges",
            "/x/..;/v1/charges",
        ],
    )
    def test_no_spelling_of_a_marked_path_escapes(self, sidecar: Sidecar, upstream: TlsUpstream, path: str) -> None:
        assert self.encrypted(sidecar, upstream, path)

    def test_a_whole_url_as_the_target_inside_a_tunnel_is_no_way_round(
        self, sidecar: Sidecar, upstream: TlsUpstream
    ) -> None:
        authority = f"when.example:{upstream.port}"
        for target, status in (
            (f"https://{authority}/v1/charges", 200),
            (f"https://all.example:{upstream.port}/v1/charges", 421),
        ):
            with open_way(sidecar, "when.example", upstream.port, Way.CONNECT) as client:
                client.send(request(target, authority, body=self.BODY))
                assert client.read_response().status == status
        (got,) = upstream.wait_for_requests(1)
        assert got.target == "/v1/charges"
        assert b'"4111"' not in got.body
