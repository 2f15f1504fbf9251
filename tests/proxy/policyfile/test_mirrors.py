"""Mirror listeners in the policy file: what is right, and each way to be wrong, at its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from proxy.core.destinations import Destination
from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.core.rules.policy import Listener, ListenerKind, Mirror, Policy
from proxy.core.who.addresses import AddressKind, AddressSet, parse_addresses
from proxy.policyfile.findings import calendar, endings
from proxy.policyfile.load import load_policy
from proxy.policyfile.model.addresses import parse_listener
from proxy.policyfile.refusal import PolicyErrors
from proxy.processes.wires import pack, unpack
from tests.e2e.certificates import Authority, Variant

AUTHORITY = Authority()
RIGHT = AUTHORITY.issue("api.example", "www.example")
KEY = new_key(Alg.ECDH_ES_A256KW)
LISTEN = "mirror://127.0.0.1:8443?to=http://127.0.0.1:5000&for=api.example&cert=server.pem&key=server.key"
PLAIN = "mirror://127.0.0.1:8443?to=http://127.0.0.1:5000&for=api.example"
RULE = "{name: pay, hosts: [api.example], request: [{decrypt: [$.a], key: k}], response: [{encrypt: [$.b], key: k}]}"
OTHER = "{name: out, hosts: [out.example], request: [{encrypt: [$.a], key: k}], response: [{decrypt: [$.b], key: k}]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a certificate and keys."""
    (tmp_path / "server.pem").write_bytes(b"".join(RIGHT.chain_pem))
    for name, data in (("server.key", RIGHT.key_pem), ("k.pem", to_pem(KEY, private=True))):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def load(folder: Path, listen: str = LISTEN, rules: str = RULE, more: str = "", **options: object) -> Policy:
    """Load a policy with these listeners and rules."""
    keys = "keys: {k: {alg: ECDH-ES+A256KW, primary: {file: k.pem}}}"
    file = folder / "policy.yaml"
    file.write_text(f"version: 1\nlisten: ['{listen}']\n{keys}\nrules: [{rules}]\n{more}\n")
    return load_policy(file, {}, **options)  # type: ignore[arg-type]  # as `load_policy` takes them


def wrong(folder: Path, *arguments: str, **options: object) -> list[str]:
    """Return what is wrong with such a policy."""
    with pytest.raises(PolicyErrors) as caught:
        load(folder, *arguments, **options)  # type: ignore[arg-type]  # as above
    return [f"{error.path}: {error.message}" for error in caught.value.errors]


def test_a_mirror_and_what_leaves_stand_in_one_policy(folder: Path) -> None:
    policy = load(folder, f"{LISTEN}', 'forward://127.0.0.1:8080", f"{RULE}, {OTHER}")
    mirror = policy.listen[0].mirror
    assert mirror is not None
    assert (mirror.to, mirror.is_plain, mirror.names) == (Destination("127.0.0.1", 5000), True, ("api.example",))
    assert policy.mirrored == {"api.example"}
    assert [policy.is_mirrored(rule) for rule in policy.rules] == [True, False]
    assert len(policy.certificates[mirror].chain) == 1
    assert {path.name for path in policy.files} == {"policy.yaml", "k.pem", "server.pem", "server.key"}


def test_a_worker_gets_its_certificate(folder: Path) -> None:
    policy = load(folder)
    assert unpack(pack(policy), Policy).certificates == policy.certificates


