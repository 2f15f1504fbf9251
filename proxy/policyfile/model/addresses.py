"""Parses hosts, addresses and listeners as the policy file writes them. `proxy.policyfile.model.values` calls it, and
`proxy.policyfile.load` for flags and variables.

Rules of this module:

- Each error says what would be right.
- None repeats what stands where a URL may have a password in it by mistake.
- A host has one spelling from here on (`proxy.core.destinations`); international names become A-labels (UTS 46).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import idna

from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, BadDestination, Destination, canonical_host, parse_authority
from proxy.core.rules.policy import HostPattern, Listener, ListenerKind, Mirror
from proxy.core.who.addresses import address_set, parse_addresses

_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_SCHEME = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]*+)://")
_NETWORK = re.compile(r"[0-9a-fA-F.:]++/[0-9]{1,3}")
_URL_PATH = re.compile(r"[!-~]*")
MAX_PATH_LENGTH = 4096
MAX_PORT = 65535


def parse_host_pattern(text: str) -> HostPattern:
    """Read one entry of a rule's `hosts`.

    Args:
        text: `name`, `*.name`, `**.name` or an IP address, each with or without `:port`; international names are
            mapped to A-labels first (UTS 46).

    Raises:
        ValueError: the text is none of these; the message says what would be right.
    """
    if text in ("*", "**"):
        raise ValueError("a rule for every host is what `defaults` is for; name a domain after the stars")
    scheme = _SCHEME.match(text)
    if scheme:
        raise ValueError(f"only the host is named here: leave {scheme[0]} out, and any path")
    if _NETWORK.fullmatch(text):
        raise ValueError("a rule is for hosts, and this is a network: `destinations` says which networks are reached")
    if "/" in text:
        raise ValueError("only the host is named here; paths go into `when.paths`")
    kind: Literal["exact", "one_label", "any_depth"] = "exact"
    rest = text
    if text.startswith("**."):
        kind, rest = "any_depth", text[3:]
    elif text.startswith("*."):
        kind, rest = "one_label", text[2:]
    if "*" in rest:
        raise ValueError("a star stands only as the whole first label: `*.name` (one label) or `**.name` (any depth)")
    host, port = _split_port(rest)
    canonical = canonical_host(ascii_host(host))
    if kind != "exact" and (":" in canonical or canonical.replace(".", "").isdigit()):
        raise ValueError("an address has no labels that a star could stand for")
    return HostPattern(kind, canonical, port)


def _split_port(text: str) -> tuple[str, int | None]:
    """Split `host[:port]`; an IPv6 address without brackets is a host without a port."""
    closing = text.rfind("]")
    colon = text.rfind(":")
    if colon < 0 or colon < closing or (closing < 0 and text.count(":") > 1):
        return text, None
    return text[:colon], _port(text[colon + 1 :], lowest=1)


def _port(text: str, *, lowest: int) -> int:
    if not _PORT.fullmatch(text) or not lowest <= int(text) <= MAX_PORT:
        raise ValueError(f"the port is a number from {lowest} to 65535")
    return int(text)


def ascii_host(host: str) -> str:
    """Return an international host name as A-labels (UTS 46, RFC 5891), and an ASCII name unchanged and unchecked.

    Raises:
        ValueError: it is no valid international host name.
    """
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise ValueError("this is no valid international host name (UTS 46, RFC 5891)") from None


def parse_address(text: str) -> Listener:
    """Read `HOST:PORT`, an address to listen on; port 0 lets the system choose.

    Raises:
        ValueError: it is malformed; the message says what would be right.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        right = f": write 127.0.0.1:{text}" if _is_port(text) else ", such as 127.0.0.1:8080 or [::1]:8080"
        raise ValueError(f"an address is HOST:PORT{right}")
    if not host:
        raise ValueError(
            "the host is empty: put 127.0.0.1 before the colon for this machine alone, or 0.0.0.0 where others are to "
            "reach it"
        )
    return Listener(canonical_host(host), _port(port, lowest=0))


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= MAX_PORT


def _address_in(text: str) -> str | None:
    """Return the address inside a text that is not a listener; None if there is none."""
    rest = _SCHEME.sub("", text, count=1).partition("/")[0]
    rest = f"127.0.0.1:{rest}" if _is_port(rest) else rest
    try:
        parse_address(rest)
    except ValueError:
        return None
    return rest


