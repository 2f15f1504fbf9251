"""The decisions about a request, and the denial of one. Nearly all modules use it: the core raises `Denied`, the engine
and the addons answer it, and the decision line and the metrics name its reason (`proxy.core.reasons`).

Rules of this module:

- Every denial has exactly one `Reason`; the response, the decision line and the metric all carry its code.
- A denial is answered with problem details (RFC 9457) and a `Proxy-Status` field (RFC 9209).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from proxy.core.destinations import Destination
from proxy.core.reasons import Reason


class Action(StrEnum):
    """What Overcoat did with a request or, in observe mode, what it would have done."""

    UPGRADE = "upgrade"  # plain http from the app, https to the upstream
    ALLOW = "allow"  # plain http, passed on unchanged because the policy allows it
    INSPECT = "inspect"  # https that Overcoat decrypts, checks, and sends on as https
    TUNNEL = "tunnel"  # https that passes end to end, unchanged
    MIRROR = "mirror"  # what came to a mirror listener, opened for the server behind it
    DENY = "deny"


class Denied(Exception):
    """A request must not go on. The core raises it; the engine and the addons answer it.

    Attributes:
        reason: the one reason code.
        detail: one sentence on what was found, without secrets and without body contents.
        hint: one sentence on what to change; the reason's own hint, unless a better one is given.
        proxy_error: the error type (RFC 9209, section 2.3); the reason's own, unless a better one is given.
        entries: the names of the rule's entries whose work has failed, where it is known; else it is that of all that
            are about the body.
        facts: what programs want to know beside the sentences: extension members of the problem details (RFC 9457,
            section 3.2), and of the decision line. Their names are ours, and their number and lengths limited.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        hint: str = "",
        proxy_error: str = "",
        *,
        entries: tuple[str, ...] = (),
        facts: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(f"{reason.code}: {detail}")
        self.reason = reason
        self.detail = detail
        self.hint = hint or reason.hint
        self.proxy_error = proxy_error or reason.proxy_error
        self.entries = entries
        self.facts: Mapping[str, object] = facts or {}

    def again(self, detail: str | None = None) -> Denied:
        """Return an equal denial, with another detail if one is given. An exception that is raised twice keeps both
        tracebacks.
        """
        detail = self.detail if detail is None else detail
        return Denied(self.reason, detail, self.hint, self.proxy_error, entries=self.entries, facts=self.facts)


def late_response(seconds: float, key: str = "limits.response_seconds", *, is_taken: bool = True) -> Denied:
    """Return the denial of a request whose upstream did not begin to answer in time.

    Args:
        seconds: how long Overcoat waited.
        key: the policy key that sets this limit.
        is_taken: whether the upstream read all of the request that was ready to send. If not, a body may have filled
            the buffers in between.
    """
    begun = "the request was sent, and the upstream" if is_taken else "the upstream took no more of the request, and"
    return Denied(
        Reason.UPSTREAM_TIMEOUT,
        f"{begun} had not begun to answer after {seconds:.0f} s ({key})",
        f"see why the upstream takes so long; if it is meant to, raise {key}",
        "http_response_timeout",
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """What the transport rules decided about one request.

    Attributes:
        action: what to do.
        target: the destination to dial; None if nothing is to be dialled.
        denied: the denial, if the action is DENY.
        is_by_hsts: whether the only reason for this upgrade is that the host is known to want https only.
    """

    action: Action
    target: Destination | None = None
    denied: Denied | None = None
    is_by_hsts: bool = False
