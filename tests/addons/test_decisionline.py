"""A decision line is what `json.dumps` would write of the same facts, whoever chose them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy.test import tflow

from addons.decisionline import MAX_METHOD, MAX_PATH, Event, line_of
from addons.exchange import Exchange
from addons.upstream import Upstream
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.pins import PinVerdict
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule

RULE = Rule('a "rule"', (HostPattern("exact", "a.example"),), PlainHttp.UPGRADE, Https.TUNNEL)
DENIED = Denied(Reason.BODY_NOT_JSON, 'a "quoted" detail — and more')
COMMON = [
    *(
        "time",
        "id",
        "client",
        "user",
        "trace_id",
        "method",
        "destination",
        "upstream",
        "path",
        "rule",
        "mode",
        "action",
        "outcome",
        "reason",
        "would_deny",
    ),
    *("tls", "key_exchange", "pin", "encrypted", "decrypted", "status", "bytes_sent", "bytes_received", "seconds"),
]
WITH_FIELDS = [*COMMON[: COMMON.index("status")], "fields", *COMMON[COMMON.index("status") :]]
_SELECTORS, _KEYS = (parse_selector("$.card"),), KeySet("k", Alg.A256KW, new_key(Alg.A256KW))
ENTRIES = (
    FieldEntry(_SELECTORS, _KEYS, name="request[0]"),
    FieldEntry(_SELECTORS, _KEYS, name="request[1]"),
    FieldEntry(_SELECTORS, _KEYS, Work.DECRYPT, name="response[0]"),
)


def exchange(mode: Mode = Mode.ENFORCE, **more: object) -> Exchange:
    """Return an exchange that was decided."""
    found = Exchange(Policy(mode=mode), "127.0.0.1", "POST", "/")
    found.decision = Decision(Action.UPGRADE)
    for name, value in more.items():
        setattr(found, name, value)
    return found


def read(line: str) -> dict[str, object]:
    """Read a line, and see that it is written as `json.dumps` writes."""
    found: dict[str, object] = json.loads(line)
    assert re.sub(r"(?<=\"seconds\": )([0-9]+\.[0-9]{6})(?=[,}])", lambda n: repr(float(n[1])), line, count=1) == (
        json.dumps(found) + "\n"
    )
    return found


def test_it_says_all_that_is_known_in_its_order() -> None:
    flow = tflow.tflow()
    flow.server_conn.tls_version = "TLSv1.3"
    it = exchange(asked=Destination("::1", 80), rule=RULE, path="/p", started=1_800_000_000.1239, outcome=Outcome.OK)
    it.user, it.trace_id = "ann", "4bf92f3577b34da6a3ce929d0e0e4736"
    it.upstream = Upstream(it.policy, RULE, pin=PinVerdict.MATCH, address="127.0.0.3:8443", group="x25519")
    it.bytes_sent, it.bytes_received = 3, 4
    it.count_fields(ENTRIES, (0, 1, 2))
    said = read(line_of(it, 201, flow, 0.00000123))
    assert list(said) == WITH_FIELDS
    assert said == {
        "time": "2027-01-15T08:00:00.123+00:00",
        "id": it.id,
        "client": "127.0.0.1",
        "user": "ann",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "method": "POST",
        "destination": "[::1]:80",
        "upstream": "127.0.0.3:8443",
        "path": "/p",
        "rule": 'a "rule"',
        "mode": "enforce",
        "action": "upgrade",
        "outcome": "ok",
        "reason": None,
        "would_deny": False,
        "tls": "TLSv1.3",
        "key_exchange": "x25519",
        "pin": "match",
        "encrypted": 1,
        "decrypted": 2,
        "fields": {"request[1]": 1, "response[0]": 2},
        "status": 201,
        "bytes_sent": 3,
        "bytes_received": 4,
        "seconds": 1e-06,
    }


def test_what_failed_says_which_entry_and_why_and_a_line_without_fields_has_none_of_it() -> None:
    it = exchange()
    it.count_fields(ENTRIES, (0, 0, 0))
    assert it.fields is None
    for reason in (Reason.DECRYPTION_FAILED, Reason.BODY_TOO_LARGE, Reason.DECRYPTION_FAILED):
        it.count_failure("response[0]", reason)
    said = read(line_of(it, 200, None, 1.0))
    assert said["field_failures"] == {"response[0]": {"decryption_failed": 2, "body_too_large": 1}}
    assert (said["encrypted"], said["decrypted"], "fields" in said) == (0, 0, False)


def test_what_is_not_known_is_null() -> None:
    said = read(line_of(exchange(app_left=True), None, None, 1.0))
    assert [said[name] for name in ("destination", "rule", "reason", "tls", "pin", "status")] == [None] * 6
    assert said["detail"] == "the app ended it before the response was complete"
    assert "detail" not in read(line_of(exchange(method="CONNECT"), None, None, 1.0))


def test_what_is_not_about_an_end_has_no_outcome_and_says_what_it_is_about() -> None:
    it = exchange(method="CONNECT", bytes_sent=7)
    for event in Event:
        said = read(line_of(it, None, None, 1.0, event))
        assert list(said) == [*COMMON, "event"]
        assert (said["event"], said["outcome"], said["bytes_sent"], said["id"]) == (event, None, 7, it.id)


def test_a_denial_says_why() -> None:
    said = read(line_of(exchange(denied=DENIED), 422, None, 1.0))
    assert list(said) == [*COMMON, "detail"]
    assert (said["action"], said["reason"], said["detail"]) == ("deny", "body_not_json", DENIED.detail)


def test_observe_mode_says_what_would_have_been() -> None:
    it = exchange(Mode.OBSERVE, denied=DENIED)
    it.count_fields(ENTRIES[:2], (2, 3))
    said = read(line_of(it, 200, None, 1.0))
    wanted = ("would", "would_upgrade", "would_encrypt", "would_fields", "would_pin", "detail")
    assert list(said) == [*COMMON, *wanted]
    assert said["would_fields"] == {"request[0]": 2, "request[1]": 3}
    assert (said["encrypted"], said["would"], said["would_encrypt"], said["would_deny"]) == (0, "deny", 5, True)
    assert (said["would_upgrade"], said["would_pin"]) == (False, None)
    it.break_off(Denied(Reason.UPSTREAM_FAILED, "it broke"))
    said = read(line_of(it, 502, None, 1.0))
    assert said["detail"] == "it broke; enforcing would have denied it: body_not_json"


@pytest.mark.parametrize(("of_rule", "mode"), [(Mode.OBSERVE, Mode.ENFORCE), (Mode.ENFORCE, Mode.OBSERVE)])
def test_the_mode_is_that_of_the_rule(of_rule: Mode, mode: Mode) -> None:
    it = Exchange(Policy(mode=mode), "127.0.0.1", "POST", "/")
    rule = replace(RULE, mode=of_rule)
    it.settle(rule, Decision(Action.UPGRADE))
    it.upstream = Upstream(it.policy, rule, pin=PinVerdict.MISMATCH)
    said = read(line_of(it, 200, None, 1.0))
    assert said["mode"] == of_rule.value
    assert said.get("would_upgrade") is (True if of_rule is Mode.OBSERVE else None)
    assert said.get("would_pin") == ("mismatch" if of_rule is Mode.OBSERVE else None)
    assert said["action"] == ("allow" if of_rule is Mode.OBSERVE else "upgrade")


def test_two_lines_that_differ_in_one_thing_do_so_in_their_text() -> None:
    """What was put together for one is not taken for another."""
    facts: list[tuple[dict[str, Any], int]] = [
        ({}, 200),
        ({}, 201),
        ({"rule": RULE}, 200),
        ({"denied": DENIED}, 200),
        ({"client": "127.0.0.2"}, 200),
        ({"asked": Destination("a.example", 80)}, 200),
        ({"asked": Destination("a.example", 81)}, 200),
        ({"observing": True}, 200),
        ({"decision": Decision(Action.ALLOW)}, 200),
        ({"started": 0.001}, 200),
        ({"started": 1.0}, 200),
    ]
    lines = {line_of(exchange(**{"started": 0.0, **more}), status, None, 1.0) for more, status in facts}
    assert len(lines) == 11


@pytest.mark.parametrize("started", [0.0, 1.0, 951_782_400.0, 1_795_982_052.999, 4_102_444_799.25])
def test_the_time_is_that_of_the_start_in_utc(started: float) -> None:
    said = read(line_of(exchange(started=started), 200, None, 1.0))
    assert said["time"] == datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds")


@given(st.text(), st.text(max_size=20))
@example('/"}\n{"x":"', "\u2028")
@example("/\udc80\x00\x1b", "GET")
def test_whatever_the_app_chose_is_one_line_of_ascii(path: str, method: str) -> None:
    line = line_of(exchange(path=path, method=method), 200, None, 1.0)
    assert line.isascii()
    assert line.count("\n") == 1
    said = read(line)
    assert (said["path"], said["method"]) == (path, method)


@pytest.mark.parametrize("length", [MAX_PATH, MAX_PATH + 1])
def test_a_path_is_cut_where_it_is_too_long(length: int) -> None:
    said = read(line_of(exchange(path="/" + "a" * (length - 1)), 200, None, 1.0))
    assert said["path"] == "/" + "a" * (MAX_PATH - 1) + "…" * (length > MAX_PATH)


@pytest.mark.parametrize("length", [MAX_METHOD, MAX_METHOD + 1])
def test_so_is_a_method(length: int) -> None:
    said = read(line_of(exchange(method="M" * length), 200, None, 1.0))
    assert said["method"] == "M" * MAX_METHOD + "…" * (length > MAX_METHOD)
