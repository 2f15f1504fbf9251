"""`overcoat check` and `schema`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.engine.roots import with_roots
from proxy.policyfile.load import load_policy
from proxy.policyfile.model.schema import schema_text
from tests.proxy.commands.policies import JWK, PIN_A, PIN_B, POLICY, WAY, run


def short_hash() -> str:
    """Return the hash of the policy that `run` has written, as `serve` would have it."""
    return with_roots(load_policy(Path("policy.yaml"), {"APP_KEY": JWK})).short_hash


def test_check_shows_what_the_policy_does() -> None:
    result = run("check")
    assert result.exit_code == 0
    assert result.stderr == ""
    words = " ".join(result.stdout.split())
    assert f"policy policy.yaml, mode enforce, hash {short_hash()} listen forward://127.0.0.1:0; admin off" in words
    assert "pay api.pay.example upgrade to port 8443 inspect: pins, encrypt, decrypt 2, until 2999-06-30" in words
    assert "printer printer.lan allow inspect: the policy says so" in words
    assert "pay request[0] encrypt $.card.number app POST $..ssn /v1/**" in words
    assert "pay request[1] encrypt $.note app always" in words
    assert "pay response[0] decrypt $.card app GET" in words
    assert "app A256KW app-1 yes until 2999-01-01" in words


def test_check_without_a_policy_file_shows_the_built_in_default() -> None:
    result = CliRunner().invoke(main, ["check"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "built-in" in result.stdout


@pytest.mark.parametrize(
    ("grace", "days", "shown"),
    [
        (" grace: 30d,", "not_after: 2999-01-01", "until 2999-01-01 (+ 30 d)"),
        (" grace: 30d,", "not_before: 2020-01-01", "from 2020-01-01"),
        ("", "not_before: 2020-01-01, not_after: 2999-01-01", "from 2020-01-01 until 2999-01-01"),
        ("", "", "no end"),
    ],
)
def test_check_shows_when_keys_are_good(grace: str, days: str, shown: str) -> None:
    text = POLICY.replace("alg: A256KW,", f"alg: A256KW,{grace}").replace(", not_after: 2999-01-01", f", {days}")
    words = " ".join(run("check", policy=text.replace(", }", "}")).stdout.split())
    assert words.partition("app A256KW app-1 yes ")[2] == shown


def test_check_prints_json_for_programs() -> None:
    result = run("check", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["ok"], summary["warnings"], summary["admin"]) == (True, [], None)
    assert summary["keys"] == [
        {
            "name": "app",
            "alg": "A256KW",
            "enc": "A256GCM",
            "profile": None,
            "bind": "place",
            "grace_days": 0,
            "jwks": None,
            "keys": [{"kid": "app-1", "decrypts": True, "not_before": None, "not_after": "2999-01-01"}],
        }
    ]
    pay = summary["rules"][0]
    assert (pay["pins"], pay["pins_expire"], pay["https_why"]) == (
        [PIN_A, PIN_B],
        "2999-06-30",
        "pins, encrypt, decrypt",
    )
    assert pay["encrypt"][0] == {
        "name": "request[0]",
        "selectors": ["$.card.number", "$..ssn"],
        "key": "app",
        "match": "exact",
        "methods": ["POST"],
        "paths": ["/v1/**"],
        "form": [],
        "graphql_arguments": [],
        "required": False,
        "other_bodies": "deny",
        "signed": "deny",
        "signed_headers": [],
        "digests": "deny",
        "already_sealed": "keep",
        "pad": 1,
        "envelope": None,
        "rename": None,
    }


def test_fields_of_forms_are_shown() -> None:
    text = POLICY.replace("match: exact\n        when", "form: [card_number]\n        when", 1)
    assert "form field card_number" in " ".join(run("check", policy=text).stdout.split())
    assert (
        "$..ssn, form field card_number with app (request[0])"
        in run("explain", "-X", "POST", "api.pay.example/v1/x", policy=text).stdout
    )


def test_check_never_prints_a_key() -> None:
    secret = json.loads(JWK)["k"]
    for arguments in (("check",), ("check", "--json"), ("explain", "api.pay.example")):
        assert secret not in run(*arguments).output


def test_check_reports_all_errors_with_status_2() -> None:
    result = run("check", policy="version: 1\nmode: off\nadmin: x\n")
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second, last = result.stderr.splitlines()
    assert first.startswith("policy.yaml:2:7: mode: must be enforce or observe")
    assert second.startswith("policy.yaml:3:8: admin: an address is HOST:PORT")
    assert last == "error: the policy has 2 errors, and is not used"


def test_check_reports_errors_as_json() -> None:
    result = run("check", "--json", policy="version: 2\n")
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    (error,) = answer["errors"]
    assert (error["file"], error["line"], error["column"], error["path"]) == ("policy.yaml", 1, 10, "version")
    assert result.stderr.endswith("error: the policy has 1 error, and is not used\n")


def test_check_names_a_policy_file_that_is_not_there() -> None:
    result = run("check", "-p", "no.yaml")
    assert result.exit_code == 2
    start = "no.yaml: the policy cannot be read: No such file or directory; but there is policy.yaml: rename it"
    assert result.stderr.startswith(start)


def test_what_may_fail_is_a_warning_and_what_has_failed_an_error_with_status_1() -> None:
    soon = datetime.now(UTC).date() + timedelta(days=29)
    result = run("check", policy=POLICY.replace("2999-06-30", str(soon)))
    assert result.exit_code == 0
    assert result.stderr == f"warning: rule pay: its pins will expire on {soon}; after that its hosts are denied\n"
    policy = POLICY.replace("2999-06-30", str(soon)).replace("2999-01-01", "2020-01-01")
    result = run("check", policy=policy)
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["warning", "error"]
    summary = json.loads(run("check", "--json", policy=policy).stdout)
    assert (summary["ok"], len(summary["warnings"])) == (False, 1)
    assert summary["failed"] == ["key set app: key app-1 expired on 2020-01-01: what it should encrypt is denied"]


def test_schema_prints_the_json_schema() -> None:
    result = run("schema")
    assert result.exit_code == 0
    assert result.stdout == schema_text()


def test_check_says_who_may_use_it_and_where_the_ways_lead() -> None:
    words = " ".join(run("check", policy=WAY.replace("EGRESS", "listed")).stdout.split())
    assert "clients loopback; with the password of reports reaches" in words
    assert (
        "reaches public addresses, private, 127.0.0.1, 192.0.2.0/24; "
        "through https://proxy.example:3128 (1 pins), but directly direct.example defaults"
    ) in words
    assert "defaults hosts that no rule names are denied (egress: listed)" in words
    assert "workers 2" in words
    assert "database db.example:5432 allow tunnel: and anything else, unseen (raw_tcp)" in words
    summary = json.loads(run("check", "--json", policy=WAY.replace("EGRESS", "any")).stdout)
    assert summary["upstream_proxy"] == {
        "url": "https://proxy.example:3128",
        "pins": [PIN_A],
        "shows_credentials": False,
        "direct": ["direct.example"],
    }
    assert summary["clients"] == {"allow": ["loopback"], "users": ["reports"], "admin": ["loopback"]}
    assert summary["destinations"] == {"allow": ["private", "127.0.0.1", "192.0.2.0/24"], "egress": "any"}
    assert (summary["hsts_preload"], summary["via"], summary["workers"]) == (True, "coat", 2)
    assert summary["limits"]["idle_seconds"] == 600


def test_check_says_how_long_an_upstream_may_take() -> None:
    policy = """
        version: 1
        limits: {response_seconds: 20}
        rules:
          - {name: quick, hosts: [quick.example], limits: {response_seconds: 5}}
          - {name: patient, hosts: [patient.example], limits: {response_seconds: null}}
          - {name: any, hosts: ["**.example"]}
    """
    summary = json.loads(run("check", "--json", policy=policy).stdout)
    assert [rule["response_seconds"] for rule in summary["rules"]] == [5, None, 20]
    assert summary["limits"]["response_seconds"] == 20


def test_check_says_where_a_rules_own_hosts_may_be() -> None:
    policy = """
        version: 1
        destinations: {allow: [loopback]}
        rules:
          - {name: search, hosts: [search, 10.1.2.3], plain_http: allow, destinations: {allow: [private]}}
          - {name: other, hosts: [127.0.0.1, 10.1.2.4]}
    """
    result = run("check", policy=policy)
    assert "reaches   public addresses, loopback\n          rule search: public addresses, private\n" in result.stdout
    assert [line.partition(" is never")[0] for line in result.stderr.splitlines()] == ["warning: rule other: 10.1.2.4"]
    rules = json.loads(run("check", "--json", policy=policy).stdout)["rules"]
    assert [rule["destinations"] for rule in rules] == [["private"], None]


def test_what_else_an_entry_marks_and_how_is_shown_by_check_and_explain() -> None:
    more = "graphql_arguments: [ssn]\n        match: ignore_case\n        signed: pass\n        when"
    text = POLICY.replace("match: exact\n        when", more, 1)
    assert more in text
    checked = " ".join(run("check", policy=text).stdout.split())
    assert "GraphQL argument ssn" in checked
    assert "signed or not, in any case" in checked
    explained = run("explain", "-X", "POST", "api.pay.example/v1/x", policy=text).stdout
    assert "$..ssn, GraphQL argument ssn with app (request[0]), signed or not, in any case\n" in explained
