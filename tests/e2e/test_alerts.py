"""Every alert fires in a real Prometheus that scrapes a running sidecar: on one event, and on many between two scrapes.

Rules of this module:

- Prometheus listens on loopback, keeps its data in the test's folder, and ends with the test. The rules are those that
  are shipped, but for how long an alert waits.
- What happens between two scrapes is made certain: Prometheus is stopped meanwhile.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pytest

from docs.alerts import ALERTS
from proxy.disk.ca import LocalCa
from tests.e2e.app import request
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.processes import children
from tests.e2e.receiver import Receiver
from tests.e2e.reloading import reload
from tests.e2e.sidecar import ROOT, Sidecar, overcoat_command
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

RULES = ROOT / "config" / "prometheus" / "overcoat.rules.yml"
DEADLINE = 60.0
CA_LIFE = timedelta(days=5 * 365)
PIN = "sha256/" + base64.b64encode(hashlib.sha256(b"nobody's key").digest()).decode()
NAMES = (
    "pinned.example",
    "expired.example",
    "seen.example",
    "invalid.example",
    "late.example",
    "fields.example",
    "nokey.example",
)
HOSTS = dict.fromkeys(NAMES, "127.0.0.1")
POLICY = """
    keys:
      good: {{alg: ECDH-ES+A256KW, primary: {{file: {key}}}}}
      old: {{alg: ECDH-ES+A256KW, primary: {{file: {key}, not_after: 2020-01-01}}}}
    rules:
      - {{name: pinned, hosts: [pinned.example], pins: {{any_of: ["{pin}"]}}}}
      - {{name: expired, hosts: [expired.example], pins: {{any_of: ["{pin}"], expires: 2020-01-01}}}}
      - {{name: lapsed, hosts: [lapsed.example], pins: {{any_of: ["{pin}"], expires: 2020-01-01, after_expiry: warn}}}}
      - {{name: seen, hosts: [seen.example], pins: {{any_of: ["{pin}"], mode: observe}}}}
      - {{name: soon, hosts: [soon.example], pins: {{any_of: ["{pin}"], expires: {soon}}}}}
      - {{name: invalid, hosts: [invalid.example]}}
      - {{name: fields, hosts: [fields.example], request: [{{encrypt: ["$.a"], key: good}}]}}
      - {{name: nokey, hosts: [nokey.example], request: [{{encrypt: ["$.a"], key: old}}]}}
      - {{name: gone, hosts: [gone.example]}}
"""
LATE = """\
      - {{name: late, hosts: [late.example], pins: {{any_of: ["{pin}"]}}}}
"""
# Starts the command with a gate that does not open.
FAULTY = f"""
import sys
sys.path.append({str(ROOT)!r})
from addons.gate import Gate

def broken(*_):
    raise RuntimeError

Gate.requestheaders = broken
sys.argv[0] = "overcoat"
from proxy.cli import main
main()
"""
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: overcoat
    file_sd_configs: [{{files: [targets.json], refresh_interval: 1s}}]
"""


