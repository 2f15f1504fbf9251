"""Keys that somebody publishes by URL: they are fetched as any request to that host, before they are needed; what is
wrong with them, or with the way there, never leads to anything in clear.

Proves rule 1 (fail closed: without a key nothing leaves), rule 2 (never plain http), and docs/keys.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.core.jose.keys import Alg
from proxy.core.jose.keywriting import thumbprint, to_jwk
from tests.e2e import wire
from tests.e2e.app import ask
from tests.e2e.certificates import Authority
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Marked, Receiver, assert_only_marked_changed
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

HOSTS = dict.fromkeys(("pay.example", "keys.example"), "127.0.0.1")
PIECES = (b'{"card": ', Marked(b'"4111 1111"', "$.card"), b"}")
BODY = b'{"card": "4111 1111"}'
FETCHED = "overcoat_jwks_fetched_timestamp_seconds"
TRIED = "overcoat_jwks_refreshes_total"

ONE, TWO = Receiver("one"), Receiver("two")

type Jwk = dict[str, Any]


def jwk(receiver: Receiver, **changes: object) -> Jwk:
    """A receiver's public key with some members changed; None takes one away."""
    members = {**to_jwk(receiver.key, private=False), **changes}
    return {name: value for name, value in members.items() if value is not None}


def a_set(*keys: Jwk) -> bytes:
    """A JWK Set."""
    return json.dumps({"keys": keys}).encode()


class Publisher:
    """Answers with what a test has put here.

    Attributes:
        answer: the whole response, in pieces.
    """

    def __init__(self, *keys: Jwk) -> None:
        self.answer: Callable[[], bytes | Iterator[bytes]] = lambda: wire.response(200, a_set(*keys))

    def publish(self, *keys: Jwk) -> None:
        """Answer with these keys from now on."""
        self.answer = lambda: wire.response(200, a_set(*keys))

    def __call__(self, request: RecordedRequest) -> bytes | Iterator[bytes]:
        assert request.method == "GET"
        return self.answer()


def policy(port: int, *, rule: str = "", more: str = "", max_age: str = "1h", first: str = "") -> str:
    """A policy that seals for pay.example with what keys.example publishes.

    Args:
        port: of the publisher.
        rule: further rules.
        more: further keys of the key set.
        max_age: of the key set.
        first: further keys of the policy.
    """
    return f"""{first}
keys:
  partner: {{jwks: "https://keys.example:{port}/jwks.json?v=1", alg: ECDH-ES+A256KW, max_age: {max_age}{more}}}
rules:
  - {{name: pay, hosts: [pay.example], request: [{{encrypt: [$.card], key: partner}}]}}
{rule}
"""


@pytest.fixture
def upstream(tls_upstream: Callable[..., TlsUpstream]) -> TlsUpstream:
    """Who gets what is sealed."""
    return tls_upstream("pay.example")


@pytest.fixture
def publisher() -> Publisher:
    """Publishes one key at first."""
    return Publisher(jwk(ONE))


@pytest.fixture
def keys(tls_upstream: Callable[..., TlsUpstream], publisher: Publisher) -> TlsUpstream:
    """Where the keys are published."""
    return tls_upstream("keys.example", respond=publisher)


def sealed_for(sidecar: Sidecar, upstream: TlsUpstream, receiver: Receiver) -> None:
    """Check that a request arrives, sealed for this receiver."""
    before = len(upstream.requests)
    answer = ask(sidecar, upstream, "pay.example", body=BODY)
    assert answer.status == 200, answer.body
    assert_only_marked_changed(upstream.wait_for_requests(before + 1)[-1].body, PIECES, receiver, "pay.example")


def kid_of_a_request(sidecar: Sidecar, upstream: TlsUpstream) -> str:
    """Return for whom a request is sealed; it must arrive."""
    before = len(upstream.requests)
    assert ask(sidecar, upstream, "pay.example", body=BODY).status == 200
    token = json.loads(upstream.wait_for_requests(before + 1)[-1].body)["card"]
    header, value = next(each for each in (ONE, TWO) if _opens(each, token)).open_alone(token.encode())
    assert value == b'"4111 1111"'
    return str(header["kid"])


def _opens(receiver: Receiver, token: str) -> bool:
    try:
        receiver.open_alone(token.encode())
    except Exception:
        return False
    return True


def nothing_leaves(sidecar: Sidecar, upstream: TlsUpstream) -> None:
    """Check that a request is denied for want of a key, and that nothing of it is sent."""
    answer = ask(sidecar, upstream, "pay.example", body=BODY)
    assert (answer.status, answer.json()["reason"]) == (503, "key_unavailable")
    assert "none could be fetched from https://keys.example" in answer.json()["detail"]
    assert "?v=1" not in answer.body.decode() + sidecar.stdout + sidecar.stderr  # a query may be a secret
    upstream.assert_untouched()


