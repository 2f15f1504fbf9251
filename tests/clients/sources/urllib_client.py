"""Python's urllib."""

import os
import urllib.error
import urllib.request

BODY = b'{"card": "4111111111111111", "name": "x"}'


def ask(name: str, data: bytes | None = None) -> None:
    """Ask one of the four, and say what came."""
    request = urllib.request.Request(
        os.environ[name.upper()], data, {"Content-Type": "application/json"} if data else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            print(name, response.status)
    except urllib.error.HTTPError as error:
        print(name, error.code)


ask("upgraded", BODY)
for each in ("inspected", "tunnelled", "refused"):
    ask(each)
