"""The response with which a denied request is answered. `Exchange.deny_always` gives it to a request that has a flow;
the engine answers with it what has none yet.

Rules of this module:

- It is problem details (RFC 9457), or a page where the app prefers pages, with `Proxy-Status` (RFC 9209).
- It is never stored: the next request may be let through.
"""

from __future__ import annotations

from mitmproxy import http

from proxy.core.decisions import Denied
from proxy.core.http.problems import (
    JSON_TYPE,
    PAGE_TYPE,
    grpc_fields,
    problem_details,
    problem_page,
    proxy_status,
    wants_page,
)
from proxy.core.reasons import Reason


def problem_response(
    denied: Denied, rule: str | None, accept: str = "", content_type: str = "", *, id: str
) -> http.Response:
    """Return the response to a denied request (RFC 9457, RFC 9209), or a page for clients that ask for pages.

    Args:
        denied: the reason.
        rule: the name of the rule that matched, or None.
        accept: the request's Accept field, or "".
        content_type: its Content-Type field, or "".
        id: the request's id.
    """
    is_page = wants_page(accept)
    headers = {
        "Content-Type": PAGE_TYPE if is_page else JSON_TYPE,
        "Proxy-Status": proxy_status(denied),
        "Cache-Control": "no-store",
        **grpc_fields(denied, content_type, id),
    }
    if denied.reason is Reason.PROXY_AUTHENTICATION_REQUIRED:
        headers["Proxy-Authenticate"] = 'Basic realm="overcoat", charset="UTF-8"'
    if denied.reason is Reason.TOO_MANY_ATTEMPTS:
        headers["Retry-After"] = "1"
    if is_page:
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        headers["X-Content-Type-Options"] = "nosniff"
    body = problem_page(denied, rule, id) if is_page else problem_details(denied, rule, id)
    return http.Response.make(denied.reason.status, body, headers)
