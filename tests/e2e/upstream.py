"""Servers that stand for the internet and record every byte that reaches them.

Rules of this module:

- A recorder must not be able to miss anything: `settle` waits until all that was sent before the call is recorded, so
  `assert_untouched` and `assert_no_application_bytes` are evidence, not a race that the test happened to win.
- An exception in a test's `respond` fails the test; a peer that goes away is recorded and is no error.

    authority = Authority()
    with TlsUpstream(authority, "api.pay.example") as upstream:
        ...                                             # something sends a request to 127.0.0.1:upstream.port
        (request,) = upstream.wait_for_requests(1)
        assert request.json() == {"amount": 1}
        assert request.connection.tls_version == "TLSv1.3"

Connections are served by a thread each. `respond` gets each whole request, and returns the raw bytes of the answer or
yields them piece by piece; an answer that says `Connection: close` is the connection's last, and after a 101 all bytes
are recorded but none is answered.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from tests.e2e import wire
from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.connection import (
    Channel,
    Connection,
    PlainChannel,
    RecordedRequest,
    RequestReader,
    ServerObject,
    TlsChannel,
)
from tests.e2e.listeners import listen

DEADLINE = 5.0  # seconds that any wait of a test may take before it fails


Respond = Callable[[RecordedRequest], bytes | Iterable[bytes]]


def echo(request: RecordedRequest) -> bytes:
    """Answer 200 with a JSON object that tells the method, the target, the header fields and the body."""
    seen = {
        "method": request.method,
        "target": request.target,
        "headers": request.headers.fields,
        "body": request.body.decode("utf-8", "backslashreplace"),
    }
    answer = wire.response(200, json.dumps(seen).encode())
    return answer.partition(wire.END_OF_HEAD)[0] + wire.END_OF_HEAD if request.method == "HEAD" else answer


class _Upstream:
    """What both kinds of upstream share: the threads, the record and the waits."""

    def __init__(self, *, address: str, respond: Respond, farewell: bool, port: int = 0) -> None:
        self.address = address
        self.connections: list[Connection] = []
        self._respond = respond
        self._farewell = farewell
        self._changed = threading.Condition()
        self._sockets: dict[Connection, tuple[socket.socket, threading.Lock, threading.Thread]] = {}
        self._probes: dict[tuple[str, int], threading.Event] = {}
        self._failures: list[BaseException] = []
        self._closing = False
        self._listener = listen(address, port=port)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"upstream-{self.port}", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._failures:
            raise AssertionError(f"the upstream on port {self.port} failed") from self._failures[0]

    def url(self, path: str = "/", *, scheme: str = "http", host: str | None = None) -> str:
        """Return a URL of this server.

        Args:
            path: the path with any query.
            scheme: `http` or `https`, as the app would write it.
            host: a name that the sidecar resolves to this server; its address by default.
        """
        authority = host or (f"[{self.address}]" if ":" in self.address else self.address)
        return f"{scheme}://{authority}:{self.port}{path}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """All requests of all connections in the order they were complete."""
        found = [request for connection in list(self.connections) for request in list(connection.requests)]
        return sorted(found, key=lambda request: request.received_at)

    @property
    def received(self) -> bytes:
        """Every application byte of every connection, one connection after the other."""
        return b"".join(connection.received for connection in list(self.connections))

    @property
    def wire(self) -> bytes:
        """Every byte that came over TCP, one connection after the other."""
        return b"".join(connection.wire for connection in list(self.connections))

    def wait_for_requests(self, count: int, *, deadline: float = DEADLINE) -> list[RecordedRequest]:
        """Wait until exactly `count` requests are here, and return them.

        Raises:
            AssertionError: after `deadline` seconds there were fewer, or there are more.
        """
        self._wait(lambda: len(self.requests) >= count, deadline, f"{count} requests")
        found = self.requests
        assert len(found) == count, f"{len(found)} requests came where {count} were expected"
        return found

    def wait_for_connections(self, count: int, *, closed: bool = False, deadline: float = DEADLINE) -> list[Connection]:
        """Wait until exactly `count` connections were made, and return them.

        Args:
            count: how many, since the start.
            closed: wait until all of them are over, too.
            deadline: seconds to wait.

        Raises:
            AssertionError: after `deadline` seconds there were fewer, or there are more.
        """
        self._wait(
            lambda: len(self.connections) >= count and not (closed and any(not c.closed for c in self.connections)),
            deadline,
            f"{count} {'closed ' if closed else ''}connections",
        )
        assert len(self.connections) == count, f"{len(self.connections)} connections where {count} were expected"
        return list(self.connections)

    def wait_for_bytes(self, data: bytes, *, deadline: float = DEADLINE) -> None:
        """Wait until these application bytes have come, on whichever connection, though no request be whole yet."""
        self._wait(lambda: data in self.received, deadline, repr(data))

    def settle(self) -> None:
        """Wait until everything that was sent to this server before this call is recorded.

        A probe connection is made: connections are accepted in their order, so when the probe is, all earlier ones are
        known. Then every connection is waited for until nothing lies unread in its socket.

        Raises:
            AssertionError: that took longer than `DEADLINE`, for example since `respond` is still at work.
        """
        if self._closing:
            return  # `close` has waited for all of it
        self._probe()
        end = time.monotonic() + DEADLINE
        for connection in list(self.connections):
            sock, lock, _ = self._sockets[connection]
            while True:
                with lock:
                    if connection.closed or not _readable(sock, 0):
                        break
                assert time.monotonic() < end, f"{connection} has unread bytes"
                time.sleep(0.001)

    def assert_untouched(self) -> None:
        """Fail if anybody ever connected."""
        self.settle()
        assert not self.connections, f"{len(self.connections)} connections were made: {self.connections!r}"

    def assert_no_application_bytes(self) -> None:
        """Fail if even one application byte ever came; connections and failed handshakes are fine."""
        self.settle()
        touched = [connection for connection in self.connections if connection.received]
        assert not touched, f"application bytes came: {touched!r}"

    def hang_up(self) -> None:
        """End the connections that were made, and go on listening."""
        for sock, _, _ in list(self._sockets.values()):
            with contextlib.suppress(OSError):  # it is closed already
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections and stop listening. What was recorded stays."""
        if self._closing:
            return
        self._closing = True
        self._probe()  # closing the listener does not wake its accept() on all systems
        self._acceptor.join(DEADLINE)
        self._listener.close()
        self.hang_up()
        for _, _, thread in list(self._sockets.values()):
            thread.join(DEADLINE)

    def _channel(self, connection: Connection) -> Channel:
        """Return what the bytes go through; each of the servers has its own."""
        raise NotImplementedError

    def _probe(self) -> None:
        """Connect, and wait until that connection is accepted; it is known by its port and not recorded."""
        with socket.socket(self._listener.family) as probe:
            probe.bind((self.address, 0))
            accepted = self._probes[probe.getsockname()[:2]] = threading.Event()
            probe.settimeout(DEADLINE)
            probe.connect((self.address, self.port))
            assert accepted.wait(DEADLINE), "the upstream accepts no connections any more"

    def _wait(self, reached: Callable[[], bool], deadline: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(reached, deadline):
                found = "\n  ".join(repr(connection) for connection in self.connections) or "no connection"
                raise AssertionError(f"no {what} within {deadline} s on port {self.port}; there is:\n  {found}")

    def _accept(self) -> None:
        while True:
            sock, peer = self._listener.accept()
            probe = self._probes.pop(peer[:2], None)
            if probe is not None:
                sock.close()
                probe.set()
                if self._closing:
                    return
                continue
            connection = Connection(peer[:2], time.monotonic())
            lock = threading.Lock()
            thread = threading.Thread(target=self._serve, args=(connection, sock, lock), daemon=True)
            self._sockets[connection] = (sock, lock, thread)
            with self._changed:
                self.connections.append(connection)
                self._changed.notify_all()
            thread.start()

    def _serve(self, connection: Connection, sock: socket.socket, lock: threading.Lock) -> None:
        try:
            self._converse(connection, sock, lock)
        except OSError as error:  # the peer went away; the test decides whether that is right
            connection.broken = connection.broken or str(error)
        except BaseException as error:  # kept, and raised in the test's own thread by __exit__
            self._failures.append(error)
        finally:
            with lock:
                connection.closed = True
                sock.close()
            with self._changed:
                self._changed.notify_all()

    def _converse(self, connection: Connection, sock: socket.socket, lock: threading.Lock) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = self._channel(connection)
        reader = RequestReader(connection)
        while not connection.closed:
            _readable(sock, None)
            with lock:  # nobody may look between reading and recording: see settle
                data = sock.recv(65536)
                connection.wire += data
                plain = channel.feed(data)
                if plain:
                    connection.first_byte_at = connection.first_byte_at or time.monotonic()
                    connection.received += plain
                answers = reader.feed(plain)
            with self._changed:
                self._changed.notify_all()
            _send(sock, channel.seal(b""))
            if connection.handshake_error is not None:
                return
            for answer in answers:
                if self._answer(sock, channel, reader, answer):
                    return
            if not data or connection.close_notify or connection.broken:
                return

    def _answer(
        self, sock: socket.socket, channel: Channel, reader: RequestReader, request: RecordedRequest | bytes
    ) -> bool:
        """Send one answer; tell whether it is the last one."""
        answer = request if isinstance(request, bytes) else self._respond(request)
        sent = b""
        for piece in (answer,) if isinstance(answer, bytes) else answer:
            sent += piece
            _send(sock, channel.seal(piece))
        head = wire.read_head(sent) if sent.startswith(b"HTTP/1.") else None  # a test may send bytes that are no HTTP
        if head is not None and wire.status_of(head.start_line) == 101:
            reader.stop()
        last = head is not None and "close" in head.headers.tokens("Connection")
        if last and self._farewell:
            _send(sock, channel.farewell())
        return last


class PlainUpstream(_Upstream):
    """A plain TCP server: it proves that nothing plain arrives, or shows what does.

    Args:
        address: an address to listen on.
        port: the port; 0 for a free one.
        respond: what to answer a request with.
    """

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0, respond: Respond = echo) -> None:
        super().__init__(address=address, port=port, respond=respond, farewell=True)

    def _channel(self, connection: Connection) -> Channel:
        return PlainChannel()


