"""A step that may not be taken where a request or a connection stands fails closed: ARCHITECTURE's rule 1.

Nothing does that today. So each test runs a sidecar in which one step is mistaken for another, as a defect might do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.http2 import Http2Client
from tests.e2e.sidecar import ROOT, Sidecar
from tests.e2e.upstream import TlsUpstream

BEGIN = f"""
import sys
sys.path.append({str(ROOT)!r})
from proxy.engine.apps import conversation, socket
from proxy.engine.apps.states import AFTER_CONVERSATION, ConversationEvent, SocketEvent

def mistake(step, other):
    getattr(conversation, step)  # a name that has moved elsewhere: the sidecar doesn't start
    setattr(conversation, step, AFTER_CONVERSATION[ConversationEvent[other]])

def mistake_of_the_socket(event, other):
    table = socket.AFTER_SOCKET
    socket.AFTER_SOCKET = table | {{SocketEvent[event]: table[SocketEvent[other]]}}

%s
from proxy.cli import main
main()
"""
# What is mistaken for something else, which may not happen then.
BEFORE_IT_LEAVES = {
    "as the request ends": "mistake('_END', 'SWITCH')",
    "as it is sent": "mistake('_ASK', 'COMPLETE')",
}
MISTAKES = BEFORE_IT_LEAVES | {"as the response begins": "mistake('_BEGIN', 'COMPLETE')"}


def mistaken(authority: Authority, folder: Path, mistake: str) -> Sidecar:
    """Return a sidecar with a mistake in it."""
    script = folder / "mistaken.py"
    script.write_text(BEGIN % mistake)
    return Sidecar(
        "defaults: {https: inspect}", folder, authority=authority, command=[sys.executable, "-P", str(script)]
    )


def over_http1(sidecar: Sidecar, upstream: TlsUpstream) -> bytes:
    """Ask, and return all that comes."""
    with RawClient(sidecar.address) as client:
        client.send(f"GET {upstream.url('/')} HTTP/1.1\r\nHost: 127.0.0.1:{upstream.port}\r\n\r\n".encode())
        try:
            return client.read_to_end()
        except ConnectionResetError:
            return b""


def over_http2(sidecar: Sidecar, upstream: TlsUpstream) -> bytes:
    """Ask, and return what comes of a response."""
    host = f"127.0.0.1:{upstream.port}"
    with connect(sidecar, host) as client:
        h2 = Http2Client.open(client, "127.0.0.1", sidecar.ca_file)
        try:
            message = h2.read(h2.send(host, method="GET"))
        except (AssertionError, ConnectionError):  # the connection ended before
            return b""
        return repr(message.headers).encode() + message.body if message.reset is None else b""


@pytest.mark.parametrize("ask", [over_http1, over_http2])
@pytest.mark.parametrize("when", MISTAKES)
def test_a_step_that_may_not_be_taken_ends_the_request_without_a_byte(
    authority: Authority, tmp_path: Path, when: str, ask: Callable[[Sidecar, TlsUpstream], bytes]
) -> None:
    with TlsUpstream(authority) as upstream, mistaken(authority, tmp_path, MISTAKES[when]) as sidecar:
        assert ask(sidecar, upstream) == b""
        decision = sidecar.wait_for_decision(lambda each: each["method"] == "GET")
        assert (decision["reason"], decision["status"]) == ("internal_error", None)
        assert len(upstream.requests) == (when not in BEFORE_IT_LEAVES)
    assert "IllegalTransition" in sidecar.stderr


def test_tls_that_may_not_begin_ends_the_connection(authority: Authority, tmp_path: Path) -> None:
    mistake = "mistake_of_the_socket('START_TLS', 'SECURE')"
    with TlsUpstream(authority) as upstream, mistaken(authority, tmp_path, mistake) as sidecar:
        with connect(sidecar, f"127.0.0.1:{upstream.port}") as client, pytest.raises((OSError, AssertionError)):
            Http2Client.open(client, "127.0.0.1", sidecar.ca_file)
        decision = sidecar.wait_for_decision()
        assert (decision["method"], decision["reason"]) == ("CONNECT", "internal_error")
        assert upstream.requests == []
    assert "IllegalTransition" in sidecar.stderr
