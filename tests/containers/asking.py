"""What the probes share: asking containers, and a Prometheus in one of them. Standard library and the `docker` command
only: probes may run in another network namespace than the tests do.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

SECONDS = 120.0
QUERY = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9090/api/v1/" + sys.argv[1]).read().decode())
"""


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a docker command and return how it ended."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)


def ask_prometheus(container: str, path: str) -> Any:
    """Return the data of an answer of its API; None if it gives none yet."""
    answer = docker("exec", container, "python3", "-c", QUERY, path).stdout
    try:
        return json.loads(answer)["data"]
    except (ValueError, KeyError):
        return None


def wait_for[T](answer: Callable[[], T], is_there: Callable[[T], object]) -> T:
    """Ask until what is waited for is there, or the time is over; return the last answer."""
    end = time.monotonic() + SECONDS
    while not is_there(found := answer()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def evaluated(container: str) -> Any:
    """Return a Prometheus' rules, once each has been evaluated."""
    return wait_for(
        lambda: ask_prometheus(container, "rules"),
        lambda data: (
            data
            and data["groups"]
            and all(rule["health"] != "unknown" for group in data["groups"] for rule in group["rules"])
        ),
    )


def scraped(container: str) -> Any:
    """Return a Prometheus' targets, once it has found them and all of them are up."""
    return wait_for(
        lambda: ask_prometheus(container, "targets"),
        lambda data: data and data["activeTargets"] and all(each["health"] == "up" for each in data["activeTargets"]),
    )
