"""A body that is signed is not changed behind the signer's back: the request is denied before anything of it leaves.

Proves ARCHITECTURE's rules 1, 3 and 7 for what would only be found out by the server. Each denied request differs from
one that passes in the signature alone, or in what that says that it covers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.app import JSON, Fields, Way, ask, assert_denied, decision_of, fresh, open_way
from tests.e2e.certificates import Authority
from tests.e2e.clients import Answer
from tests.e2e.codings import coded_as, decoded_from
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("pay.example", "passing.example", "mixed.example", "drop.example", "anew.example", "bank.example")
BODY = b'{"a":1,"ssn":"078"}'
POLICY = """
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}}}
    rules:
      - {{name: pay, hosts: [pay.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: passing, hosts: [passing.example], request: [{{encrypt: ["$..ssn"], key: pay, signed: pass}}]}}
      - {{name: drop, hosts: [drop.example], request: [{{encrypt: ["$..ssn"], key: pay, digests: drop}}]}}
      - {{name: anew, hosts: [anew.example], request: [{{encrypt: ["$..ssn"], key: pay, digests: recompute}}]}}
      - name: bank
        hosts: [bank.example]
        request: [{{encrypt: ["$..ssn"], key: pay, digests: recompute, signed_headers: [X-Bank-Mac]}}]
      - name: mixed
        hosts: [mixed.example]
        request: [{{encrypt: ["$.a"], key: pay, signed: deny}}, {{encrypt: ["$.ssn"], key: pay, signed: pass}}]
"""

HEX = hashlib.sha256(BODY).hexdigest()
SCOPE = "Credential=AKIDEXAMPLE/20261129/eu-west-1/execute-api/aws4_request"
AWS4 = f"AWS4-HMAC-SHA256 {SCOPE}, SignedHeaders=host;x-amz-date{{}}, Signature={HEX}"
UNSIGNED = ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
RFC9421 = 'sig1=({});created=1767225600;keyid="digest";alg="hmac-sha256"'
SIGNATURE = ("Signature", f"sig1=:{HEX}:")
CAVAGE = f'keyId="k",algorithm="hs2019",headers="{{}}",signature="{HEX}"'
JWS = "eyJhbGciOiJQUzI1NiIsImI2NCI6ZmFsc2V9..c2lnbmF0dXJl"

SIGNED: dict[str, tuple[Fields, str]] = {
    "AWS Signature Version 4": ((("Authorization", AWS4.format("")), ("X-Amz-Date", "20261129T120000Z")), ""),
    "… with the hash beside it": ((("Authorization", AWS4.format("")), ("X-Amz-Content-Sha256", HEX)), ""),
    "… of elliptic curves": ((("Authorization", AWS4.format("").replace("HMAC", "ECDSA-P256")),), ""),
    "… without the hash, but with the length": ((("Authorization", AWS4.format(";content-length")), UNSIGNED), ""),
    "… in the query": ((), f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={HEX}"),
    "… in the query, escaped": ((), f"a=b&%58-amz-%53ignature={HEX}"),
    "… of Google's": ((("Authorization", AWS4.format("").replace("AWS4", "GOOG4")),), ""),
    "… of Google's in the query": ((), f"X-Goog-Signature={HEX}"),
    "… of Tencent's": ((("Authorization", AWS4.format("").replace("AWS4", "TC3")),), ""),
    "RFC 9421 over content-digest": (
        (("Signature-Input", RFC9421.format('"@method" "content-digest"')), SIGNATURE), "",
    ),
    "RFC 9421 over content-length": ((("signature-input", RFC9421.format('"Content-Length";sf')), SIGNATURE), ""),
    "RFC 9421 in the second of two": (
        (("Signature-Input", 'a=("@method")'), ("Signature-Input", RFC9421.format('"digest"')), SIGNATURE),
        "",
    ),
    "Cavage over digest": ((("Signature", CAVAGE.format("(request-target) date digest")),), ""),
    "Cavage in Authorization": ((("Authorization", "Signature " + CAVAGE.format("date x-content-sha256")),), ""),
    "a detached JWS": ((("x-jws-signature", JWS),), ""),
    "a detached JWS by another name": ((("X-Whatever", JWS),), ""),
    "OAuth with a body hash": ((("Authorization", f'OAuth oauth_body_hash="{HEX}",oauth_signature="x"'),), ""),
    "Hawk with a payload hash": ((("Authorization", f'Hawk id="x", hash="{HEX}", mac="x"'),), ""),
    "GitHub": ((("X-Hub-Signature-256", f"sha256={HEX}"),), ""),
    "Stripe": ((("Stripe-Signature", f"t=1767225600,v1={HEX}"),), ""),
    "Shopify": ((("X-Shopify-Hmac-Sha256", HEX),), ""),
    "Slack": ((("X-Slack-Signature", f"v0={HEX}"), ("X-Slack-Request-Timestamp", "1767225600")), ""),
    "Standard Webhooks": ((("webhook-signature", f"v1,{HEX}"), ("webhook-id", "msg_1")), ""),
    "Line": ((("X-Line-Signature", HEX),), ""),
    "Square": ((("X-Square-HmacSha256-Signature", HEX),), ""),
    "Twilio": ((("X-Twilio-Email-Event-Webhook-Signature", HEX),), ""),
    "PayPal": ((("PAYPAL-TRANSMISSION-SIG", HEX),), ""),
    "Coinbase": ((("CB-ACCESS-SIGN", HEX),), ""),
    "Trello": ((("X-Trello-Webhook", HEX[:28]),), ""),
    "Rapyd": ((("signature", HEX),), ""),
}  # fmt: skip

NOT_SIGNED: dict[str, tuple[Fields, str]] = {
    "nothing": ((), ""),
    "AWS without the body": ((("Authorization", AWS4.format(";x-amz-content-sha256")), UNSIGNED), ""),
    "AWS in the query without the body": ((UNSIGNED,), f"X-Amz-Signature={HEX}"),
    "… said in the query": ((), f"X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&X-Amz-Signature={HEX}"),
    "a bearer": ((("Authorization", f"Bearer {HEX}"),), ""),
    "a password": ((("Authorization", "Basic aG1hYzpzaWduYXR1cmU="),), ""),
    "OAuth without a body hash": ((("Authorization", f'OAuth oauth_signature="{HEX}"'),), ""),
    "Hawk without a payload hash": ((("Authorization", f'Hawk id="x", mac="{HEX}"'),), ""),
    "RFC 9421 over other components": (
        (("Signature-Input", RFC9421.format('"@method" "date" "@query-param";name="digest"')), SIGNATURE), "",
    ),
    "Cavage over other fields": ((("Signature", CAVAGE.format("(request-target) date host")),), ""),
    "Cavage over the date": ((("Signature", f'keyId="digest",signature="{HEX}"'),), ""),
    "a whole JWS": ((("X-Token", JWS.replace("..", ".e30.")),), ""),
    "what stands beside a signature": (
        (("X-Signature-Timestamp", "1767225600000000000"), ("X-Signature-Version", "a" * 20)), "",
    ),
    "a switch": ((("X-Signature", "required"),), ""),
    "what is asked for": ((("Accept-Signature", 'sig1=("content-digest")'), ("Want-Content-Digest", "sha-256=10")), ""),
    "a name that only sounds so": ((("X-Design-Id", HEX), ("X-Assigned-To", HEX), ("X-Sigma", HEX)), ""),
    "a query that only sounds so": ((), f"q=X-Amz-Signature&signature={HEX}"),
}  # fmt: skip

Make = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def sidecar(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("signed")
    policy = POLICY.format(pay=receiver.write_public(folder))
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Make) -> TlsUpstream:
    return fresh(lambda: tls_upstream(*HOSTS))


def path(query: str) -> str:
    return f"/v1?{query}" if query else "/v1"


@pytest.mark.parametrize("what", list(SIGNED))
def test_a_signed_body_with_fields_to_encrypt_is_denied(sidecar: Sidecar, upstream: TlsUpstream, what: str) -> None:
    fields, query = SIGNED[what]
    answer = ask(sidecar, upstream, "pay.example", path(query), headers=(*JSON, *fields), body=BODY)
    assert answer.status == 422
    assert_denied(sidecar, upstream, answer, "signed_body")
    problem = answer.json()
    assert "signed: pass" in problem["hint"]
    assert HEX[:20] not in json.dumps(problem) + json.dumps(decision_of(sidecar, upstream))
    assert upstream.connections == []


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("what", ["AWS Signature Version 4", "… in the query", "GitHub"])
def test_it_is_so_on_every_way_and_in_chunks(sidecar: Sidecar, upstream: TlsUpstream, way: Way, what: str) -> None:
    fields, query = SIGNED[what]
    options = {"way": way, "headers": (*JSON, *fields), "chunks": [BODY[:5], BODY[5:]]}
    answer = ask(sidecar, upstream, "pay.example", path(query), **options)  # type: ignore[arg-type]  # passed on
    assert_denied(sidecar, upstream, answer, "signed_body")


@pytest.mark.parametrize("what", list(SIGNED))
def test_where_the_owner_knows_better_it_is_encrypted_and_what_signs_it_goes_on_as_it_is(
    sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, what: str
) -> None:
    fields, query = SIGNED[what]
    answer = ask(sidecar, upstream, "passing.example", path(query), headers=(*JSON, *fields), body=BODY)
    assert answer.status == 200
    (got,) = upstream.wait_for_requests(1)
    assert got.target == path(query)
    assert [field for field in got.headers.fields if field in fields] == list(fields)
    assert receiver.open(got.json()["ssn"].encode(), host="passing.example", path="$.ssn") == b'"078"'


@pytest.mark.parametrize("what", list(NOT_SIGNED))
def test_what_does_not_cover_the_body_hinders_nothing(
    sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, what: str
) -> None:
    fields, query = NOT_SIGNED[what]
    answer = ask(sidecar, upstream, "pay.example", path(query), headers=(*JSON, *fields), body=BODY)
    assert answer.status == 200, answer
    (got,) = upstream.wait_for_requests(1)
    assert receiver.open(got.json()["ssn"].encode(), host="pay.example", path="$.ssn") == b'"078"'


@pytest.mark.parametrize("what", list(SIGNED))
def test_a_signed_body_with_nothing_to_encrypt_passes_as_it_came(
    sidecar: Sidecar, upstream: TlsUpstream, what: str
) -> None:
    fields, query = SIGNED[what]
    answer = ask(sidecar, upstream, "pay.example", path(query), headers=(*JSON, *fields), body=b' {"a": 1.0} ')
    assert answer.status == 200
    assert upstream.wait_for_requests(1)[0].body == b' {"a": 1.0} '


@pytest.mark.parametrize(("body", "status"), [(b'{"ssn":1}', 200), (b'{"a":1}', 422), (b'{"a":1,"ssn":1}', 422)])
def test_of_several_entries_those_count_whose_fields_are_there(
    sidecar: Sidecar, upstream: TlsUpstream, body: bytes, status: int
) -> None:
    fields, _ = SIGNED["GitHub"]
    answer = ask(sidecar, upstream, "mixed.example", headers=(*JSON, *fields), body=body)
    assert answer.status == status


def test_a_server_that_verifies_never_sees_a_body_that_it_would_refuse(sidecar: Sidecar, tls_upstream: Make) -> None:
    secret = b"of the webhook"

    def signature(body: bytes) -> str:
        return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()

    upstream = fresh(lambda: tls_upstream(*HOSTS))
    for body in (BODY, b'{"a":1}'):
        ask(sidecar, upstream, "pay.example", headers=(*JSON, ("X-Hub-Signature-256", signature(body))), body=body)
    (got,) = upstream.wait_for_requests(1)
    assert got.headers.get("x-hub-signature-256") == signature(got.body)


def digest(name: str, body: bytes) -> str:
    return base64.b64encode(hashlib.new(name, body).digest()).decode()


# Digest fields for a body, with their own blanks and order.
DIGESTS: dict[str, Callable[[bytes], Fields]] = {
    "Content-Digest": lambda body: (
        ("Content-Digest", f"sha-512=:{digest('sha512', body)}:, sha-256=:{digest('sha256', body)}:"),
    ),
    "Repr-Digest": lambda body: (("Repr-Digest", f"sha-256=:{digest('sha256', body)}:"),),
    "Digest": lambda body: (("digest", f"SHA-256={digest('sha256', body)},md5={digest('md5', body)}"),),
    "Content-MD5": lambda body: (("Content-MD5", digest("md5", body)),),
    "several": lambda body: (
        ("Digest", f"SHA={digest('sha1', body)}"),
        ("Digest", f"sha-512={digest('sha512', body)}"),
        ("Content-Digest", f"sha-256=:{digest('sha256', body)}:"),
    ),
}


class TestDigests:
    @pytest.mark.parametrize("what", DIGESTS)
    @pytest.mark.parametrize("host", ["pay.example", "passing.example"])
    def test_a_digest_is_denied_by_its_name_and_with_a_way_out(
        self, sidecar: Sidecar, upstream: TlsUpstream, what: str, host: str
    ) -> None:
        fields = DIGESTS[what](BODY)
        answer = ask(sidecar, upstream, host, headers=(*JSON, *fields), body=BODY)
        assert_denied(sidecar, upstream, answer, "signed_body")
        assert f"the field {fields[0][0]} holds a digest" in answer.json()["detail"]
        assert "digests: recompute" in answer.json()["hint"]
        assert upstream.connections == []

    @pytest.mark.parametrize("way", Way)
    @pytest.mark.parametrize("coding", ["", "gzip", "br"])
    @pytest.mark.parametrize("what", DIGESTS)
    def test_it_is_written_anew_over_the_bytes_that_leave(
        self, sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver, what: str, coding: str, way: Way
    ) -> None:
        body = coded_as(coding, BODY) if coding else BODY
        more = (("Content-Encoding", coding),) if coding else ()
        headers = (*JSON, *more, *DIGESTS[what](body), ("X-Other", "kept"))
        assert ask(sidecar, upstream, "anew.example", way=way, headers=headers, body=body).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert got.body != body
        expected = [*JSON, *more, *DIGESTS[what](got.body), ("X-Other", "kept")]
        assert [field for field in got.headers.fields if field in expected] == expected
        text = json.loads(decoded_from(coding, got.body) if coding else got.body)
        assert receiver.open(text["ssn"].encode(), host="anew.example", path="$.ssn") == b'"078"'

    @pytest.mark.parametrize("what", DIGESTS)
    def test_it_is_left_out_where_the_entry_says_so(self, sidecar: Sidecar, upstream: TlsUpstream, what: str) -> None:
        fields = (*DIGESTS[what](BODY), ("x-amz-checksum-crc32c", "AAAAAA=="), ("X-Other", "kept"))
        assert ask(sidecar, upstream, "drop.example", headers=(*JSON, *fields), body=BODY).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert [field for field in got.headers.fields if field in fields] == [("X-Other", "kept")]

    @pytest.mark.parametrize("host", ["drop.example", "anew.example"])
    def test_one_in_the_trailers_is_treated_so_too(self, sidecar: Sidecar, upstream: TlsUpstream, host: str) -> None:
        def send(host: str) -> Answer:
            authority = f"{host}:{upstream.port}"
            head = f"POST http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n"
            chunk = f"Transfer-Encoding: chunked\r\n\r\n{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n"
            said = f"Content-Digest: {DIGESTS['Repr-Digest'](BODY)[0][1]}\r\n\r\n".encode()
            with open_way(sidecar, host, upstream.port) as client:
                client.send(head.encode() + chunk + said)
                return client.read_response()

        assert send("pay.example").json()["reason"] == "signed_body"
        assert send(host).status == 200
        (got,) = upstream.wait_for_requests(1)
        said = DIGESTS["Repr-Digest"](got.body)[0][1] if host == "anew.example" else None
        assert got.headers.get("content-digest") == said

    @pytest.mark.parametrize(
        ("field", "why"),
        [
            (("Digest", "crc32c=AAAAAA=="), "an algorithm that is not known"),
            (("x-amz-checksum-sha256", "AA=="), "of a kind that is not written anew"),
            (("Content-Digest", "sha-256=AA=="), "not formed as it should be"),
            (("Content-Digest", f"sha-256=:{digest('sha256', b'another body')}:"), "does not fit the body as it came"),
        ],
    )
    def test_what_cannot_be_written_anew_is_denied(
        self, sidecar: Sidecar, upstream: TlsUpstream, field: tuple[str, str], why: str
    ) -> None:
        answer = ask(sidecar, upstream, "anew.example", headers=(*JSON, field), body=BODY)
        assert_denied(sidecar, upstream, answer, "signed_body")
        assert why in answer.json()["detail"]

    @pytest.mark.parametrize("host", ["drop.example", "anew.example"])
    def test_where_nothing_is_encrypted_or_a_signature_covers_it_it_stays(
        self, sidecar: Sidecar, upstream: TlsUpstream, host: str
    ) -> None:
        body = b'{"a": 1}'
        fields = DIGESTS["several"](body)
        assert ask(sidecar, upstream, host, headers=(*JSON, *fields), body=body).status == 200
        assert [f for f in upstream.wait_for_requests(1)[0].headers.fields if f in fields] == list(fields)
        signed = (*DIGESTS["Digest"](BODY), *SIGNED["RFC 9421 over content-digest"][0])
        answer = ask(sidecar, upstream, host, headers=(*JSON, *signed), body=BODY)
        assert "signed: pass" in answer.json()["hint"]
        assert answer.json()["reason"] == "signed_body"


@pytest.mark.parametrize(("field", "status"), [("X-Bank-Mac", 422), ("x-bank-mac", 422), ("X-Bank-Date", 200)])
def test_a_field_that_the_entry_names_signs_the_body(
    sidecar: Sidecar, upstream: TlsUpstream, field: str, status: int
) -> None:
    answer = ask(sidecar, upstream, "bank.example", headers=(*JSON, (field, "1"), *DIGESTS["Digest"](BODY)), body=BODY)
    assert answer.status == status
    if status == 422:
        assert f"the field {field} covers the body" in answer.json()["detail"]
        assert ask(sidecar, upstream, "anew.example", headers=(*JSON, (field, "1")), body=BODY).status == 200
