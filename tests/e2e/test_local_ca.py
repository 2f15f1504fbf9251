"""The local CA's last day: warned of in time, said plainly, and no end of what needs no CA.

Proves ARCHITECTURE's rules 1 (fail closed) and 7 (say why). A CA that has ended, or ends soon, is made by the product
itself with another time.
"""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import pytest
from cryptography import x509

from proxy.disk.ca import LocalCa
from tests.e2e.certificates import Authority, Variant
from tests.e2e.clients import RawClient, curl
from tests.e2e.sidecar import Sidecar, SidecarFailed, clean_environment, overcoat_command, run_command
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

MakeTls = Callable[..., TlsUpstream]
DAY, LIFE = timedelta(days=1), timedelta(days=5 * 365)
INSPECTED, TUNNELLED, PINNED = "inspected.example", "tunnelled.example", "pinned.example"
HOSTS = dict.fromkeys((INSPECTED, TUNNELLED), "127.0.0.1")
WAY_OUT = "run `overcoat ca rotate`"


def make_ca(folder: Path, *, ends_in: timedelta) -> LocalCa:
    """Make the CA that a sidecar in this folder finds."""
    return LocalCa.open(folder / "data", datetime.now(UTC) - LIFE + ends_in, any_clock=True)


def policy(upstream: TlsUpstream, workers: int = 1, more: str = "") -> str:
    return f"""
        workers: {workers}
        listen:
          - forward://127.0.0.1:0
          - socks5://127.0.0.1:0
          - reverse://127.0.0.1:0?to=https://{INSPECTED}:{upstream.port}
        rules: [{{name: inspected, hosts: [{INSPECTED}], https: inspect, https_port: {upstream.port}}}]
        {more}
    """


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the environment of the sidecar in a folder."""
    environment = clean_environment({"OVERCOAT_DATA": str(folder / "data")})
    return run_command([*overcoat_command(), *arguments], folder, environment)


@dataclass(frozen=True)
class Ended:
    """A sidecar whose CA ended yesterday, and a server."""

    sidecar: Sidecar
    upstream: TlsUpstream
    ca: LocalCa


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def ended(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ended]:
    folder = tmp_path_factory.mktemp("ended")
    ca = make_ca(folder, ends_in=-DAY)
    with (
        TlsUpstream(authority, INSPECTED, TUNNELLED, alpn=("h2", "http/1.1")) as upstream,
        Sidecar(policy(upstream, request.param), folder, authority=authority, hosts=HOSTS) as sidecar,
    ):
        yield Ended(sidecar, upstream, ca)


class TestAfterItsEnd:
    def test_serve_starts_is_ready_and_says_it_once(self, ended: Ended) -> None:
        with urlopen(f"{ended.sidecar.admin_url}/ready", timeout=5) as ready:
            assert ready.status == 200
        said = [line for line in ended.sidecar.stderr.splitlines() if "local CA ended on" in line]
        assert len(said) == 1
        assert WAY_OUT in said[0]

    def test_its_end_is_a_metric_from_the_start(self, ended: Ended) -> None:
        end = ended.ca.certificate.not_valid_after_utc.timestamp()
        found = ended.sidecar.metrics()
        assert found.value("overcoat_local_ca_expiry_timestamp_seconds") == end
        assert found.labels("overcoat_local_ca_expiry_timestamp_seconds") == ({},)

    @pytest.mark.parametrize("version", ["--http1.1", "--http2"])
    def test_an_inspected_host_is_denied_before_tls(self, ended: Ended, version: str) -> None:
        before = len(ended.upstream.connections)
        url = ended.upstream.url("/a", scheme="https", host=INSPECTED)
        answer = curl(version, "-w", "%{http_connect}", url, proxy=ended.sidecar.proxy_url)
        assert (answer.status, answer.exit_status) == (0, 56), answer.error
        assert "503" in answer.error
        decision = ended.sidecar.wait_for_decision(
            lambda d: d["method"] == "CONNECT" and d["reason"] == "local_ca_expired"
        )
        assert (decision["action"], decision["status"], decision["rule"]) == ("deny", 503, "inspected")
        assert ended.sidecar.metrics().value("overcoat_requests_total", reason="local_ca_expired") > 0
        ended.upstream.settle()
        assert len(ended.upstream.connections) == before

    def test_the_app_is_told_what_to_do(self, ended: Ended) -> None:
        with RawClient(ended.sidecar.address) as client:
            client.send(f"CONNECT {INSPECTED}:443 HTTP/1.1\r\nHost: {INSPECTED}:443\r\n\r\n".encode())
            answer = client.read_response(method="CONNECT_REFUSED")
        problem = answer.json()
        assert (answer.status, problem["reason"]) == (503, "local_ca_expired")
        assert problem["detail"] == f"the local CA ended on {datetime.now(UTC) - DAY:%Y-%m-%d}"
        assert WAY_OUT in problem["hint"]
        assert "error=proxy_configuration_error" in (answer.headers.get("Proxy-Status") or "")

    def test_upgrades_go_on(self, ended: Ended) -> None:
        url = ended.upstream.url("/up", host=INSPECTED)
        assert curl(url, proxy=ended.sidecar.proxy_url).status == 200
        reverse = "http://{}:{}/".format(*ended.sidecar.addresses[2])
        assert curl(reverse).status == 200

    def test_tunnels_go_on(self, ended: Ended, roots: Path) -> None:
        url = ended.upstream.url("/tunnel", scheme="https", host=TUNNELLED)
        assert curl("--http1.1", url, proxy=ended.sidecar.proxy_url, ca_file=roots).status == 200

    def test_https_is_denied_by_socks_too(self, ended: Ended) -> None:
        proxy = "socks5h://{}:{}".format(*ended.sidecar.addresses[1])
        url = ended.upstream.url("/s", scheme="https", host=INSPECTED)
        refused = curl("-k", "--http1.1", "-x", proxy, url)
        assert (refused.status, refused.exit_status) == (0, 97), refused.error

    def test_inside_a_connect_to_port_80_http_is_upgraded_and_tls_ended(self, ended: Ended) -> None:
        connect = f"CONNECT {INSPECTED}:80 HTTP/1.1\r\nHost: {INSPECTED}:80\r\n\r\n".encode()
        with RawClient(ended.sidecar.address) as client:
            client.send(connect)
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            client.send(f"GET /inside HTTP/1.1\r\nHost: {INSPECTED}\r\n\r\n".encode())
            assert client.read_response().status == 200
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # an app that would take anything
        for protocol in ("http/1.1", "h2"):
            context.set_alpn_protocols([protocol])
            with RawClient(ended.sidecar.address) as client:
                client.send(connect)
                client.read_until(b"\r\n\r\n")
                with pytest.raises((ssl.SSLError, OSError)):
                    client.start_tls(INSPECTED, context=context)
        ended.sidecar.wait_for_decision(
            lambda d: d["destination"] == f"{INSPECTED}:80" and d["reason"] == "local_ca_expired"
        )

    def test_ca_warns_and_prints_it_nevertheless(self, ended: Ended) -> None:
        done = run(ended.sidecar.policy_file.parent, "ca")
        assert (done.returncode, done.stdout) == (0, ended.ca.pem.decode("ascii"))
        assert done.stderr.startswith("warning: the local CA ended on ")

    def test_explain_says_it(self, ended: Ended) -> None:
        for url, reason in (
            (f"https://{INSPECTED}", True),
            (f"http://{INSPECTED}", False),
            ("https://a.example", False),
        ):
            done = run(ended.sidecar.policy_file.parent, "explain", "-p", "policy.yaml", url)
            assert ("local_ca_expired" in done.stdout) is reason, url
            assert ("answer   503: the local CA ended on " in done.stdout) is reason, url  # as the CONNECT is told

    def test_check_says_it(self, ended: Ended) -> None:
        done = run(ended.sidecar.policy_file.parent, "check", "-p", "policy.yaml")
        assert done.returncode == 1
        assert "error: the local CA ended on " in done.stderr


def test_where_nothing_is_inspected_check_only_warns(tmp_path: Path) -> None:
    make_ca(tmp_path, ends_in=-DAY)
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    done = run(tmp_path, "check", "-p", "policy.yaml")
    assert done.returncode == 0
    assert "warning: the local CA ended on " in done.stderr


def test_check_makes_no_ca(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    done = run(tmp_path, "check", "-p", "policy.yaml")
    assert (done.returncode, "CA" in done.stderr) == (0, False)
    assert not (tmp_path / "data").exists()


def test_from_thirty_days_on_it_is_warned_of_and_still_works(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    ca = make_ca(tmp_path, ends_in=3 * DAY)
    upstream = tls_upstream(INSPECTED)
    with Sidecar(policy(upstream), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        assert sidecar.stderr.count("the local CA ends on ") == 1
        url = upstream.url(scheme="https", host=INSPECTED)
        assert curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
        with RawClient(sidecar.address) as client:
            client.send(f"CONNECT {INSPECTED}:443 HTTP/1.1\r\nHost: {INSPECTED}:443\r\n\r\n".encode())
            client.read_until(b"\r\n\r\n")
            client.start_tls(INSPECTED, sidecar.ca_file)
            leaf = x509.load_der_x509_certificate(client.peer_certificate)
        assert leaf.not_valid_after_utc == ca.certificate.not_valid_after_utc
        for command, status in ((("check", "-p", "policy.yaml"), 0), (("ca",), 0)):
            done = run(tmp_path, *command)
            assert done.returncode == status
            assert "warning: the local CA ends on " in done.stderr
            assert "`overcoat ca rotate --finish`" in done.stderr  # there are three steps while it is good
    assert "the local CA" not in run_with_fresh_ca(tmp_path / "fresh")


def run_with_fresh_ca(folder: Path) -> str:
    """Return what is said of a CA that ends in 31 days."""
    folder.mkdir()
    make_ca(folder, ends_in=31 * DAY)
    return run(folder, "ca").stderr


def test_a_clock_that_is_behind_is_named_as_such(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    LocalCa.open(tmp_path / "data", datetime.now(UTC) + 400 * DAY)
    upstream = tls_upstream(INSPECTED)
    with Sidecar(policy(upstream), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        with RawClient(sidecar.address) as client:
            client.send(f"CONNECT {INSPECTED}:443 HTTP/1.1\r\nHost: {INSPECTED}:443\r\n\r\n".encode())
            problem = client.read_response(method="CONNECT_REFUSED").json()
        assert problem["reason"] == "local_ca_expired"
        assert "this machine's clock says" in problem["detail"]
        assert "set the clock" in problem["hint"]
        assert curl(upstream.url(host=INSPECTED), proxy=sidecar.proxy_url).status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_it_may_end_while_a_sidecar_runs(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, workers: int
) -> None:
    upstream = tls_upstream(INSPECTED)
    url = upstream.url(scheme="https", host=INSPECTED)
    for seconds in (8, 60):  # a start on a busy machine takes long
        folder = tmp_path / str(seconds)
        folder.mkdir()
        ca = make_ca(folder, ends_in=timedelta(seconds=seconds))
        end = ca.certificate.not_valid_after_utc
        with Sidecar(policy(upstream, workers), folder, authority=authority, hosts=HOSTS) as sidecar:
            sidecar.ca_file.write_bytes(ca.pem)
            if end - datetime.now(UTC) < timedelta(seconds=2) and seconds == 8:
                continue
            assert curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
            time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds()) + 0.1)
            refused = curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
            assert (refused.status, refused.exit_status) == (0, 56), refused.error
            sidecar.wait_for_decision(lambda d: d["reason"] == "local_ca_expired")
            wait_until(lambda: "the local CA ended on " in sidecar.stderr)
            assert sidecar.stderr.count("the local CA ended on ") == 1
            assert curl(upstream.url(host=INSPECTED), proxy=sidecar.proxy_url).status == 200
        return


def test_observe_mode_notes_it_and_lets_it_pass(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, roots: Path
) -> None:
    make_ca(tmp_path, ends_in=-DAY)
    upstream = tls_upstream(INSPECTED)
    observing = policy(upstream, more="mode: observe")
    with Sidecar(observing, tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        url = upstream.url(scheme="https", host=INSPECTED)
        assert curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=roots).status == 200
        decision = sidecar.wait_for_decision(lambda d: d["method"] == "CONNECT")
    assert (decision["would_deny"], decision["reason"]) == (True, "local_ca_expired")


def test_a_new_one_is_had_as_the_denial_says(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    make_ca(tmp_path, ends_in=-DAY)
    for name in ("ca-key.pem", "ca-cert.pem"):
        (tmp_path / "data" / name).rename(tmp_path / name)
    upstream = tls_upstream(INSPECTED)
    with Sidecar(policy(upstream), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        url = upstream.url(scheme="https", host=INSPECTED)
        assert curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
        assert "the local CA" not in sidecar.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_what_apps_trust_is_published_before_the_sidecar_is_ready(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, workers: int
) -> None:
    """The system's roots are the authority here, so a tunnel to a server of the system's roots is trusted, too."""
    public, system = tmp_path / "public", authority.write_pem(tmp_path / "system.pem")
    upstream = tls_upstream(INSPECTED, TUNNELLED)
    env = {"OVERCOAT_PUBLISH_CA": str(public), "SSL_CERT_FILE": str(system)}
    with Sidecar(policy(upstream, workers), tmp_path, authority=authority, hosts=HOSTS, env=env) as sidecar:
        bundle = public / "ca-bundle.pem"
        assert (public / "ca.pem").read_bytes() == (sidecar.data / "ca-cert.pem").read_bytes()
        for host in (INSPECTED, TUNNELLED):
            url = upstream.url(scheme="https", host=host)
            assert curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=bundle).status == 200
        assert b"PRIVATE" not in bundle.read_bytes()


def test_without_roots_of_the_system_the_bundle_is_the_local_ca_and_that_is_said(
    authority: Authority, tmp_path: Path
) -> None:
    public, none = tmp_path / "public", tmp_path / "none.pem"
    env = {"SSL_CERT_FILE": str(none)}
    arguments = ["--publish-ca", str(public)]
    with Sidecar("mode: enforce", tmp_path, authority=authority, env=env, arguments=arguments) as sidecar:
        assert (public / "ca-bundle.pem").read_bytes() == (public / "ca.pem").read_bytes()
        assert f"{public / 'ca-bundle.pem'} holds the local CA alone: {none} cannot be read" in sidecar.stderr


def test_a_folder_that_cannot_be_written_keeps_the_sidecar_from_starting(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "public").touch()
    with pytest.raises(SidecarFailed) as failed:
        Sidecar("mode: enforce", tmp_path, authority=authority, arguments=["--publish-ca", "public"]).start()
    assert failed.value.status == 1
    assert "the local CA's certificate cannot be written to public: file exists" in failed.value.stderr


class TestWhereAnUpstreamIsRefused:
    """The app's handshake is completed under the local CA only to carry the answer."""

    @pytest.fixture(scope="class")
    @classmethod
    def sidecar(cls, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
        unused = authority.issue(INSPECTED).pin
        hosts = dict.fromkeys((INSPECTED, PINNED), "127.0.0.1")
        rules = f"""
            rules:
              - {{name: pinned, hosts: [{PINNED}], pins: {{any_of: ["{unused}"]}}}}
              - {{name: inspected, hosts: [{INSPECTED}], https: inspect}}
        """
        folder = tmp_path_factory.mktemp("refused")
        with Sidecar(rules, folder, authority=authority, hosts=hosts) as sidecar:
            yield sidecar

    @pytest.mark.parametrize("version", ["--http1.1", "--http2"])
    @pytest.mark.parametrize(
        ("host", "variant", "reason"),
        [
            (PINNED, Variant.VALID, "pin_mismatch"),
            (INSPECTED, Variant.EXPIRED, "certificate_invalid"),
            (INSPECTED, Variant.WRONG_HOST, "certificate_invalid"),
            (INSPECTED, Variant.OTHER_AUTHORITY, "certificate_invalid"),
            (INSPECTED, Variant.VALID, None),
        ],
    )
    def test_the_app_gets_a_502_and_the_server_not_one_byte(
        self,
        authority: Authority,
        sidecar: Sidecar,
        tls_upstream: MakeTls,
        host: str,
        variant: Variant,
        reason: str | None,
        version: str,
    ) -> None:
        upstream = tls_upstream(identity=authority.issue(host, variant=variant))
        url = upstream.url("/secret", scheme="https", host=host)
        # It trusts the local CA alone, so what it reads has come under that.
        send = (version, "-w", "%{stderr}version %{http_version}", "-d", "secret", "-H", "X-Secret: 1")
        answer = curl(*send, url, proxy=sidecar.proxy_url, ca_file=sidecar.ca_file)
        assert answer.exit_status == 0, answer.error
        assert ("version 2" in answer.error) is (version == "--http2")
        line = sidecar.wait_for_decision(
            lambda d: d["destination"] == f"{host}:{upstream.port}" and d["method"] == "POST"
        )
        if reason is None:  # the same server with the right certificate
            assert (answer.status, line["action"]) == (200, "inspect")
            assert b"secret" in upstream.received
            return
        assert (answer.status, answer.json()["reason"]) == (502, reason)
        assert (line["action"], line["reason"], line["status"]) == ("deny", reason, 502)
        (connection,) = upstream.wait_for_connections(1, closed=True)
        assert not connection.handshake_completed
        upstream.assert_no_application_bytes()
        assert all(b"secret" not in each.wire.lower() for each in upstream.connections)
