"""Standard error: each message has its time, and all have one form: an object a line, on a terminal a line of text."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.clients import RawClient
from tests.e2e.sidecar import SidecarFailed, clean_environment, overcoat_command
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.waiting import wait_until

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) \S.*")


@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
def test_a_whole_life_is_said_in_one_form(tmp_path: Path, count: int) -> None:
    began = datetime.now(UTC)
    with Sidecar(f"workers: {count}\n", tmp_path) as sidecar:
        sidecar.write_policy("frobnicate: 1")
        sidecar.signal(signal.SIGHUP)
        wait_until(lambda: "stays in force" in sidecar.stderr)
    said = [json.loads(line) for line in sidecar.stderr.splitlines()]
    assert all(list(line)[:3] == ["time", "level", "message"] for line in said)
    times = [datetime.fromisoformat(line["time"]) for line in said]
    assert began.replace(microsecond=0) <= times[0] <= times[-1] <= datetime.now(UTC)
    assert times == sorted(times)
    (ready,) = [line for line in said if line.get("event") == "ready"]
    assert (ready["listen"], ready["admin"]) == (list(sidecar.listen), sidecar.admin_url.removeprefix("http://"))
    assert {"info", "error"} == {line["level"] for line in said}
    assert any("policy.yaml:1:1: frobnicate: unknown key" in line["message"] for line in said)


@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two workers"])
def test_a_start_that_fails_later_than_its_policy_says_so_in_the_same_form(tmp_path: Path, count: int) -> None:
    with pytest.raises(SidecarFailed) as failed:
        Sidecar(
            f"workers: {count}\nlisten: [forward://192.0.2.1:8080]\nclients: {{allow: [private]}}", tmp_path
        ).start()
    (line,) = map(json.loads, failed.value.stderr.splitlines())
    assert failed.value.status == 1
    assert line["level"] == "error"
    assert "cannot listen on forward://192.0.2.1:8080" in line["message"]


def test_a_terminal_gets_lines_to_read(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\nlisten: [forward://127.0.0.1:0]\nadmin: null\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*overcoat_command(), "serve", "-p", "policy.yaml"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=tmp_path,
        env=clean_environment({"OVERCOAT_DATA": str(tmp_path / "data")}),
    )
    os.close(theirs)
    said = b""
    while b"ready: " not in said:
        said += os.read(ours, 4096)
    process.terminate()
    try:
        while data := os.read(ours, 4096):
            said += data
    except OSError:  # so ends a terminal whose other side is closed
        pass
    os.close(ours)
    assert process.wait(10) == 0
    lines = said.decode().splitlines()
    assert len(lines) >= 3
    assert all(LINE.fullmatch(line) for line in lines), lines


def read_all(terminal: int) -> str:
    """Read what was written to a terminal, until its other side is closed."""
    said = b""
    try:
        while data := os.read(terminal, 4096):
            said += data
    except OSError:  # so ends a terminal whose other side is closed
        pass
    os.close(terminal)
    return said.decode()


@pytest.mark.parametrize(
    ("arguments", "env", "count", "is_text", "has_colours"),
    [
        ((), {"TERM": "xterm"}, 1, True, True),
        ((), {"TERM": "xterm"}, 2, True, True),
        ((), {"NO_COLOR": "1"}, 1, True, False),
        (("--log-format", "json"), {"TERM": "xterm"}, 1, False, False),
    ],
    ids=["coloured", "two workers", "NO_COLOR", "json"],
)
def test_decision_lines_on_a_terminal_are_for_people(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], count: int, is_text: bool, has_colours: bool
) -> None:
    policy = f"version: 1\nworkers: {count}\nlisten: [forward://127.0.0.1:0]\nadmin: null\n"
    policy += "defaults: {plain_http: reject}\n"
    (tmp_path / "policy.yaml").write_text(policy)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*overcoat_command(), "serve", "-p", "policy.yaml", *arguments, "--log-file", "log"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=clean_environment({"OVERCOAT_DATA": str(tmp_path / "data"), **env}),
    )
    os.close(theirs)
    wait_until(lambda: (tmp_path / "log").exists() and '"event": "ready"' in (tmp_path / "log").read_text())
    ready = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()][-1]
    host, _, port = ready["listen"][0].rpartition(":")
    with RawClient((host, int(port))) as client:
        client.send(b"GET http://api.example/%1b HTTP/1.1\r\nHost: api.example\r\n\r\n")
        client.read_response()
    process.terminate()
    said = read_all(ours)
    assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    (line,) = said.splitlines()
    if not is_text:
        assert json.loads(line)["reason"]
        return
    assert ("\x1b[31mdeny\x1b[0m" in line) is has_colours
    plain = re.sub(r"\x1b\[[0-9]+m", "", line)
    assert plain.isprintable()
    assert re.match(r"\d\d:\d\d:\d\d GET ", plain)


def test_a_log_file_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SidecarFailed) as failed:
        Sidecar("mode: enforce", tmp_path, arguments=["--log-file", str(tmp_path / "no" / "log")]).start()
    assert failed.value.status == 1
    assert "error: the log cannot be written to" in failed.value.stderr