def test_another_certificate_is_another_policy(folder: Path) -> None:
    before = load(folder)
    again = AUTHORITY.issue("api.example")
    (folder / "server.pem").write_bytes(again.chain_pem[0])
    (folder / "server.key").write_bytes(again.key_pem)
    after = load(folder)
    assert not after.says_the_same_as(before)
    assert after.listen == before.listen  # so that a reload takes it
    assert load(folder).says_the_same_as(after)


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        (
            "to=https://app.local&for=A.example&for=b.example&cert=c&key=k&from=any",
            Mirror(Destination("app.local", 443), False, ("a.example", "b.example"), "c", "k", None, True),
        ),
        (
            "for=[::1]&to=http://[::1]/&from=private&from=10.0.0.0/8",
            Mirror(
                Destination("::1", 80),
                True,
                ("::1",),
                peers=AddressSet(frozenset((AddressKind.PRIVATE,)), (parse_addresses("10.0.0.0/8"),)),  # type: ignore[arg-type]  # it is a network
            ),
        ),
    ],
)
def test_a_listener_is_read(text: str, mirror: Mirror) -> None:
    listener = parse_listener(f"mirror://[::]:8443?{text}")
    assert listener == Listener("::", 8443, ListenerKind.MIRROR, mirror=mirror)
    assert parse_listener(str(listener)) == listener


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "says where its server is"),
        ("to=http://127.0.0.1:1", "says which host it stands for"),
        ("for=a.example", "says where its server is"),
        ("to=http://a:1&for=a.example&unknown=1", "has to=, for=, cert=, key= and from="),
        ("to=http://a:1&for=", "has to=, for=, cert=, key= and from="),
        ("to=http://a:1&for=a.example&for=a.example", "for=a.example stands twice"),
        ("to=http://a:1&for=a.example&for=A.example", "name the same host"),
        ("to=http://a:1&to=http://b:1&for=a.example", "to= stands twice"),
        ("to=http://a:1&for=*.example", "one whole host"),
        ("to=http://a:1&for=a.example:443", "without a port"),
        ("to=ftp://a:1&for=a.example", "to= is http://HOST:PORT"),
        ("to=127.0.0.1:1&for=a.example", "to= is http://HOST:PORT"),
        ("to=http://a:1/path&for=a.example", "no path"),
        ("to=http://me@a:1&for=a.example", "no name"),
        ("to=http://a:1&for=a.example&cert=c", "go together"),
        ("to=http://a:1&for=a.example&key=k", "go together"),
        ("to=http://a:1&for=a.example&cert=-----BEGIN&key=k", "this is a key"),
        ("to=http://a:1&for=a.example&from=any", "from=any stands alone"),
        ("to=http://a:1&for=a.example&from=private,loopback", "write from=private&from=loopback"),
        ("to=http://a:1&for=a.example, b.example&from=private", "write for=a.example&for=b.example"),
        ("to=http://a:1&for=a.example&cert=c&key=k&from=any&from=private", "from=any stands alone"),
        ("to=http://a:1&for=a.example&from=nobody", "is none of the kinds"),
    ],
)
def test_a_listener_that_is_wrong_is_refused(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=re.escape(what)):
        parse_listener(f"mirror://127.0.0.1:8443?{text}")


def swapped(rule: str, which: str) -> str:
    """Return a rule whose entries of one list do the other work."""
    head, found, rest = rule.partition(f"{which}: [{{")
    work, _, tail = rest.partition(":")
    return f"{head}{found}{'encrypt' if work == 'decrypt' else 'decrypt'}:{tail}"


def with_key(text: str) -> str:
    """Return the rule with another key."""
    return RULE.replace("request:", f"{text}, request:")


@pytest.mark.parametrize(
    ("rules", "where", "what"),
    [
        (OTHER, "listen[0]", "no rule names api.example"),
        (swapped(RULE, "request"), "rules[0].request[0].encrypt", "write decrypt here"),
        (swapped(RULE, "response"), "rules[0].response[0].decrypt", "write encrypt here"),
        (f"{RULE}, {swapped(OTHER, 'request')}", "rules[1].request[0].decrypt", "write encrypt"),
        (f"{RULE}, {swapped(OTHER, 'response')}", "rules[1].response[0].encrypt", "write decrypt"),
        (
            RULE.replace("request: [", "request: [{encrypt: [$.c], key: k}, "),
            "rules[0].request[0].encrypt",
            "write decrypt here",
        ),
        (RULE.replace("[api.example]", "[api.example, x.example]"), "rules[0].hosts[1]", "none for exactly x.example"),
        (RULE.replace("api.example", "'**.example'"), "rules[0].hosts[0]", "none for exactly **.example"),
        (RULE.replace("api.example", "'api.example:8443'"), "rules[0].hosts[0]", "exactly api.example:8443"),
        (
            RULE.replace("encrypt: [$.b], ", "encrypt: [$.b], form: [a], "),
            "rules[0].response[0].form",
            "about requests",
        ),
        (with_key("plain_http: upgrade"), "rules[0].plain_http", "about what leaves"),
        (with_key("https: inspect"), "rules[0].https", "about what leaves"),
        (with_key("https_port: 1"), "rules[0].https_port", "about what leaves"),
        (with_key("trust: {strict: false}"), "rules[0].trust", "shows no certificate"),
        (with_key("pins: {any_of: [{file: server.pem}]}"), "rules[0].pins", "shows no certificate"),
    ],
)
def test_a_rule_that_does_not_fit_is_the_only_error(folder: Path, rules: str, where: str, what: str) -> None:
    (found,) = wrong(folder, LISTEN, rules)
    assert found.startswith(f"{where}: ")
    assert what in found


