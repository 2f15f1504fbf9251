"""The shell round mitmproxy's sans-I/O layers: sockets, hooks, TLS. The only package that knows their insides."""

from proxy.engine import patches

patches.leave_quic_out()
