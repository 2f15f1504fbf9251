"""A gRPC service for tests. Its messages are plain bytes without a schema, so any server and any client can speak it.

    with Service(identity) as service:
        with channel_to(f"localhost:{service.port}", roots=pem) as channel:
            assert call(channel, "Echo", b"hello") == b"hello"

Each method says what it does. Metadata whose name begins with `x-` is sent back after the response.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from types import TracebackType
from typing import Any, Self

import grpc

from tests.e2e.certificates import Identity

SERVICE = "t.Service"
DEADLINE = 20.0  # seconds that one call may take
LARGE = 64 * 1024 * 1024  # bytes that a message may have
SIZES = (("grpc.max_send_message_length", LARGE), ("grpc.max_receive_message_length", LARGE))

Metadata = tuple[tuple[str, str | bytes], ...]


class Service:
    """A grpcio server with TLS; a context manager.

    Args:
        identity: its key and certificates; None for plain text.

    Attributes:
        port: where it listens, on 127.0.0.1.
        metadata: of each call, in the order in which they came.
        ended: the names of the methods whose calls were cancelled, or too late, as the server saw it.
    """

    def __init__(self, identity: Identity | None) -> None:
        self.metadata: list[Metadata] = []
        self.ended: list[str] = []
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(64), options=SIZES)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        if identity is None:
            self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials([(identity.key_pem, b"".join(identity.chain_pem))])
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, and the calls that are under way."""
        self._server.stop(None).wait(DEADLINE)

    def forget_ends(self) -> None:
        """Forget which calls ended early."""
        with self._changed:
            self.ended.clear()

    def wait_for_end(self, name: str) -> None:
        """Wait until the server knows that a call of this method has ended early."""
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.ended, 5.0), f"{name} still runs: {self.ended}"

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            "Echo": grpc.unary_unary_rpc_method_handler(self._noted(_echo)),
            "Fail": grpc.unary_unary_rpc_method_handler(self._noted(_fail)),
            "Peer": grpc.unary_unary_rpc_method_handler(self._noted(_peer)),
            "Hang": grpc.unary_unary_rpc_method_handler(self._noted(_hang)),
            "Count": grpc.unary_stream_rpc_method_handler(self._noted(_count)),
            "CountSlowly": grpc.unary_stream_rpc_method_handler(self._noted(_count_slowly)),
            "CountAndFail": grpc.unary_stream_rpc_method_handler(self._noted(_count_and_fail)),
            "Measure": grpc.stream_unary_rpc_method_handler(self._noted(_measure)),
            "Chat": grpc.stream_stream_rpc_method_handler(self._noted(_chat)),
        }

    def _noted(self, behave: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a method does, with its metadata noted and sent back, and its end."""
        name = "".join(part.capitalize() for part in behave.__name__.split("_"))

        def noted(request: Any, context: grpc.ServicerContext) -> Any:
            metadata = tuple((key, value) for key, value in context.invocation_metadata())
            self.metadata.append(metadata)
            context.set_trailing_metadata(tuple(pair for pair in metadata if pair[0].startswith("x-")))

            def end() -> None:
                if context.code() is None:  # type: ignore[attr-defined]  # it has one, on the server's side
                    with self._changed:
                        self.ended.append(name)
                        self._changed.notify_all()

            context.add_callback(end)
            return behave(request, context)

        return noted


def _echo(request: bytes, _: grpc.ServicerContext) -> bytes:
    """Answer with what was sent."""
    return request


def _fail(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Fail with these details, before anything was answered."""
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode())
    raise AssertionError("abort raises")


def _peer(_: bytes, context: grpc.ServicerContext) -> bytes:
    """Say who asks."""
    peer: str = context.peer()
    return peer.encode()


def _hang(_: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer nothing until the call is over."""
    while context.is_active():
        time.sleep(0.01)
    return b""


def _count(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
    """Count up to a number."""
    for number in range(int(request)):
        yield b"%d" % number


def _count_slowly(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Say 0 at once, and each further number after these many seconds, until nobody listens."""
    number = 0
    while context.is_active():
        yield b"%d" % number
        number += 1
        time.sleep(float(request))


def _count_and_fail(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Count up to a number, and fail."""
    yield from _count(request, context)
    context.abort(grpc.StatusCode.DATA_LOSS, "no more of them")


def _measure(requests: Iterable[bytes], _: grpc.ServicerContext) -> bytes:
    """Say how many messages came, and how many bytes in all."""
    sizes = [len(each) for each in requests]
    return b"%d %d" % (len(sizes), sum(sizes))


def _chat(requests: Iterable[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    """Answer each message with itself, at once."""
    yield from requests


def channel_to(target: str, *, roots: bytes | None = None, proxy: str | None = None) -> grpc.Channel:
    """Return a channel.

    Args:
        target: host and port.
        roots: the authorities that it trusts, as PEM; without them it speaks plain text.
        proxy: the URL of an HTTP proxy.
    """
    # One test must not use what another has learned about a target.
    options: list[tuple[str, int | str]] = [*SIZES, ("grpc.use_local_subchannel_pool", 1)]
    options.append(("grpc.enable_http_proxy", int(proxy is not None)))
    if proxy is not None:
        options.append(("grpc.http_proxy", proxy))
    if roots is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)


def path_of(name: str) -> str:
    """Return the path of a method."""
    return f"/{SERVICE}/{name}"


def unary_unary(channel: grpc.Channel, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Return what calls a method with a message, and is answered with one."""
    return channel.unary_unary(path_of(name))


def unary_stream(channel: grpc.Channel, name: str) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
    """Return what calls a method with a message, and is answered with any number of them."""
    return channel.unary_stream(path_of(name))


def stream_unary(channel: grpc.Channel, name: str) -> grpc.StreamUnaryMultiCallable[bytes, bytes]:
    """Return what calls a method with any number of messages, and is answered with one."""
    return channel.stream_unary(path_of(name))


def stream_stream(channel: grpc.Channel, name: str) -> grpc.StreamStreamMultiCallable[bytes, bytes]:
    """Return what calls a method with any number of messages, and is answered with any number of them."""
    return channel.stream_stream(path_of(name))
