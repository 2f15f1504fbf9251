"""A denial as a page: for browsers only, the same words, and nothing in it that is not text."""

from __future__ import annotations

import json

import pytest

from proxy.core.decisions import Denied
from proxy.core.http.problems import grpc_fields, problem_details, problem_page, wants_page
from proxy.core.reasons import Reason


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", True),
        ("text/html", True),
        ("TEXT/HTML;q=0.5", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("application/problem+json, text/html;q=0.1", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=0.0, */*", False),
        ("text/*", False),
    ],
)
def test_a_page_is_for_who_asks_for_pages(accept: str, page: bool) -> None:
    assert wants_page(accept) is page


def test_it_says_what_the_problem_details_say_and_nothing_of_it_is_markup() -> None:
    denied = Denied(Reason.PIN_MISMATCH, "rule <a> pins a&b", 'add "it"')
    page = problem_page(denied, "r<1>", "0-1").decode()
    assert "rule &lt;a&gt; pins a&amp;b." in page
    assert "What to do: add &quot;it&quot;." in page
    assert "<code>r&lt;1&gt;</code>" in page
    assert "<code>pin_mismatch</code>, status 502" in page
    assert "<script" not in page


def test_it_has_the_facts_that_the_problem_details_have() -> None:
    seen = [{"level": "leaf", "pin": "sha256/A"}, {"level": "root", "pin": "sha256/B"}]
    denied = Denied(Reason.PIN_MISMATCH, "x", facts={"pins_seen": seen, "pins_wanted": ["sha256/C", "<D>"], "other": 5})
    page = problem_page(denied, "r", "0-1").decode()
    assert "<p>Pins seen:</p>\n<ul><li><code>leaf sha256/A</code></li><li><code>root sha256/B</code></li></ul>" in page
    assert "<p>Pins wanted:</p>\n<ul><li><code>sha256/C</code></li><li><code>&lt;D&gt;</code></li></ul>" in page
    assert "<p>Other:</p>\n<ul><li><code>5</code></li></ul>" in page
    assert "<ul>" not in problem_page(Denied(Reason.BAD_REQUEST, "x"), None, "0").decode()


def test_without_a_rule_there_is_no_word_of_one() -> None:
    page = problem_page(Denied(Reason.BAD_REQUEST, "x"), None, "0-1").decode()
    assert "The rule" not in page


@pytest.mark.parametrize("rule", [None, "r"])
def test_the_problem_details_name_the_rule_if_there_is_one(rule: str | None) -> None:
    problem = json.loads(problem_details(Denied(Reason.BAD_REQUEST, "x"), rule, "0-1"))
    assert problem.get("rule", "none") == (rule or "none")


@pytest.mark.parametrize(
    ("content_type", "is_grpc"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("Application/gRPC; x=1", True),
        ("application/grpc ;x=1", True),
        ("application/grpc-web", False),
        ("application/grpc-web+proto", False),
        ("application/grpcx", False),
        ("x-application/grpc", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_grpc_has_its_own_fields_and_nobody_else(content_type: str, is_grpc: bool) -> None:
    assert bool(grpc_fields(Denied(Reason.BAD_REQUEST, "x"), content_type, "0-1")) is is_grpc


@pytest.mark.parametrize("reason", Reason)
def test_grpc_retries_what_it_would_by_the_http_status(reason: Reason) -> None:
    of_status = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
    expected = of_status.get(reason.status, 2)
    assert grpc_fields(Denied(reason, "x"), "application/grpc", "0-1")["grpc-status"] == str(expected)


def test_what_is_not_visible_ascii_is_escaped_in_grpcs_message() -> None:
    seen = bytes(range(0x20, 0x7F)).decode()
    fields = grpc_fields(Denied(Reason.BAD_REQUEST, f"{seen}\r\n\t\x7fé"), "application/grpc", "0-1")
    assert fields["grpc-message"] == f"{seen.replace('%', '%25')}%0D%0A%09%7F%C3%A9 (id 0-1)"
