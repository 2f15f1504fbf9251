"""`overcoat healthcheck`: finds the sidecars of this machine by their signs, and says whether they are ready.

Proves that it is cheap enough to be run every few seconds beside a sidecar on a tenth of a processor.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

import pytest

from tests.e2e.sidecar import ROOT, Sidecar, clean_environment, overcoat_command
from tests.waiting import wait_until

# What the console script does, and what it took.
IMPORTS = """
import json, sys
sys.argv = ["overcoat", "healthcheck"]
before = set(sys.modules)
from overcoat.__main__ import main
try:
    main()
except SystemExit as e:
    print(json.dumps({"status": e.code, "modules": sorted(set(sys.modules) - before)}))
"""


def ends_with(data: Path, *arguments: str, folder: Path = ROOT) -> tuple[int, str]:
    """Return how a health check ended: its exit status, and what it said.

    Args:
        data: the data directory.
        arguments: options of the command.
        folder: where it is run.
    """
    done = subprocess.run(
        [*overcoat_command(), "healthcheck", *arguments],
        capture_output=True,
        text=True,
        env=clean_environment({"OVERCOAT_DATA": str(data)}),
        cwd=folder,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def says(port: int, pieces: Iterable[bytes]) -> Iterator[None]:
    """Answer every connection to a port of 127.0.0.1 with these bytes."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                with suppress(OSError):  # the asker has heard enough
                    for piece in pieces:
                        client.sendall(piece)

    listener = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def sidecar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with Sidecar(f"workers: {request.param}", tmp_path_factory.mktemp("sidecar")) as sidecar:
        yield sidecar


def test_it_is_ready_wherever_the_policy_and_the_flags_put_the_admin_listener(sidecar: Sidecar) -> None:
    assert ends_with(sidecar.data) == (0, "ready\n")


def test_it_imports_nothing_but_a_little_of_the_standard_library(sidecar: Sidecar) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        env=clean_environment({"OVERCOAT_DATA": str(sidecar.data)}),
        cwd=ROOT,
        timeout=30,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0
    ours = {name for name in found["modules"] if name.partition(".")[0] in ("overcoat", "proxy", "addons")}
    assert ours == {"overcoat", "overcoat.__main__", "proxy", "proxy.health", "proxy.timelimits"}
    assert {name.partition(".")[0] for name in set(found["modules"]) - ours} <= sys.stdlib_module_names
    # Of the standard library, too, the heavy ones are left out: each of these takes longer than all the rest.
    assert not {"asyncio", "http", "importlib.metadata", "ssl", "urllib", "pathlib"} & set(found["modules"])


def test_the_image_asks_in_the_quick_way() -> None:
    assert 'CMD ["overcoat", "healthcheck"]' in (ROOT / "Dockerfile").read_text()


def test_one_that_was_killed_is_not_ready_whoever_listens_there_now(tmp_path: Path) -> None:
    with Sidecar("", tmp_path) as sidecar:
        port = int(sidecar.admin_url.rpartition(":")[2])
        (sign,) = (sidecar.data / "running").iterdir()
        sidecar.kill()
        with says(port, [b"HTTP/1.0 200 OK\r\n\r\nready\n"]):
            assert ends_with(sidecar.data, "--address", f"127.0.0.1:{port}")[0] == 0
            status, said = ends_with(sidecar.data)
        assert (status, "no sidecar has left its sign" in said) == (1, True)
        assert sign.exists()
        sidecar.start()
        assert ends_with(sidecar.data) == (0, "ready\n")
        assert not sign.exists()
        assert sidecar.stop() == 0
        assert list((sidecar.data / "running").iterdir()) == []


def test_one_that_drains_is_not_ready(tmp_path: Path) -> None:
    with Sidecar("", tmp_path) as sidecar, socket.create_connection(sidecar.address) as app:
        app.sendall(b"GET http://a.example/ HTTP/1.1\r\n")  # under way, so it is waited for
        sidecar.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in sidecar.stderr)
        status, said = ends_with(sidecar.data)
        assert (status, "503: not ready" in said) == (1, True)
        app.close()
        sidecar.wait()


def test_a_file_that_has_become_wrong_does_not_matter(sidecar: Sidecar) -> None:
    sidecar.policy_file.write_text("version: 1\nadmin: nowhere\n")
    assert ends_with(sidecar.data) == (0, "ready\n")
    assert ends_with(sidecar.data, "-p", str(sidecar.policy_file)) == (0, "ready\n")


def test_sidecars_that_share_their_data_are_told_apart_by_their_policy(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    data = tmp_path / "data"
    env = {"OVERCOAT_DATA": str(data), "OVERCOAT_SHARE_CA": "1"}
    with Sidecar("", tmp_path / "a", env=env):
        with Sidecar("", tmp_path / "b", env=env) as other:
            assert ends_with(data) == (0, "ready\n")
            other.signal(signal.SIGSTOP)  # whatever does not answer is not ready
            assert ends_with(data, "--timeout", "0.2")[0] == 1
            relative = ends_with(data, "-p", "policy.yaml", folder=tmp_path / "a")
            assert relative == (0, "ready\n")
            assert ends_with(data, "-p", str(other.policy_file), "--timeout", "0.2")[0] == 1
            other.signal(signal.SIGCONT)
        assert ends_with(data, "-p", str(other.policy_file))[0] == 1
        assert ends_with(data) == (0, "ready\n")


def test_without_an_admin_listener_there_is_nobody_to_ask(tmp_path: Path) -> None:
    with Sidecar("admin: null", tmp_path) as sidecar:
        status, said = ends_with(sidecar.data)
        assert (status, "neither probes nor an admin listener" in said) == (1, True)


def test_where_no_sign_can_be_left_it_says_so_and_serves(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "running").write_text("in the way")
    with Sidecar("", tmp_path) as sidecar:
        assert "overcoat healthcheck will not find this sidecar" in sidecar.stderr
        address = sidecar.admin_url.removeprefix("http://")
        assert ends_with(sidecar.data, "--address", address) == (0, "ready\n")


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"HTTP/1.0 503 Service Unavailable\r\n\r\n"], "answers 503: not ready"),
        ([b"HTTP/1.0 200\r\n"], "ready"),
        ([b"HTTP/1.0 2000\r\n"], "answers 2000"),
        ([b"SSH-2.0-OpenSSH 200\r\n"], "not HTTP"),
        ([b"HTTP/1.0 OK\r\n"], "not HTTP"),
        (repeat(b"x" * 4096), "not HTTP"),
        ([], "not HTTP"),
    ],
)
def test_whatever_answers_there_is_read_with_care(tmp_path: Path, pieces: Iterable[bytes], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with says(port, pieces):
        status, said = ends_with(tmp_path, "--address", f"127.0.0.1:{port}")
    assert words in said
    assert status == (0 if words == "ready" else 1)


def test_the_command_takes_options_and_says_how(tmp_path: Path) -> None:
    assert "--address" in ends_with(tmp_path, "--help")[1]
    status, said = ends_with(tmp_path, "--address", "nowhere")
    assert (status, "no answer from nowhere" in said) == (1, True)
    status, said = ends_with(tmp_path)
    assert (status, "no sidecar has left its sign" in said) == (1, True)
