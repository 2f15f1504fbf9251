"""What `overcoat explain` says of a request is what the sidecar does with it: the same reason, status, detail and hint.

Proves ARCHITECTURE's rule 7 (say why) before anything is sent, for a table of requests.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import main
from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

NAMES = (
    "open.example",
    "held.example",
    "old.example",
    "signed.example",
    "late.example",
    "some.example",
    "seen.example",
)
POLICY = """
    via: coat
    limits: {{held_body: 1024, header_count: 30}}
    keys:
      pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}
      old: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}, not_after: 2020-01-01}}}}
    rules:
      - {{name: shut, hosts: [shut.example], plain_http: reject, https: reject}}
      - {{name: held, hosts: [held.example], request: [{{encrypt: ["$.ssn"], key: pay}}]}}
      - {{name: old, hosts: [old.example], request: [{{encrypt: ["$.ssn"], key: old}}]}}
      - {{name: signed, hosts: [signed.example], request: [{{encrypt: ["$.ssn"], key: pay, signed: pass}}]}}
      - {{name: late, hosts: [late.example], pins: {{any_of: ["sha256/{pin}"], expires: 2020-01-01}}}}
      - name: some
        hosts: [some.example]
        request: [{{encrypt: ["$.ssn"], key: pay, when: {{methods: [PUT], paths: ["/v1/**"]}}}}]
