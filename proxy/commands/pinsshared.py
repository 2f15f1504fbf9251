"""What the commands of `overcoat pins` share: whose pins hold for a server, and handshakes with several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.commands.failed import Failed
from proxy.commands.shared import destination_of
from proxy.core.decisions import Denied
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.rules.policy import Policy, Rule

if TYPE_CHECKING:
    from proxy.engine.probe import Shown

AT_ONCE = 16  # handshakes: each needs a descriptor and some time, and no server is asked twice


def destination_in(policy: Policy, server: str) -> Destination:
    """Return the server that a user names by `HOST[:PORT]`; without a port it is the https_port of its rule, or 443.

    Raises:
        ValueError: it is none.
    """
    if "/" in server:
        raise ValueError("only the host is named here, and its port if need be: leave https:// out, and any path")
    destination = destination_of(server, HTTPS_PORT)
    rule = policy.rule_for(destination)
    if rule is None or rule.https_port is None:
        return destination
    return destination_of(server, rule.https_port)


def rule_of(policy: Policy, destination: Destination) -> Rule | None:
    """Return the rule with the pins for a destination; for the upstream proxy itself, the rule that holds its pins."""
    proxy = policy.upstream_proxy
    return proxy.rule if proxy is not None and proxy.destination == destination else policy.rule_for(destination)


def owner_of(rule: Rule) -> str:
    """Return what the pins of a rule are called: the upstream proxy's rule is none of the policy's."""
    return f"rule {rule.name}" if rule.hosts else "upstream_proxy"


def shake_hands(
    policy: Policy, destinations: Sequence[Destination], *, unverified: bool = False
) -> dict[Destination, Shown | Denied]:
    """Shake hands with servers as the sidecar would, side by side, and return what each has shown, or why it did not.

    Args:
        policy: says what is trusted, where to go, and what may be reached.
        destinations: the servers.
        unverified: whether a certificate that is not valid is shown, too.

    Raises:
        Failed: the trusted roots cannot be found or read.
    """
    from proxy.engine.roots import NoRoots

    try:
        return asyncio.run(_shake_all(policy, destinations, unverified=unverified))
    except NoRoots as error:
        raise Failed(str(error)) from None


async def _shake_all(
    policy: Policy, destinations: Sequence[Destination], *, unverified: bool
) -> dict[Destination, Shown | Denied]:
    from proxy.engine.probe import Prober

    prober, free = Prober(policy), asyncio.Semaphore(AT_ONCE)

    async def shake(destination: Destination) -> Shown | Denied:
        async with free:
            try:
                return await (prober.unverified if unverified else prober.probe)(destination)
            except Denied as denied:
                return denied

    wanted = list(dict.fromkeys(destinations))
    return dict(zip(wanted, await asyncio.gather(*map(shake, wanted)), strict=True))


def said_of(denied: Denied) -> str:
    """Return a denial in one line."""
    hint = f"; {denied.hint}" if denied.hint else ""
    return f"{denied.reason.code}: {denied.detail}{hint}"


def printable(text: str) -> str:
    """Remove from a name all characters that could control a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
