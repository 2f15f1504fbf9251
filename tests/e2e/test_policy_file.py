"""The policy file as its author meets it: everything that is wrong in one run, at its place, and nothing started.

Proves the strictness that docs/policy.md promises, on the installed command, for `check` and `serve` alike, and what
overrides the file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml

from proxy.core.jose.keys import Alg
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.listeners import closed_port
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar, clean_environment, overcoat_command, run_command
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

CONFIG = Path(__file__).resolve().parents[2] / "config"
PIN = "sha256/" + "A" * 42 + "E="


def run(*arguments: str, folder: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; it must end by itself."""
    environment = clean_environment({"OVERCOAT_DATA": str(folder / "data"), **(env or {})})
    return run_command([*overcoat_command(), *arguments], folder, environment)


def refusals(
    folder: Path,
    policy: str,
    *arguments: str,
    commands: tuple[str, ...] = ("check",),
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Return what a command says against a policy, one error a line; several must say the same. Nothing is started."""
    (folder / "policy.yaml").write_text(policy)
    said = []
    for command in commands:
        done = run(command, "-p", "policy.yaml", *arguments, folder=folder, env=env)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stdout == ""
        *errors, summary = done.stderr.splitlines()
        assert re.fullmatch(rf"error: the policy has {len(errors)} errors?[,;] .*", summary)
        said.append(errors)
    assert all(errors == said[0] for errors in said)
    assert not (folder / "data").exists()
    return said[0]


BAD = """\
version: 1
listen: ["ftp://127.0.0.1:9001"]
mode: enforced
defaults: {plain_http: upgrade, http: reject}
keys:
  pay: {alg: RSA1_5, primary: {file: nowhere.pem}}
  app: {alg: A256KW, primary: {file: nowhere.jwk}}
rules:
  - name: pay
    hosts: [api.pay.example, "http://x"]
    pins:
      any_of: [sha256/AAAA, "%s"]
      expires: 2027-02-30
    request:
      - encrypt: ["$.card[?@.x]"]
        key: app
  - name: pay
    hosts: [other.example]
    plain_http: yes
  - name: more
    hosts: [other.example]
    request:
      - encrypt: ["$.card"]
        key: ap
"""


class TestBadPolicies:
    def test_all_errors_are_told_at_once_each_with_its_place(self, tmp_path: Path) -> None:
        errors = refusals(tmp_path, BAD % PIN, commands=("check", "serve"))
        places = [re.match(r"policy\.yaml:(\d+):(\d+): ([^:]+): ", error) for error in errors]
        assert all(places), errors
        found = {(int(place[1]), place[3]) for place in places if place}
        assert found == {
            (2, "listen[0]"),
            (3, "mode"),
            (4, "defaults.http"),
            (6, "keys.pay.alg"),
            (7, "keys.app.primary.file"),
            (10, "rules[0].hosts[1]"),
            (12, "rules[0].pins.any_of[0]"),
            (13, "rules[0].pins.expires"),
            (15, "rules[0].request[0].encrypt[0]"),
            (17, "rules[1].name"),
            (19, "rules[1].plain_http"),
            (21, "rules[2].hosts"),
            (24, "rules[2].request[0].key"),
        }
        lines = (BAD % PIN).splitlines()
        for place in places:
            assert place is not None
            assert 1 <= int(place[2]) <= len(lines[int(place[1]) - 1])

    @pytest.mark.parametrize(
        ("policy", "line", "told"),
        [
            ("version: 1\nrule: 1\n", 2, "unknown key 'rule'.*did you mean rules"),
            ("mode: observe\n", 1, "version: this key is missing"),
            ("version: 1\nrules: [\n", 3, "not valid YAML"),
            ("version: 1\ntrust: {min_tls: 1.2}\n", 2, "quotes"),
            (
                "version: 1\nrules:\n- {name: a, hosts: [a.example], https: tunnel, pins: {any_of: [PIN]}}\n",
                3,
                "tunnel",
            ),
        ],
    )
    def test_a_single_error_is_told_with_what_would_be_right(
        self, tmp_path: Path, policy: str, line: int, told: str
    ) -> None:
        (error,) = refusals(tmp_path, policy.replace("PIN", PIN))
        assert re.match(rf"policy\.yaml:{line}:\d+: ", error), error
        assert re.search(told, error), error

    def test_a_policy_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        for command, option, variable in (("check", (), "nowhere.yaml"), ("serve", ("-p", "nowhere.yaml"), "")):
            done = run(command, *option, folder=tmp_path, env={"OVERCOAT_POLICY": variable})
            assert done.returncode == 2
            assert "nowhere.yaml: the policy cannot be read" in done.stderr

    @pytest.mark.parametrize("command", [("serve",), ("explain", "http://api.example")], ids=" ".join)
    def test_a_policy_that_is_named_without_its_option_is_told_of_it(
        self, tmp_path: Path, command: tuple[str, ...]
    ) -> None:
        (tmp_path / "overcoat.yaml").write_text("version: 1\n")
        done = run(*command, "overcoat.yaml", folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "(overcoat.yaml); a policy file is named with -p" in done.stderr
        assert "-p" not in run(*command, "other", folder=tmp_path).stderr

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("chekc",), "No such command 'chekc'; did you mean check?\n"),
            (("pins", "fetsh"), "No such command 'fetsh'; did you mean fetch?\n"),
            (("a.yaml",), "No such command 'a.yaml'; a policy file is named with -p: overcoat serve -p a.yaml\n"),
            (("xyzzy",), "No such command 'xyzzy'\n"),
        ],
    )
    def test_a_command_that_there_is_not_is_told_what_was_meant(
        self, tmp_path: Path, arguments: tuple[str, ...], said: str
    ) -> None:
        done = run(*arguments, folder=tmp_path)
        assert (done.returncode, done.stderr.endswith(said)) == (2, True), done.stderr

    # Whoever reads a policy: each would otherwise go on with the built-in default, which protects less.
    @pytest.mark.parametrize(
        "command",
        [
            *(("serve",), ("check",), ("explain", "http://api.example"), ("keys", "list")),
            *(("pins", "fetch", "127.0.0.1:1"), ("keys", "seal", "--set", "a", "--host", "a", "--path", "$.a")),
        ],
        ids=" ".join,
    )
    @pytest.mark.parametrize("name", ["overcoat.yml", "Overcoat.yaml", "policy.yaml", "overcoat.yaml.txt"])
    def test_a_file_of_nearly_the_name_is_not_passed_over(
        self, tmp_path: Path, command: tuple[str, ...], name: str
    ) -> None:
        (tmp_path / name).write_text("version: 1\n")
        done = run(*command, folder=tmp_path, env={"OVERCOAT_LISTEN": "forward://0.0.0.0:0"})
        assert (done.returncode, done.stdout) == (2, "")
        assert f"overcoat.yaml: there is no such file, but {name}: rename it" in done.stderr
        assert "clients" not in done.stderr

    @pytest.mark.parametrize("command", [("serve",), ("check",), ("explain", "http://api.example"), ("keys", "list")])
    def test_what_lies_in_place_of_the_file_is_told(self, tmp_path: Path, command: tuple[str, ...]) -> None:
        """The image names /etc/overcoat/overcoat.yaml; what is mounted there may be a folder, empty, or without it."""
        (tmp_path / "etc").mkdir()
        there = tmp_path / "etc" / "overcoat.yaml"
        image = {"OVERCOAT_POLICY": str(there), "OVERCOAT_LISTEN": "forward://0.0.0.0:0"}

        def told() -> str:
            done = run(*command, folder=tmp_path, env=image)
            assert (done.returncode, done.stdout) == (2, "")
            assert "clients" not in done.stderr
            return done.stderr

        start = f"{there}: the policy cannot be read: No such file or directory; "
        assert f"{start}in {there.parent} there is nothing at all" in told()
        (there.parent / "overcoat.yml").touch()
        assert f"{start}but there is overcoat.yml: rename it" in told()
        there.mkdir()
        assert "directories are not taken; it is a folder: Docker makes one where" in told()

    def test_without_any_file_that_is_said_where_something_is_wrong(self, tmp_path: Path) -> None:
        done = run("serve", folder=tmp_path, env={"OVERCOAT_LISTEN": "forward://0.0.0.0:0"})
        assert done.returncode == 2
        assert "say who may use it" in done.stderr
        assert "no policy file was named, and ./overcoat.yaml does not exist" in done.stderr


ATTENTION = """\
listen: [forward://127.0.0.1:0]
admin: 127.0.0.1:0
workers: WORKERS
keys:
  pay: {alg: ECDH-ES+A256KW, primary: {kid: pay, file: PRIVATE, not_after: 2020-01-01}}
rules:
  - {name: unreachable, hosts: ["192.168.7.7:81"]}
  - name: pay
    hosts: [api.pay.example]
    pins: {any_of: ["PIN"], expires: 2020-01-02}
    request: [{encrypt: ["$.card"], key: pay, match: exact}]
"""


class TestWhatNeedsAttention:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_serve_and_each_reload_say_all_that_check_says(
        self, authority: Authority, tmp_path: Path, workers: int
    ) -> None:
        text = ATTENTION.replace("WORKERS", str(workers)).replace("PIN", PIN)
        text = text.replace("PRIVATE", Receiver("pay").write_private(tmp_path))
        with Sidecar(text, tmp_path, authority=authority) as sidecar:
            env = {"OVERCOAT_DATA": str(sidecar.data)}
            checked = run("check", "-p", "policy.yaml", folder=tmp_path, env=env)
            assert checked.returncode == 1  # something has ended
            expected = [tuple(line.split(": ", 1)) for line in checked.stderr.splitlines()]
            assert [level for level, _ in expected] == ["warning", "error", "warning", "error", "warning"]

            def logged(since: str) -> list[tuple[str, ...]]:
                lines = [json.loads(line) for line in sidecar.stderr.partition(since)[2].splitlines()[1:]]
                return [(line["level"], line["message"]) for line in lines if line["level"] != "info"]

            assert logged("policy ") == expected
            sidecar.signal(signal.SIGHUP)
            wait_until(lambda: len(logged("the policy was read again")) >= len(expected))
            assert logged("the policy was read again") == expected


class TestKeyFiles:
    def policy(self, *names: str, unsafe: bool = False) -> str:
        """Return a policy with a key set for each file."""
        lines = ["version: 1", "keys:"]
        for name in names:
            extra = ", unsafe_key_permissions: true" if unsafe else ""
            lines.append(f"  {name}: {{alg: A256KW, primary: {{file: {name}.jwk}}{extra}}}")
        return "\n".join([*lines, ""])

    def write(self, folder: Path, name: str) -> Path:
        """Write a private key that only its owner may read."""
        key = folder / Receiver(name, Alg.A256KW).write_private(folder)
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        return key

    def test_a_private_key_that_others_may_read_is_refused_by_the_name_of_what_would_allow_it(
        self, tmp_path: Path
    ) -> None:
        modes = {"a": 0o640, "b": 0o604, "c": 0o602, "d": 0o666, "good": 0o600}
        for name, mode in modes.items():
            self.write(tmp_path, name).chmod(mode)
        errors = refusals(tmp_path, self.policy(*modes), commands=("check", "serve"))
        assert [error.split(": ")[1] for error in errors] == [f"keys.{name}.primary.file" for name in "abcd"]
        for error in errors:
            assert "unsafe_key_permissions: true" in error
            assert "chmod 600" in error
        (tmp_path / "policy.yaml").write_text(self.policy(*modes, unsafe=True))
        assert run("check", "-p", "policy.yaml", folder=tmp_path).returncode == 0

    def test_what_is_no_readable_key_is_refused_and_never_waited_for(self, tmp_path: Path) -> None:
        (tmp_path / "folder.jwk").mkdir()
        os.mkfifo(tmp_path / "pipe.jwk", 0o600)
        (tmp_path / "empty.jwk").touch(0o600)
        (tmp_path / "public.jwk").write_bytes((tmp_path / Receiver("other").write_public(tmp_path)).read_bytes())
        self.write(tmp_path, "locked").chmod(0)
        names = ["missing", "folder", "pipe", "empty", "public"]
        if os.geteuid() != 0:  # root reads every file
            names.append("locked")
        self.write(tmp_path, "good")
        errors = refusals(tmp_path, self.policy(*names, "good"))
        assert [error.split(": ")[1] for error in errors] == [f"keys.{name}.primary.file" for name in names]


class TestOverrides:
    def test_variables_override_the_file_and_flags_override_both(self, authority: Authority, tmp_path: Path) -> None:
        by_file = closed_port()
        by_variable, by_flag = closed_port(), closed_port()
        policy = f"listen: [forward://127.0.0.1:{by_file}]\nadmin: 127.0.0.1:0\nmode: enforce\nrules:\n"
        policy += "  - {name: a, hosts: [a.example]}\n"
        variables = {"OVERCOAT_LISTEN": f"forward://127.0.0.1:{by_variable}", "OVERCOAT_MODE": "observe"}
        with Sidecar(policy, tmp_path, authority=authority, env=variables) as sidecar:
            assert sidecar.listen == (f"127.0.0.1:{by_variable}",)
            assert sidecar.metrics().value("overcoat_info", mode="observe") == 1
        flags = ["--listen", f"forward://127.0.0.1:{by_flag},forward://127.0.0.1:0", "--mode", "enforce"]
        with Sidecar(policy, tmp_path, authority=authority, env=variables, arguments=flags) as sidecar:
            assert sidecar.listen[0] == f"127.0.0.1:{by_flag}"
            assert len(sidecar.listen) == 2
            assert sidecar.metrics().value("overcoat_info", mode="enforce") == 1

    def test_wrong_variables_are_all_refused_by_their_names(self, tmp_path: Path) -> None:
        wrong = {"OVERCOAT_LISTEN": "8080", "OVERCOAT_ADMIN": "http://127.0.0.1:1", "OVERCOAT_MODE": ""}
        errors = refusals(tmp_path, "version: 1\n", env=wrong, commands=("check", "serve"))
        assert [error.split(": ")[0] for error in errors] == list(wrong)

    def test_wrong_flags_are_all_refused_by_their_names(self, tmp_path: Path) -> None:
        errors = refusals(tmp_path, "version: 1\n", "--listen", "x", "--admin", "y", commands=("serve",))
        assert [error.split(": ")[0] for error in errors] == ["--listen", "--admin"]

    def test_the_admin_listener_can_be_switched_off(self, tmp_path: Path) -> None:
        (tmp_path / "policy.yaml").write_text("version: 1\n")
        done = run("check", "-p", "policy.yaml", "--json", folder=tmp_path, env={"OVERCOAT_ADMIN": "off"})
        assert json.loads(done.stdout)["admin"] is None


class TestSchema:
    def test_the_schema_that_is_printed_is_the_one_in_the_repository(self, tmp_path: Path) -> None:
        printed = run("schema", folder=tmp_path)
        assert printed.returncode == 0
        assert printed.stdout == (CONFIG / "policy.schema.json").read_text()
        jsonschema.Draft202012Validator.check_schema(json.loads(printed.stdout))

    @pytest.mark.parametrize(
        "path", [pytest.param(p, id=str(p.relative_to(CONFIG))) for p in sorted(CONFIG.glob("**/*.yaml"))]
    )
    def test_every_policy_of_the_repository_is_valid_by_it(self, path: Path) -> None:
        schema = json.loads((CONFIG / "policy.schema.json").read_text())
        policy = json.loads(json.dumps(yaml.safe_load(path.read_text()), default=str))  # days are text in JSON
        assert "version" in policy
        jsonschema.validate(policy, schema, cls=jsonschema.Draft202012Validator)

    @pytest.mark.parametrize("change", [{"rule": []}, {"mode": "watch"}, {"rules": []}, {"version": "1"}])
    def test_what_is_refused_is_refused_by_it_too(self, change: dict[str, object]) -> None:
        schema = json.loads((CONFIG / "policy.schema.json").read_text())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"version": 1, **change}, schema, cls=jsonschema.Draft202012Validator)


class TestDefault:
    def test_the_default_policy_of_the_repository_is_the_built_in_one(self, tmp_path: Path) -> None:
        built_in = json.loads(run("check", "--json", folder=tmp_path).stdout)
        written = json.loads(run("check", "--json", "-p", str(CONFIG / "default.yaml"), folder=tmp_path).stdout)
        assert built_in.pop("source") == "built-in"
        assert [text.partition(":")[0] for text in built_in.pop("warnings")] == [
            "no policy file was named or found (./overcoat.yaml)"
        ]
        assert (written.pop("source"), written.pop("warnings")) == (str(CONFIG / "default.yaml"), [])
        assert built_in.pop("hash") != written.pop("hash")  # one has a text, the other has none
        assert built_in == written

    def test_without_any_policy_it_serves_public_addresses_only(self, authority: Authority, tmp_path: Path) -> None:
        roots = authority.write_pem(tmp_path / "system-roots.pem")  # stands for the system's store
        variables = {
            "OVERCOAT_DATA": str(tmp_path / "data"),
            "OVERCOAT_LISTEN": "forward://127.0.0.1:0",
            "OVERCOAT_ADMIN": "127.0.0.1:0",
            "SSL_CERT_FILE": str(roots),
        }
        process = subprocess.Popen(
            [*overcoat_command(), "serve"],
            cwd=tmp_path,
            env=clean_environment(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            assert "policy built-in: rules 0, mode enforce" in process.stderr.readline()
            assert '"level": "warning", "message": "no policy file was named or found' in process.stderr.readline()
            host, _, port = json.loads(process.stderr.readline())["listen"][0].rpartition(":")
            with TlsUpstream(authority, "127.0.0.1") as upstream, RawClient((host, int(port))) as client:
                name = f"127.0.0.1:{upstream.port}"
                client.send(f"GET http://{name}/first HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                answer = client.read_response()
                assert (answer.status, json.loads(answer.body)["reason"]) == (403, "destination_forbidden")
                upstream.assert_untouched()  # this machine's own servers are nothing that a proxy should reach
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=15)
        assert process.returncode == 0, errors

    def test_a_policy_in_the_folder_is_found_by_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "overcoat.yaml").write_text("version: 1\nmode: observe\n")
        found = json.loads(run("check", "--json", folder=tmp_path).stdout)
        assert (found["source"], found["mode"]) == ("overcoat.yaml", "observe")
