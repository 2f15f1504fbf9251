"""Calls the addons' hooks, and fails closed: if a hook raises, the flow is denied. The speakers, the conversations and
`upstreams.handshake` call it.

Rules of this module:

- The table of hooks is built once, in the order of the pipeline; calling a hook is a plain function call.
- If a hook raises, its flow does not go on: it is answered with `internal_error` if an answer is still possible, and
  broken off if not. mitmproxy's own dispatcher would log the error and forward the flow.
- An exception's message is never logged: it may quote secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http

from addons.sessions import Sessions
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason
from proxy.log import describe

logger = logging.getLogger("overcoat")


class HookFailed(Exception):
    """A hook that is not about an HTTP flow has raised: the whole client connection must be closed."""


class Dispatcher:
    """Calls the addons' hooks, and fails closed."""

    def __init__(self, addons: Iterable[object], sessions: Sessions, count_failure: Callable[[], object]) -> None:
        self._addons = tuple(addons)
        self._sessions = sessions
        self._count_failure = count_failure
        self._table: dict[str, tuple[Callable[..., object], ...]] = {}

    def _find(self, name: str) -> tuple[Callable[..., object], ...]:
        found = (getattr(addon, name, None) for addon in self._addons)
        hooks = self._table[name] = tuple(hook for hook in found if hook is not None)
        return hooks

    def call(self, hook: str, subject: object) -> None:
        """Call a hook of every addon that has it.

        Args:
            hook: its name in mitmproxy.
            subject: its only argument: what it is about.

        Raises:
            HookFailed: one has raised, and there is no HTTP flow to deny.
        """
        for function in self._table.get(hook) or self._find(hook):
            try:
                function(subject)
            except Exception as e:
                self._count_failure()
                logger.error("the %s hook failed, and what it was about is denied: %s", hook, describe(e))
                if not isinstance(subject, http.HTTPFlow):
                    raise HookFailed(hook) from None
                self._deny(hook, subject)

    def _deny(self, name: str, flow: http.HTTPFlow) -> None:
        denied = Denied(Reason.INTERNAL_ERROR, f"the {name} stage failed")
        try:
            exchange = self._sessions.exchange(flow)
        except KeyError:
            flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)
            return
        exchange.break_off(denied)
        # A streamed body is not kept. A body that is complete here, even an empty one, can still be held back.
        message_is_leaving = (
            (name == "request" and flow.request.data.content is None)
            or name == "responseheaders"
            or (name == "response" and flow.response is not None and flow.response.data.content is None)
        )
        if message_is_leaving:
            flow.error = mitmproxy_flow.Error(mitmproxy_flow.Error.KILLED_MESSAGE)
        elif name in ("http_connect", "requestheaders", "request", "response"):
            exchange.deny_always(flow, denied)
