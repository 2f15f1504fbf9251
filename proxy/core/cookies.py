"""Cookies of servers that speak https, in the jar of an app that speaks http.

Rules of this module (RFC 6265bis):

- A cookie that is only for https keeps that, though the jar cannot: its name gets a mark, with which it goes back to
  servers over TLS only, by its own name. From what leaves as plain http it is taken out.
- Where a reverse listener stands for a server, all its cookies have a mark of that server's: the jar knows it only by
  the listener's address, which others may share (a jar does not tell ports apart), and must not give one server's to
  another.
- What no browser would take (`__Host-` with a Domain, or over plain http) is not taken here either, and no cookie of
  plain http stands in for one that is only for https.
- The mark cannot be guessed, and no server can set it: a cookie that has it came through here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from proxy.core.heads import Fields

_NEEDS_TLS = frozenset(("secure", "partitioned"))
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PREFIXES = ("__secure-", "__host-")
_GONE = "Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"


@dataclass(frozen=True, slots=True)
class Way:
    """How a request goes to its server.

    Attributes:
        over_tls: whether it leaves over TLS.
        is_translated: whether the app asked for it over plain http, so that its jar knows nothing of https.
        behind: the host that a reverse listener stands for, if the app knows it by the listener's name only.
    """

    over_tls: bool
    is_translated: bool = False
    behind: str | None = None


class Cookies:
    """Translates cookies by one mark, or one for each server that is known by another name."""

    def __init__(self, tag: str) -> None:
        """Start.

        Args:
            tag: letters and digits, the same for as long as jars last, and known to nobody else.
        """
        self._stem = f"_oc{tag}"

    def _mark(self, way: Way) -> str:
        if way.behind is None:
            return f"{self._stem}_"
        return f"{self._stem}{hashlib.sha256(f'{self._stem} {way.behind}'.encode()).hexdigest()[:8]}_"

    def received(self, fields: Fields, way: Way, jar: AbstractSet[str] = frozenset()) -> Fields:
        """Return a response's fields with its cookies as the app's jar keeps them.

        Args:
            fields: name and value.
            way: how the request went.
            jar: the names of the cookies that came with it; see `names_sent`.
        """
        found: list[tuple[bytes, bytes]] = []
        for name, value in fields:
            if name.lower() != b"set-cookie":
                found.append((name, value))
                continue
            for cookie in self._kept(value.decode("utf-8", "surrogateescape"), way, jar):
                found.append((name, cookie.encode("utf-8", "surrogateescape")))
        return tuple(found)

    def _kept(self, value: str, way: Way, jar: AbstractSet[str]) -> list[str]:
        """Return what the jar is to be told instead of one Set-Cookie value."""
        pair, *attributes = value.split(";")
        said = dict(_attribute(each) for each in attributes)
        name, text = _cookie(pair)
        # Without a name, the jar sends the value alone, and that would be read as name and value.
        effective = (name or text).lower()
        if effective.startswith(self._stem):
            return []
        if way.over_tls and not way.is_translated:
            return [value]  # the app's jar knows all that counts
        if _CONTROL.search(value) or (effective.startswith(_PREFIXES) and not _may_have_prefix(name, said, way)):
            return []
        if not way.is_translated:
            return [value]
        is_secure = "secure" in said
        is_marked = is_secure or way.behind is not None
        if is_marked and not name:
            return []  # there is nothing to mark
        mark = self._mark(way)
        not_its_own = () if way.behind is None else ("domain",)
        kept = [each for each in attributes if not _is_for_tls(each) and _attribute(each)[0] not in not_its_own]
        told = [";".join([mark + pair.lstrip(" \t") if is_marked else pair, *kept])]
        # To the server it is one cookie, secure or not; the jar has it by the other name, if it has it already.
        twin = name if is_marked else mark + name
        if twin in jar:
            where = [each for each in kept if _attribute(each)[0] in ("path", "domain")]
            told.append(";".join([f"{twin}=", *where, f" {_GONE}"]))
        return told

    def sent(self, fields: Fields, way: Way) -> Fields:
        """Return a request's fields with its cookies as the server set them, or without those for TLS only.

        Args:
            fields: name and value.
            way: how the request goes.
        """
        if not any(name.lower() == b"cookie" and self._stem.encode("ascii") in value for name, value in fields):
            return fields
        mark = self._mark(way)
        names = names_sent(fields)
        found = []
        for name, value in fields:
            if name.lower() != b"cookie":
                found.append((name, value))
                continue
            pairs = [pair.strip(" \t") for pair in value.decode("utf-8", "surrogateescape").split(";")]
            kept = [pair.removeprefix(mark) for pair in pairs if self._may_go(pair, mark, names, way)]
            if kept:
                found.append((name, "; ".join(kept).encode("utf-8", "surrogateescape")))
        return tuple(found)

    def _may_go(self, pair: str, mark: str, names: AbstractSet[str], way: Way) -> bool:
        """Tell whether one of a request's cookies may go where the request goes."""
        if pair.startswith(self._stem):
            return way.over_tls and pair.startswith(mark)
        return not way.over_tls or mark + _cookie(pair)[0] not in names


def names_sent(fields: Fields) -> frozenset[str]:
    """Return the names of a request's cookies, as the app's jar knows them.

    Args:
        fields: name and value, as the app sent them.
    """
    return frozenset(
        _cookie(pair)[0]
        for name, value in fields
        if name.lower() == b"cookie"
        for pair in value.decode("utf-8", "surrogateescape").split(";")
    )


def _may_have_prefix(name: str, said: Mapping[str, str], way: Way) -> bool:
    """Tell whether a cookie may be called `__Secure-…` or, as it is here, `__Host-…`."""
    if not way.over_tls or not name or "secure" not in said:
        return False
    return not name.lower().startswith("__host-") or ("domain" not in said and said.get("path") == "/")


def _cookie(pair: str) -> tuple[str, str]:
    """Return name and value; what has no `=` is a value without a name."""
    name, equals, value = pair.partition("=")
    return (name.strip(" \t"), value.strip(" \t")) if equals else ("", name.strip(" \t"))


def _attribute(attribute: str) -> tuple[str, str]:
    """Return name and value in lower case, which for what is asked of them makes no difference."""
    name, _, value = attribute.lower().partition("=")
    return name.strip(" \t"), value.strip(" \t")


def _is_for_tls(attribute: str) -> bool:
    name, value = _attribute(attribute)
    return name in _NEEDS_TLS or (name == "samesite" and value == "none")