def parse_listener(text: str) -> Listener:
    """Read `forward://HOST:PORT`, `socks5://…`, `transparent://…`, `reverse://HOST:PORT?to=https://HOST`, or
    `mirror://HOST:PORT?to=URL&for=HOST`.

    Raises:
        ValueError: it is malformed or of another kind; the message says what would be right.
    """
    scheme = _SCHEME.match(text)
    address_in = _address_in(text)
    if not scheme:
        right = f": write forward://{address_in}" if address_in else ", such as forward://127.0.0.1:8080"
        raise ValueError(f"a listener is forward://HOST:PORT{right}")
    if scheme[1] not in list(ListenerKind):
        right = f"; for apps that know a proxy write forward://{address_in}" if address_in else ""
        raise ValueError(
            f"a listener is forward://, reverse://, socks5://, transparent:// or mirror://, not {scheme[0]}{right}"
        )
    kind = ListenerKind(scheme[1])
    address, has_query, query = text.removeprefix(scheme[0]).partition("?")
    if kind is ListenerKind.MIRROR:
        return replace(parse_address(address), kind=kind, mirror=_parse_mirror(query))
    if kind is not ListenerKind.REVERSE:
        if has_query:
            raise ValueError(f"a {kind} listener has no ?…; only reverse:// and mirror:// have, for where they lead")
        return replace(parse_address(address), kind=kind)
    name, _, url = query.partition("=")
    if name != "to" or not url.startswith("https://"):
        raise ValueError(
            "a reverse listener says which https host it stands for: reverse://127.0.0.1:9001?to=https://api.example"
        )
    authority = url.removeprefix("https://").removesuffix("/")
    if "/" in authority:
        raise ValueError("a reverse listener stands for a whole host: write no path; the app's own is sent on")
    to = parse_authority(ascii_host(authority), HTTPS_PORT)
    return replace(parse_address(address), kind=kind, to=to)


_MIRROR_LIKE = "mirror://0.0.0.0:8443?to=http://127.0.0.1:5000&for=api.example&cert=server.pem&key=server.key"


def _parse_mirror(query: str) -> Mirror:
    """Read what follows the `?` of a mirror listener: parameters between `&`, nothing escaped.

    Raises:
        ValueError: a parameter is missing, unknown, doubled or wrong.
    """
    found: dict[str, list[str]] = {"to": [], "for": [], "cert": [], "key": [], "from": []}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name not in found or not value:
            raise ValueError(
                f"a mirror listener has to=, for=, cert=, key= and from=, each with a value: {_MIRROR_LIKE}"
            )
        if value in found[name]:
            raise ValueError(f"{name}={value} stands twice")
        found[name].append(value)
    for name in ("to", "for"):
        if not found[name]:
            what = "where its server is" if name == "to" else "which host it stands for"
            raise ValueError(f"a mirror listener says {what} ({name}=): {_MIRROR_LIKE}")
    for name in ("to", "cert", "key"):
        if len(found[name]) > 1:
            raise ValueError(f"{name}= stands twice; only for= and from= may")
    if bool(found["cert"]) != bool(found["key"]):
        raise ValueError("cert= and key= go together: with both it speaks TLS, and without them plain http")
    for name in ("for", "from"):
        for value in found[name]:
            if "," in value:
                several = "&".join(f"{name}={each.strip()}" for each in value.split(","))
                raise ValueError(f"{name}= has one value each time; write {several}")
    names = [_parse_stood_for(text) for text in found["for"]]
    if len(set(names)) < len(names):
        raise ValueError("two of its for= name the same host")
    to, is_plain = _parse_server_url(found["to"][0])
    cert, key = (parse_path(found[name][0]) if found[name] else None for name in ("cert", "key"))
    if "any" in found["from"]:
        if len(found["from"]) > 1 or cert is None:
            raise ValueError(
                "from=any stands alone, and only where cert= and key= are given: others name who may connect"
            )
        return Mirror(to, is_plain, tuple(names), cert, key, is_open=True)
    peers = address_set([parse_addresses(text) for text in found["from"]]) if found["from"] else None
    return Mirror(to, is_plain, tuple(names), cert, key, peers)


