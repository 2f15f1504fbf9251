"""What a serving process has not loaded: packages that it imports for others' sake and uses nothing of, and what only
stands in its way. Each is memory of every process, and code that need not be trusted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e.certificates import Authority
from tests.e2e.clients import curl
from tests.e2e.forks import SERVER
from tests.e2e.sidecar import StartedSidecar as Sidecar
from tests.e2e.upstream import TlsUpstream

COMMAND = [sys.executable, "-X", "importtime", "-P", str(SERVER.with_name("named_hosts.py")), "{}"]
LEFT_OUT = (
    "h11._connection",  # what a package imports while it is loaded tells that it is
    "graphql",
    "importlib.metadata",
    "importlib.resources",
    "mitmproxy.options",
    "mitmproxy.proxy.layers",
    "mitmproxy_rs.mitmproxy_rs",
    "msgspec",
    "pydantic",
    "rich",
    "yaml",
    "zipfile",
)


def imported(sidecar: Sidecar) -> set[str]:
    """Return the modules that a sidecar which `COMMAND` started has imported."""
    told = (line for line in sidecar.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in told}


def test_a_sidecar_has_loaded_little_after_a_start_and_requests(
    authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
) -> None:
    upstream = tls_upstream("127.0.0.1")
    policy = f"""
        rules: [{{name: upstream, hosts: ["127.0.0.1:{upstream.port}"], https: inspect}}]
    """
    with Sidecar(policy, tmp_path, authority=authority, command=COMMAND) as sidecar:
        assert curl(upstream.url("/plain"), proxy=sidecar.proxy_url).status == 200
        assert (
            curl(f"https://127.0.0.1:{upstream.port}/", proxy=sidecar.proxy_url, ca_file=sidecar.ca_file).status == 200
        )
        sidecar.wait_for_decisions(2)
        assert sidecar.metrics().value("overcoat_info", version="0.1.0", mode="enforce") == 1
        found = imported(sidecar)
    assert {"proxy.late", "mitmproxy.connection", "h2.connection"} <= found
    assert not {name for name in found for left in LEFT_OUT if name == left or name.startswith(left + ".")}


def test_what_is_loaded_late_is_loaded_whole_when_it_is_used() -> None:
    """In a process of its own, since this one has it already."""
    code = """
import subprocess
import sys
from proxy.late import LATE, load_late
load_late()
load_late()
assert len([finder for finder in sys.meta_path if type(finder).__module__ == "proxy.late"]) == 1
from mitmproxy import http
assert "h11._connection" not in sys.modules and "mitmproxy_rs.mitmproxy_rs" not in sys.modules
assert LATE <= set(sys.modules)
from mitmproxy.proxy.mode_specs import ProxyMode
ProxyMode.parse("local:curl")
assert sys.modules["mitmproxy_rs"].local.LocalRedirector
import h11, mitmproxy_rs.local
assert h11.Connection(h11.CLIENT).our_state is h11.IDLE
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
