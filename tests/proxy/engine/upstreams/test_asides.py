"""Handshakes beside what is observed: which there are, how many, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from addons.exchange import Exchange
from addons.sessions import Sessions
from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.pins import Pin, PinSet, PinVerdict
from proxy.core.reasons import Reason
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.engine.upstreams import asides
from proxy.engine.upstreams.asides import Asides

PINS = PinSet((Pin("spki", bytes(range(32))),))
RULE = Rule("r", (HostPattern("any_depth", "example"),), PlainHttp.UPGRADE, Https.INSPECT, pins=PINS, mode=Mode.OBSERVE)
POLICY = Policy(rules=(RULE,))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def create_task(self, work: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)


class Scene:
    """Asides whose dials do what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: Callable[[Upstream], object]) -> None:
        self.dialled: list[tuple[str, int]] = []
        self.records: list[Upstream] = []
        self.clock = Clock()
        self.sessions = Sessions()
        self.asides = Asides(SimpleNamespace(loop=self.clock, sessions=self.sessions))  # type: ignore[arg-type]  # a part

        async def dial(_services: object, server: Any, _key: None, record: Upstream, context: Any) -> object:
            assert self.sessions.of(context.client).upstreams[server.id] is record
            assert server.tls
            self.dialled.append(server.address)
            self.records.append(record)
            await asyncio.sleep(0)
            outcome(record)
            return SimpleNamespace(close=lambda: None)

        monkeypatch.setattr(asides, "dial", dial)

    def note(self, host: str = "a.example", action: Action = Action.UPGRADE, **more: Any) -> Exchange:
        exchange = Exchange(more.pop("policy", POLICY), "127.0.0.1", "GET", "/", rule=more.pop("rule", RULE))
        exchange.decision = Decision(action, more.pop("target", Destination(host, 443)))
        self.asides.note(exchange)
        return exchange


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def match(record: Upstream) -> None:
    record.pin = PinVerdict.MATCH


def mismatch(record: Upstream) -> None:
    raise Denied(Reason.PIN_MISMATCH, "another key")


def no_tls(record: Upstream) -> None:
    raise Denied(Reason.TLS_FAILED, "no TLS")


def broken(record: Upstream) -> None:
    raise RuntimeError("canary")


@pytest.mark.parametrize(
    ("outcome", "pin", "reason"),
    [
        (match, PinVerdict.MATCH, None),
        (mismatch, None, Reason.PIN_MISMATCH),
        (no_tls, None, None),
        (broken, None, None),
    ],
)
def test_what_it_comes_to_is_noted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, outcome: Any, pin: Any, reason: Any
) -> None:
    async def run() -> Exchange:
        scene = Scene(monkeypatch, outcome)
        exchange = scene.note()
        await settled()
        assert scene.records[0].policy.observes(scene.records[0].rule) is False  # it is the one that enforcing makes
        assert not scene.sessions._by_id
        return exchange

    with caplog.at_level(logging.ERROR, "overcoat"):
        exchange = asyncio.run(run())
    assert exchange.aside is not None
    assert exchange.aside.pin is pin
    exchange.note_aside()
    assert (exchange.denied.reason if exchange.denied else None) is reason
    assert ("RuntimeError in" in caplog.text) is (outcome is broken)
    assert "canary" not in caplog.text


def test_one_serves_all_for_a_while_and_a_new_policy_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        scene = Scene(monkeypatch, match)
        first, second = scene.note(), scene.note()
        await settled()
        assert first.aside is second.aside is scene.note(action=Action.INSPECT).aside
        assert scene.dialled == [("a.example", 443)]
        scene.note("b.example")
        scene.clock.now += timelimits.ASIDE_SECONDS
        third = scene.note()
        await settled()
        assert third.aside is not first.aside
        assert len(scene.dialled) == 3
        assert scene.note(policy=Policy(rules=(RULE,))).aside is not third.aside
        await settled()

    asyncio.run(run())


def test_few_at_a_time_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(asides, "MOST_KEPT", 2)
        scene = Scene(monkeypatch, match)
        found = [scene.note(f"h{number}.example").aside for number in range(asides.AT_ONCE + 1)]
        assert [each is None for each in found] == [False] * asides.AT_ONCE + [True]
        await settled()
        assert len(scene.dialled) == asides.AT_ONCE
        assert len(scene.asides._kept) == 2
        scene.note("more.example")
        scene.asides.close()
        await settled()
        assert not scene.asides._tasks

    asyncio.run(run())


@pytest.mark.parametrize(
    "more",
    [
        {"rule": None},
        {"rule": Rule("r", RULE.hosts, PlainHttp.UPGRADE, Https.TUNNEL)},
        {"action": Action.TUNNEL},
        {"action": Action.DENY, "target": None},
        {"target": None},
    ],
)
def test_where_nothing_is_pinned_or_nothing_would_be_dialled_there_is_none(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    async def run() -> None:
        scene = Scene(monkeypatch, match)
        assert scene.note(**more).aside is None
        await settled()
        assert not scene.dialled

    asyncio.run(run())
