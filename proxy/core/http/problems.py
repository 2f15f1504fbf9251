"""Writes what an app, or the person in front of it, is told about a denial: problem details, a page, or gRPC's fields.
The module `addons.denials` calls it for each response that Overcoat makes itself.

Rules of this module:

- Every form has the same reason, detail and id, and pages and problem details rule, hint and facts; none quotes the
  request.
- Clients that ask for pages get a page; all others get problem details (RFC 9457).
- gRPC clients show only gRPC's own status and message, which are fields; so they get these.
"""

from __future__ import annotations

import json
import re
from html import escape
from urllib.parse import quote

from proxy.core.decisions import Denied

JSON_TYPE = "application/problem+json"
PAGE_TYPE = "text/html; charset=utf-8"
_GRPC_TYPE = re.compile(r"application/grpc(?:[+; ]|$)", re.IGNORECASE)  # gRPC-Web is another protocol
# How gRPC maps an HTTP status (http-grpc-status-mapping): with the fields, a client retries the same as without them.
_GRPC_STATUS = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_GRPC_UNKNOWN = 2
_GRPC_UNQUOTED = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"  # all visible characters but the percent sign

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:1em/1.5 sans-serif;max-width:40em;margin:4em auto;padding:0 1em}}code{{background:#eee}}</style>
<h1>{title}</h1>
<p>{detail}.</p>
{more}<p>Overcoat kept this request back: <code>{reason}</code>, status {status}, id <code>{id}</code>.</p>
</html>
"""


def problem_details(denied: Denied, rule: str | None, id: str) -> bytes:
    """Return the RFC 9457 body of a denial, UTF-8 JSON.

    Args:
        denied: the reason, detail, hint and facts.
        rule: the name of the rule that matched, or None.
        id: the request's id, a UUID.
    """
    problem: dict[str, object] = {
        "type": f"urn:overcoat:reason:{denied.reason.code}",
        "title": denied.reason.title,
        "status": denied.reason.status,
        "detail": denied.detail,
        "instance": f"urn:uuid:{id}",
        "reason": denied.reason.code,
    }
    if rule is not None:
        problem["rule"] = rule
    problem["hint"] = denied.hint
    problem |= denied.facts
    return json.dumps(problem, ensure_ascii=False, indent=1).encode() + b"\n"


def problem_page(denied: Denied, rule: str | None, id: str) -> bytes:
    """Return the same as a small page, UTF-8 HTML without scripts. The arguments are those of `problem_details`."""
    more = f"<p>What to do: {escape(denied.hint)}.</p>\n"
    if rule is not None:
        more += f"<p>The rule that counts is <code>{escape(rule)}</code>.</p>\n"
    more += "".join(_shown(name, value) for name, value in denied.facts.items())
    page = _PAGE.format(
        title=escape(denied.reason.title),
        detail=escape(denied.detail),
        more=more,
        reason=escape(denied.reason.code),
        status=denied.reason.status,
        id=escape(id),
    )
    return page.encode()


def _shown(name: str, value: object) -> str:
    """Return a fact as HTML: its name in words, and a line for each value that it has."""
    values = value if isinstance(value, list) else [value]
    lines = [" ".join(map(str, each.values())) if isinstance(each, dict) else str(each) for each in values]
    listed = "".join(f"<li><code>{escape(line)}</code></li>" for line in lines)
    return f"<p>{escape(name.replace('_', ' ').capitalize())}:</p>\n<ul>{listed}</ul>\n"


def wants_page(accept: str) -> bool:
    """Tell whether an Accept field asks for pages, as browsers do, and not for JSON (RFC 9110, section 12.5.1).

    Args:
        accept: the field's value, or "".
    """
    kinds = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        kinds[kind] = "q=0" not in parameters and "q=0.0" not in parameters
    return kinds.get("text/html", False) and not any("json" in kind for kind in kinds)


def is_grpc(content_type: str) -> bool:
    """Tell whether a request with this Content-Type is a gRPC call. Only HTTP/2 can carry one."""
    return _GRPC_TYPE.match(content_type) is not None


def grpc_fields(denied: Denied, content_type: str, id: str) -> dict[str, str]:
    """Return the fields that make a gRPC client show a denial; none for other clients.

    Args:
        denied: the reason and detail.
        content_type: the request's Content-Type, or "".
        id: the request's id.
    """
    if not is_grpc(content_type):
        return {}
    status = _GRPC_STATUS.get(denied.reason.status, _GRPC_UNKNOWN)
    return {"grpc-status": str(status), "grpc-message": quote(f"{denied.detail} (id {id})", safe=_GRPC_UNQUOTED)}


def proxy_status(denied: Denied) -> str:
    """Return the `Proxy-Status` field value of a denial (RFC 9209, a structured-field list of one item)."""
    details = denied.reason.code
    return f'overcoat; error={denied.proxy_error}; details="{details}"'
