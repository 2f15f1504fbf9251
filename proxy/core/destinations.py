"""Destinations: a host and a port, always in one canonical spelling. Whatever compares hosts or looks up a rule calls
this first: the addons, the engine, the policy file's reader and the commands.

Rules of this module:

- One destination has one spelling: lower-case A-labels without a trailing dot, dotted-quad IPv4, compressed IPv6
  without brackets; an IPv4-mapped IPv6 address is its IPv4 address. Policy look-ups, pins and comparisons use only it.
- An ambiguous spelling (`0x7f.1`, `127.1`, `2130706433`, userinfo, a zone id, percent-escapes) is refused, never
  guessed: the resolver might read it differently from the policy.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

HTTP_PORT = 80
HTTPS_PORT = 443
CACHED = 1024  # apps ask for few hosts, many times; without the cache, parsing takes a tenth of a request's time
MAX_HOST_LENGTH = 253  # RFC 1035, section 2.3.4, without the trailing dot

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_LOOKS_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_PORT = re.compile(r"[0-9]{1,5}")
_LOCAL_SUFFIXES = (
    *(".localhost", ".local", ".home.arpa"),  # RFC 6761, RFC 6762, RFC 8375
    *(".internal", ".home", ".corp", ".lan", ".intranet", ".private"),  # names that the DNS root will never delegate
)


class BadDestination(ValueError):
    """A host or authority that is malformed or ambiguous. The message says what is wrong with it."""


class Destination(NamedTuple):
    """A canonical host and a TCP port. A tuple, since it is the key of many a look-up in each request.

    Attributes:
        host: canonical name or address, as `canonical_host` returns it.
        port: 1 to 65535.
    """

    host: str
    port: int

    @property
    def authority(self) -> str:
        """The `host:port` form, with brackets round an IPv6 address (RFC 3986, section 3.2)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url_host(self) -> str:
        """The host as it stands in a URL: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return self.authority


@lru_cache(maxsize=CACHED)
def canonical_host(text: str) -> str:
    """Return the one spelling of a host name or IP address.

    Args:
        text: a name (A-labels), an IPv4 address, or an IPv6 address with or without brackets.

    Raises:
        BadDestination: the host is empty, too long, malformed, or a numeric form that resolvers read differently.
    """
    host = text
    if host.startswith("["):
        if not host.endswith("]"):
            raise BadDestination(f"{text!r} has an opening bracket but no closing one")
        host = host[1:-1]
        if ":" not in host:
            raise BadDestination(f"{text!r} has brackets round something that is no IPv6 address")
    if ":" in host:
        return _canonical_ipv6(host, text)
    host = host.removesuffix(".")
    if not host:
        raise BadDestination("the host is empty")
    if not host.isascii():
        raise BadDestination(f"{text!r} is not ASCII; international names travel as A-labels (xn--…, RFC 5890)")
    host = host.lower()
    labels = host.split(".")
    # WHATWG URL and inet_aton take any host with a numeric last label for an address. Only the plain form passes here.
    if _LOOKS_NUMERIC.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadDestination(f"{text!r} is no plain dotted-quad IPv4 address") from None
    if len(host) > MAX_HOST_LENGTH:
        raise BadDestination(f"the host name has {len(host)} characters, more than {MAX_HOST_LENGTH}")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise BadDestination(f"{text!r} is no valid host name: label {label!r}")
    return host


def is_local(host: str) -> bool:
    """Tell whether a canonical host is an IP address, or a name that is known in one network only."""
    return is_address(host) or is_local_name(host)


def is_local_name(host: str) -> bool:
    """Tell whether a canonical host is a name that is known in one network only, such as a container's."""
    return not is_address(host) and ("." not in host or host.endswith(_LOCAL_SUFFIXES))


def is_address(host: str) -> bool:
    """Tell whether a canonical host is an IP address."""
    return ":" in host or _LOOKS_NUMERIC.fullmatch(host.rpartition(".")[2]) is not None


def _canonical_ipv6(host: str, text: str) -> str:
    if "%" in host:
        raise BadDestination(f"{text!r} carries a zone id, which means nothing to a server")
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise BadDestination(f"{text!r} is no IPv6 address") from None
    return str(address.ipv4_mapped or address)


@lru_cache(maxsize=CACHED)
def parse_authority(text: str, default_port: int | None = None) -> Destination:
    """Parse `host[:port]` (RFC 3986, section 3.2, without userinfo) into a canonical destination.

    Args:
        text: the authority, for example from CONNECT or the Host header.
        default_port: the port to use if the text has none; with None, a missing port is an error.

    Raises:
        BadDestination: the authority is malformed or ambiguous, or its port is not 1 to 65535.
    """
    if "@" in text:
        raise BadDestination("the authority carries userinfo (RFC 9110, section 4.2.4)")
    if text.startswith("["):
        host, closing, rest = text.partition("]")
        host += closing
        if rest and not rest.startswith(":"):
            raise BadDestination("only a port may follow the closing bracket")
        has_port, port_text = bool(rest), rest[1:]
    else:
        if text.count(":") > 1:
            raise BadDestination("there is more than one colon, and an IPv6 address needs brackets")
        host, colon, port_text = text.partition(":")
        has_port = bool(colon)
    if not has_port or (not port_text and default_port is not None):  # "host:" is "host" (RFC 3986, section 3.2.3)
        if default_port is None:
            raise BadDestination("the authority has no port")
        return Destination(canonical_host(host), default_port)
    if not _PORT.fullmatch(port_text) or not 1 <= int(port_text) <= 65535:
        raise BadDestination("the port is not a number from 1 to 65535")
    return Destination(canonical_host(host), int(port_text))
