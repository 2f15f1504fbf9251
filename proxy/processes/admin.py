"""The admin listener, which serves `/metrics`, `/live`, `/ready` and the status page, and the probes listener, which
serves `/live` and `/ready` only. `proxy.commands.serve` starts them, or `proxy.processes.children` if there are several
workers.

Rules of this module:

- They answer GET and HEAD on these paths and nothing else, and never show anything from a request to them, or a key.
- `/live` is 200 while the process serves; `/ready` is 200 from the moment when every listener is bound until draining
  begins.
- The admin listener answers clients on this machine, and others if the policy's `clients.admin` names them. The request
  must call it by a name that nobody else can register; otherwise a web page in a browser on this machine could read the
  answer (DNS rebinding).
- The probes listener answers anybody, by any name: what it says is no secret.
- A request is read up to 64 KiB of its first line, and as many of its fields.
- They run in their own threads, so that a slow scraper does not delay the proxy. The number of connections is limited:
  the oldest is closed for a new one, and its thread ends.
- Metrics and the status page are made for one request at a time. All that make them at once would take turns with the
  proxy itself, which has one thread. `/live` and `/ready` wait for nobody.
- They answer even if no file descriptor is free: one is kept for that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import LineTooLong
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import HTTP_PORT
from proxy.core.http.names import is_own_name, read_host_field
from proxy.core.rules.policy import Policy
from proxy.core.who.clients import may_ask
from proxy.engine.descriptors import SHORTAGES, shortage
from proxy.log import describe
from proxy.processes.status import Sidecar, Status
from proxy.processes.statuspage import status_pages

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_OPEN = 16
MAX_REQUEST_LINE = 65536
MAX_FIELDS = 65536  # bytes of all header fields; http.server alone would take a hundred of that size
_TURN = "overcoat.turn"

logger = logging.getLogger("overcoat")


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bound: socket.socket) -> None:
        self._spare: int | None = None
        self._open: dict[socket.socket, None] = {}  # connections that may stay, oldest first
        self._changed = threading.Condition()  # what is open, or whether an answer is being made
        self._is_making = False
        super().__init__(bound.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        # Replaces HTTPServer's method, which looks up the host's name in the DNS; that may take seconds.
        self.server_name, self.server_port = bound.getsockname()[:2]
        self.setup_environ()
        self.server_activate()
        self.service_actions()

    def service_actions(self) -> None:
        """Take a descriptor to keep, whenever one is free."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection; if no descriptor is free for it, use the kept one."""
        try:
            return super().get_request()
        except OSError as e:
            if e.errno not in SHORTAGES:
                raise
        if self._spare is None:
            time.sleep(timelimits.ADMIN_CHECK_SECONDS)  # else it would be tried again at once, without success
            raise shortage()
        os.close(self._spare)
        self._spare = None
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a separate thread."""
        with self._changed:
            if len(self._open) >= MAX_OPEN:
                oldest = next(iter(self._open))
                del self._open[oldest]  # its thread ends once it reads, writes or waits
                with contextlib.suppress(OSError):  # its peer has ended it
                    oldest.shutdown(socket.SHUT_RDWR)
                self._changed.notify_all()
            self._open[request] = None
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Close a connection, and forget it."""
        with self._changed:
            self._open.pop(request, None)
        super().close_request(request)

    @contextlib.contextmanager
    def turn(self, connection: socket.socket) -> Iterator[None]:
        """Wait until no other answer is being made, and let no other be made meanwhile.

        Raises:
            ConnectionAbortedError: the connection was closed for a new one.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_making or connection not in self._open)
            if connection not in self._open:
                raise ConnectionAbortedError
            self._is_making = True
        try:
            yield
        finally:
            with self._changed:
                self._is_making = False
                self._changed.notify_all()

    def server_close(self) -> None:
        """Stop, and close the kept descriptor."""
        super().server_close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def handle_error(self, request: object, client_address: object) -> None:
        """Log in one line that a scraper went away or was too slow; socketserver itself would write a traceback."""
        _say_ended(sys.exception())


def _say_ended(error: BaseException | None) -> None:
    logger.info("a request to the admin listener ended early: %s", type(error).__name__)


class _Answer(ServerHandler):
    request_handler: WSGIRequestHandler  # missing in the stub

    def log_exception(self, exc_info: OptExcInfo) -> None:
        """Log in one line what was raised while answering, or that the scraper was too slow in reading."""
        error = exc_info[1]
        if isinstance(error, TimeoutError):
            _say_ended(error)
        elif error is not None:
            logger.error("a request to the admin listener could not be answered: %s", describe(error))


class _Fields:
    """The header fields of a request, line by line, up to a limit."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = MAX_FIELDS

    def readline(self, limit: int) -> bytes:
        """Return the next line, or its first `limit` bytes.

        Raises:
            LineTooLong: there is more than the limit of all of them; the handler's base class answers that.
        """
        line: bytes = self._stream.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("header")
        return line


