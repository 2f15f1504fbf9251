"""The policy in force: frozen and complete, with every key loaded and every pattern parsed. The policy file's reader
builds it (`proxy.policyfile.load`); engine and addons look things up in it for each request.

Rules of this module:

- A `Policy` never changes after it was built; a reload replaces it as a whole.
- The first rule whose hosts match counts.
- Nothing here fails at request time: whatever can be wrong with a policy was refused when it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

from proxy.core.certificates.serving import ServerCertificate
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import KeySet
from proxy.core.pins import PinSet
from proxy.core.rules.trust import ClientCertificate, Trust
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
        kind: `exact` (a name or an address), `one_label` (`*.example`: exactly one label more) or `any_depth`
            (`**.example`: the apex and every name below it).
        host: the canonical host, without the stars.
        port: the only port that it matches, or None for any.
    """

    kind: Literal["exact", "one_label", "any_depth"]
    host: str
    port: int | None = None

    def matches(self, destination: Destination) -> bool:
        """Tell whether this pattern names a destination."""
        if self.port is not None and self.port != destination.port:
            return False
        return self.matches_host(destination.host)

    def matches_host(self, host: str) -> bool:
        """Tell whether this pattern names a host, whatever the port."""
        if self.kind == "exact":
            return host == self.host
        if self.kind == "any_depth" and host == self.host:
            return True
        head = host.removesuffix("." + self.host)
        if head == host:
            return False
        return self.kind == "any_depth" or "." not in head

    def covers(self, other: HostPattern) -> bool:
        """Tell whether this pattern names every destination that `other` names."""
        if self.port is not None and self.port != other.port:
            return False
        if other.kind == "exact":
            return self.matches_host(other.host)
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
    """One rule. Keys that the file left out have the policy's default here already.

    Attributes:
        request: what happens to values in request bodies.
        response: what happens to values in response bodies.
        https_port: the port that upgraded requests go to; None maps 80 to 443 and keeps any other (RFC 6797, 8.3).
        https: TUNNEL, INSPECT or REJECT; always INSPECT if the rule needs the plaintext.
        raw_tcp: whether any protocol may pass through CONNECT unchecked, in both directions.
        trust: replaces the policy's `Trust` for these hosts as a whole; None keeps it.
        client_certificate: what its hosts are shown if they ask for a certificate; None for none.
        destinations: the non-public addresses at which its hosts may be; None for those of the policy.
        limits: replaces the same limits of the policy; None keeps them.
        mode: replaces the policy's mode for its hosts; None keeps it.
    """

    name: str
    hosts: tuple[HostPattern, ...]
    plain_http: PlainHttp
    https: Https
    https_port: int | None = None
    pins: PinSet | None = None
    request: tuple[FieldEntry, ...] = ()
    response: tuple[FieldEntry, ...] = ()
    raw_tcp: bool = False
    trust: Trust | None = None
    client_certificate: ClientCertificate | None = None
    destinations: AddressSet | None = None
    limits: RuleLimits | None = None
    mode: Mode | None = None

    @property
    def needs_plaintext(self) -> bool:
        """Whether Overcoat must decrypt the TLS of this rule's hosts."""
        return self.pins is not None or bool(self.fields)

    @property
    def fields(self) -> tuple[FieldEntry, ...]:
        """The entries for requests and for responses."""
        return self.request + self.response

    def entries(self, work: Work) -> tuple[FieldEntry, ...]:
        """Return the entries, for requests and for responses, that do one kind of work."""
        return tuple(entry for entry in self.fields if entry.work is work)


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """Another proxy, through which everything leaves by CONNECT.

    Attributes:
        destination: its address.
        is_https: whether it is spoken to over TLS.
        rule: holds its pins.
        authorization: the value of Proxy-Authorization, if it needs one.
        direct: hosts that are reached without it.
    """

    destination: Destination
    is_https: bool
    rule: Rule
    authorization: SecretBytes | None = None
    direct: tuple[HostPattern, ...] = ()

    def serves(self, destination: Destination) -> bool:
        """Tell whether a destination is reached through this proxy."""
        return not any(pattern.matches(destination) for pattern in self.direct)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies to destinations that no rule names."""

    plain_http: PlainHttp = PlainHttp.UPGRADE
    https: Https = Https.TUNNEL


class ListenerKind(StrEnum):
    """What apps speak at a listener."""

    FORWARD = "forward"
    REVERSE = "reverse"
    SOCKS5 = "socks5"
    TRANSPARENT = "transparent"
    MIRROR = "mirror"


class OpenConnections(StrEnum):
    """What happens to what is open after a reload that changes the promise for its host."""

    CLOSE = "close"
    KEEP = "keep"


class Egress(StrEnum):
    """Which hosts may be reached at all."""

    ANY = "any"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request, one app and all apps together may use. All times are in seconds.

    Attributes:
        held_body: the greatest length in bytes, decoded, of a body that is held to protect its fields.
        header_bytes: the greatest length in bytes of a request line and its header fields.
        header_count: the greatest number of header fields.
        connections: the greatest number of client connections, in each worker.
        client_connections: the same, from one address.
        idle_seconds: how long a client connection may be silent in both directions.
        request_seconds: how long an app may take to send a whole head, the first bytes inside CONNECT, or a held body.
        connect_seconds: how long name resolution and the TCP connection to an upstream may take.
        response_seconds: how long an upstream may take to begin its response, once the request is sent; None for no
            limit.
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
class Mirror:
    """What a mirror listener does beside its server: it opens what others have sealed for it, and seals its answers.

    Attributes:
        to: where the server behind it listens.
        is_plain: whether that is spoken to in plain http, which only loopback and listed addresses are.
        names: the canonical hosts that it stands for.
        cert: the file of the certificate that it shows, with its chain; None if it speaks plain http.
        key: the file of that certificate's key; None likewise.
        peers: who may connect; None for those of the policy.
        is_open: whether everybody may connect.
    """

    to: Destination
    is_plain: bool
    names: tuple[str, ...]
    cert: str | None = None
    key: str | None = None
    peers: AddressSet | None = None
    is_open: bool = False

    def __str__(self) -> str:
        parts = [("to", f"{'http' if self.is_plain else 'https'}://{self.to.authority}")]
        parts += [("for", name) for name in self.names]
        parts += [(name, value) for name, value in (("cert", self.cert), ("key", self.key)) if value is not None]
        if self.is_open:
            parts.append(("from", "any"))
        elif self.peers is not None:
            parts += [("from", text) for text in self.peers.texts()]
        return "&".join(f"{name}={value}" for name, value in parts)


@dataclass(frozen=True, slots=True)
class Listener:
    """An address to listen on; port 0 asks the system for a free port.

    Attributes:
        kind: what apps speak there.
        to: the https host that a reverse listener stands for.
        mirror: what a mirror listener stands for, and where its server is.
    """

    host: str
    port: int
    kind: ListenerKind = ListenerKind.FORWARD
    to: Destination | None = None
    mirror: Mirror | None = None

    @property
    def address(self) -> str:
        """The address as `HOST:PORT`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        to = "" if self.to is None else f"?to=https://{self.to.authority}"
        return f"{self.kind}://{self.address}{to if self.mirror is None else f'?{self.mirror}'}"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Policy:
    """The whole policy. Policies are compared by identity, even if equal: no connection is shared between two of them.

    Attributes:
        destinations: which non-public addresses may be reached, unless a rule says otherwise.
        egress: whether hosts that no rule names may be reached.
        probes: the listener that serves `/live` and `/ready` only; None for none.
        clients: who may use the proxy.
        scrapers: clients on other machines that may use the admin listener.
        names: names of this sidecar's own listeners, beside those that `is_own_name` accepts anyway; canonical.
        via: the name of this proxy in Via fields (RFC 9110, section 7.6.3); None for no such field.
        hsts_preload: whether the browsers' list of https-only hosts counts.
        upstream_proxy: the proxy through which everything leaves; None for none.
        workers: the number of processes that share the listeners; 0 for as many as the machine has processors for them.
        open_connections: what a reload does to what is open.
        drain_wait: seconds to serve as before after the signal to end, while no longer ready.
        drain_timeout: seconds that requests under way then have to finish.
        certificates: what each mirror listener shows that speaks TLS.
        source: the file's name, or `built-in`.
        files: the names of all files that were read for it, its own first.
        remarks: what in its files is no error but needs attention.
        unchecked: what was not there and was not checked, if it was read where secrets are not; such a policy is never
            served.
        content: SHA-256 over its text and all files that it names, without secrets that people may have chosen.
        secrets: SHA-256 over those secrets; never shown, since people choose guessable ones.
    """

    listen: tuple[Listener, ...] = (Listener("127.0.0.1", 8080),)
    admin: Listener | None = Listener("127.0.0.1", 9464)
    probes: Listener | None = None
    mode: Mode = Mode.ENFORCE
    defaults: Defaults = Defaults()
    trust: Trust = field(default_factory=Trust)
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
    open_connections: OpenConnections = OpenConnections.CLOSE
    drain_timeout: int = 8  # `docker stop` kills after 10 seconds
    keys: dict[str, KeySet] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    certificates: Mapping[Mirror, ServerCertificate] = field(default_factory=dict, repr=False)
    source: str = "built-in"
    files: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    content: bytes = field(default=b"", repr=False)
    secrets: bytes = field(default=b"", repr=False)
    mirrored: frozenset[str] = field(init=False, repr=False)  # the hosts for which mirror listeners stand
    _by_host: dict[str, list[tuple[int, HostPattern]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the rules: a policy may have thousands of hosts, and each request looks up several times."""
        by_host: dict[str, list[tuple[int, HostPattern]]] = {}
        for number, rule in enumerate(self.rules):
            for pattern in rule.hosts:
                by_host.setdefault(pattern.host, []).append((number, pattern))
        object.__setattr__(self, "_by_host", by_host)
        mirrored = (name for each in self.listen if each.mirror is not None for name in each.mirror.names)
        object.__setattr__(self, "mirrored", frozenset(mirrored))

    @property
    def short_hash(self) -> str:
        """A hash of the content in twelve hexadecimal digits; equal for equal text and files, wherever these are."""
        return self.content.hex()[:12]

    def says_the_same_as(self, other: Policy) -> bool:
        """Tell whether two policies were made of the same text and the same files."""
        return (self.content, self.secrets) == (other.content, other.secrets)

    @property
    def lets_plain_http_pass(self) -> bool:
        """Whether there may be a host to which plain http passes unchanged."""
        return self.observes_any or PlainHttp.ALLOW in (
            self.defaults.plain_http,
            *(rule.plain_http for rule in self.rules),
        )

    @property
    def inspects(self) -> bool:
        """Whether there may be a host whose https is decrypted."""
        return (self.mode is Mode.ENFORCE and self.inspects_unnamed) or any(
            not self.observes(rule) for rule, _ in self.inspected
        )

    @property
    def inspects_unnamed(self) -> bool:
        """Whether hosts that no rule names are inspected, once the policy is enforced."""
        return self.defaults.https is Https.INSPECT and self.egress is Egress.ANY

    @property
    def inspected(self) -> Iterator[tuple[Rule, HostPattern]]:
        """The hosts that rules inspect, once they are enforced. What comes to a mirror's host is opened with its own
        certificate.
        """
        for rule in self.rules:
            if rule.https is Https.INSPECT:
                for pattern in rule.hosts:
                    if pattern.kind != "exact" or pattern.host not in self.mirrored:
                        yield rule, pattern

    def mode_of(self, rule: Rule | None) -> Mode:
        """Return the mode in which a rule's requests are handled, or those of none."""
        return self.mode if rule is None or rule.mode is None else rule.mode

    def observes(self, rule: Rule | None) -> bool:
        """Tell whether what is decided under a rule, or under none, is only noted (observe mode)."""
        return self.mode_of(rule) is Mode.OBSERVE

    @property
    def observes_any(self) -> bool:
        """Whether something is only observed: under a rule, or where there is none."""
        return self.mode is Mode.OBSERVE or any(self.observes(rule) for rule in self.rules)

    def with_trusts(self, change: Callable[[Trust], Trust]) -> Policy:
        """Return the policy with each `Trust` in it replaced, and the content's hash as it is."""
        rules = tuple(rule if rule.trust is None else replace(rule, trust=change(rule.trust)) for rule in self.rules)
        return replace(self, trust=change(self.trust), rules=rules)

    def trust_for(self, rule: Rule | None) -> Trust:
        """Return which certificates are trusted under a rule, or under none."""
        return self.trust if rule is None or rule.trust is None else rule.trust

    def proxy_to(self, destination: Destination) -> UpstreamProxy | None:
        """Return the upstream proxy through which a destination is reached; None if it is reached directly."""
        proxy = self.upstream_proxy
        return proxy if proxy is not None and proxy.serves(destination) else None

    def response_seconds(self, rule: Rule | None) -> int | None:
        """Return how many seconds an upstream may take to begin its response under a rule, or under none."""
        return (self.limits if rule is None or rule.limits is None else rule.limits).response_seconds

    def reachable(self, rule: Rule | None) -> AddressSet:
        """Return which non-public addresses may be reached under a rule, or under none."""
        return self.destinations if rule is None or rule.destinations is None else rule.destinations

    def is_mirrored(self, rule: Rule | None) -> bool:
        """Tell whether a rule is about what comes to hosts for which mirror listeners stand."""
        return rule is not None and any(each.kind == "exact" and each.host in self.mirrored for each in rule.hosts)

    def mirror_for(self, host: str) -> Mirror | None:
        """Return the mirror that stands for a canonical host; the first one, if several do; None if none does."""
        mirrors = (each.mirror for each in self.listen if each.mirror is not None)
        return next((mirror for mirror in mirrors if host in mirror.names), None)

    def clients_of(self, mirror: Mirror | None) -> ClientRules:
        """Return who may use a listener: a mirror may have rules of its own, and never asks for a password."""
        if mirror is None:
            return self.clients
        if mirror.is_open:
            return ClientRules(None)
        return ClientRules(self.clients.addresses if mirror.peers is None else mirror.peers)

    def rule_for(self, destination: Destination) -> Rule | None:
        """Return the rule for an https destination: the first that matches."""
        return self._first(destination.host, lambda _, pattern: pattern.matches(destination))

    def rule_for_plain_http(self, destination: Destination) -> Rule | None:
        """Return the rule for a plain http destination.

        A rule counts if it names the port that was asked for. It also counts if it names the port that an upgrade leads
        to, unless the rule lets plain http pass. So a rule for `host:443` also protects requests to `http://host/`.
        """

        def names(rule: Rule, pattern: HostPattern) -> bool:
            if pattern.matches(destination):
                return True
            if rule.plain_http is PlainHttp.ALLOW:
                return False
            targets = (upgraded(destination, rule.https_port), upgraded(destination, None))
            return any(pattern.matches(target) for target in targets)

        return self._first(destination.host, names)

    def _first(self, host: str, names: Callable[[Rule, HostPattern], bool]) -> Rule | None:
        """Return the first rule with a pattern for a host, looked up by the suffixes of the host that a pattern may
        have.
        """
        found = len(self.rules)
        while host:
            for number, pattern in self._by_host.get(host, ()):
                if number < found and names(self.rules[number], pattern):
                    found = number
            host = host.partition(".")[2]
        return self.rules[found] if found < len(self.rules) else None


def upgraded(destination: Destination, https_port: int | None) -> Destination:
    """Return where an upgraded request goes: to the given port; else 80 becomes 443, others stay (RFC 6797, 8.3)."""
    if https_port is None:
        https_port = HTTPS_PORT if destination.port == HTTP_PORT else destination.port
    return Destination(destination.host, https_port)
