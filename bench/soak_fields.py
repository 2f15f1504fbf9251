"""`python -m bench.soak_fields`: many requests whose fields are sealed, and answers whose fields are opened, while keys
are rotated and the policy is read again all the time.

Each request has a number, which is its secret; the server opens every token with joserfc and a key that was in the set,
and answers with the number, sealed with joserfc. At the end the following must hold, or the exit status is 1:

- Nothing is lost: each request was answered with 200 and arrived once, and none was denied.
- Nothing is in clear: no secret stands in what arrived, or in what it decodes to.
- Each value opens, with a key that has been in the set, to the number of its own request; so does each answer.
- Keys have been rotated, and the policy was taken anew, many times; no reading of it was refused.
- The sidecar's own count of values is the server's.
- Resident memory stays where it was after the first fifth, and two minutes after the last request no more files are
  open than before the first.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import re
import signal
import ssl
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwe
from joserfc.jwk import JWKRegistry

from bench.lab import HOST, NAME, Lab, Process, free_port
from bench.soak import DESCRIPTOR_GROWTH, HANG_ON, PATIENCE, Ended, Sample, judge_growth, read_message, run
from bench.soak_kinds import Tally

REQUESTS = 100_000
EVERY = 2.0  # seconds between two changes: a step of a rotation, or of the policy
SHOWN = 30.0  # seconds
_TOKEN = re.compile(rb"eyJ[\w-]+(?:\.[\w-]*){4}")
_ALGORITHMS = ["ECDH-ES+A256KW", "A256KW", "A256GCM"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of body.

    Attributes:
        weight: its share.
        label: the fields that say what it is.
        make: the body of a number.
        values: how many values are marked in it.
        read: what is taken off it before one looks for tokens.
        is_slow: whether it comes in two pieces, so that a policy may change between them.
    """

    weight: int
    label: str
    make: Callable[[int], bytes]
    values: int
    read: Callable[[bytes], bytes] = bytes
    is_slow: bool = False


def _json(number: int) -> bytes:
    return b'{"id": 1, "card": {"number": "%s", "cvv": 123}, "ssn": "%s"}' % (secret(number), secret(number))


def _lines(number: int) -> bytes:
    return b'{"ssn":"%s"}\n{"x":1}\n{"ssn":"%s"}\n' % (secret(number), secret(number))


JSON = "Content-Type: application/json\r\n"
KINDS = {
    "json": Kind(6, JSON, _json, 2),
    "slow": Kind(1, JSON, _json, 2, is_slow=True),
    "gzip": Kind(1, f"{JSON}Content-Encoding: gzip\r\n", lambda n: gzip.compress(_json(n), 1), 2, gzip.decompress),
    "lines": Kind(1, "Content-Type: application/x-ndjson\r\n", _lines, 2),
    "form": Kind(1, "Content-Type: application/x-www-form-urlencoded\r\n", lambda n: b"a=1&ssn=" + secret(n), 1),
}


def secret(number: int) -> bytes:
    """Return the value that must not be seen."""
    return b"secret-%08d" % number


