"""`python -m bench.soak`: many mixed requests, with clients that vanish and upstreams that misbehave.

Every request has a number, which the upstream counts when it has read the whole of it, and which a good answer repeats.
At the end the following must hold, or the exit status is 1:

- Nothing is lost: a request from a well-behaved client to a well-behaved upstream was answered with 200, and arrived.
  Where an upstream closes an idle connection without a word just as a request is sent there, no proxy can know whether
  it arrived; to say 502 is then right. Such refusals must be few beside the closes, and none of them may have arrived.
- Nothing is doubled: no request arrived twice, whatever became of it; what was denied did not arrive at all. The one
  exception is a GET whose reused connection the upstream resets before it answers: it is sent once more (RFC 9110,
  section 9.2.2). A POST is not.
- Nothing is crossed: no answer carried another request's number. No field that is to be encrypted arrived in the clear.
- A third of the requests are HTTP/2, with several streams at once on few connections (`bench.soak_http2`). Where the
  upstream speaks it, too, and says what it did not look at, there is no excuse for a 502, but for a body so large that
  it was not kept.
- Nothing grows: resident memory stays where it was after the first fifth.
- Nothing hangs on: two minutes after the last client has gone, the upstream has no connection any more, no more files
  are open than before the first one came, and SIGTERM ends the process with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.lab import HOST, NAME, Lab, LabError, Process, Settings, free_port
from bench.measure import BODY
from bench.peers import FIELDS
from bench.soak_http2 import AppConnections, UpstreamConnection
from bench.soak_kinds import KINDS, Soak, Tally, answer_of

ROOT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024
REQUESTS = 500_000
PATIENCE = 60.0  # seconds that a client waits for an answer that must come
HELD = ("fields", "broken", "vanish-body", "h2-fields", "h2-held", "h2-broken", "h2-reset-body")
GIVE_UP = 0.5  # seconds after which a client leaves an upstream that stalls
HANG_ON = 120.0  # seconds after which no upstream connection may be left: idle ones live for one minute
RSS_GROWTH = 12 * MIB
DESCRIPTOR_GROWTH = 4
REFUSED_SHARE = 0.1  # of the silent closes: more refusals than that are not bad luck
GROWTH_REQUESTS = 50_000  # with fewer, growth is shown but proves nothing: caches are still filling
SILENT_CLOSE = 0.005  # share of good answers after which the upstream closes without having said so


class Ended(Exception):
    """The connection ended before a whole message came."""


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str], bytes]:
    """Read a start line, headers and a body with Content-Length."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        start, *lines = head[:-4].split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        if headers.get("transfer-encoding") == "chunked":
            body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, OSError) as e:
        raise Ended(type(e).__name__) from None
    return start, headers, body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a body in chunks, without trailers."""
    body = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        body += (await reader.readexactly(size + 2))[:-2]
        if not size:
            return body


class Upstream:
    """An https server that counts, and misbehaves as the path says."""

    def __init__(self, tally: Tally, seed: int) -> None:
        self._tally = tally
        self._random = random.Random(seed)
        self._refused: set[int] = set()  # by REFUSED_STREAM, so far
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        try:
            if writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                await UpstreamConnection(reader, writer, self._tally, self._random, self._refused).serve()
                return
            while True:
                start, headers, body = await read_message(reader)
                path = start.split(b" ")[1].decode("ascii").strip("/").removeprefix("h2-")
                kind, _, number = path.partition("/")
                self._tally.arrived(kind, int(number), body)
                if not await self._answer(kind, number, reader, writer) or headers.get("connection") == "close":
                    break
        except (Ended, OSError):
            return  # the proxy is done with this connection
        finally:
            self.connections -= 1
            writer.close()

    async def _answer(self, kind: str, number: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer, well or badly; tell whether the connection goes on."""
        if kind in ("reset", "reset-post", "resets"):
            writer.transport.abort()
            return False
        if kind == "stall":
            await reader.read(1)  # until the proxy gives up
            return False
        if kind == "garbage":
            writer.write(b"\x00\xff\x13 this is no HTTP \r\r\n\n" * 3)
        elif kind == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + number.encode("ascii"))
        else:
            body = answer_of(kind, int(number))
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode("ascii"))
            if kind == "slow":
                await writer.drain()
                await asyncio.sleep(0.02)
            writer.write(body)
        await writer.drain()
        if kind in ("garbage", "cut"):
            return False
        closes = self._random.random() < SILENT_CLOSE
        self._tally.silent_closes += closes
        return not closes


