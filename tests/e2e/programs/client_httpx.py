"""One request of httpx over HTTP/2, through a proxy or not. The job is JSON on standard input, the answer on output."""

import base64
import json
import ssl
import sys

import httpx

job = json.load(sys.stdin)
data = None if job["body"] is None else base64.b64decode(job["body"])
content = None if data is None else iter((data[: len(data) // 2], data[len(data) // 2 :]))  # of a length nobody knows
client = httpx.Client(
    http1=job["proxy"] is not None,  # what it is only offered, it would choose; in plain text it has to know beforehand
    http2=True,
    proxy=job["proxy"],
    verify=ssl.create_default_context(cafile=job["ca"]),
    timeout=20,
    trust_env=False,
)
with client:
    answer = client.request(job["method"], job["url"], headers=job["headers"], content=content)
fields = {name.lower(): value for name, value in answer.headers.items()}
found = {"status": answer.status_code, "version": answer.http_version, "headers": fields}
json.dump({**found, "body": base64.b64encode(answer.content).decode()}, sys.stdout)
