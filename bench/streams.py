"""The rows about HTTP/2 and gRPC. One function a row."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.contest import STOCK, contest
from bench.lab import NAME, Lab, LabError, free_port
from bench.measure import STREAMS, Load, connector, h2load
from bench.peers import Contender, Job, mitmdump, overcoat
from bench.results import OVERCOAT, Metric, Row, Target

HERE = Path(__file__).resolve().parent

_RATE = Metric("rate", "rate", "requests/s")
_P50 = Metric("p50", "p50", "ms", 2)
_P99 = Metric("p99", "p99", "ms", 2)
_COST = Metric("cost", "the proxy's processor time a request", "µs")
_LOAD = Metric("load", "the load generator's", "µs")


def _figures(contender: Contender, measure: Callable[[], Load]) -> dict[str, float]:
    """Measure, and see what processor time it took."""
    used = contender.running.cpu_seconds()
    load = measure()
    used = contender.running.cpu_seconds() - used
    return {
        "rate": load.rate,
        "p50": load.p50,
        "p99": load.p99,
        "cost": used / load.requests * 1e6,
        "load": load.load_seconds / load.requests * 1e6,
    }


def http2(lab: Lab) -> Row:
    """HTTP/2 from the app, against HTTP/1.1 from it; to the upstream HTTP/1.1 in both."""
    one, two, both = f"{OVERCOAT}, HTTP/1.1", f"{OVERCOAT}, HTTP/2", f"{OVERCOAT}, HTTP/2 both ways"
    stock_one, stock_two = f"{STOCK}, HTTP/1.1", f"{STOCK}, HTTP/2"
    row = Row(
        "http2",
        f"Inspected https over HTTP/2, {STREAMS} streams at once",
        f"h2load, which a small relay leads through CONNECT: {STREAMS} streams at once on one connection, or as many "
        "connections of HTTP/1.1, kept alive. To nginx it is HTTP/1.1, in all but the one that is called HTTP/2 both "
        "ways.",
        (_RATE, _P50, _P99, _COST, _LOAD),
        (
            Target(
                f"inspected https over HTTP/2, {STREAMS} streams at once, against the same over HTTP/1.1 keep-alive",
                *("rate", "ratio", "least", 0.9, two, one),
            ),
            Target("the same, with HTTP/2 to the upstream as well", "rate", "ratio", "least", None, both, one),
            Target("the same, against stock mitmdump's HTTP/2", "rate", "ratio", "least", None, two, stock_two),
        ),
    )
    http1_job = Job(inspect=True)
    app_job = Job(inspect=True, app_http2=True)
    both_job = Job(inspect=True, app_http2=True, upstream_http2=True)
    entries = [
        (overcoat(lab, http1_job, one), http1_job),
        (overcoat(lab, app_job, two), app_job),
        (overcoat(lab, both_job, both), both_job),
        (mitmdump(lab, http1_job, stock_one), http1_job),
        (mitmdump(lab, app_job, stock_two), app_job),
    ]
    ways = {}
    for contender, job in entries:
        port = lab.upstream.http2_port if job.upstream_http2 else lab.upstream.port
        ways[contender.name] = (connector(lab, contender, port), job.app_http2)

    def measure(contender: Contender) -> dict[str, float]:
        way, is_http2 = ways[contender.name]
        return _figures(contender, lambda: h2load(lab, contender, way, http2=is_http2))

    return contest(lab, row, entries, measure, measure)


def grpc(lab: Lab) -> Row:
    """Unary calls of a cleartext gRPC channel, upgraded to HTTP/2 over TLS."""
    row = Row(
        "grpc",
        "gRPC, unary calls of an insecure channel, upgraded",
        f"grpcio's client and server, each a process of its own; {STREAMS} calls at once on one channel; the message "
        "of 0.2 KB comes back. A reverse listener takes the cleartext channel; the server gets HTTP/2 over TLS. Client "
        "and server share a core and limit the rate, so the first figure is what one second of the proxy's processor "
        "time is enough for.",
        (
            Metric("capacity", "calls per processor second of the proxy", "calls/s"),
            Metric("rate", "rate", "calls/s"),
            _P50,
            _P99,
            Metric("load", "processor time of the client and the server a call", "µs"),
        ),
        (
            Target(
                "gRPC unary calls, cleartext to TLS, by the proxy's processor time, against stock mitmdump",
                *("capacity", "ratio", "least", None),
                theirs=STOCK,
            ),
        ),
    )
    if importlib.util.find_spec("grpc") is None:
        return replace(row, targets=(), unavailable="grpcio is not installed")
    port = free_port()
    server = lab.start(
        "grpc-server",
        [sys.executable, HERE / "grpc_peer.py", "serve", str(port), str(lab.directory / "server.pem")],
        core=lab.cores.upstream,
    )
    server.wait_for_port(port)
    entries = [(overcoat(lab, Job(reverse=port)), Job())]
    stock = mitmdump(lab, Job(reverse=port))
    try:
        _call(lab, stock, "--count", "20")
    except LabError:  # its add-on `disable_h2c` ends such a connection
        why = "not measured, since it takes no HTTP/2 in plain text (prior knowledge)"
        row = replace(row, targets=(), leaves_out={STOCK: why})
    else:
        entries.append((stock, Job()))
    entries.append((Contender("no proxy", None, port, False, lab.ca_file, "all of it"), Job()))

    def measure(contender: Contender) -> dict[str, float]:
        used = contender.process.cpu_seconds() if contender.process else 0.0
        load = _call(lab, contender, "--seconds", str(lab.settings.seconds))
        figures = {"rate": load.rate, "p50": load.p50, "p99": load.p99}
        figures["load"] = load.load_seconds / load.requests * 1e6
        if contender.process:
            figures["capacity"] = load.requests / (contender.process.cpu_seconds() - used)
        return figures

    # The server speaks TLS alone, and counts: what the client got back has arrived over TLS, once.
    return contest(lab, row, entries, measure, measure, examine=_few)


def _few(lab: Lab, contender: Contender, _: Job) -> None:
    _call(lab, contender, "--count", "20")


def _call(lab: Lab, contender: Contender, *arguments: str) -> Load:
    """Have unary calls made; what is not right with any of them is a `LabError`."""
    command: list[str | Path] = [sys.executable, HERE / "grpc_peer.py", "load", f"{NAME}:{contender.port}"]
    command += ["--streams", str(STREAMS), *arguments]
    if contender.process is None:
        command += ["--ca-file", lab.ca_file]
    result = json.loads(lab.run(command, seconds=lab.settings.seconds + 60.0))
    rate = result["requests"] / result["seconds"]
    return Load(rate, result["p50_ms"], result["p99_ms"], result["requests"], result["load_seconds"])
