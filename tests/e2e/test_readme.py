"""Every command of the README, as it stands there, one after the other in one folder: the test reads them from it.

They run in a network of their own, where the README's ports are free and its host is a server of this test's, and with
the installed `overcoat`. A command that the README gets and this test does not know fails it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority, Identity
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOST, PUBLIC = "api.pay.example", "93.184.216.34"  # what the policy takes for an address of the internet
SERVER = Path(__file__).with_name("programs") / "readme_server.py"
SECONDS = 60

# What is run elsewhere, and by which test: another environment is needed, or it would run this test.
ELSEWHERE = {
    "make demo": "tests/test_wheel.py",
    "make test": "this run",
    "pipx install .": "tests/test_wheel.py",
    "python3 -m venv /opt/overcoat": "tests/test_wheel.py",
    "/opt/overcoat/bin/pip install --require-hashes -r requirements.lock -r requirements-build.lock": "Dockerfile",
    "/opt/overcoat/bin/pip install --no-deps --no-build-isolation .": "tests/test_wheel.py",
    "docker build -t overcoat .": "tests/containers",
}


def blocks(language: str) -> list[str]:
    """Return the README's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return each command without its comment; one that goes on in the next line is one."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def why_not() -> str | None:
    """Return why there can be no network of the test's own here; None if there can."""
    missing = [tool for tool in ("bash", "curl", "ip", "nsenter", "openssl", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(["unshare", "-nm", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() or None


class Machine:
    """A network with this one host, and a folder with what the README expects in it."""

    def __init__(self, folder: Path, system: Path, authority: Authority) -> None:
        self.folder = folder
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "OVERCOAT_DATA": str(system / "data"),
            "SSL_CERT_FILE": str(authority.write_pem(system / "roots.pem")),
            "LANG": "C.UTF-8",
        }
        (system / "hosts").write_text(f"127.0.0.1 localhost\n{PUBLIC} {HOST}\n")
        script = f"""
            ip link set lo up && ip address add {PUBLIC}/32 dev lo && mount --bind {system / "hosts"} /etc/hosts &&
            echo up && exec sleep 600
        """
        self._holder = subprocess.Popen(["unshare", "-nm", "sh", "-ec", script], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        self._started = [self._holder]

    def start(self, command: str, ready: str, stdout: Path, stderr: Path) -> subprocess.Popen[bytes]:
        """Start a command in the background, and wait until it says a word."""
        with stdout.open("ab") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                self._inside(f"exec {command}"), cwd=self.folder, env=self._environment, stdout=out, stderr=err
            )
        self._started.append(process)
        wait_until(lambda: ready in stderr.read_text() + stdout.read_text(), f"{command} says {ready}")
        return process

    def run(self, command: str) -> str:
        """Run a command of the README to its good end; return what it printed."""
        done = subprocess.run(
            self._inside(command),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _inside(self, command: str) -> list[str]:
        where = ["nsenter", "-t", str(self._holder.pid), "-n", "-m", f"--wd={self.folder}", "--"]
        return [*where, "bash", "-o", "pipefail", "-c", command]

    def end(self) -> None:
        """End everything that was started."""
        for process in reversed(self._started):
            process.kill()
            process.wait()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[tuple[Machine, Identity]]:
    """The machine, and the server's identity."""
    if why := why_not():
        pytest.skip(why)
    (folder := tmp_path / "work").mkdir()
    authority = Authority()
    server = authority.issue(HOST)
    (tmp_path / "server").write_bytes(server.key_pem + b"".join(server.chain_pem))
    (folder / "server.pem").write_bytes(server.chain_pem[0])
    policy = next(code for code in blocks("yaml") if code.startswith("version:"))
    (folder / "overcoat.yaml").write_text(re.sub(r'"sha256/[^"]+"', "{file: server.pem}", policy))
    (folder / "charge.json").write_text('{"card": {"number": "4111 1111", "brand": "seen"}}')
    found = Machine(folder, tmp_path, authority)
    try:
        listening = shlex.join([sys.executable, str(SERVER), str(tmp_path / "server"), str(tmp_path / "received")])
        found.start(listening, "listens", tmp_path / "server.out", tmp_path / "server.err")
        yield found, server
    finally:
        found.end()


def test_every_command_does_what_is_said_of_it(machine: tuple[Machine, Identity], tmp_path: Path) -> None:
    here, server = machine
    lines, printed = here.folder / "lines.json", {}
    sidecar = None
    for command in sorted(commands(), key=lambda command: not command.startswith("overcoat keys new")):
        if command in ELSEWHERE:
            continue
        assert command.split()[0] in ("curl", "openssl", "overcoat"), f"not known here: {command}"
        if command.startswith("overcoat serve"):
            if sidecar is not None:
                sidecar.send_signal(signal.SIGTERM)
                assert sidecar.wait(SECONDS) == 0
            sidecar = here.start(command, '"event": "ready"', lines, tmp_path / "serve.err")
        else:
            printed[command] = here.run(command)

    def output(start: str) -> str:
        (found,) = [text for command, text in printed.items() if command.startswith(start)]
        return found

    assert output("openssl").strip() == server.pin
    assert "payments" in output("overcoat explain")
    assert '⟦"4111 1111"⟧, "brand": "seen"' in output("overcoat explain")
    assert json.loads(output("curl")) == {"charged": True}
    assert output("overcoat run").endswith('{"charged": true}')
    assert (here.folder / "overcoat-ca.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert (here.folder / "pay-2026.pem").stat().st_mode & 0o777 == 0o600
    received = [json.loads(line) for line in (tmp_path / "received").read_text().splitlines()]
    (charge,) = [each for each in received if each["method"] == "POST"]
    token = json.loads(charge["body"])["card"]["number"]
    opened = here.run(f"printf %s {shlex.quote(token)} | overcoat keys open --key pay-2026.pem --kid pay-2026")
    assert json.loads(opened) == "4111 1111 1111 1111"
    here.run("overcoat check -p suggested.yaml")


def test_what_is_run_elsewhere_is_still_in_the_readme_and_there() -> None:
    assert set(ELSEWHERE) <= set(commands())
    for where in ELSEWHERE.values():
        assert where == "this run" or (ROOT / where).exists(), where
