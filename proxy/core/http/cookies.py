"""Translates cookies between a server that speaks https and an app that speaks http to it. Such an app's cookie jar
drops, or sends to the wrong host, what the server meant for https; so the name of such a cookie gets a mark (a prefix)
towards the app, and loses it towards the server. `addons.translation` calls it.

Rules of this module (RFC 6265bis):

- A cookie that is only for https stays only for https, although the jar cannot ensure that. If the policy lets plain
  http pass to any host, the cookie's name gets a mark. It goes back by its own name to servers over TLS, and is taken
  out of all requests that leave as plain http. If the policy lets no plain http pass, this needs no mark.
- A cookie whose name begins with `__Host-` or `__Secure-` always gets a mark: no jar accepts it without Secure.
- If a reverse listener stands for a server, all cookies of that server get a mark of its own. The jar knows the server
  only by the listener's address, which several servers may share (a jar does not tell ports apart), and must not send
  the cookies of one to another.
- What no browser accepts (`__Host-` with a Domain, or over plain http) is not accepted here either; and no cookie that
  came over plain http replaces one that is only for https.
- A mark belongs to whoever may set the cookie: one host, or one domain. It cannot be guessed, but whoever receives the
  cookie sees it, also in tunnels. So a domain's mark allows its hosts only what they could do anyway, and never makes a
  `__Host-` name. Servers whose responses pass here cannot set a cookie with a mark themselves.
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
class Delivery:
    """How a request goes to its server.

    Attributes:
        over_tls: whether it leaves over TLS.
        is_translated: whether the app asked for it over plain http, so that its jar does not know that https is used.
        host: the canonical host that it goes to.
        behind: the host that a reverse listener stands for, if the app knows that host by the listener's name only.
        may_be_plain: whether the policy lets plain http pass to any host.
    """

    over_tls: bool
    is_translated: bool = False
    host: str = ""
    behind: str | None = None
    may_be_plain: bool = True


class Cookies:
    """Translates cookies by putting marks before their names."""

    def __init__(self, tag: str) -> None:
        """Start.

        Args:
            tag: letters and digits, which stay the same as long as jars keep cookies, and which nobody else knows.
        """
        self._tag = tag.encode("ascii")

    def _mark(self, kind: str, host: str) -> str:
        """Return the mark of a host, of a domain, or of the host behind a reverse listener."""
        return f"_oc{hmac.digest(self._tag, f'{kind} {host}'.encode(), 'sha256').hex()[:16]}_"

    def _mark_set(self, delivery: Delivery, domain: str) -> str:
        """Return the mark for a cookie that a server sets, for itself or for a domain."""
        if delivery.behind is not None:
            return self._mark("behind", delivery.behind)
        return self._mark("domain", domain) if domain else self._mark("host", delivery.host)

    def _marks_of(self, delivery: Delivery) -> dict[str, bool]:
        """Return the marks of cookies that may go with a request, each with whether it may stand before any name."""
        if not delivery.over_tls:
            return {}
        if delivery.behind is not None:
            return {self._mark("behind", delivery.behind): True}
        marks = {self._mark("host", delivery.host): True}
        domain = delivery.host
        while domain:
            marks[self._mark("domain", domain)] = False
            domain = domain.partition(".")[2]
        return marks

    def received(self, fields: Fields, delivery: Delivery, jar: AbstractSet[str] = frozenset()) -> Fields:
        """Return a response's fields, with the cookies as the app's jar is to keep them.

        Args:
            fields: name and value.
            delivery: how the request went.
            jar: the names of the cookies that came with the request; see `names_sent`.
        """
        found: list[tuple[bytes, bytes]] = []
        for field in fields:
            name, value = field
            if name.lower() != b"set-cookie":
                found.append(field)
                continue
            for cookie in self._kept(value.decode("utf-8", "surrogateescape"), delivery, jar):
                found.append((name, cookie.encode("utf-8", "surrogateescape")))
        return tuple(found)

    def _kept(self, value: str, delivery: Delivery, jar: AbstractSet[str]) -> list[str]:
        """Return the Set-Cookie values for the jar that replace one value of the server."""
        pair, *attributes = value.split(";")
        said = dict(_attribute(each) for each in attributes)
        name, text = _cookie(pair)
        # A cookie without a name comes back as its value alone, which would be read as name and value.
        effective = _UNSEEN.sub("", name or text).lower()  # some jars strip characters that others keep
        if _MARKED.match(effective):
            return []
        if delivery.over_tls and not delivery.is_translated:
            return [value]  # the app speaks https itself: its jar does all this
        if _CONTROL.search(value) or (effective.startswith(_PREFIXES) and not _may_have_prefix(name, said, delivery)):
            return []
        if not delivery.is_translated:
            return [value]
        is_marked = (
            delivery.behind is not None
            or effective.startswith(_PREFIXES)
            or ("secure" in said and delivery.may_be_plain)
        )
        if is_marked and not name:
            return []  # there is no name to mark
        domain = said.get("domain", "").strip(".")
        if is_marked and not domain.isascii():
            return []  # jars differ in how they spell it
        mark = self._mark_set(delivery, domain)
        not_its_own = () if delivery.behind is None else ("domain",)
        kept = [each for each in attributes if not _is_for_tls(each) and _attribute(each)[0] not in not_its_own]
        told = [";".join([mark + pair.lstrip(" \t") if is_marked else pair, *kept])]
        # To the server, the marked and the unmarked name are one cookie. If the jar has the other one, it is deleted.
        twin = name if is_marked else mark + name
        if twin in jar:
            where = [each for each in kept if _attribute(each)[0] in ("path", "domain")]
            told.append(";".join([f"{twin}=", *where, f" {_GONE}"]))
        return told

    def sent(self, fields: Fields, delivery: Delivery) -> Fields:
        """Return a request's fields, with the cookies as the server set them, and without those that must not go there.

        Args:
            fields: name and value.
            delivery: how the request goes.
        """
        if not any(name.lower() == b"cookie" and _STEM in value for name, value in fields):
            return fields
        marks = self._marks_of(delivery)
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
        marks: the marks that may go there, each with whether it may stand before any name.
        hidden: the names of the cookies with such a mark; an unmarked cookie of such a name is somebody else's.
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


def _may_have_prefix(name: str, said: Mapping[str, str], delivery: Delivery) -> bool:
    """Tell whether a cookie may be called `__Secure-…` or, as it is here, `__Host-…`."""
    if not delivery.over_tls or "secure" not in said:
        return False
    return not name.lower().startswith("__host-") or ("domain" not in said and said.get("path") == "/")


def _cookie(pair: str) -> tuple[str, str]:
    """Return name and value of a cookie; text without `=` is a value without a name."""
    name, equals, value = pair.partition("=")
    return (name.strip(" \t"), value.strip(" \t")) if equals else ("", name.strip(" \t"))


def _attribute(attribute: str) -> tuple[str, str]:
    """Return name and value of an attribute in lower case; case makes no difference to those that are looked at."""
    name, _, value = attribute.lower().partition("=")
    return name.strip(" \t"), value.strip(" \t")


def _is_for_tls(attribute: str) -> bool:
    name, value = _attribute(attribute)
    return name in _NEEDS_TLS or (name == "samesite" and value == "none")