class Keys:
    """Two JWK Sets: one that requests are sealed with, and one that answers are."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.steps = 0
        self.ever: dict[str, Any] = {}  # every key that was in a set, by its name
        for name, alg in (("pay", "ECDH-ES+A256KW"), ("app", "A256KW")):
            lab.run([lab.overcoat, "keys", "new", "--alg", alg, "--kid", f"{name}-0", "--into", self.file(name)])
        public = lab.run([lab.overcoat, "keys", "public", self.file("pay")])
        lab.write("pay.pub.jwks", public)
        self._read()

    def file(self, name: str) -> Path:
        """Return the file of a set with private or symmetric keys."""
        return self._lab.directory / f"{name}.jwks"

    async def step(self) -> None:
        """Make the next step of a rotation, of one set and then the other."""
        self.steps += 1
        name = "pay" if self.steps % 2 else "app"
        command: list[str | Path] = [self._lab.overcoat, "keys", "rotate", self.file(name)]
        command += ["--public", self._lab.directory / "pay.pub.jwks"] if name == "pay" else []
        await asyncio.to_thread(self._lab.run, command)
        self._read()

    def _read(self) -> None:
        for name in ("pay", "app"):
            keys = json.loads(self.file(name).read_text())["keys"]
            self.ever |= {key["kid"]: JWKRegistry.import_key(key) for key in keys}
            if name == "app":
                self.seals = keys[0]["kid"]

    def open(self, token: bytes) -> tuple[str, bytes]:
        """Return the name of the key that a token is for, and what it holds.

        Raises:
            KeyError: that key was never in a set.
            joserfc.errors.JoseError: it does not open.
        """
        head = token.partition(b".")[0]
        kid: str = json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))["kid"]
        opened = jwe.decrypt_compact(token, self.ever[kid], algorithms=_ALGORITHMS)
        assert opened.plaintext is not None
        return kid, opened.plaintext

    def seal(self, value: bytes) -> str:
        """Return a token for the app, of the key that seals now."""
        cty = f'application/json;host="{NAME}";path="$.told"'
        header = {"alg": "A256KW", "enc": "A256GCM", "kid": self.seals, "cty": cty}
        return jwe.encrypt_compact(header, value, self.ever[self.seals], algorithms=_ALGORITHMS)


class Server:
    """Opens what arrives, and answers with what it opened."""

    def __init__(self, tally: Tally, keys: Keys) -> None:
        self._tally, self.keys = tally, keys
        self.values = 0
        self.kids: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                start, _, body = await read_message(reader)
                _, kind, number = start.split(b" ")[1].decode("ascii").split("/")
                told = b'{"n": 1.50, "told":"%s"}' % self.keys.seal(self._take(kind, int(number), body)).encode()
                head = f"HTTP/1.1 200 OK\r\n{JSON}Content-Length: {len(told)}\r\n\r\n"
                writer.write(head.encode("ascii") + told)
                await writer.drain()
        except (Ended, OSError):
            return  # the sidecar is done with this connection
        finally:
            writer.close()

    def _take(self, kind: str, number: int, body: bytes) -> bytes:
        """Check a body, and return the answer's value."""
        self._tally.arrivals[number] += 1
        text = KINDS[kind].read(body)
        if b"secret" in body or b"secret" in text:
            self._tally.fault("in the clear", f"{kind} {number}")
        tokens = _TOKEN.findall(text)
        if len(tokens) != KINDS[kind].values:
            self._tally.fault("not sealed", f"{kind} {number} arrived with {len(tokens)} tokens")
        for token in tokens:
            try:
                kid, value = self.keys.open(token)
            except Exception as e:
                self._tally.fault("does not open", f"{kind} {number}: {type(e).__name__}")
                continue
            self.values += 1
            self.kids[kid] += 1
            if json.loads(value) != secret(number).decode():
                self._tally.fault("crossed", f"{kind} {number}")
        return b"%d" % number


class Soak:
    """What all clients share."""

    def __init__(self, total: int, seed: int) -> None:
        self.tally = Tally(bytearray(total), [""] * total)
        self.random = random.Random(seed)
        self.numbers = iter(range(total))
        self.port = self.upstream_port = 0

    async def client(self) -> None:
        """Make requests until there are no more, on one connection as long as it lives."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        for number in self.numbers:
            kind = self.random.choices(list(KINDS), [each.weight for each in KINDS.values()])[0]
            try:
                async with asyncio.timeout(PATIENCE):
                    start, headers, body = await self._ask(kind, number, reader, writer)
                if b" 200 " not in start + b" " or body != b'{"n": 1.50, "told":%d}' % number:
                    self.tally.fault("lost", f"{kind} {number} was answered {start!r} {body[:300]!r}")
            except (TimeoutError, Ended, OSError) as e:
                self.tally.fault("lost", f"{kind} {number} got no answer: {e!r}")
                headers = {"connection": "close"}
            self.tally.kinds[number] = kind
            if headers.get("connection") == "close":
                writer.transport.abort()
                reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.close()

    async def _ask(
        self, kind: str, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[bytes, dict[str, str], bytes]:
        body = KINDS[kind].make(number)
        head = f"POST http://{NAME}:{self.upstream_port}/{kind}/{number} HTTP/1.1\r\nHost: {NAME}:{self.upstream_port}"
        writer.write(f"{head}\r\n{KINDS[kind].label}Content-Length: {len(body)}\r\n\r\n".encode("ascii"))
        if KINDS[kind].is_slow:
            writer.write(body[:20])
            await writer.drain()
            await asyncio.sleep(self.random.uniform(0, EVERY / 2))
            body = body[20:]
        writer.write(body)
        return await read_message(reader)


def _policy(lab: Lab, soak: Soak, admin: int, times: int) -> str:
    """Return the policy as it is for the nth time: the same, but for a rule about something else, which has one of two
    names: each name of a rule has metrics of its own as long as the process lives.
    """
    entry = {"encrypt": ["$.card.number", "$.ssn"], "form": ["ssn"], "key": "pay", "required": True}
    policy = {
        "version": 1,
        "listen": [f"forward://{HOST}:{soak.port}"],
        "admin": f"{HOST}:{admin}",
        "trust": {"roots": str(lab.ca_file)},
        "destinations": {"allow": ["loopback"]},
        "keys": {
            "pay": {"alg": "ECDH-ES+A256KW", "set": "pay.pub.jwks"},
            "app": {"alg": "A256KW", "set": "app.jwks"},
        },
        "rules": [
            {
                "name": "soak",
                "hosts": [NAME],
                "request": [entry],
                "response": [{"decrypt": ["$.told"], "key": "app"}],
            },
            {"name": f"other-{times % 4}", "hosts": ["other.example"]},
        ],
    }
    return json.dumps(policy)


async def _change(lab: Lab, soak: Soak, keys: Keys, admin: int, process: Process) -> None:
    """Rotate keys and change the policy, in turn, until it is cancelled."""
    times = 0
    while True:
        await asyncio.sleep(EVERY)
        times += 1
        if times % 2:
            await keys.step()
        else:
            new = lab.write("new.yaml", _policy(lab, soak, admin, times))
            new.replace(lab.directory / "soak.yaml")
        process.signal(signal.SIGHUP)


async def _watch(process: Process, soak: Soak, samples: list[Sample]) -> None:
    """Take a sample twice a second, and show how far it is now and then."""
    total = len(soak.tally.kinds)
    shown = time.monotonic()
    while True:
        samples.append(Sample(sum(map(bool, soak.tally.kinds)), process.rss(), process.descriptors()))
        if time.monotonic() - shown > SHOWN:
            shown, last = time.monotonic(), samples[-1]
            print(
                f"  {last.done:,} of {total:,}; {last.rss / 2**20:.1f} MiB, {last.descriptors} descriptors", flush=True
            )
        await asyncio.sleep(0.5)


def _metrics(admin: int) -> Iterator[tuple[str, float]]:
    """Yield each series of the sidecar's metrics, with its value."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{HOST}:{admin}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                yield series, float(value)


