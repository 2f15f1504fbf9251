"""The README's compose snippet as it stands there, with its policy, on a tenth of a processor: it comes up healthy, a
Prometheus in the same network scrapes it with the configuration and the alerts of docs/metrics.md, and it is probed.

Only what the snippet leaves to its reader is added: an app, and how much processor time there is (`beside.yaml`).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs.alerts import ALERTS
from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_pem
from tests.containers.engine import copy_of_the_clone, evidence_of, readable_for_all

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
COMPOSE = """
name: overcoat-readme
include: [{path: [readme.yaml, beside.yaml]}]
"""

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


def block(paper: str, word: str) -> str:
    """Return the first YAML block of a paper that begins with a word."""
    text = (ROOT / paper).read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S)
    return next(code for code in blocks if code.startswith(word))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found while the services were up."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docker-compose.yml").write_text(COMPOSE)
    (folder / "readme.yaml").write_text(block("README.md", "services:"))
    copy_of_the_clone(folder / "overcoat")
    policy, beside = folder / "policy", folder / "prometheus"
    policy.mkdir()
    beside.mkdir()
    (policy / "overcoat.yaml").write_text(block("README.md", "version:"))
    (policy / "pay-2026.pub.pem").write_bytes(to_pem(new_key(Alg.ECDH_ES_A256KW), private=False))
    quick = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
    (beside / "prometheus.yml").write_text(quick + block("docs/metrics.md", "rule_files:"))
    shutil.copy(ROOT / "config" / "prometheus" / "overcoat.rules.yml", beside)
    shutil.copy(prometheus, beside / "prometheus")
    for name in ("beside.yaml", "snippet_app.py"):
        shutil.copy(HERE / name, folder)
    readable_for_all(folder)
    return evidence_of(folder, HERE / "readme_probe.py", folder / "evidence.json")


def test_it_is_healthy_on_a_tenth_of_a_processor(evidence: dict[str, Any]) -> None:
    sidecar = evidence["overcoat"]
    assert sidecar["processors"] == 0.1
    assert sidecar["health"]["Status"] == "healthy", sidecar
    # Docker says -1 of a check that took too long; 1 is one that came before the sidecar was up.
    assert {each["ExitCode"] for each in sidecar["health"]["Log"]} <= {0, 1}
    status, seconds = sidecar["cost"].split()[-2:]
    assert status == "0"
    assert float(seconds) < 0.5  # some five hundredths, and ten times as much before


def test_a_prometheus_beside_it_scrapes_it_and_loads_the_alerts(evidence: dict[str, Any]) -> None:
    (target,) = evidence["targets"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["scrapeUrl"] == "http://overcoat:9464/metrics"
    (series,) = evidence["failed"]["result"]
    assert (series["metric"]["rule"], series["metric"]["job"]) == ("payments", "overcoat")
    (group,) = evidence["rules"]["groups"]
    assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(alert.name, "ok") for alert in ALERTS]


def test_the_app_is_served_and_whoever_probes_it_gets_an_answer_and_no_more(evidence: dict[str, Any]) -> None:
    found = json.loads(evidence["app"])
    assert json.loads(found["through"][1])["rule"] == "payments"  # there is no such server, but it went so far
    assert found["live"] == [200, "live\n"]
    assert found["ready"] == [200, "ready\n"]
    assert found["no metrics there"][0] == 404
    assert found["metrics"][0] == 200
    assert found["rebound"][0] == 421
