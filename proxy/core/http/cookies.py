"""Cookies of servers that speak https, in the jar of an app that speaks http.

Rules of this module (RFC 6265bis):

- A cookie that is only for https keeps that, though the jar cannot: where the policy lets plain http pass to any host,
  its name gets a mark, with which it goes back to servers over TLS only, by its own name. From what leaves as plain
  http it is taken out. Where no plain http passes, nothing has to be marked for that.
- A cookie whose name begins with `__Host-` or `__Secure-` gets the mark in any case: without Secure, no jar takes that.
- Where a reverse listener stands for a server, all its cookies have a mark of that server's: the jar knows it only by
  the listener's address, which others may share (a jar does not tell ports apart), and must not give one server's to
  another.
- What no browser would take (`__Host-` with a Domain, or over plain http) is not taken here either, and no cookie of
  plain http stands in for one that is only for https.
- A mark is of those who may set the cookie: of one host, or of a domain. It cannot be guessed, but whoever gets the
  cookie sees it, in tunnels, too. So one of a domain lets its hosts do what they could do anyway, and no `__Host-`
  name ever comes of it; and from servers that are answered here nobody can set one.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from proxy.core.http.heads import Fields

_NEEDS_TLS = frozenset(("secure", "partitioned"))
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_STEM = b"_oc"
_MARKED = re.compile(r"(_oc[0-9a-f]{16}_)(.*)", re.DOTALL)
_UNSEEN = re.compile(r"[^\x21-\x7e]+")
_PREFIXES = ("__secure-", "__host-")
_GONE = "Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT"


@dataclass(frozen=True, slots=True)
class Way:
    """How a request goes to its server.

    Attributes:
        over_tls: whether it leaves over TLS.
        is_translated: whether the app asked for it over plain http, so that its jar knows nothing of https.
        host: the canonical host that it goes to.
        behind: the host that a reverse listener stands for, if the app knows it by the listener's name only.
        may_be_plain: whether the policy lets plain http pass to any host.
    """

    over_tls: bool
    is_translated: bool = False
    host: str = ""
    behind: str | None = None
    may_be_plain: bool = True


class Cookies:
    """Translates cookies by marks in their names."""

    def __init__(self, tag: str) -> None:
        """Start.

        Args:
            tag: letters and digits, the same for as long as jars last, and known to nobody else.
        """
        self._tag = tag.encode("ascii")

    def _mark(self, kind: str, host: str) -> str:
        """Return the mark of what is a host's, a domain's, or set by the host behind a reverse listener."""
        return f"_oc{hmac.digest(self._tag, f'{kind} {host}'.encode(), 'sha256').hex()[:16]}_"

    def _mark_set(self, way: Way, domain: str) -> str:
        """Return the mark of a cookie that a server sets, for itself or for a domain."""
        if way.behind is not None:
            return self._mark("behind", way.behind)
        return self._mark("domain", domain) if domain else self._mark("host", way.host)

    def _marks_of(self, way: Way) -> dict[str, bool]:
        """Return the marks of cookies that may go with a request, and whether any name may come of each."""
        if not way.over_tls:
            return {}
        if way.behind is not None:
            return {self._mark("behind", way.behind): True}
        marks = {self._mark("host", way.host): True}
        domain = way.host
        while domain:
            marks[self._mark("domain", domain)] = False
            domain = domain.partition(".")[2]
        return marks

    def received(self, fields: Fields, way: Way, jar: AbstractSet[str] = frozenset()) -> Fields:
        """Return a response's fields with its cookies as the app's jar keeps them.

        Args:
            fields: name and value.
            way: how the request went.
            jar: the names of the cookies that came with it; see `names_sent`.
        """
        found: list[tuple[bytes, bytes]] = []
        for field in fields:
            name, value = field
            if name.lower() != b"set-cookie":
                found.append(field)
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
        effective = _UNSEEN.sub("", name or text).lower()  # some jars strip what others keep
        if _MARKED.match(effective):
            return []
        if way.over_tls and not way.is_translated:
            return [value]  # the app's jar knows all that counts
        if _CONTROL.search(value) or (effective.startswith(_PREFIXES) and not _may_have_prefix(name, said, way)):
            return []
        if not way.is_translated:
            return [value]
        is_marked = way.behind is not None or effective.startswith(_PREFIXES) or ("secure" in said and way.may_be_plain)
        if is_marked and not name:
            return []  # there is nothing to mark
        domain = said.get("domain", "").strip(".")
        if is_marked and not domain.isascii():
            return []  # who knows how the jar spells it
        mark = self._mark_set(way, domain)
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
        if not any(name.lower() == b"cookie" and _STEM in value for name, value in fields):
            return fields
        marks = self._marks_of(way)
        hidden = {each[2] for name in names_sent(fields) if (each := _MARKED.match(name)) and each[1] in marks}
        found = []
        for field in fields:
            name, value = field
            if name.lower() != b"cookie":
                found.append(field)
                continue
            pairs = [pair.strip(" \t") for pair in value.decode("utf-8", "surrogateescape").split(";")]
            kept = [named for pair in pairs if (named := _as_set(pair, marks, hidden)) is not None]
            if kept:
                found.append((name, "; ".join(kept).encode("utf-8", "surrogateescape")))
        return tuple(found)


def _as_set(pair: str, marks: Mapping[str, bool], hidden: AbstractSet[str]) -> str | None:
    """Return one of a request's cookies as the server set it; None if it must not go there.

    Args:
        pair: name and value, as the app's jar has them.
        marks: the marks that count, and whether any name may come of each.
        hidden: the names that cookies with such a mark have; one without is somebody else's.
    """
    found = _MARKED.match(pair)
    if found is None:
        return None if _cookie(pair)[0] in hidden else pair
    may_be_any = marks.get(found[1])
    if may_be_any is None or (not may_be_any and found[2].lower().startswith("__host-")):
        return None
    return found[2]


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
    if not way.over_tls or "secure" not in said:
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
