"""A Flutter client, which comes inside a Python wheel: its own `HttpClient` fetches the four as pictures. What it saw
cannot be read from outside, so it says nothing, and stays until the servers and the sidecar have seen enough.
"""

import os
import threading
import time
from pathlib import Path

import flet as ft


def leave() -> None:
    """End the program as soon as it is told to, or after a while."""
    end = time.monotonic() + 60
    while not Path("enough").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(0)


def main(page: ft.Page) -> None:
    """Show the pictures."""
    for name in ("UPGRADED", "INSPECTED", "TUNNELLED", "REFUSED"):
        page.add(ft.Image(src=f"{os.environ[name]}/picture.png", width=20, height=20))
    threading.Thread(target=leave, daemon=True).start()


ft.app(target=main)
