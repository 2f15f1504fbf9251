"""What the guard of the local CA's end lets pass, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from mitmproxy import http

from addons.localca import LocalCaGuard
from addons.sessions import Sessions
from proxy.core.certificates.localca import Lifetime, Mandate
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason

NOW, DAY = datetime.now(UTC), timedelta(days=1)
ENDED, VALID = Lifetime(NOW - 2 * DAY, NOW - DAY), Lifetime(NOW - DAY, NOW + DAY)


@pytest.mark.parametrize(
    ("lifetime", "action", "port", "reason"),
    [
        (ENDED, Action.INSPECT, 443, "local_ca_expired"),
        (ENDED, Action.INSPECT, 8443, "local_ca_expired"),
        (ENDED, Action.INSPECT, 80, None),
        (ENDED, Action.TUNNEL, 443, None),
        (VALID, Action.INSPECT, 443, None),
    ],
)
def test_what_takes_a_certificate_is_denied(
    sessions: Sessions,
    new_flow: Callable[..., http.HTTPFlow],
    lifetime: Lifetime,
    action: Action,
    port: int,
    reason: str | None,
) -> None:
    flow = new_flow("CONNECT")
    exchange = sessions.exchange(flow)
    exchange.decision = Decision(action, Destination("api.example", port))
    LocalCaGuard(sessions, Mandate(lifetime)).http_connect(flow)
    assert (exchange.denied.reason.code if exchange.denied else None) == reason
    assert (flow.response is not None) is (reason is not None)


def test_what_is_denied_already_keeps_its_reason(sessions: Sessions, new_flow: Callable[..., http.HTTPFlow]) -> None:
    flow = new_flow("CONNECT")
    exchange = sessions.exchange(flow)
    exchange.decision = Decision(Action.INSPECT, Destination("api.example", 443))
    exchange.deny_always(flow, Denied(Reason.PROXY_AUTHENTICATION_REQUIRED, "who are you?"))
    LocalCaGuard(sessions, Mandate(ENDED)).http_connect(flow)
    assert exchange.denied is not None
    assert exchange.denied.reason is Reason.PROXY_AUTHENTICATION_REQUIRED
    assert flow.response is not None
    assert flow.response.status_code == 407
