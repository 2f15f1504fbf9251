"""Who may use the proxy, and where requests may go: `clients`, and `destinations` of policy and rules."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from proxy.core.rules.policy import Egress
from proxy.policyfile.model.section import BUILT_IN, Section, choice
from proxy.policyfile.model.values import AddressesText, PasswordEntry, UserName


class DestinationsSection(Section):
    """Where requests may go."""

    allow: Annotated[list[AddressesText], Field(min_length=1)] | None = Field(
        default=None,
        description="Addresses that may be reached though they are not public: `loopback`, `private`, `cgnat`, "
        "`link_local`, `metadata` (where clouds give out credentials), `multicast`, `reserved`, or a network such as "
        "`10.1.0.0/16`. Judged is the address that is really connected to. Left out: none.",
    )
    egress: Egress = choice(
        BUILT_IN.egress, "`any`: hosts that no rule names follow `defaults`; `listed`: they are denied."
    )


class RuleDestinationsSection(Section):
    """Where requests of one rule may go."""

    allow: Annotated[list[AddressesText], Field(min_length=1)] = Field(
        description="Addresses that the rule's hosts may be at though they are not public, as in `destinations.allow` "
        "above, which then does not count for them."
    )


class UserSection(Section):
    """A user with a password."""

    name: UserName = Field(description="The name, as the app sends it.")
    password_hash: PasswordEntry = Field(
        description="What `overcoat password` prints (scrypt), or where it comes from: `{env: NAME}` or `{file: PATH}`."
    )


class ClientsSection(Section):
    """Who may use the proxy."""

    allow: Annotated[list[AddressesText], Field(min_length=1)] | None = Field(
        default=None,
        description="Where apps may connect from: kinds and networks as in `destinations.allow`. Left out: anywhere if "
        "there are `users`, else `loopback`.",
    )
    users: Annotated[list[UserSection], Field(min_length=1)] | None = Field(
        default=None,
        description="Who must show a name and a password (`Proxy-Authorization`, RFC 7617). Left out: nobody must.",
    )
    admin: Annotated[list[AddressesText], Field(min_length=1)] | None = Field(
        default=None,
        description="Where the admin listener may be asked from, beside this machine: kinds and networks as in "
        "`allow`. Left out: nowhere.",
    )
    unsafe_open_listener: bool = Field(
        default=False,
        description="Whether a listener that others can reach may serve everybody: without `allow` and `users` it "
        "would refuse to start.",
    )
