"""Translates header fields between an app and a server that know each other by different URLs: the app asked for
http://host, or for a reverse listener, and the server is https://host. The app must not notice. `addons.translation`
calls it.

Rules of this module:

- In a URL only scheme and authority change. All other bytes stay, and a value that cannot be read stays as a whole.
  Cookies are in `proxy.core.http.cookies`, redirects in a circle in `proxy.core.http.redirects`.
- A https URL is shown to the app as http only if the policy would upgrade that http URL to exactly this https URL, now
  and later, whatever is learned or forgotten about hosts (RFC 6797). So the app's next request through Overcoat is
  never less safe than the server meant.
- Apps often reach local hosts without Overcoat. So a local host is shown as http only if it is the host that was asked
  for, is above or below it, or is named by a rule.
- In the other direction: if the app sends an origin that would be shown to it as http, the server is told the https
  origin; and what the server grants to that origin is granted to the app's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.decisions import Action
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, BadDestination, Destination, is_local, parse_authority
from proxy.core.http.heads import Fields, names_in
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import Policy
from proxy.core.rules.transport import decide_plain_http

type Translate = Callable[[Destination], Destination | None]

_PORTS = {"http": HTTP_PORT, "https": HTTPS_PORT}
# Only authorities that all readers end at the same character; some readers know more characters that end one.
_ORIGIN = r"://(?P<authority>[A-Za-z0-9._\[\]:-]+)(?=[/?#]|$)"
_HTTP_URL = re.compile(rf"(?P<scheme>http){_ORIGIN}", re.IGNORECASE)
_HTTPS_URL = re.compile(rf"(?P<scheme>https){_ORIGIN}", re.IGNORECASE)
# HTML, "shared declarative refresh steps": a time, then optionally `url=` and a quote.
_REFRESH = re.compile(
    r"(?P<before>[ \t]*[0-9.]+[ \t]*[;, \t][ \t]*(?:url[ \t]*=[ \t]*)?)(?P<quote>[\"']?)(?P<url>.*)",
    re.IGNORECASE | re.DOTALL,
)
# A quoted string without an end takes the rest of the value: else each quote in it would be tried as a new start.
_LINK_TARGET = re.compile(r'"(?:[^"\\]++|\\.)*+"?+|<(?P<target>[^<>"]*+)>')
_FORWARDED_PROTO = re.compile(r"(?i)((?:^|[;,])[ \t]*proto[ \t]*=[ \t]*)(\"?)http\2(?=[ \t]*(?:[;,]|$))")
_OFF = re.compile(r"(?i)off")
_PLAIN_PROTO = re.compile(r"(?i)(?<![^,\s])http(?![^,\s])")
_UPGRADES = "upgrade-insecure-requests"


@dataclass(frozen=True, slots=True)
class View:
    """How an app names destinations that a server names differently.

    Attributes:
        asked: the destination that the app asked for, as the app names it.
        to_server: returns the https destination for a plain http destination as the app names it; None if there is
            none.
        to_app: returns the plain http destination for a https destination; None if there is none.
    """

    asked: Destination
    to_server: Translate
    to_app: Translate


def upgraded(
    policy: Policy, asked: Destination, known: KnownHosts | None = None, lasting: KnownHosts | None = None
) -> View:
    """Return the view of an app whose plain http is upgraded.

    Args:
        policy: the policy in force.
        asked: the destination that the app asked for, before the upgrade.
        known: as for `decide_plain_http`.
        lasting: those of the known hosts that are never forgotten.
    """

    def leads_to(named: Destination, hosts: KnownHosts | None) -> Destination | None:
        decision = decide_plain_http(policy, named, hosts)[1]
        return decision.target if decision.action is Action.UPGRADE else None

    def is_elsewhere(there: Destination) -> bool:
        return is_local(there.host) and not _is_near(there.host, asked.host) and policy.rule_for(there) is None

    def to_app(there: Destination) -> Destination | None:
        if is_elsewhere(there):
            return None
        candidates = (asked, Destination(there.host, HTTP_PORT), there)
        return next((each for each in candidates if leads_to(each, lasting) == there), None)

    def to_server(named: Destination) -> Destination | None:
        there = leads_to(named, known)
        return None if there is None or is_elsewhere(there) else there

    return View(asked, to_server, to_app)


def _is_near(one: str, other: str) -> bool:
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def renamed(front: Destination, to: Destination) -> View:
    """Return the view of an app for which a reverse listener is the server.

    Args:
        front: the listener, as the app names it.
        to: the https host that the listener stands for.
    """
    return View(front, {front: to}.get, {to: front}.get)


def request_fields(fields: Fields, view: View) -> Fields:
    """Return a request's fields as the server must see them.

    Args:
        fields: name and value, as the app sent them.
        view: the view of the app.
    """
    return _changed(fields, OF_REQUESTS, view, "")


def response_fields(fields: Fields, view: View, app_origin: str = "") -> Fields:
    """Return a response's fields as the app must see them.

    Args:
        fields: name and value, as the server sent them.
        view: the view of the app.
        app_origin: the Origin that the app sent with the request; "" for none.
    """
    return _changed(fields, OF_RESPONSES, view, app_origin)


def interim_fields(fields: Fields, view: View) -> Fields:
    """Return the fields of an interim response (RFC 9110, section 15.2) as the app must see them.

    Args:
        fields: name and value, as the server sent them.
        view: the view of the app.
    """
    # No client accepts cookies from interim responses, so they are left alone here.
    return tuple(field for field in response_fields(fields, view) if field[0].lower() != b"set-cookie")


def _changed(fields: Fields, changes: dict[bytes, _Change], view: View, app_origin: str) -> Fields:
    if names_in(fields).isdisjoint(changes):
        return fields
    found: list[tuple[bytes, bytes]] = []
    for field in fields:
        name, value = field
        change = changes.get(name.lower())
        if change is None:
            found.append(field)
            continue
        changed = change(value.decode("utf-8", "surrogateescape"), view, app_origin)
        if changed is not None:
            found.append((name, changed.encode("utf-8", "surrogateescape")))
    return tuple(found)


def _url_for_server(value: str, view: View, _app_origin: str) -> str:
    return _translated(value, _HTTP_URL, "https", view.to_server)


def _port_for_server(value: str, view: View, _app_origin: str) -> str:
    there = view.to_server(view.asked)
    return str(there.port) if there is not None and value.strip() == str(view.asked.port) else value


def _url_for_app(value: str, view: View, _app_origin: str) -> str:
    return _translated(value, _HTTPS_URL, "http", view.to_app)


def _origin_for_app(value: str, view: View, app_origin: str) -> str:
    return app_origin if value == _url_for_server(app_origin, view, "") else _url_for_app(value, view, "")


def _refresh_for_app(value: str, view: View, _app_origin: str) -> str:
    found = _REFRESH.fullmatch(value)
    if found is None:
        return value
    quote = found["quote"]
    there, end, after = found["url"].partition(quote) if quote else (found["url"], "", "")
    return found["before"] + quote + _url_for_app(there, view, "") + end + after


def _links_for_app(value: str, view: View, _app_origin: str) -> str:
    def link(found: re.Match[str]) -> str:
        return found[0] if found["target"] is None else f"<{_url_for_app(found['target'], view, '')}>"

    return _LINK_TARGET.sub(link, value)


def _translated(value: str, pattern: re.Pattern[str], scheme: str, translate: Translate) -> str:
    found = pattern.match(value)
    if found is None:
        return value
    try:
        there = parse_authority(found["authority"], _PORTS[found["scheme"].lower()])
    except BadDestination:
        return value
    if (here := translate(there)) is None:
        return value
    authority = here.url_host if here.port == _PORTS[scheme] else here.authority
    return f"{scheme}://{authority}{value[found.end() :]}"


def _without_upgrade(value: str) -> str | None:
    """Return a Content-Security-Policy without the directive that sends browsers to https; None if nothing is left."""
    policies = []
    for policy in value.split(","):
        kept = [directive for directive in policy.split(";") if directive.strip().lower() != _UPGRADES]
        if any(directive.strip() for directive in kept):
            policies.append(";".join(kept))
    return ",".join(policies) or None


# Changes a field's value, given the app's view and the Origin that it sent; None removes the field.
type _Change = Callable[[str, View, str], str | None]
OF_REQUESTS: dict[bytes, _Change] = {
    b"origin": _url_for_server,
    b"referer": _url_for_server,
    b"destination": _url_for_server,  # RFC 4918, section 10.3
    b"x-forwarded-proto": lambda value, *_: _PLAIN_PROTO.sub("https", value),
    b"x-forwarded-port": _port_for_server,
    b"x-forwarded-ssl": lambda value, *_: _OFF.sub("on", value),
    b"front-end-https": lambda value, *_: _OFF.sub("on", value),
    b"forwarded": lambda value, *_: _FORWARDED_PROTO.sub(r"\1\2https\2", value),
}
OF_RESPONSES: dict[bytes, _Change] = {
    b"location": _url_for_app,
    b"content-location": _url_for_app,
    b"access-control-allow-origin": _origin_for_app,
    b"timing-allow-origin": _origin_for_app,
    b"refresh": _refresh_for_app,
    b"link": _links_for_app,
    b"strict-transport-security": lambda *_: None,
    b"content-security-policy": lambda value, *_: _without_upgrade(value),
}
