"""Measures contenders with load generators, after checking that each does the work. The rows (`bench.rows`) call it.

Rules of this module:

- A contender is measured only after one request through it has arrived as the job wants it.
- A single failed request ends the row: a measurement with failures would mean nothing.
- The upstream must count at least as many requests as the load generator: no answer may come from a cache.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwe
from joserfc.jwk import ECKey

from bench.lab import ANSWER, HOST, NAME, Lab, LabError, Process, free_port
from bench.peers import Contender, Job

HERE = Path(__file__).resolve().parent
STREAMS = 16  # of HTTP/2, at once on one connection; or connections of HTTP/1.1
_H2LOAD = re.compile(r"(\d+) failed, (\d+) errored, (\d+) timeout")

PLAIN_VALUES = {"number": "4111111111111111", "cvv": "737", "ssn": "078-05-1120", "iban": "DE02120300000000202051"}
BODY = json.dumps(
    {
        "id": "ord_2291384",
        "amount": 12995,
        "currency": "EUR",
        "card": {"number": PLAIN_VALUES["number"], "cvv": PLAIN_VALUES["cvv"], "expires": "2029-11"},
        "customer": {"name": "Ada Example", "ssn": PLAIN_VALUES["ssn"], "email": "ada@shop.example"},
        "account": {"iban": PLAIN_VALUES["iban"], "bic": "BYLADEM1001"},
        "note": "leave the parcel with the neighbours, third floor, bell on the left side of the door",
    }
)
_REGISTRY = jwe.JWERegistry(algorithms=["ECDH-ES+A256KW", "A256GCM"])
_PLACES = (("card", "number"), ("card", "cvv"), ("customer", "ssn"), ("account", "iban"))


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator measured.

    Attributes:
        rate: requests a second.
        p50: the median latency in milliseconds.
        p99: the 99th percentile of it.
        requests: how many were answered.
        load_seconds: the processor time of the load generator, if it was measured.
    """

    rate: float
    p50: float
    p99: float
    requests: int = 0
    load_seconds: float = 0.0


def wrk(lab: Lab, contender: Contender, *, close: bool = False, body: bool = False, connections: int = 0) -> Load:
    """Load a contender with wrk over plain http.

    Args:
        lab: the lab.
        contender: the contender to load.
        close: use a new client connection for every request.
        body: POST the JSON body instead of GET.
        connections: how many connections, if not as many as the settings say.
    """
    seconds = max(1, round(lab.settings.seconds))
    command = [lab.programs["wrk"], "-t", "1", "-c", str(connections or lab.settings.connections), "-d", f"{seconds}s"]
    command += ["--timeout", "10s", "-s", str(HERE / "wrk.lua"), f"http://{HOST}:{contender.port}/", "--"]
    command += ["POST" if body else "GET", contender.target("/bench"), HOST, "close" if close else "keep"]
    if body:
        command.append(str(lab.write("body.json", BODY)))
    before = lab.upstream.requests()
    output = lab.run(command, seconds=seconds + 30.0)
    text = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if text is None:
        raise LabError(f"wrk gave no result:\n{output[-1000:]}")
    result = json.loads(text.removeprefix("RESULT "))
    failed = {kind: count for kind, count in result["errors"].items() if count}
    if failed:
        raise LabError(f"{contender.name}: requests failed: {failed} of {result['requests']}")
    return _load(lab, contender, result, before)


def generator(lab: Lab, contender: Contender, *arguments: str, inspect: bool = False) -> Load:
    """Load a contender with the generator of our own.

    Args:
        lab: the lab.
        contender: the contender to load.
        arguments: `--seconds`, `--count` or `--rate`, and their values.
        inspect: use CONNECT, and TLS that the contender terminates.
    """
    command = [sys.executable, str(HERE / "generator.py"), "--server", f"{HOST}:{contender.port}", *arguments]
    if "--connections" not in arguments:
        command += ["--connections", str(lab.settings.connections)]
    if inspect:
        authority = f"{NAME}:{lab.upstream.port}"
        command += ["--connect", authority, "--host", authority, "--target", "/bench"]
        command += ["--ca-file", str(contender.ca_file)]
    else:
        command += ["--host", HOST, "--target", contender.target("/bench")]
        if contender.process is None:
            command += ["--ca-file", str(lab.ca_file)]
    before = lab.upstream.requests()
    return _load(lab, contender, json.loads(lab.run(command, seconds=900.0)), before)


