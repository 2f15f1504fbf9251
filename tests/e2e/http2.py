"""HTTP/2 for tests: a client on a raw connection, and an upstream that records requests and frames.

Rules of this module:

- Both use the `h2` package directly, and nothing of the product.
- The upstream keeps the record of `TlsUpstream`, every application byte of it, so `assert_no_application_bytes` says
  whether even the connection preface or one frame ever came.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from hpack import NeverIndexedHeaderTuple

from tests.e2e.app import connect
from tests.e2e.certificates import Authority
from tests.e2e.clients import DEADLINE, RawClient
from tests.e2e.connection import Connection
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HeaderList = list[tuple[str, str]]


def agree_on_http2(client: RawClient, server_name: str, ca_file: Path) -> None:
    """Begin TLS on a connection, so far that HTTP/2 may begin.

    Raises:
        AssertionError: the other end does not speak HTTP/2.
    """
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2"])
    client.start_tls(server_name, context=context)
    assert client._socket.selected_alpn_protocol() == "h2"  # type: ignore[attr-defined]  # it is TLS by now


def never_indexed(name: str, value: str) -> tuple[str, str]:
    """Return a field that no table may keep (RFC 7541, section 6.2.3), as it stands in a `HeaderList`."""
    return cast("tuple[str, str]", NeverIndexedHeaderTuple(name, value))


def speak(sidecar: Sidecar, authority: str) -> Http2Client:
    """Open HTTP/2 through a sidecar to a destination, inspected inside CONNECT.

    Args:
        sidecar: the sidecar.
        authority: the destination, `host:port`.

    Raises:
        AssertionError: the sidecar does not speak HTTP/2.
    """
    ca_file = sidecar.ca_file  # asked for first: it may run a command, and a handshake has a limit
    return Http2Client.open(connect(sidecar, authority), authority.partition(":")[0], ca_file)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return the bytes of a frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


@dataclass
class Message:
    """A request or a response in a stream.

    Attributes:
        headers: the fields in order, including pseudo-header fields.
        body: the data so far.
        trailers: the fields behind the body.
        ended: whether its end has come.
        reset: the error code with which the stream or its connection was reset, or None.
        kept_out: the names of the fields of its head that no table may keep (RFC 7541, section 6.2.3).
        unacknowledged: how many bytes have come for which there was no window update.
    """

    headers: HeaderList = field(default_factory=list)
    body: bytes = b""
    trailers: HeaderList = field(default_factory=list)
    ended: bool = False
    reset: int | None = None
    unacknowledged: int = 0
    kept_out: list[str] = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """Return the only value of a field, or None."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def status(self) -> int:
        """The status of a response; 0 where there is none."""
        return int(self.get(":status") or 0)


