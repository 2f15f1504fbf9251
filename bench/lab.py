"""The lab: processes pinned to cores, certificates, and the upstream that all contenders talk to.

Rules of this module:

- Everything lives in one temporary folder and on 127.0.0.1, on ports that the system chose.
- A process is started in a session of its own and ended by its id, with everything that it started.
- The upstream is nginx with TLS. `/bench` answers from memory; `/check` records over which TLS version a request came
  and what its body was; and all requests are counted. So no contender can be fast by not doing the work.
- It speaks HTTP/1.1, and on a port of its own HTTP/2 as well.
- A second upstream, the impostor, has a certificate that is as valid but has another key: pins must refuse it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.certificates import Authority

HOST = "127.0.0.1"
NAME = "localhost"  # some proxies cannot make, or check, a certificate for an address
START_SECONDS = 40.0
STOP_SECONDS = 15.0
ANSWER = '{"status": "ok", "message": "' + "x" * 160 + '"}'  # the small answer: about 0.2 KB
PACKAGES = {"nginx": "nginx-light", "curl": "curl", "h2load": "nghttp2-client", "wrk": "wrk"}
PEER_PACKAGES = {"haproxy": "haproxy", "squid": "squid-openssl"}

_NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {directory}/nginx-body;
  proxy_temp_path {directory}/nginx-proxy;
  fastcgi_temp_path {directory}/nginx-fastcgi;
  uwsgi_temp_path {directory}/nginx-uwsgi;
  scgi_temp_path {directory}/nginx-scgi;
  client_body_buffer_size 64k;
  keepalive_requests 1000000000;
  keepalive_timeout 900s;
  default_type application/json;
  log_format checks escape=json '{{"id": "$http_x_check", "tls": "$ssl_protocol", '
    '"version": "$server_protocol", "port": $server_port, '
    '"body": "$request_body"}}';
  ssl_protocols TLSv1.2 TLSv1.3;
  server {{
    listen {host}:{port} ssl backlog=4096;
    listen {host}:{http2_port} ssl http2 backlog=4096;
    ssl_certificate {directory}/server.pem;
    ssl_certificate_key {directory}/server.pem;
    location = /bench {{ return 200 '{answer}'; }}
    location = /check {{ access_log {checks} checks; proxy_pass http://{host}:{plain_port}/answer; }}
    location /files/ {{ root {directory}; }}
  }}
  server {{
    listen {host}:{impostor_port} ssl;
    ssl_certificate {directory}/impostor.pem;
    ssl_certificate_key {directory}/impostor.pem;
    location / {{ access_log {checks} checks; return 200 '{answer}'; }}
  }}
  server {{
    listen {host}:{plain_port};
    location = /answer {{ return 200 '{answer}'; }}
    location = /status {{ stub_status; }}
  }}
}}
"""


class LabError(Exception):
    """Something is missing, did not start, or did not do the work to be measured."""


