"""Ordinary clients of HTTP/2: curl, httpx, Node and Go, each against a server of either version.

Proves ARCHITECTURE's rules 1 to 5 where an app speaks HTTP/2. What a client cannot show (Python's shows no trailers) is
not asked of it; what the server received is looked at in any case.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import wire
from tests.e2e.certificates import Authority
from tests.e2e.clients import DEADLINE
from tests.e2e.connection import RecordedRequest
from tests.e2e.http2 import Http2Upstream, Message, Reply
from tests.e2e.receiver import Marked, Receiver, assert_only_marked_changed, plain
from tests.e2e.sidecar import Decision, Sidecar, clean_environment
from tests.e2e.upstream import TlsUpstream

PROGRAMS = Path(__file__).with_name("programs")
H1, H2 = "h1.example", "h2.example"
LARGE = bytes(range(256)) * 16 * 1024  # 4 MiB: more than the windows of a stream
UPLOAD = LARGE[: 3 * 1024 * 1024]
PIECES = (b'{ "a":1.0,\n"ssn" : ', Marked(b'"078-05"', "$.ssn"), b', "\xc3\xa9":[] }')
POLICY = """
    listen: ["forward://127.0.0.1:0", "reverse://127.0.0.1:0?to=https://{h1}:{h1_port}",
             "reverse://127.0.0.1:0?to=https://{h2}:{h2_port}"]
    keys: {{pay: {{alg: ECDH-ES+A256KW, primary: {{kid: pay, file: {key}}}}}}}
    rules:
      - name: h1
        hosts: [{h1}]
        https_port: {h1_port}
        pins: {{any_of: ["{h1_pin}"]}}
        request: [{{encrypt: ["$..ssn"], key: pay, when: {{paths: ["/fields/**"]}}}}]
      - name: h2
        hosts: [{h2}]
        https_port: {h2_port}
        pins: {{any_of: ["{h2_pin}"]}}
        request: [{{encrypt: ["$..ssn"], key: pay, when: {{paths: ["/fields/**"]}}}}]
"""


class Way(Enum):
    """How a client gets to the sidecar."""

    INSPECTED = "https through CONNECT"
    UPGRADED = "http through CONNECT, with prior knowledge"
    FORWARD = "http in absolute form, with prior knowledge"
    REVERSE = "http to a reverse listener, with prior knowledge"


@dataclass
class Answer:
    """What a client got; None where it cannot show that."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    version: str | None = None
    trailers: Mapping[str, str] | None = None
    interim: list[int] | None = None


@dataclass(frozen=True)
class Job:
    """A request to send."""

    url: str
    proxy: str | None
    ca_file: Path
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