class Http2Client:
    """An HTTP/2 client on a connection; `open` begins TLS on it.

    Args:
        client: a connection on which TLS has begun.
    """

    def __init__(self, client: RawClient) -> None:
        self._client = client
        # A test may send wrong requests, so nothing is checked or changed before it is sent.
        unchecked = H2Configuration(True, "utf-8", validate_outbound_headers=False, normalize_outbound_headers=False)
        self._protocol = H2Connection(unchecked)
        self._protocol.initiate_connection()
        self._protocol.increment_flow_control_window(64 * 1024 * 1024)  # for all streams together: none stalls others
        self._messages: dict[int, Message] = {}
        self._flush()

    @classmethod
    def open(cls, client: RawClient, server_name: str, ca_file: Path) -> Http2Client:
        """Begin TLS and HTTP/2 on a connection.

        Raises:
            AssertionError: the other end does not speak HTTP/2.
        """
        agree_on_http2(client, server_name, ca_file)
        return cls(client)

    def send(
        self,
        authority: str,
        path: str = "/",
        *,
        method: str = "POST",
        headers: HeaderList | None = None,
        body: bytes = b"",
    ) -> int:
        """Send a request, whole, and return its stream's number."""
        stream = self.begin(authority, path, method=method, headers=headers)
        self.go_on(stream, body, last=True)
        return stream

    def begin(self, authority: str, path: str = "/", *, method: str = "POST", headers: HeaderList | None = None) -> int:
        """Send a request's header fields, and return its stream's number."""
        pseudo = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        return self.begin_raw(pseudo + (headers or []))

    def begin_raw(self, headers: HeaderList, *, last: bool = False) -> int:
        """Send header fields just as they are, pseudo-header fields among them, and return the stream's number.

        Args:
            headers: the fields.
            last: whether they are all of the request.
        """
        stream = self._protocol.get_next_available_stream_id()
        self._protocol.send_headers(stream, headers, end_stream=last)
        self._messages[stream] = Message()
        self._flush()
        return stream

    def go_on(self, stream: int, data: bytes, *, last: bool) -> None:
        """Send a piece of a request's body; it must fit into the windows."""
        for start in range(0, len(data), 16384):
            self._protocol.send_data(stream, data[start : start + 16384])
        if last:
            self._protocol.end_stream(stream)
        self._flush()

    def send_frame(self, stream: int, data: bytes, *, padding: int | None = None) -> None:
        """Send one DATA frame, and be it empty."""
        self._protocol.send_data(stream, data, pad_length=padding)
        self._flush()

    def send_raw(self, data: bytes) -> None:
        """Send bytes unchanged; the state of this client ignores them."""
        self._client.send(data)

    def upload(self, stream: int, body: bytes) -> None:
        """Send a whole body, as the windows allow."""
        left = memoryview(body)
        while left:
            left = _send_some(self._protocol, stream, left)
            self._flush()
            if left:
                self._receive()
        self.go_on(stream, b"", last=True)

    def end_with(self, stream: int, trailers: HeaderList) -> None:
        """End a request with trailers."""
        self._protocol.send_headers(stream, trailers, end_stream=True)
        self._flush()

    def give_up(self, stream: int) -> None:
        """Reset a stream."""
        self._protocol.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()

    def send_while_there_is_room(self, stream: int, size: int, *, patience: float = 0.5) -> int:
        """Send up to `size` bytes of a body, as far as the windows allow; return how many.

        Args:
            stream: the request's.
            size: in bytes.
            patience: how many seconds to wait for more room.
        """
        left = memoryview(b"x" * size)
        self._client._socket.settimeout(patience)
        try:
            while left:
                left = _send_some(self._protocol, stream, left)
                self._flush()
                if left:
                    self._receive()
        except TimeoutError:
            pass  # no more room
        finally:
            self._client._socket.settimeout(DEADLINE)
        return size - len(left)

    def read(self, stream: int, *, acknowledging: set[int] | None = None) -> Message:
        """Return the response in a stream, once its end or a reset is here.

        Args:
            stream: the stream.
            acknowledging: the streams whose data is acknowledged, so that more may come; None for all.

        Raises:
            AssertionError: the connection ended before.
            TimeoutError: it did not come in time.
        """
        message = self._messages[stream]
        while not message.ended and message.reset is None:
            self._receive(acknowledging)
        return message

    def read_head(self, stream: int) -> Message:
        """Return what there is of the response in a stream, once its head or a reset is here; errors as for `read`."""
        message = self._messages[stream]
        while not message.headers and message.reset is None:
            self._receive()
        return message

    def read_to_end(self) -> None:
        """Read until the other end closes the connection; nothing is answered."""
        self._client.read_to_end()

    def read_farewell(self) -> int | None:
        """Return the error code of the GOAWAY with which the other end closes the connection, or None."""
        found = self._protocol.receive_data(self._client.read_to_end())
        return next((int(each.error_code or 0) for each in found if isinstance(each, ConnectionTerminated)), None)

    def acknowledge(self, stream: int) -> None:
        """Let more come in a stream whose data was not acknowledged before."""
        self._protocol.acknowledge_received_data(self._messages[stream].unacknowledged, stream)
        self._messages[stream].unacknowledged = 0
        self._flush()

    def _receive(self, acknowledging: set[int] | None = None) -> None:
        head = self._client.read_ahead(9)  # RFC 9113, section 4.1: length, type, flags, stream
        size = 9 + int.from_bytes(head[:3])
        self._client.read_ahead(size)
        for event in self._protocol.receive_data(self._client.read_exactly(size)):
            _take(self._protocol, self._messages, event, acknowledging)
        self._flush()

    def close(self) -> None:
        """Leave without a word."""
        self._client.close()

    def _flush(self) -> None:
        self._client.send(self._protocol.data_to_send())


@dataclass(frozen=True)
class Reply:
    """A response of an upstream, fields and all, just as it says.

    Attributes:
        headers: the fields, `:status` among them.
        body: the body; if it is empty, and no trailers follow, the head ends the response.
        trailers: what ends the response instead of the body's last piece.
        interim: how many responses with status 103 come before it.
    """

    headers: HeaderList
    body: bytes = b""
    trailers: HeaderList = field(default_factory=list)
    interim: int = 0