class _Handler(WSGIRequestHandler):
    timeout = timelimits.ADMIN_SOCKET_SECONDS

    def handle(self) -> None:
        """Answer one request. WSGIRequestHandler itself would write tracebacks to standard error."""
        self.raw_requestline = self.rfile.readline(MAX_REQUEST_LINE + 1)
        if len(self.raw_requestline) > MAX_REQUEST_LINE:
            self.requestline, self.request_version, self.command = "", "", ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        elif self._read_fields():
            reader, writer = cast(IO[bytes], self.rfile), cast(IO[bytes], self.wfile)
            answer = _Answer(reader, writer, self.get_stderr(), self.get_environ())
            answer.request_handler = self
            answer.run(cast("WSGIApplication", cast(WSGIServer, self.server).get_app()))

    def _read_fields(self) -> bool:
        """Read the rest of the head; if it is none that is answered, say so and return False."""
        whole = self.rfile
        self.rfile = cast(Any, _Fields(whole))
        try:
            return self.parse_request()
        finally:
            self.rfile = whole

    def get_environ(self) -> WSGIEnvironment:
        """Return the environment of the request, with what waits for its turn."""
        server = cast(_ThreadingServer, self.server)
        return {**super().get_environ(), _TURN: lambda: server.turn(self.request)}

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, without repeating anything of it."""
        super().send_error(code)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes are not requests of the app."""


def bind_admin(host: str, port: int) -> socket.socket:
    """Bind the address of an admin or probes listener.

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
    """A running admin or probes listener."""

    def __init__(self, bound: socket.socket, app: WSGIApplication, name: str = "admin") -> None:
        """Start.

        Args:
            bound: the socket; see `bind_admin`.
            app: what it serves: `admin_app` or `probes_app`.
            name: its name, for the log.
        """
        self._server = _ThreadingServer(bound)
        self._server.set_app(app)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(timelimits.ADMIN_CHECK_SECONDS,), name=name, daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The address that it is bound to."""
        return self._server.server_name, self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True, slots=True)
class AdminSockets:
    """The bound sockets of both listeners; None for one that the policy does not have."""

    admin: socket.socket | None
    probes: socket.socket | None

    @property
    def all(self) -> list[socket.socket]:
        """The sockets that exist."""
        return [each for each in (self.admin, self.probes) if each is not None]

    def start(self, sidecar: Sidecar) -> list[Admin]:
        """Start the listeners; the argument is that of `admin_app`."""
        started = []
        if self.admin is not None:
            started.append(Admin(self.admin, admin_app(sidecar)))
        if self.probes is not None:
            started.append(Admin(self.probes, probes_app(sidecar.is_ready), "probes"))
        return started


def admin_app(sidecar: Sidecar) -> WSGIApplication:
    """Return the WSGI application of the admin listener.

    Args:
        sidecar: what it tells about.
    """
    metrics = make_wsgi_app(sidecar.registry)

    def show(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = {**environ, "REQUEST_METHOD": "GET"}
        try:
            return cast("Iterable[bytes]", metrics(asked, start_response))
        except (TypeError, ValueError):  # prometheus-client cannot read the Accept field: ignore it
            asked.pop("HTTP_ACCEPT", None)
            return cast("Iterable[bytes]", metrics(asked, start_response))

    pages = status_pages(Status(sidecar).view)
    pages["/"] = _in_turn(pages["/"])
    answer = _app({"/metrics": _in_turn(show), **_probes(sidecar.is_ready), **pages})

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refused = _refused(environ, sidecar.policy())
        if refused is None:
            return answer(environ, start_response)
        return _without_body_of_head(environ, _text(start_response, *refused))

    return app


def _in_turn(page: WSGIApplication) -> WSGIApplication:
    """Return a page that is made for one request at a time. It is sent at whatever pace its reader has."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with environ[_TURN]():
            return page(environ, start_response)

    return app


def probes_app(is_ready: Callable[[], bool]) -> WSGIApplication:
    """Return the WSGI application of the probes listener.

    Args:
        is_ready: the answer of `/ready`.
    """
    return _app(_probes(is_ready))


def _refused(environ: WSGIEnvironment, policy: Policy) -> tuple[str, str] | None:
    """Return the status and text for a request that must not be answered; None for all others."""
    if not may_ask(policy.scrapers, environ["REMOTE_ADDR"]):
        return "403 Forbidden", "the policy's clients.admin does not name your address, so it may not ask here"
    host = environ.get("HTTP_HOST")
    if host is None:
        return None  # browsers always send Host, and DNS rebinding needs a browser
    try:
        is_ours = is_own_name(read_host_field(host, HTTP_PORT).host, policy.names)
    except Denied:
        is_ours = False
    if is_ours:
        return None
    return "421 Misdirected Request", (
        "the Host field names no host that this listener is called by: call it by its address, or by a name without a "
        "public domain, or add the name to `names` in the policy"
    )


def _probes(is_ready: Callable[[], bool]) -> Mapping[str, WSGIApplication]:
    def live(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return _text(start_response, "200 OK", "live")

    def ready(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_ready():
            return _text(start_response, "200 OK", "ready")
        return _text(start_response, "503 Service Unavailable", "not ready")

    return {"/live": live, "/ready": ready}


def _app(pages: Mapping[str, WSGIApplication]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return _without_body_of_head(environ, get(environ, start_response))

    def get(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _text(start_response, "405 Method Not Allowed", "only GET and HEAD are answered here")
        page = pages.get(environ.get("PATH_INFO", ""))
        if page is None:
            return _text(start_response, "404 Not Found", f"there is {', '.join(pages)}")
        return page(environ, start_response)

    return app


def _without_body_of_head(environ: WSGIEnvironment, answer: Iterable[bytes]) -> Iterable[bytes]:
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else answer


def _text(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [text.encode() + b"\n"]
