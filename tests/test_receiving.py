"""docs/receiving.md: its snippets are run as they stand there, on what is right and on what must be refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from joserfc import jwe
from joserfc.jwk import ECKey

from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import seal

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "receiving.md").read_text("utf-8")
KEY = new_key(Alg.ECDH_ES_A256KW, kid="pay-2026")
HOST, PATH = "api.pay.example", "$.card.number"
CTY = f'application/json;host="{HOST}";path="{PATH}"'


def snippet(name: str) -> str:
    """Return a snippet of the page that is to be run."""
    (found,) = re.findall(rf"<!-- run: {name} -->\n\n```\w+\n(.*?)```\n", PAGE, re.DOTALL)
    return str(found)


def by_joserfc(header: dict[str, object], plaintext: bytes = b'"4111"') -> str:
    """Return a token that another library has sealed."""
    key = ECKey.import_key(to_pem(KEY, private=False))
    said = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "pay-2026", "cty": CTY, **header}
    said = {name: value for name, value in said.items() if value is not None}
    return jwe.encrypt_compact(said, plaintext, key, algorithms=[str(said["alg"]), str(said["enc"]), "DEF"])


def by_us(place: Place, kid: str = "pay-2026") -> str:
    """Return a token that the product has sealed."""
    key = KEY if kid == KEY.kid else new_key(Alg.ECDH_ES_A256KW, kid=kid)
    return seal(b'"41\\u0031 1"', KeySet("pay", Alg.ECDH_ES_A256KW, key), place)


def with_another_tag(token: str) -> str:
    """Return a token whose tag begins with another character: its last one holds two bits and padding."""
    rest, _, tag = token.rpartition(".")
    return f"{rest}.{'B' if tag.startswith('A') else 'A'}{tag[1:]}"


type Make = Callable[[], str]

PLACE, AGREED, OTHER_KEY = "sealed for another place", "not sealed as agreed", "sealed for another key"
REFUSED: dict[str, tuple[Make, str]] = {
    "another field": (lambda: by_us(Place(HOST, "$.card.cvv")), PLACE),
    "another host": (lambda: by_us(Place("other.example", PATH)), PLACE),
    "no place": (lambda: by_joserfc({"cty": None}), PLACE),
    "another key": (lambda: by_us(Place(HOST, PATH), "pay-2025"), OTHER_KEY),
    "another enc": (lambda: by_joserfc({"enc": "A128GCM"}), AGREED),
    "another alg": (lambda: by_joserfc({"alg": "ECDH-ES"}), AGREED),
    "compressed": (lambda: by_joserfc({"zip": "DEF"}), AGREED),
    "a changed tag": (lambda: with_another_tag(by_us(Place(HOST, PATH))), "ecrypt"),
    "no JSON": (lambda: by_joserfc({}, b"4111 1111"), "JSON"),
    "no token": (lambda: "4111", "Error"),
}


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of npm's with `jose`: that of `make test-clients`, or one of its own."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if (found := ROOT / ".clients" / "node_modules").joinpath("jose").is_dir():
        return found
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which would install jose (make test-clients does)")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--silent", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder), "jose"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not get jose in time")
    if done.returncode != 0:
        pytest.skip("npm does not get jose: no registry, or no way there")
    return folder / "node_modules"


# What a program does round the snippet: it reads key and body, as the others do.
GO_MAIN = """\
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"

	"example.test/receiver/fields"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	return value
}

