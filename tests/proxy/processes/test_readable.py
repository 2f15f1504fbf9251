"""A decision line for people says the same, and never controls their terminal."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.processes.readable import form_for, readable

LINE: dict[str, Any] = {
    "time": "2026-11-30T01:02:03.456+00:00",
    "client": "127.0.0.1",
    "method": "POST",
    "destination": "api.example:80",
    "path": "/v1",
    "rule": "pay",
    "mode": "enforce",
    "action": "upgrade",
    "outcome": "ok",
    "reason": None,
    "would_deny": False,
    "pin": "match",
    "encrypted": 2,
    "decrypted": 0,
    "status": 201,
    "seconds": 0.0123,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*, coloured: bool = False, **more: Any) -> str:
    """Return the line for people, without its line feed."""
    text = readable(json.dumps(LINE | more).encode(), has_colours=coloured).decode()
    assert text.count("\n") == 1
    return text.removesuffix("\n")


def test_a_request() -> None:
    assert shown() == "01:02:03 POST    api.example:80/v1 upgrade 201 12ms [pay] encrypted 2 pin match"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"destination": None, "path": "", "status": None, "rule": None, "seconds": None}, "POST    ? upgrade - - enc"),
        (
            {"action": "deny", "outcome": "denied", "reason": "pin_mismatch", "detail": "why"},
            "pin match pin_mismatch why",
        ),
        ({"outcome": "upstream_cut", "reason": "upstream_cut"}, "upgrade upstream_cut 201"),
        ({"mode": "observe", "action": "allow", "would": "upgrade", "would_encrypt": 3}, "would upgrade, encrypt 3"),
        (
            {
                "mode": "observe",
                "action": "allow",
                "would": "deny",
                "would_deny": True,
                "reason": "plain_http_rejected",
            },
            "would deny plain_http_rejected",
        ),
        ({"decrypted": 1}, "decrypted 1"),
        ({"encrypted": 2, "fields": {"request[0]": 2}}, "encrypted 2 pin"),
        (
            {"encrypted": 2, "fields": {"request[0]": 1, "request[2]": 1}},
            "encrypted 2 (1 by request[0], 1 by request[2]) pin",
        ),
        (
            {"field_failures": {"response[0]": {"decryption_failed": 3, "body_too_large": 1}}},
            "failed response[0] (decryption_failed, body_too_large) pin",
        ),
        ({"path": "/" + "a" * 300}, "/" + "a" * 159 + "… upgrade"),
        ({"seconds": 12.4}, "201 12s"),
        ({"action": "tunnel", "outcome": None, "event": "opened", "status": None}, "tunnel opened - "),
        ({"user": "reports"}, "[pay] user reports enc"),
    ],
)
def test_what_else_there_may_be(more: dict[str, Any], said: str) -> None:
    assert said in shown(**more)


def test_colours_add_nothing_but_themselves() -> None:
    others: tuple[dict[str, Any], ...] = (
        {},
        {"action": "deny", "reason": "x", "outcome": "denied"},
        {"mode": "observe", "would": "deny"},
    )
    for more in others:
        coloured = shown(coloured=True, **more)
        assert re.sub(r"\x1b\[[0-9]+m", "", coloured) == shown(**more)
    assert "\x1b[32mupgrade\x1b[0m" in shown(coloured=True)
    assert "\x1b[31mdeny\x1b[0m" in shown(coloured=True, action="deny")


@given(st.dictionaries(st.sampled_from([*LINE, "detail", "would"]), st.text(st.characters(), max_size=20)))
def test_nothing_that_anybody_chose_controls_the_terminal(more: dict[str, Any]) -> None:
    texts: dict[str, Any] = {name: text for name, text in more.items() if name not in ("encrypted", "decrypted")}
    assert shown(**texts).isprintable()


@pytest.mark.parametrize("path", ["/\x1b[2J", "/\r\n2026", "/\u202eexe", "/\u2028", "/\x9b31m", "/\x07", "/\udc80"])
def test_not_even_by_the_better_known_ways(path: str) -> None:
    assert "�" in shown(path=path)
    assert shown(path=path).isprintable()


@pytest.mark.parametrize(
    ("stream", "wanted", "env", "is_text", "has_colours"),
    [
        (Terminal(), None, {}, True, True),
        (Terminal(), None, {"NO_COLOR": "1"}, True, False),
        (Terminal(), None, {"NO_COLOR": ""}, True, True),
        (Terminal(), None, {"TERM": "dumb"}, True, False),
        (Terminal(), "json", {}, False, False),
        (Terminal(), "text", {}, True, True),
        (io.StringIO(), None, {}, False, False),
        (io.StringIO(), "text", {}, True, False),
        (None, None, {}, False, False),
        (None, "text", {}, True, False),
    ],
)
def test_the_form_is_that_of_the_stream_unless_another_one_is_wanted(
    stream: io.StringIO | None, wanted: str | None, env: dict[str, str], is_text: bool, has_colours: bool
) -> None:
    form = form_for(stream, wanted, env)
    assert (form is not None) is is_text
    if form is not None:
        assert (b"\x1b" in form(json.dumps(LINE).encode())) is has_colours
