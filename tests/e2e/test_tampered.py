"""Tokens that were changed or moved on the way are refused, all with the same answer, and nothing of them is told.

That each character of a token counts is in tests/proxy/core/jose/test_jwe.py; here the whole way is looked at, from the
server's bytes to what the app sees, the decision line and the metric.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from proxy.core.jose.keys import Alg
from tests.e2e import wire
from tests.e2e.app import ask, fresh
from tests.e2e.certificates import Authority
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOST, OTHER = "api.example", "other.example"
SENDERS = {
    "p256": Receiver("p256"),
    "x25519": Receiver("x25519", curve="X25519"),
    "rsa": Receiver("rsa", Alg.RSA_OAEP_256),
    "aes": Receiver("aes", Alg.A256KW),
}
every_kind = pytest.mark.parametrize("kind", list(SENDERS))
VALUE = b'"4111-canary-1111"'

Make = Callable[..., TlsUpstream]


@pytest.fixture(scope="module")
def sidecars(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sidecar]]:
    """A sidecar for each kind of key, with two rules that use it."""
    folder = tmp_path_factory.mktemp("tampered")
    started: dict[str, Sidecar] = {}
    try:
        for kind, sender in SENDERS.items():
            own = folder / kind
            own.mkdir()
            policy = f"keys:\n  k: {{alg: {sender.key.alg}, primary: {{file: {sender.write_private(own)}}}}}\nrules:\n"
            for host in (HOST, OTHER):
                policy += f"  - {{name: {host[:3]}, hosts: [{host}], response: [{{decrypt: [$.a, $.b], key: k}}]}}\n"
            hosts = dict.fromkeys((HOST, OTHER), "127.0.0.1")
            started[kind] = Sidecar(policy, own, authority=authority, hosts=hosts).__enter__()
        yield started
    finally:
        for sidecar in started.values():
            sidecar.__exit__(None, None, None)


def answers(sidecar: Sidecar, make: Make, body: bytes, host: str = HOST) -> Any:
    """Return what the app gets of a body of the server."""
    upstream = fresh(partial(answering, make, host, body))
    return ask(sidecar, upstream, host, method="GET", headers=())


def answering(make: Make, host: str, body: bytes) -> TlsUpstream:
    return make(host, respond=lambda _: wire.response(200, body))


def refusal(sidecar: Sidecar, make: Make, body: bytes, host: str = HOST) -> dict[str, Any]:
    """Return the problem details of a refused body, without what differs between any two requests."""
    answer = answers(sidecar, make, body, host)
    assert (answer.status, answer.json()["reason"]) == (502, "decryption_failed")
    assert b"canary" not in answer.body
    return {name: value for name, value in answer.json().items() if name != "instance"}


def unpacked(token: bytes) -> list[bytes]:
    return token.strip(b'"').split(b".")


def packed(parts: list[bytes]) -> bytes:
    return b'{"a":"%s"}' % b".".join(parts)


def changed(part: bytes, place: int) -> bytes:
    """Return a part of a token with one bit of one byte changed, in canonical base64url again."""
    raw = bytearray(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    raw[place] ^= 1
    return base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=")


@every_kind
def test_whatever_byte_of_key_iv_ciphertext_and_tag_is_changed_the_answer_is_the_same(
    sidecars: dict[str, Sidecar], tls_upstream: Make, kind: str
) -> None:
    parts = unpacked(SENDERS[kind].seal(VALUE, HOST, "$.a"))
    assert answers(sidecars[kind], tls_upstream, packed(parts)).body == b'{"a":%s}' % VALUE
    seen = [
        refusal(sidecars[kind], tls_upstream, packed([*parts[:part], changed(parts[part], place), *parts[part + 1 :]]))
        for part in (1, 2, 3, 4)
        for place in (0, -1)
    ]
    assert all(each == seen[0] for each in seen)
    lines = [line for line in sidecars[kind].stdout.splitlines() if line.startswith("{")]
    assert not any("canary" in line for line in lines)


@every_kind
def test_what_was_moved_from_another_field_host_rule_or_body_is_refused(
    sidecars: dict[str, Sidecar], tls_upstream: Make, kind: str
) -> None:
    sender, sidecar = SENDERS[kind], sidecars[kind]
    here, there = (sender.seal(VALUE, HOST, path) for path in ("$.a", "$.b"))
    swapped = b'{"b":%s,"a":%s}'
    assert json.loads(answers(sidecar, tls_upstream, swapped % (there, here)).body) == dict.fromkeys(
        "ab", json.loads(VALUE)
    )
    of_field = refusal(sidecar, tls_upstream, swapped % (here, there))
    of_host = refusal(sidecar, tls_upstream, b'{"a":%s}' % here, host=OTHER)  # which is another rule's, too
    assert "it was sealed for another place" in of_field["detail"]
    assert of_host["detail"] == of_field["detail"]
    # Parts of two tokens for the same place, which came in two bodies.
    first, second = (unpacked(sender.seal(value, HOST, "$.a")) for value in (VALUE, b'"other-canary-value"'))
    mixed = [[*first[:part], second[part], *first[part + 1 :]] for part in (1, 2, 3, 4)]
    seen = [refusal(sidecar, tls_upstream, packed(parts)) for parts in mixed]
    assert all(each == seen[0] for each in seen)