class Prometheus:
    """A Prometheus that scrapes sidecars every second; a context manager."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not installed (Debian: prometheus)")
        self.program = program
        self.folder = folder
        self.targets: list[str] = []

    def __enter__(self) -> Self:
        (self.folder / "prometheus.yml").write_text(CONFIG.format())
        rules = re.sub(r"^( +for: ).*$", r"\g<1>1s", RULES.read_text(), flags=re.MULTILINE)
        (self.folder / "rules.yml").write_text(rules)
        self.scrape()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = (self.folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(
            [
                self.program,
                f"--config.file={self.folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        self.log.close()
        if error is not None:
            error.add_note((self.folder / "prometheus.log").read_text()[-4000:])

    def scrape(self, *sidecars: Sidecar) -> None:
        """Scrape these, too, from now on."""
        self.targets += [sidecar.admin_url.removeprefix("http://") for sidecar in sidecars]
        (self.folder / "targets.new").write_text(json.dumps([{"targets": self.targets}]))
        (self.folder / "targets.new").replace(self.folder / "targets.json")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it see nothing of what happens meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def get(self, path: str) -> Any:
        """Return the data of an answer of its API."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float:
        """Return the sum of what a query gives."""
        return sum(float(each["value"][1]) for each in self.get(f"query?query={quote(query)}")["result"])

    def firing(self) -> set[tuple[str, str, str]]:
        """Return the alerts that fire: name, instance and rule."""
        labels = [alert["labels"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"]
        return {(each["alertname"], each.get("instance", ""), each.get("rule", "")) for each in labels}

    def wait(self, what: str, until: Callable[[], object]) -> None:
        """Wait until it is so."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                if until():
                    return
            except (OSError, urllib.error.URLError):
                pass  # it is not up yet
            assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
            time.sleep(0.1)

    def wait_for(self, expected: set[tuple[str, str, str]]) -> None:
        """Wait until these alerts fire, all of them."""
        self.wait(f"{expected} firing", lambda: expected <= self.firing())

    def wait_for_scrapes(self, *sidecars: Sidecar) -> None:
        """Wait until each was scraped twice."""
        for sidecar in sidecars:
            self.wait("two scrapes", partial(self._was_scraped, sidecar, 2))

    def _was_scraped(self, sidecar: Sidecar, times: int) -> bool:
        return self.value(f'sum_over_time(up{{instance="{instance_of(sidecar)}"}}[1m])') >= times


def instance_of(sidecar: Sidecar) -> str:
    """Return what Prometheus calls a sidecar."""
    return sidecar.admin_url.removeprefix("http://")


def ask(sidecar: Sidecar, authority: str, body: bytes = b"{}") -> int:
    """Send a request, and return the status of the answer."""
    with RawClient(sidecar.address) as client:
        client.send(request(f"http://{authority}/", authority, body=body))
        return client.read_response().status


def signal_to_a_worker(sidecar: Sidecar) -> None:
    """Kill a worker, and wait until another has taken its place."""
    before = sidecar.metrics().value("overcoat_worker_restarts_total")
    os.kill(children(sidecar.pid)[0], signal.SIGKILL)

    def is_replaced() -> bool:
        counted = sidecar.metrics().value("overcoat_worker_restarts_total") != before
        return counted and sidecar.admin_get("/ready")[0] == 200

    wait_until(is_replaced, seconds=DEADLINE)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("count", "workers"), [(1, 1), (1, 2), (20, 2)])
def test_each_fires_on_one_event_and_on_many_between_two_scrapes(
    authority: Authority, tmp_path: Path, count: int, workers: int
) -> None:
    folders = {name: tmp_path / name for name in ("main", "faulty", "silent", "early", "prometheus")}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "faulty.py").write_text(FAULTY)
    key = Receiver("pay").write_public(folders["main"])
    soon = (datetime.now(UTC) + timedelta(days=10)).date()
    policy = f"    workers: {workers}\n" + POLICY.format(key=key, pin=PIN, soon=soon)
    with ExitStack() as stack:
        enter = stack.enter_context
        prometheus = enter(Prometheus(folders["prometheus"]))
        LocalCa.open(folders["main"] / "data", datetime.now(UTC) - CA_LIFE + timedelta(days=10), any_clock=True)
        main = enter(Sidecar(policy, folders["main"], authority=authority, hosts=HOSTS))
        command = [sys.executable, "-P", str(tmp_path / "faulty.py")]
        faulty = enter(Sidecar("", folders["faulty"], authority=authority, command=command))
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *overcoat_command()]
        silent = enter(Sidecar("mode: observe", folders["silent"], authority=authority, command=command))
        upstream = enter(TlsUpstream(authority, *NAMES))
        stranger = enter(TlsUpstream(Authority(), "invalid.example"))

        # Nothing has happened, and none fires but those that are not about events.
        prometheus.scrape(main, faulty, silent)
        prometheus.wait_for_scrapes(main, faulty, silent)
        states = {
            ("OvercoatPinsExpireSoon", instance_of(main), "expired"),
            ("OvercoatPinsExpireSoon", instance_of(main), "soon"),
            ("OvercoatPinsExpireSoon", instance_of(main), "lapsed"),
            ("OvercoatPinsLapsed", instance_of(main), "lapsed"),
            ("OvercoatLocalCaExpiresSoon", instance_of(main), ""),
            ("OvercoatKeyExpiresSoon", instance_of(main), ""),
            ("OvercoatObserves", instance_of(silent), ""),
        }
        prometheus.wait("only these firing", lambda: prometheus.firing() == states)

        with prometheus.stopped():
            for _ in range(count):
                for name in ("pinned", "expired"):
                    assert ask(main, f"{name}.example:{upstream.port}") == 502
                assert ask(main, f"invalid.example:{stranger.port}") == 502
                assert ask(main, f"seen.example:{upstream.port}") == 200
                assert ask(main, f"fields.example:{upstream.port}", b"no JSON") == 422
                assert ask(main, f"nokey.example:{upstream.port}") == 503
                assert ask(main, "10.1.2.3:80") == 403
                assert ask(main, "gone.example:80") == 502
                assert ask(faulty, f"pinned.example:{upstream.port}") == 500
                ask(silent, f"127.0.0.1:{upstream.port}")
            if workers > 1:
                for _ in range(min(count, 2)):
                    signal_to_a_worker(main)
            main.policy_file.write_text("version: 1\nrules: wrong\n")
            for _ in range(min(count, 5)):
                reload(main, result="refused")
        expected = {
            ("OvercoatPinMismatch", instance_of(main), "pinned"),
            ("OvercoatPinsExpired", instance_of(main), "expired"),
            ("OvercoatPinsWouldRefuse", instance_of(main), "seen"),
            ("OvercoatCertificateInvalid", instance_of(main), "invalid"),
            ("OvercoatFieldsFail", instance_of(main), "fields"),
            ("OvercoatKeyUnavailable", instance_of(main), "nokey"),
            ("OvercoatForbidden", instance_of(main), "-"),
            ("OvercoatRequestsFail", instance_of(main), "gone"),
            ("OvercoatReloadRefused", instance_of(main), ""),
            ("OvercoatInternalError", instance_of(faulty), ""),
            ("OvercoatDecisionLinesLost", instance_of(silent), ""),
            ("OvercoatRequestsFail", instance_of(silent), "-"),  # it sends plain http to a server of TLS
        }
        if count > 1:
            expected |= {("OvercoatMostDenied", instance_of(main), "")}
        if workers > 1:
            expected |= {("OvercoatWorkerReplaced", instance_of(main), "")}
        prometheus.wait_for(expected)

        # A rule that is new, and a sidecar that is, before Prometheus has seen either.
        with prometheus.stopped():
            main.write_policy(policy + LATE.format(pin=PIN))
            reload(main)
            refused = ("OvercoatReloadRefused", instance_of(main), "")
            expected -= {refused}
            LocalCa.open(folders["early"] / "data", datetime.now(UTC) - CA_LIFE - timedelta(days=1), any_clock=True)
            inspects = f"workers: {workers}\ndefaults: {{https: inspect}}"
            early = enter(Sidecar(inspects, folders["early"], hosts=HOSTS))
            for _ in range(count):
                assert ask(main, f"late.example:{upstream.port}") == 502
                assert ask(early, f"invalid.example:{stranger.port}") == 502
                with RawClient(early.address) as client:
                    client.send(b"CONNECT invalid.example:443 HTTP/1.1\r\nHost: invalid.example:443\r\n\r\n")
                    assert client.read_response().status == 503
        prometheus.scrape(early)
        expected |= {
            ("OvercoatPinMismatch", instance_of(main), "late"),
            ("OvercoatCertificateInvalid", instance_of(early), "-"),
            ("OvercoatLocalCaExpired", instance_of(early), "-"),
            ("OvercoatLocalCaExpiresSoon", instance_of(early), ""),
        }
        prometheus.wait_for(expected)
        prometheus.wait("the refusal is over", lambda: refused not in prometheus.firing())

        assert silent.stop() == 0
        expected |= {("OvercoatDown", instance_of(silent), "")}
        prometheus.wait_for(expected)
        assert prometheus.firing() <= expected | states  # and no other does
        # What takes load, or certificates of other ends: promtool sees them fire (tests/test_alerts.py).
        states_only = {"OvercoatUpstreamCertificateExpiresSoon", "OvercoatUpstreamErrors"}
        states_only |= {"OvercoatDescriptorsShort", "OvercoatBusy", "OvercoatClientCertificateExpiresSoon"}
        states_only |= {"OvercoatFieldsStopped", "OvercoatProtectionEnded", "OvercoatWorkerHangs"}
        states_only |= {
            "OvercoatMirrorCertificateExpiresSoon",
            "OvercoatJwksStale",
            "OvercoatRevocationListExpiresSoon",
        }
        unseen = {alert.name for alert in ALERTS} - {name for name, _, _ in expected | states | {refused}} - states_only
        few = set() if count > 1 else {"OvercoatMostDenied"}
        assert unseen == few | (set() if workers > 1 else {"OvercoatWorkerReplaced"})
