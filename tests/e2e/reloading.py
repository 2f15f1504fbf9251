"""Has a sidecar read its policy again. Tests call it whose policy changes while it runs."""

from __future__ import annotations

import signal

from tests.e2e.sidecar import Sidecar
from tests.waiting import wait_until


def reload(sidecar: Sidecar, policy: str | None = None, result: str = "taken") -> None:
    """Have the policy read again, and wait until it was.

    Args:
        sidecar: the sidecar.
        policy: what is written into the policy file before; None to leave it as it is.
        result: how it must end: `taken`, `unchanged` or `refused`.
    """

    def count() -> float:
        return sidecar.metrics().value("overcoat_policy_reloads_total", result=result)

    before = count()
    if policy is not None:
        sidecar.write_policy(policy)
    sidecar.signal(signal.SIGHUP)
    wait_until(lambda: count() == before + 1, f"the policy is {result}", seconds=20)
