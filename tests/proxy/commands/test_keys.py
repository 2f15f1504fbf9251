"""`overcoat keys`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from proxy.commands import keys as command
from proxy.core.jose.encoding import base64url, unbase64url
from proxy.core.jose.keys import Alg, load_key
from proxy.core.jose.keywriting import thumbprint

PLACE = ("--host", "api.pay.example", "--path", "$.card.number")

type Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run the command."""

    def invoke(*arguments: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(command.keys, arguments, input=stdin)

    return invoke


def _failed(result: Result, status: int = 1) -> str:
    """Check that a run failed cleanly, and return its one line of error."""
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def _misused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def test_the_choices_are_those_of_the_core() -> None:
    assert set(command.ALGORITHMS) == set(Alg)


# new


@pytest.mark.parametrize(
    ("arguments", "alg", "form"),
    [
        ([], Alg.ECDH_ES_A256KW, "pem"),
        (["--curve", "X25519", "--format", "jwk"], Alg.ECDH_ES_A256KW, "jwk"),
        (["--alg", "RSA-OAEP-256"], Alg.RSA_OAEP_256, "pem"),
    ],
)
def test_new_writes_a_private_key_and_its_public_half(
    run: Run, tmp_path: Path, arguments: list[str], alg: Alg, form: str
) -> None:
    result = run("new", *arguments, "--kid", "pay-2026", "--out", f"pay.{form}")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    private, public = tmp_path / f"pay.{form}", tmp_path / f"pay.pub.{form}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    secret = load_key(private.read_bytes(), alg=alg, kid="pay-2026")
    other = load_key(public.read_bytes(), alg=alg, kid="pay-2026")
    assert secret.can_open
    assert not other.can_open
    assert thumbprint(secret) == thumbprint(other)


def test_new_writes_a_symmetric_key_and_no_public_half(run: Run, tmp_path: Path) -> None:
    assert run("new", "--alg", "A256KW", "--out", "app.jwk").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["app.jwk"]
    assert stat.S_IMODE((tmp_path / "app.jwk").stat().st_mode) == 0o600
    assert load_key((tmp_path / "app.jwk").read_bytes(), alg=Alg.A256KW).can_open


def test_new_without_a_file_prints_the_key_alone_on_stdout(run: Run) -> None:
    result = run("new")
    key = load_key(result.stdout_bytes, alg=Alg.ECDH_ES_A256KW)
    assert key.can_open
    assert f"kid: {key.kid}\n" in result.stderr
    snippet = yaml.safe_load(result.stderr.split("\n", 1)[1].partition("note: ")[0])
    assert snippet["keys"]["NAME"]["primary"]["file"] == "PUBLIC.pem"
    assert f'#   primary: {{kid: "{key.kid}", file: "PRIVATE.pem"}}' in result.stderr
    assert "note: the key was printed, and is in no file; --out FILE writes it, and its public half" in result.stderr
    assert "PRIVATE.jwk" in run("new", "--alg", "A256KW").stderr


@pytest.mark.parametrize("alg", ["ECDH-ES+A256KW", "A256KW"])
def test_what_new_says_for_the_policy_is_yaml_that_names_the_right_file(run: Run, alg: str) -> None:
    result = run("new", "--alg", alg, "--kid", 'a "b": {c', "--out", "k.jwk", "--format", "jwk")
    snippet = yaml.safe_load(result.stderr.split("\n", 1)[1])
    file = "k.jwk" if alg == "A256KW" else "k.pub.jwk"
    assert snippet == {"keys": {"NAME": {"alg": alg, "primary": {"kid": 'a "b": {c', "file": file}}}}


def test_new_shows_nothing_secret_on_stderr(run: Run, tmp_path: Path) -> None:
    result = run("new", "--alg", "A256KW", "--out", "app.jwk")
    assert json.loads((tmp_path / "app.jwk").read_text())["k"] not in result.stderr


def test_new_never_overwrites_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pay.pem").write_text("precious")
    assert "pay.pem: exists already" in _failed(run("new", "--out", "pay.pem"))
    assert (tmp_path / "pay.pem").read_text() == "precious"
    assert not (tmp_path / "pay.pub.pem").exists()


def test_new_leaves_no_half_of_a_pair(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pay.pub.pem").write_text("precious")
    assert "pay.pub.pem: exists already" in _failed(run("new", "--out", "pay.pem"))
    assert (tmp_path / "pay.pub.pem").read_text() == "precious"
    assert not (tmp_path / "pay.pem").exists()


def test_new_into_a_folder_that_is_not_there_fails(run: Run) -> None:
    assert _failed(run("new", "--out", "no/pay.pem")) == "error: no/pay.pem: No such file or directory"


def test_new_refuses_a_kid_that_is_no_name(run: Run) -> None:
    assert "printable" in _failed(run("new", "--kid", "a\nb"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alg", "A256KW", "--format", "pem"], "no PEM form"),
        (["--alg", "RSA-OAEP-256", "--curve", "P-256"], "--curve is for ECDH-ES+A256KW only"),
        (["--alg", "RSA1_5"], "RSA1_5"),
    ],
)
def test_new_refuses_options_that_do_not_go_together(run: Run, arguments: list[str], message: str) -> None:
    assert message in _misused(run("new", *arguments))


# public


def test_public_prints_the_public_half_in_both_forms(run: Run, tmp_path: Path) -> None:
    run("new", "--out", "pay.pem")
    assert run("public", "pay.pem").stdout_bytes == (tmp_path / "pay.pub.pem").read_bytes()
    jwk = json.loads(run("public", "pay.pem", "--format", "jwk", "--kid", "pay").stdout)
    assert jwk["kid"] == "pay"
    assert "d" not in jwk


def test_public_of_a_symmetric_key_is_an_error(run: Run) -> None:
    run("new", "--alg", "A256KW", "--out", "app.jwk")
    assert "app.jwk: a symmetric key has no public half" in _failed(run("public", "app.jwk"))


def test_a_file_that_is_no_key_is_an_error_that_names_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    (tmp_path / "x").chmod(0o600)
    assert _failed(run("public", "x")).startswith("error: x: the key is neither PEM")


def test_a_secret_key_that_others_can_read_is_refused_unless_said_otherwise(run: Run, tmp_path: Path) -> None:
    run("new", "--out", "pay.pem")
    (tmp_path / "pay.pem").chmod(0o644)
    assert "pay.pem: mode 0644 lets others at a secret key: chmod 600 pay.pem" in _failed(run("public", "pay.pem"))
    assert run("public", "pay.pem", "--unsafe-key-permissions").exit_code == 0


# seal and open


@pytest.mark.parametrize("arguments", [[], ["--curve", "X25519"], ["--alg", "RSA-OAEP-256"], ["--alg", "A256KW"]])
def test_what_is_sealed_opens_to_the_same_bytes(run: Run, arguments: list[str]) -> None:
    run("new", *arguments, "--format", "jwk", "--kid", "k", "--out", "k.jwk")
    value = '{"a" : [1.50, "ä"]}'.encode()
    token = run("seal", "--key", "k.jwk", *PLACE, stdin=value + b"\n")
    assert token.exit_code == 0, token.output
    assert run("open", "--key", "k.jwk", *PLACE, stdin=token.stdout_bytes).stdout_bytes == value
    assert run("open", "--key", "k.jwk", stdin=token.stdout_bytes).stdout_bytes == value
    quoted = json.dumps(token.stdout.strip()).encode()
    assert run("open", "--key", "k.jwk", *PLACE, stdin=quoted).stdout_bytes == value


def test_a_key_set_of_a128gcm_and_an_envelope(run: Run) -> None:
    run("new", "--alg", "A256KW", "--kid", "k", "--out", "k.jwk")
    sealed = run("seal", "--key", "k.jwk", "--enc", "A128GCM", "--envelope", "encData", *PLACE, stdin=b"1")
    assert list(json.loads(sealed.stdout)) == ["encData"]
    assert run("open", "--key", "k.jwk", "--enc", "A128GCM", *PLACE, stdin=sealed.stdout_bytes).stdout == "1"
    line = _failed(run("open", "--key", "k.jwk", *PLACE, stdin=sealed.stdout_bytes))
    assert "header parameter enc: must be A256GCM" in line
    both = run("open", "--set", "x", "--enc", "A128GCM", stdin=b"")
    assert "--enc" in both.stderr
    assert both.exit_code == 2


@pytest.fixture
def sealed(run: Run) -> bytes:
    """A token for pay.pem, made with its public half."""
    run("new", "--out", "pay.pem", "--kid", "pay")
    result = run("seal", "--key", "pay.pub.pem", "--kid", "pay", *PLACE, stdin=b"1\n\n")
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def test_only_one_line_feed_is_taken_off_what_is_sealed(run: Run, sealed: bytes) -> None:
    assert run("open", "--key", "pay.pem", "--kid", "pay", stdin=sealed).stdout_bytes == b"1\n"


def test_on_a_terminal_a_value_commands_nothing_and_a_note_does_not_stand_behind_it(tmp_path: Path) -> None:
    overcoat = Path(sys.executable).with_name("overcoat")

    def keys(*arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([overcoat, "keys", *arguments], cwd=tmp_path, check=True, timeout=60, **more)

    keys("new", "--out", "pay.pem", "--kid", "pay", stdout=subprocess.DEVNULL)
    value = '"a\u009b31m\u202eb"'.encode()  # C1's CSI, and what turns the direction round
    token = keys("seal", "--key", "pay.pem", "--kid", "pay", input=value, stdout=subprocess.PIPE).stdout
    terminal, screen = os.openpty()
    try:
        keys("open", "--key", "pay.pem", "--kid", "pay", input=token, stdout=screen, stderr=screen)
        said = os.read(terminal, 4096)
    finally:
        os.close(terminal)
        os.close(screen)
    assert said.startswith(b'"a\\x9b31m\\u202eb"\r\nnote: ')
    assert keys("open", "--key", "pay.pem", "--kid", "pay", input=token, stdout=subprocess.PIPE).stdout == value


def test_a_value_opens_at_no_other_place(run: Run, sealed: bytes) -> None:
    elsewhere = ("--host", "api.pay.example", "--path", "$.card.cvv")
    line = _failed(run("open", "--key", "pay.pem", "--kid", "pay", *elsewhere, stdin=sealed))
    assert "sealed for another place" in line
    says = "sealed with key 'pay', 'ECDH-ES+A256KW', 'A256GCM'; bound to '$.card.number' at 'api.pay.example'"
    assert line.endswith(f" (the token says: {says})")
    assert run("open", "--key", "pay.pem", "--kid", "pay", stdin=sealed).stderr == f"note: {says}\n"


def test_what_a_token_says_of_itself_is_one_short_line(run: Run, sealed: bytes) -> None:
    rest = sealed[sealed.index(b".") :]
    header: object
    for header in ({"kid": "\x1b[31m\n" * 1000, "cty": "json"}, {"kid": ["x"] * 1000}):
        line = _failed(run("open", "--key", "pay.pem", stdin=base64url(json.dumps(header).encode()).encode() + rest))
        assert len(line) < 1000
        assert line.isprintable()
        assert "bound to no place" in line
    for header in ({"cty": ""}, []):
        line = _failed(run("open", "--key", "pay.pem", stdin=base64url(json.dumps(header).encode()).encode() + rest))
        assert "the token says" not in line


def test_the_host_is_made_canonical(run: Run, sealed: bytes) -> None:
    shouted = ("--host", "API.Pay.Example.", "--path", "$.card.number")
    assert run("open", "--key", "pay.pem", "--kid", "pay", *shouted, stdin=sealed).stdout_bytes == b"1\n"


def test_a_path_beyond_ascii_is_written_as_the_proxy_writes_it(run: Run) -> None:
    place = ("--key", "k.pem", "--kid", "k", "--host", "api.example", "--path")
    assert run("new", "--kid", "k", "--out", "k.pem").exit_code == 0
    token = run("seal", *place, "$['\u00fc']", stdin=b"1").stdout_bytes
    header = json.loads(unbase64url(token.decode().partition(".")[0]))
    assert header["cty"] == 'application/json;host="api.example";path="$[\'\\\\u00fc\']"'
    for path in ("$['\u00fc']", r"$['\u00fc']"):
        assert run("open", *place, path, stdin=token).stdout_bytes == b"1"


def test_a_name_that_is_missing_is_asked_for(run: Run, sealed: bytes) -> None:
    assert "; say --kid pay if" in _failed(run("open", "--key", "pay.pem", stdin=sealed))
    foreign = (
        base64url(b'{"alg":"ECDH-ES+A256KW","enc":"A256GCM","kid":"a\\n"}').encode() + sealed[sealed.index(b".") :]
    )
    assert "; say --kid NAME if" in _failed(run("open", "--key", "pay.pem", stdin=foreign))


def test_a_wrong_name_is_not_asked_for_again(run: Run, sealed: bytes) -> None:
    assert "--kid" not in _failed(run("open", "--key", "pay.pem", "--kid", "x", stdin=sealed))


def test_a_public_key_opens_nothing(run: Run, sealed: bytes) -> None:
    assert "a public one" in _failed(run("open", "--key", "pay.pub.pem", "--kid", "pay", stdin=sealed))


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "five parts"),
        (b"\xff\x00", "five parts"),
        (b'"a', "no JWE, no JSON string"),
        (b'{"a":"b","c":"d"}', "no JWE, no"),
        (b"{", "no JWE, no"),
        (b'"a.b"', "five parts"),
    ],
)
def test_what_is_no_token_is_an_error(run: Run, sealed: bytes, stdin: bytes, message: str) -> None:
    assert sealed
    assert message in _failed(run("open", "--key", "pay.pem", stdin=stdin))


