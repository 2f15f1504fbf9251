"""Starts `overcoat` in a process whose wall clock the test moves, with names for hosts (`named_hosts`).

    clock = Clock(tmp_path)
    with Sidecar(policy, tmp_path, authority=authority, command=clock.command(hosts)):
        clock.move(days=2)

Rules of this module:

- `time.time` and `datetime.now` are moved, before the product is imported. The monotonic clock, which no one can move,
  stays, and so does OpenSSL's own: certificates are in date as ever.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """The clock of one sidecar, or of several."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "offset"
        self._next = folder / "next-offset"
        self.move()

    def move(self, seconds: float = 0.0, *, days: int = 0) -> None:
        """Let it be so much later than it is."""
        self._next.write_text(str(seconds + days * 86400.0))
        self._next.replace(self._offset)  # at once: it is read all the time

    def command(self, hosts: Mapping[str, str] | None = None) -> list[str]:
        """Return what to run instead of `overcoat`; see `Sidecar`."""
        return [sys.executable, "-P", __file__, str(self._offset), json.dumps(hosts) if hosts is not None else ""]


def _install(offset: Path) -> None:
    real = time.time

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, zone: datetime.tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(time.time(), zone)

    time.time = lambda: real() + float(offset.read_text())
    datetime.datetime = Moved  # type: ignore[misc]  # that is what it is for


if __name__ == "__main__":
    sys.path.append(str(ROOT))
    _install(Path(sys.argv.pop(1)))
    from tests.e2e.named_hosts import install

    table = sys.argv.pop(1)
    if table:
        install(json.loads(table))
    sys.argv[0] = "overcoat"
    from proxy.cli import main

    main()