async def _soak(lab: Lab, total: int, concurrency: int, seed: int) -> bool:
    lab.run([lab.overcoat, "ca"])  # makes the CA
    soak, keys = Soak(total, seed), Keys(lab)
    server = Server(soak.tally, keys)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(lab.directory / "server.pem")
    listener = await asyncio.start_server(server.serve, HOST, 0, ssl=context, backlog=1024)
    soak.upstream_port, soak.port, admin = listener.sockets[0].getsockname()[1], free_port(), free_port()
    file = lab.write("soak.yaml", _policy(lab, soak, admin, 0))
    process = lab.start("overcoat", [lab.overcoat, "serve", "-p", file])
    process.wait_for_port(soak.port)
    before = process.descriptors()
    samples: list[Sample] = []
    others = [asyncio.create_task(_watch(process, soak, samples))]
    others.append(asyncio.create_task(_change(lab, soak, keys, admin, process)))
    started = time.monotonic()
    await asyncio.gather(*(soak.client() for _ in range(concurrency)))
    seconds = time.monotonic() - started
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    print(f"{total:,} requests in {seconds:.0f} s: {total / seconds:,.0f}/s")
    series = dict(await asyncio.to_thread(lambda: list(_metrics(admin))))
    ended = time.monotonic() + HANG_ON
    while (left := process.descriptors() - before) > DESCRIPTOR_GROWTH and time.monotonic() < ended:
        await asyncio.sleep(0.5)
    await asyncio.to_thread(process.stop)
    listener.close()
    if left > DESCRIPTOR_GROWTH:
        soak.tally.fault("hangs on", f"{left} more files are open than before")
    if process.status != 0:
        soak.tally.fault("hangs on", f"SIGTERM ended it with status {process.status}: {process.said[-500:]}")
    return _verdict(soak.tally, samples, server, series)


def _verdict(tally: Tally, samples: list[Sample], server: Server, series: dict[str, float]) -> bool:
    """Print what happened, and tell whether all is well."""
    for number, times in enumerate(tally.arrivals):
        if times != 1:
            tally.fault("lost" if not times else "doubled", f"{tally.kinds[number]} {number} arrived {times} times")
    print(", ".join(f"{name}: {count:,}" for name, count in Counter(tally.kinds).items()))

    def counted(name: str, label: str) -> int:
        return int(sum(value for each, value in series.items() if each.startswith(name) and label in each))

    sealed, taken, refused = (
        counted("overcoat_key_uses_total", 'direction="encrypted"'),
        counted("overcoat_policy_reloads_total", 'result="taken"'),
        counted("overcoat_policy_reloads_total", 'result="refused"'),
    )
    opened = counted("overcoat_key_uses_total", 'direction="decrypted"')
    print(
        f"{server.values:,} values were opened by the server, with {len(server.kids)} keys; {opened:,} by the sidecar"
    )
    print(f"{server.keys.steps} steps of rotations; the policy was taken {taken} times, and refused {refused} times")
    if sealed != server.values or opened != len(tally.kinds):
        tally.fault("counted otherwise", f"{sealed} sealed and {opened} opened, by the sidecar's metrics")
    if refused or (server.keys.steps >= 12 and (len(server.kids) < 2 or not taken)):
        tally.fault("not rotated", f"with {len(server.kids)} keys; {refused} readings of the policy were refused")
    judge_growth(tally, samples)
    for example in tally.examples:
        print(f"  {example}")
    faults = ", ".join(f"{what}: {count:,}" for what, count in tally.faults.items())
    print(f"FAILED: {faults}" if faults else "none lost, none in clear, each opened, memory flat")
    return not tally.faults


if __name__ == "__main__":
    sys.exit(run(_soak, "soak_fields", __doc__ or "", requests=REQUESTS, concurrency=48))
