"""What needs attention about a policy: what is found, on which day, and what is not."""

from __future__ import annotations

import os
import textwrap
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from proxy import timelimits
from proxy.core.certificates.constraints import Constraints
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.core.pins import parse_pin
from proxy.core.rules.policy import HostPattern, Https, PlainHttp, Policy, Rule
from proxy.core.rules.trust import ClientCertificate, Crls, CrlUse, Trust
from proxy.disk.ca import LocalCa
from proxy.disk.chains import remember_chains
from proxy.disk.rotating import rotate
from proxy.policyfile.findings import Finding, findings, log_findings
from proxy.policyfile.load import load_policy
from tests.e2e.farm import Party, alternative
from tests.proxy.commands.policies import JWK, PIN_A, PIN_B, POLICY

TODAY = date(2027, 1, 15)
NOW = datetime(2027, 1, 15, 23, 59, tzinfo=UTC)
RULE = Rule("pay", (HostPattern("exact", "api.pay.example"),), PlainHttp.UPGRADE, Https.INSPECT)
TWO_PINS = f'["{PIN_A}", "{PIN_B}"]'


def found(folder: Path, text: str) -> list[Finding]:
    """Return what is found about the policy of this text, with its files in a folder."""
    (folder / "policy.yaml").write_text(textwrap.dedent(text))
    return findings(load_policy(folder / "policy.yaml", {"APP_KEY": JWK}), {}, NOW)


@pytest.mark.parametrize(
    ("expires", "not_after", "pins", "expected"),
    [
        ("2999-06-30", "2999-01-01", TWO_PINS, []),
        (str(TODAY + timedelta(31)), str(TODAY + timedelta(31)), TWO_PINS, []),
        (str(TODAY + timedelta(30)), "2999-01-01", TWO_PINS, ["rule pay: its pins will expire on 2027-02-14; after"]),
        (str(TODAY), "2999-01-01", TWO_PINS, ["rule pay: its pins will expire on 2027-01-15; after"]),
        ("2027-01-14", "2999-01-01", TWO_PINS, ["! rule pay: its pins expired on 2027-01-14: its hosts are denied"]),
        ("2999-06-30", "2027-02-14", TWO_PINS, ["key set app: key app-1 will expire on 2027-02-14; after"]),
        ("2999-06-30", str(TODAY), TWO_PINS, ["key set app: key app-1 will expire on 2027-01-15; after"]),
        ("2999-06-30", "2027-01-14", TWO_PINS, ["! key set app: key app-1 expired on 2027-01-14: what it should"]),
        ("2999-06-30", "2999-01-01", f'["{PIN_A}"]', ["rule pay: one pin without a backup"]),
    ],
)
def test_ends_that_are_near_or_past(
    tmp_path: Path, expires: str, not_after: str, pins: str, expected: list[str]
) -> None:
    text = POLICY.replace("2999-06-30", expires).replace("2999-01-01", not_after)
    said = found(tmp_path, text.replace(TWO_PINS, pins))
    assert len(said) == len(expected)
    for finding, start in zip(said, expected, strict=True):
        assert f"{'! ' if finding.has_failed else ''}{finding.text}".startswith(start)


