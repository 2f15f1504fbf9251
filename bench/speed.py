"""The rows about requests: how many a second, and how long each takes. One function a row."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench.contest import STOCK, Entry, contest
from bench.lab import HOST, Lab, Unavailable, free_port
from bench.measure import Load, curl, generator, wrk
from bench.peers import Contender, Job, direct, haproxy, mitmdump, nginx, overcoat, proxy_py, squid
from bench.results import OVERCOAT, Metric, Row, Target

HERE = Path(__file__).resolve().parent
ROUND_TRIP = 0.020
PROBES = 10  # requests that one round of the round-trip row takes the median of

_RATE = Metric("rate", "rate", "requests/s")
_P50 = Metric("p50", "p50", "ms", 2)
_P99 = Metric("p99", "p99", "ms", 2)


def _figures(load: Load) -> dict[str, float]:
    return {"rate": load.rate, "p50": load.p50, "p99": load.p99}


def _over_stock(text: str, limit: float) -> Target:
    return Target(f"{text}, against stock mitmdump", "rate", "ratio", "least", limit, theirs=STOCK)


def _all_upgraders(lab: Lab, job: Job) -> list[Entry]:
    contenders = [
        overcoat(lab, job),
        mitmdump(lab, job),
        proxy_py(lab, job),
        squid(lab, job),
        nginx(lab),
        haproxy(lab),
    ]
    return [(contender, job) for contender in contenders]


def upgrade(lab: Lab) -> Row:
    """Keep-alive http to https."""
    row = Row(
        "upgrade",
        "Upgrade http to https, keep-alive",
        f"wrk, {lab.settings.connections} connections, GET with an answer of 0.2 KB; TLS to nginx is kept alive too.",
        (_RATE, _P50, _P99),
        (
            _over_stock("keep-alive upgrade, small GET, requests/s", 10.0),
            Target("the same, against proxy.py", "rate", "ratio", "least", 1.0, theirs="proxy.py"),
        ),
    )
    return contest(
        lab, row, _all_upgraders(lab, Job()), lambda c: _figures(wrk(lab, c)), lambda c: _figures(wrk(lab, c))
    )


def new_connections(lab: Lab) -> Row:
    """The same, with a new client connection for every request."""
    row = Row(
        "new-connections",
        "Upgrade, a new connection for every request",
        f"wrk with `Connection: close`, a new client connection each time, {lab.settings.connections} at a time.",
        (_RATE, _P50, _P99),
        (_over_stock("a new client connection per request, requests/s", 16.0),),
    )

    def measure(contender: Contender) -> dict[str, float]:
        return _figures(wrk(lab, contender, close=True))

    return contest(lab, row, _all_upgraders(lab, Job()), measure, measure)


def pins(lab: Lab) -> Row:
    """Keep-alive upgrade with pins, against the same without."""
    row = Row(
        "pins",
        "The same with pins",
        "As the first row. Before it, a server with a valid certificate but another key was refused.",
        (_RATE, _P50, _P99),
        (Target("pins on, against without, requests/s", "rate", "ratio", "least", 0.97, "overcoat, pins", OVERCOAT),),
    )
    entries = [
        (overcoat(lab, Job()), Job()),
        (overcoat(lab, Job(pins=True), "overcoat, pins"), Job(pins=True)),
        (mitmdump(lab, Job(pins=True), "mitmdump, pins"), Job(pins=True)),
    ]
    return contest(lab, row, entries, lambda c: _figures(wrk(lab, c)), lambda c: _figures(wrk(lab, c)))


def fields(lab: Lab) -> Row:
    """POST with four fields encrypted."""
    ours, theirs = "overcoat, encrypted", "mitmdump, encrypted"
    row = Row(
        "fields",
        "POST 0.4 KB, four fields encrypted",
        "wrk, keep-alive, upgrade and pins in all; ECDH-ES+A256KW on P-256 with A256GCM, one JWE a field. Before it, "
        "the four values that arrived were opened with the private key.",
        (_RATE, _P50, _P99),
        (
            Target(
                "four fields encrypted, against the same POST not encrypted",
                "rate",
                "ratio",
                "least",
                0.75,
                ours,
                OVERCOAT,
            ),
            Target(
                "four fields encrypted, against stock mitmdump with joserfc",
                "rate",
                "ratio",
                "least",
                3.0,
                ours,
                theirs,
            ),
        ),
    )
    protect = Job(pins=True, fields=True)
    entries = [
        (overcoat(lab, Job(pins=True)), Job(pins=True)),
        (overcoat(lab, protect, ours), protect),
        (mitmdump(lab, protect, theirs), protect),
    ]

    def measure(contender: Contender) -> dict[str, float]:
        return _figures(wrk(lab, contender, body=True))

    return contest(lab, row, entries, measure, measure)


def inspected(lab: Lab) -> Row:
    """CONNECT with TLS that the proxy opens."""
    row = Row(
        "inspected",
        "Inspected https (CONNECT), keep-alive",
        f"A generator of our own, {lab.settings.connections} connections: TLS to the proxy, TLS to nginx.",
        (_RATE, _P50, _P99),
        (_over_stock("inspected https, keep-alive, requests/s", 9.0),),
    )
    job = Job(inspect=True)
    entries = [(start(lab, job), job) for start in (overcoat, mitmdump, proxy_py, squid)]

    def measure(contender: Contender) -> dict[str, float]:
        return _figures(generator(lab, contender, "--seconds", str(lab.settings.seconds), inspect=True))

    return contest(lab, row, entries, measure, measure)


def round_trip(lab: Lab) -> Row:
    """One request on a new connection to a server that is far away."""
    ours = Target(
        "one request on a new connection, 20 ms round trip, against curl straight to the server",
        *("ms", "ratio", "most", 0.45),
        theirs="no proxy",
    )
    row = Row(
        "round-trip",
        "One request, new connection, 20 ms away",
        f"curl's total time, the median of {PROBES} requests a round; the 20 ms between proxy (or curl) and server are "
        "made by a delaying relay, which charges the TCP handshake as well. The proxy has served the host before.",
        (Metric("ms", "total time", "ms", 1),),
        (ours,),
    )
    port = free_port()
    relay = lab.start(
        "relay",
        [sys.executable, HERE / "relay.py", str(port), str(lab.upstream.port), str(ROUND_TRIP)],
        core=lab.cores.upstream,
    )
    relay.wait_for_port(port)
    job = Job(https_port=port)
    entries = [(overcoat(lab, job), job), (mitmdump(lab, job), job), (direct(lab), job)]

    def measure(contender: Contender) -> dict[str, float]:
        url = f"https://{HOST}:{port}/bench" if contender.process is None else f"http://{HOST}/bench"
        return {"ms": median(curl(lab, contender, url)["time_total"] * 1000 for _ in range(PROBES))}

    return contest(lab, row, entries, measure, measure)


def latency(lab: Lab) -> Row:
    """Latency at a rate that no contender finds hard."""
    row = Row(
        "latency",
        "Latency at 100 requests/s",
        "A generator of our own, 100 requests/s over 8 keep-alive connections, from sending to the whole answer.",
        (_P50, _P99),
        (
            Target(
                "added latency at 100/s, p50, beyond nginx's",
                "p50",
                "difference",
                "most",
                0.15,
                theirs="nginx",
                unit="ms",
            ),
            Target(
                "added latency at 100/s, p99, beyond nginx's",
                "p99",
                "difference",
                "most",
                0.4,
                theirs="nginx",
                unit="ms",
            ),
        ),
    )
    job = Job()
    contenders = [overcoat(lab, job), mitmdump(lab, job), nginx(lab), haproxy(lab), direct(lab)]
    seconds = str(2 * lab.settings.seconds)

    def measure(contender: Contender) -> dict[str, float]:
        load = generator(lab, contender, "--rate", "100", "--seconds", seconds, "--connections", "8")
        return {"p50": load.p50, "p99": load.p99}

    return contest(lab, row, [(contender, job) for contender in contenders], measure, measure)


def workers(lab: Lab) -> Row:
    """Two workers against one."""
    two = "two workers"
    shared = "" if lab.cores.count >= 4 else " This machine has too few cores to keep the load off the workers'."
    row = Row(
        "workers",
        "Two workers on two cores",
        "wrk, keep-alive upgrade, 32 connections. The second figure is the rate divided by the processor time that the "
        f"proxy got, times its cores: what it would do with these for itself.{shared}",
        (_RATE, Metric("capacity", "rate with its cores to itself", "requests/s")),
        (
            Target("two workers on two cores, against one", "rate", "ratio", "least", 1.8, two, "one worker"),
            Target("the same, with its cores to itself", "capacity", "ratio", "least", 1.8, two, "one worker"),
        ),
    )
    jobs = {count: Job(more={"workers": count}) for count in (1, 2)}
    try:
        entries = [
            (overcoat(lab, jobs[1], "one worker"), jobs[1]),
            (overcoat(lab, jobs[2], two, core=lab.cores.pair), jobs[2]),
        ]
    except Unavailable as e:
        return replace(row, unavailable=str(e))

    def measure(contender: Contender) -> dict[str, float]:
        started, used = time.perf_counter(), contender.running.cpu_seconds()
        rate = wrk(lab, contender, connections=32).rate
        share = (contender.running.cpu_seconds() - used) / (time.perf_counter() - started)
        return {"rate": rate, "capacity": rate / share * (2 if contender.name == two else 1)}

    return contest(lab, row, entries, measure, measure)
