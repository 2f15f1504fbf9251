"""`overcoat explain`: what it says of a request is what would be done with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.commands.bodymarks import MOST_SHOWN, shown_body
from proxy.core.fields.jsontext import Span
from tests.proxy.commands.policies import PIN_A, PIN_B, POLICY, WAY, run

AS_EVER = {"envelope": None, "rename": None}
SEALED_AS_EVER = {
    "signed": "deny",
    "digests": "deny",
    "signed_headers": [],
    "already_sealed": "keep",
    "pad": 1,
    "graphql_arguments": [],
    "required": False,
    "other_bodies": "deny",
}


def explained(*arguments: str, policy: str = POLICY) -> list[dict[str, Any]]:
    result = run("explain", "--json", *arguments, policy=policy)
    assert result.exit_code == 0, result.stderr
    requests = json.loads(result.stdout)["requests"]
    assert isinstance(requests, list)
    return requests


def test_explain_tells_the_whole_way_of_a_plain_http_request() -> None:
    (request,) = explained("-X", "POST", "http://API.pay.example/v1/charges?x=1#y")
    assert request == {
        "scheme": "http",
        "mirror": None,
        "asked": "api.pay.example:80",
        "rule": "pay",
        "mode": "enforce",
        "action": "upgrade",
        "why": "rule pay says plain_http: upgrade",
        "dials": "api.pay.example:8443",
        "through": None,
        "allowed": [],
        "raw_tcp": False,
        "strict": True,
        "client_certificate": None,
        "denial": None,
        "denied": [],
        "pins": [PIN_A, PIN_B],
        "pins_expire": "2999-06-30",
        "pins_life": "until 2999-06-30",
        "encrypt": [
            {
                "name": "request[0]",
                "selectors": ["$.card.number", "$..ssn"],
                "form": [],
                "key": "app",
                "match": "exact",
                "methods": ["POST"],
                "paths": ["/v1/**"],
                **AS_EVER,
                **SEALED_AS_EVER,
            },
            {
                "name": "request[1]",
                "selectors": ["$.note"],
                "form": [],
                "key": "app",
                "match": "exact",
                "methods": None,
                "paths": None,
                **AS_EVER,
                **SEALED_AS_EVER,
            },
        ],
        "decrypt": [],
        "other_entries": [
            {
                "name": "response[0]",
                "selectors": ["$.card"],
                "form": [],
                "key": "app",
                "match": "exact",
                "methods": ["GET"],
                "paths": None,
                "on_failure": "deny",
                **AS_EVER,
            },
        ],
        "signed_by": None,
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
    found = [(item["scheme"], item["rule"], item["action"], item["dials"], item["denied"]) for item in explained(url)]
    assert found == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://api.pay.example", "inspected because rule pay has pins, encrypt, decrypt"),
        ("https://printer.lan", "rule printer says https: inspect"),
        ("http://other.example", "no rule names this host, and the defaults say plain_http: upgrade"),
        ("https://other.example", "no rule names this host, and the defaults say https: tunnel"),
        ("http://evil.example", "rule none rejects plain http to evil.example:80"),
    ],
)
def test_explain_says_why(url: str, why: str) -> None:
    (request,) = explained(url)
    assert request["why"].startswith(why)


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
    result = run("explain", url, policy=WAY.replace("EGRESS", "any"))
    assert said in " ".join(result.stdout.split())


def test_explain_knows_what_has_expired() -> None:
    policy = POLICY.replace("2999-06-30", "2020-01-01").replace("2999-01-01", "2020-01-01")
    (request,) = explained("http://api.pay.example", policy=policy)
    assert request["denied"] == ["pins_expired", "key_unavailable"]


def test_explain_lists_the_places_of_a_body_and_marks_them_in_it() -> None:
    Path("body.json").write_text('{"card": {"number": "4111", "ssn": [7]}, "note": "n", "other": 1}')
    (request,) = explained("--body", "body.json", "http://api.pay.example/v1/charges")
    assert request["places"] == [
        {"path": "$.card.number", "key": "app", "start": 20, "end": 26},
        {"path": "$.card.ssn", "key": "app", "start": 35, "end": 38},
        {"path": "$.note", "key": "app", "start": 49, "end": 52},
    ]
    assert "4111" not in json.dumps(request)
    result = run("explain", "--body", "body.json", "http://api.pay.example/v1/charges")
    assert "in body  $.card.ssn with app" in result.stdout
    marked = '{"card": {"number": ⟦"4111"⟧, "ssn": ⟦[7]⟧}, "note": ⟦"n"⟧, "other": 1}'
    assert result.stdout.endswith(f"\n{marked}\n")


FORMS = POLICY.replace('encrypt: ["$.note"]', 'encrypt: ["$.note"]\n        form: [note]')


@pytest.mark.parametrize(
    ("content_type", "body", "marked"),
    [
        ("application/x-www-form-urlencoded", b"a=1&note=%41+b&c", "a=1&note=⟦%41+b⟧&c"),
        ("application/x-ndjson", b'{"note":1}\n{"a":2}\n{"note":3}', '{"note":⟦1⟧}\n{"a":2}\n{"note":⟦3⟧}'),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=note\r\n\r\nx\x1b[1m\r\n--b--",
            "--b\nContent-Disposition: form-data; name=note\n\n⟦x\\x1b[1m⟧\n--b--",
        ),
        ("application/json", b'{"note":1, "x":"\xff"}', None),
        ("text/plain", b"note=1", None),
    ],
)
def test_explain_marks_bodies_of_every_kind(content_type: str, body: bytes, marked: str | None) -> None:
    Path("body").write_bytes(body)
    url = "http://api.pay.example/v9"
    header = f"Content-Type: {content_type}"
    (request,) = explained("--body", "body", "-H", header, url, policy=FORMS)
    stdout = run("explain", "--body", "body", "-H", header, url, policy=FORMS).stdout
    if marked is None:
        assert request["denied"] == ["body_not_json"]
        assert request["places"] is None
        return
    assert request["denied"] == []
    assert [place["path"] for place in request["places"]] == ["$.note"] * marked.count("⟦")
    assert stdout.endswith(f"\n{marked}\n")


def test_explain_marks_in_colour_on_a_terminal_and_shows_only_the_beginning() -> None:
    body = b"a" * 10 + b"b" * 5 + b"c" * MOST_SHOWN
    spans = [Span(10, 15, "$", 0), Span(MOST_SHOWN, MOST_SHOWN + 5, "$", 0)]
    shown = shown_body(body, spans, is_terminal=True)
    assert shown.startswith("a" * 10 + "\x1b[7mbbbbb\x1b[0mc")
    assert shown.endswith("c\n… and 15 bytes more")


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
    (request,) = explained("--body", "body.json", url)
    assert (request["denied"], request["places"]) == (denied, places)


def test_explain_prints_for_people() -> None:
    result = run("explain", "api.pay.example/v1/x")
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
  encrypt  $.note with app (request[1])
  decrypt  $.card with app (response[0])
  not here $.card.number, $..ssn (request[0]): only POST /v1/**
GET https://api.pay.example:443/v1/x
  rule     pay
  action   inspect: https is opened, checked and sent on as https
  why      inspected because rule pay has pins, encrypt, decrypt
  dials    api.pay.example:443, if its address is public
  pins     one of 2, until 2999-06-30
           {PIN_A}
           {PIN_B}
  encrypt  $.note with app (request[1])
  decrypt  $.card with app (response[0])
  not here $.card.number, $..ssn (request[0]): only POST /v1/**
"""
    )


