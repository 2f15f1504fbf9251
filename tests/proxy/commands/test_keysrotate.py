"""`overcoat keys rotate`: each step, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from proxy.cli import main
from proxy.core.jose.jwksets import keys_of_set
from proxy.core.jose.keys import Alg
from proxy.policyfile.load import load_policy

SECRETS = {"d", "p", "q", "dp", "dq", "qi", "k"}


def keys(*arguments: str) -> Result:
    """Run `overcoat keys`."""
    return CliRunner().invoke(main, ["keys", *arguments], catch_exceptions=False)


def done(*arguments: str) -> str:
    """Run it, and return what it says."""
    result = keys(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def failed(*arguments: str) -> str:
    """Run it in vain, and return the error, which is one line."""
    result = keys(*arguments)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    return result.stderr


def kids(path: str) -> list[str]:
    return [each["kid"] for each in json.loads(Path(path).read_text())["keys"]]


@pytest.mark.parametrize("alg", Alg)
def test_a_rotation_goes_round_and_the_policy_is_right_at_each_step(alg: Alg, tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(f"version: 1\nkeys: {{app: {{alg: {alg}, set: app.jwks}}}}\n")

    def in_policy() -> list[str]:
        return [key.kid for key in load_policy(policy, {}).keys["app"].keys]

    os.chdir(tmp_path)
    assert keys("new", "--alg", alg.value, "--kid", "one", "--into", "app.jwks").exit_code == 0
    assert stat.S_IMODE(Path("app.jwks").stat().st_mode) == 0o600
    assert in_policy() == ["one"]
    said = done("rotate", "app.jwks", "--kid", "two")
    assert "key two was added. It opens; key one goes on sealing" in said
    assert "next: promote two. Safe once everybody who opens has this set" in said
    assert in_policy() == ["one", "two"]
    said = done("rotate", "app.jwks")
    assert "key two seals now; key one still opens" in said
    assert "next: retire one. Safe once everybody who seals" in said
    assert in_policy() == ["two", "one"]
    said = done("rotate", "app.jwks")
    assert "key one was taken out" in said
    assert "next: add" in said
    assert in_policy() == ["two"]
    assert stat.S_IMODE(Path("app.jwks").stat().st_mode) == 0o600


def test_the_new_key_is_of_the_same_kind() -> None:
    done("new", "--curve", "X25519", "--into", "app.jwks")
    done("rotate", "app.jwks")
    first, second = json.loads(Path("app.jwks").read_text())["keys"]
    assert (first["crv"], second["crv"]) == ("X25519", "X25519")
    assert second["kid"] != first["kid"]


def test_the_public_set_follows_and_has_nothing_secret() -> None:
    done("new", "--kid", "one", "--into", "app.jwks")
    for expected in (["one", "two"], ["two", "one"], ["two"]):
        more = ["--kid", "two"] if expected[0] == "one" else []
        assert "app.pub.jwks: the public halves" in done("rotate", "app.jwks", "--public", "app.pub.jwks", *more)
        assert kids("app.pub.jwks") == kids("app.jwks") == expected
        for each in json.loads(Path("app.pub.jwks").read_text())["keys"]:
            assert not SECRETS & each.keys()
            assert "iat" in each
        assert stat.S_IMODE(Path("app.pub.jwks").stat().st_mode) == 0o644
    assert done("public", "app.jwks") == Path("app.pub.jwks").read_text()


@pytest.mark.parametrize(("step", "first"), [("add", "app.jwks"), ("promote", "app.jwks"), ("retire", "app.pub.jwks")])
def test_who_opens_is_first_to_get_a_key_and_last_to_lose_one(
    step: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("new", "--into", "app.jwks")
    for _ in range(("add", "promote", "retire").index(step)):
        done("rotate", "app.jwks", "--public", "app.pub.jwks")
    written: list[str] = []
    monkeypatch.setattr("proxy.disk.keyfiles.replace_file", lambda path, _, **__: written.append(path.name))
    done("rotate", "app.jwks", "--public", "app.pub.jwks")
    assert written[0] == first
    assert len(written) == 2


def test_members_that_nobody_knows_mode_and_link_stay() -> None:
    done("new", "--kid", "one", "--into", "real.jwks")
    members = json.loads(Path("real.jwks").read_text())
    members["note"] = "é"
    members["keys"][0]["x-note"] = [1, 2]
    Path("real.jwks").write_text(json.dumps(members))
    Path("real.jwks").chmod(0o400)
    Path("link.jwks").symlink_to("real.jwks")
    done("rotate", "link.jwks")
    after = json.loads(Path("real.jwks").read_text())
    assert (after["note"], after["keys"][0]) == ("é", members["keys"][0])
    assert Path("link.jwks").is_symlink()
    assert stat.S_IMODE(Path("real.jwks").stat().st_mode) == 0o400
    assert sorted(path.name for path in Path().glob("*.jwks*")) == ["link.jwks", "real.jwks"]


def test_steps_can_be_chosen() -> None:
    done("new", "--kid", "one", "--into", "app.jwks")
    done("rotate", "app.jwks", "--step", "add", "--kid", "two")
    done("rotate", "app.jwks", "--step", "add", "--kid", "three")
    done("rotate", "app.jwks", "--step", "promote")
    assert kids("app.jwks") == ["two", "one", "three"]
    done("rotate", "app.jwks", "--step", "retire")
    assert kids("app.jwks") == ["two", "three"]
    assert "nothing to take out" in failed("rotate", "app.jwks", "--step", "retire")
    done("new", "--kid", "four", "--into", "app.jwks")
    assert kids("app.jwks") == ["two", "three", "four"]


def _write(path: str, content: Any, mode: int = 0o600) -> None:
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))
    Path(path).chmod(mode)


def test_what_is_wrong_changes_nothing() -> None:
    done("new", "--kid", "one", "--into", "app.jwks")
    before = Path("app.jwks").read_bytes()
    assert "no such file" in failed("rotate", "no.jwks").lower()
    assert "has the kid of an earlier one" in failed("rotate", "app.jwks", "--kid", "one")
    _write("secret.pem", "-----BEGIN PRIVATE KEY-----\n")
    assert "is not written over" in failed("rotate", "app.jwks", "--public", "secret.pem")
    assert "is not written over" in failed("rotate", "app.jwks", "--public", "app.jwks")
    assert "add one first" in failed("rotate", "app.jwks", "--step", "promote")
    assert "the JWK's alg is another one" in failed("new", "--alg", "A256KW", "--into", "app.jwks")
    Path("app.jwks").chmod(0o644)
    assert "lets others at a secret key" in failed("rotate", "app.jwks")
    Path("app.jwks").chmod(0o600)
    assert Path("app.jwks").read_bytes() == before
    _write("one.jwk", json.loads(before)["keys"][0])
    assert "this is no JWK Set; overcoat keys new --into FILE makes one" in failed("rotate", "one.jwk")
    done("rotate", "app.jwks", "--public", "pub.jwks")
    assert "rotate it where the private ones are" in failed("rotate", "pub.jwks")
    assert keys("rotate", "app.jwks", "--kid", "x").exit_code == 2  # the next step is no add
    assert keys("new", "--into", "app.jwks", "--out", "x").exit_code == 2


def test_a_symmetric_set_has_no_public_halves() -> None:
    done("new", "--alg", "A256KW", "--into", "app.jwks")
    before = Path("app.jwks").read_bytes()
    assert "no public half" in failed("rotate", "app.jwks", "--public", "pub.jwks")
    assert "no public half" in failed("public", "app.jwks")
    assert Path("app.jwks").read_bytes() == before
    assert not Path("pub.jwks").exists()


def test_nothing_that_is_printed_has_a_key_in_it() -> None:
    said = done("new", "--into", "app.jwks")
    for _ in range(3):
        said += done("rotate", "app.jwks")
    for key in keys_of_set(Path("app.jwks").read_bytes(), alg=Alg.ECDH_ES_A256KW):
        assert json.loads(Path("app.jwks").read_text())["keys"][0]["d"] not in said
        assert key.is_secret


def test_a_set_that_would_grow_too_large_is_left_as_it_is() -> None:
    done("new", "--alg", "RSA-OAEP-256", "--into", "app.jwks")
    members = json.loads(Path("app.jwks").read_text())
    members["note"] = "x" * (64 * 1024 - len(Path("app.jwks").read_bytes()) - 100)
    _write("app.jwks", members)
    assert "more than 64 KiB" in failed("rotate", "app.jwks")


def test_a_key_with_a_password_is_read_with_it() -> None:
    done("new", "--kid", "one", "--out", "one.pem")
    key = load_pem_private_key(Path("one.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    Path("one.p12").write_bytes(
        serialize_key_and_certificates(b"x", key, None, None, BestAvailableEncryption(b"hunter2"))
    )
    Path("one.p12").chmod(0o600)
    Path("password").write_text("hunter2\n")
    assert done("public", "one.p12", "--password-file", "password") == Path("one.pub.pem").read_text()
    assert "it needs one" in failed("public", "one.p12")
    Path("password").write_text("hunter3\n")
    assert "the password is wrong" in failed("public", "one.p12", "--password-file", "password")
