"""Starts `overcoat` in a process where test host names lead to loopback addresses.

    python -P tests/e2e/named_hosts.py '{"api.pay.example": "127.0.0.1"}' serve -p policy.yaml

Rules of this module:

- It replaces `socket.getaddrinfo`, which asyncio and everything above it use, in the sidecar's own process. That needs
  no root, no /etc/hosts and no change to the product, and works the same on every system; `*.localhost` does not
  resolve on all of them, and HOSTALIASES and LD_PRELOAD work on few.
- A name that is neither in the table nor this machine's own is unknown: no test ever asks a name server.
- It is used only where a test needs names, and with an empty table, which changes nothing, for a checkout that is not
  installed. Everywhere else the installed command itself is started.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWN_NAMES = frozenset({"", "localhost"})


def install(hosts: Mapping[str, str]) -> None:
    """Let this process resolve `hosts` as they say, addresses and `localhost` as ever, and nothing else.

    Args:
        hosts: lower-case names, and the address that each stands for.
    """
    original = socket.getaddrinfo

    def getaddrinfo(host: bytes | str | None, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode("ascii") if isinstance(host, bytes) else host or ""
        name = name.removesuffix(".").lower()
        if name not in OWN_NAMES and not _is_address(name):
            if name not in hosts:
                raise socket.gaierror(socket.EAI_NONAME, f"{name} is not among the names of this test")
            return original(hosts[name], port, *args, **kwargs)
        return original(host, port, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    table = sys.argv.pop(1)
    if table:
        install(json.loads(table))
    sys.argv[0] = "overcoat"
    # An installed product comes first; a checkout that is not installed is found, too.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from overcoat.__main__ import main

    main()