def test_a_form_is_opened_as_well(folder: Path) -> None:
    policy = load(folder, LISTEN, RULE.replace("decrypt: [$.a], ", "decrypt: [$.a], form: [a, b], "))
    assert policy.rules[0].request[0].form == ("a", "b")


def test_pins_and_trust_are_for_a_server_that_speaks_tls(folder: Path) -> None:
    rule = with_key("pins: {any_of: [{file: server.pem}]}, trust: {strict: false}")
    assert load(folder, LISTEN.replace("to=http:", "to=https:"), rule).rules[0].pins is not None


def test_a_listener_that_is_wrong_leads_to_no_second_error(folder: Path) -> None:
    (found,) = wrong(folder, LISTEN.replace("for=api.example", "for=*.example"))
    assert found.startswith("listen[0]: ")
    (found,) = wrong(folder, overrides={"listen": LISTEN.replace("for=api.example", "for=*.example")})
    assert found.startswith("--listen: ")


def test_a_listener_of_a_flag_counts_as_those_of_the_file(folder: Path) -> None:
    assert load(folder, "forward://127.0.0.1:8080", RULE, overrides={"listen": LISTEN}).mirrored == {"api.example"}
    found = wrong(folder, LISTEN, RULE, overrides={"listen": "forward://127.0.0.1:8080"})
    assert [each.partition(": ")[0] for each in found] == [
        "rules[0].request[0].decrypt",
        "rules[0].response[0].encrypt",
    ]
    (found_file,) = wrong(
        folder, "forward://127.0.0.1:8080", RULE, overrides={"listen": LISTEN.replace("cert=", "cert=no-")}
    )
    assert found_file.startswith("--listen: ")


def some(folder: Path) -> Iterator[tuple[str, str, bytes | None, str]]:
    """Yield what is wrong with a file: its name, its content, and what is said."""
    other = AUTHORITY.issue("api.example")
    yield "no file", "server.pem", None, "server.pem cannot be read"
    yield "no key", "server.key", None, "server.key cannot be read"
    yield "no certificate", "server.pem", b"x", "cert=server.pem: there is no certificate"
    yield "another key", "server.key", other.key_pem, "key=server.key: this key is not the certificate's"
    yield "large", "server.pem", b"x" * (17 * 1024 * 1024), "bytes"
    for variant, what in (
        (Variant.EXPIRED, "ended on"),
        (Variant.NOT_YET_VALID, "not valid before"),
        (Variant.WRONG_HOST, "does not name api.example"),
    ):
        yield variant.name, "server.pem", AUTHORITY.issue("api.example", variant=variant).chain_pem[0], what


@pytest.mark.parametrize("number", range(8))
def test_files_that_do_not_fit_are_said(folder: Path, number: int) -> None:
    kind, name, content, what = list(some(folder))[number]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    if kind in {"EXPIRED", "NOT_YET_VALID", "WRONG_HOST"}:
        identity = AUTHORITY.issue("api.example", variant=Variant[kind])
        (folder / "server.pem").write_bytes(identity.chain_pem[0])
        (folder / "server.key").write_bytes(identity.key_pem)
    (found,) = wrong(folder)
    assert found.startswith("listen[0]: ")
    assert what in found