class Unavailable(Exception):
    """This version of Overcoat cannot do the row's work. The message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to measure.

    Attributes:
        rounds: the number of measurements of each contender.
        seconds: the length of one measurement.
        connections: the number of open connections of the load generator.
        scale: multiplies the amount of work (requests, bytes); the targets hold for 1.
    """

    rounds: int = 5
    seconds: float = 5.0
    connections: int = 8
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores do what, as taskset writes them: the proxy has one alone.

    Attributes:
        proxy: the proxy's.
        pair: the two for a proxy with two workers; they are free of other work only where there are four cores.
        upstream: the upstream's.
        load: the load generator's, and this process's own.
        count: how many there are.
    """

    proxy: str
    pair: str
    upstream: str
    load: str
    count: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Share out the cores that this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise LabError("the benchmarks need two cores: one for the proxy, one for all else")
        upstream = cores[2] if len(cores) > 3 else cores[1]
        return cls(
            str(cores[0]), f"{cores[0]},{cores[1]}", str(upstream), str(cores[min(3, len(cores) - 1)]), len(cores)
        )


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A child process on given cores, with everything that it starts."""

    def __init__(self, name: str, argv: Sequence[str | Path], *, core: str, lab: Lab, env: Mapping[str, str]) -> None:
        self.name = name
        self._log = lab.directory / f"{name}-{uuid.uuid4().hex[:6]}.log"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                ["taskset", "-c", core, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=lab.directory,
                env={**lab.environment, **env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its id; taskset replaces itself by the command, so it is the command's own."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text("utf-8", "replace")

    def wait_for_port(self, port: int, interval: float = 0.02) -> None:
        """Wait until it takes connections.

        Raises:
            LabError: it ended, or took none in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise LabError(f"{self.name} ended with status {self._popen.returncode}:\n{self.said[-2000:]}")
            try:
                socket.create_connection((HOST, port), 1.0).close()
            except OSError:
                time.sleep(interval)
            else:
                return
        raise LabError(f"{self.name} took no connection in {START_SECONDS:.0f} s:\n{self.said[-2000:]}")

    def stop(self) -> None:
        """End it: politely, then by force, then what it left behind."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        with contextlib.suppress(ProcessLookupError):  # usually nothing is left
            os.killpg(self._popen.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGHUP."""
        self._popen.send_signal(number)

    # -- what the kernel says about it and its children

    def pids(self) -> list[int]:
        """Return its id and those of everything that it started."""
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(OSError):  # a child may have just ended
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def rss(self) -> int:
        """Return the resident bytes of all its processes."""
        return sum(_status_bytes(pid, "VmRSS") for pid in self.pids())

    def peak_rss(self) -> int:
        """Return the most bytes that were resident since `reset_peak`."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self.pids())

    def reset_peak(self) -> None:
        """Let `peak_rss` start from now."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def pss(self) -> int:
        """Return its proportional share of memory in bytes: pages shared by n processes count 1/n in each."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def descriptors(self) -> int:
        """Return how many file descriptors all its processes hold."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used, user's and system's."""
        return sum(map(_cpu_seconds, self.pids()))

    def run_seconds(self) -> float:
        """Return the same more exactly than in ticks (10 ms), but without the time of threads that have ended."""
        return sum(map(_run_seconds, self.pids()))


def _run_seconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_bytes(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LabError(f"the kernel does not tell {key} of process {pid}")


class Lab:
    """One run's folder, certificates, upstream and processes. A context manager: leaving it ends everything."""

    def __init__(self, settings: Settings, overcoat: Path, *, has_peers: bool = True) -> None:
        """Look for the tools.

        Args:
            settings: how much to measure.
            overcoat: the command to measure.
            has_peers: whether other proxies are measured, too, and so are needed.

        Raises:
            LabError: one is missing; the message says how to install it.
        """
        self.settings = settings
        self.overcoat = overcoat
        self.tools = Path(sys.executable).parent
        self.cores = Cores.of_this_machine()
        os.sched_setaffinity(0, {int(self.cores.load)})  # this process must not load the proxy's core
        self._processes = contextlib.ExitStack()
        search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        packages = {**PACKAGES, **(PEER_PACKAGES if has_peers else {})}
        self.programs = {name: shutil.which(name, path=search) or "" for name in (*packages, "taskset")}
        missing = [package for name, package in packages.items() if not self.programs[name]]
        if missing:
            raise LabError(f"missing programs; on Debian: apt-get install {' '.join(missing)}")
        for needed in (overcoat, *((self.tools / "mitmdump", self.tools / "proxy") if has_peers else ())):
            if not needed.exists():
                raise LabError(f"{needed} does not exist: run the benchmarks with make bench")

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="overcoat-bench-")
        self.directory = Path(self._folder.name)
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": self._folder.name,
            "LANG": "C.UTF-8",
            "OVERCOAT_DATA": str(self.directory / "overcoat-data"),
        }
        self._make_certificates()
        self.upstream = Upstream(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._processes.close()
        self._folder.cleanup()

    def start(
        self, name: str, argv: Sequence[str | Path], *, core: str | None = None, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process, on the proxy's core if no other is named."""
        process = Process(name, argv, core=core or self.cores.proxy, lab=self, env=env or {})
        self._processes.callback(process.stop)
        return process

    @contextlib.contextmanager
    def row(self) -> Iterator[None]:
        """End everything that was started inside, when it is left."""
        outer, self._processes = self._processes, contextlib.ExitStack()
        try:
            yield
        finally:
            self._processes.close()
            self._processes = outer

    def run(self, argv: Sequence[str | Path], *, core: str | None = None, seconds: float = 60.0) -> str:
        """Run a command to its end, on the load generator's core if no other is named; return what it printed.

        Raises:
            LabError: it failed, or took longer than `seconds`.
        """
        command = ["taskset", "-c", core or self.cores.load, *map(str, argv)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, env=self.environment, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{argv[0]} did not end in {seconds:.0f} s") from None
        if done.returncode != 0:
            raise LabError(f"{argv[0]} ended with status {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
        return done.stdout

    def write(self, name: str, text: str) -> Path:
        """Write a file into the lab's folder."""
        path = self.directory / name
        path.write_text(text, "utf-8")
        return path

    # -- certificates and keys

    def _make_certificates(self) -> None:
        authority = Authority()
        self.ca_file = authority.write_pem(self.directory / "ca.pem")
        for name in ("server", "impostor"):
            identity = authority.issue(HOST, NAME)
            (self.directory / f"{name}.pem").write_bytes(identity.key_pem + b"".join(identity.chain_pem))
            if name == "server":
                self.pin = identity.pin
        self.field_key = ec.generate_private_key(ec.SECP256R1())
        self.field_key_file = self.directory / "fields.pub.pem"
        self.field_key_file.write_bytes(
            self.field_key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def authority(self, name: str) -> tuple[Path, Path]:
        """Make a CA for a proxy that has none of its own; return its certificate's and its key's file."""
        authority = Authority()
        (self.directory / f"{name}.key").write_bytes(authority.key_pem)
        authority.write_pem(self.directory / f"{name}.pem")
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"


class Upstream:
    """nginx with TLS, on a core away from the proxy's."""

    def __init__(self, lab: Lab) -> None:
        self.port = free_port()
        self.http2_port = free_port()
        self.impostor_port = free_port()
        self._plain_port = free_port()
        self._asked = 0
        self._checks = lab.directory / "checks.log"
        (lab.directory / "files").mkdir()
        config = _NGINX.format(
            directory=lab.directory,
            host=HOST,
            port=self.port,
            http2_port=self.http2_port,
            impostor_port=self.impostor_port,
            plain_port=self._plain_port,
            checks=self._checks,
            answer=ANSWER,
        )
        path = lab.write("nginx-upstream.conf", config)
        self.process = lab.start("nginx-upstream", nginx_command(lab, path), core=lab.cores.upstream)
        self.process.wait_for_port(self.port)

    def requests(self) -> int:
        """Return the number of requests that it has had, without this one."""
        with socket.create_connection((HOST, self._plain_port), 10.0) as connection:
            connection.sendall(f"GET /status HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        lines = answer.decode("ascii").split("server accepts handled requests")[1].split()
        count = int(lines[2])
        self._asked += 1
        return count - self._asked

    def checked(self, identifier: str, wait: float = 2.0) -> list[dict[str, Any]]:
        """Return the records of the requests to `/check` with this `X-Check` header."""
        deadline = time.monotonic() + wait
        while True:
            found = [
                line
                for text in (self._checks.read_text("utf-8").splitlines() if self._checks.exists() else ())
                if (line := json.loads(text))["id"] == identifier
            ]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)


def nginx_command(lab: Lab, config: Path) -> list[str | Path]:
    """Return the command that runs nginx with this configuration and in the lab's folder."""
    return [lab.programs["nginx"], "-p", lab.directory, "-e", lab.directory / "nginx.error.log", "-c", config]