def test_explain_prints_a_denial_and_the_mode() -> None:
    Path("body.json").write_text("{}")
    policy = POLICY.replace("version: 1\n", "version: 1\nmode: observe\n")
    lines = run("explain", "https://evil.example", policy=policy).stdout.splitlines()
    assert "  dials    nothing" in lines
    assert "  denied   https_rejected" in lines
    assert lines[2].startswith("  mode     observe: all this is decided")
    lines = run("explain", "--body", "body.json", "http://printer.lan").stdout.splitlines()
    assert "  in body  nothing to encrypt: no marked field is in it" in lines


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x.example", "write http://…, https://…, or only a host"),
        ("http://user@x.example/", "userinfo"),
        ("http://x.example:0/", "the port is not a number"),
        ("http:///v1", "the host is empty"),
        ("http://127.1/", "dotted-quad"),
        ("http://bü cher.example/", "UTS 46"),
    ],
)
def test_explain_refuses_what_is_no_url(url: str, message: str) -> None:
    result = run("explain", url)
    assert result.exit_code == 2
    assert message in result.stderr


def test_explain_refuses_a_body_that_is_too_large_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("body.json").write_text("[1,2]")
    monkeypatch.setattr("proxy.commands.explain._MAX_BODY_BYTES", 5)
    assert run("explain", "--body", "body.json", "x.example").exit_code == 0
    monkeypatch.setattr("proxy.commands.explain._MAX_BODY_BYTES", 4)
    result = run("explain", "--body", "body.json", "x.example")
    assert result.exit_code == 2
    assert "more than 4 bytes" in result.stderr


