"""What the hooks about TLS get has what mitmproxy's own has, and none of it is imported by a sidecar."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import cast

from mitmproxy import tls
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context as Theirs

from proxy.engine.flows import new_client, new_context, new_server
from proxy.engine.hookdata import Context, TlsData


def names(kind: type) -> list[str]:
    """Return the names of a dataclass's attributes."""
    return [each.name for each in dataclasses.fields(kind)]


def test_a_context_has_what_mitmproxys_has() -> None:
    client = new_client(("192.0.2.1", 1), ("192.0.2.2", 2), 1.0)
    ours, theirs = new_context(client), Theirs(client, cast("Options", None))
    assert set(names(Context)) == set(vars(theirs))
    assert ours.client is client
    assert (ours.options, ours.layers) == (None, [])
    assert (ours.server.address, ours.server.tls) == (theirs.server.address, theirs.server.tls)
    assert new_context(client).server.id != ours.server.id
    assert new_context(client).layers is not ours.layers


def test_another_upstream_leaves_the_context_as_it_is() -> None:
    context = new_context(new_client(("192.0.2.1", 1), ("192.0.2.2", 2), 1.0))
    before, server = context.server, new_server(("api.example", 443), tls=True)
    other = context.with_server(server)
    assert (other.client, other.server, context.server) == (context.client, server, before)


def test_a_handshake_has_what_mitmproxys_has() -> None:
    assert names(TlsData) == names(tls.TlsData)
    context = new_context(new_client(("192.0.2.1", 1), ("192.0.2.2", 2), 1.0))
    assert (TlsData(context.client, context).ssl_conn, TlsData(context.client, context).is_dtls) == (None, False)


def test_a_sidecar_loads_none_of_mitmproxys_options() -> None:
    """They bring a YAML reader, and take two MiB of every process."""
    code = "import sys, proxy.engine.server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"mitmproxy.options", "mitmproxy.tls", "mitmproxy.proxy.context", "ruamel.yaml"} & set(
        done.stdout.split()
    )
