"""The rows about bytes, memory and time to start. One function a row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.contest import STOCK, contest
from bench.lab import HOST, NAME, Lab, LabError, Unavailable, free_port
from bench.measure import check, curl, generator
from bench.peers import (
    Contender,
    Job,
    direct,
    haproxy,
    mitmdump,
    mitmdump_command,
    nginx,
    overcoat,
    overcoat_policy,
    proxy_py,
    squid,
)
from bench.results import OVERCOAT, Metric, Row, Target

MIB = 1024 * 1024
GIB = 1024 * MIB
MANY_REQUESTS = 100_000
TICK = 0.01  # seconds, in which the kernel counts processor time


def _large_file(lab: Lab) -> int:
    """Make the large file, sparse, and have it read once, so that it is in memory for all; return its size."""
    size = int(GIB * lab.settings.scale)
    with (lab.directory / "files" / "large").open("wb") as file:
        file.truncate(size)
    curl(lab, direct(lab), f"https://{NAME}:{lab.upstream.port}/files/large")
    return size


def large_body(lab: Lab) -> Row:
    """A large response over an upgraded flow."""
    row = Row(
        "large-body",
        "1 GiB response body, upgraded",
        "curl, one download a round. Growth is the highest resident size since the first round, less that before it.",
        (Metric("rate", "throughput", "MiB/s"), Metric("growth", "growth of RSS", "MiB", 1)),
        (
            Target("1 GiB body, against stock mitmdump with streaming", "rate", "ratio", "least", 1.2, theirs=STOCK),
            Target("1 GiB body, against nginx", "rate", "ratio", "least", 0.95, theirs="nginx"),
            Target("1 GiB body, growth of RSS", "growth", "value", "most", 16.0, unit="MiB"),
        ),
    )
    size = _large_file(lab)
    job = Job(stream=True)
    contenders = [overcoat(lab, job), mitmdump(lab, job), nginx(lab), haproxy(lab), squid(lab, job)]
    before: dict[str, int] = {}

    def measure(contender: Contender) -> dict[str, float]:
        process = contender.running
        if contender.name not in before:
            before[contender.name] = process.rss()
            process.reset_peak()
        answer = curl(lab, contender, f"http://{HOST}/files/large")
        _expect_all(contender, answer["size_download"], size)
        growth = max(0, process.peak_rss() - before[contender.name])
        return {"rate": answer["speed_download"] / MIB, "growth": growth / MIB}

    return contest(lab, row, [(contender, job) for contender in contenders], measure)


def tunnel(lab: Lab) -> Row:
    """Bytes through a tunnel."""
    row = Row(
        "tunnel",
        "1 GiB through a tunnel (CONNECT)",
        "curl, one download a round; its TLS ends at nginx. curl and nginx share a core and are what limits the first "
        "figure. The second is what the proxy would pass on if it alone did: by the processor time that it took.",
        (Metric("rate", "throughput", "MiB/s"), Metric("capacity", "per processor second", "MiB")),
        (
            Target(
                "tunnelled bytes/s, against stock mitmdump ignore_hosts", "rate", "ratio", "least", 1.5, theirs=STOCK
            ),
            Target("the same, by processor time", "capacity", "ratio", "least", 1.5, theirs=STOCK),
            Target("tunnelled bytes/s, against no proxy", "rate", "ratio", "least", 0.9, theirs="no proxy"),
        ),
    )
    size = _large_file(lab)
    job = Job(tunnel=True)
    contenders = [overcoat(lab, job), mitmdump(lab, job), proxy_py(lab, job), squid(lab, job), direct(lab)]

    def measure(contender: Contender) -> dict[str, float]:
        before = contender.process.cpu_seconds() if contender.process else 0.0
        answer = curl(lab, contender, f"https://{NAME}:{lab.upstream.port}/files/large")
        _expect_all(contender, answer["size_download"], size)
        figures = {"rate": answer["speed_download"] / MIB}
        if contender.process:
            used = contender.process.cpu_seconds() - before
            figures["capacity"] = size / MIB / max(used, TICK)  # at a small scale there may be none
        return figures

    return contest(lab, row, [(contender, job) for contender in contenders], measure)


def _expect_all(contender: Contender, got: float, wanted: int) -> None:
    if got != wanted:
        raise LabError(f"{contender.name}: {got:.0f} of {wanted} bytes came")


def start(lab: Lab) -> Row:
    """Times to start."""
    helping = "overcoat --help"
    row = Row(
        "start",
        "Time to start",
        "From starting the process to its port taking a connection; for `--help` to the end of the process.",
        (Metric("seconds", "time", "s", 2),),
        (
            Target("time to ready, against stock mitmdump's", "seconds", "ratio", "most", 1.1, theirs=STOCK),
            Target("time of overcoat --help", "seconds", "value", "most", 0.15, helping, unit="s"),
        ),
    )
    job = Job()

    def serve() -> float:
        port = free_port()
        policy = lab.write("start.yaml", json.dumps(overcoat_policy(lab, job, port)))
        return _time_to_port(lab, [lab.overcoat, "serve", "-p", policy], {}, port)

    def stock() -> float:
        port = free_port()
        return _time_to_port(lab, *mitmdump_command(lab, job, port), port)

    def show_help() -> float:
        started = time.perf_counter()
        lab.run([lab.overcoat, "--help"], core=lab.cores.proxy)
        return time.perf_counter() - started

    ways = {OVERCOAT: serve, STOCK: stock, helping: show_help}
    names = list(ways)
    samples: dict[str, dict[str, list[float]]] = {name: {"seconds": []} for name in names}
    for number in range(-1, lab.settings.rounds):  # the first one fills caches, and makes the CAs
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = ways[name]()
            if number >= 0:
                samples[name]["seconds"].append(seconds)
    return replace(row, samples=samples)


def _time_to_port(lab: Lab, command: Sequence[str | Path], environment: dict[str, str], port: int) -> float:
    started = time.perf_counter()
    process = lab.start(f"start-{port}", command, env=environment)
    process.wait_for_port(port, interval=0.002)
    seconds = time.perf_counter() - started
    process.stop()
    return seconds


def memory(lab: Lab) -> Row:
    """Memory after many requests."""
    count = int(MANY_REQUESTS * lab.settings.scale)
    row = Row(
        "memory",
        "Memory after 100,000 requests",
        "Resident size after as many upgraded keep-alive requests, in a new process each round.",
        (Metric("rss", "RSS", "MiB", 1),),
        (Target("RSS after 100,000 requests, against stock mitmdump", "rss", "ratio", "most", 0.7, theirs=STOCK),),
    )
    job = Job()
    ways: list[Callable[[Lab, Job], Contender]] = [overcoat, mitmdump]
    samples: dict[str, dict[str, list[float]]] = {OVERCOAT: {"rss": []}, STOCK: {"rss": []}}
    for number in range(lab.settings.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            contender = way(lab, job)
            check(lab, contender, job)
            generator(lab, contender, "--count", str(count))
            samples[contender.name]["rss"].append(contender.running.rss() / MIB)
            contender.running.stop()
    return replace(row, samples=samples)


def worker_memory(lab: Lab) -> Row:
    """Memory of each further worker."""
    row = Row(
        "worker-memory",
        "Memory of a further worker",
        "Proportional set size (PSS) of all processes, idle, with three workers less that with one, halved.",
        (Metric("pss", "PSS per worker", "MiB", 1),),
        (Target("PSS of each further worker, idle", "pss", "value", "most", 20.0, unit="MiB"),),
    )
    found: list[float] = []
    for _ in range(lab.settings.rounds):
        sizes = {}
        for count in (1, 3):
            try:
                contender = overcoat(lab, Job(more={"workers": count}))
            except Unavailable as e:
                return replace(row, unavailable=str(e))
            check(lab, contender, Job())
            sizes[count] = contender.running.pss()
            contender.running.stop()
        found.append((sizes[3] - sizes[1]) / 2 / MIB)
    return replace(row, samples={OVERCOAT: {"pss": found}})
