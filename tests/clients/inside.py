"""Runs one program of the matrix under `overcoat run`, in a network and with files of its own, and prints what came of
it as JSON. `tests/clients/test_matrix.py` runs it in fresh namespaces: unshare -n -m python inside.py CLIENT FOLDER.

Rules of this module:

- Some runtimes never ask a proxy for loopback, so the four servers have addresses of their own, on the ports that
  servers have, and names that /etc/hosts knows: a file of the test's stands there, as one stands in the place of the
  system's roots, with the test's authority in it. Nobody outside sees either.
- Each server also listens on port 80, in plain text: nothing may come there.
- Judged is what the servers received, and what the sidecar says; never what the program believes alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.clients.programs import CASES, CLIENTS, MODULES, SOURCES, Client, Files, answer
from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.connection import RecordedRequest
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import clean_environment, overcoat_command
from tests.e2e.upstream import PlainUpstream, TlsUpstream

HOSTS = {case: (f"{case}.example", f"198.51.100.{number}") for number, case in enumerate(CASES, 1)}
ROOTS = "/etc/ssl/certs/ca-certificates.crt"
TIME = 100  # seconds for the program


def sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def prepare(folder: Path, authority: Authority) -> None:
    """Make the network, and put files of the test's in the place of the machine's."""
    sh("ip", "link", "set", "lo", "up")
    for _, address in HOSTS.values():
        sh("ip", "address", "add", f"{address}/32", "dev", "lo")
    hosts = "".join(f"{address} {name}\n" for name, address in HOSTS.values())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    (folder / "system-roots.pem").write_bytes(authority.pem)
    sh("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    sh("mount", "--bind", str(folder / "system-roots.pem"), os.path.realpath(ROOTS))


def respond(files: Files | None, host: str, request: RecordedRequest) -> bytes:
    # As servers do, and as PHP waits for, which reads to the end of the connection.
    last = (("Connection", "close"),) if "close" in request.headers.tokens("Connection") else ()
    if files is None:
        return wire.response(200, b"{}", headers=last)
    scheme = "http" if host == HOSTS["upgraded"][0] else "https"
    status, kind, body = answer(files, request.target, host, scheme)
    return wire.response(status, body, headers=(("Content-Type", kind), *last))


def policy(folder: Path, receiver: Receiver, servers: dict[str, TlsUpstream]) -> Path:
    key = receiver.write_public(folder)
    pin = servers["upgraded"].pin
    wrong = "sha256/" + "A" * 42 + "E="
    path = folder / "policy.yaml"
    path.write_text(
        f"""
version: 1
destinations: {{allow: [198.51.100.0/24]}}
keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}
rules:
  - name: upgraded
    hosts: [upgraded.example]
    pins: {{any_of: ["{pin}"]}}
    request: [{{encrypt: ["$.card"], key: pay, when: {{methods: [POST]}}}}]
  - {{name: inspected, hosts: [inspected.example], https: inspect}}
  - {{name: refused, hosts: [refused.example], pins: {{any_of: ["{wrong}"]}}}}
