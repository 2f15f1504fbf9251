"""Settings and fixtures for all tests."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from mitmproxy import connection

from addons.sessions import Sessions
from proxy.core.rules.policy import Policy

# On a busy machine an example may be slow without being wrong; pytest-timeout ends tests that really hang.
settings.register_profile("overcoat", parent=settings(), deadline=None)
settings.load_profile("overcoat")


@pytest.fixture
def client() -> connection.Client:
    """A connection of an app."""
    return connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))


@pytest.fixture
def sessions(client: connection.Client) -> Sessions:
    """The sessions, with one of the client under an empty policy."""
    sessions = Sessions()
    sessions.open(client, Policy())
    return sessions


# Files that take longer than their number of tests says: at the end, a worker would be alone with one.
LONG = frozenset(
    f"test_{name}.py"
    for name in (
        *("wheel", "response_time", "signals", "reload", "reload_on_change", "uploads", "exhaustion", "tutorial"),
        *("readme", "alerts", "dashboard", "workers", "faults", "http1", "http2_floods", "http2_pace", "receiving"),
    )
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first, where several workers share them (`--no-loadscope-reorder`)."""
    if hasattr(config, "workerinput"):
        counts = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path.name not in LONG, -counts[item.path]))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their parameter: they say nothing to a reader, and random ones differ between workers."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None
