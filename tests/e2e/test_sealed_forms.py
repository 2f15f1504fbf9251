"""How a sealed value may look and be told: envelopes, other names, padding, and values that were sealed before.

Proves docs/choosing.md with libraries of others at the other end, and that a retry through two sidecars does not seal
twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from joserfc import jwe as joserfc_jwe
from joserfc.jwk import JWKRegistry

from proxy.core.jose.keys import Alg
from proxy.core.jose.keywriting import to_jwk
from tests.e2e import wire
from tests.e2e.app import Way, ask, decision_of, fresh
from tests.e2e.certificates import Authority
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = (
    "whole.example",
    "part.example",
    "named.example",
    "padded.example",
    "kept.example",
    "again.example",
    "once.example",
    "small.example",
)
POLICY = """
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {pay}}}}}
      app: {{alg: A256KW, primary: {{kid: app, file: {app}}}}}
      small: {{alg: A256KW, enc: A128GCM, primary: {{kid: app, file: {app}}}}}
    rules:
      - name: whole
        hosts: [whole.example]
        request: [{{encrypt: ["$"], key: pay, envelope: encryptedData}}]
        response: [{{decrypt: ["$"], key: app, envelope: "sealed answer"}}]
      - {{name: part, hosts: [part.example], request: [{{encrypt: ["$.cards[*]"], key: pay, envelope: encData}}]}}
      - name: named
        hosts: [named.example]
        request: [{{encrypt: ["$..number"], key: pay, rename: encryptedNumber}}]
        response: [{{decrypt: ["$..encryptedNumber"], key: app, rename: number}}]
      - {{name: padded, hosts: [padded.example], request: [{{encrypt: ["$..ssn"], key: app, pad: 32}}]}}
      - {{name: kept, hosts: [kept.example], request: [{{encrypt: ["$..ssn"], key: pay}}]}}
      - {{name: again, hosts: [again.example], request: [{{encrypt: ["$..ssn"], key: app, already_sealed: seal}}]}}
      - {{name: once, hosts: [once.example], request: [{{encrypt: ["$..ssn"], key: pay, already_sealed: deny}}]}}
      - name: small
        hosts: [small.example]
        request: [{{encrypt: ["$.ssn"], key: small}}]
        response: [{{decrypt: ["$.ssn"], key: small}}]
