"""The page made of what is to be shown: nothing that a peer chose becomes part of it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import CollectorRegistry

from proxy.core.rules.policy import Policy
from proxy.processes.recent import Recent
from proxy.processes.status import Sidecar, Status
from proxy.processes.statuspage import rate, shown, size, span, status_pages

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202eevil\"' onload=x"


def view(**line: Any) -> dict[str, Any]:
    status = Status(Sidecar("1.2.3", 1, 0.0, CollectorRegistry(), lambda: True, Policy, lambda: 0.0, [Recent()]))
    told = status.view()
    whole = {
        "time": "2026-03-01T12:00:00.000+00:00", "client": "192.0.2.1", "method": "GET", "destination": "a.example:80",
        "path": "/", "rule": None, "mode": "enforce", "action": "upgrade", "outcome": "ok", "reason": None, "pin": None,
        "encrypted": 0, "decrypted": 0, "status": 200, "seconds": 0.012, "user": None,
    }  # fmt: skip
    told["decisions"] = [whole | line] if line else []
    return told


def get(told: dict[str, Any], path: str = "/", accept: str = "text/html") -> tuple[dict[str, str], str]:
    environ: dict[str, Any] = {"HTTP_ACCEPT": accept}
    setup_testing_defaults(environ)
    fields: dict[str, str] = {}

    def start(_status: str, listed: list[tuple[str, str]], *_: object) -> Any:
        fields.update(listed)

    return fields, b"".join(status_pages(lambda: told)[path](environ, start)).decode("utf-8")


class Tags(HTMLParser):
    """The tags of a page, and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(params=["client", "user", "method", "destination", "path", "rule", "reason", "detail"])
def hostile(request: pytest.FixtureRequest) -> str:
    line = {request.param: HOSTILE, **({"reason": "pin_mismatch"} if request.param == "detail" else {})}
    return get(view(**line))[1]


def test_what_a_peer_chose_is_text_and_all_of_it_is_seen(hostile: str) -> None:
    plain = [(tag, set(fields)) for tag, fields in Tags(get(view(path="/x", reason="r"))[1]).found]
    tags = Tags(hostile).found
    assert [tag for tag, _ in tags if tag == "script"] == ["script"]
    assert not any(name.startswith("on") for _, fields in tags for name in fields)
    assert {tag for tag, _ in tags} <= {tag for tag, _ in plain}
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile
    assert html.escape(r"\x1b[31m\u202eevil", quote=False) in hostile


def test_nothing_is_inline_or_from_elsewhere() -> None:
    fields, page = get(view(path="/x"))
    for tag, attributes in Tags(page).found:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert re.fullmatch(r"/[a-z.]*", attributes.get(name) or "/"), (tag, attributes)
    assert "<style" not in page
    assert re.fullmatch(r'(?s).*<script src="/status.js" defer></script>(?!.*<script).*', page)
    policy = dict(part.strip().split(" ", 1) for part in fields["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert fields["Cache-Control"] == "no-store"


def test_its_own_files_load_nothing_either() -> None:
    for path, kind in (("/status.css", "text/css"), ("/status.js", "text/javascript"), ("/status.svg", "image/svg")):
        fields, text = get(view(), path)
        assert fields["Content-Type"].startswith(kind)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|\beval\b|innerHTML", text)


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("application/json", True),
        ("application/json, text/html;q=0.5", True),
        ("text/html,application/xhtml+xml,application/json", False),
        ("*/*", False),
        ("", False),
        ("APPLICATION/JSON;q=1", True),
    ],
)
def test_programs_get_json(accept: str, is_json: bool) -> None:
    fields, text = get(view(), accept=accept)
    assert fields["Content-Type"].startswith("application/json" if is_json else "text/html")
    assert text.startswith("{" if is_json else "<!doctype html>")


def test_a_tunnel_that_is_open_has_no_outcome_yet() -> None:
    page = get(view(outcome=None, event="opened", status=None, path=None, method="CONNECT"))[1]
    assert re.search(r'<tr class="passed"(?:(?!</tr>).)*>opened</span>', page, re.DOTALL)


def test_what_there_is_none_of_is_said() -> None:
    page = get(view())[1]
    assert "none yet" in page
    assert "Nothing." in page


def test_long_texts_show_their_beginning_and_end() -> None:
    assert shown("a" * 500 + "b" * 500) == "a" * 80 + "…" + "b" * 80
    assert shown(None) == "-"
    assert shown("a\nb\x7f\u200b") == r"a\nb\x7f\u200b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 days")]
)
def test_lengths_of_time_are_told_by_their_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_so_are_rates_and_durations() -> None:
    assert [rate(0), rate(0.02), rate(5), rate(1234)] == ["0", "1.2/min", "5.0/s", "1\u202f234/s"]
    assert [size(0.0123), size(700)] == ["12 ms", "11 min"]