@pytest.mark.parametrize("stdin", [b"", b"4111 1111", b"NaN", b"{", b'"\xff"'])
def test_only_json_values_are_sealed(run: Run, sealed: bytes, stdin: bytes) -> None:
    assert sealed
    assert "no JSON value" in _failed(run("seal", "--key", "pay.pub.pem", stdin=stdin))


def test_an_algorithm_that_the_key_is_not_for_is_an_error(run: Run, sealed: bytes) -> None:
    assert sealed
    assert "takes an RSA key" in _failed(run("seal", "--key", "pay.pub.pem", "--alg", "RSA-OAEP-256", stdin=b"1"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --key FILE, or --set NAME"),
        (["--key", "pay.pem", "--set", "pay"], "either --key FILE, or --set NAME"),
        (["--key", "pay.pem", "-p", "policy.yaml"], "--policy goes with --set"),
        (["--set", "pay", "--kid", "x"], "go with --key"),
        (["--set", "pay", "--alg", "A256KW"], "go with --key"),
        (["--set", "pay", "--unsafe-key-permissions"], "go with --key"),
        (["--key", "pay.pem", "--host", "a.example"], "--host and --path go together"),
        (["--key", "pay.pem", "--path", "$.a"], "--host and --path go together"),
        (["--key", "pay.pem", "--host", "a.example", "--path", "a"], "a place starts with $"),
        (["--key", "pay.pem", "--host", "a..example", "--path", "$.a"], "no valid host name"),
    ],
)
@pytest.mark.parametrize("name", ["seal", "open"])
def test_options_that_do_not_go_together_are_wrong_use(
    run: Run, sealed: bytes, name: str, arguments: list[str], message: str
) -> None:
    assert message in " ".join(_misused(run(name, *arguments, stdin=sealed)).split())


