"""Detects redirects that lead an upgraded app in a circle: the server redirects http to https, but the app's http was
https already. The addon `addons.transport` passes it each response of an upgraded request.

Rules of this module:

- A redirect to the very request that was upgraded is denied at once: the answer would be the same each time.
- If something may differ the next time (a cookie, a URL in between), the app may follow a few times, and is then
  denied.
- A redirect that is relative, or that says when to come back, is never denied: the server means it, over http or https.
"""

from __future__ import annotations

import re
from urllib.parse import urldefrag, urljoin

from proxy.core.decisions import Denied
from proxy.core.destinations import HTTP_PORT, BadDestination, Destination, parse_authority
from proxy.core.http.heads import Fields
from proxy.core.reasons import Reason

MAX_VISITS = 5  # times that one URL may redirect within one chain; common clients follow 10 to 50 redirects
MAX_URLS = 50  # URLs of one chain that are remembered

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_REPEATS_METHOD = frozenset((307, 308))
_ORIGIN = re.compile(r"http://(?P<authority>[^/?#]+)", re.IGNORECASE)


class Trail:
    """A chain of redirects on one app connection, in which each request follows the redirect before it."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._visits: dict[int, int] = {}  # keyed by hashes, since a URL may be long

    def follow(self, method: str, status: int, asked: Destination, path: str, fields: Fields) -> None:
        """Take a response.

        Args:
            method: the request's method.
            status: the response's status.
            asked: the destination that the app asked for, in the app's spelling.
            path: the path that it asked for, with the query.
            fields: the response's fields, as the app will see them.

        Raises:
            Denied: REDIRECT_LOOP: the redirect leads in a circle.
        """
        if status not in _REDIRECTS:
            if self._visits:
                self._forget()
            return
        names = {name.lower(): value for name, value in fields}
        location = names.get(b"location", b"").decode("utf-8", "surrogateescape")
        try:
            here = _normal(f"http://{asked}{path}")
            there = _normal(urljoin(here, location)) if location else None
        except ValueError:  # not a URL
            there = None
        if there is None:
            self._forget()
            return
        if hash(here) != self._next or len(self._visits) >= MAX_URLS:
            self._visits.clear()
        self._visits[hash(here)] = self._visits.get(hash(here), 0) + 1
        self._next = hash(there)
        if b"retry-after" in names or "://" not in location:
            return
        is_same = here == there and (method in ("GET", "HEAD") or status in _REPEATS_METHOD)
        if is_same and b"set-cookie" not in names:
            detail = f"{asked} redirects to the very URL that was asked for, and that was upgraded to https already"
        elif self._visits[hash(here)] > MAX_VISITS:
            detail = f"{asked} redirects in a circle, which has led back to the same URL {MAX_VISITS} times"
        else:
            return
        self._forget()
        raise Denied(Reason.REDIRECT_LOOP, detail)

    def _forget(self) -> None:
        self._next = None
        self._visits.clear()


def _normal(url: str) -> str:
    """Return a URL without its fragment, and with its authority in canonical form."""

    def spelled_alike(found: re.Match[str]) -> str:
        try:
            return f"http://{parse_authority(found['authority'], HTTP_PORT)}"
        except BadDestination:
            return found[0]

    url = _ORIGIN.sub(spelled_alike, urldefrag(url).url, count=1)
    return url if url.count("/") > 2 else f"{url}/"
