"""Measurements, and the checks that come before them.

Rules of this module:

- A contender is measured only after one request through it was seen to arrive as the job asks for.
- A measurement with a single failed request is no measurement: it ends the row.
- The upstream's own count must be at least the load generator's: nobody answers out of a cache.
"""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwe
from joserfc.jwk import ECKey

from bench.lab import ANSWER, HOST, NAME, Lab, LabError
from bench.peers import Contender, Job

HERE = Path(__file__).resolve().parent

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
    """

    rate: float
    p50: float
    p99: float


def wrk(lab: Lab, contender: Contender, *, close: bool = False, body: bool = False, connections: int = 0) -> Load:
    """Load a contender with wrk over plain http.

    Args:
        lab: the lab.
        contender: whom to load.
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
        contender: whom to load.
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
    return Load(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"])


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
    if job.inspect or job.tunnel or contender.process is None:
        url = f"https://{NAME}:{lab.upstream.port}/check"
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
        status = 0  # refused before there was an HTTP answer, which is as good
    if status == 200 or lab.upstream.checked(identifier, wait=0.3):
        raise LabError(f"{contender.name}: a request went to a server with another key: pins are not checked")
