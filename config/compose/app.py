"""An app that posts a card payment over plain http, as it was written years ago. All that it is told is HTTP_PROXY."""

import json
import sys
import urllib.request

CHARGE = (
    '{"amount": 1299, "currency": "EUR", "card": {"number": "4111111111111111", "cvv": "123", "holder": "A. Nobody"}}'
)


def main() -> int:
    """Post one charge; return 0 if the server took it."""
    request = urllib.request.Request(
        "http://api.pay.example/v1/charges",
        data=CHARGE.encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - the URL is the constant above
        answer = json.load(response)
    print(f"The server answered {response.status}: {answer}")
    return 0 if answer == {"charged": 1299} else 1


if __name__ == "__main__":
    sys.exit(main())
