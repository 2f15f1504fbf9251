"""compose.override.example.yml beside an app of somebody's: the sidecar comes with it, and the app needs no change, has
what it trusts, and has no other way out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import copy_of_the_clone, evidence_of, readable_for_all

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
EXAMPLE = "compose.override.example.yml"
COMPOSE = f"""
name: overcoat-override
include: [{{path: [theirs.yaml, {EXAMPLE}, base.yaml]}}]
"""
THEIRS = """
services:
  app:
    image: ${PYTHON_IMAGE:-python:3.13-slim}
    command: [python3, /app.py]
    volumes: ["./override_app.py:/app.py:ro"]
"""
BASE = "services: {overcoat: {build: {args: {PYTHON_IMAGE: '${PYTHON_IMAGE:-python:3.13-slim}'}}}}\n"
POLICY = """
version: 1
clients: {allow: [private], admin: [private]}
rules: [{name: pay, hosts: [api.pay.example], https: inspect}]
"""

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found while the services were up."""
    folder = tmp_path_factory.mktemp("override")
    copy_of_the_clone(folder / "overcoat")
    (folder / "policy").mkdir()
    for name, content in (
        ("docker-compose.yml", COMPOSE),
        ("theirs.yaml", THEIRS),
        ("base.yaml", BASE),
        ("policy/overcoat.yaml", POLICY),
    ):
        (folder / name).write_text(content)
    shutil.copy(ROOT / EXAMPLE, folder)
    shutil.copy(HERE / "override_app.py", folder)
    readable_for_all(folder)
    return evidence_of(folder, HERE / "override_probe.py", folder / "evidence.json")


def test_it_has_less_than_ten_lines() -> None:
    text = (ROOT / EXAMPLE).read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip() and not line.startswith("#")]) < 10


def test_http_and_https_go_through_the_sidecar_and_its_certificates_are_trusted(evidence: dict[str, Any]) -> None:
    """There is no such server, so each gets a denial; that of https comes inside TLS that the app trusts."""
    for scheme in ("http", "https"):
        status, body = evidence["app"][scheme]
        assert status in (502, 504)  # which of the two depends on what answers for DNS
        assert json.loads(body)["rule"] == "pay"


def test_there_is_no_other_way_out(evidence: dict[str, Any]) -> None:
    assert evidence["app"]["direct"] == "Network is unreachable"


def test_the_app_sees_no_key(evidence: dict[str, Any]) -> None:
    assert {"ca-bundle.pem", "ca.pem"} <= set(evidence["app"]["folder"])
    assert evidence["app"]["private"] is False
