"""The app of the README's snippet, as its test has it: asks everything once, writes the answers as JSON, and stays.

It knows the sidecar only from its environment, and checks whether the sidecar is up by its name.
"""

import json
import time
import urllib.error
import urllib.request


def answer(url: str, **more: str) -> tuple[int, str]:
    """Return the status and the body of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=more), timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


through = answer("http://api.pay.example/v1/charges")
urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
found = {
    "through": through,
    "live": answer("http://overcoat:9465/live"),
    "ready": answer("http://overcoat:9465/ready"),
    "no metrics there": answer("http://overcoat:9465/metrics"),
    "metrics": answer("http://overcoat:9464/metrics"),
    "rebound": answer("http://overcoat:9464/metrics", Host="evil.example"),
}
print(json.dumps(found), flush=True)
time.sleep(3600)
