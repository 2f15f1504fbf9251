"""A CONNECT where something goes wrong inside while its upstream is dialled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from addons.exchange import Exchange
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy
from proxy.engine.apps import connect
from proxy.engine.apps.connect import Connect

FAILED = Denied(Reason.UPSTREAM_UNREACHABLE, "nobody listens")


class Told:
    """Stands for whatever a CONNECT speaks with; what it was told is in `told`."""

    def __init__(self, **attributes: object) -> None:
        self.told: list[object] = []
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.told.append((name, *arguments) if arguments else name)

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        step(*arguments)


def tried(monkeypatch: pytest.MonkeyPatch, outcome: Told | Exception, meanwhile: Callable[[Connect], None]) -> Told:
    """Ask for a tunnel, of whose dialling this comes, even if it is cancelled; return the app's socket."""

    async def dial(*_: object) -> object:
        with contextlib.suppress(asyncio.CancelledError):  # as if it had been done in the same turn
            await asyncio.sleep(0.01)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def inside() -> Told:
        exchange = Exchange(Policy(), "127.0.0.1", "CONNECT")
        exchange.decision = Decision(Action.TUNNEL)
        house = SimpleNamespace(
            dispatch=SimpleNamespace(call=lambda *_: None),
            sessions=SimpleNamespace(exchange=lambda _: exchange),
            services=None,
        )
        loop = asyncio.get_running_loop()
        app = Told(house=house, loop=loop, client=tflow.tclient_conn(), context=None, session=Told(), has_ended=False)
        speaker: Any = Told(app=app, refusal=lambda _: b"no", established=lambda: b"yes", take_rest=lambda: b"")
        inside: Any = None
        asked = Connect(speaker, http.Request.make("CONNECT", "https://a.example:443/"), inside)
        asked.start()
        await asyncio.sleep(0)
        meanwhile(asked)
        await asyncio.sleep(0.05)
        return app

    monkeypatch.setattr(connect, "dial", dial)
    return asyncio.run(inside())


def test_a_fault_while_it_is_dialled_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ValueError("a fault")
    assert tried(monkeypatch, fault, lambda _: None).told == [("crash", fault)]


def test_an_upstream_that_is_there_once_the_app_is_gone_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Told()
    app = tried(monkeypatch, upstream, Connect.gone)
    assert (app.told, upstream.told) == (["note_departure"], ["close"])


def test_nobody_is_told_of_one_that_then_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(monkeypatch, FAILED, Connect.gone).told == ["note_departure"]


def test_one_that_cannot_be_had_is_told_to_an_app_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(monkeypatch, FAILED, lambda _: None).told == [("write", b"no"), "close"]
