"""What an app, or the person before it, is told of a denial.

Rules of this module:

- The same reason, detail, rule and hint in every form; nothing of the request is quoted.
- A page is for who asks for pages: everybody else gets problem details (RFC 9457).
"""

from __future__ import annotations

import json
from html import escape

from proxy.core.decisions import Denied

JSON_TYPE = "application/problem+json"
PAGE_TYPE = "text/html; charset=utf-8"

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:1em/1.5 sans-serif;max-width:40em;margin:4em auto;padding:0 1em}}code{{background:#eee}}</style>
<h1>{title}</h1>
<p>{detail}.</p>
{more}<p>Overcoat kept this request back: <code>{reason}</code>, status {status}.</p>
</html>
"""


def problem_details(denied: Denied, rule: str | None) -> bytes:
    """Return the RFC 9457 body of a denial, UTF-8 JSON.

    Args:
        denied: the reason, detail and hint.
        rule: the name of the rule that matched, or None.
    """
    problem: dict[str, object] = {
        "type": f"urn:overcoat:reason:{denied.reason.code}",
        "title": denied.reason.title,
        "status": denied.reason.status,
        "detail": denied.detail,
        "reason": denied.reason.code,
    }
    if rule is not None:
        problem["rule"] = rule
    problem["hint"] = denied.hint
    return json.dumps(problem, ensure_ascii=False, indent=1).encode() + b"\n"


def problem_page(denied: Denied, rule: str | None) -> bytes:
    """Return the same as a small page, UTF-8 HTML without scripts; the arguments are those of `problem_details`."""
    more = f"<p>What to do: {escape(denied.hint)}.</p>\n"
    if rule is not None:
        more += f"<p>The rule that counts is <code>{escape(rule)}</code>.</p>\n"
    page = _PAGE.format(
        title=escape(denied.reason.title),
        detail=escape(denied.detail),
        more=more,
        reason=escape(denied.reason.code),
        status=denied.reason.status,
    )
    return page.encode()


def wants_page(accept: str) -> bool:
    """Tell whether an Accept field asks for pages, as browsers' do, and for no JSON (RFC 9110, section 12.5.1).

    Args:
        accept: the field's value, or "".
    """
    kinds = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        kinds[kind] = "q=0" not in parameters and "q=0.0" not in parameters
    return kinds.get("text/html", False) and not any("json" in kind for kind in kinds)


def proxy_status(denied: Denied) -> str:
    """Return the `Proxy-Status` field value of a denial (RFC 9209, a structured-field list of one item)."""
    details = denied.reason.code
    return f'overcoat; error={denied.proxy_error}; details="{details}"'