func main() {
	block, _ := pem.Decode(must(os.ReadFile("pay-2026.pem")))
	key := must(x509.ParsePKCS8PrivateKey(block.Bytes)).(*ecdsa.PrivateKey)
	var body struct{ Card struct{ Number string } }
	must(0, json.Unmarshal(must(os.ReadFile("body.json")), &body))
	keys := map[string]*ecdsa.PrivateKey{"pay-2026": key}
	var parsed any
	must(0, json.Unmarshal(must(fields.Open(body.Card.Number, "$.card.number", "api.pay.example", keys)), &parsed))
	var shown bytes.Buffer
	must(0, json.NewEncoder(&shown).Encode(parsed))
	os.Stdout.Write(shown.Bytes())
}
"""


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The snippet for Go, built with what stands round it."""
    if (go := shutil.which("go")) is None:
        pytest.skip("go is not installed")
    folder = tmp_path_factory.mktemp("go")
    (folder / "fields").mkdir()
    (folder / "fields" / "fields.go").write_text(snippet("go"), "utf-8")
    (folder / "main.go").write_text(GO_MAIN, "utf-8")
    env = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [go, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
        )

    command("mod", "init", "example.test/receiver")
    try:
        got = command("get", "github.com/go-jose/go-jose/v4")
    except subprocess.TimeoutExpired:
        pytest.skip("go does not get go-jose in time")
    if got.returncode != 0:
        pytest.skip("go does not get go-jose: no module proxy, no way there, or this go is too old for it")
    built = command("build", "-o", "receiver", ".")
    assert built.returncode == 0, built.stderr
    return folder / "receiver"


def provide(folder: Path, token: str) -> None:
    """Write a key and a body into a folder."""
    (folder / "pay-2026.pem").write_bytes(to_pem(KEY, private=True))
    (folder / "body.json").write_text(json.dumps({"card": {"number": token}}))


def run_program(program: Path, folder: Path, token: str) -> subprocess.CompletedProcess[str]:
    """Run a built snippet in a folder with a key and a body."""
    provide(folder, token)
    return subprocess.run([str(program)], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def run(language: str, folder: Path, token: str, modules: Path | None) -> subprocess.CompletedProcess[str]:
    """Run a snippet in a folder with a key and a body."""
    provide(folder, token)
    script = folder / ("open.py" if language == "python" else "open.mjs")
    script.write_text(snippet(language), "utf-8")
    if modules is not None and not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(modules)
    command = [sys.executable if language == "python" else "node", str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("maker", ["us", "joserfc"])
def test_python_opens_what_was_sealed(tmp_path: Path, maker: str) -> None:
    token = by_us(Place(HOST, PATH)) if maker == "us" else by_joserfc({}, b'"411 1"')
    done = run("python", tmp_path, token, None)
    assert (done.returncode, done.stdout) == (0, '"411 1"\n'), done.stderr


@pytest.mark.parametrize("maker", ["us", "joserfc"])
def test_node_opens_what_was_sealed(tmp_path: Path, modules: Path, maker: str) -> None:
    token = by_us(Place(HOST, PATH)) if maker == "us" else by_joserfc({}, b'"411 1"')
    done = run("node", tmp_path, token, modules)
    assert (done.returncode, done.stdout) == (0, '"411 1"\n'), done.stderr


@pytest.mark.parametrize("maker", ["us", "joserfc"])
def test_go_opens_what_was_sealed(tmp_path: Path, go_program: Path, maker: str) -> None:
    token = by_us(Place(HOST, PATH)) if maker == "us" else by_joserfc({}, b'"411 1"')
    done = run_program(go_program, tmp_path, token)
    assert (done.returncode, done.stdout) == (0, '"411 1"\n'), done.stderr


@pytest.mark.parametrize("what", REFUSED)
def test_go_refuses_what_is_wrong(tmp_path: Path, go_program: Path, what: str) -> None:
    make, said = REFUSED[what]
    done = run_program(go_program, tmp_path, make())
    assert (done.returncode, done.stdout) == (1, "")
    assert ("cryptographic primitive" if what == "a changed tag" else said) in done.stderr


@pytest.mark.parametrize("what", REFUSED)
def test_python_refuses_what_is_wrong(tmp_path: Path, what: str) -> None:
    make, said = REFUSED[what]
    done = run("python", tmp_path, make(), None)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.parametrize("what", REFUSED)
def test_node_refuses_what_is_wrong(tmp_path: Path, modules: Path, what: str) -> None:
    make, said = REFUSED[what]
    done = run("node", tmp_path, make(), modules)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_the_page_has_all_five() -> None:
    assert re.findall(r"^```(\w+)$", PAGE, re.MULTILINE) == ["python", "js", "java", "go", "csharp"]
