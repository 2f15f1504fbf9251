"""The ordinary programs of the client matrix: how each is run, what it needs, and what a person should know of it.

Each program asks the same four URLs, which it finds in its environment, and prints a line for each: its name and the
status that came, or what went wrong. Those that cannot send JSON (git, pip …) fetch something instead.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).with_name("sources")
INSTALLED = ROOT / ".clients"  # what `make test-clients` installs: a virtual environment, and node_modules
PYTHON = INSTALLED / "venv" / "bin" / "python"
MODULES = INSTALLED / "node_modules"
CASES = ("upgraded", "inspected", "tunnelled", "refused")

Files = dict[str, tuple[str, bytes]]  # by path: the content type, and what is served


@dataclass(frozen=True, slots=True)
class Client:
    """One program.

    Attributes:
        label: what it is called.
        command: the command line; `{}` stands for the program's source, which lies in its working folder.
        source: the file in `sources/`.
        needs: programs and files that must be there.
        version: the command whose output says first which version it is.
        refused: what it prints for the status of a denial.
        files: makes what servers have for it; without, they answer 200 to everything, and it sends JSON.
        options: options of `overcoat run`.
        env: further variables.
        agent: what its requests say that they come from, where that is the only sign of it.
        is_silent: whether it cannot say what it got: it is ended once the servers and the sidecar have seen all four.
        is_heavy: whether only `make test-clients` installs what it needs.
        note: what a person should know.
    """

    label: str
    command: tuple[str, ...]
    source: str
    needs: tuple[str, ...]
    version: tuple[str, ...]
    refused: str = "502"
    files: Callable[[Path], Files] | None = None
    options: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    agent: str = ""
    is_silent: bool = False
    is_heavy: bool = False
    note: str = ""

    @property
    def sends_json(self) -> bool:
        """Whether it sends a body with a field to encrypt; the others fetch something."""
        return self.files is None and not self.is_silent

    def missing(self) -> list[str]:
        """Return what it needs and is not there."""
        return [each for each in self.needs if shutil.which(each) is None and not Path(each).exists()]

    def version_text(self) -> str:
        """Return which version it is."""
        done = subprocess.run(self.version, capture_output=True, text=True, check=False)
        found = re.search(r"[0-9]+(?:\.[0-9]+)+", done.stdout or done.stderr)
        return found[0] if found else "?"


def wheel(_: Path) -> Files:
    """Return a package index with one package."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("demo.py", "")
        archive.writestr("demo-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
        archive.writestr("demo-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("demo-1.dist-info/RECORD", "")
    name = "demo-1-py3-none-any.whl"
    page = f'<html><body><a href="{name}">{name}</a></body></html>'.encode()
    return {
        "/simple/demo/": ("text/html", page),
        f"/simple/demo/{name}": ("application/octet-stream", packed.getvalue()),
    }


def package(_: Path) -> Files:
    """Return an npm registry with one package. npm wants a whole URL for its archive, so each host says its own."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        content = json.dumps({"name": "demo", "version": "1.0.0"}).encode()
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    data = packed.getvalue()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    dist = {"tarball": "http://HOST/demo/-/demo-1.0.0.tgz", "integrity": integrity}
    about = {"name": "demo", "version": "1.0.0", "dist": dist}
    index = {"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": about}}
    return {
        "/demo": ("application/json", json.dumps(index).encode()),
        "/demo/-/demo-1.0.0.tgz": ("application/octet-stream", data),
    }


def archive(_: Path) -> Files:
    """Return an archive of Debian packages with none in it."""
    packages = b"Package: demo\nVersion: 1\nArchitecture: all\nFilename: ./demo.deb\nSize: 0\n\n"
    listed = f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
    release = f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{listed}".encode()
    files = {"/Packages": packages, "/Release": release}
    return {prefix + path: ("text/plain", content) for path, content in files.items() for prefix in ("", "/.")}


def repository(work: Path) -> Files:
    """Return a git repository, as a plain file server has it."""
    bare, tree = work / "served.git", work / "served"
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = ["-c", "user.name=demo", "-c", "user.email=demo@localhost"]
    tree.mkdir()
    (tree / "hello").write_text("hello\n")
    for command in (
        ["git", "init", "-q", "-b", "main", str(tree)],
        ["git", "-C", str(tree), "add", "hello"],
        ["git", "-C", str(tree), *who, "commit", "-q", "-m", "hello"],
        ["git", "clone", "-q", "--bare", str(tree), str(bare)],
        ["git", "-C", str(bare), "update-server-info"],
    ):
        subprocess.run(command, check=True, capture_output=True, env=env)
    return {
        f"/demo.git/{path.relative_to(bare)}": ("application/octet-stream", path.read_bytes())
        for path in bare.rglob("*")
        if path.is_file()
    }


def answer(files: Files, path: str, host: str, scheme: str) -> tuple[int, str, bytes]:
    """Return what a server with these files answers: status, content type, body."""
    found = files.get(path.partition("?")[0])
    if found is None:
        return 404, "text/plain", b"no such file"
    kind, content = found
    return 200, kind, content.replace(b"http://HOST/", f"{scheme}://{host}/".encode())


CLIENTS: Mapping[str, Client] = {
    "curl": Client("curl", ("sh", "{}"), "curl.sh", ("curl",), ("curl", "--version")),
    "wget": Client(
        "wget",
        ("sh", "{}"),
        "wget.sh",
        ("wget",),
        ("wget", "--version"),
        note="by a WGETRC; `--no-config` and a `--ca-certificate` of its own undo that",
    ),
    "git": Client("git", ("sh", "{}"), "git.sh", ("git",), ("git", "--version"), files=repository),
    "urllib": Client("Python: urllib", (sys.executable, "{}"), "urllib_client.py", (), (sys.executable, "--version")),
    "httpx": Client(
        "Python: httpx",
        (sys.executable, "{}"),
        "httpx_client.py",
        (),
        (sys.executable, "-c", "import httpx; print(httpx.__version__)"),
    ),
    "requests": Client(
        "Python: requests",
        (str(PYTHON), "{}"),
        "requests_client.py",
        (str(PYTHON),),
        (str(PYTHON), "-c", "import requests; print(requests.__version__)"),
        is_heavy=True,
    ),
    "aiohttp": Client(
        "Python: aiohttp",
        (str(PYTHON), "{}"),
        "aiohttp_client.py",
        (str(PYTHON),),
        (str(PYTHON), "-c", "import aiohttp; print(aiohttp.__version__)"),
        is_heavy=True,
        note="only with `trust_env=True` in the app",
    ),
    "node-http": Client("Node.js: http, https", ("node", "{}"), "http.mjs", ("node",), ("node", "--version")),
    "node-fetch": Client("Node.js: fetch", ("node", "{}"), "fetch.mjs", ("node",), ("node", "--version")),
    "axios": Client(
        "Node.js: axios",
        ("node", "{}"),
        "axios.mjs",
        ("node", str(MODULES / "axios")),
        ("node", "-p", f"require({json.dumps(str(MODULES / 'axios' / 'package.json'))}).version"),
        is_heavy=True,
    ),
    "got": Client(
        "Node.js: got",
        ("node", "{}"),
        "got.mjs",
        ("node", str(MODULES / "got"), str(MODULES / "hpagent")),
        ("node", "-p", f"require({json.dumps(str(MODULES / 'got' / 'package.json'))}).version"),
        is_heavy=True,
        note="also with an agent of its own (hpagent), which is left alone",
    ),
    "java-url": Client(
        "Java: HttpURLConnection", ("java", "{}"), "Url.java", ("java", "javac"), ("javac", "--version")
    ),
    "java-client": Client("Java: HttpClient", ("java", "{}"), "Client.java", ("java", "javac"), ("javac", "--version")),
    "go": Client("Go: net/http", ("./program",), "net.go", ("go",), ("go", "version")),
    "perl-tiny": Client(
        "Perl: HTTP::Tiny",
        ("perl", "{}"),
        "tiny.pl",
        ("perl", "/usr/share/perl5/IO/Socket/SSL.pm"),
        ("perl", "-MHTTP::Tiny", "-MIO::Socket::SSL", "-e", "print HTTP::Tiny->VERSION"),
    ),
    "perl-lwp": Client(
        "Perl: LWP",
        ("perl", "{}"),
        "lwp.pl",
        ("perl", "/usr/share/perl5/LWP/Protocol/https.pm"),
        ("perl", "-MLWP", "-e", "print LWP->VERSION"),
        is_heavy=True,
    ),
    "ruby": Client("Ruby: Net::HTTP", ("ruby", "{}"), "net.rb", ("ruby",), ("ruby", "--version"), is_heavy=True),
    "php-curl": Client(
        "PHP: curl", ("php", "{}"), "curl.php", ("php",), ("php", "--version"), is_heavy=True, note="by an ini file"
    ),
    "php-streams": Client(
        "PHP: streams",
        ("sh", "-c", "for each in upgraded inspected tunnelled refused; do php {} $each; done"),
        "streams.php",
        ("php",),
        ("php", "--version"),
        is_heavy=True,
        note="by a default context: a stream with a context of its own, and no `proxy` in it, goes past. NO_PROXY is "
        "not known to them; and with a proxy PHP sends each https host of a script the first one's name, and is denied",
    ),
    "pip": Client(
        "pip",
        ("sh", "{}"),
        "pip.sh",
        (),
        (sys.executable, "-m", "pip", "--version"),
        refused="failed",
        files=wheel,
        env=(("PYTHON", sys.executable),),
        note="an http index needs `--trusted-host`, whatever a proxy makes of it",
    ),
    "npm": Client("npm", ("sh", "{}"), "npm.sh", ("npm",), ("npm", "--version"), files=package),
    "flutter": Client(
        "Flutter (Dart's HttpClient)",
        ("xvfb-run", "-a", str(PYTHON), "{}"),
        "flutter_client.py",
        ("xvfb-run", str(PYTHON), str(next(PYTHON.parents[1].glob("lib/python3*/site-packages/flet_desktop"), "flet"))),
        (str(PYTHON), "-c", "import flet.version; print(flet.version.version)"),
        options=("--private-roots",),
        env=(("LIBGL_ALWAYS_SOFTWARE", "1"),),
        agent="(dart:io)",
        is_silent=True,
        is_heavy=True,
        note="with `--private-roots`: it reads the proxy's variables alone; the version is Flet's, which brings it",
    ),
    "apt": Client("apt", ("sh", "{}"), "apt.sh", ("apt-get",), ("apt-get", "--version"), files=archive),
}
