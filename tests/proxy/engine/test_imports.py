"""What the engine, the addons and the core need of mitmproxy is its objects, not its protocol layers."""

from __future__ import annotations

import subprocess
import sys


def test_a_process_that_runs_the_engine_loads_no_layer_of_mitmproxys() -> None:
    """They take 5 MiB of every process, with QUIC and HTTP/3, and are code that need not be trusted."""
    code = "import sys, proxy.engine.server; print(*(n for n in sys.modules if '.proxy.layers' in n or 'quic.' in n))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []
