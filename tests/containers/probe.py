"""Collects what docker-compose.yml did, from where its containers and published ports can be reached.

    python probe.py EVIDENCE.json

Rules of this module:

- It only asks; what the answers must be is for the tests. It runs while the services are up, and last it stops the
  sidecar.
- Standard library and the `docker` command only: it may run in another network namespace than the tests do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

PROJECT = "overcoat-example"
DIRECT = "import urllib.request; urllib.request.urlopen('https://api.pay.example:8443', timeout=5)"


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a docker command and return how it ended."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)


def state(service: str) -> dict[str, Any]:
    """Return what the engine knows of a service's container."""
    inspected = docker("inspect", container(service))
    inspected.check_returncode()
    return dict(json.loads(inspected.stdout)[0])


def container(service: str) -> str:
    """Return the name of a service's container."""
    return f"{PROJECT}-{service}-1"


def logs(service: str) -> dict[str, str]:
    """Return what a service wrote to each stream."""
    written = docker("logs", container(service))
    return {"stdout": written.stdout, "stderr": written.stderr}


def main(evidence: Path) -> None:
    """Write all that was found to a JSON file."""
    app_status = int(docker("wait", container("app")).stdout)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open("http://127.0.0.1:8081/received", timeout=10) as answer:
        received = json.load(answer)
    app = state("app")
    direct = docker("run", "--rm", "--network", f"{PROJECT}_inside", app["Config"]["Image"], "python3", "-c", DIRECT)
    sidecar = state("overcoat")
    user = docker("exec", container("overcoat"), "id", "-u").stdout.strip()
    docker("stop", "--time", "10", container("overcoat"))
    found = {
        "app": {"status": app_status, "environment": app["Config"]["Env"], "logs": logs("app")},
        "received": received,
        "direct": {"status": direct.returncode, "stderr": direct.stderr},
        "overcoat": {
            "health": sidecar["State"]["Health"]["Status"],
            "user": user,
            "stopped_with": state("overcoat")["State"]["ExitCode"],
            "logs": logs("overcoat"),
        },
    }
    evidence.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
