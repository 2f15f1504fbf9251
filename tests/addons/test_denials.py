"""The response to a denied request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from addons.denials import problem_response
from proxy.core.decisions import Denied
from proxy.core.reasons import Reason


def test_the_answer_is_problem_details_with_a_proxy_status() -> None:
    response = problem_response(Denied(Reason.PLAIN_HTTP_REJECTED, "first", "a hint"), "payments", id="0-1")
    problem: dict[str, Any] = json.loads(response.content or b"")
    assert problem["status"] == response.status_code == 403
    assert (problem["reason"], problem["rule"], problem["hint"]) == ("plain_http_rejected", "payments", "a hint")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["proxy-status"].startswith("overcoat; error=http_request_denied")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-length"] == str(len(response.content or b""))


@pytest.mark.parametrize(
    ("reason", "accept", "names"),
    [
        (Reason.BAD_REQUEST, "", set()),
        (Reason.PROXY_AUTHENTICATION_REQUIRED, "", {"proxy-authenticate"}),
        (Reason.TOO_MANY_ATTEMPTS, "", {"retry-after"}),
        (Reason.BAD_REQUEST, "text/html", {"content-security-policy", "x-content-type-options"}),
    ],
)
def test_an_answer_has_the_fields_that_its_reason_and_its_form_want(
    reason: Reason, accept: str, names: set[str]
) -> None:
    response = problem_response(Denied(reason, "x"), None, accept, id="0-1")
    found = {name.lower() for name in response.headers}
    assert found - {"content-type", "proxy-status", "cache-control", "content-length"} == names
    assert response.headers["content-type"].startswith("text/html" if accept else "application/problem+json")
    assert (response.content or b"").startswith(b"<!" if accept else b"{")
