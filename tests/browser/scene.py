"""A sidecar with a policy and apps such as people have, whose status page is looked at. `python -m tests.browser.scene
docs/status.png` makes the picture of the README.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.browser.chromium import Chromium
from tests.e2e.certificates import Authority
from tests.e2e.clients import RawClient
from tests.e2e.receiver import Receiver
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream

HOSTS = ("api.pay.example", "legacy.example", "updates.example", "cdn.shop.example", "shop.example", "tracker.example")
CARD = b'{"card": {"number": "4111 1111 1111 1111", "cvv": "123"}, "amount": 1200}'


class Scene:
    """A sidecar, and what apps ask of it."""

    def __init__(self, sidecar: Sidecar, port: int) -> None:
        self.sidecar = sidecar
        self._port = port
        self._random = random.Random(4)

    def ask(self, host: str, path: str, body: bytes = b"") -> int:
        """Send one request, and return the status."""
        where = f"{host}:{self._port}"
        head = f"{'POST' if body else 'GET'} http://{where}{path} HTTP/1.1\r\nHost: {where}\r\n"
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with RawClient(self.sidecar.address) as client:
            client.send(head.encode() + fields.encode() + body)
            return client.read_response().status

    def ask_something(self) -> None:
        """Send what an app may ask for."""
        kind = self._random.choices(range(7), (40, 25, 12, 8, 5, 6, 4))[0]
        number = self._random.randrange(1000, 9999)
        host, path, body = (
            ("api.pay.example", "/v1/charges?key=k", CARD),
            ("cdn.shop.example", f"/img/{number}.webp", b""),
            ("shop.example", f"/api/baskets/{number}", b""),
            ("legacy.example", "/cgi-bin/report.pl", b""),
            ("updates.example", "/stable/feed.xml", b""),
            ("tracker.example", "/collect", b""),
            ("api.pay.example", "/v1/refunds", b'{"card": 4111 1111'),
        )[kind]
        self.ask(host, path, body)


@contextlib.contextmanager
def scene(folder: Path, workers: int = 2) -> Iterator[Scene]:
    """Run one.

    Args:
        folder: where its files may lie.
        workers: how many processes serve.
    """

    def after(days: int) -> str:
        return (datetime.now(UTC).date() + timedelta(days=days)).isoformat()

    authority = Authority()
    for kid in ("pay-2026", "pay-2025"):
        Receiver(kid).write_public(folder)
    other = f"sha256/{'A' * 42}E="
    with TlsUpstream(authority, *HOSTS) as upstream:
        policy = f"""
            workers: {workers}
            keys:
              payments:
                alg: ECDH-ES+A256KW
                primary: {{kid: pay-2026, file: pay-2026.pub.pem, not_after: {after(74)}}}
                older: [{{kid: pay-2025, file: pay-2025.pub.pem, not_after: {after(12)}}}]
            rules:
              - name: payments
                hosts: [api.pay.example]
                pins: {{any_of: ["{upstream.pin}", "{other}"], expires: {after(41)}}}
                request: [{{encrypt: ["$.card.number", "$.card.cvv"], key: payments}}]
              - {{name: shop, hosts: ["**.shop.example"]}}
              - {{name: legacy, hosts: [legacy.example], plain_http: reject}}
              - {{name: updates, hosts: [updates.example], pins: {{any_of: ["{other}"]}}}}
        """
        hosts = dict.fromkeys(HOSTS, "127.0.0.1")
        with Sidecar(policy, folder, authority=authority, hosts=hosts) as sidecar:
            yield Scene(sidecar, upstream.port)


def main(target: Path) -> None:
    """Take the picture."""
    with (
        tempfile.TemporaryDirectory(prefix="overcoat-") as folder,
        scene(Path(folder)) as running,
        Chromium() as browser,
    ):
        page = browser.open(running.sidecar.admin_url + "/")
        page.show_as(1180, 1000)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            running.ask_something()
            time.sleep(0.15)
        page.evaluate("document.getElementById('pause').click()")
        with contextlib.ExitStack() as held:
            for _ in range(12):
                held.enter_context(RawClient(running.sidecar.address))
            page.evaluate("document.getElementById('pause').click()")
            page.wait_for("document.querySelector('meter').value === 12")
            page.wait_for("!document.querySelector('tr.new')")
            target.write_bytes(page.picture())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
