"""Hooks: called in order; one that raises fails closed, and nothing of what it raised is said.

Proves ARCHITECTURE's rules 1 (fail closed) and 6 (no secret is ever written).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import connection, flow, http

from addons.sessions import Sessions
from proxy.engine.dispatch import Dispatcher, HookFailed
from proxy.log import describe

CANARY = "canary-4111"


class Recorder:
    """An addon that notes its calls; each hook does what the test says."""

    def __init__(self, name: str, calls: list[str], act: Callable[[Any], object] = lambda _: None) -> None:
        self.name, self.calls, self.act = name, calls, act

    def _called(self, subject: Any) -> None:
        self.calls.append(self.name)
        self.act(subject)

    requestheaders = request = responseheaders = response = http_connect = error = client_connected = _called


def boom(_: object) -> None:
    raise ValueError(CANARY)


@pytest.fixture
def a_flow(client: connection.Client) -> http.HTTPFlow:
    made = http.HTTPFlow(client, connection.Server(address=("api.example", 443)))
    made.request = http.Request.make("POST", "https://api.example/", b"")
    made.request.data.content = None  # as a request whose body is not here (yet)
    return made


class TestOrder:
    def test_every_addon_that_has_the_hook_is_called_in_its_turn(
        self, sessions: Sessions, a_flow: http.HTTPFlow
    ) -> None:
        calls: list[str] = []
        dispatch = Dispatcher(
            [Recorder("one", calls), object(), Recorder("two", calls)], sessions, lambda: calls.append("failure")
        )
        for _ in range(2):
            dispatch.call("requestheaders", a_flow)
        assert calls == ["one", "two", "one", "two"]

    def test_a_hook_that_nobody_has_is_no_error(self, sessions: Sessions, client: connection.Client) -> None:
        dispatch = Dispatcher([object()], sessions, lambda: pytest.fail("nothing failed"))
        dispatch.call("client_disconnected", client)


class TestFailures:
    @pytest.mark.parametrize("hook", ["requestheaders", "http_connect"])
    def test_before_anything_has_left_the_answer_is_internal_error(
        self, sessions: Sessions, a_flow: http.HTTPFlow, hook: str
    ) -> None:
        failures: list[int] = []
        Dispatcher([Recorder("one", [], boom)], sessions, lambda: failures.append(1)).call(hook, a_flow)
        assert a_flow.response is not None
        assert a_flow.response.status_code == 500
        assert b"internal_error" in (a_flow.response.content or b"")
        assert a_flow.error is None
        assert failures == [1]

    def test_a_request_whose_body_is_whole_here_is_answered(self, sessions: Sessions, a_flow: http.HTTPFlow) -> None:
        a_flow.request.data.content = b""
        a_flow.request.stream = lambda data: data
        Dispatcher([Recorder("one", [], boom)], sessions, lambda: None).call("request", a_flow)
        assert a_flow.response is not None
        assert a_flow.response.status_code == 500

    def test_a_request_whose_body_was_streamed_is_cut_off(self, sessions: Sessions, a_flow: http.HTTPFlow) -> None:
        a_flow.request.stream = True
        Dispatcher([Recorder("one", [], boom)], sessions, lambda: None).call("request", a_flow)
        assert a_flow.response is None
        assert a_flow.error is not None
        assert a_flow.error.msg == flow.Error.KILLED_MESSAGE

    @pytest.mark.parametrize(
        ("hook", "content", "cut_off"),
        [
            ("responseheaders", None, True),
            ("response", None, True),
            ("response", b"upstream's secret", False),
        ],
    )
    def test_a_response_is_replaced_while_it_is_held_and_cut_off_when_not(
        self, sessions: Sessions, a_flow: http.HTTPFlow, hook: str, content: bytes | None, cut_off: bool
    ) -> None:
        a_flow.response = http.Response.make(200, content or b"")
        a_flow.response.data.content = content
        Dispatcher([Recorder("one", [], boom)], sessions, lambda: None).call(hook, a_flow)
        assert (a_flow.error is not None) is cut_off
        if not cut_off:
            assert a_flow.response.status_code == 500
            assert b"secret" not in (a_flow.response.content or b"")

    def test_the_reason_is_noted_for_the_decision_line(self, sessions: Sessions, a_flow: http.HTTPFlow) -> None:
        Dispatcher([Recorder("one", [], boom)], sessions, lambda: None).call("requestheaders", a_flow)
        denied = sessions.exchange(a_flow).denied
        assert denied is not None
        assert denied.reason.code == "internal_error"
        assert "requestheaders" in denied.detail

    def test_a_failing_error_hook_leaves_no_answer_behind(self, sessions: Sessions, a_flow: http.HTTPFlow) -> None:
        Dispatcher([Recorder("one", [], boom)], sessions, lambda: None).call("error", a_flow)
        assert a_flow.response is None

    def test_a_flow_that_is_not_ours_is_killed(self, a_flow: http.HTTPFlow) -> None:
        Dispatcher([Recorder("one", [], boom)], Sessions(), lambda: None).call("requestheaders", a_flow)
        assert a_flow.error is not None
        assert a_flow.error.msg == flow.Error.KILLED_MESSAGE
        assert a_flow.response is None

    def test_a_hook_about_no_flow_fails_the_connection(self, sessions: Sessions, client: connection.Client) -> None:
        failures: list[int] = []
        dispatch = Dispatcher([Recorder("one", [], boom)], sessions, lambda: failures.append(1))
        with pytest.raises(HookFailed) as caught:
            dispatch.call("client_connected", client)
        assert str(caught.value) == "client_connected"
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert failures == [1]

    def test_later_addons_still_see_a_denied_flow_and_cannot_be_skipped_by_it(
        self, sessions: Sessions, a_flow: http.HTTPFlow
    ) -> None:
        calls: list[str] = []
        dispatch = Dispatcher([Recorder("one", calls, boom), Recorder("two", calls)], sessions, lambda: None)
        dispatch.call("requestheaders", a_flow)
        assert calls == ["one", "two"]


class TestSecrets:
    def test_the_log_has_the_type_and_the_place_and_not_the_message(
        self, sessions: Sessions, a_flow: http.HTTPFlow, caplog: pytest.LogCaptureFixture
    ) -> None:
        def chained(_: object) -> None:
            try:
                raise KeyError(CANARY)
            except KeyError as error:
                raise RuntimeError(f"again: {CANARY}") from error

        with caplog.at_level(logging.DEBUG):
            Dispatcher([Recorder("one", [], chained)], sessions, lambda: None).call("requestheaders", a_flow)
        assert "RuntimeError in chained (test_dispatch.py:" in caplog.text
        assert "the requestheaders hook failed" in caplog.text
        assert CANARY not in caplog.text
        assert a_flow.response is not None
        assert CANARY.encode() not in (a_flow.response.content or b"")

    def test_a_description_has_no_folder_of_the_machine(self) -> None:
        try:
            boom(None)
        except ValueError as error:
            described = describe(error)
        assert described.startswith("ValueError in boom (test_dispatch.py:")
        assert "/" not in described
        assert CANARY not in described

    def test_an_exception_that_was_never_raised_can_be_described(self) -> None:
        assert describe(ValueError(CANARY)) == "ValueError in "
