"""`overcoat run -- CMD`: the program wears Overcoat, and whoever started it sees no other difference.

The upstreams listen on 127.0.0.2: what is in NO_PROXY (localhost, 127.0.0.1) goes past every proxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_jwk
from tests.e2e.certificates import Authority
from tests.e2e.processes import children, is_alive
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import clean_environment, overcoat_command
from tests.e2e.upstream import PlainUpstream, TlsUpstream
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="127.0.0.2 and what is seen of processes are Linux' own"
)

MakeTls = Callable[..., TlsUpstream]
HERE = "127.0.0.2"
ELSEWHERE = "198.51.100.1"  # not loopback, though it is on lo
DEADLINE = 40.0
CURL = ("curl", "-sS", "--max-time", "20")


@dataclass(frozen=True, slots=True)
class Run:
    """An `overcoat run` that is over."""

    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """What it said at the end, with --json."""
        (line,) = (line for line in self.stderr.splitlines() if line.startswith('{"program"'))
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


class Runner:
    """Runs `overcoat run` under a policy of the test's own."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.policy = folder / "policy.yaml"
        authority.write_pem(folder / "roots.pem")
        self.write("")

    def write(self, rules: str) -> None:
        self.policy.write_text(
            f"version: 1\ntrust: {{roots: roots.pem}}\ndestinations: {{allow: [loopback]}}\n{rules}\n", "utf-8"
        )

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        return clean_environment({"OVERCOAT_DATA": str(self.folder / "data"), "HOME": str(self.folder), **env})

    def command(self, options: Sequence[str], command: Sequence[str]) -> list[str]:
        return [*overcoat_command(), "run", "-p", str(self.policy), *options, "--", *command]

    def __call__(self, *command: str, options: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Run:
        done = subprocess.run(
            self.command(options, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment(env or {}),
            timeout=DEADLINE,
            check=False,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def started(self, *command: str, options: Sequence[str] = (), **more: Any) -> Iterator[subprocess.Popen[str]]:
        """Start it, wait until the program says `begun`, and kill it at the end."""
        process = subprocess.Popen(
            self.command(options, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment({}),
            **more,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def run(tmp_path: Path, authority: Authority) -> Runner:
    return Runner(tmp_path, authority)


def sidecar_of(pid: int) -> int:
    """Return the process id of the sidecar that an `overcoat run` has started."""
    (found,) = (each for each in children(pid) if b"--until-eof" in Path(f"/proc/{each}/cmdline").read_bytes())
    return found


class TestWhatItDoes:
    """One program, four kinds of requests, and what is said of them at the end."""

    def test_plain_http_leaves_as_https_with_its_fields_encrypted_and_its_pin_checked(
        self, run: Runner, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        receiver = Receiver("pay")
        key = receiver.write_public(run.folder)
        run.write(
            f"keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}\n"
            f"rules: [{{name: pay, hosts: ['{HERE}', '{HERE}:{upstream.port}'], pins: {{any_of: ['{upstream.pin}']}}, "
            "request: [{encrypt: ['$.card'], key: pay}]}]"
        )
        body = '{"card": "hunter", "name": "x"}'
        url = f"http://{HERE}:{upstream.port}/v1"
        done = run(*CURL, "--json", body, url, options=["--json"])
        assert done.status == 0, done.stderr
        (request,) = upstream.wait_for_requests(1)
        sent = json.loads(request.body)
        assert sent["name"] == "x"
        assert receiver.open(sent["card"].encode(), host=HERE, path="$.card") == b'"hunter"'
        report = done.report
        assert (report["program"], report["status"], report["requests"]) == ("curl", 0, 1)
        assert (report["actions"], report["pins"]) == ({"upgrade": 1}, {"match": 1})
        assert (report["encrypted"], report["decrypted"], report["past"]) == (1, 0, [])
        assert "hunter" not in done.stderr

    def test_https_is_inspected_with_a_certificate_that_the_program_trusts(
        self, run: Runner, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        run.write(f"rules: [{{name: seen, hosts: ['{HERE}:{upstream.port}'], https: inspect}}]")
        done = run(*CURL, f"https://{HERE}:{upstream.port}/v1", options=["--json"])
        assert (done.status, done.report["actions"]) == (0, {"inspect": 1}), done.stderr
        assert [each.target for each in upstream.wait_for_requests(1)] == ["/v1"]

    def test_https_is_tunnelled_and_its_certificate_is_the_servers_own(
        self, run: Runner, tls_upstream: MakeTls, roots: Path
    ) -> None:
        """The program trusts its own roots as ever: those that the user's variable names are in the bundle, too."""
        upstream = tls_upstream(HERE, address=HERE)
        env = {"CURL_CA_BUNDLE": str(roots)}
        done = run(*CURL, f"https://{HERE}:{upstream.port}/v1", options=["--json"], env=env)
        assert (done.status, done.report["actions"]) == (0, {"tunnel": 1}), done.stderr

    def test_a_pin_that_does_not_match_is_refused_and_said(self, run: Runner, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        pin = "sha256/" + "A" * 42 + "E="
        run.write(f"rules: [{{name: pay, hosts: ['{HERE}:{upstream.port}'], pins: {{any_of: ['{pin}']}}}}]")
        done = run(*CURL, "-o", "/dev/null", "-w", "%{http_code}", f"http://{HERE}:{upstream.port}/v1")
        assert (done.status, done.stdout) == (0, "502")
        upstream.assert_no_application_bytes()
        assert "1 request of curl: 1 denied" in done.stderr
        assert f"denied: {HERE}:{upstream.port}: pin_mismatch" in done.stderr

    def test_what_goes_past_it_is_seen(self, run: Runner) -> None:
        """A program that asks no proxy, in a network of its own, where nobody else has sockets to be looked through."""
        if why := cannot_unshare():
            pytest.skip(why)
        script = f"""
import socket, time
server = socket.create_server(("{ELSEWHERE}", 7777))
client = socket.create_connection(("{ELSEWHERE}", 7777))
time.sleep(1)  # it is looked for several times a second
"""
        command = shlex.join(run.command([], [sys.executable, "-c", script]))
        network = f"ip link set lo up && ip address add {ELSEWHERE}/32 dev lo && exec {command}"
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", network],
            capture_output=True,
            text=True,
            env=run.environment({}),
            timeout=DEADLINE,
            check=False,
        )
        assert re.search(rf"past it: python\S* reached {ELSEWHERE}:7777 \(tcp\)", done.stderr), done.stderr
        assert "shorter connections are not seen" in done.stderr

    def test_a_request_that_failed_is_not_called_upgraded_and_no_more(
        self, run: Runner, plain_upstream: PlainUpstream
    ) -> None:
        gone = f"http://127.0.0.1:{plain_upstream.port}/"  # no TLS is spoken there
        done = run(*CURL, "--noproxy", "", gone)
        assert "1 request of curl: 1 upgraded to https, but failed" in done.stderr
        assert "failed: 127.0.0.1:" in done.stderr

    def test_what_the_report_says_to_try_localhost_with_works(self, run: Runner, plain_upstream: PlainUpstream) -> None:
        done = run("env", "NO_PROXY=", "no_proxy=", *CURL, f"http://localhost:{plain_upstream.port}/")
        assert "1 request of env: 1 upgraded to https, but failed" in done.stderr

    def test_a_program_that_asks_nobody_is_told_of(self, run: Runner) -> None:
        done = run("true")
        assert "no request of true came here" in done.stderr
        assert "as localhost is (to try one there: `overcoat run -- env NO_PROXY= no_proxy= PROGRAM`)" in done.stderr
        assert "past it: nothing was seen" in done.stderr

    def test_observed_only(self, run: Runner, plain_upstream: PlainUpstream) -> None:
        url = f"http://127.0.0.1:{plain_upstream.port}/v1"
        done = run(*CURL, "--noproxy", "", url, options=["--mode", "observe"])
        assert done.status == 0
        assert "observed only; enforcing: 1 upgraded to https" in done.stderr
        assert len(plain_upstream.wait_for_requests(1)) == 1


def cannot_unshare() -> str | None:
    """Return why no network can be made here; None if it can."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "there is no unshare or no ip here"
    tried = subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True, text=True, check=False)
    return f"no network namespace: {tried.stderr.strip()}" if tried.returncode else None


class TestOutput:
    def test_standard_output_is_the_programs_alone(self, run: Runner, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        lines = run.folder / "lines.jsonl"
        done = run(
            "sh",
            "-c",
            f"printf 'a\\0b'; curl -sS -o /dev/null http://{HERE}:{upstream.port}/v1",
            options=["--lines", str(lines)],
        )
        assert (done.status, done.stdout) == (0, "a\0b")
        (line,) = lines.read_text("utf-8").splitlines()
        assert (json.loads(line)["action"], json.loads(line)["path"]) == ("upgrade", "/v1")
        assert stat.S_IMODE(lines.stat().st_mode) & 0o007 == 0

    def test_lines_may_go_to_standard_error(self, run: Runner, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        done = run(*CURL, f"http://{HERE}:{upstream.port}/v1", options=["-q", "--lines", "-"])
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        assert [line["action"] for line in lines] == ["upgrade"]
        assert "past it" not in done.stderr

    @pytest.mark.skipif(sys.platform != "linux", reason="limits another process (Linux)")
    def test_lines_that_cannot_be_written_are_said_once_and_the_program_goes_on(
        self, run: Runner, tls_upstream: MakeTls
    ) -> None:
        """As on a full disk: from then on, no file may grow."""
        upstream = tls_upstream(HERE, address=HERE)
        script = f"echo begun; read line; for i in 1 2 3; do curl -sS http://{HERE}:{upstream.port}/v1 >&2; done"
        options = ["--lines", str(run.folder / "lines.jsonl")]
        with run.started("sh", "-c", script, options=options) as process:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
            _, stderr = process.communicate("go on\n", DEADLINE)
            assert process.returncode == 0
        assert stderr.count("decision lines are not written any more: file too large") == 1
        assert "3 requests" in stderr
        assert "Traceback" not in stderr

    def test_a_file_for_lines_that_cannot_be_written_starts_nothing(self, run: Runner, tmp_path: Path) -> None:
        done = run("sh", "-c", "echo begun", options=["--lines", str(tmp_path)])
        assert (done.status, done.stdout) == (1, "")
        assert "decision lines cannot be written" in done.stderr


class TestTheProgram:
    def test_its_exit_status_is_returned(self, run: Runner) -> None:
        assert run("sh", "-c", "exit 7").status == 7
        assert run("sh", "-c", "kill -USR1 $$").status == 128 + signal.SIGUSR1
        assert run("sh", "-c", "kill -KILL $$").status == 128 + signal.SIGKILL

    def test_one_that_does_not_exist_is_127_and_one_that_cannot_run_126(self, run: Runner) -> None:
        missing = run("no-such-program")
        assert (missing.status, missing.stderr) == (127, "error: there is no program no-such-program in $PATH\n")
        assert run("/etc/passwd").status == 126

    def test_a_wrong_policy_is_2_and_nothing_is_run(self, run: Runner) -> None:
        run.write("rules: [{}]")
        done = run("sh", "-c", "echo begun")
        assert (done.status, done.stdout) == (2, "")
        assert "policy.yaml:4:" in done.stderr

    def test_its_options_are_not_taken_for_ours(self, run: Runner) -> None:
        assert run("echo", "--json", "-q", "--", "-p").stdout == "--json -q -- -p\n"

    def test_redirected_files_and_its_folder_are_as_without(self, run: Runner, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        os.write(writing, b"from 9\n")
        os.close(writing)
        script = f"cat /dev/fd/{reading}; pwd; ulimit -c"
        done = subprocess.run(
            run.command(["-q"], ["sh", "-c", script]),
            capture_output=True,
            text=True,
            env=run.environment({}),
            cwd=tmp_path,
            pass_fds=[reading],
            check=True,
        )
        os.close(reading)
        core = subprocess.run(["sh", "-c", "ulimit -c"], capture_output=True, text=True, check=True).stdout
        assert done.stdout == f"from 9\n{tmp_path}\n{core}"

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1"])
    def test_a_signal_is_passed_on_once(self, run: Runner, name: str) -> None:
        script = f"""
import signal, time
got = []
signal.signal(signal.{name}, lambda *_: got.append(1))
print("begun", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)  # for one too many
print(len(got), flush=True)
raise SystemExit(9)
"""
        with run.started(sys.executable, "-c", script, options=["-q"]) as process:
            process.send_signal(getattr(signal, name))
            stdout, _ = process.communicate(timeout=DEADLINE)
            assert (process.returncode, stdout) == (9, "1\n")

    def test_systemd_is_told_by_the_program_alone_that_it_is_ready(self, run: Runner, tmp_path: Path) -> None:
        path = str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.setblocking(False)
            assert run("sh", "-c", "echo $NOTIFY_SOCKET", env={"NOTIFY_SOCKET": path}).stdout == f"{path}\n"
            with pytest.raises(BlockingIOError):
                manager.recv(1)

    def test_its_signals_begin_as_they_were(self, run: Runner) -> None:
        def numbers(text: str) -> list[int]:
            own = 0b11 << 31  # 32 and 33 are the C library's
            return [int(line.split()[1], 16) & ~own for line in text.splitlines()]

        script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
        without = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert numbers(run("sh", "-c", script).stdout) == numbers(without.stdout)

    def test_the_folder_of_its_files_is_public_and_gone_afterwards(self, run: Runner) -> None:
        done = run("sh", "-c", "stat -c %a $(dirname $SSL_CERT_FILE); dirname $SSL_CERT_FILE")
        mode, folder = done.stdout.split()
        assert mode == "755"
        assert not Path(folder).exists()

    def test_a_secret_of_the_policys_is_not_handed_on(self, run: Runner) -> None:
        run.write("keys: {app: {alg: A256KW, primary: {kid: app, key: {env: APP_KEY}}}}")
        env = {"APP_KEY": json.dumps(to_jwk(new_key(Alg.A256KW, kid="app"), private=True)), "OTHER": "kept"}
        done = run("sh", "-c", "echo ${APP_KEY-unset} $OTHER", env=env)
        assert (done.status, done.stdout) == (0, "unset kept\n"), done.stderr
        assert "APP_KEY" in done.stderr


def can_have_private_roots() -> bool:
    """Return whether the kernel allows them here."""
    script = "from proxy.wearing.privateroots import enter; enter('/dev/null')"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


READS_SYSTEMS_ROOTS = """
import os, ssl, sys, urllib.request
for name in [name for name in os.environ if "CERT" in name or "CA" in name]:
    del os.environ[name]
file = next(p for p in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt") if os.path.exists(p))
urllib.request.urlopen(sys.argv[1], context=ssl.create_default_context(cafile=file)).read()
print(os.getuid(), os.path.getsize(file), flush=True)
"""


class TestPrivateRoots:
    """A program that reads the system's file and no variable."""

    @pytest.fixture(autouse=True)
    def _possible(self) -> None:
        if not can_have_private_roots():
            pytest.skip("this kernel or container allows no mount namespace")

    def ask(self, run: Runner, upstream: TlsUpstream, *options: str, user: int | None = None) -> Run:
        run.write(f"rules: [{{name: seen, hosts: ['{HERE}:{upstream.port}'], https: inspect}}]")
        url = f"https://{HERE}:{upstream.port}/v1"
        return run(sys.executable, "-c", READS_SYSTEMS_ROOTS, url, options=["-q", *options])

    def test_it_trusts_the_local_ca(self, run: Runner, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        before = Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()
        done = self.ask(run, upstream, "--private-roots")
        assert (done.status, done.stdout.split()[0]) == (0, str(os.getuid())), done.stderr
        assert int(done.stdout.split()[1]) > len(before)
        upstream.wait_for_requests(1)

    def test_nobody_else_sees_it_where_mounts_are_shared(self, run: Runner) -> None:
        """As systemd shares them: what is mounted in one namespace appears in the others."""
        command = shlex.join(run.command(["-q", "--private-roots"], ["true"]))
        script = f"{command} && cat /etc/ssl/certs/ca-certificates.crt"
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "shared", "sh", "-c", script],
            capture_output=True,
            env=run.environment({}),
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()

    def test_without_it_does_not(self, run: Runner, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        done = self.ask(run, upstream)
        assert done.status == 1
        assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
        upstream.assert_no_application_bytes()

    def test_wget_of_gnutls_works_without_its_variable(self, run: Runner, tls_upstream: MakeTls) -> None:
        wget = shutil.which("wget")
        if (
            wget is None
            or "gnutls" not in subprocess.run([wget, "-V"], capture_output=True, text=True, check=True).stdout
        ):
            pytest.skip("there is no wget with GnuTLS here")
        upstream = tls_upstream(HERE, address=HERE)
        run.write(f"rules: [{{name: seen, hosts: ['{HERE}:{upstream.port}'], https: inspect}}]")
        ask = f"unset WGETRC; wget -q -O - https://{HERE}:{upstream.port}/v1"
        assert run("sh", "-c", ask, options=["-q"]).status == 5  # SSL verification failure
        assert run("sh", "-c", ask, options=["-q", "--private-roots"]).status == 0

    def test_whoever_is_not_root_gets_a_user_namespace(self, run: Runner, tls_upstream: MakeTls) -> None:
        """Here a root that lacks the right to mount, which is what others lack."""
        if shutil.which("setpriv") is None or os.getuid() != 0:
            pytest.skip("taking rights away needs setpriv and root")
        upstream = tls_upstream(HERE, address=HERE)
        run.write(f"rules: [{{name: seen, hosts: ['{HERE}:{upstream.port}'], https: inspect}}]")
        ask = [sys.executable, "-c", READS_SYSTEMS_ROOTS, f"https://{HERE}:{upstream.port}/v1"]
        without = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
        done = subprocess.run(
            [*without, *run.command(["-q", "--private-roots"], ask)],
            capture_output=True,
            text=True,
            env=run.environment({}),
            timeout=DEADLINE,
            check=False,
        )
        if "no mount namespace can be had" in done.stderr:
            pytest.skip(done.stderr)
        assert (done.returncode, done.stdout.split()[0]) == (0, "0"), done.stderr

    def test_the_status_and_signals_are_the_programs_as_ever(self, run: Runner) -> None:
        assert run("sh", "-c", "exit 7", options=["--private-roots"]).status == 7
        assert run("sh", "-c", "kill -TERM $$", options=["--private-roots"]).status == 128 + signal.SIGTERM
        script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
        assert run("sh", "-c", script, options=["--private-roots"]).stdout == run("sh", "-c", script).stdout

    def test_where_the_kernel_does_not_allow_it_nothing_is_run(self, run: Runner) -> None:
        """A root without CAP_SYS_ADMIN, where no further user namespace may be made either."""
        if shutil.which("setpriv") is None or os.getuid() != 0:
            pytest.skip("taking rights away needs setpriv and root")
        full = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin "
        drop = "--inh-caps -sys_admin " + shlex.join(run.command(["--private-roots"], ["sh", "-c", "echo begun"]))
        done = subprocess.run(
            ["unshare", "-U", "-r", "-m", "sh", "-c", full + drop],
            capture_output=True,
            text=True,
            env=run.environment({}),
            timeout=DEADLINE,
            check=False,
        )
        if "max_user_namespaces" in done.stderr:
            pytest.skip("the limit of user namespaces cannot be set here")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "no mount namespace can be had here" in done.stderr


class TestEnds:
    """Whoever ends first."""

    def test_the_sidecar_ends_with_the_program(self, run: Runner) -> None:
        with run.started("sh", "-c", "echo begun; read line") as process:
            sidecar = sidecar_of(process.pid)
            process.communicate("\n", timeout=DEADLINE)
            assert not is_alive(sidecar)

    def test_the_sidecar_ends_when_run_is_killed(self, run: Runner) -> None:
        with run.started("sh", "-c", "echo begun; exec sleep 30") as process:
            sidecar = sidecar_of(process.pid)
            (program,) = (each for each in children(process.pid) if each != sidecar)
            process.kill()
            wait_until(lambda: not is_alive(sidecar), "the end of the sidecar")
            os.kill(program, signal.SIGKILL)

    def test_a_program_whose_sidecar_is_gone_has_no_way_out_and_that_is_said(
        self, run: Runner, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        script = f"echo begun; read line; curl -sS http://{HERE}:{upstream.port}/v1; exit 5"
        with run.started("sh", "-c", script, options=["--json"]) as process:
            os.kill(sidecar_of(process.pid), signal.SIGKILL)
            assert process.stderr is not None
            said = next(line for line in process.stderr if "the sidecar" in line)
            stdout, stderr = process.communicate("\n", timeout=DEADLINE)
        assert said == "overcoat: error: the sidecar has ended of signal 9: sh has no way out through it any more\n"
        assert (process.returncode, stdout) == (5, "")
        assert '"sidecar_ended_early": true' in stderr
        upstream.assert_untouched()

    def test_a_signal_to_all_processes_leaves_the_sidecar_to_the_program(
        self, run: Runner, tls_upstream: MakeTls
    ) -> None:
        """systemd sends SIGTERM to every process of a service: the program may still have something to say."""
        upstream = tls_upstream(HERE, address=HERE)
        script = f"trap : TERM; echo begun; read line; curl -sS http://{HERE}:{upstream.port}/v1 >/dev/null"
        with run.started("sh", "-c", script, options=["-q"]) as process:
            for _ in range(2):
                os.kill(sidecar_of(process.pid), signal.SIGTERM)
            process.communicate("\n", timeout=DEADLINE)
        assert process.returncode == 0
        assert len(upstream.wait_for_requests(1)) == 1

    def test_what_the_program_leaves_behind_is_named(self, run: Runner) -> None:
        done = run("sh", "-c", "sleep 30 >/dev/null 2>&1 & echo $!")
        assert f"which has ended: sleep ({done.stdout.strip()})" in done.stderr
        os.kill(int(done.stdout), signal.SIGKILL)

    def test_what_the_program_leaves_behind_is_waited_for_if_asked(self, run: Runner, tls_upstream: MakeTls) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        later = f"(sleep 0.5; curl -sS -o /dev/null http://{HERE}:{upstream.port}/late) & exit 3"
        done = run("sh", "-c", later, options=["--wait", "--json"])
        assert (done.status, done.report["actions"]) == (3, {"upgrade": 1})


# Makes the terminal that is its standard input its own, as a login does, and becomes bash.
LOGIN = """
import fcntl, os, signal, termios
for number in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)  # where tests run in the background, they are ignored, and would stay so
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
"""


class Shell:
    """An interactive shell on a terminal of its own, as a person has it."""

    def __init__(self, run: Runner) -> None:
        self._terminal, inner = os.openpty()
        env = run.environment({"PS1": "$ ", "TERM": "dumb"})
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOGIN], stdin=inner, stdout=inner, stderr=inner, env=env
        )
        os.close(inner)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> None:
        start = len(self.text)
        end = time.monotonic() + DEADLINE
        while text not in self.text[start:] and time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.text += os.read(self._terminal, 4096).decode("utf-8", "replace")
        assert text in self.text[start:], self.text

    def close(self) -> None:
        os.close(self._terminal)
        self._process.kill()
        self._process.wait()


@pytest.fixture
def shell(run: Runner) -> Iterator[Shell]:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    shell = Shell(run)
    yield shell
    shell.close()


COUNTING = """
import signal, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print("begun", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)  # for one too many
print("got", len(got), flush=True)
"""


class TestOnATerminal:
    def test_ctrl_c_comes_once_and_ends_a_loop_of_the_shell(self, run: Runner, shell: Shell) -> None:
        (run.folder / "counting.py").write_text(COUNTING, "utf-8")
        counting = run.command(["-q"], [sys.executable, str(run.folder / "counting.py")])
        shell.type(shlex.join(counting) + "\n")
        shell.wait_for("begun")
        shell.type("\x03")
        shell.wait_for("got 1")
        loop = shlex.join(run.command(["-q"], ["sh", "-c", "echo aga''in; sleep 20"]))
        shell.type(f"for i in 1 2; do {loop}; done; echo af''ter\n")
        shell.wait_for("again")
        shell.type("\x03")
        shell.type("echo status $?\n")
        shell.wait_for("status 130")
        assert shell.text.count("again") == 1

    def test_ctrl_z_stops_both_and_fg_lets_both_go_on(self, run: Runner, shell: Shell) -> None:
        command = run.command(["-q"], ["sh", "-c", "echo be''gun; read line; echo re''ad $line; exit 4"])
        shell.type(shlex.join(command) + "\n")
        shell.wait_for("begun")
        shell.type("\x1a")
        shell.wait_for("Stopped")
        shell.type("fg\n")
        shell.wait_for("run")
        shell.type("xyz\n")
        shell.wait_for("read xyz")
        shell.type("echo status $?\n")
        shell.wait_for("status 4")

    def test_a_program_that_stops_itself_gives_the_shell_its_prompt(self, run: Runner, shell: Shell) -> None:
        command = run.command(["-q"], ["bash", "-c", "echo be''gun; kill -STOP $$; echo go''ing on"])
        shell.type(shlex.join(command) + "\n")
        shell.wait_for("begun")
        shell.wait_for("Stopped")
        shell.type("fg\n")
        shell.wait_for("going on")

    def test_a_program_that_dies_with_the_terminal_gives_it_back(self, run: Runner, shell: Shell) -> None:
        """To a script, which has no job control of its own to take it back with."""
        inner = shlex.join(run.command(["-q"], ["bash", "--norc", "--noprofile", "-i"]))
        shell.type(f"""sh -c '{inner}; read line; echo g""ot $line'\n""")
        shell.type("echo in''side; kill -KILL $$\n")
        shell.wait_for("inside")
        shell.type("xyz\n")
        shell.wait_for("got xyz")

    def test_an_interactive_shell_works_inside(self, run: Runner, shell: Shell) -> None:
        shell.type(shlex.join(run.command(["-q"], ["bash", "--norc", "--noprofile", "-i"])) + "\n")
        shell.type("echo in''side $HTTPS_PROXY; sleep 20\n")
        shell.wait_for("inside http://127.0.0.1:")
        shell.type("\x03")
        shell.type("exit 6\n")
        shell.type("read line; echo status $? $line\n")
        shell.type("back\n")
        shell.wait_for("back")


NODE = """
import http from 'node:http';
import https from 'node:https';

const [, , port] = process.argv;
const plain = `http://127.0.0.2:${port}`;
function ask(options) {
  return new Promise((resolve) => {
    const module = options.protocol === 'https:' ? https : http;
    module
      .request({ host: '127.0.0.2', port, ...options }, (response) => {
        response.resume().on('end', () => resolve(console.log(options.path, response.statusCode)));
      })
      .on('error', (error) => resolve(console.log(options.path, error.code)))
      .end();
  });
}
await ask({ path: '/plain' });
await ask({ path: '/no-agent', agent: false });
await ask({ path: '/own-agent', agent: new http.Agent() });
await ask({ path: '/raw-headers', headers: ['Host', `127.0.0.2:${port}`] });
await ask({ path: '/expect', headers: { Expect: '100-continue' } });
await ask({ path: '/https', protocol: 'https:' });
class Own extends https.Agent {
  createConnection(...all) {
    console.log('own connection');
    return super.createConnection(...all);
  }
}
await ask({ path: '/https-own', protocol: 'https:', agent: new Own() });
console.log('/fetch', (await fetch(`${plain}/fetch`)).status, (await fetch(`https://127.0.0.2:${port}/fetch-s`)).status);
const server = http.createServer((request, response) => response.end('here')).listen(0, '127.0.0.1', async () => {
  const local = `http://127.0.0.1:${server.address().port}/local`;
  http.get(local, async (response) => {
    response.resume();
    console.log('/local', response.statusCode, (await fetch(local)).status);
    process.exit(0);
  });
});
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
class TestNode:
    """Versions that do not read the proxy variables by themselves are made to; newer ones do it themselves."""

    def test_every_way_of_nodes_own_goes_through_and_localhost_does_not(
        self, run: Runner, tls_upstream: MakeTls
    ) -> None:
        upstream = tls_upstream(HERE, address=HERE)
        run.write(f"rules: [{{name: seen, hosts: ['{HERE}:{upstream.port}'], https: inspect}}]")
        (run.folder / "ask.mjs").write_text(NODE, "utf-8")
        done = run("node", str(run.folder / "ask.mjs"), str(upstream.port), options=["--json"])
        assert done.status == 0, done.stderr
        paths = ["/plain", "/no-agent", "/own-agent", "/raw-headers", "/expect", "/https", "/https-own"]
        assert done.stdout.splitlines() == [
            *(f"{path} 200" for path in paths[:-1]),
            "own connection",
            "/https-own 200",
            "/fetch 200 200",
            "/local 200 200",
        ]
        asked = {request.target: request.connection.tls_version for request in upstream.wait_for_requests(9)}
        assert set(asked) == {*paths, "/fetch", "/fetch-s"}
        assert done.report["actions"]["upgrade"] == 6
        assert done.report["denials"] == []

    def test_a_refused_tunnel_says_why(self, run: Runner) -> None:
        script = "require('https').get('https://192.0.2.1/').on('error', (error) => console.log(error.message))"
        done = run("node", "-e", script, options=["-q"])
        assert "destination_forbidden" in done.stdout

    def test_options_of_the_users_hold(self, run: Runner) -> None:
        env = {"NODE_OPTIONS": "--title=mine"}
        assert run("node", "-p", "process.title", options=["-q"], env=env).stdout == "mine\n"


@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php here")
def test_phps_script_before_all_others_leaves_the_users_own_in_its_place(run: Runner) -> None:
    (run.folder / "earlier.php").write_text('<?php echo "earlier ";', "utf-8")
    (run.folder / "own.ini").write_text(f'auto_prepend_file = "{run.folder}/earlier.php"\n', "utf-8")
    (run.folder / "main.php").write_text("<?php echo isset($overcoat_next) ? 'leaks' : 'clean';", "utf-8")
    env = {"PHP_INI_SCAN_DIR": f":{run.folder}"}
    assert run("php", str(run.folder / "main.php"), options=["-q"], env=env).stdout == "earlier clean"