def _parse_stood_for(text: str) -> str:
    pattern = parse_host_pattern(text)
    if pattern.kind != "exact" or pattern.port is not None:
        raise ValueError("for= is one whole host, without stars and without a port; write for= again for another one")
    return pattern.host


def _parse_server_url(text: str) -> tuple[Destination, bool]:
    """Return where a mirror's server is, and whether it is spoken to in plain http."""
    scheme = _SCHEME.match(text)
    if not scheme or scheme[1] not in ("http", "https"):
        raise ValueError("to= is http://HOST:PORT, or https://HOST:PORT where the server behind speaks TLS itself")
    authority = text.removeprefix(scheme[0]).removesuffix("/")
    if "/" in authority or "?" in authority or "@" in authority:
        raise ValueError("to= names a whole server: write no path, no query and no name; the app's own path is sent on")
    is_plain = scheme[1] == "http"
    return parse_authority(ascii_host(authority), HTTP_PORT if is_plain else HTTPS_PORT), is_plain


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """The address of a proxy, from its URL."""

    destination: Destination
    is_https: bool


def parse_proxy_url(text: str) -> ProxyAddress:
    """Read `http://HOST:PORT` or `https://HOST:PORT`.

    Raises:
        ValueError: it is malformed, or has credentials in it.
    """
    scheme = _SCHEME.match(text)
    if not scheme or scheme[1] not in ("http", "https"):
        raise ValueError("a proxy is http://HOST:PORT or https://HOST:PORT")
    rest = text.removeprefix(scheme[0]).removesuffix("/")
    if "@" in rest:
        raise ValueError("credentials do not stand in the URL: say where they come from in `credentials`")
    return ProxyAddress(_authority_of_url(rest), scheme[1] == "https")


def _authority_of_url(text: str, default_port: int | None = None) -> Destination:
    """Read the authority of a URL in which a password may stand by mistake.

    Raises:
        ValueError: it is malformed. The message repeats nothing of it.
    """
    try:
        return parse_authority(ascii_host(text), default_port)
    except BadDestination as error:
        is_repeated = "'" in str(error) or '"' in str(error)
        why = "the host is no valid name, and no address" if is_repeated else str(error)
        raise ValueError(why) from None


def parse_admin(text: str) -> Listener:
    """Read the admin listener's address, which has no scheme, unlike those of other listeners.

    Raises:
        ValueError: it is malformed; the message says what would be right.
    """
    if _SCHEME.match(text):
        raise ValueError(f"the admin listener has no scheme: write {_address_in(text) or 'HOST:PORT'}")
    return parse_address(text)


def parse_path(text: str) -> str:
    """Return the name of a file.

    Raises:
        ValueError: it is too long, or a key that stands where its file's name should; the key is not quoted.
    """
    if "-----BEGIN" in text or text.lstrip().startswith("{"):
        raise ValueError("this is a key, not the name of a file that holds one; move it into a file")
    if not 1 <= len(text) <= MAX_PATH_LENGTH:
        raise ValueError(f"a file name has 1 to {MAX_PATH_LENGTH} characters")
    return text


@dataclass(frozen=True, slots=True)
class JwksUrl:
    """Where a JWK Set is published: an https URL.

    Attributes:
        destination: its canonical host and port.
        path: its path with the query, in printable ASCII.
    """

    destination: Destination
    path: str

    def __str__(self) -> str:
        host, port = self.destination.url_host, self.destination.port
        return f"https://{host if port == HTTPS_PORT else self.destination.authority}{self.path}"


def parse_jwks_url(text: str) -> JwksUrl:
    """Read the URL of a JWK Set.

    Raises:
        ValueError: it is no https URL, or has a user or a fragment; the message says what would be right.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() != "https":
        raise ValueError("keys are fetched over https only: write https://HOST/PATH")
    authority, slash, path = rest.partition("/")
    if "@" in authority or "#" in text or "?" in authority:
        raise ValueError("this is https://HOST[:PORT]/PATH, without a user and without a fragment")
    if not _URL_PATH.fullmatch(path):
        raise ValueError("the path is printable ASCII without blanks: write everything else as %XX")
    return JwksUrl(_authority_of_url(authority, HTTPS_PORT), f"{slash or '/'}{path}")
