"""Remembers which keys each host has shown last, for the question whether a rule has a backup pin. `overcoat pins
check` writes it, and `proxy.policyfile.findings` reads it.

Rules of this module:

- It is a small file in the data directory, `chains.json`: for each host the day and the pins of its verified chain.
  Nothing in it is secret, and nothing is decided by it but a warning.
- It is replaced as a whole. A file that is damaged, too large or not there counts as none: it is made anew.
- At most `MOST_HOSTS` are kept, those that were seen last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from proxy.core.pins import Pin, parse_pin
from proxy.disk.publishing import write_public
from proxy.disk.reading import read_regular

FILE = "chains.json"
MOST_HOSTS = 1000
_MAX_BYTES = 4 * 1024 * 1024
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SeenChain:
    """What a host has shown.

    Attributes:
        day: the day on which it was seen, in UTC.
        pins: the pins of its keys and certificates.
    """

    day: date
    pins: frozenset[Pin]


def read_chains(directory: Path) -> dict[str, SeenChain]:
    """Return what is remembered, by host and port; nothing if there is no such file, or it cannot be read."""
    try:
        content, _ = read_regular(directory / FILE, _MAX_BYTES)
        found = json.loads(content)
        if found["version"] != _VERSION:
            return {}
        return {
            str(host): SeenChain(date.fromisoformat(said["day"]), frozenset(parse_pin(pin) for pin in said["pins"]))
            for host, said in found["hosts"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def remember_chains(directory: Path, seen: Mapping[str, Iterable[Pin]], today: date) -> Path:
    """Remember what hosts have shown today, beside what is remembered of others; return the file.

    Args:
        directory: the data directory; it is made if it is not there.
        seen: the pins of each host's verified chain, by host and port.
        today: the current day in UTC.

    Raises:
        OSError: it cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {host: chain for host, chain in read_chains(directory).items() if host not in seen}
    kept |= {host: SeenChain(today, frozenset(pins)) for host, pins in seen.items()}
    last = sorted(kept, key=lambda host: kept[host].day)[-MOST_HOSTS:]
    hosts = {
        host: {"day": kept[host].day.isoformat(), "pins": sorted(map(str, kept[host].pins))} for host in sorted(last)
    }
    write_public(directory / FILE, json.dumps({"version": _VERSION, "hosts": hosts}, indent=1).encode("ascii") + b"\n")
    return directory / FILE
