"""`overcoat check`, `schema` and `explain`."""

from __future__ import annotations

import json
import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.commands.policy import policy_warnings
from proxy.config import load_policy
from proxy.core.clients import hash_password
from proxy.core.keys import Alg, new_key, to_jwk
from proxy.model import schema_text

PIN_A = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PIN_B = "sha256/ISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0A="
JWK = json.dumps(to_jwk(new_key(Alg.A256KW, kid="app-1"), private=True))
TODAY = date(2027, 1, 15)

POLICY = f"""\
version: 1
listen: ["forward://127.0.0.1:0"]
admin: null
keys:
  app: {{alg: A256KW, primary: {{kid: app-1, key: {{env: APP_KEY}}, not_after: 2999-01-01}}}}
rules:
  - name: pay
    hosts: [api.pay.example]
    https_port: 8443
    pins: {{any_of: ["{PIN_A}", "{PIN_B}"], expires: 2999-06-30}}
    request:
      - encrypt: ["$.card.number", "$..ssn"]
        key: app
        when: {{methods: [POST], paths: ["/v1/**"]}}
      - encrypt: ["$.note"]
        key: app
    response:
      - decrypt: ["$.card"]
        key: app
        when: {{methods: [GET]}}
  - name: printer
    hosts: [printer.lan]
    plain_http: allow
    https: inspect
  - name: none
    hosts: ["**.evil.example"]
    plain_http: reject
    https: reject
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder and without variables that are read, so that nothing is found by chance."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("OVERCOAT_")]:
        monkeypatch.delenv(name)


def _run(*arguments: str, policy: str = POLICY) -> Result:
    Path("policy.yaml").write_text(policy)
    runner = CliRunner(env={"OVERCOAT_POLICY": "policy.yaml", "APP_KEY": JWK})
    return runner.invoke(main, arguments, catch_exceptions=False)


def _explained(*arguments: str, policy: str = POLICY) -> list[dict[str, Any]]:
    result = _run("explain", "--json", *arguments, policy=policy)
    assert result.exit_code == 0, result.stderr
    requests = json.loads(result.stdout)["requests"]
    assert isinstance(requests, list)
    return requests


def test_check_shows_what_the_policy_does() -> None:
    result = _run("check")
    assert result.exit_code == 0
    assert result.stderr == ""
    words = " ".join(result.stdout.split())
    assert "policy policy.yaml, mode enforce listen forward://127.0.0.1:0; admin off" in words
    assert "pay api.pay.example upgrade to port 8443 inspect: pins, encrypt, decrypt 2, until 2999-06-30" in words
    assert "printer printer.lan allow inspect: the policy says so" in words
    assert "pay encrypt $.card.number app POST $..ssn /v1/**" in words
    assert "pay encrypt $.note app always" in words
    assert "pay decrypt $.card app GET" in words
    assert "app A256KW app-1 yes 2999-01-01" in words


def test_check_without_a_policy_file_shows_the_built_in_default() -> None:
    result = CliRunner().invoke(main, ["check"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "built-in" in result.stdout


def test_check_prints_json_for_programs() -> None:
    result = _run("check", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["ok"], summary["warnings"], summary["admin"]) == (True, [], None)
    assert summary["keys"] == [
        {
            "name": "app",
            "alg": "A256KW",
            "bind": "place",
            "keys": [{"kid": "app-1", "decrypts": True, "not_after": "2999-01-01"}],
        }
    ]
    pay = summary["rules"][0]
    assert (pay["pins"], pay["pins_expire"], pay["https_why"]) == (
        [PIN_A, PIN_B],
        "2999-06-30",
        "pins, encrypt, decrypt",
    )
    assert pay["encrypt"][0] == {
        "selectors": ["$.card.number", "$..ssn"],
        "key": "app",
        "methods": ["POST"],
        "paths": ["/v1/**"],
    }


def test_check_never_prints_a_key() -> None:
    secret = json.loads(JWK)["k"]
    for arguments in (("check",), ("check", "--json"), ("explain", "api.pay.example")):
        assert secret not in _run(*arguments).output


def test_check_reports_all_errors_with_status_2() -> None:
    result = _run("check", policy="version: 1\nmode: off\nadmin: x\n")
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second, last = result.stderr.splitlines()
    assert first.startswith("policy.yaml:2:7: mode: must be enforce or observe")
    assert second.startswith("policy.yaml:3:8: admin: an address is HOST:PORT")
    assert last == "error: the policy has 2 errors, and is not used"


def test_check_reports_errors_as_json() -> None:
    result = _run("check", "--json", policy="version: 2\n")
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    (error,) = answer["errors"]
    assert (error["file"], error["line"], error["column"], error["path"]) == ("policy.yaml", 1, 10, "version")
    assert result.stderr.endswith("error: the policy has 1 error, and is not used\n")


def test_check_names_a_policy_file_that_is_not_there() -> None:
    result = _run("check", "-p", "no.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("no.yaml: the policy cannot be read: No such file or directory\n")


def _warnings(expires: str, not_after: str, pins: str) -> list[str]:
    text = POLICY.replace("2999-06-30", expires).replace("2999-01-01", not_after)
    Path("policy.yaml").write_text(text.replace(f'["{PIN_A}", "{PIN_B}"]', pins))
    return policy_warnings(load_policy(Path("policy.yaml"), {"APP_KEY": JWK}), TODAY)


TWO_PINS = f'["{PIN_A}", "{PIN_B}"]'


@pytest.mark.parametrize(
    ("expires", "not_after", "pins", "expected"),
    [
        ("2999-06-30", "2999-01-01", TWO_PINS, []),
        (str(TODAY + timedelta(31)), str(TODAY + timedelta(31)), TWO_PINS, []),
        (str(TODAY + timedelta(30)), "2999-01-01", TWO_PINS, ["rule pay: its pins will expire on 2027-02-14"]),
        (str(TODAY), "2999-01-01", TWO_PINS, ["rule pay: its pins will expire on 2027-01-15"]),
        ("2027-01-14", "2999-01-01", TWO_PINS, ["rule pay: its pins expired on 2027-01-14"]),
        ("2999-06-30", "2027-02-14", TWO_PINS, ["key set app: key app-1 will expire on 2027-02-14"]),
        ("2999-06-30", "2027-01-14", TWO_PINS, ["key set app: key app-1 expired on 2027-01-14"]),
        ("2999-06-30", "2999-01-01", f'["{PIN_A}"]', ["rule pay: one pin without a backup"]),
    ],
)
def test_what_needs_attention_soon_is_warned_of(expires: str, not_after: str, pins: str, expected: list[str]) -> None:
    warnings = _warnings(expires, not_after, pins)
    assert len(warnings) == len(expected)
    for warning, start in zip(warnings, expected, strict=True):
        assert warning.startswith(start)


def test_check_prints_warnings_and_succeeds() -> None:
    policy = POLICY.replace("2999-06-30", "2020-01-01")
    result = _run("check", policy=policy)
    assert result.exit_code == 0
    assert result.stderr == "warning: rule pay: its pins expired on 2020-01-01; after that its hosts are denied\n"
    assert len(json.loads(_run("check", "--json", policy=policy).stdout)["warnings"]) == 1


def test_schema_prints_the_json_schema() -> None:
    result = _run("schema")
    assert result.exit_code == 0
    assert result.stdout == schema_text()


def test_explain_tells_the_whole_way_of_a_plain_http_request() -> None:
    (request,) = _explained("-X", "POST", "http://API.pay.example/v1/charges?x=1#y")
    assert request == {
        "scheme": "http",
        "asked": "api.pay.example:80",
        "rule": "pay",
        "action": "upgrade",
        "why": "rule pay says plain_http: upgrade",
        "dials": "api.pay.example:8443",
        "through": None,
        "allowed": [],
        "raw_tcp": False,
        "denied": [],
        "pins": [PIN_A, PIN_B],
        "pins_expire": "2999-06-30",
        "encrypt": [
            {"selectors": ["$.card.number", "$..ssn"], "key": "app", "methods": ["POST"], "paths": ["/v1/**"]},
            {"selectors": ["$.note"], "key": "app", "methods": None, "paths": None},
        ],
        "decrypt": [],
        "other_entries": [{"selectors": ["$.card"], "key": "app", "methods": ["GET"], "paths": None}],
        "places": None,
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.pay.example", [("https", "pay", "inspect", "api.pay.example:443", [])]),
        ("http://printer.lan:631/x", [("http", "printer", "allow", "printer.lan:631", [])]),
        ("https://printer.lan", [("https", "printer", "inspect", "printer.lan:443", [])]),
        ("http://a.evil.example", [("http", "none", "deny", None, ["plain_http_rejected"])]),
        ("https://evil.example", [("https", "none", "deny", None, ["https_rejected"])]),
        ("http://[2606:4700::1]", [("http", None, "upgrade", "[2606:4700::1]:443", [])]),
        ("http://[::1]", [("http", None, "deny", None, ["destination_forbidden"])]),
        ("https://169.254.169.254/latest", [("https", None, "deny", None, ["destination_forbidden"])]),
        ("https://x.localhost", [("https", None, "deny", None, ["destination_forbidden"])]),
        ("https://bücher.example:444", [("https", None, "tunnel", "xn--bcher-kva.example:444", [])]),
        (
            "other.example",
            [("http", None, "upgrade", "other.example:443", []), ("https", None, "tunnel", "other.example:443", [])],
        ),
    ],
)
def test_explain_says_what_the_rules_decide(url: str, expected: list[tuple[object, ...]]) -> None:
    found = [(item["scheme"], item["rule"], item["action"], item["dials"], item["denied"]) for item in _explained(url)]
    assert found == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://api.pay.example", "inspected because rule pay has pins, encrypt, decrypt"),
        ("https://printer.lan", "rule printer says https: inspect"),
        ("http://other.example", "no rule names this host, and the defaults say plain_http: upgrade"),
        ("https://other.example", "no rule names this host, and the defaults say https: tunnel"),
        ("http://evil.example", "rule none rejects plain http to evil.example:80; use https://"),
    ],
)
def test_explain_says_why(url: str, why: str) -> None:
    (request,) = _explained(url)
    assert request["why"].startswith(why)


WAY = """\
version: 1
listen: ["forward://127.0.0.1:0"]
admin: null
defaults: {plain_http: allow}
destinations: {allow: [private, 127.0.0.1, 192.0.2.0/24], egress: EGRESS}
clients: {allow: [loopback], users: [{name: reports, password_hash: "HASH"}]}
upstream_proxy: {url: "https://proxy.example:3128", pins: {any_of: ["PIN"]}, direct: [direct.example]}
hsts_preload: true
via: coat
workers: 2
rules: [{name: database, hosts: ["db.example:5432"], raw_tcp: allow}]
""".replace("PIN", PIN_A).replace("HASH", str(hash_password("x", bytes(16))))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://www.paypal.com", "plain_http: allow, but the host is on the browsers' HSTS preload list"),
        ("http://www.paypal.com", "upgrade: plain http"),
        ("http://127.0.0.1:81", "dials 127.0.0.1:81, through https://proxy.example:3128"),
        ("https://[::1]", "destination_forbidden"),
        ("https://db.example:5432", "raw tcp anything passes here"),
        (
            "https://direct.example",
            "dials direct.example:443, if its address is public or private or 127.0.0.1 or 192",
        ),
    ],
)
def test_explain_knows_the_way_out(url: str, said: str) -> None:
    result = _run("explain", url, policy=WAY.replace("EGRESS", "any"))
    assert said in " ".join(result.stdout.split())


def test_check_says_who_may_use_it_and_where_the_ways_lead() -> None:
    words = " ".join(_run("check", policy=WAY.replace("EGRESS", "listed")).stdout.split())
    assert "clients loopback; with the password of reports reaches" in words
    assert (
        "reaches public addresses, private, 127.0.0.1, 192.0.2.0/24; "
        "through https://proxy.example:3128 (1 pins), but directly direct.example defaults"
    ) in words
    assert "defaults hosts that no rule names are denied (egress: listed)" in words
    assert "workers 2" in words
    assert "database db.example:5432 allow tunnel: and anything else, unseen (raw_tcp)" in words
    summary = json.loads(_run("check", "--json", policy=WAY.replace("EGRESS", "any")).stdout)
    assert summary["upstream_proxy"] == {
        "url": "https://proxy.example:3128",
        "pins": [PIN_A],
        "shows_credentials": False,
        "direct": ["direct.example"],
    }
    assert summary["clients"] == {"allow": ["loopback"], "users": ["reports"]}
    assert summary["destinations"] == {"allow": ["private", "127.0.0.1", "192.0.2.0/24"], "egress": "any"}
    assert (summary["hsts_preload"], summary["via"], summary["workers"]) == (True, "coat", 2)
    assert summary["limits"]["idle_seconds"] == 600


def test_explain_knows_what_has_expired() -> None:
    policy = POLICY.replace("2999-06-30", "2020-01-01").replace("2999-01-01", "2020-01-01")
    (request,) = _explained("http://api.pay.example", policy=policy)
    assert request["denied"] == ["pins_expired", "key_unavailable"]


def test_explain_lists_the_places_of_a_body_without_its_values() -> None:
    Path("body.json").write_text('{"card": {"number": "4111", "ssn": [7]}, "note": "n", "other": 1}')
    (request,) = _explained("--body", "body.json", "http://api.pay.example/v1/charges")
    assert request["places"] == [
        {"path": "$.card.number", "key": "app"},
        {"path": "$.card.ssn", "key": "app"},
        {"path": "$.note", "key": "app"},
    ]
    result = _run("explain", "--body", "body.json", "http://api.pay.example/v1/charges")
    assert "in body  $.card.ssn with app" in result.stdout
    assert "4111" not in result.output


@pytest.mark.parametrize(
    ("body", "url", "denied", "places"),
    [
        ("{", "http://api.pay.example", ["body_not_json"], None),
        ("{", "http://printer.lan", [], []),
        ("{}", "http://api.pay.example", [], []),
        ("[" + ",".join(['{"ssn":1}'] * 200_000) + "]", "http://api.pay.example/v1/x", ["body_too_large"], None),
        ("{", "https://other.example", [], None),
    ],
    ids=["not JSON", "no fields", "nothing selected", "too much selected", "tunnelled"],
)
def test_explain_says_what_a_body_leads_to(
    body: str, url: str, denied: list[str], places: list[dict[str, str]] | None
) -> None:
    Path("body.json").write_text(body)
    (request,) = _explained("--body", "body.json", url)
    assert (request["denied"], request["places"]) == (denied, places)


def test_explain_prints_for_people() -> None:
    result = _run("explain", "api.pay.example/v1/x")
    assert result.exit_code == 0
    assert (
        result.stdout
        == f"""\
