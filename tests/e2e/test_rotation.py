"""Keys are rotated while requests go on: nothing is lost, nothing arrives in clear, and the receiver, which has its own
library and reads its own file, opens each value with the keys that it has at that moment. The metrics say which keys
are still used, so that an old one can go.

Proves docs/keys.md ("Rotating"), and rule 3 (nothing leaves that is not sealed).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jwcrypto import jwe, jwk
from jwcrypto.common import base64url_decode

from tests.e2e import wire
from tests.e2e.app import ask
from tests.e2e.certificates import Authority
from tests.e2e.connection import RecordedRequest
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

USES = "overcoat_key_uses_total"


def run(folder: Path, *arguments: str) -> str:
    """Run `overcoat keys` in a folder."""
    return Sidecar("mode: enforce", folder / "tool").run("keys", *arguments)


class Server:
    """Opens what comes with the private set as it is at that moment, and notes it.

    Attributes:
        opened: the values, each with the name of the key that it was sealed for.
        problems: what could not be opened.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.opened: list[tuple[int, str]] = []
        self.problems: list[str] = []

    def __call__(self, request: RecordedRequest) -> bytes:
        try:
            token = json.loads(request.body)["card"]
            kid = json.loads(base64url_decode(token.partition(".")[0]))["kid"]
            key = jwk.JWKSet.from_json(self.file.read_text()).get_key(kid)
            opened = jwe.JWE()
            opened.deserialize(token, key)
            self.opened.append((int(json.loads(opened.payload)), kid))
        except Exception as e:
            self.problems.append(f"{type(e).__name__}: {e}")
        return wire.response(200, b"{}")


def kids(file: Path) -> list[str]:
    """The names of the keys of a set, in their order."""
    return [key["kid"] for key in json.loads(file.read_text())["keys"]]


def test_keys_are_rotated_under_load(
    authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
) -> None:
    (tmp_path / "tool").mkdir()
    private, public = tmp_path / "app.jwks", tmp_path / "app.pub.jwks"
    run(tmp_path, "new", "--kid", "one", "--into", str(private))
    public.write_text(run(tmp_path, "public", str(private)))
    server = Server(private)
    upstream = tls_upstream("pay.example", respond=server)
    policy = """
        keys: {app: {alg: ECDH-ES+A256KW, set: app.pub.jwks}}
        rules: [{name: pay, hosts: [pay.example], request: [{encrypt: [$.card], key: app}]}]
    """
    with Sidecar(policy, tmp_path, authority=authority, hosts={"pay.example": "127.0.0.1"}) as sidecar:
        answers: list[Any] = []
        ends = threading.Event()

        def load() -> None:
            while not ends.is_set():
                body = json.dumps({"card": len(answers)}).encode()
                answers.append(ask(sidecar, upstream, "pay.example", body=body).status)

        def used(kid: str) -> float:
            return sidecar.metrics().value(USES, key="app", kid=kid, direction="encrypted")

        def reloads(result: str) -> float:
            return sidecar.metrics().value("overcoat_policy_reloads_total", result=result)

        app = threading.Thread(target=load)
        app.start()
        try:
            wait_until(lambda: used("one") > 3, "the first key")
            run(tmp_path, "rotate", str(private), "--public", str(public), "--kid", "two")
            assert kids(public) == ["one", "two"]
            wait_until(
                lambda: sidecar.metrics().value("overcoat_policy_reloads_total", result="taken") == 1, "a reload"
            )
            run(tmp_path, "rotate", str(private), "--public", str(public))
            assert kids(public) == ["two", "one"]
            wait_until(lambda: used("two") > 3, "the second key")
            last = used("one")
            wait_until(lambda: used("two") > 10, "more of the second key")
            assert used("one") == last  # it is not sealed with any more, and may go
            run(tmp_path, "rotate", str(private), "--public", str(public))
            assert kids(public) == kids(private) == ["two"]
            wait_until(
                lambda: sidecar.metrics().value("overcoat_policy_reloads_total", result="taken") == 3, "a reload"
            )
            some = used("two")
            wait_until(lambda: used("two") > some + 3, "the second key alone")
        finally:
            ends.set()
            app.join()
        assert reloads("refused") == 0
        assert used("one") + used("two") == len(answers)
    assert server.problems == []
    assert set(answers) == {200}
    assert [value for value, _ in server.opened] == list(range(len(answers)))
    named = [kid for _, kid in server.opened]
    assert named == sorted(named)  # the old key first, then the new one
    assert set(named) == {"one", "two"}


def test_what_opens_says_which_keys_are_still_used(
    authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
) -> None:
    (tmp_path / "tool").mkdir()
    private = tmp_path / "app.jwks"
    run(tmp_path, "new", "--kid", "one", "--into", str(private))
    token = jwe.JWE(
        b'"4111"',
        json.dumps({"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "one"}),
        recipient=jwk.JWKSet.from_json(private.read_text()).get_key("one"),  # type: ignore[arg-type]  # it takes a key
    ).serialize(compact=True)
    run(tmp_path, "rotate", str(private), "--kid", "two")
    run(tmp_path, "rotate", str(private))
    body = json.dumps({"card": token, "cards": [token, token]}).encode()
    upstream = tls_upstream("pay.example", respond=lambda _: wire.response(200, body))
    policy = """
        keys: {app: {alg: ECDH-ES+A256KW, set: app.jwks, bind: none}}
        rules: [{name: pay, hosts: [pay.example], response: [{decrypt: [$.card, "$.cards[*]"], key: app}]}]
    """
    with Sidecar(policy, tmp_path, authority=authority, hosts={"pay.example": "127.0.0.1"}) as sidecar:

        def used(kid: str) -> float:
            return sidecar.metrics().value(USES, key="app", kid=kid, direction="decrypted")

        shown = {labels["kid"] for labels in sidecar.metrics().labels(USES)}
        assert shown == {"one", "two"}  # at 0 from the start
        answer = ask(sidecar, upstream, "pay.example", body=b"{}")
        assert answer.json() == {"card": "4111", "cards": ["4111", "4111"]}
        assert (used("one"), used("two")) == (3, 0)
