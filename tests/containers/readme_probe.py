"""Collects what the README's compose snippet did, with an app and a Prometheus beside it.

    python readme_probe.py EVIDENCE.json

It only asks; what the answers must be is for the tests. Standard library and the `docker` command only, as in probe.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = "overcoat-readme"
SECONDS = 120.0
QUERY = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9090/api/v1/" + sys.argv[1]).read().decode())
"""
COST = """
import os, subprocess
done = subprocess.run(["overcoat", "healthcheck"])
used = os.times()
print(done.returncode, used.children_user + used.children_system)
"""


def docker(*arguments: str) -> str:
    """Run a docker command and return what it wrote."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout or done.stderr


def container(service: str) -> str:
    """Return the name of a service's container."""
    return f"{PROJECT}-{service}-1"


def ask_prometheus(path: str) -> Any:
    """Return the data of an answer of its API; None if it gives none yet."""
    answer = docker("exec", container("prometheus"), "python3", "-c", QUERY, path)
    try:
        return json.loads(answer)["data"]
    except (ValueError, KeyError):
        return None


def wait_for(answer: Any, is_there: Any) -> Any:
    """Ask until what is waited for is there, or the time is over; return the last answer."""
    end = time.monotonic() + SECONDS
    while not is_there(found := answer()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def main(evidence: Path) -> None:
    """Write all that was found to a JSON file."""
    app = wait_for(lambda: docker("logs", container("app")), lambda text: text.strip().endswith("}"))
    sidecar = json.loads(docker("inspect", container("overcoat")))[0]
    denied = "overcoat_requests_total%7Brule=%22payments%22,action=%22deny%22%7D%20%3E%200"
    found = {
        "app": app,
        "overcoat": {
            "health": sidecar["State"]["Health"],
            "processors": sidecar["HostConfig"]["NanoCpus"] / 1e9,
            "cost": docker("exec", container("overcoat"), "python3", "-c", COST),
            "stderr": docker("logs", container("overcoat")),
        },
        "targets": wait_for(
            lambda: ask_prometheus("targets"),
            lambda data: data and all(each["health"] == "up" for each in data["activeTargets"]),
        ),
        "denied": wait_for(lambda: ask_prometheus(f"query?query={denied}"), lambda data: data and data["result"]),
        "rules": ask_prometheus("rules"),
    }
    evidence.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