SECOND, SOON = timedelta(seconds=1), timedelta(seconds=timelimits.SOON_SECONDS)
# name: (how long after the end it is, what is found; "!" for what has failed)
CLIENT, LIST, ROOT = (
    "rule pay: client_certificate app.pem",
    "trust.crls: the list of 'CN=root'",
    "trust.roots: root.pem",
)
ENDS: dict[str, tuple[timedelta, str]] = {
    "client certificate, in time": (-SOON - SECOND, ""),
    "client certificate, near": (-SOON, f"{CLIENT} ends on DAY; afterwards"),
    "client certificate, the last second": (timedelta(), f"{CLIENT} ends on DAY; afterwards"),
    "client certificate, past": (SECOND, f"! {CLIENT} ended on DAY: the rule's hosts refuse it"),
    "required list, the last second": (timedelta(), ""),
    "required list, past": (SECOND, f"! {LIST} ended on DAY: what its issuer signed is refused"),
    "list, past": (SECOND, f"{LIST} ended on DAY: what has been revoked since is accepted"),
    "root, in time": (-SOON - SECOND, ""),
    "root, near": (-SOON, f"{ROOT}: 'CN=root' will expire on DAY"),
    "root, the last second": (timedelta(), f"{ROOT}: 'CN=root' will expire on DAY"),
    "root, past": (SECOND, f"! {ROOT}: all certificates have expired, so that no upstream is trusted"),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_certificates_and_lists_by_the_second(name: str) -> None:
    after, expected = ENDS[name]
    what, policy = name.partition(",")[0], Policy()
    root = Party.root("root")
    end = x509.load_der_x509_certificate(root.der).not_valid_after_utc
    if what == "client certificate":
        own = ClientCertificate(Path("app.pem"), (root.der,), SecretBytes(b""), end)
        policy = replace(policy, rules=(replace(RULE, client_certificate=own),))
    elif what == "root":
        policy = replace(policy, trust=Trust(roots=Path("root.pem"), anchors=(root.der,)))
    else:
        crl = x509.load_pem_x509_crl(root.crl())
        assert crl.next_update_utc is not None
        end = crl.next_update_utc
        when = CrlUse.REQUIRE if what == "required list" else CrlUse.IF_PRESENT
        lists = Crls((Path("list.pem"),), when, (crl.public_bytes(Encoding.DER),))
        policy = replace(policy, trust=Trust(crls=lists))
    said = [f"{'! ' if each.has_failed else ''}{each.text}" for each in findings(policy, {}, end + after)]
    about = [each for each in said if each.lstrip("! ").startswith(("rule pay: client", "trust."))]
    wanted = [expected.replace("DAY", f"{end:%Y-%m-%d}")] if expected else []
    assert len(about) == len(wanted), about
    assert all(each.startswith(start) for each, start in zip(about, wanted, strict=True)), about


@pytest.mark.parametrize(
    ("without", "put", "is_strict", "is_found"),
    [
        ([x509.KeyUsage], [], True, True),
        ([x509.KeyUsage], [], False, False),
        ([], [], True, False),
        ([x509.KeyUsage, x509.BasicConstraints], [], True, False),  # no authority's
        ([x509.KeyUsage], [alternative("api.example")], True, False),  # a server's own, which is no issuer there
    ],
)
def test_a_root_under_which_all_is_refused(
    without: list[type[x509.ExtensionType]], put: list[x509.ExtensionType], is_strict: bool, is_found: bool
) -> None:
    root = Party.root("root", without=without, put=put)
    policy = Policy(trust=Trust(roots=Path("root.pem"), anchors=(root.der,), strict=is_strict))
    said = findings(policy, {}, datetime.now(UTC))
    about = [each for each in said if each.text.startswith("trust.roots: root.pem: 'CN=root' does not say what")]
    assert [each.has_failed for each in about] == [False] * is_found


def test_the_pins_of_the_upstream_proxy_end_like_all_others(tmp_path: Path) -> None:
    policy = f"""\
        version: 1
        upstream_proxy: {{url: "https://proxy.example:3128", pins: {{any_of: {TWO_PINS}, expires: DAY}}}}
    """
    assert found(tmp_path, policy.replace("DAY", "2999-01-01")) == []
    (soon,) = found(tmp_path, policy.replace("DAY", "2027-02-14"))
    assert soon == Finding("the upstream proxy: its pins will expire on 2027-02-14; after that nothing leaves")
    (past,) = found(tmp_path, policy.replace("DAY", "2027-01-14"))
    assert past == Finding("the upstream proxy: its pins expired on 2027-01-14: nothing leaves", has_failed=True)


@pytest.mark.parametrize(
    ("grace", "not_after", "expected"),
    [
        ("0d", "2027-01-14", "! key set app: key app-1 expired on 2027-01-14: what it encrypted is not opened"),
        ("10d", "2027-01-04", "! key set app: key app-1 expired on 2027-01-14: what it encrypted is not opened"),
        ("10d", "2027-01-05", "key set app: key app-1 will expire on 2027-01-15; after that what it encrypted"),
        ("10d", "2027-02-04", "key set app: key app-1 will expire on 2027-02-14; after that what it encrypted"),
        ("10d", "2027-02-05", ""),
    ],
)
def test_an_older_key_ends_with_its_grace(tmp_path: Path, grace: str, not_after: str, expected: str) -> None:
    (tmp_path / "old.jwk").write_text(JWK)
    (tmp_path / "old.jwk").chmod(0o600)
    (tmp_path / "new.jwk").write_text(JWK.replace("app-1", "app-2"))
    (tmp_path / "new.jwk").chmod(0o600)
    said = found(
        tmp_path,
        f"""\
        version: 1
        keys:
          app:
            alg: A256KW
            grace: {grace if grace != "0d" else "1d"}
            primary: {{file: new.jwk, not_after: 2027-03-01}}
            older: [{{file: old.jwk, not_after: {not_after}}}]
        """.replace("            grace: 1d\n", ""),
    )
    shown = [f"{'! ' if finding.has_failed else ''}{finding.text}" for finding in said]
    assert len(shown) == bool(expected)
    assert all(each.startswith(expected) for each in shown)


@pytest.mark.parametrize(("first", "is_found"), [("2027-01-15", False), ("2027-01-16", True)])
def test_a_primary_key_that_is_not_good_yet_seals_nothing(tmp_path: Path, first: str, is_found: bool) -> None:
    said = found(tmp_path, POLICY.replace("not_after: 2999-01-01", f"not_before: {first}"))
    assert [(each.text, each.has_failed) for each in said] == [
        (f"key set app: key app-1 is not good before {first}: what it should encrypt is denied", True)
    ] * is_found


def test_a_key_that_is_to_follow_is_no_finding(tmp_path: Path) -> None:
    (tmp_path / "next.jwk").write_text(JWK.replace("app-1", "app-2"))
    (tmp_path / "next.jwk").chmod(0o600)
    older = "not_after: 2999-01-01}, older: [{file: next.jwk, not_before: 2028-01-01}]}"
    assert found(tmp_path, POLICY.replace("not_after: 2999-01-01}}", older)) == []


def test_an_older_key_that_has_ended_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.jwk").write_text(JWK)
    (tmp_path / "old.jwk").chmod(0o600)
    older = "not_after: 2999-01-01}, older: [{kid: app-1, file: old.jwk, not_after: 2026-12-31}]}"
    new = JWK.replace("app-1", "app-2")
    text = POLICY.replace("kid: app-1", "kid: app-2").replace("not_after: 2999-01-01}}", older)
    (tmp_path / "policy.yaml").write_text(text)
    (finding,) = findings(load_policy(tmp_path / "policy.yaml", {"APP_KEY": new}), {}, NOW)
    assert finding.has_failed
    assert finding.text.startswith("key set app: key app-1 expired on 2026-12-31: what it encrypted is not opened")


@pytest.mark.parametrize(
    ("alg", "half", "entries", "is_found"),
    [
        (Alg.ECDH_ES_A256KW, "private", 'request: [{encrypt: ["$.a"], key: k, match: exact}]', True),
        (Alg.RSA_OAEP_256, "private", 'request: [{encrypt: ["$.a"], key: k, match: exact}]', True),
        (Alg.ECDH_ES_A256KW, "public", 'request: [{encrypt: ["$.a"], key: k, match: exact}]', False),
        (Alg.ECDH_ES_A256KW, "private", 'response: [{decrypt: ["$.a"], key: k}]', False),
        (
            Alg.ECDH_ES_A256KW,
            "private",
            'request: [{encrypt: ["$.a"], key: k, match: exact}], response: [{decrypt: ["$.a"], key: k}]',
            False,
        ),
        (Alg.ECDH_ES_A256KW, "private", "plain_http: upgrade", False),  # a set for `keys open` alone
    ],
)
def test_a_private_key_where_only_the_public_half_is_needed(
    tmp_path: Path, alg: Alg, half: str, entries: str, is_found: bool
) -> None:
    (tmp_path / "k.pem").write_bytes(to_pem(new_key(alg), private=half == "private"))
    (tmp_path / "k.pem").chmod(0o600)
    said = found(
        tmp_path,
        f"""\
        version: 1
        keys: {{k: {{alg: {alg}, primary: {{kid: pay-1, file: k.pem}}}}}}
        rules: [{{name: a, hosts: [a.example], {entries}}}]
        """,
    )
    assert [finding.text.partition(",")[0] for finding in said] == ["key set k: key pay-1 is a private key"] * is_found
    assert not any(finding.has_failed for finding in said)


def test_a_symmetric_key_has_no_other_half(tmp_path: Path) -> None:
    text = POLICY.partition("    response:")[0]
    assert found(tmp_path, text) == []


def test_hosts_that_are_out_of_reach(tmp_path: Path) -> None:
    said = found(
        tmp_path,
        """\
        version: 1
        destinations: {allow: [192.168.1.0/24]}
        rules: [{name: a, hosts: [192.168.1.2, "192.168.2.2:81", "[::1]", 93.184.216.34, name.example]}]
        """,
    )
    first, second = (finding.text for finding in said)
    assert first.startswith("rule a: 192.168.2.2:81 is never reached: if 192.168.2.2 is a neighbour of the app's")
    assert "write destinations: {allow: [private]} (or just its network) in rule a" in first
    assert second.startswith("rule a: [::1] is never reached: that is where Overcoat runs")


def test_the_built_in_policy_protects_little() -> None:
    (finding,) = findings(Policy(), {}, NOW)
    assert finding.text.startswith("no policy file was named or found")


def test_that_nothing_is_protected_while_it_observes(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, "version: 1\nmode: observe\n")
    assert finding.text.startswith("mode observe protects nothing")


def test_that_a_rule_only_observes_or_alone_does_not(tmp_path: Path) -> None:
    rule = "rules: [{name: a, hosts: [a.example], mode: %s}]"
    (finding,) = found(tmp_path, f"version: 1\n{rule % 'observe'}\n")
    assert finding.text.startswith("rule a: mode observe protects nothing")
    (finding,) = found(tmp_path, f"version: 1\nmode: observe\n{rule % 'enforce'}\n")
    assert finding.text.startswith("mode observe (but in a) protects nothing")
    assert not found(tmp_path, f"version: 1\n{rule % 'enforce'}\n")
    assert not finding.has_failed
    assert found(tmp_path, "version: 1\nmode: enforce\n") == []


def test_what_has_failed_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    log_findings([Finding("may fail"), Finding("has failed", has_failed=True)])
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "may fail"),
        ("ERROR", "has failed"),
    ]


