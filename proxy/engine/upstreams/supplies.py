"""Fetches the keys of key sets that the policy names by URL (`jwks`), and keeps them new. The engine has one `Supplies`
for its process, and requests find the keys in the policy's key sets (`proxy.core.jose.keys.Supply`).

Theory of operation. A task for each URL fetches it at the start, and again before `max_age` has passed. What it brings
is checked, and put into the key sets of the policy in force: whole, in one step. No request ever waits for that. While
a server cannot be reached, or sends what cannot be used, the keys of before stay. Each worker has its own.

Rules of this module:

- A URL is fetched as any destination of the rule that names its host: with its roots and pins, through the upstream
  proxy, and not from addresses that are forbidden. Observe mode changes nothing about that.
- No redirect is followed; nothing but a whole answer with status 200 counts, and a bounded one.
- After a failure it is tried again soon, and then less often. A key that is asked for and not there leads to one more
  try; so does nothing else that an app can do.
- A new policy keeps what was fetched under an earlier one, if URL, pins and roots are the same.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.jose.jwksets import fitting_keys
from proxy.core.jose.keys import BadKey, KeySet, Supply
from proxy.core.rules.policy import Https, Mode, PlainHttp, Policy, Rule
from proxy.engine.upstreams.asking import ask_server
from proxy.engine.upstreams.services import Services
from proxy.log import describe

logger = logging.getLogger("overcoat")

MOST_BYTES = 256 * 1024
_MEDIA_TYPES = "application/jwk-set+json, application/json"


class SupplyFailed(Exception):
    """The keys cannot be fetched. The message is one line."""


class Counts(Protocol):
    """Counts what happens."""

    def keys_fetched(self, key_set: str, when: float) -> None:
        """Note when the keys of a set were fetched, in seconds since 1970; 0 for never."""

    def keys_tried(self, key_set: str, *, succeeded: bool) -> None:
        """Count an attempt."""


async def fetch_keys(services: Services, policy: Policy, key_set: KeySet, supply: Supply) -> KeySet:
    """Fetch the keys of a set.

    Args:
        services: what every upstream connection needs.
        policy: says how their server is reached, and whom to trust.
        key_set: the set as the policy has it.
        supply: its supply.

    Returns:
        The set with its keys.

    Raises:
        SupplyFailed: they cannot be fetched, or none can be used.
    """
    destination = Destination(supply.host, supply.port)
    record = Upstream(policy, _enforced(policy, destination))
    try:
        answer = await ask_server(services, destination, supply.path, record, accept=_MEDIA_TYPES, most=MOST_BYTES)
    except Denied as denied:
        raise SupplyFailed(denied.detail) from None
    if answer.status != 200:
        redirected = "; redirects are not followed" if 300 <= answer.status < 400 else ""
        raise SupplyFailed(f"{destination} answered with status {answer.status}{redirected}")
    if not answer.is_whole:
        raise SupplyFailed(f"{destination} sent more than {MOST_BYTES // 1024} KiB, which no JWK Set needs")
    if answer.values(b"content-encoding"):
        raise SupplyFailed(f"{destination} sent the JWK Set in an encoding, which was not asked for")
    today = datetime.now(UTC).date()
    try:
        keys = fitting_keys(bytes(answer.body), alg=key_set.alg, today=today, kid=supply.kid, source=supply.shown)
        return replace(key_set, primary=keys[0], older=keys[1:], supply=None)
    except BadKey as error:
        raise SupplyFailed(str(error)) from None


def _enforced(policy: Policy, destination: Destination) -> Rule | None:
    """Return the rule for a destination, enforced: what Overcoat asks for is held to it in observe mode, too."""
    rule = policy.rule_for(destination)
    if rule is not None:
        return replace(rule, mode=Mode.ENFORCE)
    return Rule("jwks", (), PlainHttp.REJECT, Https.INSPECT, mode=Mode.ENFORCE) if policy.observes(None) else None


@dataclass(slots=True, eq=False)
class _Source:
    """One URL, and the key set of the policy in force that it is for.

    Attributes:
        key_set: the set as the policy has it.
        supply: its supply.
        known: what must be the same in another policy, or what was fetched does not count there.
        tried: set once it was tried for the first time.
        wanted: set when a key was asked for that is not there.
        last: when the last attempt began, by the loop's clock.
        failures: how many attempts have failed in a row.
        said: when the log told of the last failure, by the loop's clock.
        task: fetches it.
    """

    key_set: KeySet
    supply: Supply
    known: object
    policy: Policy
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    last: float = 0.0
    failures: int = 0
    said: float = 0.0
    task: asyncio.Task[None] | None = None


class Supplies:
    """The key sets of one process that are fetched, under the policy in force."""

    def __init__(self, services: Services, counts: Counts) -> None:
        self._services = services
        self._counts = counts
        self._sources: dict[str, _Source] = {}

    def take_over(self, policy: Policy) -> None:
        """Fetch the keys of a policy from now on, and those of an earlier one no more."""
        before, self._sources = self._sources, {}
        for key_set, supply in _supplied(policy):
            known = _known(policy, key_set, supply)
            source = before.pop(key_set.name, None)
            if source is not None and source.known == known:
                self._go_on(source, policy, key_set, supply)
            else:
                if source is not None:
                    self._end(source)
                source = _Source(key_set, supply, known, policy)
                self._counts.keys_fetched(key_set.name, 0.0)
                source.task = self._services.loop.create_task(self._keep(source))
            supply.missed = functools.partial(self._missed, source)
            self._sources[key_set.name] = source
        for source in before.values():
            self._end(source)

    def _go_on(self, source: _Source, policy: Policy, key_set: KeySet, supply: Supply) -> None:
        """Go on under another policy, with what was fetched under the one before."""
        had = source.supply.current
        if had is not None:
            supply.current = replace(key_set, primary=had.primary, older=had.older, supply=None)
        if supply.max_age != source.supply.max_age:
            source.wanted.set()
        source.policy, source.key_set, source.supply = policy, key_set, supply

    async def first(self) -> None:
        """Wait until all have been tried once, though not for long."""
        waiting = [asyncio.ensure_future(source.tried.wait()) for source in self._sources.values()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timelimits.FIRST_KEYS_SECONDS)
            for task in late:
                task.cancel()

    def close(self) -> None:
        """Fetch nothing any more."""
        for source in self._sources.values():
            self._end(source)

    def _end(self, source: _Source) -> None:
        if source.task is not None:
            source.task.cancel()

    def _missed(self, source: _Source) -> None:
        if self._services.loop.time() - source.last >= timelimits.KEYS_AGAIN_SECONDS:
            source.wanted.set()

    async def _keep(self, source: _Source) -> None:
        """Fetch one URL again and again."""
        while True:
            source.last = self._services.loop.time()
            try:
                await self._fetch(source)
            except Exception as e:  # nobody awaits it; what was fetched stays, and it goes on
                source.failures += 1
                logger.error("fetching the keys of key set %s failed inside: %s", source.key_set.name, describe(e))
            source.tried.set()
            source.wanted.clear()
            try:
                async with asyncio.timeout(_pause(source)):
                    await source.wanted.wait()
            except TimeoutError:
                continue

    async def _fetch(self, source: _Source) -> None:
        name = source.key_set.name
        try:
            found = await fetch_keys(self._services, source.policy, source.key_set, source.supply)
        except SupplyFailed as why:
            source.failures += 1
            self._counts.keys_tried(name, succeeded=False)
            self._say_failure(source, why)
            return
        # A policy that came meanwhile has a set and a supply of its own, with the same URL and algorithm.
        now = replace(source.key_set, primary=found.primary, older=found.older, supply=None)
        had, source.supply.current = source.supply.current, now
        self._counts.keys_fetched(name, time.time())
        self._counts.keys_tried(name, succeeded=True)
        assert now.primary is not None
        kid = now.primary.kid
        if had is None or had.primary is None or had.primary.kid != kid:
            logger.info("key set %s seals with key %s of %s", name, kid, source.supply.shown)
        elif source.failures:
            logger.info("key set %s: its keys are fetched again from %s", name, source.supply.shown)
        source.failures = 0

    def _say_failure(self, source: _Source, why: SupplyFailed) -> None:
        now = self._services.loop.time()
        if source.failures > 1 and now - source.said < timelimits.KEYS_LOG_SECONDS:
            return
        source.said = now
        then = "the keys of before stay" if source.supply.current is not None else "what it should encrypt is denied"
        logger.warning(
            "key set %s: its keys cannot be fetched from %s: %s; %s",
            source.key_set.name,
            source.supply.shown,
            why,
            then,
        )


def _supplied(policy: Policy) -> Iterator[tuple[KeySet, Supply]]:
    for key_set in policy.keys.values():
        if key_set.supply is not None:
            yield key_set, key_set.supply


def _known(policy: Policy, key_set: KeySet, supply: Supply) -> object:
    rule = policy.rule_for(Destination(supply.host, supply.port))
    return supply.url, key_set.alg, supply.kid, rule and rule.pins, policy.trust_for(rule)


def _pause(source: _Source) -> float:
    """Return how many seconds to wait before the next attempt: spread, so that workers do not all come at once."""
    spread = 0.9 + 0.2 * random.random()  # noqa: S311  # nothing secret depends on it
    if source.failures:
        backoff = min(2.0 ** min(source.failures - 1, 10), timelimits.MOST_KEYS_BACKOFF_SECONDS)
        return min(backoff, source.supply.max_age) * spread
    return source.supply.max_age * 0.8 * spread
