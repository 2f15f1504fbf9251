"""Handshakes that fail for another reason than the server's certificate or its pins, each with words of its own; client
certificates; revocation lists; and the key exchange.

What a refused server has received is looked at: TLS, and no byte of the application.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.clients import Answer, curl
from tests.e2e.farm import GroupServer
from tests.e2e.listeners import listen
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream

MakeTls = Callable[..., TlsUpstream]
HOSTS = dict.fromkeys(("open.example", "inspected.example", "pay.example"), "127.0.0.1")
RULES = "rules:\n  - {name: inspected, hosts: [inspected.example], https: inspect}\n"


@pytest.fixture(scope="module")
def sidecar(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with Sidecar(RULES, tmp_path_factory.mktemp("handshakes"), authority=authority, hosts=HOSTS) as running:
        yield running


def problem(answer: Answer, reason: str) -> dict[str, Any]:
    """Return the problem details of a denial with status 502."""
    assert answer.status == 502, answer
    said: dict[str, Any] = json.loads(answer.body)
    assert said["reason"] == reason, said
    return said


def ask(sidecar: Sidecar, way: str, port: int, *options: str) -> Answer:
    """Ask for an upgraded http URL or an inspected https one."""
    if way == "upgraded":
        return curl(*options, f"http://open.example:{port}/", proxy=sidecar.proxy_url)
    url = f"https://inspected.example:{port}/"
    return curl("--http1.1", *options, url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)


@contextlib.contextmanager
def answering(answer: bytes, *, then_reset: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """A server that waits for a ClientHello and answers with these bytes; yield its port and what it has received."""
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                heard.append(connection.recv(65536))
                if then_reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                    continue
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while more := connection.recv(65536):
                        heard.append(more)

    with listen() as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


def alert(number: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, number))


SERVER_HELLO_1_0 = bytes((22, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1)) + bytes(range(32)) + b"\x00\xc0\x2f\x00"
ENDS = {
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks no TLS: what it sent is not TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks no TLS: what it sent is not TLS"),
    "nothing": (b"", "closed the connection in the TLS handshake, without an alert"),
    "TLS 1.0": (SERVER_HELLO_1_0, "speaks no version of TLS that the policy accepts, which is 1.2 and newer"),
    "protocol_version": (alert(70), "which is 1.2 and newer (alert protocol_version)"),
    "handshake_failure": (alert(40), "accepts none of the cipher suites and groups"),
    "insufficient_security": (alert(71), "accepts none of the cipher suites and groups"),
    "unrecognized_name": (alert(112), "knows no host of that name (alert unrecognized_name)"),
    "internal_error": (alert(80), "ended the TLS handshake with the alert internal_error"),
    "access_denied": (alert(49), "ended the TLS handshake with the alert access_denied"),
}


class TestWords:
    @pytest.mark.parametrize("way", ["upgraded", "inspected"])
    @pytest.mark.parametrize(("said", "words"), ENDS.values(), ids=list(ENDS))
    def test_each_end_has_its_own_and_no_byte_of_the_application_leaves(
        self, sidecar: Sidecar, way: str, said: bytes, words: str
    ) -> None:
        with answering(said) as (port, heard):
            details = problem(ask(sidecar, way, port, "-d", "a secret"), "tls_failed")
        assert words in details["detail"]
        assert heard[0][:2] == b"\x16\x03"
        assert b"secret" not in b"".join(heard)
        line = sidecar.wait_for_decision(lambda each: str(each["destination"]).endswith(f":{port}"))
        assert (line["reason"], words in line["detail"]) == ("tls_failed", True)

    def test_a_reset_is_told_like_an_end(self, sidecar: Sidecar) -> None:
        with answering(b"", then_reset=True) as (port, _):
            assert "without an alert" in problem(ask(sidecar, "upgraded", port), "tls_failed")["detail"]

    @pytest.mark.parametrize("max_tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("way", ["upgraded", "inspected"])
    def test_a_client_certificate_that_is_wanted_is_told_before_and_after_the_handshake(
        self, sidecar: Sidecar, tls_upstream: MakeTls, way: str, max_tls: ssl.TLSVersion
    ) -> None:
        upstream = tls_upstream("open.example", "inspected.example", max_tls=max_tls, clients=Authority())
        details = problem(ask(sidecar, way, upstream.port, "-d", "x"), "client_certificate_refused")
        assert "wants a client certificate" in details["detail"]
        assert "client_certificate:" in details["hint"]


class TestClientCertificates:
    @staticmethod
    def wear(own: Identity, folder: Path) -> None:
        (folder / "app.pem").write_bytes(b"".join(own.chain_pem))
        key = folder / "app.key"
        key.write_bytes(own.key_pem)
        key.chmod(0o600)

    RULE = (
        "rules:\n  - name: inspected\n    hosts: [open.example, inspected.example]\n    https: inspect\n"
        "    client_certificate: {cert: app.pem, key: {file: app.key}}\n"
        "  - {name: none, hosts: [pay.example]}\n"
    )

    @pytest.mark.parametrize("max_tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("way", ["upgraded", "inspected"])
    def test_the_rules_hosts_are_shown_it_and_its_issuer(
        self,
        authority: Authority,
        tls_upstream: MakeTls,
        tmp_path: Path,
        way: str,
        max_tls: ssl.TLSVersion,
    ) -> None:
        root = Authority()
        self.wear(root.intermediate().issue("app@client.example"), tmp_path)
        upstream = tls_upstream(*HOSTS, max_tls=max_tls, clients=root)
        with Sidecar(self.RULE, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            assert ask(sidecar, way, upstream.port).status == 200
            # Another rule's host at the same server is shown none.
            other = curl(f"http://pay.example:{upstream.port}/", proxy=sidecar.proxy_url)
            assert "wants a client certificate" in problem(other, "client_certificate_refused")["detail"]

    def test_check_and_explain_say_who_is_shown_it(self, authority: Authority, tmp_path: Path) -> None:
        self.wear(authority.issue("app@client.example"), tmp_path)
        sidecar = Sidecar(self.RULE, tmp_path, authority=authority)
        assert re.search(r"^ +rule inspected: shows app\.pem$", sidecar.run("check", "-p", "policy.yaml"), re.MULTILINE)
        for url in ("http://open.example", "https://inspected.example"):
            said = sidecar.run("explain", "-p", "policy.yaml", url)
            assert re.search(r"^ +shows +app\.pem, where the server asks for a client certificate$", said, re.MULTILINE)
        assert "app.pem" not in sidecar.run("explain", "-p", "policy.yaml", "http://pay.example")

    @pytest.mark.parametrize("max_tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_one_that_the_server_does_not_accept_is_told_with_the_alert(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path, max_tls: ssl.TLSVersion
    ) -> None:
        self.wear(Authority().issue("app@client.example"), tmp_path)
        upstream = tls_upstream(*HOSTS, max_tls=max_tls, clients=Authority())
        with Sidecar(self.RULE, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            details = problem(ask(sidecar, "upgraded", upstream.port), "client_certificate_refused")
        assert "did not accept the rule's client certificate (alert unknown_ca)" in details["detail"]

    def test_a_new_one_counts_from_the_reload_on(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        wanted = Authority()
        upstream = tls_upstream(*HOSTS, clients=wanted)
        ended = wanted.issue("app@client.example", variant=Variant.EXPIRED)
        self.wear(ended, tmp_path)
        with Sidecar(self.RULE, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            details = problem(ask(sidecar, "upgraded", upstream.port), "client_certificate_refused")
            assert "(alert certificate_expired)" in details["detail"]
            assert "client_certificate" in sidecar.stderr
            assert "ended on" in sidecar.stderr
            self.wear(wanted.issue("app@client.example"), tmp_path)
            reload(sidecar)
            assert ask(sidecar, "upgraded", upstream.port).status == 200

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ("another key", "this key does not belong to the first certificate of"),
            ("no key", "there is no private key in PEM in it"),
            ("no certificate", "there is no certificate in PEM in it"),
            ("open", "unsafe_key_permissions: true"),
        ],
    )
    def test_what_does_not_belong_together_is_refused_at_the_start(
        self, authority: Authority, tmp_path: Path, wrong: str, words: str
    ) -> None:
        self.wear(authority.issue("app@client.example"), tmp_path)
        if wrong == "another key":
            (tmp_path / "app.key").write_bytes(authority.issue("app@client.example").key_pem)
        elif wrong == "no key":
            (tmp_path / "app.key").write_text("none\n")
        elif wrong == "no certificate":
            (tmp_path / "app.pem").write_text("none\n")
        else:
            (tmp_path / "app.key").chmod(0o644)
        with pytest.raises(SidecarFailed) as failed, Sidecar(self.RULE, tmp_path, authority=authority, hosts=HOSTS):
            pass
        assert failed.value.status == 2
        assert words in failed.value.stderr
        assert "rules[0].client_certificate" in failed.value.stderr


class Issuer:
    """A root and an intermediate CA."""

    def __init__(self) -> None:
        self.root = Authority()
        self.middle = self.root.intermediate()


REQUIRE = "trust: {{roots: roots.pem, crls: {{files: [crls/*.pem], when: {when}}}}}\n"


class TestRevocation:
    @staticmethod
    def lists(folder: Path, **lists: bytes) -> None:
        (folder / "crls").mkdir(exist_ok=True)
        for name, content in lists.items():
            (folder / "crls" / f"{name}.pem").write_bytes(content)

    @staticmethod
    def start(folder: Path, issuer: Issuer, when: str) -> Sidecar:
        issuer.root.write_pem(folder / "roots.pem")
        return Sidecar(REQUIRE.format(when=when) + RULES, folder, hosts=HOSTS)

    @pytest.mark.parametrize("when", ["require", "if_present"])
    @pytest.mark.parametrize("what", ["leaf", "intermediate", "nothing"])
    @pytest.mark.parametrize("way", ["upgraded", "inspected"])
    def test_a_revoked_leaf_and_a_revoked_intermediate_are_refused(
        self, tls_upstream: MakeTls, tmp_path: Path, way: str, what: str, when: str
    ) -> None:
        issuer = Issuer()
        identity = issuer.middle.issue(*HOSTS)
        middle = x509.load_pem_x509_certificate(issuer.middle.pem)
        self.lists(
            tmp_path,
            root=issuer.root.crl(*([middle] if what == "intermediate" else [])),
            middle=issuer.middle.crl(*([identity.certificate] if what == "leaf" else [])),
        )
        upstream = tls_upstream(identity=identity)
        with self.start(tmp_path, issuer, when) as sidecar:
            answer = ask(sidecar, way, upstream.port, "-d", "x")
            if what == "nothing":
                assert answer.status == 200
                return
            details = problem(answer, "certificate_invalid")
        assert "certificate revoked" in details["detail"]
        assert "must get another certificate" in details["hint"]
        upstream.assert_no_application_bytes()

    @pytest.mark.parametrize("lack", ["missing", "ended", "forged"])
    @pytest.mark.parametrize("whose", ["root", "middle"])
    def test_a_list_that_is_missing_ended_or_not_verifiable_is_a_refusal_if_it_is_required(
        self, tls_upstream: MakeTls, tmp_path: Path, whose: str, lack: str
    ) -> None:
        issuer = Issuer()
        authorities = {"root": issuer.root, "middle": issuer.middle}
        good = {name: each.crl() for name, each in authorities.items()}
        if lack == "missing":
            del good[whose]
        elif lack == "ended":
            good[whose] = authorities[whose].crl(days=-1)
        else:
            good[whose] = authorities[whose].crl(signer=Authority())
        self.lists(tmp_path, **good)
        upstream = tls_upstream(*HOSTS, identity=issuer.middle.issue(*HOSTS))
        with self.start(tmp_path, issuer, "require") as sidecar:
            details = problem(ask(sidecar, "upgraded", upstream.port, "-d", "x"), "certificate_invalid")
        assert "CRL" in details["detail"]
        assert "(trust.crls)" in details["detail"]
        assert "into the files of trust.crls" in details["hint"]  # it is not the server's certificate that is wrong
        upstream.assert_no_application_bytes()
        with self.start(tmp_path, issuer, "if_present") as sidecar:
            assert ask(sidecar, "upgraded", upstream.port).status == 200

    def test_an_older_list_beside_the_newest_harms_nothing(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        issuer = Issuer()
        newest = {"root": issuer.root.crl(), "middle": issuer.middle.crl()}
        self.lists(tmp_path, **newest, earlier=issuer.middle.crl(days=-1))
        upstream = tls_upstream(identity=issuer.middle.issue(*HOSTS))
        with self.start(tmp_path, issuer, "require") as sidecar:
            assert ask(sidecar, "upgraded", upstream.port).status == 200
        assert "ended on" not in sidecar.stderr

    @pytest.mark.parametrize("when", ["require", "if_present"])
    def test_when_a_list_ends_is_a_metric(self, tmp_path: Path, when: str) -> None:
        issuer = Issuer()
        self.lists(tmp_path, root=issuer.root.crl(days=3))
        with self.start(tmp_path, issuer, when) as sidecar:
            metrics = sidecar.metrics()
        (labels,) = metrics.labels("overcoat_crl_expiry_timestamp_seconds")
        end = metrics.value("overcoat_crl_expiry_timestamp_seconds", **labels)
        assert labels["when"] == when
        assert abs(end - time.time() - 3 * 86400) < 3600

    def test_an_ended_list_still_revokes(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        issuer = Issuer()
        identity = issuer.middle.issue(*HOSTS)
        self.lists(tmp_path, middle=issuer.middle.crl(identity.certificate, days=-1))
        upstream = tls_upstream(identity=identity)
        with self.start(tmp_path, issuer, "if_present") as sidecar:
            problem(ask(sidecar, "upgraded", upstream.port), "certificate_invalid")

    def test_an_anchor_that_is_no_root_needs_no_list_of_its_issuer(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        issuer = Issuer()
        self.lists(tmp_path, middle=issuer.middle.crl())
        upstream = tls_upstream(identity=issuer.middle.issue(*HOSTS))
        issuer.middle.write_pem(tmp_path / "roots.pem")
        with Sidecar(REQUIRE.format(when="require") + RULES, tmp_path, hosts=HOSTS) as sidecar:
            assert ask(sidecar, "upgraded", upstream.port).status == 200

    def test_a_new_list_counts_at_once_for_new_requests(self, tls_upstream: MakeTls, tmp_path: Path) -> None:
        issuer = Issuer()
        identity = issuer.middle.issue(*HOSTS)
        self.lists(tmp_path, middle=issuer.middle.crl(), root=issuer.root.crl())
        upstream = tls_upstream(identity=identity)
        with self.start(tmp_path, issuer, "require") as sidecar:
            assert ask(sidecar, "upgraded", upstream.port).status == 200
            self.lists(tmp_path, later=issuer.middle.crl(identity.certificate))  # a file that was not there
            (tmp_path / "crls" / "middle.pem").unlink()
            reload(sidecar)
            problem(ask(sidecar, "upgraded", upstream.port), "certificate_invalid")

    @pytest.mark.parametrize("content", [None, b"none\n", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
    def test_one_that_is_configured_and_cannot_be_read_fails_the_start(
        self, authority: Authority, tmp_path: Path, content: bytes | None
    ) -> None:
        policy = "trust: {roots: roots.pem, crls: {files: [one.pem]}}"
        authority.write_pem(tmp_path / "roots.pem")
        if content is not None:
            (tmp_path / "one.pem").write_bytes(content)
        with pytest.raises(SidecarFailed) as failed, Sidecar(policy, tmp_path, hosts=HOSTS):
            pass
        assert failed.value.status == 2
        assert "trust.crls.files[0]" in failed.value.stderr


class TestKeyExchange:
    HYBRID = "trust: {roots: roots.pem, key_exchange: hybrid}\n"

    @pytest.fixture
    def start(self, authority: Authority, tmp_path: Path) -> Callable[[str], Sidecar]:
        authority.write_pem(tmp_path / "roots.pem")
        return lambda policy: Sidecar(policy, tmp_path, hosts=HOSTS)

    def test_hybrid_is_what_an_upstream_gets_that_can_and_the_line_and_the_metric_say_so(
        self, authority: Authority, start: Callable[[str], Sidecar]
    ) -> None:
        with (
            GroupServer(authority.issue(*HOSTS), "X25519MLKEM768:X25519") as server,
            start("trust: {roots: roots.pem}\n" + RULES) as sidecar,
        ):
            assert ask(sidecar, "inspected", server.port).status == 200
            assert server.groups == ["X25519MLKEM768"]
            (line,) = sidecar.wait_for_decisions(1)
            assert line["key_exchange"] == "X25519MLKEM768"
            found = sidecar.metrics()
        name = "overcoat_upstream_handshakes_total"
        assert found.value(name, rule="inspected", key_exchange="X25519MLKEM768") == 1
        assert found.value(name, rule="inspected") == 1

    def test_without_it_another_group_is_taken_and_told(
        self, authority: Authority, start: Callable[[str], Sidecar]
    ) -> None:
        with (
            GroupServer(authority.issue(*HOSTS), "X25519") as server,
            start("trust: {roots: roots.pem}\n" + RULES) as sidecar,
        ):
            assert ask(sidecar, "inspected", server.port).status == 200
            (line,) = sidecar.wait_for_decisions(1)
            assert line["key_exchange"] == "x25519"

    @pytest.mark.parametrize("way", ["upgraded", "inspected"])
    @pytest.mark.parametrize("groups", ["X25519:P-256", "X25519:X25519MLKEM768"], ids=["without", "with"])
    def test_where_it_is_demanded_nothing_else_is_taken(
        self, authority: Authority, start: Callable[[str], Sidecar], groups: str, way: str
    ) -> None:
        with GroupServer(authority.issue(*HOSTS), groups) as server, start(self.HYBRID + RULES) as sidecar:
            answer = ask(sidecar, way, server.port, "-d", "a secret")
            if "MLKEM" in groups:  # also where the server would rather have had another
                assert answer.status == 200
                return
            details = problem(answer, "key_exchange_refused")
            assert "X25519MLKEM768, which the policy demands" in details["detail"]
            assert server.received == b""

    def test_an_upstream_of_tls_1_2_has_none(self, start: Callable[[str], Sidecar], tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(*HOSTS, max_tls=ssl.TLSVersion.TLSv1_2)
        with start(self.HYBRID + RULES) as sidecar:
            problem(ask(sidecar, "upgraded", upstream.port), "key_exchange_refused")
        upstream.assert_no_application_bytes()

    def test_a_rule_may_demand_it_alone(self, authority: Authority, start: Callable[[str], Sidecar]) -> None:
        rule = "{name: open, hosts: [open.example], trust: {key_exchange: hybrid}}"
        policy = f"trust: {{roots: roots.pem}}\nrules: [{rule}]\n"
        with GroupServer(authority.issue(*HOSTS), "X25519") as server, start(policy) as sidecar:
            problem(curl(f"http://open.example:{server.port}/", proxy=sidecar.proxy_url), "key_exchange_refused")
            assert curl(f"http://pay.example:{server.port}/", proxy=sidecar.proxy_url).status == 200


class TestTrustOfARule:
    def test_a_private_ca_counts_for_its_rule_only_and_alone_there(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        private = Authority()
        private.write_pem(tmp_path / "private.pem")
        policy = "rules:\n  - {name: open, hosts: [open.example], trust: {roots: private.pem}}\n"
        upstreams = {"private": tls_upstream(identity=private.issue(*HOSTS)), "public": tls_upstream(*HOSTS)}
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            found = {
                (host, name): curl(f"http://{host}:{upstream.port}/", proxy=sidecar.proxy_url).status
                for host in ("open.example", "pay.example")
                for name, upstream in upstreams.items()
            }
        assert found == {
            ("open.example", "private"): 200,
            ("open.example", "public"): 502,
            ("pay.example", "private"): 502,
            ("pay.example", "public"): 200,
        }

    def test_a_rule_may_want_tls_1_3(self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
        policy = 'rules:\n  - {name: open, hosts: [open.example], trust: {min_tls: "1.3"}}\n'
        upstream = tls_upstream(*HOSTS, max_tls=ssl.TLSVersion.TLSv1_2)
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            details = problem(curl(upstream.url(host="open.example"), proxy=sidecar.proxy_url), "tls_failed")
            assert "which is 1.3 and newer" in details["detail"]
            assert curl(upstream.url(host="pay.example"), proxy=sidecar.proxy_url).status == 200

    @pytest.mark.parametrize("wants", ["asked", "target"])
    def test_an_upgrade_to_a_port_of_another_rule_takes_no_trust_away(
        self, wants: str, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        """Whichever of the two wants TLS 1.3; the other one's pins do not make up for it."""
        identity = authority.issue("pay.example")
        old = tls_upstream(identity=identity, max_tls=ssl.TLSVersion.TLSv1_2)
        strict, pins = "trust: {min_tls: '1.3'}", f'pins: {{any_of: ["{identity.pin}"]}}'
        first, second = (strict, pins) if wants == "asked" else (pins, strict)
        policy = f"""
            rules:
              - {{name: asked, hosts: ["pay.example:5001"], https_port: {old.port}, {first}}}
              - {{name: target, hosts: ["pay.example:{old.port}"], {second}}}
        """
        with Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
            answer = curl("http://pay.example:5001/", proxy=sidecar.proxy_url)
        assert (answer.status, answer.json()["reason"]) == (403, "plain_http_rejected")
        assert not old.requests
