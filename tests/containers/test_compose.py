"""The image and docker-compose.yml, on a real container engine; `make test-containers` runs these (see `engine`)."""

from __future__ import annotations

import base64
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import evidence_of

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.py")
CHARGE: str = runpy.run_path(str(ROOT / "config" / "compose" / "app.py"))["CHARGE"]

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found while the services were up."""
    return evidence_of(ROOT, PROBE, tmp_path_factory.mktemp("containers") / "evidence.json")


def protected_header(token: str) -> dict[str, Any]:
    """Return the protected header of a compact JWE; its other four parts must be there, too (RFC 7516, section 7.1)."""
    parts = token.split(".")
    assert len(parts) == 5
    assert all(parts)
    return dict(json.loads(base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4))))


def test_the_unmodified_app_got_its_answer_and_knew_only_its_proxy(evidence: dict[str, Any]) -> None:
    way, own = "http://overcoat:8080", "localhost,127.0.0.1,::1"
    expected = {"HTTP_PROXY": way, "HTTPS_PROXY": way, "NO_PROXY": own}
    assert evidence["app"]["status"] == 0, evidence["app"]["logs"]
    told = [variable for variable in evidence["app"]["environment"] if "proxy" in variable.lower()]
    spellings = [{name: text, name.lower(): text} for name, text in expected.items()]
    assert sorted(told) == sorted(f"{name}={text}" for each in spellings for name, text in each.items())


def test_the_request_arrived_once_and_over_tls(evidence: dict[str, Any]) -> None:
    (request,) = evidence["received"]
    assert (request["method"], request["path"]) == ("POST", "/v1/charges")
    assert request["tls"] in ("TLSv1.2", "TLSv1.3")


def test_the_marked_fields_arrived_encrypted_and_every_other_byte_as_it_was(evidence: dict[str, Any]) -> None:
    (request,) = evidence["received"]
    body = request["body"]
    sent = json.loads(CHARGE)["card"]
    for name in ("number", "cvv"):
        token = json.loads(body)["card"][name]
        header = protected_header(token)
        assert (header["alg"], header["enc"], header["kid"]) == ("ECDH-ES+A256KW", "A256GCM", "receiver-1")
        assert header["cty"] == f'application/json;host="api.pay.example";path="$.card.{name}"'
        body = body.replace(f'"{token}"', json.dumps(sent[name]))
    assert body == CHARGE


def test_the_app_cannot_reach_the_server_without_the_sidecar(evidence: dict[str, Any]) -> None:
    assert evidence["direct"]["status"] == 1
    assert "URLError" in evidence["direct"]["stderr"]


def test_the_sidecar_is_healthy_runs_without_rights_and_ends_in_order(evidence: dict[str, Any]) -> None:
    sidecar = evidence["overcoat"]
    assert (sidecar["health"], sidecar["user"], sidecar["stopped_with"]) == ("healthy", "10001", 0)


def test_the_sidecar_wrote_its_decision_and_no_secret(evidence: dict[str, Any]) -> None:
    logs = evidence["overcoat"]["logs"]
    (decision,) = [json.loads(line) for line in logs["stdout"].splitlines()]
    assert (decision["rule"], decision["action"], decision["encrypted"]) == ("payments", "upgrade", 2)
    card = json.loads(CHARGE)["card"]
    for written in logs.values():
        assert card["number"] not in written
        assert card["holder"] not in written