class Http2Upstream(TlsUpstream):
    """A TLS server that speaks HTTP/2 and nothing else.

    Args:
        authority: who issues its certificate.
        names: as for `TlsUpstream`.
        answer: takes a request and returns the body of its 200, or all of its response; None resets the stream.
    """

    def __init__(
        self, authority: Authority, *names: str, answer: Callable[[Message], bytes | Reply | None] | None = None
    ) -> None:
        self.messages: list[Message] = []
        self._answer_to = answer or (lambda _: b'{"from":"h2"}')
        super().__init__(authority, *names, alpn=("h2",))

    def wait_for_messages(self, count: int) -> list[Message]:
        """Wait until exactly `count` whole requests are here, and return them in the order of their end."""
        self._wait(lambda: len(self.messages) >= count, 5.0, f"{count} HTTP/2 requests")
        assert len(self.messages) == count
        return list(self.messages)

    def _converse(self, connection: Connection, sock: socket.socket, lock: threading.Lock) -> None:
        channel = self._channel(connection)
        unchecked = H2Configuration(False, "utf-8", validate_outbound_headers=False, normalize_outbound_headers=False)
        protocol = H2Connection(unchecked)
        streams: dict[int, Message] = {}
        unsent: dict[int, tuple[memoryview, HeaderList]] = {}
        begun = False
        while True:
            sock.setblocking(True)
            sock.recv(1, socket.MSG_PEEK)  # waits outside the lock; see the base class
            with lock:
                data = sock.recv(65536)
                connection.wire += data
                plain = channel.feed(data)
                connection.received += plain
            if connection.handshake_completed and not begun:
                begun = True
                protocol.initiate_connection()
            ended = []
            try:
                found = protocol.receive_data(plain) if plain else []
            except ProtocolError as error:
                connection.malformed = str(error)
                # Its settings have not gone out yet where what is wrong came together with the handshake's end.
                sock.sendall(channel.seal(protocol.data_to_send()))
                return
            for event in found:
                ended += _take(protocol, streams, event)
            for stream in ended:
                self.messages.append(streams[stream])
                if (reply := self._begin_reply(protocol, stream, streams[stream])) is not None:
                    unsent[stream] = (memoryview(reply.body), reply.trailers)
            for stream, (left, trailers) in list(unsent.items()):
                unsent[stream] = (_send_some(protocol, stream, left), trailers)
                if not unsent[stream][0]:
                    del unsent[stream]
                    if trailers:
                        protocol.send_headers(stream, trailers, end_stream=True)
                    else:
                        protocol.end_stream(stream)
            with self._changed:
                self._changed.notify_all()
            sock.sendall(channel.seal(protocol.data_to_send()))
            if not data or connection.handshake_error is not None or connection.close_notify:
                return

    def _begin_reply(self, protocol: H2Connection, stream: int, message: Message) -> Reply | None:
        """Send the head of a response, and return it if more of it is to come."""
        reply = self._answer_to(message)
        if reply is None:
            protocol.reset_stream(stream)
            return None
        if isinstance(reply, bytes):
            protocol.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
            return Reply([], reply)
        for _ in range(reply.interim):
            protocol.send_headers(stream, [(":status", "103")])
        is_all = not reply.body and not reply.trailers
        protocol.send_headers(stream, reply.headers, end_stream=is_all)
        return None if is_all else reply


def _send_some(protocol: H2Connection, stream: int, data: memoryview) -> memoryview:
    """Send what the windows allow, and return the rest."""
    while data and (room := min(protocol.local_flow_control_window(stream), protocol.max_outbound_frame_size)):
        protocol.send_data(stream, bytes(data[:room]))
        data = data[room:]
    return data


def _take(
    protocol: H2Connection, messages: dict[int, Message], event: Event, acknowledging: set[int] | None = None
) -> list[int]:
    """Note an event, and return the stream that it ends, if any."""
    if isinstance(event, RequestReceived | ResponseReceived):
        message = messages.setdefault(event.stream_id, Message())
        message.headers = [(str(k), str(v)) for k, v in event.headers]
        message.kept_out = [str(each[0]) for each in event.headers if isinstance(each, NeverIndexedHeaderTuple)]
    elif isinstance(event, DataReceived):
        messages[event.stream_id].body += event.data
        if acknowledging is None or event.stream_id in acknowledging:
            protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        else:
            messages[event.stream_id].unacknowledged += event.flow_controlled_length
    elif isinstance(event, TrailersReceived):
        messages[event.stream_id].trailers = [(str(k), str(v)) for k, v in event.headers]
    elif isinstance(event, StreamReset):
        messages[event.stream_id].reset = int(event.error_code)
    elif isinstance(event, ConnectionTerminated):
        for message in messages.values():
            message.reset = int(event.error_code or 0)
    elif isinstance(event, StreamEnded):
        messages[event.stream_id].ended = True
        return [event.stream_id]
    return []
