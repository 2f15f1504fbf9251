"""Python's requests."""

import os

import requests

print("upgraded", requests.post(os.environ["UPGRADED"], json={"card": "4111111111111111", "name": "x"}).status_code)
for name in ("inspected", "tunnelled", "refused"):
    print(name, requests.get(os.environ[name.upper()]).status_code)
