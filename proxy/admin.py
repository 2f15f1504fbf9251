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
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SOCKET_SECONDS = 10
POLL_SECONDS = 0.1  # how long `close` may have to wait

logger = logging.getLogger("overcoat")


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        # Not HTTPServer's: that looks up the host's name in the DNS, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line that a scraper went away or was too slow; socketserver's own way is a traceback."""
        error = sys.exception()
        logger.info("a request to the admin listener ended early: %s", type(error).__name__)


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = SOCKET_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: scrapes are not requests of the app."""


class Admin:
    """The running admin listener."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, is_ready: Callable[[], bool]) -> None:
        """Bind and start.

        Args:
            host: the address to bind.
            port: the port; 0 for a free one.
            registry: what `/metrics` shows.
            is_ready: what `/ready` answers.

        Raises:
            OSError: the address cannot be bound.
        """
        kind = _ThreadingServer6 if ":" in host else _ThreadingServer
        self._server = make_server(host, port, _app(registry, is_ready), kind, _Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="admin", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The address that is bound."""
        return str(self._server.server_address[0]), int(self._server.server_address[1])

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
