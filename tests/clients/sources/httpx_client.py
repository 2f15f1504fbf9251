"""Python's httpx."""

import os

import httpx

print("upgraded", httpx.post(os.environ["UPGRADED"], json={"card": "4111111111111111", "name": "x"}).status_code)
for name in ("inspected", "tunnelled", "refused"):
    print(name, httpx.get(os.environ[name.upper()]).status_code)
