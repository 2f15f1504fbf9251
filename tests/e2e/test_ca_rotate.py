"""`overcoat ca rotate`: a time in which apps are given both CAs, another CA without a restart, and no old key.

Proves it from an app's side, which trusts either CA alone: what each accepts says who has signed.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from proxy.commands.localca import renew_authority
from proxy.core.rules.policy import Policy
from proxy.disk.ca import CERTIFICATE_FILE, KEY_FILE, NEXT_FILE, CaError, LocalCa
from proxy.disk.rotating import finish, rotate
from proxy.processes.reload import Reader
from proxy.processes.reminder import Reminder
from proxy.wearing.variables import JAVA_PASSWORD
from tests.e2e.certificates import Authority
from tests.e2e.clients import curl
from tests.e2e.sidecar import Sidecar, clean_environment, overcoat_command, run_command
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

HOST = "inspected.example"
NOW = datetime(2027, 1, 15, tzinfo=UTC)
DAY, LIFE = timedelta(days=1), timedelta(days=5 * 365)


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command([*overcoat_command(), *arguments], Path.cwd(), clean_environment({"OVERCOAT_DATA": str(data)}))


@dataclass(frozen=True)
class Running:
    """A sidecar that publishes its CA, and a server whose https it inspects."""

    sidecar: Sidecar
    upstream: TlsUpstream
    public: Path
    folder: Path

    def rotate(self, *arguments: str) -> str:
        done = run(self.sidecar.data, "ca", "rotate", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def published(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((self.public / "ca.pem").read_bytes())

    def accepts(self, certificate: x509.Certificate) -> bool:
        """Tell whether an app that trusts this certificate alone gets its answer."""
        file = self.folder / "trusted.pem"
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        url = self.upstream.url(scheme="https", host=HOST)
        return curl("--http1.1", url, proxy=self.sidecar.proxy_url, ca_file=file).status == 200


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def start(
    authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path, workers: int
) -> Iterator[Callable[[], Running]]:
    upstream = tls_upstream(HOST)
    public = tmp_path / "public"
    policy = f"""
        workers: {workers}
        rules: [{{name: inspected, hosts: [{HOST}], https: inspect, https_port: {upstream.port}}}]
    """
    sidecar = Sidecar(
        policy, tmp_path, authority=authority, hosts={HOST: "127.0.0.1"}, arguments=["--publish-ca", str(public)]
    )

    def begin() -> Running:
        sidecar.start()
        return Running(sidecar, upstream, public, tmp_path)

    yield begin
    assert sidecar.stop() == 0


def test_before_its_end_both_are_trusted_until_the_new_one_signs(start: Callable[[], Running]) -> None:
    running = start()
    (old,) = running.published()
    assert running.accepts(old)

    said = running.rotate()
    assert "the old one signs on" in said.lower()
    assert "overcoat ca rotate --finish" in said
    wait_until(lambda: len(running.published()) == 2, "both are published")
    first, new = running.published()
    assert (first, new != old) == (old, True)
    bundle = running.public / "ca-bundle.pem"
    wait_until(lambda: all(each.public_bytes(Encoding.PEM) in bundle.read_bytes() for each in (old, new)), "the bundle")
    assert run(running.sidecar.data, "ca").stdout.encode() == (running.public / "ca.pem").read_bytes()
    assert running.accepts(old)
    assert not running.accepts(new)

    assert "signs from now on" in running.rotate("--finish")
    wait_until(lambda: running.published() == [new], "the new one alone is published")
    # Each worker has it: there are more connections than workers, and all are answered by the new one.
    wait_until(lambda: all(running.accepts(new) for _ in range(4)), "all workers sign with it", seconds=20)
    assert not any(running.accepts(old) for _ in range(4))
    end = new.not_valid_after_utc.timestamp()
    assert running.sidecar.metrics().value("overcoat_local_ca_expiry_timestamp_seconds") == end
    assert "another local CA signs from now on" in running.sidecar.stderr


def test_after_its_end_the_new_one_signs_at_once(start: Callable[[], Running], tmp_path: Path) -> None:
    ended = LocalCa.open(tmp_path / "data", datetime.now(UTC) - LIFE - DAY, any_clock=True)
    running = start()
    assert not running.accepts(ended.certificate)
    assert "The old one had ended" in running.rotate()
    wait_until(lambda: running.published() != [ended.certificate], "the new one is published")
    (new,) = running.published()
    wait_until(lambda: all(running.accepts(new) for _ in range(4)), "all workers sign with it", seconds=20)


@pytest.mark.parametrize("workers", [2])
def test_a_worker_that_comes_later_signs_with_the_new_one(start: Callable[[], Running], workers: int) -> None:
    running = start()
    running.rotate()
    running.rotate("--finish")
    wait_until(lambda: "another local CA signs" in running.sidecar.stderr)
    new = x509.load_pem_x509_certificate(run(running.sidecar.data, "ca").stdout.encode())
    for pid in Path(f"/proc/{running.sidecar.pid}/task/{running.sidecar.pid}/children").read_text().split():
        if "worker" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: running.sidecar.stderr.count("and is replaced") == workers, "they are replaced")
    wait_until(lambda: all(running.accepts(new) for _ in range(4)), "all sign with it", seconds=20)


def test_without_a_watch_it_waits_for_sighup(authority: Authority, tmp_path: Path, workers: int) -> None:
    with Sidecar(f"workers: {workers}", tmp_path, authority=authority, arguments=["--no-watch"]) as sidecar:
        assert run(sidecar.data, "ca", "rotate").returncode == 0
        assert run(sidecar.data, "ca", "rotate", "--finish").returncode == 0  # takes longer than a look would wait
        assert "another local CA signs" not in sidecar.stderr
        sidecar.signal(signal.SIGHUP)
        wait_until(lambda: "another local CA signs" in sidecar.stderr)


def test_out_writes_what_apps_trust(tmp_path: Path) -> None:
    done = run(tmp_path / "data", "ca", "--out", str(tmp_path / "public"))
    assert (done.returncode, done.stdout) == (0, "")
    own = run(tmp_path / "data", "ca").stdout.encode()
    assert (tmp_path / "public" / "ca.pem").read_bytes() == own
    bundle = (tmp_path / "public" / "ca-bundle.pem").read_bytes()
    assert bundle.startswith(own)
    assert bundle.count(b"BEGIN CERTIFICATE") > 20  # the system's
    (tmp_path / "file").touch()
    refused = run(tmp_path / "data", "ca", "--out", str(tmp_path / "file"))
    assert refused.returncode == 1
    assert "cannot be written to" in refused.stderr


class TestTheFiles:
    def test_one_step_after_the_other(self, tmp_path: Path) -> None:
        old = LocalCa.open(tmp_path, NOW)
        begun = rotate(tmp_path, NOW)
        assert begun.certificate == old.certificate
        assert begun.successor is not None
        assert begun.pem == (tmp_path / CERTIFICATE_FILE).read_bytes()
        assert stat.S_IMODE((tmp_path / NEXT_FILE).stat().st_mode) == 0o600
        with pytest.raises(CaError, match=r"a new CA has been made .* already"):
            rotate(tmp_path, NOW)
        assert LocalCa.open(tmp_path, NOW).successor == begun.successor
        done = finish(tmp_path, NOW)
        assert (done.certificate, done.successor) == (begun.successor, None)
        assert done.pem == (tmp_path / CERTIFICATE_FILE).read_bytes()
        assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([KEY_FILE, CERTIFICATE_FILE])
        with pytest.raises(CaError, match="no rotation has begun"):
            finish(tmp_path, NOW)

    def test_the_mark_of_cookies_stays_over_two_rotations(self, tmp_path: Path) -> None:
        tags = {LocalCa.open(tmp_path, NOW).tag}
        for _ in range(2):
            rotate(tmp_path, NOW)
            tags.add(finish(tmp_path, NOW).tag)
        assert len(tags) == 1
        assert LocalCa.open(tmp_path / "other", NOW).tag not in tags

    def test_a_crash_on_the_way_leaves_one_ca_or_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = LocalCa.open(tmp_path, NOW)

        def crash(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", crash)
            with pytest.raises(KeyboardInterrupt):
                rotate(tmp_path, NOW)
        assert LocalCa.open(tmp_path, NOW).pem == old.pem
        with monkeypatch.context() as patch:
            patch.setattr("proxy.disk.rotating.write_public", crash)  # after the step
            with pytest.raises(KeyboardInterrupt):
                rotate(tmp_path, NOW)
        begun = LocalCa.open(tmp_path, NOW)
        assert begun.pem == (tmp_path / CERTIFICATE_FILE).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("proxy.disk.rotating.write_public", crash)
            with pytest.raises(KeyboardInterrupt):
                finish(tmp_path, NOW)
        assert LocalCa.open(tmp_path, NOW).certificate == begun.successor

    def test_what_is_not_right_changes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(CaError, match="there is no local CA"):
            rotate(tmp_path, NOW)
        LocalCa.open(tmp_path, NOW)
        with pytest.raises(CaError, match="has not begun by this machine's clock"):
            rotate(tmp_path, NOW - 2 * DAY)
        assert not (tmp_path / NEXT_FILE).exists()
        rotate(tmp_path, NOW)
        with pytest.raises(CaError, match="is the clock right"):
            finish(tmp_path, NOW - 2 * DAY)
        assert (tmp_path / NEXT_FILE).exists()
        (tmp_path / NEXT_FILE).chmod(0o644)
        with pytest.raises(CaError, match="readable by others"):
            finish(tmp_path, NOW)

    def test_one_that_ends_with_a_successor_is_replaced_by_that(self, tmp_path: Path) -> None:
        LocalCa.open(tmp_path, NOW)
        begun = rotate(tmp_path, NOW + LIFE - DAY)
        assert rotate(tmp_path, NOW + LIFE).certificate == begun.successor

    def test_a_loaded_one_sees_each_step_and_keeps_what_it_has_if_it_cannot(self, tmp_path: Path) -> None:
        loaded = LocalCa.open(tmp_path, NOW)
        assert not loaded.renew()
        before = loaded.certificate
        successor = rotate(tmp_path, NOW).successor
        assert loaded.renew()
        assert (loaded.certificate, loaded.successor) == (before, successor)
        content = (tmp_path / NEXT_FILE).read_bytes()
        (tmp_path / NEXT_FILE).write_bytes(b"")
        with pytest.raises(CaError, match="holds no CA key"):
            loaded.renew()
        assert not loaded.renew()  # said once
        assert loaded.leaf(HOST, NOW).issuer == before
        (tmp_path / NEXT_FILE).write_bytes(content)
        finish(tmp_path, NOW)
        assert loaded.renew()
        assert loaded.leaf(HOST, NOW).issuer == successor

    def test_a_sidecar_warns_of_the_end_of_the_one_that_signs(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        loaded = LocalCa.open(tmp_path, NOW)
        reminder = Reminder(loaded.lifetime, Policy(), NOW)
        rotate(tmp_path, NOW + DAY)
        new = finish(tmp_path, NOW + DAY)
        reader = Reader(lambda: pytest.fail("nothing is to be read"), Policy(), None)
        assert renew_authority(loaded, None, reader, reminder, Policy())
        assert reminder.lifetime == new.lifetime
        (tmp_path / KEY_FILE).write_bytes(b"")
        assert not renew_authority(loaded, None, reader, reminder, Policy())
        assert "the local CA is used as it was before: " in caplog.text
        assert "; a restart would be without it, and apps trust no other" in caplog.text
        assert loaded.certificate == new.certificate

    def test_java_gets_both(self, tmp_path: Path) -> None:
        from proxy.wearing.files import java_store

        LocalCa.open(tmp_path, NOW)
        begun = rotate(tmp_path, NOW)
        found = pkcs12.load_pkcs12(java_store(begun.pem, ()), JAVA_PASSWORD.encode()).additional_certs
        assert {each.certificate for each in found} == {begun.certificate, begun.successor}
        assert len({each.friendly_name for each in found}) == 2
