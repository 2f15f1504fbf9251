"""Collects what the README's compose snippet did, with an app and a Prometheus beside it.

    python readme_probe.py EVIDENCE.json

It only asks; what the answers must be is for the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.containers.asking import ask_prometheus, docker, evaluated, scraped, wait_for

APP, OVERCOAT, PROMETHEUS = (f"overcoat-readme-{service}-1" for service in ("app", "overcoat", "prometheus"))
COST = """
import os, subprocess
done = subprocess.run(["overcoat", "healthcheck"])
used = os.times()
print(done.returncode, used.children_user + used.children_system)
"""


def main(evidence: Path) -> None:
    """Write all that was found to a JSON file."""
    app = wait_for(lambda: docker("logs", APP).stdout, lambda text: text.strip().endswith("}"))
    sidecar = json.loads(docker("inspect", OVERCOAT).stdout)[0]
    failed = "overcoat_requests_total%7Brule=%22payments%22,outcome=%22upstream_failed%22%7D%20%3E%200"
    found = {
        "app": app,
        "overcoat": {
            "health": sidecar["State"]["Health"],
            "processors": sidecar["HostConfig"]["NanoCpus"] / 1e9,
            "cost": docker("exec", OVERCOAT, "python3", "-c", COST).stdout,
            "stderr": docker("logs", OVERCOAT).stderr,
        },
        "targets": scraped(PROMETHEUS),
        "failed": wait_for(
            lambda: ask_prometheus(PROMETHEUS, f"query?query={failed}"), lambda data: data and data["result"]
        ),
        "rules": evaluated(PROMETHEUS),
    }
    evidence.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
