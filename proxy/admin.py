"""The admin listener: `/metrics`, `/live` and `/ready`, on an address of its own.

Rules of this module:

- It answers GET and HEAD on these three paths and nothing else, and tells nothing that a request or a key contained.
- `/live` is 200 while the process serves; `/ready` is 200 from when every listener is bound until draining starts.
- It runs in threads of its own, so that a slow scraper costs the proxy nothing.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SOCKET_SECONDS = 10
POLL_SECONDS = 0.1  # how long `close` may have to wait

logger = logging.getLogger("overcoat")


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(bound.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        # Not HTTPServer's: that looks up the host's name in the DNS, which may take seconds.
        self.server_name, self.server_port = bound.getsockname()[:2]
        self.setup_environ()
        self.server_activate()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line that a scraper went away or was too slow; socketserver's own way is a traceback."""
        error = sys.exception()
        logger.info("a request to the admin listener ended early: %s", type(error).__name__)


class _Handler(WSGIRequestHandler):
    timeout = SOCKET_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: scrapes are not requests of the app."""


def bind_admin(host: str, port: int) -> socket.socket:
    """Bind where the admin listener is to listen.

    Args:
        host: an address, or a name.
        port: the port; 0 for a free one.

    Raises:
        OSError: it cannot be bound.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


class Admin:
    """The running admin listener."""

    def __init__(self, bound: socket.socket, registry: CollectorRegistry, is_ready: Callable[[], bool]) -> None:
        """Start.

        Args:
            bound: see `bind_admin`.
            registry: what `/metrics` shows.
            is_ready: what `/ready` answers.
        """
        self._server = _ThreadingServer(bound)
        self._server.set_app(_app(registry, is_ready))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="admin", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The address that is bound."""
        return self._server.server_name, self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def _app(registry: CollectorRegistry, is_ready: Callable[[], bool]) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = get(environ, start_response)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else answer

    def get(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _text(start_response, "405 Method Not Allowed", "only GET and HEAD are answered here")
        if path == "/metrics":
            return cast("Iterable[bytes]", metrics({**environ, "REQUEST_METHOD": "GET"}, start_response))
        if path == "/live":
            return _text(start_response, "200 OK", "live")
        if path == "/ready":
            ready = is_ready()
            status = "200 OK" if ready else "503 Service Unavailable"
            return _text(start_response, status, "ready" if ready else "not ready")
        return _text(start_response, "404 Not Found", "there are /metrics, /live and /ready")

    return app


def _text(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [text.encode() + b"\n"]