class TestWhatIsFetched:
    def test_the_first_key_that_fits_seals(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        rsa = Receiver("rsa", Alg.RSA_OAEP_256)
        publisher.publish(jwk(rsa), jwk(TWO, use="sig"), jwk(TWO, alg="ECDH-ES", kid="b"), jwk(ONE), jwk(TWO))
        with Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            sealed_for(sidecar, upstream, ONE)
            metrics = sidecar.metrics()
        assert metrics.value(TRIED, key="partner", result="fetched") == 1
        assert metrics.value(TRIED, key="partner", result="failed") == 0
        assert time.time() - 60 < metrics.value(FETCHED, key="partner") <= time.time()
        assert metrics.value("overcoat_jwks_max_age_seconds", key="partner") == 3600
        (request,) = keys.requests
        assert request.target == "/jwks.json?v=1"
        assert request.connection.sni == "keys.example"
        assert [name.lower() for name, _ in request.headers.fields] == ["host", "user-agent", "accept", "connection"]

    def test_the_key_that_is_named_seals(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        publisher.publish(jwk(ONE), jwk(TWO))
        with Sidecar(policy(keys.port, more=", kid: two"), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            sealed_for(sidecar, upstream, TWO)

    def test_a_key_without_a_name_is_called_by_its_thumbprint(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        publisher.publish(jwk(ONE, kid=None))
        with Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            assert kid_of_a_request(sidecar, upstream) == thumbprint(ONE.key)

    def test_each_worker_fetches(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, tmp_path: Path
    ) -> None:
        text = policy(keys.port, first="workers: 2")
        with Sidecar(text, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            for _ in range(8):
                sealed_for(sidecar, upstream, ONE)
            metrics = sidecar.metrics()
        assert len(keys.requests) == 2
        assert metrics.value(TRIED, key="partner", result="fetched") == 2
        assert metrics.value(FETCHED, key="partner") > time.time() - 60


def _pieces(pause: float) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    time.sleep(pause)
    yield b"{"


MALFORMED: dict[str, Callable[[], bytes]] = {
    "a redirect": lambda: wire.response(302, a_set(jwk(ONE)), headers=(("Location", "/other"),)),
    "an error": lambda: wire.response(500, a_set(jwk(ONE))),
    "no content": lambda: b"HTTP/1.1 204 No Content\r\n\r\n",
    "a page": lambda: wire.response(200, b"<html>"),
    "a member twice": lambda: wire.response(200, b'{"keys": [], ' + a_set(jwk(ONE))[1:]),
    "nothing": lambda: wire.response(200, b""),
    "no keys": lambda: wire.response(200, b'{"keys": []}'),
    "no list": lambda: wire.response(200, b'{"keys": {}}'),
    "a private key": lambda: wire.response(200, a_set(jwk(ONE), to_jwk(TWO.key, private=True))),
    "a symmetric key": lambda: wire.response(200, a_set(jwk(ONE), {"kty": "oct", "k": "AAAA"})),
    "two keys of one name": lambda: wire.response(200, a_set(jwk(ONE), jwk(TWO, kid="one"))),
    "none that fits": lambda: wire.response(200, a_set(jwk(ONE, use="sig"))),
    "a point off the curve": lambda: wire.response(200, a_set(jwk(ONE, y=jwk(TWO)["y"]))),
    "far too much": lambda: wire.response(200, b'{"keys": [' + b" " * 300_000 + a_set(jwk(ONE))[9:]),
    "an encoding": lambda: wire.response(200, a_set(jwk(ONE)), headers=(("Content-Encoding", "identity"),)),
    "half of it": lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\nConnection: close\r\n\r\n" + a_set(jwk(ONE)),
    "no HTTP": lambda: b"\x00\x01\x02\x03 no http at all\r\n\r\n",
}


class TestWhatIsNotUsed:
    def test_without_a_key_that_can_be_used_nothing_leaves(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
    ) -> None:
        """Each answer has a key set and a host of its own; the twin is the same URL with a good answer."""
        names = {f"case-{number}": what for number, what in enumerate(MALFORMED)}
        is_good = False

        def answer(request: RecordedRequest) -> bytes:
            return wire.response(200, a_set(jwk(ONE))) if is_good else MALFORMED[names[request.target.strip("/")]]()

        keys, upstream = (
            tls_upstream("keys.example", respond=answer),
            tls_upstream(*(f"{name}.example" for name in names)),
        )
        sets = [f'  {name}: {{jwks: "https://keys.example:{keys.port}/{name}", alg: ECDH-ES+A256KW}}' for name in names]
        rules = [
            f"  - {{name: {name}, hosts: [{name}.example], request: [{{encrypt: [$.card], key: {name}}}]}}"
            for name in names
        ]
        text = "\n".join(["keys:", *sets, "rules:", *rules])
        hosts = dict.fromkeys(("keys.example", *(f"{name}.example" for name in names)), "127.0.0.1")
        with Sidecar(text, tmp_path, authority=authority, hosts=hosts) as sidecar:
            metrics = sidecar.metrics()
            for name, what in names.items():
                denied = ask(sidecar, upstream, f"{name}.example", body=BODY)
                assert (denied.status, denied.json()["reason"]) == (503, "key_unavailable"), what
                assert f"key set {name}: its keys cannot be fetched from https://keys.example" in sidecar.stderr, what
                assert metrics.value(TRIED, key=name, result="failed") >= 1
                assert metrics.value(FETCHED, key=name) == 0
            upstream.assert_untouched()
            is_good = True
            for name in names:
                fetched = lambda name=name: sidecar.metrics().value(FETCHED, key=name)  # noqa: E731  # one look
                wait_until(fetched, name, seconds=20)
                assert ask(sidecar, upstream, f"{name}.example", body=BODY).status == 200
        assert len(upstream.requests) == len(names)
        assert {request.target.strip("/") for request in keys.requests} == set(names)

    def test_a_server_that_never_ends_holds_up_nothing(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        publisher.answer = lambda: _pieces(7)
        with Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS) as sidecar:  # ready all the same
            nothing_leaves(sidecar, upstream)

    @pytest.mark.parametrize(
        ("rule", "is_reached"),
        [
            ("", True),
            ("trust: {{strict: true}}", True),
            ("pins: {{any_of: [{pin}]}}", True),
            ('pins: {{any_of: ["sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}}', False),
            ("destinations: {{allow: [10.0.0.0/8]}}", False),
            ('pins: {{any_of: ["sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}}, mode: observe', False),
        ],
        ids=["no rule", "trust", "its pin", "another pin", "an address that is forbidden", "another pin, observed"],
    )
    def test_the_rule_of_the_host_counts(
        self,
        authority: Authority,
        upstream: TlsUpstream,
        keys: TlsUpstream,
        tmp_path: Path,
        rule: str,
        is_reached: bool,
    ) -> None:
        inside = rule.format(pin=f'"{keys.pin}"')
        text = f"  - {{name: keys, hosts: [keys.example], {inside}}}" if inside else ""
        with Sidecar(policy(keys.port, rule=text), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            if is_reached:
                sealed_for(sidecar, upstream, ONE)
            else:
                nothing_leaves(sidecar, upstream)
                keys.assert_no_application_bytes()

    def test_a_certificate_that_is_not_trusted_ends_it(
        self, authority: Authority, upstream: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        with TlsUpstream(Authority(), "keys.example", respond=publisher) as other:
            with Sidecar(policy(other.port), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
                nothing_leaves(sidecar, upstream)
            other.assert_no_application_bytes()

    def test_observe_mode_changes_nothing_about_that(
        self, authority: Authority, upstream: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        with TlsUpstream(Authority(), "keys.example", respond=publisher) as other:
            text = policy(other.port, first="mode: observe")
            with Sidecar(text, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
                assert sidecar.metrics().value(FETCHED, key="partner") == 0
                other.assert_no_application_bytes()

    @pytest.mark.parametrize(("allowed", "is_reached"), [("10.0.0.0/8", False), ("loopback", True)])
    def test_in_observe_mode_a_forbidden_address_is_not_reached_either(
        self, authority: Authority, keys: TlsUpstream, tmp_path: Path, allowed: str, is_reached: bool
    ) -> None:
        text = policy(keys.port, first=f"mode: observe\ndestinations: {{allow: [{allowed}]}}")
        with Sidecar(text, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            assert (sidecar.metrics().value(FETCHED, key="partner") > 0) is is_reached
        if not is_reached:
            keys.assert_untouched()

    def test_a_host_that_does_not_exist_is_none(
        self, authority: Authority, upstream: TlsUpstream, tmp_path: Path
    ) -> None:
        hosts = {"pay.example": "127.0.0.1"}
        with Sidecar(policy(443), tmp_path, authority=authority, hosts=hosts) as sidecar:
            nothing_leaves(sidecar, upstream)


class TestWhileItRuns:
    def test_a_new_key_is_used_and_no_request_waits_or_fails(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        with Sidecar(policy(keys.port, max_age="1s"), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            sealed_for(sidecar, upstream, ONE)
            publisher.publish(jwk(TWO), jwk(ONE))
            kids: list[str] = []

            def is_new() -> bool:
                kids.append(kid_of_a_request(sidecar, upstream))
                return kids[-1] == "two"

            wait_until(is_new, "the new key")
            assert set(kids) <= {"one", "two"}
            assert kids == sorted(kids)  # and never the old one again
            assert "key set partner seals with key two" in sidecar.stderr

    def test_while_it_is_down_the_last_keys_stay_and_that_is_said(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        with Sidecar(policy(keys.port, max_age="1s"), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            sealed_for(sidecar, upstream, ONE)
            publisher.answer = MALFORMED["an error"]

            def failed() -> float:
                return sidecar.metrics().value(TRIED, key="partner", result="failed")

            wait_until(lambda: failed() >= 1, "a failure")
            before = sidecar.metrics().value(FETCHED, key="partner")
            wait_until(lambda: failed() >= 2, "another failure")
            sealed_for(sidecar, upstream, ONE)
            assert sidecar.metrics().value(FETCHED, key="partner") == before
            assert sidecar.stderr.count("answered with status 500; the keys of before stay") == 1
            publisher.publish(jwk(TWO))
            wait_until(lambda: sidecar.metrics().value(FETCHED, key="partner") > before, "it is back", seconds=20)
            sealed_for(sidecar, upstream, TWO)

    def test_a_server_that_is_gone_is_no_end_either(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, tmp_path: Path
    ) -> None:
        with Sidecar(policy(keys.port, max_age="1s"), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            keys.close()
            wait_until(lambda: sidecar.metrics().value(TRIED, key="partner", result="failed"), "a failure")
            sealed_for(sidecar, upstream, ONE)

    def test_another_policy_keeps_the_keys_of_the_same_url(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        with Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            sealed_for(sidecar, upstream, ONE)
            publisher.publish(jwk(TWO))
            sidecar.write_policy(policy(keys.port, first="via: coat"))
            wait_until(lambda: sidecar.metrics().value("overcoat_policy_reloads_total", result="taken"), "the policy")
            sealed_for(sidecar, upstream, ONE)
            assert len(keys.requests) == 1
            sidecar.write_policy(
                policy(keys.port, rule=f'  - {{name: keys, hosts: [keys.example], pins: {{any_of: ["{keys.pin}"]}}}}')
            )
            wait_until(lambda: len(keys.requests) == 2, "the keys under the new pin")
            wait_until(lambda: kid_of_a_request(sidecar, upstream) == "two", "the new key")

    @pytest.mark.parametrize(("status", "said"), [(200, "were fetched"), (500, "have never been fetched")])
    def test_the_status_page_says_how_old_they_are(
        self, authority: Authority, keys: TlsUpstream, publisher: Publisher, tmp_path: Path, status: int, said: str
    ) -> None:
        publisher.answer = lambda: wire.response(status, a_set(jwk(ONE)))
        with Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            page = sidecar.admin_get("/")[1]
        assert f"The keys of partner {said}" in page
        assert "and are to be every 60 min" in page

    def test_a_key_set_that_is_gone_is_fetched_no_more(
        self, authority: Authority, upstream: TlsUpstream, keys: TlsUpstream, tmp_path: Path
    ) -> None:
        with Sidecar(policy(keys.port, max_age="1s"), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            sealed_for(sidecar, upstream, ONE)
            sidecar.write_policy("mode: enforce")
            wait_until(lambda: sidecar.metrics().value("overcoat_policy_reloads_total", result="taken"), "the policy")
            fetched = len(keys.requests)
            time.sleep(1.5)
            assert len(keys.requests) == fetched
            assert sidecar.metrics().labels(FETCHED) == ()


class TestCheck:
    def test_it_says_which_key_seals(
        self, authority: Authority, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        publisher.publish(jwk(TWO), jwk(ONE))
        sidecar = Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS)
        summary = json.loads(sidecar.run("check", "-p", "policy.yaml", "--json"))
        (key_set,) = summary["keys"]
        assert key_set["jwks"] == f"https://keys.example:{keys.port}/jwks.json"
        assert [key["kid"] for key in key_set["keys"]] == ["two", "one"]
        assert summary["failed"] == []

    def test_it_says_why_there_is_none(
        self, authority: Authority, keys: TlsUpstream, publisher: Publisher, tmp_path: Path
    ) -> None:
        publisher.answer = MALFORMED["a redirect"]
        sidecar = Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS)
        with pytest.raises(SidecarFailed) as failed:
            sidecar.run("check", "-p", "policy.yaml")
        assert failed.value.status == 1
        assert "answered with status 302; redirects are not followed; what it should encrypt is denied" in (
            failed.value.stderr
        )

    def test_without_secrets_it_dials_nothing(self, authority: Authority, keys: TlsUpstream, tmp_path: Path) -> None:
        sidecar = Sidecar(policy(keys.port), tmp_path, authority=authority, hosts=HOSTS)
        said = sidecar.run("check", "-p", "policy.yaml", "--no-secrets")
        assert f"from https://keys.example:{keys.port}/jwks.json" in said
        assert "v=1" not in said  # a query may be a secret
        keys.assert_untouched()
