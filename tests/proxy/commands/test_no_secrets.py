"""`overcoat check --no-secrets`: where the keys are not, everything but the keys is checked, and that is said; the hook
for pre-commit.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.core.who.clients import hash_password

ROOT = Path(__file__).resolve().parents[3]
POLICY = """\
version: 1
listen: [forward://192.0.2.1:8080]
admin: null
clients:
  users:
    - {name: one, password_hash: {env: ONE}}
    - {name: two, password_hash: {file: /run/secrets/two}}
upstream_proxy: {url: "http://proxy.example:3128", credentials: {file: proxy.txt}}
keys:
  pay: {alg: ECDH-ES+A256KW, primary: {kid: pay-1, file: keys/pay.pub.pem, not_after: 2999-01-01}}
  app: {alg: A256KW, primary: {key: {env: APP}}, older: [{file: /run/secrets/app.jwk}, {file: older.jwk}]}
  rsa: {alg: RSA-OAEP-256, primary: {file: rsa.pem}}
  p12: {alg: RSA-OAEP-256, primary: {kid: p, file: rsa.p12, password: {file: /run/secrets/p12}}}
  set: {alg: A256KW, set: keys/app.jwks}
rules:
  - name: pay
    hosts: [api.pay.example]
    request: [{encrypt: ["$.card"], key: pay}]
    response: [{decrypt: ["$.card"], key: app}, {decrypt: ["$.note"], key: rsa}]
"""
MISSING = [
    "clients.users[0].password_hash.env: the environment variable ONE is not set",
    "clients.users[1].password_hash.file: there is no /run/secrets/two",
    "upstream_proxy.credentials.file: there is no proxy.txt",
    "keys.pay.primary.file: there is no keys/pay.pub.pem",
    "keys.app.primary.key: the environment variable APP is not set",
    "keys.app.older[0].file: there is no /run/secrets/app.jwk",
    "keys.app.older[1].file: there is no older.jwk",
    "keys.rsa.primary.file: there is no rsa.pem",
    "keys.p12.primary.password.file: there is no /run/secrets/p12",
    "keys.p12.primary.file: there is no rsa.p12",
    "keys.set.set: there is no keys/app.jwks",
]


def check(*arguments: str, policy: str = POLICY) -> Result:
    Path("overcoat.yaml").write_text(policy)
    return CliRunner().invoke(main, ["check", *arguments], catch_exceptions=False)


def test_a_key_whose_password_is_not_here_is_not_opened() -> None:
    Path("rsa.p12").write_bytes(b"what only the password opens")
    result = check("--no-secrets")
    assert result.exit_code == 0
    assert "keys.p12.primary.password.file: there is no /run/secrets/p12" in result.stderr
    assert "rsa.p12" not in result.stderr


def test_without_it_all_that_is_missing_is_an_error() -> None:
    result = check()
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == len(MISSING)  # a password is looked for first


def test_with_it_the_policy_is_right_and_what_was_not_checked_is_said() -> None:
    result = check("--no-secrets")
    assert result.exit_code == 0
    said = [
        line.removeprefix("not checked: ") for line in result.stderr.splitlines() if line.startswith("not checked: ")
    ]
    assert sorted(said) == sorted([*MISSING, "whether serve would start here"])
    assert "hash unknown, since keys are not here" in result.stdout
    assert "a private key, and this policy only encrypts" not in result.stderr
    summary = json.loads(check("--no-secrets", "--json").stdout)
    assert (summary["ok"], summary["hash"]) == (True, None)
    assert sorted(summary["unchecked"]) == sorted(said)
    kids = {each["name"]: [key["kid"] for key in each["keys"]] for each in summary["keys"]}
    assert kids["pay"] == ["pay-1"]
    assert len(set(kids["app"])) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("key: pay}]", "key: pays}]", r"rules\[0\].request\[0\].key: there is no key set pays"),
        ("mode", "mode", ""),
        ("kid: pay-1", "kid: ''", r"kid"),
        ("file: keys/pay.pub.pem", "file: broken.pem", r"keys.pay.primary.file: the PEM block PUBLIC KEY is malformed"),
        ("{file: older.jwk}", "{file: broken.pem}", r"."),
        ("not_after: 2999-01-01", "not_after: 2020-01-01", r"pay-1 expired on 2020-01-01"),
        ("[api.pay.example]", "[]", r"hosts"),
        ("{env: ONE}", '"$scrypt$broken"', r"password_hash"),
        (
            "request: [",
            "pins: {any_of: [{file: pin.pem}]}\n    request: [",
            r"pins.any_of\[0\].file: pin.pem cannot be read",
        ),
    ],
)
def test_everything_else_is_checked(old: str, new: str, said: str) -> None:
    Path("broken.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    result = check("--no-secrets", policy=POLICY.replace(old, new))
    assert (result.exit_code == 0) is (old == new)
    assert re.search(said, result.stderr)


def test_what_is_there_is_read() -> None:
    made = CliRunner().invoke(main, ["keys", "new", "--kid", "pay-1", "--out", "pay.pem"])
    assert made.exit_code == 0
    Path("keys").mkdir()
    Path("pay.pub.pem").rename("keys/pay.pub.pem")
    Path("one").write_text(str(hash_password("x", bytes(16))))
    policy = POLICY.replace("{env: ONE}", "{file: one}")
    result = check("--no-secrets", policy=policy)
    assert result.exit_code == 0
    assert "pay.pub.pem" not in result.stderr
    assert "users[0]" not in result.stderr


def test_several_files_are_all_checked_and_the_worst_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    good = "version: 1\nadmin: null\nlisten: ['forward://127.0.0.1:0']\n"
    Path("a.yaml").write_text("version: 2\n")
    Path("b.yaml").write_text(good + "clients: {users: [{name: a, password_hash: {env: HASH}}]}\n")
    Path("c.yaml").write_text(Path("b.yaml").read_text())
    monkeypatch.setenv("HASH", str(hash_password("x", bytes(16))))
    result = CliRunner().invoke(main, ["check", "b.yaml", "c.yaml"])
    assert (result.exit_code, result.stderr) == (0, "")  # the variable is there for both
    assert "b.yaml" in result.stdout
    assert "c.yaml" in result.stdout
    result = CliRunner().invoke(main, ["check", "a.yaml", "b.yaml"])
    assert result.exit_code == 2
    assert "a.yaml:1:10: version" in result.stderr
    for wrong in (["-p", "a.yaml", "b.yaml"], ["--json", "a.yaml", "b.yaml"]):
        assert "Usage" in CliRunner().invoke(main, ["check", *wrong]).stderr


class TestHook:
    def hook(self) -> dict[str, object]:
        (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
        assert isinstance(found, dict)
        return found

    def test_it_has_the_shape_that_pre_commit_wants(self) -> None:
        found = self.hook()
        assert set(found) <= {"id", "name", "description", "entry", "language", "files", "types"}
        assert all(isinstance(found[name], str) for name in ("id", "name", "entry", "language", "files"))
        assert found["language"] == "python"  # pre-commit installs this repository, which has a pyproject.toml
        assert (ROOT / "pyproject.toml").is_file()

    @pytest.mark.parametrize(
        ("name", "is_meant"),
        [
            *(("overcoat.yaml", True), ("deploy/overcoat.yml", True), ("config/policy.yaml", False)),
            *(("overcoat.yaml.bak", False), ("notovercoat.yaml", False)),
        ],
    )
    def test_it_takes_policies(self, name: str, is_meant: bool) -> None:
        assert bool(re.search(str(self.hook()["files"]), name)) is is_meant  # as pre-commit does

    def test_its_entry_refuses_a_wrong_policy_and_passes_a_right_one(self) -> None:
        command, *arguments = shlex.split(str(self.hook()["entry"]))
        assert command == "overcoat"
        Path("overcoat.yaml").write_text(POLICY)
        assert CliRunner().invoke(main, [*arguments, "overcoat.yaml"]).exit_code == 0
        Path("overcoat.yml").write_text(POLICY.replace("version: 1", "version: 3"))
        assert CliRunner().invoke(main, [*arguments, "overcoat.yaml", "overcoat.yml"]).exit_code == 2