def by_program(command: list[str], job: Job) -> Answer:
    """Have a program send a request."""
    asked = {
        "method": job.method,
        "url": job.url,
        "proxy": job.proxy,
        "ca": str(job.ca_file),
        "headers": job.headers,
        "body": None if job.body is None else base64.b64encode(job.body).decode(),
    }
    done = subprocess.run(
        command,
        input=json.dumps(asked).encode(),
        capture_output=True,
        env=clean_environment({}),
        timeout=DEADLINE + 5,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    got: dict[str, Any] = json.loads(done.stdout)
    shown = {name: got.get(name) for name in ("version", "trailers", "interim")}
    return Answer(got["status"], got["headers"], base64.b64decode(got["body"]), **shown)


def by_httpx(job: Job) -> Answer:
    """Send a request with httpx."""
    return by_program([sys.executable, str(PROGRAMS / "client_httpx.py")], job)


def by_node(job: Job) -> Answer:
    """Send a request with Node's http2; the test is skipped where there is no Node."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node.js is not installed")
    return by_program([program, str(PROGRAMS / "client.mjs")], job)


def by_go(job: Job) -> Answer:
    """Send a request with Go's net/http; the test is skipped where there is no Go."""
    program = shutil.which("go")
    if program is None:
        pytest.skip("Go is not installed")
    return by_program([str(_built(program))], job)


def _built(program: str, *, made: list[tempfile.TemporaryDirectory[str]] = []) -> Path:  # noqa: B006  # one for all
    """Return the client in Go, built once."""
    if not made:
        made.append(tempfile.TemporaryDirectory())
        folder = made[0].name
        environment = os.environ | {"GOCACHE": f"{folder}/cache", "GOPATH": f"{folder}/path", "CGO_ENABLED": "0"}
        command = [program, "build", "-o", f"{folder}/client", str(PROGRAMS / "client.go")]
        subprocess.run(command, check=True, env=environment, cwd=folder, timeout=100)
    return Path(made[0].name, "client")


def by_curl(job: Job) -> Answer:
    """Send a request with curl; the test is skipped where there is none that speaks HTTP/2."""
    program = shutil.which("curl")
    if program is None or b"HTTP2" not in subprocess.run([program, "-V"], capture_output=True, check=True).stdout:
        pytest.skip("there is no curl that speaks HTTP/2")
    is_tls = job.url.startswith("https:")
    with tempfile.TemporaryDirectory() as folder:
        head, body, pipe = Path(folder, "head"), Path(folder, "body"), Path(folder, "pipe")
        arguments = ["-q", "-sS", "--max-time", str(DEADLINE), "--suppress-connect-headers", "-D", str(head), "-o"]
        arguments += [str(body), "--cacert", str(job.ca_file), "--http2" if is_tls else "--http2-prior-knowledge"]
        arguments += ["-w", "%{http_version}"]
        arguments += ["-I"] if job.method == "HEAD" else ["-X", job.method]
        if job.proxy is not None:
            arguments += ["-x", job.proxy, "-p"]
        for name, value in job.headers.items():
            arguments += ["-H", f"{name}: {value}"]
        if job.body is not None:
            os.mkfifo(pipe)  # of which curl cannot know how long it is
            arguments += ["-T", str(pipe)]
            threading.Thread(target=pipe.write_bytes, args=(job.body,), daemon=True).start()
        done = subprocess.run(
            [program, *arguments, job.url],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=clean_environment({}),
            timeout=DEADLINE + 5,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        blocks = [block for block in head.read_bytes().decode("latin-1").split("\r\n\r\n") if block]
        content = body.read_bytes() if body.exists() and job.method != "HEAD" else b""
    heads = [block.split("\r\n") for block in blocks]
    started = [lines for lines in heads if lines[0].startswith("HTTP/")]
    final = started[-1]
    behind = [line for lines in heads if not lines[0].startswith("HTTP/") for line in lines if line.strip()]
    statuses = [int(lines[0].split()[1]) for lines in started]
    return Answer(
        statuses[-1], _fields(final[1:]), content, f"HTTP/{done.stdout.decode()}", _fields(behind), statuses[:-1]
    )


def _fields(lines: list[str]) -> dict[str, str]:
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


CLIENTS = [
    pytest.param(by_curl, Way.INSPECTED, id="curl-inspected"),
    pytest.param(by_curl, Way.UPGRADED, id="curl-upgraded"),
    pytest.param(by_curl, Way.REVERSE, id="curl-reverse"),
    pytest.param(by_httpx, Way.INSPECTED, id="httpx-inspected"),
    pytest.param(by_httpx, Way.REVERSE, id="httpx-reverse"),
    pytest.param(by_node, Way.INSPECTED, id="node-inspected"),
    pytest.param(by_node, Way.UPGRADED, id="node-upgraded"),
    pytest.param(by_node, Way.REVERSE, id="node-reverse"),
    pytest.param(by_go, Way.INSPECTED, id="go-inspected"),
]


def http1_answer(request: RecordedRequest) -> bytes:
    """Answer as the first part of the path says."""
    match request.target.split("/")[1]:
        case "nothing":
            return b"HTTP/1.1 204 No Content\r\nX-One: 1\r\n\r\n"
        case "trailers":
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            return head + b"2\r\nab\r\n1\r\nc\r\n0\r\nX-Sum: 3\r\n\r\n"
        case "interim":
            return b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + wire.response(200, b"late")
        case "large":
            return wire.response(200, LARGE)
        case "head":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-One: 1\r\n\r\n"
    return wire.response(200, _digest(request.body))


def http2_answer(message: Message) -> Reply:
    """Answer as the first part of the path says."""
    match (message.get(":path") or "").split("/")[1]:
        case "nothing":
            return Reply([(":status", "204"), ("x-one", "1")])
        case "trailers":
            return Reply([(":status", "200"), ("trailer", "x-sum")], b"abc", [("x-sum", "3")])
        case "interim":
            return Reply([(":status", "200")], b"late", interim=1)
        case "large":
            return Reply([(":status", "200"), ("content-length", str(len(LARGE)))], LARGE)
        case "head":
            return Reply([(":status", "200"), ("content-length", "1234"), ("x-one", "1")])
    return Reply([(":status", "200")], _digest(message.body))


def _digest(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


@dataclass(frozen=True)
class Got:
    """A request as a server received it, whatever it speaks."""

    method: str
    authority: str | None
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return the values of a field."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True)
class Setting:
    """A sidecar, and two servers behind it."""

    sidecar: Sidecar
    http1: TlsUpstream
    http2: Http2Upstream

    def ask(self, client: Callable[[Job], Answer], way: Way, host: str, path: str, **more: Any) -> Answer:
        """Have a client send a request."""
        port = self.http1.port if host == H1 else self.http2.port
        proxy = self.sidecar.proxy_url
        match way:
            case Way.INSPECTED:
                job = Job(f"https://{host}:{port}{path}", proxy, self.sidecar.ca_file, **more)
            case Way.UPGRADED | Way.FORWARD:
                job = Job(f"http://{host}:8080{path}", proxy, self.sidecar.ca_file, **more)
            case Way.REVERSE:
                listen = self.sidecar.listen[1 if host == H1 else 2]
                job = Job(f"http://{listen}{path}", None, self.sidecar.ca_file, **more)
        return client(job)

    def got(self, host: str, path: str) -> Got:
        """Return the only request for a path."""
        if host == H1:
            (request,) = [each for each in self.http1.requests if each.target == path]
            named = request.headers.get("host")
            fields = [(name.lower(), value) for name, value in request.headers.fields if name.lower() != "host"]
            return Got(request.method, named, fields, request.body)
        (message,) = [each for each in self.http2.messages if each.get(":path") == path]
        fields = [each for each in message.headers if not each[0].startswith(":")]
        assert [name for name, _ in message.headers[:4]] == [":method", ":scheme", ":authority", ":path"]
        assert message.get(":scheme") == "https"
        return Got(message.get(":method") or "", message.get(":authority"), fields, message.body)

    def line(self, path: str) -> Decision:
        """Return the decision line of a path."""
        return self.sidecar.wait_for_decision(lambda each: each["path"] == path)


@pytest.fixture(scope="module")
def setting(authority: Authority, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One sidecar and two servers for all tests here."""
    folder = tmp_path_factory.mktemp("clients")
    with (
        TlsUpstream(authority, H1, respond=http1_answer) as http1,
        Http2Upstream(authority, H2, answer=http2_answer) as http2,
    ):
        policy = POLICY.format(
            h1=H1, h2=H2, h1_port=http1.port, h2_port=http2.port, h1_pin=http1.pin, h2_pin=http2.pin,
            key=receiver.write_public(folder),
        )  # fmt: skip
        hosts = dict.fromkeys((H1, H2), "127.0.0.1")
        with Sidecar(policy, folder, authority=authority, hosts=hosts) as sidecar:
            yield Setting(sidecar, http1, http2)
            assert '"level": "error"' not in sidecar.stderr


@pytest.fixture(params=[H1, H2], ids=["to-http1", "to-http2"])
def host(request: pytest.FixtureRequest) -> str:
    """Each of the servers."""
    found: str = request.param
    return found


@pytest.mark.parametrize(("client", "way"), CLIENTS)
class TestClient:
    def path(self, request: pytest.FixtureRequest, kind: str) -> str:
        """Return a path that no other test asks for."""
        return f"/{kind}/{request.node.callspec.id}"

    def test_get(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        path = self.path(request, "get")
        answer = setting.ask(client, way, host, path, headers={"x-one": "1"})
        assert (answer.status, answer.body) == (200, _digest(b""))
        assert answer.version in ("HTTP/2", "HTTP/2.0", None)
        got = setting.got(host, path)
        port = setting.http1.port if host == H1 else setting.http2.port
        assert (got.method, got.authority, got.all("x-one")) == ("GET", f"{host}:{port}", ["1"])
        assert got.all("content-length") == got.all("transfer-encoding") == []
        line = setting.line(path)
        action = "upgrade" if way is Way.UPGRADED else "inspect"
        assert (line["action"], line["tls"], line["pin"]) == (action, "TLSv1.3", "match")

    def test_a_field_is_encrypted(
        self,
        setting: Setting,
        client: Callable[[Job], Answer],
        way: Way,
        host: str,
        request: pytest.FixtureRequest,
        receiver: Receiver,
    ) -> None:
        path = self.path(request, "fields")
        json_type = {"content-type": "application/json"}
        answer = setting.ask(client, way, host, path, method="POST", headers=json_type, body=plain(PIECES))
        assert answer.status == 200
        got = setting.got(host, path)
        assert_only_marked_changed(got.body, PIECES, receiver, host)
        assert got.all("content-length") == [str(len(got.body))]
        assert got.all("transfer-encoding") == []
        assert setting.line(path)["encrypted"] == 1

    def test_an_upload_of_unknown_length(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        path = self.path(request, "upload")
        answer = setting.ask(client, way, host, path, method="POST", body=UPLOAD)
        assert (answer.status, answer.body) == (200, _digest(UPLOAD))
        got = setting.got(host, path)
        assert got.all("content-length") == []
        assert got.all("transfer-encoding") == (["chunked"] if host == H1 else [])
        assert got.all("expect") == []

    def test_head(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        path = self.path(request, "head")
        answer = setting.ask(client, way, host, path, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert (answer.headers["content-length"], answer.headers["x-one"]) == ("1234", "1")
        assert setting.got(host, path).method == "HEAD"

    def test_no_content(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        answer = setting.ask(client, way, host, self.path(request, "nothing"))
        assert (answer.status, answer.body, answer.headers["x-one"]) == (204, b"", "1")

    def test_trailers(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        answer = setting.ask(client, way, host, self.path(request, "trailers"), headers={"te": "trailers"})
        assert (answer.status, answer.body) == (200, b"abc")
        assert answer.trailers in (None, {"x-sum": "3"})

    def test_an_interim_response(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        answer = setting.ask(client, way, host, self.path(request, "interim"))
        assert (answer.status, answer.body) == (200, b"late")
        assert answer.interim in (None, [103])

    def test_a_large_download(
        self, setting: Setting, client: Callable[[Job], Answer], way: Way, host: str, request: pytest.FixtureRequest
    ) -> None:
        answer = setting.ask(client, way, host, self.path(request, "large"))
        assert answer.status == 200
        assert answer.body == LARGE
        assert answer.headers["content-length"] == str(len(LARGE))
