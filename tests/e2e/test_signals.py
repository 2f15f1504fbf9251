"""Signals: what each means, at any moment, to one process and to several; and what draining cuts off."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.connection import RecordedRequest
from tests.e2e.processes import children, is_alive
from tests.e2e.scripted import scripted_upstream
from tests.e2e.sidecar import ROOT, Sidecar, clean_environment, overcoat_command
from tests.e2e.upstream import PlainUpstream, SlowUpstream, TlsUpstream
from tests.waiting import wait_until

ALLOW = "defaults: {plain_http: allow}"
COUNTS = pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
DRAINS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
NAMES = ["HUP", "USR1", "USR2", "PIPE", "ALRM", "VTALRM", "PROF", "XCPU", "XFSZ", "PWR", "IO", "SYS", "TRAP", "ABRT"]
HARMLESS = [getattr(signal, f"SIG{name}") for name in NAMES if hasattr(signal, f"SIG{name}")]


def get(url: str) -> bytes:
    authority = url.removeprefix("http://").partition("/")[0]
    return f"GET {url} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def takes_connections(sidecar: Sidecar) -> bool:
    try:
        socket.create_connection(sidecar.address, 1).close()
    except OSError:
        return False
    return True


@COUNTS
@pytest.mark.parametrize("number", DRAINS, ids=lambda number: number.name)
def test_it_drains(slow: SlowUpstream, tmp_path: Path, number: signal.Signals, count: int) -> None:
    with Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path) as sidecar, RawClient(sidecar.address) as client:
        client.send(get(slow.url()))
        slow.wait_for_requests(1)
        sidecar.signal(number)
        wait_until(lambda: not takes_connections(sidecar), "no connection is taken")
        assert sidecar.admin_get("/ready")[0] == 503
        slow.release.set()
        assert client.read_response().body == b'"late"'
        assert sidecar.wait() == 0


@pytest.mark.parametrize("is_answered", [True, False])
def test_who_is_served_meanwhile_is_told_to_come_no_more(tmp_path: Path, is_answered: bool) -> None:
    """RFC 9112, section 9.6: a client that is told so does not send a next request into a connection that is closed."""
    with (
        scripted_upstream("127.0.0.1", None) as far,
        Sidecar(ALLOW, tmp_path) as sidecar,
        RawClient(sidecar.address) as client,
    ):
        for path in ("/before", "/meanwhile"):
            client.send(far.request(path, method="POST"))
            with far.accept() as server:
                server.read_head()
                if path == "/meanwhile":
                    sidecar.signal(signal.SIGTERM)
                    wait_until(lambda: not takes_connections(sidecar), "no connection is taken")
                if is_answered:
                    server.send(wire.response(200, headers=(("Connection", "close"),)))
            answer = client.read_response()
            assert answer.status == (200 if is_answered else 502)
            assert answer.headers.get("connection") == (None if path == "/before" else "close")
        assert client.read_to_end() == b""
        assert sidecar.wait() == 0


@COUNTS
def test_all_others_end_nothing(tmp_path: Path, count: int) -> None:
    realtime = [signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMAX] if hasattr(signal, "SIGRTMIN") else []
    with PlainUpstream() as upstream, Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path) as sidecar:
        processes = [sidecar.pid, *children(sidecar.pid)]
        assert len(processes) == (1 if count == 1 else count + 2)
        for pid in processes:
            for number in [*HARMLESS, *realtime]:
                os.kill(pid, number)
        if count > 1:
            for pid in processes[1:]:  # what is meant for the parent, and was sent to all
                for number in DRAINS:
                    os.kill(pid, number)
        with RawClient(sidecar.address) as client:
            client.send(get(upstream.url()))
            assert client.read_response().status == 200
        assert sidecar.admin_get("/ready")[0] == 200
        wait_until(lambda: processes == [sidecar.pid, *children(sidecar.pid)], "the policy is read")


@COUNTS
@pytest.mark.parametrize("names", ["TERM INT", "INT TERM", "TERM TERM", "QUIT TERM INT"])
def test_a_second_term_or_int_ends_it_at_once(slow: SlowUpstream, tmp_path: Path, names: str, count: int) -> None:
    with Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path) as sidecar, RawClient(sidecar.address) as client:
        client.send(get(slow.url()))
        slow.wait_for_requests(1)
        processes = children(sidecar.pid)
        *first, last = [getattr(signal, f"SIG{name}") for name in names.split()]
        for number in first:
            sidecar.signal(number)
            wait_until(lambda: "draining" in sidecar.stderr, "it drains")
            time.sleep(0.1)
        began = time.monotonic()
        sidecar.signal(last)
        assert sidecar.wait() == 1
        assert time.monotonic() - began < 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


@COUNTS
def test_no_other_second_signal_does(slow: SlowUpstream, tmp_path: Path, count: int) -> None:
    with Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path) as sidecar, RawClient(sidecar.address) as client:
        client.send(get(slow.url()))
        slow.wait_for_requests(1)
        for number in [signal.SIGTERM, *HARMLESS, signal.SIGQUIT, signal.SIGQUIT]:
            sidecar.signal(number)
            time.sleep(0.01)
        wait_until(lambda: "draining" in sidecar.stderr, "it drains")
        slow.release.set()
        assert client.read_response().body == b'"late"'
        assert sidecar.wait() == 0


@COUNTS
@pytest.mark.parametrize("number", DRAINS, ids=lambda number: number.name)
def test_what_is_sent_to_the_whole_group_is_sent_once(
    slow: SlowUpstream, tmp_path: Path, number: signal.Signals, count: int
) -> None:
    command = ["setsid", *overcoat_command()]
    policy = f"{ALLOW}\nworkers: {count}\ndrain_wait: 1"
    with Sidecar(policy, tmp_path, command=command) as sidecar, RawClient(sidecar.address) as client:
        client.send(get(slow.url()))
        slow.wait_for_requests(1)
        os.killpg(sidecar.pid, number)
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 503, "it is not ready")
        assert takes_connections(sidecar)
        slow.release.set()
        assert client.read_response().body == b'"late"'
        assert sidecar.wait() == 0


@COUNTS
def test_a_drain_wait_goes_on_taking_connections_while_it_is_not_ready(tmp_path: Path, count: int) -> None:
    policy = f"{ALLOW}\nworkers: {count}\ndrain_wait: 2"
    with PlainUpstream() as upstream, Sidecar(policy, tmp_path) as sidecar:
        sidecar.signal(signal.SIGTERM)
        began = time.monotonic()
        wait_until(lambda: sidecar.admin_get("/ready")[0] == 503, "it is not ready")
        with RawClient(sidecar.address) as client:
            client.send(get(upstream.url()))
            assert client.read_response().status == 200
        assert sidecar.admin_get("/live")[0] == 200
        assert sidecar.wait() == 0
        assert 1.8 < time.monotonic() - began < 7


@COUNTS
def test_during_a_drain_wait_each_response_is_the_last_on_its_connection(tmp_path: Path, count: int) -> None:
    """RFC 9112, section 9.6. So whoever is told to go elsewhere has left before connections are closed."""
    policy = f"{ALLOW}\nworkers: {count}\ndrain_wait: 3"
    with PlainUpstream() as upstream, Sidecar(policy, tmp_path) as sidecar, RawClient(sidecar.address) as client:

        def is_told_to_leave() -> bool:
            client.send(get(upstream.url()))
            response = client.read_response()
            assert response.status == 200
            return "close" in response.headers.tokens("Connection")

        assert not is_told_to_leave()
        sidecar.signal(signal.SIGTERM)
        wait_until(is_told_to_leave, "a response says that the connection ends")
        assert client.read_to_end() == b""
        assert takes_connections(sidecar)
        assert sidecar.wait() == 0


@COUNTS
def test_what_is_cut_off_at_the_end_is_answered_said_counted_and_makes_the_status(
    slow: SlowUpstream, tmp_path: Path, count: int
) -> None:
    policy = f"{ALLOW}\nworkers: {count}\ndrain_timeout: 1"
    with Sidecar(policy, tmp_path) as sidecar, RawClient(sidecar.address) as client, RawClient(sidecar.address) as idle:
        client.send(get(slow.url()))
        slow.wait_for_requests(1)
        began = time.monotonic()
        sidecar.signal(signal.SIGTERM)
        answer = client.read_response()
        assert (answer.status, json.loads(answer.body)["reason"]) == (503, "drain_timeout")
        assert client.read_to_end() == b""
        assert idle.read_to_end() == b""
        assert sidecar.wait() == 1
        assert 0.9 < time.monotonic() - began < 6
        (line,) = sidecar.decisions()
        assert (line["reason"], line["outcome"], line["status"]) == ("drain_timeout", "drained", 503)
        assert "Overcoat was told to end" in line["detail"]
        assert "cut off at the end of draining, after 1 s: requests and tunnels 1" in sidecar.stderr


@COUNTS
def test_a_response_that_has_begun_and_a_tunnel_are_broken_off_by_us(
    authority: Authority, tmp_path: Path, count: int
) -> None:
    release = threading.Event()

    def respond(_: RecordedRequest) -> Any:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        release.wait(20)

    policy = f"{ALLOW}\nworkers: {count}\ndrain_timeout: 1"
    with (
        PlainUpstream(respond=respond) as upstream,
        TlsUpstream(authority) as far,
        Sidecar(policy, tmp_path, authority=authority) as sidecar,
        socket.create_connection(sidecar.address, 10) as client,
        RawClient(sidecar.address) as tunnel,
    ):
        client.sendall(get(upstream.url()))
        target = f"127.0.0.1:{far.port}"
        tunnel.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        assert tunnel.read_response(method="CONNECT").status == 200
        begun = b""
        while b"half" not in begun:
            begun += client.recv(4096)
        sidecar.signal(signal.SIGTERM)
        assert sidecar.wait() == 1
        release.set()
        lines = {line["method"]: line for line in sidecar.decisions()}
        assert {line["reason"] for line in lines.values()} == {"drain_timeout"}
        assert lines.keys() == {"GET", "CONNECT"}
        with pytest.raises(ConnectionResetError):
            client.recv(4096)  # an end in order could be taken for the end of the response


@COUNTS
def test_a_worker_of_a_killed_parent_drains_by_itself(slow: SlowUpstream, tmp_path: Path, count: int) -> None:
    if count == 1:
        pytest.skip("there is no parent")
    with Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path) as sidecar, RawClient(sidecar.address) as client:
        client.send(get(slow.url()))
        slow.wait_for_requests(1)
        processes = children(sidecar.pid)
        os.kill(sidecar.pid, signal.SIGKILL)
        time.sleep(0.2)
        slow.release.set()
        assert client.read_response().body == b'"late"'
        assert sidecar.wait() == -signal.SIGKILL
        wait_until(lambda: not any(is_alive(pid) for pid in processes), "all children are over")


class TestDuringTheStart:
    """A pipe in place of a file that is read holds the start up."""

    @COUNTS
    def test_no_signal_is_lost_or_kills(self, tmp_path: Path, count: int) -> None:
        process = start(tmp_path, count)
        wait_until(lambda: handles(process.pid, *HARMLESS, signal.SIGTERM), "it takes signals over")
        for number in [*HARMLESS, signal.SIGTERM, *HARMLESS]:
            process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, b""), err
        assert b"stopped" in err
        assert b'"event": "ready"' not in err  # it does not begin what it was told to end
        assert b"rror" not in err, err

    @COUNTS
    @pytest.mark.parametrize("pause", [0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3])
    def test_nor_at_any_moment_of_it(self, tmp_path: Path, count: int, pause: float) -> None:
        process = start(tmp_path, count)
        wait_until(lambda: handles(process.pid, *HARMLESS, signal.SIGTERM), "it takes signals over")
        time.sleep(pause)
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM):
            process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert b'"level": "error"' not in err, err


# Starts the command so that each reading of the policy, from the start on, brings a hundred signals to read it again.
STORM = """
import os, signal, sys
sys.path.append(sys.argv.pop(1))
from proxy.processes import reload
from proxy.processes.signals import take_over_signals
begin = reload.Reader.begin

