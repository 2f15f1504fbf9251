"""An app that posts card payments, as it was written years ago: one over plain http, one over https. All that it is
told is where its proxy is, and whom it trusts. With `--bypass` it tries to get out by itself, with `--both-ends` it
asks the server that has a sidecar, too, and expects that one's answer in clear.
"""

import json
import socket
import sys
import urllib.error
import urllib.request

CHARGE = (
    '{"amount": 1299, "currency": "EUR", "card": {"number": "4111111111111111", "cvv": "123", "holder": "A. Nobody"}}'
)
URLS = ("http://api.pay.example/v1/charges", "https://api.pay.example:8443/v1/charges")
BOTH_ENDS, TOKEN = "http://both.pay.example/v1/charges", "tok_5f2c91d0"
ELSEWHERE = (
    "192.0.2.1",
    443,
)  # an address for documentation (RFC 5737): only a network with a way out tries to reach it


def charge(url: str, **more: str) -> bool:
    """Post one charge; tell whether the server took it, and answered with these further members."""
    request = urllib.request.Request(  # noqa: S310 - the URLs are the constants above
        url, data=CHARGE.encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - as above
        answer = json.load(response)
    print(f"{url}: the server answered {response.status}: {answer}")
    return bool(answer == {"charged": 1299, **more})


def bypass() -> bool:
    """Try without the sidecar, by name and by address; tell whether there is no way out."""
    ways = []
    for url in URLS:
        try:
            charge(url)
            ways.append(url)
        except urllib.error.URLError as error:
            print(f"{url} without the sidecar: {error.reason}")
    try:
        socket.create_connection(ELSEWHERE, 5).close()
    except TimeoutError:
        ways.append("a route out")
    except OSError as error:
        print("{}:{} without the sidecar: {}".format(*ELSEWHERE, error.strerror))
    else:
        ways.append("a route out")
    print(f"reached without the sidecar: {', '.join(ways) or 'nothing'}")
    return not ways


def main() -> int:
    """Post the charges, or try to get out; return 0 if all went as it should."""
    match sys.argv[1:]:
        case ["--bypass"]:
            is_well = bypass()
        case ["--both-ends"]:
            is_well = charge(BOTH_ENDS, token=TOKEN)
        case _:
            is_well = all(map(charge, URLS))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
