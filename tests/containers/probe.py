"""Collects what docker-compose.yml did, from where its containers and published ports can be reached.

    python probe.py EVIDENCE.json

Rules of this module:

- It only asks; what the answers must be is for the tests. It runs while the services are up, and last it stops the
  sidecar.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.containers.asking import docker

PROJECT = "overcoat-example"
DIRECT = "import urllib.request; urllib.request.urlopen('https://api.pay.example:8443', timeout=5)"

INSIDE = """
import json, os, pathlib, shutil
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
try:
    open("/opt/written", "w")
    writes = "yes"
except OSError as e:
    writes = e.strerror
tools = [name for name in ("cc", "gcc", "g++", "ld", "make", "rustc", "pip", "apt-get") if shutil.which(name)]
print(json.dumps({"user": os.getuid(), "capabilities": status["CapBnd"].strip(), "new": status["NoNewPrivs"].strip(),
                  "writes": writes, "tools": tools,
                  "command": pathlib.Path("/proc/1/cmdline").read_text().split("\\0")}))
"""


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
    direct = docker("run", "--rm", "--network", f"{PROJECT}_default", app["Config"]["Image"], "python3", "-c", DIRECT)
    sidecar = state("overcoat")
    inside = docker("exec", container("overcoat"), "/opt/overcoat/bin/python3", "-Ic", INSIDE).stdout
    public = docker("exec", container("overcoat"), "ls", "/run/overcoat-ca").stdout.split()
    private = docker("exec", container("overcoat"), "grep", "-rl", "PRIVATE KEY", "/run/overcoat-ca").stdout.split()
    docker("stop", "--time", "10", container("overcoat"))
    found = {
        "app": {"status": app_status, "environment": app["Config"]["Env"], "logs": logs("app")},
        "bypass": {"status": state("bypass")["State"]["ExitCode"], "logs": logs("bypass")},
        "public": {"files": public, "private": private},
        "image": json.loads(docker("image", "inspect", "overcoat:local").stdout)[0],
        "received": received,
        "direct": {"status": direct.returncode, "stderr": direct.stderr},
        "overcoat": {
            "health": sidecar["State"]["Health"]["Status"],
            "host": sidecar["HostConfig"],
            "inside": json.loads(inside),
            "stopped_with": state("overcoat")["State"]["ExitCode"],
            "logs": logs("overcoat"),
        },
    }
    evidence.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
