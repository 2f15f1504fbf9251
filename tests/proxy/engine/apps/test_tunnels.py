"""A tunnel where something goes wrong, or ends, at a moment that no peer can choose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from addons.exchange import Exchange
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy
from proxy.engine.apps import tunnels
from proxy.engine.apps.tunnels import MAX_BACKLOG, Relay

FAILED = Denied(Reason.UPSTREAM_UNREACHABLE, "nobody listens")


class End:
    """Stands for the app's socket, or for the upstream's connection; what it was told is in `told`."""

    def __init__(self, **attributes: object) -> None:
        self.told: list[object] = []
        self.was_reset = False
        self.transport = SimpleNamespace(is_closing=lambda: True)
        self.session = SimpleNamespace(sent=0, received=0, connect=None)
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.told.append((name, *arguments) if arguments else name)

    def guarded(self, step: Callable[..., None], *arguments: object) -> None:
        step(*arguments)


def exchange() -> Exchange:
    """Return the CONNECT of a tunnel."""
    found = Exchange(Policy(), "127.0.0.1", "CONNECT")
    found.asked = Destination("a.example", 443)
    return found


def relay(app: End, upstream: End | None, data: bytes = b"") -> Relay:
    first: Any = app
    second: Any = upstream
    return Relay(first, second, data)


def dialled(monkeypatch: pytest.MonkeyPatch, outcome: End | Exception, check: Callable[[Relay], None]) -> End:
    """Dial an upstream, with what comes of it, after a check while it is not there yet; return the app's end."""

    async def dial(*_: object) -> object:
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def inside() -> End:
        app = End(loop=asyncio.get_running_loop(), house=SimpleNamespace(services=None), context=None)
        tunnel = relay(app, None, b"hello")
        tunnel.dial(exchange())
        check(tunnel)
        for _ in range(4):
            await asyncio.sleep(0)
        return app

    monkeypatch.setattr(tunnels, "dial", dial)
    return asyncio.run(inside())


def test_what_the_app_said_meanwhile_is_sent_and_its_end_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(tunnel: Relay) -> None:
        tunnel.feed(b" world")
        tunnel.congested(True)  # there is nothing to hold yet
        tunnel.eof()

    upstream = End()
    dialled(monkeypatch, upstream, check)
    sent = [each for each in upstream.told if each == "half_close" or each[0] == "send"]  # type: ignore[index]  # a tuple
    assert sent == [("send", b"hello world"), "half_close"]


def test_no_more_of_it_is_read_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(tunnel: Relay) -> None:
        tunnel.feed(bytes(MAX_BACKLOG))

    app = dialled(monkeypatch, End(), check)
    assert [each for each in app.told if each != "flush"] == [("hold", "dialling", True), ("hold", "dialling", False)]


def test_an_upstream_that_cannot_be_had_closes_the_apps_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dialled(monkeypatch, FAILED, lambda _: None).told == ["close"]


def test_a_fault_while_it_is_dialled_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ValueError("a fault")
    assert dialled(monkeypatch, fault, lambda _: None).told == [("crash", fault)]


def test_an_app_that_goes_away_meanwhile_ends_the_dialling(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = End()
    app = dialled(monkeypatch, upstream, Relay.gone)
    assert (app.told, upstream.told) == ([], [])


@pytest.mark.parametrize(("was_reset", "told"), [(True, "reset"), (False, "finish")])
def test_a_reset_stays_a_reset(was_reset: bool, told: str) -> None:
    upstream = End()
    relay(End(was_reset=was_reset), upstream).gone()
    assert upstream.told == [told]


@pytest.mark.parametrize("first", ["app", "upstream"])
def test_it_is_over_once_both_have_ended(first: str) -> None:
    app, upstream = End(), End()
    tunnel = relay(app, upstream)
    ends = [tunnel.eof, tunnel.switched_end]
    for end in ends if first == "app" else reversed(ends):
        assert "close" not in app.told
        end()
    assert (app.told[-1], upstream.told[-1]) == ("close", "finish")
    assert (app.told.count("half_close"), upstream.told.count("half_close")) == (1, 1)


def test_an_upstream_that_breaks_off_is_seen_as_such_by_the_app_and_in_the_decision_line() -> None:
    app, connect = End(), exchange()
    app.session.connect = connect
    relay(app, End()).response_failed(FAILED, False)
    assert app.told == ["abort"]
    assert connect.denied is not None
    assert connect.denied.reason is Reason.UPSTREAM_CUT


def test_one_that_does_so_after_its_end_has_broken_nothing_off() -> None:
    app, connect = End(), exchange()
    app.session.connect = connect
    tunnel = relay(app, End())
    tunnel.switched_end()
    tunnel.response_failed(FAILED, False)
    assert app.told == ["half_close", "abort"]
    assert connect.denied is None


def test_each_end_is_read_only_as_fast_as_the_other_takes_it() -> None:
    app, upstream = End(), End()
    tunnel = relay(app, upstream)
    tunnel.congested(True)
    tunnel.upstream_congested(True)
    tunnel.feed(b"up")
    tunnel.switched(b"down")
    assert upstream.told == [("hold", "app", True), ("send", b"up")]
    assert app.told == [("hold", "upstream", True), ("write", b"down")]
    assert (app.session.sent, app.session.received) == (2, 4)


def test_a_fault_of_the_upstreams_connection_is_one_of_the_apps() -> None:
    app, fault = End(), ValueError("a fault")
    tunnel = relay(app, End())
    tunnel.crashed(fault)
    tunnel.flush()
    assert app.told == [("crash", fault), "after_upstream"]


def test_it_has_no_deadline() -> None:
    with pytest.raises(RuntimeError, match="in a tunnel"):
        relay(End(), End()).too_slow()