class Client:
    """A client that makes one request after the other."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Make requests until there are no more."""
        soak = self._soak
        while (number := next(soak.numbers, None)) is not None:
            kind = soak.random.choices(soak.names, soak.weights)[0]
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._request(kind, number)
            except TimeoutError:
                soak.tally.fault("lost", f"{kind} {number} got no answer in {PATIENCE:.0f} s")
                self.leave()
            except (Ended, OSError) as e:
                if KINDS[kind].statuses:
                    soak.tally.fault("lost", f"{kind} {number} got no answer: {e!r}")
                self.leave()
            soak.tally.kinds[number] = kind
        self.leave()

    def leave(self) -> None:
        """Drop the connection at once, with a reset if anything is unread."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def _request(self, kind: str, number: int) -> None:
        if kind in ("inspected", "tunnelled", "close"):
            self.leave()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._soak.port)
        writer = self._writer
        target = f"http://{HOST}/{kind}/{number}"
        if kind in ("inspected", "tunnelled"):
            await self._connect(kind, writer)
            target = f"/{kind}/{number}"
        data = self._message(kind, target)
        if kind in ("vanish-head", "vanish-body"):
            writer.write(data[: self._soak.random.randrange(1, len(data) - 2)] if kind == "vanish-head" else data[:-9])
            await asyncio.sleep(self._soak.random.choice((0, 0.005)))
            self.leave()
            return
        writer.write(data)
        if kind == "vanish-wait":
            await asyncio.sleep(self._soak.random.choice((0, 0, 0.002, 0.01)))
            self.leave()
            return
        if kind == "stall":
            with contextlib.suppress(TimeoutError):  # what is expected
                await asyncio.wait_for(self._reader.read(1), GIVE_UP)
            self.leave()
            return
        start, headers, body = await read_message(self._reader)
        self._soak.tally.judge(kind, number, int(start.split(b" ")[1]), body)
        if headers.get("connection") == "close" or kind in ("inspected", "tunnelled", "close"):
            self.leave()

    def _message(self, kind: str, target: str) -> bytes:
        authority = f"{NAME}:{self._soak.upstream_port}" if target.startswith("/") else HOST
        body = {"post": "{}", "reset-post": "{}", "fields": BODY, "broken": BODY[:-1], "vanish-body": BODY}.get(kind)
        lines = [f"{'GET' if body is None else 'POST'} {target} HTTP/1.1", f"Host: {authority}"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        if kind == "close":
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n" + (body or "")).encode("ascii")

    async def _connect(self, kind: str, writer: asyncio.StreamWriter) -> None:
        """Ask for a tunnel and speak TLS in it: with the proxy or the upstream; the CA that is trusted tells which."""
        port = self._soak.upstream_port if kind == "inspected" else self._soak.tunnel_port
        writer.write(f"CONNECT {NAME}:{port} HTTP/1.1\r\nHost: {NAME}:{port}\r\n\r\n".encode("ascii"))
        start, _, _ = await read_message(self._reader)
        if b" 200 " not in start + b" ":
            raise Ended(f"CONNECT was answered {start!r}")
        await writer.start_tls(self._soak.contexts[kind], server_hostname=NAME)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the proxy held at one moment.

    Attributes:
        done: requests sent until then.
        rss: its resident bytes.
        descriptors: its file descriptors.
    """

    done: int
    rss: int
    descriptors: int


