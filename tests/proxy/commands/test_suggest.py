"""`overcoat suggest`: what it reads of decision lines, and that what it writes is a right policy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli import main
from proxy.commands import seen
from proxy.commands.seen import Seen, read_lines
from proxy.commands.suggestion import Findings, https_target, policy_text
from proxy.commands.tried import Keys, Tried
from proxy.core.destinations import Destination
from proxy.core.pins import Pin
from proxy.core.rules.policy import Mode, PlainHttp, Policy
from proxy.policyfile.load import load_policy
from tests.comments import PROTECTIONS, uncomment

PINS = tuple(Pin("spki", bytes(range(number, number + 32))) for number in range(3))


def line(destination: str | None = "api.example:80", **more: object) -> dict[str, Any]:
    """Return a decision line of observe mode."""
    said: dict[str, Any] = {
        "time": "2026-11-30T01:02:03.456+00:00",
        "client": "127.0.0.1",
        "method": "POST",
        "destination": destination,
        "path": "/v1",
        "mode": "observe",
        "action": "allow",
        "reason": None,
        "would_deny": False,
        "would": "upgrade",
    }
    return said | more


def read(*lines: object) -> Seen:
    """Read these lines; text is taken as it is."""
    text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines)
    return read_lines(io.BytesIO(text.encode("utf-8", "surrogateescape")))


def suggested(found: Findings, folder: Path, *, uncommented: tuple[str, ...] = ()) -> Policy:
    """Load what is suggested, after these beginnings of comments were made part of it."""
    text = policy_text(found)
    file = folder / "suggested.yaml"
    file.write_text(uncomment(text, uncommented), "utf-8")
    return load_policy(file, {})


def suggest(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(main, ["suggest", *arguments], input=text)


def test_a_policy_of_what_was_seen(tmp_path: Path) -> None:
    found = read(
        *[line()] * 3,
        line(method="GET", path="/a"),
        line("tls.example:443", method="CONNECT", action="tunnel", would="tunnel", path=""),
        line("no.example:80", would="deny", would_deny=True, reason="plain_http_rejected"),
        line(
            "[::1]:80",
            would="deny",
            would_deny=True,
            reason="destination_forbidden",
            detail="::1 is at a loopback address",
        ),
        line("bücher.example:80"),  # it is not in its canonical form, and so none of ours
        line("a.b.example:8080", method="DELETE", action="upgrade", mode="enforce"),
        line("a-b.example:80"),
    )
    policy = suggested(Findings(found), tmp_path)
    assert policy.mode is Mode.OBSERVE
    rules = {rule.name: rule for rule in policy.rules}
    assert next(iter(rules)) == "api-example"
    assert {str(rule.hosts[0]) for rule in policy.rules} == {
        *("api.example", "tls.example", "no.example", "[::1]", "a.b.example", "a-b.example")
    }
    assert set(rules) >= {"a-b-example", "a-b-example_2", "1"}
    assert all(rule.plain_http is PlainHttp.UPGRADE for rule in policy.rules)
    text = policy_text(Findings(found))
    assert "# 4 x plain http (port 80); POST, GET" in text
    assert "# denied, or it would have been: plain_http_rejected (1 x)" in text
    assert "# destinations: {allow: [loopback]}" in text
    assert "from 10 decision lines, 2026-11-30T01:02 to 2026-11-30T01:02 (UTC)." in text


def test_fields_and_pins_that_are_taken_out_of_their_comments(tmp_path: Path) -> None:
    found = read(
        line(looks_secret={"$.card.number": "card_number", "$.by.*.pwd": "password", "$['a-b']": "token"}),
        line(looks_secret={"$.card.number": "card_number"}, would_encrypt=2),
    )
    upgrades = {"api.example": Tried(Destination("api.example", 443), "/", True, True, "both give 200 with 2 bytes")}
    findings = Findings(found, upgrades, {"api.example": Keys(PINS, "TLSv1.3")})
    text = policy_text(findings)
    assert '#       - "$.card.number"     # card_number, 2 x' in text
    assert "stands as * here" in text
    assert "; 2 fields encrypted" in text
    assert not suggested(findings, tmp_path).rules[0].needs_plaintext
    made = CliRunner().invoke(main, ["keys", "new", "--kid", "receiver-1", "--out", str(tmp_path / "receiver.pem")])
    assert made.exit_code == 0
    (rule,) = suggested(findings, tmp_path, uncommented=PROTECTIONS).rules
    assert rule.pins is not None
    assert rule.pins.any_of == PINS[:2]  # the server's key, and as a backup its CA's
    (entry,) = rule.request
    assert {selector.text for selector in entry.selectors} == {"$.card.number", "$.by.*.pwd", "$['a-b']"}
    (rule,) = suggested(findings, tmp_path, uncommented=(*PROTECTIONS, "# sha256/")).rules
    assert rule.pins is not None


@pytest.mark.parametrize(
    ("tried", "said", "port"),
    [
        (None, "not tried (--try)", None),
        (
            Tried(Destination("api.example", 443), "/v1", True, True, "both"),
            "# Tried /v1: the same answer; both.",
            None,
        ),
        (Tried(Destination("api.example", 443), "/", True, False, "not"), "ANOTHER answer", None),
        (Tried(Destination("api.example", 443), "/", True, None, "none"), "no answer over plain http", None),
        (Tried(Destination("api.example", 8443), "/", True, True, "both"), "https_port: 8443", 8443),
        (
            Tried(Destination("api.example", 443), "/", False, False, "tls_failed: it\n\x1b[31m"),
            "tls_failed: it��[31m",
            None,
        ),
    ],
)
def test_what_came_of_an_upgrade(tried: Tried | None, said: str, port: int | None, tmp_path: Path) -> None:
    findings = Findings(read(line()), {"api.example": tried} if tried else {})
    assert said in policy_text(findings)
    (rule,) = suggested(findings, tmp_path).rules
    assert (rule.plain_http, rule.https_port) == (PlainHttp.UPGRADE, port)


def test_fields_that_are_encrypted_already_are_not_forgotten(tmp_path: Path) -> None:
    words = "take keys and request over"
    assert words in policy_text(Findings(read(line(encrypted=2))))
    assert words not in policy_text(Findings(read(line(encrypted=0))))


def test_keys_that_could_not_be_had(tmp_path: Path) -> None:
    findings = Findings(read(line()), keys={"api.example": Keys((), "tls_failed: no TLS there")})
    assert "# pins: none to be had from api.example:443: tls_failed: no TLS there" in policy_text(findings)
    suggested(findings, tmp_path)


def test_where_https_is_spoken() -> None:
    found = read(
        line("a.example:80"),
        line("b.example:8080"),
        line("c.example:8443", action="tunnel", would="tunnel", method="CONNECT"),
    )
    ports = {name: https_target(name, host).port for name, host in found.hosts.items()}
    assert ports == {"a.example": 443, "b.example": 8080, "c.example": 8443}
    tried = Tried(Destination("a.example", 9443), "/", True, True, "")
    assert https_target("a.example", found.hosts["a.example"], tried) == tried.target


@pytest.mark.parametrize(
    ("text", "torn", "foreign"),
    [
        ("", 0, 0),
        ("\n  \n", 0, 0),
        ('{"time": "2026', 1, 0),
        ("what a log says\n", 1, 0),
        ('{"level": "info", "message": "ready"}\n[]\nnull\n"x"\n1\n', 0, 5),
        ("[" * 100_000, 1, 0),
        ("x" * 300_000 + "\n{}\n", 1, 1),
        ("\x00\xff\n", 1, 0),
        (json.dumps(line(time="2026-11-30T01:02:03Z\nmode: enforce")) + "\n", 0, 1),
        (json.dumps(line(method=1)) + "\n" + json.dumps(line() | {"destination": []}) + "\n", 0, 2),
    ],
)
def test_what_is_no_line_is_counted_and_passed_over(text: str, torn: int, foreign: int) -> None:
    found = read(text, line())
    assert (found.lines, found.torn, found.foreign) == (1, torn, foreign) or not text.endswith("\n")
    if not text.endswith("\n") and text:
        found = read(line(), text)
        assert (found.lines, found.torn, found.foreign) == (1, torn, foreign)


@pytest.mark.parametrize("would", [[], {}, ["upgrade"], 1, None])
def test_of_what_would_be_done_any_form_is_read(would: object) -> None:
    assert read(line(would=would)).lines == 1


def test_nothing_in_a_line_is_believed(tmp_path: Path) -> None:
    found = read(
        line("evil: {}\n#:80"),
        line(None),
        line(reason="client_forbidden", action="deny"),
        line(reason="no_such_reason", would_deny=True),
        line(method="GET", path="/\x1b[31m"),
        line(method="get"),
        line(
            looks_secret={
                "$.a\n": "token",
                "a": "token",
                "$": "token",
                "$.b": "ssn",
                "$.é": "token",
                "$." + "c" * 200: "token",
            }
        ),
        line(looks_secret=["$.a"], would_encrypt="2", encrypted=-1),
        line(reason="destination_forbidden", would_deny=True, detail="it is at a pink address"),
        line(reason="destination_forbidden", would_deny=True, detail=None),
    )
    (host,) = found.hosts.values()
    assert not host.fields
    assert not host.gets
    assert not host.kinds
    assert host.encrypted == 0
    assert set(host.methods) == {"POST", "GET"}
    assert dict(host.denied) == {"destination_forbidden": 2}
    suggested(Findings(found), tmp_path)


def test_what_is_remembered_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST_HOSTS", 2)
    monkeypatch.setattr(seen, "MOST_OTHERS", 3)
    monkeypatch.setattr(seen, "MOST_FIELDS", 3)
    found = read(
        *[line(f"h{number}.example:80") for number in range(5)],
        *[line("h0.example:80", method="GET", path=f"/{number}") for number in range(9)],
        line("h0.example:80", looks_secret={f"$.a{number}": "token" for number in range(9)}),
    )
    assert set(found.hosts) == {"h0.example", "h1.example"}
    assert found.left_out == 3
    assert (len(found.hosts["h0.example"].gets), len(found.hosts["h0.example"].fields)) == (3, 3)
    assert found.hosts["h0.example"].plain[80] == 11
    assert "3 lines of others were left out" in policy_text(Findings(found))


@given(
    st.lists(
        st.builds(
            line,
            st.one_of(st.none(), st.text(max_size=20), st.from_regex(r"\A[a-z0-9.\[\]:-]{1,20}:[0-9]{1,5}\Z")),
            path=st.text(max_size=20),
            method=st.text(max_size=8),
            reason=st.sampled_from([None, "pin_mismatch", "destination_forbidden"]),
            looks_secret=st.dictionaries(st.text(max_size=20).map(lambda text: f"$['{text}']"), st.just("token")),
        ),
        max_size=5,
    )
)
def test_whatever_the_lines_say_the_policy_loads(lines: list[dict[str, Any]]) -> None:
    suggested(Findings(read(*lines)), Path())


class TestCommand:
    def test_it_reads_standard_input_or_a_file(self) -> None:
        text = json.dumps(line()) + "\n"
        Path("lines.json").write_text(text + "torn\n{}\n")
        for result in (suggest(text=text), suggest("-", text=text)):
            assert (result.exit_code, "api.example" in result.stdout) == (0, True)
            assert result.stderr == "1 decision line, 1 host\n"
        result = suggest("lines.json")
        assert 'hosts: ["api.example"]' in result.stdout
        assert "warning: 1 lines are torn" in result.stderr
        assert "warning: 1 lines are no decision lines" in result.stderr

    def test_no_lines_give_a_policy_without_rules(self) -> None:
        result = suggest()
        assert "rules" not in result.stdout
        Path("none.yaml").write_text(result.stdout)
        assert load_policy(Path("none.yaml"), {}).rules == ()

    def test_a_file_that_is_not_there_and_a_wrong_policy_are_said(self) -> None:
        result = suggest("lines.json")
        assert (result.exit_code, "No such file" in result.stderr) == (2, True)
        Path("wrong.yaml").write_text("version: 2\n")
        assert suggest("--try", "-p", "wrong.yaml").exit_code == 2
        assert suggest("-p", "wrong.yaml").exit_code == 0  # nobody is asked, so it is not needed


def test_a_tunnel_that_is_open_is_seen_once() -> None:
    tunnel = {"method": "CONNECT", "path": "", "action": "tunnel", "would": "tunnel", "destination": "api.example:443"}
    seen = read(line(**tunnel, event="opened"), line(**tunnel, event="running"), line(**tunnel))
    assert (seen.lines, seen.hosts["api.example"].https) == (1, {443: 1})
