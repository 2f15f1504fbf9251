"""How much one request, one app and all apps together may take: `limits` of policy and rules."""

from __future__ import annotations

from pydantic import Field

from proxy.core.rules.policy import Limits
from proxy.policyfile.model.section import Section
from proxy.policyfile.model.values import ResponseSeconds


class LimitsSection(Section):
    """How much one request, one app and all apps together may take."""

    held_body: int = Field(
        default=Limits().held_body,
        ge=1024,
        le=1024 * 1024 * 1024,
        description="Bytes of a body, decoded, that is held in memory to protect its fields. A larger one is denied. "
        "Others are served while it is worked on.",
    )
    header_bytes: int = Field(
        default=Limits().header_bytes,
        ge=1024,
        le=1024 * 1024,
        description="Bytes of a request line and its header fields together.",
    )
    header_count: int = Field(default=Limits().header_count, ge=8, le=10_000, description="Header fields of a request.")
    connections: int = Field(
        default=Limits().connections, ge=1, le=1_000_000, description="Client connections at once, in each worker."
    )
    client_connections: int = Field(
        default=Limits().client_connections,
        ge=1,
        le=1_000_000,
        description="… of these from one address (of IPv6, 64 bits).",
    )
    idle_seconds: int = Field(
        default=Limits().idle_seconds,
        ge=1,
        le=86_400,
        description="Seconds for which a client connection may lie idle, tunnels included.",
    )
    request_seconds: int = Field(
        default=Limits().request_seconds,
        ge=1,
        le=86_400,
        description="Seconds in which an app must have sent a whole head, what it starts with inside CONNECT, and a "
        "body that is held.",
    )
    connect_seconds: int = Field(
        default=Limits().connect_seconds,
        ge=1,
        le=600,
        description="Seconds in which an upstream's name must be resolved and its TCP connection be open.",
    )
    response_seconds: ResponseSeconds = Field(
        default=Limits().response_seconds,
        description="Seconds in which an upstream must begin its response once the request is sent, or `null` for as "
        "long as it takes, within `idle_seconds`.",
    )


class RuleLimitsSection(Section):
    """Limits that hold for a rule's hosts in place of the policy's."""

    response_seconds: ResponseSeconds = Field(description="As `limits.response_seconds`, for this rule's hosts.")
