"""For proxy.py: a plug-in that sends http as https to another port. Out of the box it cannot change the scheme."""

from __future__ import annotations

import os

from proxy.core.base import TcpUpstreamConnectionHandler
from proxy.http.parser import HttpParser, httpParserTypes
from proxy.http.proxy import HttpProxyBasePlugin

HTTPS_PORT = int(os.environ["BENCH_HTTPS_PORT"])


class Upgrade(TcpUpstreamConnectionHandler, HttpProxyBasePlugin):
    """Makes the upstream connection itself, with TLS, and keeps it for as long as the client's lasts."""

    def before_upstream_connection(self, request: HttpParser) -> HttpParser | None:
        """Connect in place of proxy.py; None tells it so."""
        if request.is_https_tunnel:
            return request
        assert request.host is not None
        host = request.host.decode("ascii")
        self.initialize_upstream(host, HTTPS_PORT)
        assert self.upstream is not None
        self.upstream.connect()
        self.upstream.wrap(host, ca_file=self.flags.ca_file, as_non_blocking=True)
        return None

    def handle_client_request(self, request: HttpParser) -> HttpParser | None:
        """Send the connection's first request."""
        if self.upstream:
            self.upstream.queue(memoryview(request.build()))
        return request

    def handle_client_data(self, raw: memoryview) -> memoryview | None:
        """Send the connection's later requests, with the target in origin form as in the first one."""
        request = HttpParser(httpParserTypes.REQUEST_PARSER)
        request.parse(raw)
        assert self.upstream is not None
        self.upstream.queue(memoryview(request.build()))
        return raw

    def handle_upstream_data(self, raw: memoryview) -> None:
        """Send the answer back."""
        self.client.queue(raw)

    def on_upstream_connection_close(self) -> None:
        """Close what was opened here."""
        if self.upstream and not self.upstream.closed:
            self.upstream.close()
            self.upstream = None