# with a policy

POLICY = """
version: 1
keys:
  pay:
    alg: ECDH-ES+A256KW
    primary: {kid: pay, file: pay.pem}
    older: [{kid: old, file: old.pub.pem, not_after: 2020-01-31}]
  gone:
    alg: A256KW
    primary: {kid: gone, file: gone.jwk, not_after: 2020-01-31}
"""


@pytest.fixture
def policy(run: Run, tmp_path: Path) -> Path:
    """A policy with two key sets, as ./overcoat.yaml."""
    run("new", "--out", "pay.pem")
    run("new", "--out", "old.pem")
    run("new", "--alg", "A256KW", "--kid", "gone", "--out", "gone.jwk")
    path = tmp_path / "overcoat.yaml"
    path.write_text(POLICY)
    return path


def test_list_shows_every_key_of_the_policy(run: Run, policy: Path) -> None:
    rows = json.loads(run("list", "-p", str(policy), "--json").stdout)
    for row in rows:
        assert len(row.pop("thumbprint")) == 43
        assert Path(row.pop("source")).exists()
        assert (row.pop("made"), row.pop("not_before")) == (None, None)
    assert [list(row.values()) for row in rows] == [
        ["pay", "ECDH-ES+A256KW", "pay", "primary", "private", True, None, None, False],
        ["pay", "ECDH-ES+A256KW", "old", "older", "public", False, "2020-01-31", None, True],
        ["gone", "A256KW", "gone", "primary", "symmetric", True, "2020-01-31", "2020-01-31", True],
    ]
    assert list(rows[0]) == [*("set", "alg", "kid", "role", "kind", "can_open", "not_after", "opens_until", "expired")]


