"""The browsers' HSTS preload list, from the `hstspreload` package."""

from __future__ import annotations


def is_preloaded(host: str) -> bool:
    """Tell whether the list has a host, or names it with what is above it; it is read when it is first needed.

    Args:
        host: the canonical host.
    """
    import hstspreload  # type: ignore[import-untyped]  # noqa: PLC0415  # 2 MiB that few have a use for; untyped there

    return bool(hstspreload.in_hsts_preload(host))
