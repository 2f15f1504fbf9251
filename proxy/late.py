"""Lets packages be loaded when something in them is used, and not where they are imported. `proxy.cli` calls it before
`overcoat serve` imports anything else.

mitmproxy's connection objects import mitmproxy_rs, for modes of mitmproxy that Overcoat has not, and wsproto imports
h11, for a handshake that it leaves to others here. They take 3.5 MiB of a process that uses nothing in them.

Rules of this module:

- Nothing is replaced: it is the package itself that is loaded (`importlib.util.LazyLoader`), when an attribute of it is
  asked for. If a later version asks for one where it imports the package, nothing is saved, and nothing breaks.
- Only what no request leads to is loaded late: a request would wait for it.
- It imports little itself: `importlib.abc` would bring `importlib.resources`.
- A package of which our own code uses something is not for this list; that is imported where it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

LATE = frozenset(("h11", "mitmproxy_rs"))


class _Late:
    """Finds the packages of `LATE` as Python does, and lets them be loaded late."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a package of the list; None for all others, and for what is not installed."""
        if fullname not in LATE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def load_late() -> None:
    """Let the packages of `LATE` be loaded late from now on, if they have not been imported already."""
    if not any(isinstance(finder, _Late) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Late())
