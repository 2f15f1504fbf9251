"""Which addresses stock mitmproxy may dial, and may have reached (ARCHITECTURE.md, rule 4)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from addons.stock.judging import Judge, look_up
from addons.upstream import Upstream
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy
from proxy.core.who.addresses import AddressKind, AddressSet

OPEN = replace(Policy(), destinations=AddressSet(frozenset(AddressKind)))
JUDGE = Judge(lambda: {443})


def before(policy: Policy, host: str, port: int) -> Denied | None:
    return asyncio.run(JUDGE.before(policy, None, host, port))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_our_own_port_is_no_destination_in_any_mode(host: str) -> None:
    with pytest.raises(Denied) as caught:
        before(OPEN, host, 443)
    assert caught.value.reason is Reason.DESTINATION_FORBIDDEN
    assert before(OPEN, host, 444) is None


def test_a_forbidden_address_is_said_to_be_one() -> None:
    found = before(Policy(), "10.0.0.1", 443)
    assert found is not None
    assert found.reason is Reason.DESTINATION_FORBIDDEN
    assert before(OPEN, "10.0.0.1", 443) is None


@pytest.mark.parametrize(
    ("peer", "here", "is_own"),
    [
        (("192.168.9.9", 443), "192.168.9.9", True),
        (("192.168.9.9", 443), "192.168.9.1", False),  # another machine may have something at the same port
        (("192.168.9.9", 444), "192.168.9.9", False),
        (("127.0.0.1", 443), "127.0.0.2", True),
    ],
)
def test_our_own_port_is_known_by_any_address_of_this_machine(peer: tuple[str, int], here: str, is_own: bool) -> None:
    found = JUDGE.reached(Upstream(OPEN, None), "api.example", peer, here)
    assert (found is not None) is is_own


@pytest.mark.parametrize("is_observed", [False, True])
def test_another_address_than_was_looked_up_is_judged_again(is_observed: bool) -> None:
    record = Upstream(Policy(), None)
    if is_observed:  # that it is forbidden, before it was dialled
        record.observed = Denied(Reason.DESTINATION_FORBIDDEN, "x")
    found = JUDGE.reached(record, "api.example", ("10.0.0.1", 444), "10.0.0.2")
    assert (found is None) is is_observed
    assert JUDGE.reached(Upstream(Policy(), None), "api.example", ("192.0.2.1", 444), "10.0.0.2") is not None
    assert JUDGE.reached(Upstream(Policy(), None), "api.example", ("8.8.8.8", 444), "10.0.0.2") is None


def test_a_name_without_an_address_is_unreachable() -> None:
    with pytest.raises(Denied) as caught:
        asyncio.run(look_up("no-such-name.invalid", 443, 5))
    assert caught.value.reason is Reason.UPSTREAM_UNREACHABLE
