"""Checks that all names in a request name the same destination: the request target, Host, `:authority` and the TLS
server name (RFC 9110, section 7.2). The addon `addons.gate` and the engine call it.

Rules of this module:

- Names are compared in their canonical form. A name without one is refused, never guessed.
- A name that cannot be read is not quoted: it may hold a secret.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from proxy.core.decisions import Denied
from proxy.core.destinations import (
    CACHED,
    HTTPS_PORT,
    BadDestination,
    Destination,
    canonical_host,
    parse_authority,
)
from proxy.core.http.heads import KEPT, Fields
from proxy.core.reasons import Reason
from proxy.core.who.addresses import parse_ip


@lru_cache(CACHED)
def read_target(host: str, port: int) -> Destination:
    """Return the canonical destination of a request.

    Args:
        host: the host of its target as it came; "" if it names none.
        port: the port.

    Raises:
        Denied: BAD_REQUEST.
    """
    try:
        destination = Destination(canonical_host(host), port)
    except BadDestination as e:
        if not host:
            raise Denied(
                Reason.BAD_REQUEST,
                "the request has no destination: a proxy is sent an absolute-form target or CONNECT",
                "set this address as the app's HTTP_PROXY or HTTPS_PROXY instead of calling it directly",
            ) from None
        raise Denied(Reason.BAD_REQUEST, f"the request's destination is not valid: {e}") from None
    if not 1 <= port <= 65535:
        raise Denied(Reason.BAD_REQUEST, f"port {port} is not a number from 1 to 65535")
    return destination


def check_path(path: bytes, method: bytes) -> None:
    """Check that the path is a path. `:path` may hold anything, even a whole URL, which no glob of a policy would
    match.

    Raises:
        Denied: BAD_REQUEST.
    """
    if path[:1] != b"/" and not (path == b"*" and method.upper() == b"OPTIONS"):
        raise Denied(Reason.BAD_REQUEST, "the request's path does not begin with a slash (RFC 9113, section 8.3.1)")


def read_host_field(value: str, default_port: int) -> Destination:
    """Read a Host field, or an `:authority`.

    Args:
        value: its value.
        default_port: the port to use if the value names none.

    Raises:
        Denied: BAD_REQUEST.
    """
    try:
        return parse_authority(value, default_port)
    except BadDestination:
        raise Denied(
            Reason.BAD_REQUEST, "the Host field is not a host name or address with, if need be, a port from 1 to 65535"
        ) from None


def check_host_fields(values: Iterable[str], asked: Destination, default_port: int) -> None:
    """Check that each Host field, or `:authority`, names the destination of the request.

    Args:
        values: the values of these fields.
        asked: the destination that will be dialled.
        default_port: the port to use if a value names none.

    Raises:
        Denied: BAD_REQUEST if a value is malformed; HOST_MISMATCH if one names another destination.
    """
    for value in values:
        named = read_host_field(value, default_port)
        if named != asked:
            raise Denied(Reason.HOST_MISMATCH, f"the Host field names {named}, but the request is for {asked}")


@lru_cache(KEPT)
def check_hosts_in(fields: Fields, asked: Destination, default_port: int) -> None:
    """Check the Host fields among a request's fields; see `check_host_fields`. Fields that agree are cached, not
    checked again.

    Raises:
        Denied: as there.
    """
    check_host_fields(_hosts(fields), asked, default_port)


def _hosts(fields: Fields) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") for name, value in fields if name.lower() == b"host"]


@lru_cache(KEPT)
def with_host(fields: Fields, target: Destination) -> Fields:
    """Return a request's fields with a Host that names the https destination; unchanged if it does so already.

    Args:
        fields: name and value; Host names a destination.
        target: the destination that is dialled.
    """
    if all(parse_authority(value, HTTPS_PORT) == target for value in _hosts(fields)):
        return fields
    value = host_field(target)
    return tuple((field[0], value) if field[0].lower() == b"host" else field for field in fields)


def host_field(target: Destination) -> bytes:
    """Return the value of Host in an https request to a destination."""
    return (target.url_host if target.port == HTTPS_PORT else target.authority).encode("ascii")


def check_server_name(name: str | None, connect: Destination) -> None:
    """Check that a TLS server name is the host of the CONNECT in which the TLS came.

    Args:
        name: the name; None if the ClientHello has none (as for an address), "" if it does not have exactly one valid
            name.
        connect: the destination of the CONNECT.

    Raises:
        Denied: HOST_MISMATCH.
    """
    if name is None:
        return
    try:
        is_same = canonical_host(name) == connect.host
    except BadDestination:
        is_same = False
    if not is_same:
        raise Denied(Reason.HOST_MISMATCH, f"the TLS server name is not the host of CONNECT {connect}")


def mirrored_host(fields: Fields, authority: str, server_name: str | None, names: Collection[str]) -> Destination:
    """Return the destination for which a mirror listener stands that a request is for.

    The port that it names does not matter: what is in front may have another one than the listener. The TLS server name
    may be another one of those hosts, since a connection may be used for all that its certificate names (RFC 9113,
    section 9.1.1).

    Args:
        fields: the request's fields.
        authority: its `:authority`, or the authority of an absolute target; "" for none.
        server_name: the TLS server name, as for `check_server_name`.
        names: the canonical hosts for which the listener stands.

    Raises:
        Denied: MISDIRECTED: it is for another host, for none or for several; BAD_REQUEST: a name is malformed.
    """
    named = {
        read_host_field(value, HTTPS_PORT).host for value in [*_hosts(fields), *([authority] if authority else ())]
    }
    if len(named) != 1 or named.isdisjoint(names):
        what = "none" if not named else "several" if len(named) > 1 else "another one"
        raise Denied(Reason.MISDIRECTED, f"of the hosts for which this listener stands, the request names {what}")
    if server_name is not None:
        try:
            is_known = canonical_host(server_name) in names
        except BadDestination:
            is_known = False
        if not is_known:
            raise Denied(Reason.MISDIRECTED, "the TLS server name is none of the hosts for which this listener stands")
    return Destination(named.pop(), HTTPS_PORT)


def is_own_name(host: str, names: Collection[str]) -> bool:
    """Tell whether a request to one of our listeners may call it so: by an address, a name that nobody can register, or
    our own.

    A web page may send requests to its own name, and its owner may let that name lead here (DNS rebinding). So a name
    that somebody could register for that is refused, and so is one under .local, for which any machine of the network
    may answer (RFC 6762), unless it is of a Kubernetes cluster.

    Args:
        host: the host in the Host field, canonical.
        names: further names of this sidecar according to the policy, canonical.
    """
    try:
        parse_ip(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".svc.cluster.local", ".internal")) or host in names
    return True
