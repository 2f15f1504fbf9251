"""`docker compose --profile mirror up`: app and server are unchanged, and a gateway between them sees tokens alone."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import copy_of_the_clone, evidence_of, readable_for_all

ROOT = Path(__file__).resolve().parents[2]
APP = runpy.run_path(str(ROOT / "config" / "compose" / "app.py"))
COMPOSE = """
name: overcoat-both
include: [{path: example.yml, project_directory: .}]
"""

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found while the services were up."""
    folder = tmp_path_factory.mktemp("both") / "clone"
    copy_of_the_clone(folder)
    example = (folder / "docker-compose.yml").read_text(encoding="utf-8")
    (folder / "example.yml").write_text(example.replace("name: overcoat-example\n", ""))
    (folder / "docker-compose.yml").write_text(COMPOSE)
    readable_for_all(folder)
    probe = Path(__file__).with_name("mirror_probe.py")
    return evidence_of(folder, probe, folder / "evidence.json", env={"COMPOSE_PROFILES": "mirror"})


def test_app_and_server_see_what_they_see_without_any(evidence: dict[str, Any]) -> None:
    assert evidence["status"] == 0, evidence["logs"]
    assert evidence["logs"]["server"] == f"the server was sent: {APP['CHARGE']}\n"
    answer = {"charged": 1299, "token": APP["TOKEN"]}
    assert evidence["logs"]["app-both"] == f"{APP['BOTH_ENDS']}: the server answered 200: {answer}\n"


def test_what_is_between_sees_tokens(evidence: dict[str, Any]) -> None:
    (passed,) = evidence["passed"]
    assert passed["tls"] in {"TLSv1.2", "TLSv1.3"}
    sent, answered = json.loads(passed["body"]), json.loads(passed["answer"])
    card = json.loads(APP["CHARGE"])["card"]
    tokens = [sent["card"]["number"], sent["card"]["cvv"], answered["token"]]
    assert [token.count(".") for token in tokens] == [4, 4, 4]
    assert (sent["card"]["holder"], answered["charged"]) == (card["holder"], 1299)
    for service in ("gateway", "overcoat-both", "mirror"):
        for value in (card["number"], f'"{card["cvv"]}"', APP["TOKEN"]):
            assert value not in evidence["logs"][service], service


def test_each_side_has_its_own_private_half_alone(evidence: dict[str, Any]) -> None:
    assert set(evidence["kept"]["mirror"]) == {"server.pem", "server.pub.pem", "app.pub.pem"}
    assert set(evidence["kept"]["overcoat-both"]) == {"app.pem", "app.pub.pem", "server.pub.pem"}


def test_the_server_is_reached_through_its_mirror_alone(evidence: dict[str, Any]) -> None:
    assert evidence["direct"]["status"] == 1
    assert "ConnectionRefusedError" in evidence["direct"]["stderr"]


def test_both_sidecars_say_what_they_did(evidence: dict[str, Any]) -> None:
    def decisions(service: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in evidence["logs"][service].splitlines()]
        return [line for line in lines if line.get("path") == "/v1/charges"]

    (sealed,), (opened,) = decisions("overcoat-both"), decisions("mirror")
    assert (sealed["action"], sealed["encrypted"], sealed["decrypted"]) == ("upgrade", 2, 1)
    assert (opened["action"], opened["encrypted"], opened["decrypted"]) == ("mirror", 1, 2)
