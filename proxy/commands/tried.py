"""Asks the servers that were seen what an upgrade would come to, and for their keys: for `proxy.commands.suggest`, and
only if its user says so.

Rules of this module:

- Only what the policy lets the sidecar reach is asked, in any mode; see `proxy.engine.probe`.
- One GET over plain http, and the same over https, for a path that apps asked for; nothing else is sent.
- The number of hosts is limited, and so is how many are asked at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from proxy.commands.seen import Host
from proxy.core.decisions import Denied
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.pins import Pin, spki_pin
from proxy.core.rules.policy import Policy, upgraded
from proxy.engine.probe import Answered, ask, probe

MOST_TRIED = 50  # hosts
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of an upgrade.

    Attributes:
        target: where https was spoken.
        path: what was asked for.
        works: whether https gave an answer there.
        is_same: whether it was the answer of plain http, as far as status and length tell; None if that gave none.
        said: what came, in one sentence.
    """

    target: Destination
    path: str
    works: bool
    is_same: bool | None
    said: str


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a server's verified chain, leaf to root, as pins; or why there are none."""

    pins: tuple[Pin, ...]
    said: str


def try_upgrades(policy: Policy, hosts: dict[str, Host]) -> dict[str, Tried]:
    """Ask each host that was asked over plain http, the most wanted first, over http and over https.

    Raises:
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    wanted = sorted((host for host in hosts if hosts[host].plain), key=lambda host: -hosts[host].plain.total())
    return asyncio.run(_each(wanted[:MOST_TRIED], lambda host: _try(policy, host, hosts[host])))


def fetch_keys(policy: Policy, targets: dict[str, Destination]) -> dict[str, Keys]:
    """Shake hands with each host, and return the keys that it shows.

    Raises:
        proxy.engine.tls.NoRoots: the trusted roots cannot be found or read.
    """
    return asyncio.run(_each(list(targets)[:MOST_TRIED], lambda host: _fetch(policy, targets[host])))


async def _each[T](hosts: Iterable[str], do: Callable[[str], Awaitable[T]]) -> dict[str, T]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(host: str) -> tuple[str, T]:
        async with room:
            return host, await do(host)

    return dict(await asyncio.gather(*map(one, hosts)))


async def _try(policy: Policy, name: str, host: Host) -> Tried:
    port = host.plain.most_common(1)[0][0]
    asked = Destination(name, port)
    path = next((path for (at, path), _ in host.gets.most_common() if at == port), "/")
    rule = policy.rule_for_plain_http(asked)
    first = upgraded(asked, rule.https_port if rule is not None else None)
    plain = await _answer(policy, asked, path, tls=False)
    found = await _compare(policy, first, path, plain)
    if not found.works and first.port != HTTPS_PORT:
        other = await _compare(policy, Destination(name, HTTPS_PORT), path, plain)
        return other if other.works else found
    return found


async def _compare(policy: Policy, target: Destination, path: str, plain: Answered | Denied) -> Tried:
    secure = await _answer(policy, target, path, tls=True)
    if isinstance(secure, Denied):
        return Tried(target, path, False, False, f"{secure.reason.code}: {secure.detail}")
    if isinstance(plain, Denied):
        said = f"https gives {_text(secure)}; plain http none: {plain.reason.code}"
        return Tried(target, path, True, None, said)
    if plain.location.startswith("https:") and plain.status in (301, 302, 303, 307, 308):
        return Tried(target, path, True, True, f"plain http only leads to https, which gives {_text(secure)}")
    is_same = (plain.status, plain.length) == (secure.status, secure.length)
    said = f"both give {_text(plain)}" if is_same else f"plain http gives {_text(plain)}, https {_text(secure)}"
    return Tried(target, path, True, is_same, said)


def _text(answered: Answered) -> str:
    return f"{answered.status} with {answered.length} bytes"


async def _answer(policy: Policy, target: Destination, path: str, *, tls: bool) -> Answered | Denied:
    try:
        return await ask(policy, target, path, tls=tls)
    except Denied as denied:
        return denied


async def _fetch(policy: Policy, target: Destination) -> Keys:
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        shown = await probe(policy, target)
    except Denied as denied:
        return Keys((), f"{denied.reason.code}: {denied.detail}")
    return Keys(tuple(spki_pin(each.public_bytes(Encoding.DER)) for each in shown.chain), shown.tls_version)
