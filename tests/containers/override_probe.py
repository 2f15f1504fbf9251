"""Collects what the app beside compose.override.example.yml saw.

    python override_probe.py EVIDENCE.json

It only asks; what the answers must be is for the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.containers.asking import docker, wait_for

APP = "overcoat-override-app-1"


def main(evidence: Path) -> None:
    """Write all that was found to a JSON file."""
    done = wait_for(lambda: docker("logs", APP), lambda done: done.stdout.strip().endswith("}"))
    try:
        app = json.loads(done.stdout)
    except ValueError:
        app = {"stdout": done.stdout, "stderr": done.stderr}
    evidence.write_text(json.dumps({"app": app}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
