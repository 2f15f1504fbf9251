"""The sums of decision lines."""

from __future__ import annotations

from typing import Any

from proxy.wearing import tally
from proxy.wearing.tally import Tally

LINE: dict[str, Any] = {
    "destination": "api.example:443",
    "action": "upgrade",
    "outcome": "ok",
    "reason": None,
    "would_deny": False,
    "pin": None,
    "encrypted": 0,
    "decrypted": 0,
}


def taken(*lines: dict[str, Any]) -> Tally:
    sums = Tally()
    for line in lines:
        sums.take(LINE | line)
    return sums


def test_what_was_done_is_added_up() -> None:
    sums = taken(
        {"encrypted": 2, "pin": "match"},
        {"decrypted": 1},
        {"action": "deny", "outcome": "denied", "reason": "pin_mismatch"},
    )
    assert (sums.total, sums.actions) == (3, {"upgrade": 2, "deny": 1})
    assert (sums.encrypted, sums.decrypted, sums.pins) == (2, 1, {"match": 1})
    assert sums.denials == {("pin_mismatch", "api.example:443"): 1}
    assert sums.hosts == {"api.example:443": 3}
    assert not sums.failed.total()


def test_what_failed_is_told_from_what_was_denied() -> None:
    sums = taken(
        {"outcome": "upstream_failed", "reason": "tls_failed"},
        {"action": "deny", "outcome": "denied", "reason": "pin_mismatch"},
        {},
    )
    assert sums.failed == {"upgrade": 1}


def test_what_failed_is_no_denial() -> None:
    sums = taken({"outcome": "upstream_failed", "reason": "tls_failed"}, {"outcome": "app_left"}, {"outcome": "idle"})
    assert not sums.denials
    assert sums.failures == {("tls_failed", "api.example:443"): 1, ("app_left", "api.example:443"): 1}


def test_what_enforcing_would_have_done_is_added_up() -> None:
    would = {"action": "allow", "would": "upgrade", "would_encrypt": 2}
    sums = taken(would, would | {"would_deny": True, "would_encrypt": 0})
    assert (sums.would, sums.would_encrypt) == ({"upgrade": 1, "deny": 1}, 2)


def test_a_tunnel_that_is_open_says_nothing_new() -> None:
    sums = taken({"event": "opened", "outcome": None}, {"event": "running", "outcome": None}, {})
    assert (sums.total, sums.failures) == (1, {})


def test_many_hosts_take_no_more_room(monkeypatch: Any) -> None:
    monkeypatch.setattr(tally, "MOST", 2)
    sums = taken(*({"destination": f"{number}:1", "outcome": "denied", "reason": "x"} for number in range(5)))
    assert sums.hosts == {"0:1": 1, "1:1": 1, "others": 3}
    assert sums.denials.total() == sums.total == 5


def test_a_request_without_a_destination_counts() -> None:
    assert taken({"destination": None, "outcome": "denied", "reason": "bad_request"}).denials == {
        ("bad_request", "?"): 1
    }
