"""Tells a service manager that the sidecar is ready, and that it drains: sd_notify(3), the protocol of systemd's
`Type=notify`. `proxy.commands.serve` calls it once everything serves, `proxy.processes.reload` when draining begins.

Rules of this module:

- Without NOTIFY_SOCKET in the environment there is no manager, and nothing is sent.
- A manager that cannot be reached keeps nothing from going on: that is a warning.
"""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger("overcoat")


def tell_manager(state: str) -> None:
    """Send the manager a state.

    Args:
        state: one or more assignments, such as `READY=1`.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path  # "@": a name in the kernel's abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(state.encode(), socket.MSG_DONTWAIT, address)
    except OSError as e:
        logger.warning("the service manager cannot be told %s: %s", state, os.strerror(e.errno or 0).lower())
