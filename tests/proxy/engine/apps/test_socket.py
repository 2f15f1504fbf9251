"""An app's socket: how it ends, by where it stands."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from addons.exchange import Exchange
from addons.sessions import Sessions
from proxy import timelimits
from proxy.core.rules.policy import Listener, Policy
from proxy.engine.apps.socket import AppSocket
from proxy.engine.apps.speaker import GONE
from proxy.engine.apps.states import SocketState as State
from proxy.engine.timers import Timers
from proxy.engine.transitions import IllegalTransition


class Transport:
    """Stands for a transport; what it was made to do is in `calls`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def get_extra_info(self, name: str) -> object:
        return SimpleNamespace(setsockopt=lambda *_: None) if name == "socket" else ("127.0.0.1", 1)

    def is_closing(self) -> bool:
        return bool({"close", "abort"} & set(self.calls))

    def get_write_buffer_size(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


def opened() -> tuple[AppSocket, list[str]]:
    """Return a connection that was just accepted, and what its transport is made to do."""

    def nothing(*_: object) -> None:
        pass

    house: Any = SimpleNamespace(
        loop=asyncio.get_running_loop(),
        timers=Timers(asyncio.get_running_loop()),
        policy=Policy(),
        sessions=Sessions(),
        dispatch=SimpleNamespace(call=nothing),
        began=nothing,
        ended=nothing,
        is_leaving=lambda _: False,
    )
    transport = Transport()
    app = AppSocket(house, Listener("127.0.0.1", 0), nothing)
    app.connection_made(cast(asyncio.BaseTransport, transport))
    return app, transport.calls


def run(check: Callable[[AppSocket, list[str]], None], *, wait: float = 0.0) -> list[str]:
    """Do something with a connection, wait, and return what its transport was made to do."""

    async def main() -> list[str]:
        app, calls = opened()
        check(app, calls)
        await asyncio.sleep(wait)
        found = list(calls)
        if app.state not in (State.LOST, State.RESET):
            app.connection_lost(None)
        return found

    return asyncio.run(main())


def test_an_app_that_has_not_ended_is_still_read_from_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimits, "LINGER_SECONDS", 0.05)
    assert run(lambda app, _: app.close()) == ["write_eof"]
    assert run(lambda app, _: app.close(), wait=0.2) == ["write_eof", "close"]


def test_one_that_has_is_closed_at_once() -> None:
    def check(app: AppSocket, _: list[str]) -> None:
        assert app.eof_received()
        assert app.has_ended
        app.close()

    assert run(check) == ["write_eof", "close"]


@pytest.mark.parametrize(("error", "was_reset"), [(None, False), (ConnectionResetError(), True)])
def test_an_end_that_is_not_in_order_is_told_from_one_that_is(error: Exception | None, was_reset: bool) -> None:
    def check(app: AppSocket, _: list[str]) -> None:
        app.connection_lost(error)
        assert app.was_reset is was_reset
        assert app.is_closing
        assert app.speaker is GONE

    run(check)


def test_what_was_opened_for_a_connection_may_fail_after_its_end() -> None:
    def check(app: AppSocket, calls: list[str]) -> None:
        app.connection_lost(None)
        app.crash(RuntimeError())
        assert app.state is State.LOST
        assert calls == ["abort"]

    run(check)


def test_one_that_is_to_end_does_so_once_nothing_is_under_way_on_it() -> None:
    def check(app: AppSocket, calls: list[str]) -> None:
        exchange = Exchange(app.session.policy, app.session.client)
        app.session.requests = 1
        app.session.unfinished.add(exchange)
        app.drain()
        app.after_step()
        assert calls == []
        app.session.unfinished.discard(exchange)
        app.after_step()
        assert calls == ["write_eof"]

    run(check)


def test_one_that_is_over_is_freed_at_once() -> None:
    """It has no circle of references, which only the garbage collector would find."""

    async def main() -> None:
        app, _ = opened()
        app.clock.start(SimpleNamespace(unsent=lambda: 0), 60, lambda: None)
        app.close()
        app.connection_lost(None)
        freed = weakref.ref(app)
        del app
        assert freed() is None

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_it_is_lost_once() -> None:
    def check(app: AppSocket, _: list[str]) -> None:
        app.connection_lost(None)
        with pytest.raises(IllegalTransition):
            app.connection_lost(None)

    run(check)


def test_a_step_that_may_not_be_taken_breaks_the_connection_off() -> None:
    def check(app: AppSocket, calls: list[str]) -> None:
        app.close()
        app.guarded(app.start_tls, SimpleNamespace(_ssl=None, _into_ssl=None, _from_ssl=None))
        assert app.state is State.ABORTED
        assert app.tls is None
        assert calls == ["write_eof", "abort"]

    run(check)
