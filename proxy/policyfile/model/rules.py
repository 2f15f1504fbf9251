"""The rules, of which each says what holds for some hosts: `rules`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from proxy.core.rules.policy import Https, Mode, PlainHttp
from proxy.policyfile.model.access import RuleDestinationsSection
from proxy.policyfile.model.fields import RequestEntry, ResponseEntry
from proxy.policyfile.model.limits import RuleLimitsSection
from proxy.policyfile.model.section import Section, choice
from proxy.policyfile.model.trust import ClientCertificateSection, PinsSection, RuleTrustSection
from proxy.policyfile.model.values import HostText, Name


class RuleSection(Section):
    """What holds for some hosts. The first rule that names a host is the one that counts."""

    name: Name = Field(description="The rule's name in denials, decision lines and metrics.")
    hosts: Annotated[list[HostText], Field(min_length=1)] = Field(
        description="`name`, `*.name` (exactly one label more), `**.name` (the name itself and everything below it), "
        "or an IP address; each with or without `:port`."
    )
    mode: Mode | None = choice(
        None,
        "`observe` decides, counts and logs for these hosts, but changes nothing; `enforce` carries it out. Left out: "
        "the policy's `mode`.",
    )
    plain_http: PlainHttp | None = choice(
        None, "`upgrade`, `reject` or `allow`. Left out: `defaults.plain_http`. Never `allow` with pins or `encrypt`."
    )
    https: Https | None = choice(
        None,
        "`tunnel`, `inspect` or `reject`. Left out: `inspect` if the rule has pins, `encrypt` or `decrypt`, else "
        "`defaults.https`.",
    )
    https_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The port that upgraded requests go to. Left out: 443 for port 80, and any other port stays.",
    )
    raw_tcp: Literal["allow"] | None = Field(
        default=None,
        description="`allow` lets anything pass through CONNECT to the rule's hosts, which must each name a port: "
        "protocols other than HTTP and TLS. Nothing of it is looked at. Left out: only HTTP and TLS pass.",
    )
    trust: RuleTrustSection | None = Field(
        default=None, description="What is trusted of this rule's hosts, if not what the policy's `trust` says."
    )
    client_certificate: ClientCertificateSection | None = Field(
        default=None, description="What the rule's hosts are shown if they ask for a certificate. Left out: none."
    )
    destinations: RuleDestinationsSection | None = Field(
        default=None,
        description="Which addresses that are not public the rule's hosts may be at. Left out: the policy's "
        "`destinations.allow`.",
    )
    limits: RuleLimitsSection | None = Field(
        default=None, description="Limits for this rule's hosts, if not the policy's `limits`."
    )
    pins: PinsSection | None = Field(default=None, description="The upstream's pins. Left out: any valid certificate.")
    request: Annotated[list[RequestEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="What is encrypted in request bodies; or decrypted, where a mirror listener stands for the hosts. "
        "Left out: nothing.",
    )
    response: Annotated[list[ResponseEntry], Field(min_length=1)] | None = Field(
        default=None,
        description="What is decrypted in response bodies; or encrypted, where a mirror listener stands for the hosts. "
        "Left out: nothing.",
    )
