"""`docker compose --profile observe up`: a Prometheus as docker-compose.yml configures it scrapes the sidecar, has the
alerts, and finds what the dashboard asks for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.alerts import ALERTS
from tests.containers.engine import copy_of_the_clone, evidence_of, readable_for_all

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
COMPOSE = """
name: overcoat-observe
include: [{path: [example.yml, observe.yaml]}]
"""

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found while the services were up."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("observe") / "clone"
    copy_of_the_clone(folder)
    example = (folder / "docker-compose.yml").read_text(encoding="utf-8")
    (folder / "example.yml").write_text(example.replace("name: overcoat-example\n", ""))
    (folder / "docker-compose.yml").write_text(COMPOSE)
    shutil.copy(HERE / "observe.yaml", folder)
    (folder / "programs").mkdir()
    shutil.copy(prometheus, folder / "programs")
    readable_for_all(folder)
    env = {"COMPOSE_PROFILES": "observe"}
    return evidence_of(folder, HERE / "observe_probe.py", folder / "evidence.json", env=env)


def test_prometheus_scrapes_the_sidecar_and_has_the_alerts(evidence: dict[str, Any]) -> None:
    (target,) = evidence["targets"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    (group,) = evidence["rules"]["groups"]
    assert [(rule["name"], rule["health"]) for rule in group["rules"]] == [(alert.name, "ok") for alert in ALERTS]
    (series,) = evidence["charged"]["result"]
    assert float(series["value"][1]) == 2


def test_grafana_is_given_that_prometheus_and_the_dashboard() -> None:
    """As files: there is no Grafana to start here."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    mounts = dict(each.split(":")[1::-1] for each in services["grafana"]["volumes"])
    provisioning = ROOT / mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "overcoat.yml").read_text())["providers"]
    dashboard = provider["options"]["path"]
    assert dashboard == services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads((ROOT / mounts[dashboard]).read_text())["title"]
