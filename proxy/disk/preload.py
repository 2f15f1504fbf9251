"""Looks up hosts in the browsers' HSTS preload list, from the `hstspreload` package. `proxy.core.rules.hsts` is given
it, and calls it if the policy uses that list.
"""

from __future__ import annotations


def is_preloaded(host: str) -> bool:
    """Tell whether the list has a host, or a domain above it that includes it. The list is loaded at the first call.

    Args:
        host: the canonical host.
    """
    import hstspreload  # type: ignore[import-untyped]  # noqa: PLC0415  # 2 MiB that few policies need; it has no types

    return bool(hstspreload.in_hsts_preload(host))
