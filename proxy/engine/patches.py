"""Every change to mitmproxy's internals that replaces something of theirs, in one place.

Rules of this module:

- A patch says why it is needed and what it was checked on; `tests/proxy/engine/test_internals.py` fails when what it
  replaces has moved.
- No patch takes a check away that decides on anything from outside.

Checked on mitmproxy 12.2.3.
"""

from __future__ import annotations

import itertools
import sys
from types import ModuleType

# What mitmproxy's other layers import of its QUIC and HTTP/3: names that are only ever compared with.
_QUIC = {
    "mitmproxy.proxy.layers.quic": (
        "ClientQuicLayer",
        "QuicStreamEvent",
        "QuicStreamLayer",
        "RawQuicLayer",
        "ServerQuicLayer",
    ),
    "mitmproxy.proxy.layers.http._http3": ("Http3Client", "Http3Server"),
}


def leave_quic_out() -> None:
    """Have mitmproxy's layers imported without QUIC and HTTP/3, which no listener here speaks.

    They take 5 MiB of every process, and are code that need not be trusted. Of what stands for them nothing can be
    made: an attempt ends the connection. Must be called before the layers are imported; what is imported already stays.
    """
    for name, classes in _QUIC.items():
        if name not in sys.modules:
            module = ModuleType(name, "Stands for what is left out.")
            for each in classes:
                setattr(module, each, type(each, (_LeftOut,), {}))
            sys.modules[name] = module


class _LeftOut:
    """What nothing can be made of."""

    def __init__(self, *_arguments: object) -> None:
        raise RuntimeError(f"{type(self).__name__} is left out: neither QUIC nor HTTP/3 is spoken here")


def apply() -> None:
    """Apply all patches; doing so again changes nothing."""
    from mitmproxy import connection, flow, http
    from mitmproxy.proxy.layers import http as http_layers
    from mitmproxy.proxy.layers import tls

    from proxy.engine.http1client import Http1Upstream
    from proxy.engine.http2 import AppHttp2, UpstreamHttp2
    from proxy.engine.layers import UpstreamTls

    # HttpClient and HttpLayer make these layers by module-level names, and have no other seam.
    setattr(http_layers, "Http1Client", Http1Upstream)  # noqa: B010  # mypy rightly minds a plain assignment
    setattr(http_layers, "Http2Server", AppHttp2)  # noqa: B010  # as above
    setattr(http_layers, "Http2Client", UpstreamHttp2)  # noqa: B010  # as above
    setattr(tls, "ServerTLSLayer", UpstreamTls)  # noqa: B010  # as above
    # A dataclass hook that checks the type of every field of every message: a fifth of the time that a small request
    # takes. The messages are made by our own code, which mypy checks, and by mitmproxy's HTTP/2 layers.
    setattr(http.MessageData, "__post_init__", _no_type_check)  # noqa: B010  # as above
    # Every flow and connection gets a random UUID: a system call, and a tenth of what making them takes. Ours never
    # leave the process, where counting is as good.
    setattr(flow, "uuid", _Counted)  # noqa: B010  # as above
    setattr(connection, "uuid", _Counted)  # noqa: B010  # as above


class _Counted:
    """Stands in for the uuid module: identifiers that are unique within the process."""

    _next = itertools.count()

    @classmethod
    def uuid4(cls) -> int:
        """Return the next number; what calls this makes a string of it."""
        return next(cls._next)


def _no_type_check(_message: object) -> None:
    """Stand in for the check of field types."""
