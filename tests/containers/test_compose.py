"""The image and docker-compose.yml, on a real container engine.

`make test-containers` runs these. They use `docker compose` where an engine answers. On a machine without one,
OVERCOAT_CONTAINERS may name a script that brings one along: `SCRIPT build FOLDER` builds the services' images, and
`CHECK=COMMAND SCRIPT run FOLDER` brings them up, runs the command where their ports are, and takes them down. Else they
are skipped.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.py")
CHARGE: str = runpy.run_path(str(ROOT / "config" / "compose" / "app.py"))["CHARGE"]

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command; show all that it wrote if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-20_000:]}", pytrace=False)


def engine_answers() -> bool:
    """Tell whether there is a docker command, an engine behind it, and Compose."""
    if shutil.which("docker") is None:
        return False
    return all(
        subprocess.run(["docker", *asked], capture_output=True, timeout=30, check=False).returncode == 0
        for asked in (["info"], ["compose", "version"])
    )


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found while the services were up."""
    found = tmp_path_factory.mktemp("containers") / "evidence.json"
    probe = [sys.executable, str(PROBE), str(found)]
    script = os.environ.get("OVERCOAT_CONTAINERS")
    if script:
        run("bash", script, "build", str(ROOT))
        run("bash", script, "run", str(ROOT), env={"CHECK": shlex.join(probe)})
    elif engine_answers():
        try:
            run("docker", "compose", "up", "--build", "--detach")
            run(*probe)
        finally:
            run("docker", "compose", "down", "--volumes", "--timeout", "5")
    else:
        pytest.skip("no container engine answers `docker info`, and OVERCOAT_CONTAINERS names no script that has one")
    return dict(json.loads(found.read_text(encoding="utf-8")))


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
