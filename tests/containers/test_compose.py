"""The image and docker-compose.yml, on a real container engine; `make test-containers` runs these (see `engine`)."""

from __future__ import annotations

import base64
import json
import runpy
import tomllib
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


def test_the_unmodified_app_got_its_answers_and_knew_only_its_proxy_and_whom_it_trusts(
    evidence: dict[str, Any],
) -> None:
    way, own = "http://overcoat:8080", "localhost,127.0.0.1,::1"
    expected = {"HTTP_PROXY": way, "HTTPS_PROXY": way, "NO_PROXY": own}
    assert evidence["app"]["status"] == 0, evidence["app"]["logs"]
    told = [each for each in evidence["app"]["environment"] if "proxy" in each.lower() or "SSL" in each]
    spellings = [{name: text, name.lower(): text} for name, text in expected.items()]
    trusts = "SSL_CERT_FILE=/run/overcoat-ca/ca-bundle.pem"
    assert sorted(told) == sorted([trusts, *(f"{name}={text}" for each in spellings for name, text in each.items())])


def test_each_request_arrived_once_and_over_tls(evidence: dict[str, Any]) -> None:
    arrived = [(each["method"], each["path"]) for each in evidence["received"]]
    assert arrived == [("POST", "/v1/charges")] * 2  # one that the app sent over http, one over https
    assert {each["tls"] for each in evidence["received"]} <= {"TLSv1.2", "TLSv1.3"}


def test_the_marked_fields_arrived_encrypted_and_every_other_byte_as_it_was(evidence: dict[str, Any]) -> None:
    sent = json.loads(CHARGE)["card"]
    for request in evidence["received"]:
        body = request["body"]
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


def test_the_bypass_is_shown_to_fail(evidence: dict[str, Any]) -> None:
    assert evidence["bypass"]["status"] == 0, evidence["bypass"]["logs"]
    assert evidence["bypass"]["logs"]["stdout"].endswith("reached without the sidecar: nothing\n")


def test_the_sidecar_is_healthy_and_ends_in_order(evidence: dict[str, Any]) -> None:
    sidecar = evidence["overcoat"]
    assert (sidecar["health"], sidecar["stopped_with"]) == ("healthy", 0)


def test_the_sidecar_runs_without_rights_and_takes_no_code_from_its_surroundings(evidence: dict[str, Any]) -> None:
    inside = evidence["overcoat"]["inside"]
    assert (inside["user"], inside["capabilities"], inside["new"]) == (10001, "0" * 16, "1")
    assert inside["writes"] == "Read-only file system"
    assert "-IBu" in inside["command"]


def test_the_image_says_what_it_is_and_has_no_compiler(evidence: dict[str, Any]) -> None:
    labels = evidence["image"]["Config"]["Labels"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert labels["org.opencontainers.image.version"] == version
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses")} <= labels.keys()
    assert not {"cc", "gcc", "g++", "ld", "make", "rustc"} & set(evidence["overcoat"]["inside"]["tools"])


def test_apps_are_given_the_public_part_of_the_local_ca_alone(evidence: dict[str, Any]) -> None:
    assert {"ca-bundle.pem", "ca.pem"} <= set(evidence["public"]["files"])
    assert evidence["public"]["private"] == []


def test_the_sidecar_wrote_its_decisions_and_no_secret(evidence: dict[str, Any]) -> None:
    logs = evidence["overcoat"]["logs"]
    decisions = [json.loads(line) for line in logs["stdout"].splitlines()]
    charges = [each for each in decisions if each.get("path") == "/v1/charges"]
    assert [(each["rule"], each["encrypted"]) for each in charges] == [("payments", 2)] * 2
    card = json.loads(CHARGE)["card"]
    for written in logs.values():
        assert card["number"] not in written
        assert card["holder"] not in written
