"""For stock mitmdump: send http as https to another port. The job of Overcoat's `plain_http: upgrade`."""

from __future__ import annotations

import os

from mitmproxy import http

HTTPS_PORT = int(os.environ["BENCH_HTTPS_PORT"])


def requestheaders(flow: http.HTTPFlow) -> None:
    """Upgrade a request before anything of it is sent."""
    if flow.request.scheme == "http":
        flow.request.scheme = "https"
        flow.request.port = HTTPS_PORT if flow.request.port == 80 else flow.request.port