def test_list_prints_a_table_for_people(run: Run, policy: Path) -> None:
    assert policy.exists()
    heading, first, second, third = run("list").stdout.splitlines()
    assert heading.split() == ["set", "alg", "kid", "role", "kind", "made", "good", "from", "thumbprint"]
    assert first.split()[:7] == ["pay", "ECDH-ES+A256KW", "pay", "primary", "private", "-", "-"]
    assert second.split()[:9] == [
        *("pay", "ECDH-ES+A256KW", "old", "older", "public", "-", "until", "2020-01-31", "(expired)")
    ]
    assert third.startswith("gone")


def test_list_says_how_a_rotation_stands_and_what_is_fetched(run: Run, tmp_path: Path) -> None:
    assert run("new", "--alg", "A256KW", "--kid", "one", "--into", "app.jwks").exit_code == 0
    assert run("rotate", "app.jwks", "--kid", "two").exit_code == 0
    (tmp_path / "overcoat.yaml").write_text(
        "version: 1\nkeys:\n  app: {alg: A256KW, set: app.jwks, grace: 10d}\n"
        '  partner: {alg: RSA-OAEP-256, jwks: "https://keys.example/jwks", kid: p}\n'
    )
    rows = json.loads(run("list", "--json").stdout)
    assert [(row["set"], row["kid"], row["role"], row["kind"]) for row in rows] == [
        ("app", "one", "primary", "symmetric"),
        ("app", "two", "next", "symmetric"),
        ("partner", "p", "fetched", "public"),
    ]
    assert rows[0]["made"] == rows[1]["made"] == datetime.now(UTC).date().isoformat()
    assert rows[2]["source"] == "https://keys.example/jwks"
    text = (tmp_path / "app.jwks").read_text().replace('"kid": "one",', '"kid": "one", "nbf": 1, "exp": 1000000000,')
    (tmp_path / "app.jwks").write_text(text)
    shown = run("list").stdout
    assert "from 1970-01-02 until 2001-09-08 (expired), opens until 2001-09-18" in shown
    assert "https://keys.example/jwks" in shown


