"""The whole policy file: each key at its top, with the section that it holds. The policy file's reader validates files
with `PolicyFile`, and the schema is generated from it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from proxy.core.rules.policy import Https, Mode, OpenConnections, PlainHttp
from proxy.policyfile.model.access import ClientsSection, DestinationsSection
from proxy.policyfile.model.keys import KeySetSection
from proxy.policyfile.model.limits import LimitsSection
from proxy.policyfile.model.rules import RuleSection
from proxy.policyfile.model.section import BUILT_IN, Section, choice
from proxy.policyfile.model.trust import PinsSection, TrustSection
from proxy.policyfile.model.values import (
    AdminText,
    HostName,
    HostText,
    KeySourceEntry,
    ListenerText,
    Name,
    ProxyUrl,
    Version,
    ViaName,
    WorkerCount,
)

MARKERS = frozenset(("[key]", "[encrypt]", "[decrypt]"))  # steps that pydantic puts into positions


class DefaultsSection(Section):
    """What holds for hosts that no rule names."""

    plain_http: PlainHttp = choice(
        BUILT_IN.defaults.plain_http,
        "What happens to plain http: `upgrade` sends it as https, `reject` denies it, `allow` passes it on as it came.",
    )
    https: Https = choice(
        BUILT_IN.defaults.https,
        "What happens to https: `tunnel` carries it end to end, untouched; `inspect` opens it, checks it and sends it "
        "on as https; `reject` denies it.",
    )


class UpstreamProxySection(Section):
    """A proxy through which everything leaves, by CONNECT."""

    url: ProxyUrl = Field(description="Where it is: `http://HOST:PORT`, or `https://HOST:PORT` for TLS to the proxy.")
    credentials: KeySourceEntry | None = Field(
        default=None,
        description="Where its `NAME:PASSWORD` comes from: `{env: NAME}` or `{file: PATH}`. Left out: it wants none.",
    )
    pins: PinsSection | None = Field(
        default=None, description="The pins of an https proxy, which hold in observe mode, too. Left out: none."
    )
    direct: Annotated[list[HostText], Field(min_length=1)] | None = Field(
        default=None, description="Hosts that are reached straight, as in a rule's `hosts`. Left out: none."
    )


class PolicyFile(Section):
    """Overcoat's policy file."""

    version: Version = Field(description="The version of the file's format.")
    listen: Annotated[list[ListenerText], Field(min_length=1)] = Field(
        default_factory=lambda: list(BUILT_IN.listen),
        json_schema_extra={"default": [str(listener) for listener in BUILT_IN.listen]},
        description="Where apps reach the proxy: `forward://HOST:PORT`, `socks5://HOST:PORT`, "
        "`reverse://HOST:PORT?to=https://HOST` for apps that can only be given a base URL, "
        "`transparent://HOST:PORT` for those that the kernel redirects (Linux), and beside a server "
        "`mirror://HOST:PORT?to=URL&for=HOST&cert=FILE&key=FILE`, which opens requests and seals responses. Port 0 "
        "lets the system choose.",
    )
    admin: AdminText = Field(
        default_factory=lambda: BUILT_IN.admin,
        json_schema_extra={"default": str(BUILT_IN.admin).removeprefix("forward://")},
        description="Where the status page, `/metrics`, `/live` and `/ready` are served: `HOST:PORT`, or `null` for "
        "nowhere. Where others can reach it, `clients.admin` says who may ask.",
    )
    probes: AdminText = Field(
        default=None,
        json_schema_extra={"default": None},
        description="Where `/live` and `/ready` are served and nothing else: `HOST:PORT`, such as `0.0.0.0:9465`. They "
        "tell nothing that is secret, and anybody who reaches it is answered.",
    )
    mode: Mode = choice(
        BUILT_IN.mode, "`enforce` carries decisions out; `observe` decides, counts and logs, but changes nothing."
    )
    defaults: DefaultsSection = Field(
        default_factory=DefaultsSection, description="What holds for hosts that no rule names."
    )
    trust: TrustSection = Field(default_factory=TrustSection, description="Whom upstream certificates must come from.")
    limits: LimitsSection = Field(default_factory=LimitsSection, description="How much requests and apps may take.")
    destinations: DestinationsSection = Field(
        default_factory=DestinationsSection, description="Which addresses and hosts may be reached."
    )
    clients: ClientsSection = Field(default_factory=ClientsSection, description="Who may use the proxy.")
    names: Annotated[list[HostName], Field(min_length=1)] | None = Field(
        default=None,
        description="Names by which the admin listener and reverse listeners are called, beside addresses and names "
        "without a public domain (`localhost`, `overcoat`, `….svc.cluster.local`): others may be those of an attack by "
        "DNS rebinding. Left out: none.",
    )
    via: ViaName | None = Field(
        default=None,
        description="What `Via` calls this proxy (RFC 9110, section 7.6.3), in requests and responses; a request that "
        "has it already is a loop. Left out: no `Via` is added.",
    )
    hsts_preload: bool = Field(
        default=False,
        description="Whether hosts on the browsers' HSTS preload list are upgraded where `plain_http` is `allow`, as "
        "those are whose Strict-Transport-Security was seen.",
    )
    upstream_proxy: UpstreamProxySection | None = Field(
        default=None,
        description="A proxy through which everything leaves. If it fails, nothing goes past it. Left out: none.",
    )
    workers: WorkerCount = Field(
        default=BUILT_IN.workers,
        description="How many processes share the listeners, 1 to 64, or `auto`: one a processor.",
    )
    open_connections: OpenConnections = choice(
        BUILT_IN.open_connections,
        "What a reload does to tunnels, WebSockets and long responses whose host has other pins, trust or another rule "
        "now: `close` ends them within ten seconds, `keep` leaves them alone.",
    )
    drain_wait: int = Field(
        default=BUILT_IN.drain_wait,
        ge=0,
        le=3600,
        description="Seconds for which the sidecar, told to end, goes on taking connections while `/ready` says 503: "
        "until those who send to it have noticed. Each response of HTTP/1 is then the last on its connection.",
    )
    drain_timeout: int = Field(
        default=BUILT_IN.drain_timeout,
        ge=0,
        le=3600,
        description="Seconds that what is under way then has to come to its own end. What is left is cut off, and the "
        "exit status is 1. Whoever stops the sidecar must wait longer: `drain_wait` + `drain_timeout` + 2.",
    )
    keys: dict[Name, KeySetSection] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}, description="The key sets, by name."
    )
    rules: Annotated[list[RuleSection], Field(min_length=1)] | None = Field(
        default=None, description="The rules; the first whose hosts match counts. Left out: none."
    )