@pytest.mark.parametrize(
    ("to", "rule", "what"),
    [
        ("http://10.0.0.1:5000", "", "private address"),
        ("http://1.1.1.1:5000", "", "public address, where no plain http goes"),
        ("https://10.0.0.1:5000", "", "private address"),
        ("http://10.0.0.1:5000", "destinations: {allow: [10.0.0.0/24]}, ", None),
        ("https://1.1.1.1:5000", "", None),
        ("http://localhost:5000", "", None),
        ("http://app.internal:5000", "", None),
    ],
)
def test_where_the_server_may_be_is_judged_as_far_as_it_is_known(
    folder: Path, to: str, rule: str, what: str | None
) -> None:
    listen, rules = LISTEN.replace("http://127.0.0.1:5000", to), RULE.replace("request:", f"{rule}request:")
    if what is None:
        load(folder, listen, rules)
        return
    (found,) = wrong(folder, listen, rules)
    assert found.startswith("listen[0]: ")
    assert what in found


@pytest.mark.parametrize(
    ("listen", "more", "what"),
    [
        (PLAIN, "", None),
        (PLAIN.replace("127.0.0.1:8443", "0.0.0.0:8443"), "", "say who may use it"),
        (PLAIN.replace("127.0.0.1:8443", "0.0.0.0:8443") + "&from=private", "", None),
        (PLAIN.replace("127.0.0.1:8443", "0.0.0.0:8443"), "clients: {allow: [private]}", None),
        (PLAIN.replace("127.0.0.1:8443", "0.0.0.0:8443"), "clients: {unsafe_open_listener: true}", "speaks plain http"),
        (LISTEN.replace("127.0.0.1:8443", "0.0.0.0:8443"), "", "say who may use it"),
        (LISTEN.replace("127.0.0.1:8443", "0.0.0.0:8443") + "&from=any", "", None),
        (LISTEN.replace("127.0.0.1:8443", "0.0.0.0:8443"), "clients: {unsafe_open_listener: true}", None),
        (LISTEN.replace("127.0.0.1:8443", "0.0.0.0:8443"), "USERS", "where no app shows credentials"),
        (LISTEN.replace("127.0.0.1:8443", "0.0.0.0:8443") + "&from=private", "USERS", None),
    ],
)
def test_it_is_said_who_may_connect(folder: Path, listen: str, more: str, what: str | None) -> None:
    hashed = "$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYWx0$" + "A" * 43
    users = f"clients: {{users: [{{name: u, password_hash: '{hashed}'}}]}}"
    more = users if more == "USERS" else more
    if what is None:
        load(folder, listen, RULE, more)
        return
    (found,) = wrong(folder, listen, RULE, more)
    assert found.startswith("listen[0]: ")
    assert what in found


def test_a_key_that_others_may_read_is_warned_of(folder: Path) -> None:
    (folder / "server.key").chmod(0o640)
    assert any("may be read by others" in remark for remark in load(folder).remarks)
    (folder / "server.key").chmod(0o600)
    assert load(folder).remarks == ()


def test_a_key_may_be_missing_where_secrets_are(folder: Path) -> None:
    (folder / "server.key").unlink()
    policy = load(folder, is_without_secrets=True)
    assert policy.certificates == {}
    assert any("server.key" in each for each in policy.unchecked)


def test_its_end_is_told_before_it_comes(folder: Path) -> None:
    policy = load(folder)
    (certificate,) = policy.certificates.values()
    assert [each.what for each in calendar(policy)] == ["listen: server.pem"]
    assert endings(policy, certificate.ends - timedelta(days=60)) == []
    (soon,) = endings(policy, certificate.ends - timedelta(days=1))
    assert not soon.has_failed
    assert "server.pem will end on" in soon.text
    (past,) = endings(policy, certificate.ends + timedelta(days=1))
    assert past.has_failed
    assert "server.pem ended on" in past.text