@pytest.mark.parametrize(
    ("mode", "above", "danger"),
    [
        (0o700, 0o755, ""),
        (0o755, 0o775, ""),  # above, a group is its owner's business
        (0o700, 0o1777, ""),  # where nobody moves what is another's
        (0o720, 0o755, "others may write {data} (mode 0720)"),
        (0o702, 0o755, "others may write {data} (mode 0702)"),
        (0o1777, 0o755, "others may write {data} (mode 1777)"),
        (0o700, 0o777, "others may write {above} (mode 0777)"),
        (None, 0o777, "others may write {above} (mode 0777)"),  # it is not there yet
    ],
)
def test_who_may_put_something_in_the_data_directory(tmp_path: Path, mode: int | None, above: int, danger: str) -> None:
    folder = tmp_path / "above"
    data = folder / "data"
    folder.mkdir()
    if mode is not None:
        data.mkdir()
        data.chmod(mode)
    folder.chmod(above)
    link = tmp_path / "link"
    link.symlink_to(data)
    for named in (data, link):
        said = [each.text for each in findings(replace(Policy(), source="p.yaml"), {"OVERCOAT_DATA": str(named)}, NOW)]
        assert [each.partition(",")[0] for each in said] == [danger.format(data=data, above=folder)] * bool(danger)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to another user")
