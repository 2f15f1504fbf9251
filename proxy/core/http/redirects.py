"""Redirects that an upgraded app follows: do they lead anywhere?

Rules of this module:

- A redirect to the very request that was upgraded already is cut at once: it would be the same the next time.
- Where something might be another the next time (a cookie, a URL between), it is followed a few times, then cut.
- One that is relative, or says when to come back, is never cut: the server means it, whatever it was asked over.
"""

from __future__ import annotations

import re
from collections import Counter
from urllib.parse import urldefrag, urljoin

from proxy.core.decisions import Denied, Reason
from proxy.core.destinations import HTTP_PORT, BadDestination, Destination, parse_authority
from proxy.core.http.heads import Fields

MAX_VISITS = 5  # how often one URL may redirect within one chain; common clients follow 10 to 50 redirects
MAX_URLS = 50  # of one chain are remembered

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_REPEATS_METHOD = frozenset((307, 308))
_ORIGIN = re.compile(r"http://(?P<authority>[^/?#]+)", re.IGNORECASE)


class Trail:
    """The redirects that come one right after the other on one app connection, each asked for by the one before."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._visits: Counter[int] = Counter()  # by hashes, since a URL may be long

    def follow(self, method: str, status: int, asked: Destination, path: str, fields: Fields) -> None:
        """Take a response.

        Args:
            method: the request's.
            status: the response's.
            asked: the destination that the app asked for, as it spells it.
            path: the path that it asked for, with the query.
            fields: the response's fields, as the app will see them.

        Raises:
            Denied: REDIRECT_LOOP: it leads round in a circle.
        """
        if status not in _REDIRECTS:
            self._forget()
            return
        names = {name.lower(): value for name, value in fields}
        location = names.get(b"location", b"").decode("utf-8", "surrogateescape")
        try:
            here = _normal(f"http://{asked}{path}")
            there = _normal(urljoin(here, location)) if location else None
        except ValueError:  # no URL at all
            there = None
        if there is None:
            self._forget()
            return
        if hash(here) != self._next or len(self._visits) >= MAX_URLS:
            self._visits.clear()
        self._visits[hash(here)] += 1
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
    """Return a URL without its fragment, and with its authority spelled in the one way."""

    def one_way(found: re.Match[str]) -> str:
        try:
            return f"http://{parse_authority(found['authority'], HTTP_PORT)}"
        except BadDestination:
            return found[0]

    url = _ORIGIN.sub(one_way, urldefrag(url).url, count=1)
    return url if url.count("/") > 2 else f"{url}/"