"""
    )
    return path


def build(client: Client, work: Path) -> list[str]:
    """Lay out the program in its working folder; return its command line."""
    work.mkdir()
    source = work / client.source
    shutil.copy(SOURCES / client.source, source)
    if MODULES.is_dir():
        (work / "node_modules").symlink_to(MODULES)
    if client.source.endswith(".go"):
        subprocess.run(["go", "build", "-o", "program", client.source], cwd=work, check=True)
    return [part.replace("{}", client.source) for part in client.command]


def judge(
    client: Client,
    receiver: Receiver,
    servers: dict[str, TlsUpstream],
    plain: list[PlainUpstream],
    lines: list[dict[str, Any]],
    said: dict[str, str],
) -> dict[str, str]:
    """Return for each case `ok`, or what is wrong with it."""
    found = {}
    for case in CASES:
        host = HOSTS[case][0]
        mine = [line for line in lines if line["destination"].partition(":")[0] == host]
        done = {(line["action"], line["outcome"], line["reason"]) for line in mine}
        servers[case].settle()
        requests = servers[case].requests
        expected = client.refused if case == "refused" else "200"
        wrong = []
        if said.get(case) != expected and not client.is_silent:
            wrong.append(f"it said {said.get(case)!r} and not {expected!r}")
        if case == "refused":
            if not mine or any(line["reason"] != "pin_mismatch" for line in mine if line["action"] == "deny"):
                wrong.append(f"it was not denied for its pin: {done}")
            if any(connection.received for connection in servers[case].connections):
                wrong.append("the server received application bytes")
        else:
            action = {"upgraded": "upgrade", "inspected": "inspect", "tunnelled": "tunnel"}[case]
            if {each for each, *_ in done} != {action}:
                wrong.append(f"it was not {case}: {done}")
            if not requests:
                wrong.append("the server received nothing")
            if any(client.agent not in (request.headers.get("User-Agent") or "") for request in requests):
                wrong.append("another program asked")
        if case == "upgraded" and client.sends_json and requests:
            body = json.loads(requests[0].body)
            if receiver.open(body["card"].encode(), host=host, path="$.card") != b'"4111111111111111"':
                wrong.append("the field is another one")
            if body["name"] != "x" or requests[0].connection.tls_version is None:
                wrong.append("the rest of the body has changed, or it came in plain text")
        found[case] = "; ".join(wrong) or "ok"
    for server in plain:
        server.settle()
        if server.connections:
            found["upgraded"] = "something came in plain text"
    return found


def has_seen_enough(servers: dict[str, TlsUpstream], lines: Path) -> bool:
    """Tell whether each server has been asked that was to be, and the last case was refused."""
    asked = all(server.requests for case, server in servers.items() if case != "refused")
    return asked and lines.exists() and "pin_mismatch" in lines.read_text()


def tell(is_so: Callable[[], bool], path: Path) -> None:
    """Make a file once something is so."""
    while not is_so():
        time.sleep(0.05)
    path.touch()


def main(name: str, folder: Path) -> dict[str, Any]:
    """Run the program; return what came of it."""
    client, authority, receiver = CLIENTS[name], Authority(), Receiver("pay")
    env = clean_environment({"OVERCOAT_DATA": str(folder / "data"), "HOME": str(folder), **dict(client.env)})
    for variable in [each for each in env if each.upper().endswith(("_CA_CERTS", "CERT_FILE", "_CA_BUNDLE"))]:
        del env[variable]  # what this machine needs to reach its own network
    command = build(client, folder / "work")
    files = client.files(folder) if client.files is not None else None
    prepare(folder, authority)
    authority.write_pem(folder / "authority.pem")
    urls = {case.upper(): f"{'http' if case == 'upgraded' else 'https'}://{host}" for case, (host, _) in HOSTS.items()}
    if client.files is None:
        urls = {case: f"{url}/v1" for case, url in urls.items()}
    # Node.js has roots of its own: for a tunnelled host it must be told of the authority, as for a company's.
    env |= {**urls, "NODE_EXTRA_CA_CERTS": str(folder / "authority.pem")}
    with ExitStack() as stack:
        servers = {
            case: stack.enter_context(
                TlsUpstream(authority, host, address=address, port=443, respond=partial(respond, files, host))
            )
            for case, (host, address) in HOSTS.items()
        }
        plain = [stack.enter_context(PlainUpstream(address=address, port=80)) for _, address in HOSTS.values()]
        if client.is_silent:
            enough = partial(has_seen_enough, servers, folder / "lines")
            threading.Thread(target=tell, args=(enough, folder / "work" / "enough"), daemon=True).start()
        options = ["-p", str(policy(folder, receiver, servers)), "--json", "--lines", str(folder / "lines")]
        done = subprocess.run(
            [*overcoat_command(), "run", *options, *client.options, "--", *command],
            cwd=folder / "work",
            env=env,
            capture_output=True,
            text=True,
            timeout=TIME,
            check=False,
        )
        said = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
        lines = [json.loads(line) for line in (folder / "lines").read_text().splitlines()]
        cases = judge(client, receiver, servers, plain, lines, said)
    reports = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"program"')]
    return {
        "cases": cases,
        "past": reports[0]["past"] if reports else None,
        "version": client.version_text(),
        "status": done.returncode,
        "stdout": done.stdout,
        "stderr": done.stderr,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
