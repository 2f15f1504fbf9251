"""The policy, as the pipeline sees it: frozen, complete, every key loaded, every pattern parsed.

Rules of this module:

- A `Policy` is built once from the policy file (`proxy.policyfile.load`) and never changes; a reload swaps it whole.
- The first rule whose hosts match is the one that counts.
- Nothing here can fail at request time: whatever can be wrong with a policy was refused when it was read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.fields.entries import FieldEntry
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import KeySet
from proxy.core.pins import PinSet
from proxy.core.who.addresses import AddressSet
from proxy.core.who.clients import ClientRules


class Mode(StrEnum):
    """Whether decisions are carried out, or only counted and logged."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class PlainHttp(StrEnum):
    """What happens to a plain http request."""

    UPGRADE = "upgrade"
    REJECT = "reject"
    ALLOW = "allow"


class Https(StrEnum):
    """What happens to https inside CONNECT."""

    TUNNEL = "tunnel"
    INSPECT = "inspect"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One entry of a rule's `hosts`.

    Attributes:
        kind: `exact` (a name or an address), `one_label` (`*.example`: exactly one label more) or
            `any_depth` (`**.example`: the apex and every name below it).
        host: the canonical host, without the stars.
        port: the port it is limited to, or None for any.
    """

    kind: Literal["exact", "one_label", "any_depth"]
    host: str
    port: int | None = None

    def matches(self, destination: Destination) -> bool:
        """Tell whether a destination is one that this pattern names."""
        if self.port is not None and self.port != destination.port:
            return False
        return self._matches_host(destination.host)

    def _matches_host(self, host: str) -> bool:
        if self.kind == "exact":
            return host == self.host
        if self.kind == "any_depth" and host == self.host:
            return True
        head = host.removesuffix("." + self.host)
        if head == host:
            return False
        return self.kind == "any_depth" or "." not in head

    def covers(self, other: HostPattern) -> bool:
        """Tell whether every destination of `other` is one of this pattern, too."""
        if self.port is not None and self.port != other.port:
            return False
        if other.kind == "exact":
            return self._matches_host(other.host)
        if self.kind == "exact":
            return False
        if self.kind == "one_label":
            return other.kind == "one_label" and other.host == self.host
        return other.host == self.host or other.host.endswith("." + self.host)

    def __str__(self) -> str:
        stars = {"exact": "", "one_label": "*.", "any_depth": "**."}[self.kind]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{stars}{host}" + (f":{self.port}" if self.port is not None else "")


@dataclass(frozen=True, slots=True)
class RuleLimits:
    """A rule's own limits; see `Limits`."""

    response_seconds: int | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Values that the file left out hold the policy's default already.

    Attributes:
        https_port: the port that upgraded requests go to; None maps 80 to 443 and keeps any other (RFC 6797, 8.3).
        https: TUNNEL, INSPECT or REJECT; INSPECT wherever the rule needs the plaintext.
        raw_tcp: whether anything may pass through CONNECT, in both directions, without being looked at.
        strict: what holds here in place of the policy's `Trust.strict`; None for that.
        destinations: which addresses that are not public its hosts may be at; None for those of the policy.
        limits: what holds here in place of the same limits of the policy; None for those.
    """

    name: str
    hosts: tuple[HostPattern, ...]
    plain_http: PlainHttp
    https: Https
    https_port: int | None = None
    pins: PinSet | None = None
    encrypt: tuple[FieldEntry, ...] = ()
    decrypt: tuple[FieldEntry, ...] = ()
    raw_tcp: bool = False
    strict: bool | None = None
    destinations: AddressSet | None = None
    limits: RuleLimits | None = None

    @property
    def needs_plaintext(self) -> bool:
        """Whether Overcoat must see inside the TLS of this rule's hosts."""
        return self.pins is not None or bool(self.encrypt) or bool(self.decrypt)


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """A proxy through which everything leaves, by CONNECT.

    Attributes:
        destination: where it is.
        is_https: whether TLS is spoken with it.
        rule: stands for its pins.
        authorization: the value of Proxy-Authorization, if it wants one.
        direct: hosts that are reached straight.
    """

    destination: Destination
    is_https: bool
    rule: Rule
    authorization: SecretBytes | None = None
    direct: tuple[HostPattern, ...] = ()

    def serves(self, destination: Destination) -> bool:
        """Tell whether the way to a destination leads through it."""
        return not any(pattern.matches(destination) for pattern in self.direct)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for destinations that no rule names."""

    plain_http: PlainHttp = PlainHttp.UPGRADE
    https: Https = Https.TUNNEL


class ListenerKind(StrEnum):
    """What an app speaks at a listener."""

    FORWARD = "forward"
    REVERSE = "reverse"
    SOCKS5 = "socks5"
    TRANSPARENT = "transparent"


class Egress(StrEnum):
    """Which hosts may be reached at all."""

    ANY = "any"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom upstream certificates must come from.

    Attributes:
        roots: a PEM bundle, or None for the system's store.
        min_tls: the lowest TLS version accepted from upstreams.
        strict: whether certificates must have the form that RFC 5280 prescribes, as Python 3.13 and newer wants it.
        anchors: the certificates of the bundle in DER, once it was read; see `proxy.engine.tls.with_roots`.
    """

    roots: Path | None = None
    min_tls: Literal["1.2", "1.3"] = "1.2"
    strict: bool = True
    anchors: tuple[bytes, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request, one app and all apps together may take. Times are in seconds.

    Attributes:
        held_body: bytes of a body, decoded, that is held to protect its fields.
        header_bytes: of a request line and its header fields.
        header_count: of header fields.
        connections: client connections, in each worker.
        client_connections: of them from one address.
        idle_seconds: without a byte moving on a client connection.
        request_seconds: for an app to send a whole head, the first bytes inside CONNECT, or a body that is held.
        connect_seconds: for name resolution and a TCP connection to an upstream.
        response_seconds: for an upstream to begin its response, once the request is sent; None for as long as it takes.
    """

    held_body: int = 1024 * 1024
    header_bytes: int = 64 * 1024
    header_count: int = 200
    connections: int = 8192
    client_connections: int = 4096
    idle_seconds: int = 600
    request_seconds: int = 60
    connect_seconds: int = 10
    response_seconds: int | None = 60


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on; port 0 asks the system for a free one.

    Attributes:
        kind: what is spoken there.
        to: the https host that a reverse listener stands for.
    """

    host: str
    port: int
    kind: ListenerKind = ListenerKind.FORWARD
    to: Destination | None = None

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        to = "" if self.to is None else f"?to=https://{self.to.authority}"
        return f"{self.kind}://{self.address}{to}"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Policy:
    """The whole policy. Each one read is another, and be it the same to the letter: connections are kept apart by it.

    Attributes:
        destinations: which addresses that are not public may be reached, where no rule says otherwise.
        egress: whether hosts that no rule names may be reached.
        probes: where `/live` and `/ready` alone are served; None for nowhere.
        clients: who may use the proxy.
        scrapers: who beyond this machine may ask the admin listener.
        names: what this sidecar's own listeners are called, beside what `is_own_name` takes anyway; canonical.
        via: what Via fields call this proxy (RFC 9110, section 7.6.3); None for none.
        hsts_preload: whether the browsers' list of https-only hosts counts.
        upstream_proxy: through what everything leaves; None for straight.
        workers: how many processes share the listeners; 0 for as many as the machine lends processors.
        drain_wait: how long to go on as before once told to end, though not ready any more, in seconds.
        drain_timeout: how long what is under way then has to come to its own end, in seconds.
        source: the file's name, or `built-in`.
        files: the names of all files that were read for it, its own first.
        remarks: what its files hold that is no error, and needs attention.
        content: SHA-256 over its text and all files that it names, but for secrets that people may have chosen.
        secrets: SHA-256 over these; never shown, since what people choose can be guessed.
    """

    listen: tuple[Listener, ...] = (Listener("127.0.0.1", 8080),)
    admin: Listener | None = Listener("127.0.0.1", 9464)
    probes: Listener | None = None
    mode: Mode = Mode.ENFORCE
    defaults: Defaults = Defaults()
    trust: Trust = Trust()
    limits: Limits = Limits()
    destinations: AddressSet = field(default_factory=AddressSet)
    egress: Egress = Egress.ANY
    clients: ClientRules = field(default_factory=ClientRules)
    scrapers: AddressSet = field(default_factory=AddressSet)
    names: frozenset[str] = frozenset()
    upstream_proxy: UpstreamProxy | None = None
    hsts_preload: bool = False
    via: str | None = None
    workers: int = 1
    drain_wait: int = 0
    drain_timeout: int = 8  # `docker stop` kills after 10
    keys: dict[str, KeySet] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    source: str = "built-in"
    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    content: bytes = field(default=b"", repr=False)
    secrets: bytes = field(default=b"", repr=False)
    _by_host: dict[str, list[tuple[int, HostPattern]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the rules: a policy may have thousands of hosts, and is asked several times for each request."""
        by_host: dict[str, list[tuple[int, HostPattern]]] = {}
        for number, rule in enumerate(self.rules):
            for pattern in rule.hosts:
                by_host.setdefault(pattern.host, []).append((number, pattern))
        object.__setattr__(self, "_by_host", by_host)

    @property
    def short_hash(self) -> str:
        """Its content, in twelve hexadecimal digits: the same for the same text and files, wherever they lie."""
        return self.content.hex()[:12]

    def says_the_same_as(self, other: Policy) -> bool:
        """Tell whether two policies were made of the same text and the same files."""
        return (self.content, self.secrets) == (other.content, other.secrets)

    @property
    def lets_plain_http_pass(self) -> bool:
        """Whether there may be a host whose plain http passes as it is."""
        return PlainHttp.ALLOW in (self.defaults.plain_http, *(rule.plain_http for rule in self.rules))

    @property
    def inspects(self) -> bool:
        """Whether there may be a host whose https is opened."""
        return Https.INSPECT in (self.defaults.https, *(rule.https for rule in self.rules))

    @property
    def trusts(self) -> frozenset[Trust]:
        """All that `trust_for` may return."""
        return frozenset(self.trust_for(rule) for rule in (None, *self.rules))

    def trust_for(self, rule: Rule | None) -> Trust:
        """Return whom certificates must come from where a rule counts, or none does."""
        if rule is None or rule.strict is None:
            return self.trust
        return replace(self.trust, strict=rule.strict)

    def response_seconds(self, rule: Rule | None) -> int | None:
        """Return how long an upstream may take to begin its response under a rule, or under none."""
        return (self.limits if rule is None or rule.limits is None else rule.limits).response_seconds

    @property
    def shortest_wait(self) -> int:
        """The shortest of the times in which an app must have sent something, or an upstream have begun to answer."""
        times = (self.response_seconds(rule) for rule in (None, *self.rules))
        return min(self.limits.request_seconds, *(seconds for seconds in times if seconds is not None), 86_400)

    def reachable(self, rule: Rule | None) -> AddressSet:
        """Return which addresses that are not public may be reached under a rule, or under none."""
        return self.destinations if rule is None or rule.destinations is None else rule.destinations

    def rule_for(self, destination: Destination) -> Rule | None:
        """Return the rule for an https destination: the first that matches."""
        return self._first(destination.host, lambda _, pattern: pattern.matches(destination))

    def rule_for_plain_http(self, destination: Destination) -> Rule | None:
        """Return the rule for a plain http destination.

        A rule counts if it names the port that was asked for or, unless it lets plain http pass, the one that an
        upgrade leads to, so that a rule limited to `host:443` also protects what arrives as `http://host/`.
        """

        def names(rule: Rule, pattern: HostPattern) -> bool:
            if pattern.matches(destination):
                return True
            if rule.plain_http is PlainHttp.ALLOW:
                return False
            ways = (upgraded(destination, rule.https_port), upgraded(destination, None))
            return any(pattern.matches(way) for way in ways)

        return self._first(destination.host, names)

    def _first(self, host: str, names: Callable[[Rule, HostPattern], bool]) -> Rule | None:
        """Return the first rule with a pattern that is about a host, by the suffixes that such a pattern may have."""
        found = len(self.rules)
        while host:
            for number, pattern in self._by_host.get(host, ()):
                if number < found and names(self.rules[number], pattern):
                    found = number
            host = host.partition(".")[2]
        return self.rules[found] if found < len(self.rules) else None


def upgraded(destination: Destination, https_port: int | None) -> Destination:
    """Return where an upgraded request goes: the given port, else 80 becomes 443 and others stay (RFC 6797, 8.3)."""
    if https_port is None:
        https_port = HTTPS_PORT if destination.port == HTTP_PORT else destination.port
    return Destination(destination.host, https_port)