"""
PAY, APP = Receiver("pay"), Receiver("app", Alg.A256KW)

Make = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    folder = tmp_path_factory.mktemp("forms")
    policy = POLICY.format(pay=PAY.write_public(folder), app=APP.write_private(folder))
    with Sidecar(policy, folder, authority=authority, hosts=dict.fromkeys(HOSTS, "127.0.0.1")) as sidecar:
        yield sidecar


@pytest.fixture
def upstream(tls_upstream: Make) -> TlsUpstream:
    return fresh(lambda: tls_upstream(*HOSTS))


def opened(token: str, receiver: Receiver) -> tuple[dict[str, Any], bytes]:
    """Open a token with joserfc, which refuses header members that it does not know."""
    jwk: Any = to_jwk(receiver.key, private=True)
    key = JWKRegistry.import_key(jwk)
    got = joserfc_jwe.decrypt_compact(token, key, algorithms=[receiver.key.alg.value, "A256GCM", "A128GCM"])
    assert got.plaintext is not None
    return dict(got.headers()), got.plaintext


@pytest.mark.parametrize("body", [b'{ "card" : {"number":"4111"}, "n":1.0 }', b"[1, 2.0]", b'"text"'])
@pytest.mark.parametrize("way", Way)
def test_a_whole_body_goes_as_an_envelope_and_the_answer_comes_out_of_another(
    sidecar: Sidecar, tls_upstream: Make, body: bytes, way: Way
) -> None:
    sealed = b'{"sealed answer" : %s}' % APP.seal(body, "whole.example", "$")
    upstream = fresh(lambda: tls_upstream("whole.example", respond=lambda _: wire.response(200, sealed)))
    answer = ask(sidecar, upstream, "whole.example", way=way, body=body)
    assert (answer.status, answer.body) == (200, body)
    (got,) = upstream.wait_for_requests(1)
    assert got.json().keys() == {"encryptedData"}
    header, plaintext = opened(got.json()["encryptedData"], PAY)
    assert plaintext == body
    assert header["cty"] == 'application/json;host="whole.example";path="$"'
    assert got.headers.get("content-length") == str(len(got.body))


def answering(make: Make, body: bytes) -> TlsUpstream:
    return make("whole.example", respond=lambda _: wire.response(200, body))


def test_an_answer_that_is_no_envelope_passes_and_one_with_more_in_it_is_denied(
    sidecar: Sidecar, tls_upstream: Make
) -> None:
    token = APP.seal(b"1", "whole.example", "$")
    for body, status in ((b'{"error": "x"}', 200), (b'{"sealed answer":%s,"x":1}' % token, 502), (token, 502)):
        answer = ask(sidecar, fresh(partial(answering, tls_upstream, body)), "whole.example", body=b"{}")
        assert answer.status == status
        if status == 200:
            assert answer.body == body
        else:
            assert answer.json()["reason"] == "decryption_failed"
            assert token not in answer.body


def test_elements_of_an_array_each_go_as_an_envelope(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    assert ask(sidecar, upstream, "part.example", body=b'{"cards": [ {"n":1} , "x"], "a":0.0}').status == 200
    (got,) = upstream.wait_for_requests(1)
    first, second = got.json()["cards"]
    assert got.body == b'{"cards": [ {"encData":"%s"} , {"encData":"%s"}], "a":0.0}' % (
        first["encData"].encode(),
        second["encData"].encode(),
    )
    assert [opened(each["encData"], PAY)[1] for each in (first, second)] == [b'{"n":1}', b'"x"']
    assert decision_of(sidecar, upstream)["encrypted"] == 2


def test_a_member_gets_another_name_and_back(sidecar: Sidecar, tls_upstream: Make) -> None:
    sealed = b'{ "encryptedNumber" :%s,"x":1}' % APP.seal(b'"4111"', "named.example", "$.number")
    upstream = fresh(lambda: tls_upstream("named.example", respond=lambda _: wire.response(200, sealed)))
    answer = ask(sidecar, upstream, "named.example", body=b'{"card":{"number" : "4111"}, "cvv":1}')
    assert (answer.status, answer.body) == (200, b'{ "number" :"4111","x":1}')
    (got,) = upstream.wait_for_requests(1)
    token = got.json()["card"]["encryptedNumber"]
    assert got.body == b'{"card":{"encryptedNumber" : "%s"}, "cvv":1}' % token.encode()
    header, plaintext = opened(token, PAY)
    assert (header["cty"], plaintext) == ('application/json;host="named.example";path="$.card.number"', b'"4111"')


def test_padding_hides_how_long_a_value_is(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    assert (
        ask(sidecar, upstream, "padded.example", body=b'[{"ssn":"1"},{"ssn":"078-05-1120"},{"ssn":null}]').status == 200
    )
    (got,) = upstream.wait_for_requests(1)
    tokens = [each["ssn"] for each in got.json()]
    assert len({len(token) for token in tokens}) == 1
    assert [json.loads(opened(token, APP)[1]) for token in tokens] == ["1", "078-05-1120", None]


class TestTwice:
    BODY = b'{"ssn": "078-05-1120", "x":{"ssn":1}}'

    def sealed_by_the_first(self, sidecar: Sidecar, tls_upstream: Make, host: str, body: bytes = BODY) -> bytes:
        upstream = fresh(lambda: tls_upstream(*HOSTS))
        assert ask(sidecar, upstream, host, body=body).status == 200
        return upstream.wait_for_requests(1)[0].body

    def test_through_two_sidecars_a_value_is_sealed_once(
        self, sidecar: Sidecar, tls_upstream: Make, upstream: TlsUpstream
    ) -> None:
        first = self.sealed_by_the_first(sidecar, tls_upstream, "kept.example")
        signed = (("Content-Type", "application/json"), ("Content-Digest", "sha-256=:AA==:"))
        assert ask(sidecar, upstream, "kept.example", body=first, headers=signed).status == 200  # nothing breaks it
        (got,) = upstream.wait_for_requests(1)
        assert got.body == first
        assert decision_of(sidecar, upstream)["encrypted"] == 0

    def test_or_twice_if_the_entry_says_so(self, sidecar: Sidecar, tls_upstream: Make, upstream: TlsUpstream) -> None:
        first = self.sealed_by_the_first(sidecar, tls_upstream, "again.example")
        assert ask(sidecar, upstream, "again.example", body=first).status == 200
        (got,) = upstream.wait_for_requests(1)
        inner = json.loads(opened(got.json()["ssn"], APP)[1])
        assert inner == json.loads(first)["ssn"]

    def test_or_denied(self, sidecar: Sidecar, tls_upstream: Make, upstream: TlsUpstream) -> None:
        first = self.sealed_by_the_first(sidecar, tls_upstream, "once.example")
        answer = ask(sidecar, upstream, "once.example", body=first)
        assert (answer.status, answer.json()["reason"]) == (422, "already_sealed")
        assert upstream.requests == []

    def test_a_token_of_another_place_is_plain_text_here_and_sealed(
        self, sidecar: Sidecar, tls_upstream: Make, upstream: TlsUpstream
    ) -> None:
        tokens = json.loads(self.sealed_by_the_first(sidecar, tls_upstream, "kept.example"))
        swapped = {"ssn": tokens["x"]["ssn"], "x": {"ssn": tokens["ssn"]}}
        assert ask(sidecar, upstream, "kept.example", body=json.dumps(swapped).encode()).status == 200
        (got,) = upstream.wait_for_requests(1)
        assert json.loads(opened(got.json()["ssn"], PAY)[1]) == swapped["ssn"]
        assert json.loads(opened(got.json()["x"]["ssn"], PAY)[1]) == swapped["x"]["ssn"]


def test_where_the_key_set_says_a128gcm_that_is_sealed_and_opened_and_nothing_else(
    sidecar: Sidecar, tls_upstream: Make
) -> None:
    def answer(request: Any) -> bytes:
        return wire.response(200, request.body)  # what was sealed comes back

    upstream = fresh(lambda: tls_upstream("small.example", respond=answer))
    got = ask(sidecar, upstream, "small.example", body=b'{"ssn":"1"}')
    assert (got.status, got.body) == (200, b'{"ssn":"1"}')
    header, plaintext = opened(upstream.requests[0].json()["ssn"], APP)
    assert (header["enc"], plaintext) == ("A128GCM", b'"1"')
    other = b'{"ssn":%s}' % APP.seal(b"1", "small.example", "$.ssn")
    upstream = fresh(lambda: tls_upstream("small.example", respond=lambda _: wire.response(200, other)))
    got = ask(sidecar, upstream, "small.example", body=b"{}")
    assert (got.status, got.json()["reason"]) == (502, "decryption_failed")


def test_each_body_has_an_ephemeral_key_of_its_own_and_one_for_all_its_values(
    sidecar: Sidecar, tls_upstream: Make, upstream: TlsUpstream
) -> None:
    for _ in range(2):
        assert ask(sidecar, upstream, "kept.example", body=TestTwice.BODY).status == 200
    bodies = [request.json() for request in upstream.wait_for_requests(2)]
    keys = [{json.dumps(opened(token, PAY)[0]["epk"]) for token in (body["ssn"], body["x"]["ssn"])} for body in bodies]
    assert [len(each) for each in keys] == [1, 1]
    assert keys[0] != keys[1]