def test_explain_refuses_a_wrong_policy_with_status_2() -> None:
    result = run("explain", "x.example", policy="version: 2\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("policy.yaml:1:10: version: ")


def test_explain_knows_where_a_rules_own_hosts_may_be() -> None:
    policy = """
        version: 1
        destinations: {allow: [loopback]}
        rules: [{name: search, hosts: [search, 10.1.2.3, "[::1]"], plain_http: allow, destinations: {allow: [private]}}]
    """
    assert "dials search:9200, if its address is public or private" in " ".join(
        run("explain", "http://search:9200", policy=policy).stdout.split()
    )
    for url, denied in (("http://10.1.2.3", []), ("http://10.1.2.4", ["destination_forbidden"])):
        assert explained(url, policy=policy)[0]["denied"] == denied
    (request,) = explained("http://[::1]", policy=policy)
    assert (request["rule"], request["denied"]) == ("search", ["destination_forbidden"])


@pytest.mark.parametrize("mode", ["mode: observe", "mode: enforce"])
def test_explain_shows_the_denial_that_enforcing_would_give(mode: str) -> None:
    Path("body.json").write_text("{")
    arguments = ("--body", "body.json", "http://api.pay.example/")
    (request,) = explained(*arguments, policy=POLICY.replace("version: 1\n", f"version: 1\n{mode}\n"))
    (of_rule,) = explained(*arguments, policy=POLICY.replace("- name: pay\n", f"- name: pay\n    {mode}\n"))
    for found in (request, of_rule):
        assert found["mode"] == mode.removeprefix("mode: ")
        assert found["denial"]["status"] == 422
        assert found["denial"]["detail"].startswith("the body has fields to protect, but: ")


class TestSigned:
    FIELD = "X-Hub-Signature-256: sha256=0123456789abcdef"
    URL = "https://api.pay.example/v1/x"

    @pytest.mark.parametrize(
        ("signed", "body", "denied"),
        [
            ("deny", '{"note":1}', ["signed_body"]),
            ("deny", '{"other":1}', []),
            ("pass", '{"note":1}', []),
        ],
    )
    def test_a_signed_body_is_denied_where_a_field_of_it_must_be_encrypted(
        self, tmp_path: Path, signed: str, body: str, denied: list[str]
    ) -> None:
        file = tmp_path / "body.json"
        file.write_text(body)
        policy = POLICY.replace('["$.note"]\n', f'["$.note"]\n        signed: {signed}\n')
        (request,) = explained("-H", self.FIELD, "--body", str(file), self.URL, policy=policy)
        assert (request["denied"], request["signed_by"]) == (denied, "the field X-Hub-Signature-256")

    def test_it_says_so_in_words_without_a_body_too(self) -> None:
        for policy, what in (
            (POLICY, "denied where a field must be"),
            (POLICY.replace("key: app\n", "key: app\n        signed: pass\n", 2), "passes"),
        ):
            result = run("explain", "-X", "POST", "-H", self.FIELD, self.URL, policy=policy)
            assert result.exit_code == 0, result.stderr
            assert f"the field X-Hub-Signature-256 covers the body: {what}" in result.stdout

    def test_the_query_counts_and_a_request_without_fields_to_encrypt_is_not_looked_at(self) -> None:
        assert (
            explained("-X", "POST", f"{self.URL}?X-Amz-Signature=1#x")[0]["signed_by"] == "x-amz-signature in the query"
        )
        assert explained("-H", self.FIELD, "https://printer.lan/x")[0]["signed_by"] is None

    @pytest.mark.parametrize("field", ["X-Sig", ": x", " X: y", "X : y", "\u00fc: y"])
    def test_what_is_no_header_field_is_wrong_use(self, field: str) -> None:
        result = run("explain", "-H", field, self.URL, policy=POLICY)
        assert result.exit_code == 2
        assert "NAME: VALUE" in result.stderr


def test_check_says_where_signed_bodies_are_encrypted_all_the_same() -> None:
    policy = POLICY.replace('["$.note"]\n', '["$.note"]\n        signed: pass\n')
    result = run("check", policy=policy)
    assert result.stdout.count("signed or not") == 1
    assert "signed or not" not in run("check", policy=POLICY).stdout