def test_list_of_a_bad_policy_prints_each_error_and_ends_with_status_2(run: Run, policy: Path) -> None:
    policy.write_text("version: 2\nnonsense: 1\n")
    result = run("list")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: overcoat.yaml:") for line in lines)


def test_a_key_set_of_the_policy_seals_and_opens(run: Run, policy: Path) -> None:
    assert policy.exists()
    token = run("seal", "--set", "pay", *PLACE, stdin=b'"4111"')
    assert (token.exit_code, token.stderr) == (0, "")
    assert run("open", "--set", "pay", *PLACE, stdin=token.stdout_bytes).stdout_bytes == b'"4111"'


def test_sealing_for_no_place_with_a_bound_key_set_is_remarked_on(run: Run, policy: Path) -> None:
    assert "opens this nowhere" in run("seal", "--set", "pay", stdin=b"1").stderr
    policy.write_text(POLICY.replace("    older", "    bind: none\n    older"))
    assert run("seal", "--set", "pay", stdin=b"1").stderr == ""


def test_an_expired_key_seals_nothing(run: Run, policy: Path) -> None:
    assert policy.exists()
    assert "past its not_after date: give key set gone a new primary key" in _failed(
        run("seal", "--set", "gone", *PLACE, stdin=b"1")
    )


def test_an_expired_key_opens_nothing(run: Run, policy: Path) -> None:
    assert policy.exists()
    token = run("seal", "--key", "gone.jwk", *PLACE, stdin=b"1").stdout_bytes
    assert "past its not_after" in _failed(run("open", "--set", "gone", *PLACE, stdin=token))