def _policy(lab: Lab, soak: Soak) -> str:
    held = {"paths": [f"/{kind}/**" for kind in HELD]}
    rules = [
        {"name": "tunnel", "hosts": [f"{NAME}:{soak.tunnel_port}"], "https": "tunnel"},
        {
            "name": "soak",
            "hosts": [HOST, NAME],
            "https_port": soak.upstream_port,
            "pins": {"any_of": [lab.pin]},
            "request": [{"encrypt": list(FIELDS), "key": "soak", "when": held}],
        },
    ]
    policy = {
        "version": 1,
        "listen": [f"forward://{HOST}:{soak.port}"],
        "admin": None,
        "trust": {"roots": str(lab.ca_file)},
        "destinations": {"allow": ["loopback"]},
        "keys": {"soak": {"alg": "ECDH-ES+A256KW", "primary": {"kid": "soak", "file": str(lab.field_key_file)}}},
        "rules": rules,
    }
    return json.dumps(policy)


async def _watch(process: Process, soak: Soak, samples: list[Sample]) -> None:
    """Take a sample twice a second, and show how far it is every half minute."""
    total = len(soak.tally.kinds)
    shown = time.monotonic()
    while True:
        done = sum(map(bool, soak.tally.kinds))
        samples.append(Sample(done, process.rss(), process.descriptors()))
        if time.monotonic() - shown > 30.0:
            shown = time.monotonic()
            last = samples[-1]
            print(f"  {done:,} of {total:,}; {last.rss / MIB:.1f} MiB, {last.descriptors} descriptors", flush=True)
        await asyncio.sleep(0.5)