"""
JSON = "Content-Type: application/json"
GZIP = "Content-Encoding: gzip"
SSN = b'{"ssn":"078-05-1120"}'


@dataclass(frozen=True)
class World:
    """A sidecar, an upstream with every name, and where the policy is."""

    sidecar: Sidecar
    port: int
    folder: Path

    def explain(self, *arguments: str) -> dict[str, object]:
        """Return what `explain` says of one request."""
        environment = {"OVERCOAT_DATA": str(self.sidecar.data), "OVERCOAT_POLICY": str(self.sidecar.policy_file)}
        done = CliRunner().invoke(main, ["explain", "--json", *arguments], env=environment, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        (found,) = json.loads(done.stdout)["requests"]
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("explain")
    with ExitStack() as stack:
        upstream = stack.enter_context(TlsUpstream(authority, *NAMES, respond=lambda _: wire.response(200, b"{}")))
        key = Receiver("pay").write_public(folder)
        policy = POLICY.format(key=key, pin="A" * 42 + "E=")
        names = dict.fromkeys((*NAMES, "shut.example"), "127.0.0.1")
        sidecar = stack.enter_context(Sidecar(policy, folder, authority=authority, hosts=names))
        yield World(sidecar, upstream.port, folder)


@dataclass(frozen=True)
class Case:
    """A request, in the words of `explain`. PORT in its URL is that of the upstream."""

    url: str
    reason: str | None
    method: str = "POST"
    headers: tuple[str, ...] = (JSON,)
    body: bytes | None = None


CASES = {
    "it passes": Case("http://open.example:PORT/", None, body=b"anything"),
    "http rejected": Case("http://shut.example/", "plain_http_rejected"),
    "https rejected": Case("https://shut.example/", "https_rejected"),
    "an address": Case("http://10.0.0.1/", "destination_forbidden", "GET", ()),
    "an address in a CONNECT": Case("https://10.0.0.1/", "destination_forbidden", "GET", ()),
    "fields": Case("http://held.example:PORT/", None, body=SSN),
    "fields over https": Case("https://held.example:PORT/", None, body=SSN),
    "no JSON": Case("http://held.example:PORT/", "body_not_json", body=b"ssn=1"),
    "no JSON over https": Case("https://held.example:PORT/", "body_not_json", body=b"ssn=1"),
    "JSON that ends early": Case("http://held.example:PORT/", "body_not_json", body=b'{"ssn":'),
    "too large": Case("http://held.example:PORT/", "body_too_large", body=b" " * 2000),
    "too large when decoded": Case(
        "http://held.example:PORT/", "body_too_large", headers=(JSON, GZIP), body=gzip.compress(b" " * 2000)
    ),
    "gzip": Case("http://held.example:PORT/", None, headers=(JSON, GZIP), body=gzip.compress(SSN)),
    "dcb": Case(
        "http://held.example:PORT/", "encoding_unsupported", headers=(JSON, "Content-Encoding: dcb"), body=b"x"
    ),
    "a charset": Case(
        "http://held.example:PORT/",
        "encoding_unsupported",
        headers=("Content-Type: text/plain; charset=utf-16",),
        body=SSN,
    ),
    "a digest": Case(
        "http://held.example:PORT/", "signed_body", headers=(JSON, "Content-Digest: sha-256=:AA==:"), body=SSN
    ),
    "a digest, and nothing to seal": Case(
        "http://held.example:PORT/", None, headers=(JSON, "Content-Digest: sha-256=:AA==:"), body=b"{}"
    ),
    "a digest that would break, which signed: pass is not about": Case(
        "http://signed.example:PORT/", "signed_body", headers=(JSON, "Content-Digest: sha-256=:AA==:"), body=SSN
    ),
    "an old key": Case("http://old.example:PORT/", "key_unavailable", body=SSN),
    "old pins": Case("http://late.example:PORT/", "pins_expired", "GET", ()),
    "old pins over https": Case("https://late.example:PORT/", "pins_expired", "GET", ()),
    "WebSocket": Case("http://held.example:PORT/", None, "GET", ("Upgrade: websocket", "Connection: Upgrade")),
    "another method": Case("http://some.example:PORT/v1/x", None, body=b"no JSON"),
    "the same by an override": Case(
        "http://some.example:PORT/v1/x", "body_not_json", headers=(JSON, "X-HTTP-Method-Override: PUT"), body=b"no JSON"
    ),
    "another path": Case("http://some.example:PORT/v2/x", None, "PUT", body=b"no JSON"),
    "the same, spelt otherwise": Case("http://some.example:PORT/v2/../v1/%78", "body_not_json", "PUT", body=b"no JSON"),
    "another Host": Case("http://held.example:PORT/", "host_mismatch", headers=(JSON, "Host: other.example"), body=SSN),
    "another Host over https": Case("https://held.example:PORT/", "host_mismatch", headers=("Host: other.example",)),
    "two Hosts": Case("http://open.example:PORT/", "bad_request", headers=("Host: open.example", "Host: open.example")),
    "a field that is none": Case("http://open.example:PORT/", "bad_request", headers=("X-A: a\x01b",)),
    "many fields": Case("http://open.example:PORT/", "headers_too_large", "GET", tuple(f"X-{n}: 1" for n in range(31))),
    "a long field": Case("http://open.example:PORT/", "headers_too_large", "GET", ("X-Long: " + "a" * 70_000,)),
    "a loop": Case("http://open.example:PORT/", "request_loop", "GET", ("Via: 1.1 coat",)),
    "no forwards left": Case("http://open.example:PORT/", "no_forwards_left", "OPTIONS", ("Max-Forwards: 0",)),
}


def sent(world: World, case: Case) -> tuple[int, dict[str, object]]:
    """Send the request as it was explained; return the status, and the problem details."""
    scheme, _, rest = case.url.replace("PORT", str(world.port)).partition("://")
    authority, slash, path = rest.partition("/")
    body = case.body or b""
    names = {header.partition(":")[0].lower() for header in case.headers}
    default = "443" if scheme == "https" else "80"
    whole = authority if ":" in authority else f"{authority}:{default}"
    lines = [*(() if "host" in names else (f"Host: {whole}",)), *case.headers]
    if case.body is not None:
        lines.append(f"Content-Length: {len(body)}")
    with RawClient(world.sidecar.address) as client:
        target = slash + path
        if scheme == "http":
            target = f"http://{authority}{target}"
        else:
            client.send(f"CONNECT {whole} HTTP/1.1\r\nHost: {whole}\r\n\r\n".encode("ascii"))
            answer = client.read_response(method="CONNECT")
            if answer.status != 200:
                return answer.status, json.loads(answer.body)
            client.start_tls(authority.partition(":")[0], world.sidecar.ca_file)
        client.send("\r\n".join([f"{case.method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body)
        answer = client.read_response(method=case.method)
        return answer.status, json.loads(answer.body) if answer.body else {}


@pytest.mark.parametrize("name", CASES)
def test_explain_and_the_sidecar_agree(world: World, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    arguments = ["-X", case.method, *(part for header in case.headers for part in ("-H", header))]
    if case.body is not None:
        (tmp_path / "body").write_bytes(case.body)
        arguments += ["--body", str(tmp_path / "body")]
    found = world.explain(*arguments, case.url.replace("PORT", str(world.port)))
    status, said = sent(world, case)
    if case.reason is None:
        assert (found["denial"], status) == (None, 200)
        return
    assert found["denial"] == {
        "reason": case.reason,
        "status": status,
        "detail": said["detail"],
        "hint": said["hint"],
    }
    assert said["reason"] == case.reason
    assert case.reason in found["denied"]  # type: ignore[operator]  # it is a list


def test_what_ends_without_an_answer_is_told_as_that(world: World) -> None:
    found = world.explain("https://shut.example:8443/")
    authority = "shut.example:8443"
    with RawClient(world.sidecar.address) as client:
        client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
        status = client.read_response(method="CONNECT").status
    denial = found["denial"]
    assert isinstance(denial, dict)
    assert (denial["reason"], denial["status"]) == ("https_rejected", None if status == 200 else status)


def test_pins_of_the_upstream_proxy_that_have_ended_are_told_as_the_sidecar_tells_them(
    authority: Authority, tmp_path: Path
) -> None:
    with TlsUpstream(authority, "proxy.example") as proxy:
        url = f"https://proxy.example:{proxy.port}"
        pins = f'{{any_of: ["{proxy.pin}"], expires: 2020-01-01}}'
        policy = f"upstream_proxy: {{url: '{url}', direct: [direct.example], pins: {pins}}}"
        with Sidecar(policy, tmp_path, authority=authority, hosts={"proxy.example": "127.0.0.1"}) as sidecar:
            world = World(sidecar, proxy.port, tmp_path)
            case = Case("http://open.example/", "pins_expired", "GET", ())
            status, said = sent(world, case)
            found, direct = world.explain(case.url), world.explain("http://direct.example/")
    assert found["denial"] == {"status": status, **{key: said[key] for key in ("reason", "detail", "hint")}}
    assert (said["reason"], found["denied"], direct["denied"]) == ("pins_expired", ["pins_expired"], [])


def test_for_people_the_installed_command_says_the_same(world: World, tmp_path: Path) -> None:
    text = world.sidecar.run(
        "explain", "-p", "policy.yaml", "--header", "Via: 1.1 coat", f"http://open.example:{world.port}/"
    )
    assert "denied   request_loop" in text
    assert "answer   508: the request has come through this proxy before: its Via says so" in text
