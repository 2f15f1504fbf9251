"""Reads decision lines and remembers, for each host, what apps asked of it. `proxy.commands.suggest` writes a policy
from it.

Rules of this module:

- Lines are read one at a time, however many there are; what is remembered is limited: hosts, paths, fields.
- A line that is cut off, and one that is no decision line, is counted and passed over. Nothing in a line is believed: a
  destination, a selector, a kind must be one, or it is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from proxy.core.destinations import HTTP_PORT, BadDestination, Destination, parse_authority
from proxy.core.fields.selectors import BadSelector, parse_selector
from proxy.core.fields.shapes import MOST_PATH, Shape
from proxy.core.reasons import Reason
from proxy.core.who.addresses import AddressKind

MOST_LINE = 64 * 1024  # bytes; ours are far shorter
MOST_HOSTS = 500
MOST_FIELDS = 100  # of a host
MOST_OTHERS = 100  # ports, methods, paths and reasons of a host

_REASONS = {reason.code: reason for reason in Reason}
# What was refused before the policy was asked says nothing about a host.
_NOT_ABOUT_HOSTS = frozenset(
    reason.code
    for reason in (
        Reason.BAD_REQUEST,
        Reason.CLIENT_FORBIDDEN,
        Reason.PROXY_AUTHENTICATION_REQUIRED,
        Reason.TOO_MANY_ATTEMPTS,
        Reason.TOO_MANY_CONNECTIONS,
    )
)
_IS_METHOD = re.compile(r"[A-Z]{1,20}").fullmatch
_IS_PATH = re.compile(r"/[!-~]{0,200}").fullmatch  # ASCII that is seen
_FORBIDDEN_KIND = re.compile(r" is at a ([a-z_]+) address")
_PLAIN = frozenset(("upgrade", "allow"))


@dataclass(slots=True)
class Host:
    """What was asked of one host.

    Attributes:
        plain: requests over plain http, by port.
        https: requests and tunnels over https, by port.
        methods: the methods of plain and inspected requests.
        gets: the paths of GET requests over plain http, by port and path.
        denied: what was denied, or would have been, by reason.
        fields: selectors of members that look like secrets, with the kind, and how often.
        kinds: the kinds of its addresses that the policy did not allow.
        encrypted: how many fields were encrypted, or would have been.
    """

    plain: Counter[int] = field(default_factory=Counter)
    https: Counter[int] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    gets: Counter[tuple[int, str]] = field(default_factory=Counter)
    denied: Counter[str] = field(default_factory=Counter)
    fields: Counter[tuple[str, Shape]] = field(default_factory=Counter)
    kinds: set[AddressKind] = field(default_factory=set)
    encrypted: int = 0

    @property
    def requests(self) -> int:
        """How many requests and tunnels there were."""
        return self.plain.total() + self.https.total()


@dataclass(slots=True)
class Seen:
    """Everything that was read.

    Attributes:
        hosts: by canonical name or address.
        lines: how many decision lines there were.
        torn: how many lines were no whole JSON.
        foreign: how many were no decision lines.
        left_out: how many decision lines were about hosts beyond `MOST_HOSTS`.
        first: the time of the first line, as it stands there; "" for none.
        last: the time of the last.
    """

    hosts: dict[str, Host] = field(default_factory=dict)
    lines: int = 0
    torn: int = 0
    foreign: int = 0
    left_out: int = 0
    first: str = ""
    last: str = ""


def read_lines(stream: BinaryIO) -> Seen:
    """Read decision lines to the end of a stream.

    Raises:
        OSError: it cannot be read.
    """
    seen = Seen()
    for line in _lines(stream):
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            seen.torn += 1
            continue
        if not _is_decision(said):
            seen.foreign += 1
            continue
        if "event" in said:  # of a tunnel that was still open: its last line follows
            continue
        seen.lines += 1
        _take(seen, said)
    return seen


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that are not blank; of one that is too long, its beginning, which is no JSON."""
    is_inside = False  # in the middle of a line that is too long
    while piece := stream.readline(MOST_LINE):
        if not is_inside and piece.strip():
            yield piece
        is_inside = not piece.endswith(b"\n")


_IS_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,15}(?:Z|[+-][0-9]{2}:[0-9]{2})").fullmatch


def _is_decision(said: Any) -> bool:
    if not isinstance(said, dict):
        return False
    texts = [said.get(name) for name in ("time", "method", "path", "action", "mode")]
    return (
        all(isinstance(text, str) for text in texts)
        and _IS_TIME(said["time"]) is not None
        and isinstance(said.get("destination"), str | None)
        and "reason" in said
    )


def _take(seen: Seen, said: dict[str, Any]) -> None:
    seen.first, seen.last = seen.first or said["time"], said["time"]
    reason = said["reason"] if isinstance(said["reason"], str) and said["reason"] in _REASONS else None
    if said["destination"] is None or reason in _NOT_ABOUT_HOSTS:
        return
    try:
        destination = parse_authority(said["destination"], HTTP_PORT)
    except BadDestination:
        return
    host = seen.hosts.get(destination.host)
    if host is None:
        if len(seen.hosts) >= MOST_HOSTS:
            seen.left_out += 1
            return
        host = seen.hosts[destination.host] = Host()
    _add(host, destination, said, reason)


def _add(host: Host, destination: Destination, said: dict[str, Any], reason: str | None) -> None:
    method = said["method"]
    would = said.get("would")
    if (
        said["action"] in _PLAIN
        or (isinstance(would, str) and would in _PLAIN)
        or reason == Reason.PLAIN_HTTP_REJECTED.code
    ):
        _count(host.plain, destination.port)
        if method == "GET" and _IS_PATH(said["path"]):
            _count(host.gets, (destination.port, said["path"]))
    else:
        _count(host.https, destination.port)
    if method != "CONNECT" and _IS_METHOD(method):
        _count(host.methods, method)
    if reason is not None and (said["action"] == "deny" or said.get("would_deny") is True):
        _count(host.denied, reason)
    if reason == Reason.DESTINATION_FORBIDDEN.code and isinstance(said.get("detail"), str):
        kind = _FORBIDDEN_KIND.search(said["detail"])
        if kind is not None and kind[1] in list(AddressKind):
            host.kinds.add(AddressKind(kind[1]))
    for number in (said.get("encrypted"), said.get("would_encrypt")):
        host.encrypted += number if isinstance(number, int) and 0 < number < 1_000_000 else 0
    found = said.get("looks_secret")
    for selector, shape in found.items() if isinstance(found, dict) else ():
        if shape in list(Shape) and _is_selector(selector):
            _count(host.fields, (selector, Shape(shape)), MOST_FIELDS)


def _is_selector(text: str) -> bool:
    if len(text) > MOST_PATH or not text.isascii() or not text.isprintable():
        return False
    try:
        return bool(parse_selector(text).segments)
    except BadSelector:
        return False


def _count[T](counter: Counter[T], what: T, most: int | None = None) -> None:
    if what in counter or len(counter) < (MOST_OTHERS if most is None else most):
        counter[what] += 1
