"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy with something else makes an example slow, not wrong; pytest-timeout ends what really hangs.
settings.register_profile("overcoat", parent=settings(), deadline=None)
settings.load_profile("overcoat")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their parameter: they say nothing to a reader, and random ones differ between workers."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None