def test_a_data_directory_of_another_user(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    os.chown(data, 65534, -1)
    (finding,) = findings(replace(Policy(), source="p.yaml"), {"OVERCOAT_DATA": str(data)}, NOW)
    assert finding.text.startswith(f"{data} belongs to another user (65534)")


def test_a_file_that_everyone_may_change(tmp_path: Path) -> None:
    (tmp_path / "k.pem").write_bytes(to_pem(new_key(Alg.ECDH_ES_A256KW), private=False))
    text = "version: 1\nkeys: {k: {alg: ECDH-ES+A256KW, primary: {file: k.pem}}}\n"
    for mode, is_found in ((0o644, False), (0o664, False), (0o666, True)):
        (tmp_path / "k.pem").chmod(mode)
        said = [each.text for each in found(tmp_path, text)]
        assert [each.partition(":")[0] for each in said] == [
            f"{tmp_path / 'k.pem'} may be changed by everyone on this machine"
        ] * is_found


def test_pins_that_refuse_nothing_are_said_to(tmp_path: Path) -> None:
    lapsed = f"{{any_of: {TWO_PINS}, expires: 2027-01-14, after_expiry: warn}}"
    rules = f"""\
        version: 1
        upstream_proxy: {{url: "https://proxy.example:3128", pins: {lapsed}}}
        rules:
          - {{name: warns, hosts: [a.example], pins: {lapsed}}}
          - {{name: soon, hosts: [c.example], pins: {lapsed.replace("01-14", "02-01")}}}
          - {{name: observes, hosts: [b.example], pins: {{any_of: {TWO_PINS}, mode: observe}}}}
          - {{name: both, hosts: [d.example], pins: {{any_of: {TWO_PINS}, mode: observe, expires: 2027-01-14}}}}
        """
    (one,) = (
        each
        for each in found(
            tmp_path, rules.replace(f'["{PIN_A}", "{PIN_B}"], mode: observe}}', f'["{PIN_A}"], mode: observe}}')
        )
        if "backup" in each.text
    )
    assert one.text == "rule observes: one pin without a backup; if the upstream's key changes, no pin matches"
    let_through = "any valid certificate is let through"
    observed = "its pins are only observed (pins.mode), and refuse no server: take mode out once no decision line says "
    assert found(tmp_path, rules) == [
        Finding(f"the upstream proxy: its pins expired on 2027-01-14: {let_through}"),
        Finding(f"rule warns: its pins expired on 2027-01-14: {let_through}"),
        Finding(f"rule soon: its pins will expire on 2027-02-01; after that {let_through}"),
        Finding(f"rule observes: {observed}would_deny"),
        Finding(f"rule both: its pins expired on 2027-01-14: {let_through}"),
        Finding(f"rule both: {observed}would_deny"),
    ]


def test_pins_that_all_stood_in_one_chain_are_no_backup_of_each_other(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        textwrap.dedent(f"""\
        version: 1
        upstream_proxy: {{url: "https://proxy.example:3128", pins: {{any_of: {TWO_PINS}}}}}
        rules:
          - {{name: a, hosts: [a.example, b.example], pins: {{any_of: {TWO_PINS}}}}}
        """)
    )
    policy = load_policy(tmp_path / "policy.yaml", {})

    def said() -> list[str]:
        return [each.text for each in findings(policy, {"OVERCOAT_DATA": str(tmp_path / "data")}, NOW)]

    one, two = (parse_pin(pin) for pin in (PIN_A, PIN_B))
    assert said() == []
    remember_chains(tmp_path / "data", {"a.example:443": [one], "b.example:443": []}, TODAY)
    assert said() == []  # the other one is a backup
    remember_chains(tmp_path / "data", {"b.example:443": [two], "c.example:443": [one, two], "no host": [one]}, TODAY)
    hint = "add the pin of a key that is not in use yet (overcoat pins backup)"
    of_rule = (
        "rule a: 2 pins without a backup: all of them stood in what a.example:443 and 1 more showed last, on 2027-01-15"
    )
    assert said() == [f"{of_rule}; {hint}"]
    remember_chains(tmp_path / "data", {"proxy.example:3128": [one, two], "b.example:443": []}, TODAY)
    (of_proxy,) = said()
    assert of_proxy.startswith(
        "the upstream proxy: 2 pins without a backup: all of them stood in what proxy.example:3128"
    )


def test_a_new_ca_that_does_not_fit_the_policy_is_spoken_of_before_it_signs(tmp_path: Path) -> None:
    text = "version: 1\nrules: [{name: seen, hosts: [a.example], https: inspect}]\n"
    (tmp_path / "policy.yaml").write_text(text)
    policy, data = load_policy(tmp_path / "policy.yaml", {}), tmp_path / "data"
    LocalCa.open(data, NOW, constraints=Constraints.to(["a.example"]))
    for host, is_said in (("b.example", True), ("a.example", False)):
        rotate(data, NOW, Constraints.to([host]))
        said = [each.text for each in findings(policy, {"OVERCOAT_DATA": str(data)}, NOW)]
        about = [each for each in said if "the new CA that `overcoat ca rotate` has made" in each]
        assert bool(about) is is_said
        assert all("may not sign for a.example (rule seen)" in each for each in about)
