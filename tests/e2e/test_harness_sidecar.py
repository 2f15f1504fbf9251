"""The process runner of the harness, with a stand-in for the product, and the names that it resolves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.sidecar import Metrics, Sidecar, SidecarFailed, clean_environment, overcoat_command

STUB = """\
import http.server, json, os, signal, sys, threading, time
if sys.argv[1] == "ca":
    print("-----BEGIN CERTIFICATE-----")
    sys.exit(0)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(json.dumps({"action": "deny", "path": self.path}), flush=True)
        body = b'# TYPE hits counter\\nhits_total{way="in",code="200"} 2.0\\nhits_total{way="out",code="200"} 3.0\\n'
        self.send_response(200 if self.path == "/metrics" else 503)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
MODE
signal.signal(signal.SIGTERM, lambda *_: os._exit(STATUS))
signal.signal(signal.SIGHUP, lambda *_: (os.write(2, b"reloaded\\n"), os._exit(0)))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
address = "127.0.0.1:%d" % server.server_port
print("starting", "x" * 200_000, file=sys.stderr)
facts = {"event": "ready", "listen": [address, address], "admin": address, "probes": None}
print(json.dumps(facts), file=sys.stderr, flush=True)
server.serve_forever()
"""


class TestSidecar:
    @pytest.fixture
    def stub(self, tmp_path: Path) -> Callable[..., Sidecar]:
        """Makes sidecars that start a stand-in for the product."""

        def make(mode: str = "", status: int = 0, policy: str = "mode: enforce", **options: Any) -> Sidecar:
            script = tmp_path / "stub.py"
            script.write_text(STUB.replace("MODE", mode).replace("STATUS", str(status)))
            return Sidecar(policy, tmp_path, command=[sys.executable, str(script)], **options)

        return make

    def test_it_knows_the_addresses_the_decisions_and_the_metrics(self, stub: Callable[..., Sidecar]) -> None:
        with stub() as sidecar:
            assert len(sidecar.listen) == 2
            assert sidecar.proxy_url == f"http://{sidecar.listen[0]}"
            assert sidecar.address == ("127.0.0.1", int(sidecar.listen[0].rpartition(":")[2]))
            metrics = sidecar.metrics()
            assert metrics.value("hits_total", code="200") == 5
            assert metrics.value("hits_total", way="in") == 2
            assert metrics.value("misses_total") == 0
            assert sidecar.admin_get("/ready")[0] == 503
            assert sidecar.wait_for_decision(lambda d: d["path"] == "/ready")["action"] == "deny"
            assert [d["path"] for d in sidecar.wait_for_decisions(2)] == ["/metrics", "/ready"]
            assert sidecar.ca_file.read_text().startswith("-----BEGIN")
            assert sidecar.stop() == 0

    def test_a_decision_that_never_comes_fails_the_wait(self, stub: Callable[..., Sidecar]) -> None:
        with stub() as sidecar, pytest.raises(AssertionError, match=r"no such decision within 0.1 s"):
            sidecar.wait_for_decision(deadline=0.1)

    def test_output_that_is_no_decision_fails_the_test(self, stub: Callable[..., Sidecar]) -> None:
        with stub('print("hello", flush=True)') as sidecar, pytest.raises(AssertionError, match=r"no JSON: 'hello\\n'"):
            sidecar.wait_for_decision()

    def test_one_that_dies_at_once_shows_its_status_and_its_reasons(self, stub: Callable[..., Sidecar]) -> None:
        with pytest.raises(SidecarFailed, match=r"status 2(.|\n)*policy.yaml:1:1") as failure:
            stub('print("policy.yaml:1:1", file=sys.stderr); sys.exit(2)').start()
        assert failure.value.status == 2

    def test_one_that_is_never_ready_is_ended(self, stub: Callable[..., Sidecar]) -> None:
        sidecar = stub("time.sleep(60)", deadline=0.3)
        with pytest.raises(SidecarFailed, match="was not ready within"):
            sidecar.start()
        with pytest.raises(ProcessLookupError):
            os.kill(sidecar.pid, 0)

    def test_a_status_other_than_0_at_its_end_fails_the_test(self, stub: Callable[..., Sidecar]) -> None:
        with pytest.raises(SidecarFailed, match="status 3 at SIGTERM"), stub(status=3):
            pass

    def test_one_that_ends_by_itself_fails_the_test_unless_the_test_waits_for_it(
        self, stub: Callable[..., Sidecar]
    ) -> None:
        with stub() as sidecar:
            sidecar.signal(signal.SIGHUP)
            assert sidecar.wait() == 0
            assert sidecar.stderr.endswith("reloaded\n")
        sidecar = stub()
        sidecar.start()
        os.kill(sidecar.pid, signal.SIGKILL)
        os.waitid(os.P_PID, sidecar.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(SidecarFailed, match="ended by itself with status -9"):
            sidecar.__exit__(None, None, None)

    def test_a_failing_test_shows_the_standard_error(self, stub: Callable[..., Sidecar]) -> None:
        with pytest.raises(LookupError) as failure, stub():
            raise LookupError
        (note,) = failure.value.__notes__
        assert '"event": "ready"' in note
        assert len(note) < 10_000

    def test_what_a_policy_leaves_out_is_added_at_its_end(
        self, stub: Callable[..., Sidecar], authority: Authority
    ) -> None:
        sidecar = stub(policy="\n    mode: enforce\n    admin: 127.0.0.1:1\n    rules: []\n", authority=authority)
        assert sidecar.policy_file.read_text().splitlines() == [
            "mode: enforce",
            "admin: 127.0.0.1:1",
            "rules: []",
            "version: 1",
            "listen: [forward://127.0.0.1:0]",
            "destinations: {allow: [loopback]}",
            "trust: {roots: roots.pem}",
        ]
        assert (sidecar.policy_file.parent / "roots.pem").read_bytes() == authority.pem

    def test_its_environment_has_no_proxy_and_no_setting_of_this_machine(
        self, stub: Callable[..., Sidecar], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("OVERCOAT_MODE", "observe")
        watched = '{k: v for k, v in os.environ.items() if "PROXY" in k.upper() or k.startswith("OVERCOAT")}'
        show = f"print(json.dumps({watched}), flush=True)"
        with stub(show, env={"OVERCOAT_ONE": "1"}) as sidecar:
            assert sidecar.wait_for_decision() == {"OVERCOAT_DATA": str(sidecar.data), "OVERCOAT_ONE": "1"}


class TestNames:
    def resolve(self, name: str, table: dict[str, str]) -> str:
        """Resolve a name with asyncio, as the product would, in a process with the table."""
        folder = Path(__file__).parent
        script = (
            "import asyncio, json, sys; sys.path.append(sys.argv[1]); import named_hosts\n"
            "named_hosts.install(json.loads(sys.argv[2]))\n"
            "async def ask(): return await asyncio.get_running_loop().getaddrinfo(sys.argv[3], 443, type=1)\n"
            "try: print(asyncio.run(ask())[0][4][0])\n"
            "except OSError as error: print(type(error).__name__)"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, str(folder), json.dumps(table), name],
            capture_output=True,
            text=True,
            check=True,
            env=clean_environment(),
        )
        return done.stdout.strip()

    @pytest.mark.parametrize(
        ("name", "address"),
        [
            ("api.pay.example", "127.0.0.2"),
            ("API.pay.example.", "127.0.0.2"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("pay.example", "gaierror"),
        ],
    )
    def test_the_table_and_this_machine_are_all_that_resolves(self, name: str, address: str) -> None:
        assert self.resolve(name, {"api.pay.example": "127.0.0.2"}) == address

    def test_only_a_test_that_needs_names_starts_the_product_in_another_way(self) -> None:
        installed = Path(sys.executable).with_name("overcoat")
        assert overcoat_command({"a.example": "127.0.0.1"})[2].endswith("named_hosts.py")
        assert (overcoat_command() == [str(installed)]) == installed.exists()


def test_metrics_are_summed_over_the_labels_that_are_not_named() -> None:
    metrics = Metrics.parse('# TYPE a gauge\na{x="1",y="1"} 1\na{x="1",y="2"} 2\na{x="2",y="1"} 4\n')
    assert (metrics.value("a"), metrics.value("a", x="1"), metrics.value("a", x="1", y="2")) == (7, 3, 2)
    assert metrics.labels("a")[0] == {"x": "1", "y": "1"}
