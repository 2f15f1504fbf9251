"""The cases of the demo. Each is run on real connections, and checked against what the upstream recorded. `overcoat
demo` calls `run_cases` and prints the result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from proxy.core.fields import splice
from proxy.core.fields.automaton import Marks
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose import jwe
from proxy.core.jose.keys import Alg, Key, KeySet, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.core.jose.place import Place
from proxy.demo.sidecar import Answer, Sidecar, ask
from proxy.demo.upstreams import DemoCa, Gateway, Upstream, start
from proxy.disk.packaged import config_file

BODY = """{
  "amount": 12.50,
  "card": {"number": "4111 1111 1111 1111", "cvv": 123},
  "customer": {"name": "Zoë", "ssn": "078-05-1120"}
}"""
MARKED = ("$.card.number", "$.card.cvv", "$..ssn")
MARKED_VALUES = ("4111 1111 1111 1111", ": 123", "078-05-1120")
TOKEN_ANSWER = b'{"charged": true, "token": "tok_5f2a"}'


@dataclass(frozen=True, slots=True)
class Case:
    """One claim, and what happened.

    Attributes:
        title: the claim.
        sent: what the app sent.
        received: what the upstream received.
        told: what the app was told.
        failures: what does not hold; empty if everything does.
    """

    title: str
    sent: str
    received: str
    told: str
    failures: list[str]


def run_cases(directory: Path) -> list[Case]:
    """Run all cases.

    Args:
        directory: an empty directory for the throw-away keys, certificates and policy.

    Raises:
        proxy.demo.sidecar.DemoFailed: the sidecar or the client could not be run.
    """
    authority = DemoCa()
    (directory / "demo-ca.pem").write_bytes(authority.pem)
    right = authority.write_server(directory, "pinned-server")
    other = authority.write_server(directory, "another-server")
    receiver = _key(directory, "bank")
    _key(directory, "app")
    authority.write_server(directory, "mirror-server")

    upgraded = start(18441, other)
    rejected = start(18080, None)
    pinned = start(18442, right)
    impostor = start(18443, other)
    payments = start(18444, other)
    gateway = Gateway(18445, other, authority)
    behind = start(18446, None, TOKEN_ANSWER)

    taken = {18441: upgraded, 18080: rejected, 18442: pinned, 18443: impostor, 18444: payments}
    ports = {port: upstream.port for port, upstream in taken.items()} | {18445: gateway.port}
    policy = _policy(directory, "demo.yaml", ports)
    mirror = _policy(directory, "demo-mirror.yaml", {18446: behind.port})

    with (
        Sidecar(policy, directory / "data") as sidecar,
        Sidecar(mirror, directory / "mirror-data", None) as beside,
    ):
        gateway.lead_to(*beside.wait())
        sidecar.wait()
        answers = {
            "upgraded": ask(sidecar.url, f"http://localhost:{upgraded.port}/hello", None),
            "rejected": ask(sidecar.url, f"http://localhost:{rejected.port}/legacy", None),
            "pinned": ask(sidecar.url, f"http://localhost:{pinned.port}/account", None),
            "impostor": ask(sidecar.url, f"http://localhost:{impostor.port}/account", None),
            "payments": ask(sidecar.url, f"http://localhost:{payments.port}/charges", BODY),
            "both": ask(sidecar.url, f"http://localhost:{gateway.port}/charges", BODY),
        }
        status = sidecar.stop() or beside.stop()
    keys = KeySet("bank", Alg.ECDH_ES_A256KW, receiver)
    cases = [
        _delivered("http leaves as https", upgraded, "/hello", answers["upgraded"]),
        _rejected(rejected, answers["rejected"]),
        _pinned(pinned, answers["pinned"], sidecar),
        _impostor(impostor, answers["impostor"]),
        _fields(payments, answers["payments"], keys),
        _both_ends(gateway, behind, answers["both"]),
    ]
    if status != 0:
        cases[0].failures.append(f"the sidecar ended with status {status}")
    return cases


def _key(directory: Path, name: str) -> Key:
    """Make a key pair; its halves get files of their own."""
    key = new_key(Alg.ECDH_ES_A256KW, kid=f"{name}-2026")
    (directory / f"{name}.pub.pem").write_bytes(to_pem(key, private=False))
    (directory / f"{name}.pem").touch(mode=0o600)
    (directory / f"{name}.pem").write_bytes(to_pem(key, private=True))
    return key


def _policy(directory: Path, name: str, ports: Mapping[int, int]) -> Path:
    """Put a policy of the demo into its directory, with the ports that were really taken."""
    text = config_file(name).read_text("utf-8")
    for written, taken in ports.items():
        text = text.replace(f":{written}", f":{taken}")
    policy = directory / name
    policy.write_text(text, "utf-8")
    return policy


def _line(upstream: Upstream, path: str) -> str:
    return f"GET http://localhost:{upstream.port}{path}"


def _told(answer: Answer) -> str:
    if answer.status < 400:
        return f"{answer.status}"
    return f"{answer.status} {answer.body.get('reason', '')}\n{answer.body.get('detail', '')}"


def _delivered(title: str, upstream: Upstream, path: str, answer: Answer) -> Case:
    head, _ = upstream.request
    failures = []
    if answer.status != 200:
        failures.append(f"the app got {answer.status}, not 200")
    if upstream.handshakes != 1:
        failures.append(f"{upstream.handshakes} TLS handshakes were completed, not 1")
    if not head.startswith(f"GET {path} HTTP/1.1\r\n"):
        failures.append("the upstream did not get the request over TLS")
    return Case(title, _line(upstream, path), f"over TLS:\n{_first_lines(head)}", _told(answer), failures)


def _rejected(upstream: Upstream, answer: Answer) -> Case:
    failures = []
    if answer.status != 403 or answer.body.get("reason") != "plain_http_rejected":
        failures.append("the app was not told plain_http_rejected")
    if upstream.connections:
        failures.append(f"the upstream saw {upstream.connections} connections")
    received = f"{upstream.connections} connections, {len(upstream.received)} bytes"
    return Case("a plain-http host is rejected", _line(upstream, "/legacy"), received, _told(answer), failures)


def _pinned(upstream: Upstream, answer: Answer, sidecar: Sidecar) -> Case:
    case = _delivered("a host whose key matches the pin", upstream, "/account", answer)
    verdicts = [line["pin"] for line in sidecar.decisions if line["rule"] == "pinned"]
    if verdicts != ["match"]:
        case.failures.append(f"the decision line says pin {verdicts}, not match")
    return case


def _impostor(upstream: Upstream, answer: Answer) -> Case:
    failures = []
    if answer.status != 502 or answer.body.get("reason") != "pin_mismatch":
        failures.append("the app was not told pin_mismatch")
    if not upstream.connections:
        failures.append("the upstream was never dialled, so nothing was shown")
    if upstream.received:
        failures.append(f"the upstream received {len(upstream.received)} application bytes")
    received = f"{upstream.connections} TLS connection, broken off in the handshake\n"
    received += f"{len(upstream.received)} application bytes"
    return Case("a valid certificate, but another key", _line(upstream, "/account"), received, _told(answer), failures)


def _fields(upstream: Upstream, answer: Answer, keys: KeySet) -> Case:

    _, body = upstream.request
    failures = []
    if answer.status != 200:
        failures.append(f"the app got {answer.status}, not 200")
    failures += [f"the marked value {value} arrived in the clear" for value in MARKED_VALUES if value.encode() in body]
    opened = []

    def open_value(value: bytes, path: str) -> bytes:
        token = splice.token_of(value)
        if token is None:
            raise ValueError(path)
        plaintext = jwe.open_token(token, keys, Place("localhost", path), datetime.now(UTC).date())
        opened.append(f"{path} opens to {plaintext.decode()}")
        return plaintext

    marks = Marks(tuple(parse_selector(text) for text in MARKED))
    try:
        restored = splice.splice(body, [splice.Job(marks, open_value)])
    except (ValueError, jwe.JweError):
        failures.append("a marked value did not arrive as a JWE that the receiver's key opens")
    else:
        if restored.total != len(MARKED):
            failures.append(f"{restored.total} values were encrypted, not {len(MARKED)}")
        if restored.body != BODY.encode():
            failures.append("the rest of the body is not identical")
    shown = "\n".join(_shortened(line) for line in body.decode().splitlines())
    received = f"over TLS:\n{shown}\n\nwith the receiver's key:\n" + "\n".join(opened)
    received += "\nall other bytes identical" if not failures else ""
    sent = f"POST http://localhost:{upstream.port}/charges\n{BODY}"
    return Case("marked JSON fields leave encrypted", sent, received, _told(answer), failures)


def _both_ends(gateway: Gateway, behind: Upstream, answer: Answer) -> Case:
    between, (_, arrived) = bytes(gateway.read), behind.request
    failures = []
    if answer.status != 200 or answer.body != json.loads(TOKEN_ANSWER):
        failures.append(f"the app got {answer.status}, or another answer than the server's")
    if arrived != BODY.encode():
        failures.append("the server did not get the very body that the app sent")
    secrets = ("4111 1111 1111 1111", '"cvv": 123', "078-05-1120", json.loads(TOKEN_ANSWER)["token"])
    failures += [f"the gateway could read {value}" for value in secrets if value.encode() in between]
    shown = [line for line in between.decode("utf-8", "replace").splitlines() if "eyJ" in line]
    received = "a gateway between, which ends TLS, reads:\n" + "\n".join(map(_shortened, shown))
    received += "\n\nthe server, over plain http beside its sidecar:\n" + arrived.decode()
    told = f"{answer.status} {json.dumps(answer.body)}"
    return Case(
        "a sidecar at both ends, and no code changed",
        f"POST http://localhost:{gateway.port}/charges\n{BODY}",
        received,
        told,
        failures,
    )


def _first_lines(head: str) -> str:
    return "\n".join(head.splitlines()[:3])


def _shortened(line: str) -> str:
    """Shorten the JWEs in a line to their beginnings and ends."""
    return " ".join(f"{word[:12]}…{word[-10:]}" if len(word) > 100 else word for word in line.split(" "))