def _load(lab: Lab, contender: Contender, result: dict[str, Any], before: int) -> Load:
    arrived = lab.upstream.requests() - before
    if result["requests"] < 10 or arrived < result["requests"]:
        raise LabError(f"{contender.name}: {result['requests']} requests were answered, {arrived} arrived upstream")
    return Load(
        result["requests"] / result["seconds"],
        result["p50_ms"],
        result["p99_ms"],
        result["requests"],
        result.get("load_seconds", 0.0),
    )


@dataclass(frozen=True, slots=True)
class Way:
    """A relay that leads what knows no proxies through a contender.

    Attributes:
        relay: its process.
        port: where it listens.
        authority: what it asks CONNECT for.
    """

    relay: Process
    port: int
    authority: str


def connector(lab: Lab, contender: Contender, port: int) -> Way:
    """Start a relay that asks a contender for a tunnel to the upstream's `port` for each connection."""
    here, authority = free_port(), f"{NAME}:{port}"
    command: list[str | Path] = [sys.executable, HERE / "connector.py", str(here), str(contender.port), authority]
    way = Way(lab.start(f"connector-{here}", command, core=lab.cores.load), here, authority)
    way.relay.wait_for_port(here)
    return way


def h2load(lab: Lab, contender: Contender, way: Way, *, http2: bool, count: int = 0) -> Load:
    """Load a contender with h2load, over TLS that the contender terminates, by way of a `connector`.

    Args:
        lab: the lab.
        contender: the contender to load.
        way: the relay that makes the CONNECT.
        http2: one connection with `STREAMS` streams at once; else as many connections of HTTP/1.1, kept alive.
        count: how many requests; 0 for as many as the settings' seconds allow.
    """
    log = lab.directory / f"h2load-{way.port}.log"
    log.unlink(missing_ok=True)
    seconds = max(1, round(lab.settings.seconds))
    command = [lab.programs["h2load"], f"--log-file={log}"]
    command += ["-c", "1", "-m", str(STREAMS)] if http2 else ["--h1", "-c", str(STREAMS)]
    command += ["-n", str(count)] if count else ["-D", str(seconds)]
    command += [f"--connect-to={HOST}:{way.port}", f"https://{way.authority}/bench"]
    before, used = lab.upstream.requests(), way.relay.cpu_seconds() + _children_seconds()
    output = lab.run(command, seconds=seconds + 60.0)
    used = way.relay.cpu_seconds() + _children_seconds() - used
    lines = [line.split("\t") for line in log.read_text("ascii").splitlines()]
    wrong = [status for _, status, _ in lines if status != "200"]
    counted = _H2LOAD.search(output)
    spoken = "h2" if http2 else "http/1.1"
    if counted is None or any(map(int, counted.groups())) or wrong or f"Application protocol: {spoken}\n" not in output:
        raise LabError(f"{contender.name}: requests failed, or were none of {spoken}: {output[-1000:]}")
    took = sorted(int(microseconds) / 1000 for _, _, microseconds in lines)
    if not took:
        raise LabError(f"{contender.name}: nothing was answered: {output[-1000:]}")
    began, ended = int(lines[0][0]), int(lines[-1][0]) + int(lines[-1][2])
    result = {
        "requests": len(took),
        "seconds": (ended - began) / 1e6,
        "p50_ms": took[len(took) // 2],
        "p99_ms": took[len(took) * 99 // 100],
        "load_seconds": used,
    }
    return _load(lab, contender, result, before)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def curl(lab: Lab, contender: Contender, url: str, *arguments: str, inspect: bool = False) -> dict[str, Any]:
    """Fetch a URL with curl through a contender (or straight, for the one that is no proxy).

    Args:
        lab: the lab.
        contender: the way to take.
        url: the URL; https through a proxy means CONNECT.
        arguments: further arguments.
        inspect: the contender's CA is trusted, and no other: it must open the https. Else only the lab's CA is.

    Returns:
        What curl's `%{json}` says.

    Raises:
        LabError: there was no answer.
    """
    command = [lab.programs["curl"], "-sS", "-m", "300", "-o", "/dev/null", "-w", "%{json}", "--cacert"]
    command.append(str(contender.ca_file if inspect else lab.ca_file))
    if contender.process is not None and contender.is_forward:
        command += ["-x", f"http://{HOST}:{contender.port}"]
    output = lab.run([*command, *arguments, url], seconds=330.0)
    answer: dict[str, Any] = json.loads(output)
    return answer


# -- checks


def check(lab: Lab, contender: Contender, job: Job) -> None:
    """See that a request arrives as the job asks for.

    Raises:
        LabError: it does not.
    """
    _check_arrival(lab, contender, job)
    if job.pins:
        _check_pins(lab, contender)


def _check_arrival(lab: Lab, contender: Contender, job: Job) -> None:
    identifier = uuid.uuid4().hex
    arguments = ["-H", f"X-Check: {identifier}"]
    if job.fields:
        arguments += ["-H", "Content-Type: application/json", "--data-binary", BODY]
    arguments.append("--http2" if job.app_http2 else "--http1.1")
    if job.inspect or job.tunnel or contender.process is None:
        port = lab.upstream.http2_port if job.upstream_http2 else lab.upstream.port
        url = f"https://{NAME}:{port}/check"
    elif contender.is_forward:
        url = f"http://{HOST}/check"
    else:
        url = f"http://{HOST}:{contender.port}/check"
    answer = curl(lab, contender, url, *arguments, inspect=job.inspect)
    if answer["http_code"] != 200 or answer["size_download"] != len(ANSWER):
        raise LabError(f"{contender.name}: the check was answered {answer['http_code']}")
    arrived = lab.upstream.checked(identifier)
    if len(arrived) != 1 or not arrived[0]["tls"].startswith("TLSv1."):
        raise LabError(f"{contender.name}: the check did not arrive over TLS, once: {arrived}")
    spoken = ("2" if job.app_http2 else "1.1", "HTTP/2.0" if job.upstream_http2 else "HTTP/1.1")
    if (answer["http_version"], arrived[0]["version"]) != spoken:
        raise LabError(f"{contender.name}: not spoken as it should be: {answer['http_version']}, {arrived}")
    if job.fields:
        _check_fields(lab, contender, arrived[0]["body"])


def _check_fields(lab: Lab, contender: Contender, text: str) -> None:
    key = ECKey.import_key(lab.field_key)
    body = json.loads(text)
    for outer, inner in _PLACES:
        try:
            opened = jwe.decrypt_compact(body[outer][inner], key, registry=_REGISTRY)
        except Exception as e:
            raise LabError(f"{contender.name}: {outer}.{inner} did not arrive as a JWE: {e}") from None
        if json.loads(opened.plaintext or b"") != PLAIN_VALUES[inner]:
            raise LabError(f"{contender.name}: {outer}.{inner} opens to another value")
    if any(value in text for value in PLAIN_VALUES.values() if len(value) > 4):
        raise LabError(f"{contender.name}: a value that should be encrypted arrived in the clear")


def _check_pins(lab: Lab, contender: Contender) -> None:
    """See that a server with a valid certificate but another key gets no request, and that one with the key does."""
    straight = Contender("no proxy", None, 0)
    good, impostor = (f"https://{NAME}:{port}/check" for port in (lab.upstream.port, lab.upstream.impostor_port))
    for way, url in ((straight, impostor), (contender, good)):
        if curl(lab, way, url, inspect=way is contender)["http_code"] != 200:
            raise LabError(f"{url} does not answer by way of {way.name}, so the pin check would prove nothing")
    identifier = uuid.uuid4().hex
    try:
        status = curl(lab, contender, impostor, "-H", f"X-Check: {identifier}", inspect=True)["http_code"]
    except LabError:
        status = 0  # refused before any HTTP answer, which is fine, too
    if status == 200 or lab.upstream.checked(identifier, wait=0.3):
        raise LabError(f"{contender.name}: a request went to a server with another key: pins are not checked")
