"""What a message says would be right is right: each is applied as it stands, and the policy loads.

Of a message the advice is taken that is a concrete text, and put in the place that the message is about; what is only
said in words (`leave https:// out`) is applied by hand below.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from proxy.cli import main
from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.policyfile.findings import findings
from proxy.policyfile.load import load_policy
from proxy.policyfile.refusal import PolicyError, PolicyErrors
from tests.proxy.policyfile.test_load import BAD

PIN = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
HEX = bytes(range(32)).hex()
_RULES = "rules:\n  - name: a\n    hosts: [a.example]\n"
RULE = "version: 1\n" + _RULES
FIELDS = "version: 1\nkeys: {k: {alg: ECDH-ES+A256KW, primary: {file: k.pem}}}\n"

_CONCRETE = (
    re.compile(r"write (\[.*\])"),
    re.compile(r"write (\{[^…]*\})"),
    re.compile(r"write (true|false|[0-9]+), without quotes"),
    re.compile(r'in quotes, ("[^"]*")'),
    re.compile(r"write ((?:forward|socks5|transparent|(?:cert-)?sha256)[:/][^ ,;]+)"),
    re.compile(r"write (null|[A-Z]{3,}(?![:\w]))"),
    re.compile(r"write ([0-9][0-9.:/]+[smhdw]?)"),
    re.compile(r"write ([A-Za-z0-9+/]{43}=)"),
    re.compile(r"did you mean ([A-Za-z0-9_+-]+)\?"),
    re.compile(r"must be ([a-z0-9._-]+)(?:, [a-z0-9._-]+)* or "),
    re.compile(r"must be (?:[a-z0-9._-]+, )*[a-z0-9._-]+ or ([a-z0-9._-]+)"),
)


def advice(message: str) -> list[str]:
    """Return what a message says should stand there."""
    return [found for each in _CONCRETE for found in each.findall(message)]


def errors(folder: Path, text: str) -> tuple[PolicyError, ...]:
    (folder / "policy.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        load_policy(folder / "policy.yaml", {})
    except PolicyErrors as refused:
        return refused.errors
    return ()


def with_advice(text: str, error: PolicyError, right: str) -> str:
    """Return the text with something else in the place that an error is about."""
    place = (error.line - 1, error.column - 1)
    root = yaml.compose(text)
    assert root is not None
    nodes: list[yaml.Node] = [root]
    while nodes:
        node = nodes.pop()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        nodes += [each for pair in pairs for each in pair] + (node.value if isinstance(node, yaml.SequenceNode) else [])
        if (node.start_mark.line, node.start_mark.column) == place and not isinstance(node, yaml.MappingNode):
            old = text[node.start_mark.index : node.end_mark.index]
            if re.fullmatch("[A-Za-z0-9+/]{43}=", right):  # the digest alone
                right = old[: re.search("sha256/+", old).end()] + right  # type: ignore[union-attr]  # it is one
            if re.fullmatch(r"[12]\.\d", right):
                right = f'"{right}"'
            return text[: node.start_mark.index] + right + text[node.end_mark.index :]
    raise AssertionError(f"nothing begins there: {error}")


WRONG = [
    *[(name, text) for name, text, *_ in BAD if name not in ("a far unknown key",)],
    ("listen as text", "version: 1\nlisten: forward://127.0.0.1:8080\n"),
    ("listen as an address", "version: 1\nlisten: 127.0.0.1:8080\n"),
    ("listen as a port", "version: 1\nlisten: 8080\n"),
    ("listen on a port", "version: 1\nlisten: [8080]\n"),
    ("listen on a quoted port", "version: 1\nlisten: ['8080']\n"),
    ("listen with a web server's scheme", "version: 1\nlisten: ['http://127.0.0.1:8080']\n"),
    ("listen without a scheme", "version: 1\nlisten: ['127.0.0.1:8080']\n"),
    ("a reverse listener as text", "version: 1\nlisten: 'reverse://[::1]:1?to=https://a.example'\n"),
    ("admin as a port", "version: 1\nadmin: 9464\n"),
    ("admin as a quoted port", "version: 1\nadmin: '9464'\n"),
    ("admin off", "version: 1\nadmin: off\n"),
    ("admin off in quotes", "version: 1\nadmin: 'off'\n"),
    ("admin null in quotes", "version: 1\nadmin: 'null'\n"),
    ("admin on", "version: 1\nadmin: true\n"),
    ("admin with a scheme", "version: 1\nadmin: http://127.0.0.1:9464/metrics\n"),
    ("probes as a port", "version: 1\nprobes: 9465\n"),
    ("hosts as text", "version: 1\nrules: [{name: a, hosts: a.example}]\n"),
    ("hosts with a star as text", "version: 1\nrules: [{name: a, hosts: '*.a.example'}]\n"),
    ("a host's address as text", "version: 1\nrules: [{name: a, hosts: '[::1]:80'}]\n"),
    ("a number as a name", "version: 1\nrules: [{name: 7, hosts: [a.example]}]\n"),
    ("yes as a name", "version: 1\nrules: [{name: yes, hosts: [a.example]}]\n"),
    ("methods as text", FIELDS + _RULES + "    request: [{encrypt: [$.a], key: k, when: {methods: POST}}]\n"),
    ("a method in lower case", FIELDS + _RULES + "    request: [{encrypt: [$.a], key: k, when: {methods: [post]}}]\n"),
    ("connect", FIELDS + _RULES + "    request: [{encrypt: [$.a], key: k, when: {methods: [connect]}}]\n"),
    ("selectors as text", FIELDS + _RULES + "    request: [{encrypt: \"$['a']\", key: k}]\n"),
    ("paths as text", FIELDS + _RULES + "    request: [{encrypt: [$.a], key: k, when: {paths: '/v1/**'}}]\n"),
    (
        "a key set of nearly the name",
        FIELDS.replace("{k:", "{pay:") + _RULES + "    request: [{encrypt: [$.a], key: pai}]\n",
    ),
    ("pins as text", RULE + f"    pins: {{any_of: {PIN}}}\n"),
    ("a pin in hex", RULE + f"    pins: {{any_of: ['{HEX}']}}\n"),
    ("a pin with hex", RULE + f"    pins: {{any_of: ['sha256/{HEX}']}}\n"),
    ("a pin without its kind", RULE + f"    pins: {{any_of: ['{PIN[7:]}']}}\n"),
    ("a pin without padding", RULE + f"    pins: {{any_of: ['{PIN[:-1]}']}}\n"),
    ("networks as text", "version: 1\ndestinations: {allow: private}\n"),
    ("a network with too many bits", "version: 1\ndestinations: {allow: [10.1.2.3/8]}\n"),
    ("a mode that is no word", "version: 1\nmode: true\n"),
    ("trust as text", "version: 1\ntrust: system\n"),
    ("a number in quotes", "version: 1\ndrain_wait: '5'\n"),
    ("true in quotes", "version: 1\nhsts_preload: 'true'\n"),
    ("a value in another case", FIELDS.replace("A256KW", "a256kw")),
    ("TLS as a number", "version: 1\ntrust: {min_tls: 1.3}\n"),
]


@pytest.fixture
def policy_folder(tmp_path: Path) -> Path:
    (tmp_path / "k.pem").write_bytes(to_pem(new_key(Alg.ECDH_ES_A256KW), private=False))
    return tmp_path


@pytest.mark.parametrize(("name", "text"), WRONG, ids=[name for name, _ in WRONG])
def test_what_is_said_to_be_right_is_taken(name: str, text: str, policy_folder: Path) -> None:
    for error in errors(policy_folder, text):
        for right in advice(error.message):
            mended = with_advice(text, error, right)
            left = [str(each) for each in errors(policy_folder, mended) if each.path == error.path]
            assert left == [], f"{error}\nwas answered with\n{mended}"


def test_enough_of_it_is_concrete(policy_folder: Path) -> None:
    said = {name for name, text in WRONG for error in errors(policy_folder, text) if advice(error.message)}
    assert len(said) > 40, sorted(said)
    silent = {"connect", "a reverse listener as text"} | {name for name, *_ in BAD}
    assert {name for name, _ in WRONG} - said <= silent | {"admin on", "a host's address as text", "TLS as a number"}


@pytest.mark.parametrize(
    ("wrong", "told", "right"),
    [
        ("listen: [forward://0.0.0.0:8080]\n", "clients: {allow: [private]}", "clients: {allow: [private]}\n"),
        ("admin: 0.0.0.0:9464\n", "clients: {admin: [private]}", "clients: {admin: [private]}\n"),
    ],
)
def test_who_may_ask_is_said_as_it_is_to_be_written(policy_folder: Path, wrong: str, told: str, right: str) -> None:
    (error,) = errors(policy_folder, f"version: 1\n{wrong}")
    assert told in error.message
    assert errors(policy_folder, f"version: 1\n{wrong}{right}") == ()


@pytest.mark.parametrize(
    ("variable", "text", "right"),
    [
        ("OVERCOAT_LISTEN", "8080", "forward://127.0.0.1:8080"),
        ("OVERCOAT_LISTEN", "127.0.0.1:8080", "forward://127.0.0.1:8080"),
        ("OVERCOAT_ADMIN", "9464", "127.0.0.1:9464"),
        ("OVERCOAT_ADMIN", "http://127.0.0.1:9464/", "127.0.0.1:9464"),
        ("OVERCOAT_MODE", "observ", "observe"),
    ],
)
def test_so_it_is_for_variables(variable: str, text: str, right: str) -> None:
    with pytest.raises(PolicyErrors) as refused:
        load_policy(None, {variable: text})
    (error,) = refused.value.errors
    assert right in advice(error.message)
    load_policy(None, {variable: right})


def test_commands_that_are_named_do_what_they_are_named_for(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(policy_folder)
    key = Path("k.pem")
    key.write_bytes(to_pem(new_key(Alg.ECDH_ES_A256KW), private=True))
    key.chmod(0o644)
    policy = Path("policy.yaml")
    policy.write_text(FIELDS + _RULES + "    request: [{encrypt: [$.a], key: k, match: exact}]\n")
    with pytest.raises(PolicyErrors) as refused:
        load_policy(policy, {})
    command = re.search(r"(chmod 600 [^ ]+) ", str(refused.value))
    assert command
    subprocess.run(shlex.split(command[1]), check=True)
    env, now = {"OVERCOAT_DATA": "data"}, datetime.now(UTC)
    (finding,) = findings(load_policy(policy, {}), env, now)
    command = re.search(r"overcoat (keys public) FILE", finding.text)
    assert command
    key.write_text(CliRunner().invoke(main, [*command[1].split(), "k.pem"], catch_exceptions=False).stdout)
    assert findings(load_policy(policy, {}), env, now) == []