class TlsUpstream(_Upstream):
    """A TLS server.

    Args:
        authority: who issues its certificate.
        names: DNS names and addresses that the certificate is for; `localhost` and `address` by default.
        variant: what shall be wrong with the certificate.
        identity: a key and certificates to present instead of ones made from the arguments above.
        address: an address to listen on.
        port: the port; 0 for a free one.
        respond: what to answer a request with.
        min_tls: the lowest TLS version.
        max_tls: the highest TLS version; below 1.2 the cipher list is widened to what such servers have.
        alpn: the protocols to agree on, the preferred one first.
        ciphers: an OpenSSL cipher list for TLS 1.2 and below.
        farewell: whether a connection that this server ends gets a close_notify; without it the stream is truncated.
        clients: the authority that issues the certificates which clients must show; None if none is asked for.
    """

    def __init__(
        self,
        authority: Authority,
        *names: str,
        variant: Variant = Variant.VALID,
        identity: Identity | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
        respond: Respond = echo,
        min_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        max_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        alpn: tuple[str, ...] = ("http/1.1",),
        ciphers: str | None = None,
        farewell: bool = True,
        clients: Authority | None = None,
    ) -> None:
        self._clients = clients
        self._shown: ssl.SSLContext | None = None  # in place of `_context`, whose sessions and tickets count
        self.identity = identity or authority.issue(*(names or ("localhost", address)), variant=variant)
        self._options = (min_tls, max_tls, alpn, ciphers)
        self._context = self._new_context()
        super().__init__(address=address, port=port, respond=respond, farewell=farewell)

    @property
    def pin(self) -> str:
        """The pin of the key that is presented now, `sha256/…`."""
        return self.identity.pin

    def present(self, identity: Identity, *, keeps_sessions: bool = False) -> None:
        """Present another key and certificate from the next connection on.

        Args:
            identity: the key and certificates.
            keeps_sessions: whether a client may resume a session of before, in which it then sees none of them.
        """
        self.identity = identity
        if keeps_sessions:
            self._shown = self._new_context()
        else:
            self._context, self._shown = self._new_context(), None

    def _channel(self, connection: Connection) -> Channel:
        return TlsChannel(self._context, connection)

    def _new_context(self) -> ssl.SSLContext:
        min_tls, max_tls, alpn, ciphers = self._options
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = ServerObject
        context.sni_callback = self._take_name
        if ciphers is None and max_tls < ssl.TLSVersion.TLSv1_2:
            ciphers = "DEFAULT:@SECLEVEL=0"  # OpenSSL 3 signs no TLS 1.0 or 1.1 handshake above level 0
        if ciphers is not None:
            context.set_ciphers(ciphers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # old versions are deprecated; here they are the point
            context.minimum_version = min(min_tls, max_tls)
            context.maximum_version = max_tls
        if alpn:
            context.set_alpn_protocols(list(alpn))
        self.identity.load_into(context)
        if self._clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self._clients.pem.decode("ascii"))
        return context

    def _take_name(self, tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        assert isinstance(tls, ServerObject)
        tls.asked_for = name
        if self._shown is not None:
            tls.context = self._shown


def _readable(sock: socket.socket, seconds: float | None) -> bool:
    poll = select.poll()  # select() itself knows no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _send(sock: socket.socket, data: bytes) -> None:
    if data:
        sock.sendall(data)


class SlowUpstream(PlainUpstream):
    """Answers when it is told to.

    Attributes:
        release: lets it answer.
    """

    def __init__(self) -> None:
        self.release = threading.Event()
        super().__init__(respond=self._answer_late)

    def _answer_late(self, _: RecordedRequest) -> bytes:
        self.release.wait(20)
        return wire.response(200, b'"late"')

    def close(self) -> None:
        self.release.set()
        super().close()