GET http://api.pay.example:80/v1/x
  rule     pay
  action   upgrade: plain http from the app leaves as https
  why      rule pay says plain_http: upgrade
  dials    api.pay.example:8443, if its address is public
  pins     one of 2, until 2999-06-30
           {PIN_A}
           {PIN_B}
  encrypt  $.note with app
  decrypt  $.card with app
  not here $.card.number, $..ssn: only POST /v1/**
GET https://api.pay.example:443/v1/x
  rule     pay
  action   inspect: https is opened, checked and sent on as https
  why      inspected because rule pay has pins, encrypt, decrypt
  dials    api.pay.example:443, if its address is public
  pins     one of 2, until 2999-06-30
           {PIN_A}
           {PIN_B}
  encrypt  $.note with app
  decrypt  $.card with app
  not here $.card.number, $..ssn: only POST /v1/**
"""
    )


def test_explain_prints_a_denial_and_the_mode() -> None:
    Path("body.json").write_text("{}")
    policy = POLICY.replace("version: 1\n", "version: 1\nmode: observe\n")
    lines = _run("explain", "https://evil.example", policy=policy).stdout.splitlines()
    assert "  dials    nothing" in lines
    assert "  denied   https_rejected" in lines
    assert lines[-1].startswith("The mode is observe")
    lines = _run("explain", "--body", "body.json", "http://printer.lan").stdout.splitlines()
    assert "  in body  nothing to encrypt" in lines


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x.example", "write http://…, https://…, or only a host"),
        ("http://user@x.example/", "userinfo"),
        ("http://x.example:0/", "port '0'"),
        ("http:///v1", "the host is empty"),
        ("http://127.1/", "dotted-quad"),
        ("http://bü cher.example/", "UTS 46"),
    ],
)
def test_explain_refuses_what_is_no_url(url: str, message: str) -> None:
    result = _run("explain", url)
    assert result.exit_code == 2
    assert message in result.stderr


def test_explain_refuses_a_body_that_is_too_large_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("body.json").write_text("[1,2]")
    monkeypatch.setattr("proxy.commands.explain._MAX_BODY_BYTES", 5)
    assert _run("explain", "--body", "body.json", "x.example").exit_code == 0
    monkeypatch.setattr("proxy.commands.explain._MAX_BODY_BYTES", 4)
    result = _run("explain", "--body", "body.json", "x.example")
    assert result.exit_code == 2
    assert "more than 4 bytes" in result.stderr


def test_explain_refuses_a_wrong_policy_with_status_2() -> None:
    result = _run("explain", "x.example", policy="version: 2\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("policy.yaml:1:10: version: ")
