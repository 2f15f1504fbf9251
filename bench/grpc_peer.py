"""A gRPC server and a gRPC client of bytes, without a schema: each runs as a script of its own.

    grpc_peer.py serve PORT PEM                          TLS with the key and the certificate of this file
    grpc_peer.py load TARGET (--seconds S | --count N)   unary calls, so many at once on one channel

Rules of this module:

- The server answers with what it was sent, and counts; the client compares, and asks for the count at its end by way of
  what it measures. Any other answer is an error: no measurement has a failed call in it.
- The processor time of the client and of the server is part of the result, one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc

HOST = "127.0.0.1"
SERVICE = "bench.Service"
MESSAGE = b"x" * 200
DEADLINE = 30.0


async def serve(port: int, pem: bytes) -> None:
    """Serve until the process is ended."""
    calls = 0

    async def echo(request: bytes, _: Any) -> bytes:
        nonlocal calls
        calls += 1
        return request

    async def count(_request: bytes, _: Any) -> bytes:
        return json.dumps({"calls": calls, "seconds": time.process_time()}).encode("ascii")

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_unary_rpc_method_handler(count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_secure_port(f"{HOST}:{port}", grpc.ssl_server_credentials([(pem, pem)]))
    await server.start()
    await server.wait_for_termination()


async def load(options: argparse.Namespace) -> dict[str, float]:
    """Call; return what was measured.

    Raises:
        grpc.RpcError: a call failed.
        ValueError: an answer was not what was sent, or the server has had fewer calls.
    """
    roots = options.ca_file.read_bytes() if options.ca_file else None
    arguments = (("grpc.enable_http_proxy", 0),)
    channel = (
        grpc.aio.secure_channel(options.target, grpc.ssl_channel_credentials(roots), arguments)
        if roots
        else grpc.aio.insecure_channel(options.target, arguments)
    )
    async with channel:
        echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Echo")
        count: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Count")
        took: list[float] = []
        before = json.loads(await count(b"", timeout=DEADLINE))
        used = time.process_time()
        started = time.perf_counter()
        ended = started + options.seconds if options.seconds else float("inf")
        left = options.count or sys.maxsize

        async def call_on() -> None:
            nonlocal left
            while left > 0 and (began := time.perf_counter()) < ended:
                left -= 1
                if await echo(MESSAGE, timeout=DEADLINE) != MESSAGE:
                    raise ValueError("an answer is not what was sent")
                took.append(time.perf_counter() - began)

        await asyncio.gather(*(call_on() for _ in range(options.streams)))
        seconds = time.perf_counter() - started
        used = time.process_time() - used
        after = json.loads(await count(b"", timeout=DEADLINE))
    if after["calls"] - before["calls"] != len(took):
        raise ValueError(f"{len(took)} calls were answered, {after['calls'] - before['calls']} arrived")
    took.sort()
    return {
        "requests": len(took),
        "seconds": seconds,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[len(took) * 99 // 100] * 1000,
        "load_seconds": used + after["seconds"] - before["seconds"],
    }


def main() -> int:
    """Read the arguments; serve, or make the load and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    server = modes.add_parser("serve")
    server.add_argument("port", type=int)
    server.add_argument("pem", type=Path)
    client = modes.add_parser("load")
    client.add_argument("target")
    client.add_argument("--ca-file", type=Path, help="speak TLS, and trust this CA alone")
    client.add_argument("--streams", type=int, default=16)
    client.add_argument("--seconds", type=float, default=0.0)
    client.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    if options.mode == "serve":
        asyncio.run(serve(options.port, options.pem.read_bytes()))
        return 0
    try:
        print(json.dumps(asyncio.run(load(options))))
    except (grpc.RpcError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
