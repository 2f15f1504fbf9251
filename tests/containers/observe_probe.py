"""Collects what the Prometheus of docker-compose.yml (`--profile observe`) found.

    python observe_probe.py EVIDENCE.json

It only asks; what the answers must be is for the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.containers.asking import ask_prometheus, evaluated, scraped, wait_for

PROMETHEUS = "overcoat-observe-prometheus-1"
CHARGED = "query?query=sum(overcoat_requests_total%7Brule=%22payments%22%7D)%20%3E%201"


def main(evidence: Path) -> None:
    """Write all that was found to a JSON file."""
    found = {
        "targets": scraped(PROMETHEUS),
        "rules": evaluated(PROMETHEUS),
        "charged": wait_for(lambda: ask_prometheus(PROMETHEUS, CHARGED), lambda data: data and data["result"]),
    }
    evidence.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