def stormy(self, changed=()):
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGHUP)
    return begin(self, changed)

reload.Reader.begin = stormy
take_over_signals()
os.kill(os.getpid(), signal.SIGHUP)
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""


@COUNTS
def test_signals_that_come_faster_than_they_are_acted_on_keep_it_from_nothing(
    authority: Authority, tmp_path: Path, count: int
) -> None:
    (tmp_path / "storm.py").write_text(STORM)
    command = [sys.executable, "-P", str(tmp_path / "storm.py"), str(ROOT)]
    with (
        TlsUpstream(authority) as upstream,
        Sidecar(f"workers: {count}", tmp_path, authority=authority, command=command) as sidecar,
        RawClient(sidecar.address) as client,
    ):
        client.send(get(upstream.url()))
        assert client.read_response().status == 200

        def is_read() -> bool:
            return sidecar.metrics().value("overcoat_policy_reloads_total", result="unchanged") >= 1

        wait_until(is_read, "the policy is read again")


def start(folder: Path, count: int) -> subprocess.Popen[bytes]:
    text = f"version: 1\nlisten: [forward://127.0.0.1:0]\nadmin: 127.0.0.1:0\nworkers: {count}\n"
    (folder / "policy.yaml").write_text(text)
    return subprocess.Popen(
        [*overcoat_command(), "serve", "-p", "policy.yaml"],
        cwd=folder,
        env=clean_environment({"OVERCOAT_DATA": str(folder / "data")}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def handles(pid: int, *numbers: signal.Signals) -> bool:
    """Return whether a process catches or ignores each of these; it takes one over after the other."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught, ignored = (
        next(int(line.split()[1], 16) for line in lines if line.startswith(name)) for name in ("SigCgt", "SigIgn")
    )
    taken = caught | ignored
    return all(taken >> (number - 1) & 1 for number in numbers)


class TestTheFileOfLines:
    @COUNTS
    def test_it_is_opened_again_after_it_was_renamed(self, tmp_path: Path, count: int) -> None:
        file, rotated = tmp_path / "lines.json", tmp_path / "lines.json.1"
        arguments = ["--lines", str(file)]
        with (
            PlainUpstream() as upstream,
            Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path, arguments=arguments) as sidecar,
        ):
            ask(sidecar, upstream, "/one")
            wait_until(lambda: paths(file) == ["/one"], "the first line is written")
            file.rename(rotated)
            ask(sidecar, upstream, "/two")
            wait_until(lambda: paths(rotated) == ["/one", "/two"], "the second is, to the same file")
            sidecar.signal(signal.SIGUSR1)
            wait_until(lambda: sidecar.stderr.count("was opened again") == count, "the file is opened again")
            ask(sidecar, upstream, "/three")
            wait_until(lambda: file.exists() and paths(file) == ["/three"], "the third is written to the new file")
            assert paths(rotated) == ["/one", "/two"]
            assert sidecar.stdout == ""
            assert file.stat().st_mode & 0o777 == 0o640
            file.rename(rotated)
            file.mkdir()
            sidecar.signal(signal.SIGUSR1)
            wait_until(lambda: sidecar.stderr.count("cannot be opened again") == count, "that it cannot be is said")
            ask(sidecar, upstream, "/four")
            wait_until(lambda: paths(rotated) == ["/three", "/four"], "no line is lost")

    @COUNTS
    def test_without_one_that_is_said(self, tmp_path: Path, count: int) -> None:
        with Sidecar(f"{ALLOW}\nworkers: {count}", tmp_path) as sidecar:
            sidecar.signal(signal.SIGUSR1)
            wait_until(lambda: "there is no file to open again" in sidecar.stderr, "it is said")

    @COUNTS
    def test_one_that_cannot_be_written_ends_the_start(self, tmp_path: Path, count: int) -> None:
        (tmp_path / "policy.yaml").write_text(f"version: 1\nadmin: null\nworkers: {count}\n")
        for place, why in ((tmp_path, "directory"), (tmp_path / "pipe", "")):
            if place.name == "pipe":
                os.mkfifo(place)
                reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)  # or it could not be opened, whoever asks
            done = subprocess.run(
                [*overcoat_command(), "serve", "-p", "policy.yaml", "--lines", str(place)],
                cwd=tmp_path,
                env=clean_environment({"OVERCOAT_DATA": str(tmp_path / "data")}),
                capture_output=True,
                timeout=20,
                check=False,
            )
            assert done.returncode == 1
            (line,) = map(json.loads, done.stderr.splitlines())
            assert f"decision lines cannot be written to {place}" in line["message"]
            assert why in line["message"]
        os.close(reader)


def ask(sidecar: Sidecar, upstream: PlainUpstream, path: str) -> None:
    with RawClient(sidecar.address) as client:
        client.send(get(upstream.url(path)))
        assert client.read_response().status == 200


def paths(file: Path) -> list[str]:
    return [json.loads(line)["path"] for line in file.read_text().splitlines()]