def test_a_key_set_that_is_not_there_is_an_error_that_lists_those_that_are(run: Run, policy: Path) -> None:
    assert policy.exists()
    assert _failed(run("seal", "--set", "other", stdin=b"1")).endswith("has no key set other; it has: pay, gone")


def test_the_built_in_policy_has_no_key_sets(run: Run) -> None:
    assert _failed(run("open", "--set", "pay", stdin=b"")).endswith("(built-in) has no key set pay; it has: none")
    assert json.loads(run("list", "--json").stdout) == []


# as a process


def _process(*arguments: str, stdin: bytes = b"", folder: Path) -> subprocess.CompletedProcess[bytes]:
    code = "from proxy.commands.keys import keys; keys(prog_name='overcoat keys')"
    root = str(Path(__file__).resolve().parents[3])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=stdin,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        timeout=60,
        check=False,
    )


def test_a_key_made_sealed_with_and_opened_with_in_processes_of_their_own(tmp_path: Path) -> None:
    made = _process("new", "--out", "pay.pem", "--kid", "pay", folder=tmp_path)
    assert (made.returncode, made.stdout) == (0, b"")
    token = _process("seal", "--key", "pay.pub.pem", "--kid", "pay", stdin=b'"\\u00e4"\n', folder=tmp_path)
    assert token.stdout.count(b".") == 4
    opened = _process("open", "--key", "pay.pem", "--kid", "pay", stdin=token.stdout, folder=tmp_path)
    assert (opened.returncode, opened.stdout) == (0, b'"\\u00e4"')
    assert opened.stderr.startswith(b"note: sealed with key 'pay'")


def test_a_failure_in_a_process_of_its_own_is_one_line_without_traceback(tmp_path: Path) -> None:
    failed = _process("public", "none.pem", folder=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert failed.stderr == b"error: none.pem: No such file or directory\n"


def test_help_does_not_load_the_cryptography(tmp_path: Path) -> None:
    code = "import sys, proxy.commands.keys; sys.exit('cryptography' in sys.modules)"
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, timeout=60, check=False
    )
    assert done.returncode == 0