async def _soak(lab: Lab, total: int, concurrency: int, seed: int) -> bool:
    data = lab.directory / "overcoat-data"
    lab.run([lab.overcoat, "ca"])  # makes the CA
    soak = Soak(total, seed, {"inspected": data / "ca-cert.pem", "tunnelled": lab.ca_file})
    upstream = Upstream(soak.tally, seed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(lab.directory / "server.pem")
    http2 = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    http2.load_cert_chain(lab.directory / "server.pem")
    http2.set_alpn_protocols(["h2", "http/1.1"])
    servers = [
        await asyncio.start_server(upstream.serve, HOST, 0, ssl=each, backlog=1024)
        for each in (context, context, http2)
    ]
    soak.upstream_port, soak.tunnel_port, soak.http2_port = (each.sockets[0].getsockname()[1] for each in servers)
    soak.port = free_port()
    process = lab.start("overcoat", [lab.overcoat, "serve", "-p", lab.write("soak.yaml", _policy(lab, soak))])
    process.wait_for_port(soak.port)
    before = process.descriptors()
    samples: list[Sample] = []
    watch = asyncio.create_task(_watch(process, soak, samples))
    started = time.monotonic()
    clients = [Client(soak) for _ in range(concurrency)]
    apps = [AppConnections(soak) for _ in range(max(1, concurrency // 8))]
    await asyncio.gather(*(client.run() for client in clients), *(app.run() for app in apps))
    seconds = time.monotonic() - started
    watch.cancel()
    print(f"{total:,} requests in {seconds:.0f} s: {total / seconds:,.0f}/s; now waiting for what is idle to be closed")
    ended = time.monotonic() + HANG_ON
    while upstream.connections and time.monotonic() < ended:
        await asyncio.sleep(0.5)
    left, descriptors = upstream.connections, (before, process.descriptors())
    stopping = asyncio.to_thread(process.stop)
    for server in servers:
        server.close()
    await stopping
    return _verdict(soak.tally, samples, left, descriptors, process)


def _verdict(tally: Tally, samples: list[Sample], left: int, descriptors: tuple[int, int], process: Process) -> bool:
    """Print what happened, and tell whether all is well."""
    kinds: dict[str, Counter[int]] = {name: Counter() for name in KINDS}
    refused = set(tally.refused)
    if len(refused) > REFUSED_SHARE * tally.silent_closes + tally.unkept:
        examples = ", ".join(f"{tally.kinds[number]} {number}" for number in tally.refused[:5])
        tally.fault("lost", f"{len(refused)} good requests were answered 502, the first of them {examples}")
    for number, kind in enumerate(tally.kinds):
        arrivals = tally.arrivals[number]
        kinds[kind][arrivals] += 1
        if arrivals > max(KINDS[kind].arrivals):
            tally.fault("doubled", f"{kind} {number} arrived {arrivals} times")
        elif number in refused and arrivals:
            tally.fault("refused but arrived", f"{kind} {number}")
        elif arrivals not in KINDS[kind].arrivals and number not in refused:
            tally.fault("lost" if arrivals == 0 else "let through", f"{kind} {number} arrived {arrivals} times")
    print(f"{'kind':<14}{'requests':>10}{'arrived':>10}")
    for name, counts in kinds.items():
        print(f"{name:<14}{counts.total():>10,}{sum(times * count for times, count in counts.items()):>10,}")
    judge_growth(tally, samples)
    if left:
        tally.fault("hangs on", f"{left} upstream connections are open though no client is there")
    # Not while it works: how many connections are open then says more about the load.
    if descriptors[1] - descriptors[0] > DESCRIPTOR_GROWTH:
        tally.fault("hangs on", f"{descriptors[1]} files are open, {descriptors[0]} were before the first request")
    if process.status != 0:
        tally.fault("hangs on", f"SIGTERM ended it with status {process.status}: {process.said[-500:]}")
    whys = f"{tally.silent_closes:,} silent closes by the upstream, and {tally.unkept:,} bodies that were not kept"
    print(f"{len(refused)} refused with 502, of {whys}")
    print(", ".join(f"{what}: {count:,}" for what, count in tally.seen.items()))
    print(f"at the end: {left} upstream connections, {descriptors[1]} descriptors, exit status {process.status}")
    for example in tally.examples:
        print(f"  {example}")
    faults = ", ".join(f"{what}: {count:,}" for what, count in tally.faults.items())
    print(f"FAILED: {faults}" if faults else "nothing lost, nothing doubled, nothing crossed, nothing left behind")
    return not tally.faults


def judge_growth(tally: Tally, samples: list[Sample]) -> None:
    """Print how much memory and how many files there were, and say whether memory grew.

    Args:
        tally: of all requests.
        samples: what the proxy held, in their order.

    Raises:
        LabError: there are too few of them.
    """
    total = len(tally.kinds)
    early = [sample for sample in samples if 0.2 * total <= sample.done < 0.4 * total]
    late = [sample for sample in samples if 0.8 * total <= sample.done < total]
    if not early or not late:
        raise LabError("too few requests for a look at memory: at least a few thousand are needed")
    at = [(share, min(samples, key=lambda sample: abs(sample.done - share * total))) for share in (0.1, 0.5, 1.0)]
    print("resident: " + ", ".join(f"{sample.rss / MIB:.1f} MiB at {share:.0%}" for share, sample in at))
    rss = [median(sample.rss for sample in part) for part in (early, late)]
    descriptors = [median(sample.descriptors for sample in part) for part in (early, late)]
    print(
        f"after a fifth, and in the last fifth: {rss[0] / MIB:.1f} and {rss[1] / MIB:.1f} MiB resident, "
        f"{descriptors[0]:.0f} and {descriptors[1]:.0f} descriptors"
    )
    if total < GROWTH_REQUESTS:
        print(f"(under {GROWTH_REQUESTS:,} requests growth proves nothing)")
        return
    if rss[1] - rss[0] > RSS_GROWTH:
        tally.fault("grows", f"resident memory by {(rss[1] - rss[0]) / MIB:.1f} MiB")


type Soaking = Callable[[Lab, int, int, int], Coroutine[Any, Any, bool]]  # requests, clients at a time, seed


def run(soak: Soaking, name: str, about: str, *, requests: int, concurrency: int) -> int:
    """Read the arguments, soak, and return the exit status.

    Args:
        soak: does it, and tells whether all was well.
        name: the module's.
        about: its docstring; the first line counts.
        requests: how many, if nothing else is said.
        concurrency: how many clients at a time, if nothing else is said.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about.splitlines()[0])
    parser.add_argument("--requests", type=int, default=requests, help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=concurrency, help="clients at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked in which order (default: %(default)s)")
    parser.add_argument(
        "--overcoat", type=Path, default=ROOT / ".venv" / "bin" / "overcoat", help="the command to soak"
    )
    options = parser.parse_args()
    try:
        with Lab(Settings(), options.overcoat.absolute(), has_peers=False) as lab:
            well = asyncio.run(soak(lab, options.requests, options.concurrency, options.seed))
    except LabError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(run(_soak, "soak", __doc__ or "", requests=REQUESTS, concurrency=32))
