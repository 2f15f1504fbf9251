"""Cookies of servers that speak https, in the jar of an app that speaks http.

Rules of this module (RFC 6265bis):

- A cookie that is only for https keeps that, though the jar cannot: its name gets a mark, with which it goes back to
  servers over TLS only, by its own name. From what leaves as plain http it is taken out.
- What no browser would take (`__Host-` with a Domain, `__Secure-` without Secure) is not taken here either.
- The mark cannot be guessed, and no server can set it: a cookie that has it came through here.
"""

from __future__ import annotations

from proxy.core.heads import Fields

_NEEDS_TLS = frozenset(("secure", "partitioned"))


class Cookies:
    """Translates cookies by one mark."""

    def __init__(self, tag: str) -> None:
        """Start.

        Args:
            tag: letters and digits, the same for as long as jars last, and known to nobody else.
        """
        self._mark = f"_oc{tag}_"

    def received(self, fields: Fields, *, is_translated: bool, keeps_domain: bool = True) -> Fields:
        """Return a response's fields with its cookies as the app's jar keeps them.

        Args:
            fields: name and value.
            is_translated: whether the app asked over plain http for what was answered over TLS.
            keeps_domain: whether the app knows the server by its own name.
        """
        found = []
        for name, value in fields:
            if name.lower() != b"set-cookie":
                found.append((name, value))
                continue
            cookie: str | None = value.decode("utf-8", "surrogateescape")
            if cookie is not None and cookie.lstrip(" \t").startswith(self._mark):
                cookie = None
            elif cookie is not None and is_translated:
                cookie = self._marked(cookie, keeps_domain=keeps_domain)
            if cookie is not None:
                found.append((name, cookie.encode("utf-8", "surrogateescape")))
        return tuple(found)

    def _marked(self, value: str, *, keeps_domain: bool) -> str | None:
        pair, *attributes = value.split(";")
        said = {
            name.strip(" \t").lower(): text.strip(" \t") for name, _, text in (a.partition("=") for a in attributes)
        }
        is_secure = "secure" in said
        name = pair.partition("=")[0].strip(" \t").lower() if "=" in pair else ""
        if name.startswith("__secure-") and not is_secure:
            return None
        if name.startswith("__host-") and (not is_secure or "domain" in said or said.get("path") != "/"):
            return None
        if is_secure and not name:
            return None  # there is nothing to mark
        kept = [
            attribute
            for attribute in attributes
            if not _is_for_tls(attribute) and (keeps_domain or _name_of(attribute) != "domain")
        ]
        return ";".join([self._mark + pair.lstrip(" \t") if is_secure else pair, *kept])

    def sent(self, fields: Fields, *, over_tls: bool) -> Fields:
        """Return a request's fields with its cookies as the server set them, or without those for TLS only.

        Args:
            fields: name and value.
            over_tls: whether the request leaves over TLS.
        """
        found = []
        for name, value in fields:
            if name.lower() != b"cookie" or self._mark.encode("ascii") not in value:
                found.append((name, value))
                continue
            pairs = [pair.strip(" \t") for pair in value.decode("utf-8", "surrogateescape").split(";")]
            if over_tls:
                pairs = [pair.removeprefix(self._mark) for pair in pairs]
            else:
                pairs = [pair for pair in pairs if not pair.startswith(self._mark)]
            if pairs:
                found.append((name, "; ".join(pairs).encode("utf-8", "surrogateescape")))
        return tuple(found)


def _name_of(attribute: str) -> str:
    return attribute.partition("=")[0].strip(" \t").lower()


def _is_for_tls(attribute: str) -> bool:
    name, _, value = (part.strip(" \t").lower() for part in attribute.partition("="))
    return name in _NEEDS_TLS or (name == "samesite" and value == "none")
