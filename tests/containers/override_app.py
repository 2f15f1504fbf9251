"""The app beside compose.override.example.yml, as its test has it: asks once, writes what it saw as JSON, and stays."""

import json
import os
import pathlib
import socket
import time
import urllib.error
import urllib.request


def answer(url: str) -> tuple[int, str]:
    """Return the status and the body of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def direct() -> str:
    """Try an address for documentation (RFC 5737) without the proxy; return why it cannot be reached."""
    try:
        socket.create_connection(("192.0.2.1", 443), 5).close()
    except OSError as error:
        return error.strerror or str(error)
    return "reached"


folder = pathlib.Path("/run/overcoat-ca")
found = {
    "http": answer("http://api.pay.example/v1/charges"),
    "https": answer("https://api.pay.example/v1/charges"),
    "direct": direct(),
    "folder": sorted(os.listdir(folder)),
    "private": any(b"PRIVATE" in each.read_bytes() for each in folder.rglob("*") if each.is_file()),
}
print(json.dumps(found), flush=True)
time.sleep(3600)
