"""What covers a request's body: the odd cases. Those that are met are in tests/e2e/test_signed.py."""

from __future__ import annotations

import time

import pytest

from proxy.core.fields.signatures import covering

LONG = "0123456789abcdef" * 2


def of(*fields: tuple[str, str], query: str = "") -> str | None:
    return covering(tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields), query)


def test_the_field_is_named_as_it_was_sent_and_its_value_is_not_told() -> None:
    assert of(("Host", "x"), ("X-HUB-Signature-256", LONG)) == "the field X-HUB-Signature-256"
    assert of(query=f"a=b&X-Amz-Signature={LONG}") == "x-amz-signature in the query"


@pytest.mark.parametrize(
    "field",
    [
        ("Authorization", "SharedKey account:mac"),
        ("Authorization", 'OAuth oauth_body_hash="x"'),
        ("Authorization", 'Hawk id="x", hash="x"'),
        ("Authorization", "WECHATPAY2-SHA256-RSA2048 mchid=1"),
        ("Authorization", "EG1-HMAC-SHA256 client_token=x"),
        ("Authorization", "HMAC key:mac"),
        ("Authorization", "AWS4-ECDSA-P256-SHA256 x"),
        ("Authorization", "  aws4-hmac-sha256 x"),
        ("Authorization", 'Signature headers = "date content-md5"'),
        ("Authorization", 'Signature version="1",headers="date x-content-sha256"'),
        ("Signature", 'keyId="k",headers="content-length"'),
        ("Signature", LONG),
        ("Signature-Input", 'a=("@method" ("content-digest"'),
        ("Plaid-Verification", LONG),
        ("X-Pay-Token", LONG),
        ("Linear_Signature", LONG),
        ("HmacSignature", LONG),
        ("X-Sign", LONG),
        ("X-Body-Sig", LONG),
        ("X-" + "a" * 100 + "-Signature", LONG),
        ("X-Whatever", " eyJhbGciOiJIUzI1NiJ9..c2ln"),
        ("X-Signature", "0123456789abcdef"),
        ("Signature", "0123456789abcdef"),
    ],
)
def test_what_covers(field: tuple[str, str]) -> None:
    assert of(field) == f"the field {field[0]}"


@pytest.mark.parametrize(
    "field",
    [
        ("Authorization", ""),
        ("Authorization", "OAuth realm=x"),
        ("Authorization", 'Hawk id="x"'),
        ("Authorization", "SharedKeyLite account:mac"),
        ("Authorization", "SCRAM-SHA-256 x"),
        ("Authorization", "Signature"),
        ("Authorization", 'Signature headers="date" digest'),
        ("Signature", 'keyId="k",x="digest"'),
        ("Signature", "short"),
        ("Signature-Input", 'a=("@method";key="digest" "date");keyid="(digest)"'),
        ("Signature-Input", 'a=("x\\"y");b="digest"'),
        ("Signature-Input", 'a=("date") "digest"'),
        ("X-Signature", "0123456789abcde"),
        ("X-Sign-In-Url", LONG),
        ("X-Signature-Nonce", LONG),
        ("Accept-Signature", LONG),
        ("X-" + "a" * 100, LONG),
        ("X-Data", ".." + LONG),
        ("X-Data", "eyJ.." + "!" * 20),
    ],
)
def test_what_does_not(field: tuple[str, str]) -> None:
    assert of(field) is None


def test_a_message_signature_is_looked_at_where_it_says_what_it_covers() -> None:
    assert of(("Signature", LONG)) == "the field Signature"
    assert of(("Signature", LONG), ("signature-input", 'a=("date")')) is None


def test_a_hash_that_is_said_to_be_left_out_must_be_said_once_and_for_all() -> None:
    scheme = ("Authorization", "AWS4-HMAC-SHA256 x")
    unsigned = ("X-Amz-Content-Sha256", "unsigned-payload")
    assert of(scheme, unsigned) is None
    for names, covers in (("host;x-amz-content-sha256", False), ("host;content-length", True), ("content-md5", True)):
        signer = ("Authorization", f"AWS4-HMAC-SHA256 Credential=x, SignedHeaders={names}, Signature=x")
        assert (of(signer, unsigned) is not None) is covers
    assert of(scheme, unsigned, ("x-amz-content-sha256", LONG)) == "the field Authorization"
    query = "X-Goog-Signature=1&X-Goog-Content-Sha256=UNSIGNED-PAYLOAD"
    assert of(query=query + "&x=content-md5") is None  # no list of what is signed
    assert of(query=query) is None
    assert of(query=query + "&X-Goog-SignedHeaders=host%3Bcontent-length") == "x-goog-signature in the query"
    assert of(("x-goog-content-sha256", "UNSIGNED-PAYLOAD"), query="X-Goog-Signature=1") is None


@pytest.mark.parametrize("name", ["Authorization", "Signature", "Signature-Input", "X-Data", "-" * 50_000])
@pytest.mark.parametrize(
    "text",
    [
        "Signature headers=",
        'Signature keyid= headers="',
        '("',
        '"',
        '\\"',
        "aws4-hmac-sha256 signedheaders=",
        "eyJ",
        "=",
        " ",
    ],
)
def test_unfriendly_fields_take_linear_time(name: str, text: str) -> None:
    began = time.process_time()
    of((name, text * (400_000 // len(text))))
    of(query=text * (400_000 // len(text)))
    assert time.process_time() - began < 5
