"""From observing to enforcing: what a sidecar has seen becomes a policy, which protects once it enforces.

Proves for `overcoat suggest` ARCHITECTURE's rules 6 (no secret is written) and 8: nobody is asked unless its user says
so, and never where the policy lets nothing go.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.comments import PROTECTIONS, uncomment
from tests.e2e import wire
from tests.e2e.app import ask, connect, decision_of, fresh, request
from tests.e2e.certificates import Authority
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar, SidecarFailed, overcoat_command
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOSTS = dict.fromkeys(("pay.example", "same.example", "other.example", "tls.example"), "127.0.0.1")
CARD = "4111111111111111"
BODY = json.dumps({"card": {"number": CARD}, "amount": 12}).encode()


@pytest.fixture
def plain() -> Iterator[PlainUpstream]:
    """What an app talks to over plain http."""
    with fresh(lambda: PlainUpstream(respond=lambda _: wire.response(200, b"{}"))) as upstream:
        yield upstream


def suggest(sidecar: Sidecar, count: int, *arguments: str) -> str:
    """Suggest a policy from the lines of a sidecar, once there are so many."""
    sidecar.wait_for_decisions(count)
    lines = sidecar.policy_file.with_name("lines.json")
    lines.write_text(sidecar.stdout)
    return sidecar.run("suggest", "-p", "policy.yaml", *arguments, str(lines))


class TestTheWay:
    def test_observe_suggest_enforce(
        self,
        authority: Authority,
        tls_upstream: Callable[..., TlsUpstream],
        plain: PlainUpstream,
        roots: Path,
        tmp_path: Path,
    ) -> None:
        secure = fresh(lambda: tls_upstream(*HOSTS, respond=lambda _: wire.response(200, b"{}")))
        policy = f"""
            mode: observe
            rules: [{{name: here, hosts: [pay.example], https_port: {secure.port}}}]
        """
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as observing:
            assert ask(observing, plain, "pay.example", "/v1/charges", body=BODY).status == 200
            assert ask(observing, plain, "pay.example", "/v1/list", method="GET").status == 200
            with connect(observing, f"tls.example:{secure.port}") as client:
                client.start_tls("tls.example", roots)
                client.send(request("/", "tls.example"))
                assert client.read_response().status == 200
            decision_of(observing, secure)
            before = len(plain.requests)
            text = suggest(observing, 3)
            assert len(plain.requests) == before  # nobody was asked
            assert "not tried (--try)" in text
            text = suggest(observing, 3, "--try", "--pins")
        assert plain.requests[-1].target == secure.requests[-1].target == "/v1/list"
        assert plain.requests[-1].method == secure.requests[-1].method == "GET"
        assert "# Tried /v1/list: the same answer; both give 200 with 2 bytes." in text
        assert f"https_port: {secure.port}" in text
        assert f"- {secure.identity.pin}     # the server" in text
        assert '- "$.card.number"     # card_number, 1 x' in text
        assert CARD not in text

        folder = tmp_path / "enforcing"
        folder.mkdir()
        receiver = Receiver("receiver-1")
        (folder / receiver.write_public(folder)).rename(folder / "receiver.pub.pem")
        policy = uncomment(text, PROTECTIONS).replace("mode: observe", "mode: enforce")
        with Sidecar(policy, folder, authority=authority, hosts=HOSTS) as enforcing:
            assert ask(enforcing, plain, "pay.example", "/v1/charges", body=BODY).status == 200
            line = enforcing.wait_for_decision()
        assert (line["action"], line["pin"], line["encrypted"]) == ("upgrade", "match", 1)
        assert CARD.encode() not in secure.received

    def test_answers_that_differ_and_hosts_without_tls_are_said(
        self, authority: Authority, tls_upstream: Callable[..., TlsUpstream], plain: PlainUpstream, tmp_path: Path
    ) -> None:
        def respond(asked: RecordedRequest) -> bytes:
            return wire.response(404, b"not here")

        secure = fresh(lambda: tls_upstream(*HOSTS, respond=respond))
        policy = f"""
            mode: observe
            rules: [{{name: here, hosts: [same.example], https_port: {secure.port}}}]
        """
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as observing:
            for host in ("same.example", "other.example"):
                assert ask(observing, plain, host, method="GET").status == 200
            text = suggest(observing, 2, "--try", "--pins")
        assert "ANOTHER answer" in text
        assert "plain http gives 200 with 2 bytes, https 404 with 8 bytes" in text
        assert f"https does not work at other.example:{plain.port}: tls_failed" in text
        assert "# pins: none to be had from other.example" in text

    def test_what_the_policy_forbids_is_not_asked_though_it_observes(
        self, authority: Authority, plain: PlainUpstream, tmp_path: Path
    ) -> None:
        policy = "mode: observe\ndestinations: {allow: [private]}"
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as observing:
            assert ask(observing, plain, "pay.example", method="GET").status == 200
            connections = len(plain.connections)
            text = suggest(observing, 1, "--try", "--pins")
            plain.settle()
            assert len(plain.connections) == connections
        assert "destination_forbidden" in text
        assert "# destinations: {allow: [loopback]}" in text
        with pytest.raises(SidecarFailed, match="destination_forbidden"):
            observing.run("pins", "fetch", "-p", "policy.yaml", f"pay.example:{plain.port}")
        assert len(plain.connections) == connections


def test_on_a_terminal_there_is_a_table_beside_the_policy(tmp_path: Path) -> None:
    said = {"time": "2026-11-30T01:02:03.456+00:00", "method": "GET", "destination": "api.example:80", "path": "/"}
    lines = tmp_path / "lines.json"
    lines.write_text(json.dumps({**said, "mode": "enforce", "action": "upgrade", "reason": None}) + "\n")
    shown, terminal = pty.openpty()
    with open(terminal, "wb"):
        done = subprocess.run(
            [*overcoat_command(), "suggest", str(lines)],
            stdout=subprocess.PIPE,
            stderr=terminal,
            stdin=subprocess.DEVNULL,
            check=True,
            cwd=tmp_path,
            timeout=30,
        )
        text = os.read(shown, 65536).decode()
    os.close(shown)
    assert b"api.example" in done.stdout
    assert "upgrade" in text
    assert "api.example" in text
    assert b"denied" not in done.stdout
