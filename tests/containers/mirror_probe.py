"""Collects what `docker compose --profile mirror` did.

    python mirror_probe.py EVIDENCE.json

It only asks; what the answers must be is for the tests.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from tests.containers.asking import docker

PROJECT = "overcoat-both"
DIRECT = "import socket; print(socket.create_connection(('mirror', 5000), 5))"


def container(service: str) -> str:
    """Return the name of a service's container."""
    return f"{PROJECT}-{service}-1"


def main(evidence: Path) -> None:
    """Write all that was found to a JSON file."""
    status = int(docker("wait", container("app-both")).stdout)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open("http://127.0.0.1:8082/received", timeout=10) as answer:
        passed = json.load(answer)
    direct = docker("exec", container("gateway"), "python3", "-c", DIRECT)
    kept = {
        service: docker("exec", container(service), "ls", "/run/keys").stdout.split()
        for service in ("overcoat-both", "mirror")
    }
    services = ("app-both", "overcoat-both", "mirror", "server", "gateway", "keys-both")
    found = {
        "status": status,
        "passed": passed,
        "direct": {"status": direct.returncode, "stderr": direct.stderr},
        "kept": kept,
        "logs": {service: docker("logs", container(service)).stdout for service in services},
    }
    evidence.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
