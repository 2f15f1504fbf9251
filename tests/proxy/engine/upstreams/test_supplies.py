"""Keys that are fetched: when they are fetched again, and what makes that sooner. What is fetched, and from where, is
tested in `tests/e2e/test_jwks.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace

import pytest

from proxy import timelimits
from proxy.core.jose.keys import Alg, KeySet, Supply, new_key
from proxy.core.rules.policy import Policy
from proxy.engine.upstreams import supplies
from proxy.engine.upstreams.supplies import Supplies, SupplyFailed
from proxy.engine.upstreams.supplies import _pause as pause
from proxy.engine.upstreams.supplies import _Source as Source

ALG = Alg.ECDH_ES_A256KW
ONE, TWO = (new_key(ALG, kid=kid).public() for kid in ("one", "two"))


def policy(max_age: float = 3600, path: str = "/jwks") -> Policy:
    """A policy with one key set that is fetched."""
    supply = Supply(f"https://keys.example{path}", "keys.example", 443, path, max_age)
    return Policy(keys={"partner": KeySet("partner", ALG, None, supply=supply)})


def kids(policy: Policy) -> list[str]:
    """The names of the keys that its key set has now."""
    return [key.kid for key in policy.keys["partner"].keys]


class Scene:
    """Supplies whose attempts end as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcome: Callable[[], KeySet] = lambda: KeySet("partner", ALG, ONE)
        self.attempts = 0
        self.now = 1000.0
        self.counted: list[tuple[str, object]] = []
        loop = asyncio.get_running_loop()
        services = SimpleNamespace(loop=SimpleNamespace(time=lambda: self.now, create_task=loop.create_task))
        self.supplies = Supplies(services, self)  # type: ignore[arg-type]  # the part that is used

        async def fetch_keys(*_: object) -> KeySet:
            self.attempts += 1
            await asyncio.sleep(0)
            return self.outcome()

        monkeypatch.setattr(supplies, "fetch_keys", fetch_keys)

    def keys_fetched(self, key_set: str, when: float) -> None:
        self.counted.append((key_set, "fetched" if when else "never"))

    def keys_tried(self, key_set: str, *, succeeded: bool) -> None:
        self.counted.append((key_set, succeeded))

    def fail(self) -> KeySet:
        raise SupplyFailed("it is down")


def run(test: Callable[[Scene], Awaitable[None]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Make a test of a coroutine that gets a scene."""

    def sync(monkeypatch: pytest.MonkeyPatch) -> None:
        async def body() -> None:
            scene = Scene(monkeypatch)
            try:
                await test(scene)
            finally:
                scene.supplies.close()

        asyncio.run(body())

    sync.__name__ = test.__name__
    return sync


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@run
async def test_what_is_fetched_is_in_the_policy(scene: Scene) -> None:
    found = policy()
    scene.supplies.take_over(found)
    assert kids(found) == []
    await scene.supplies.first()
    assert kids(found) == ["one"]
    assert scene.counted == [("partner", "never"), ("partner", "fetched"), ("partner", True)]


@run
async def test_a_key_that_is_not_there_is_looked_for_once_in_a_while(scene: Scene) -> None:
    found = policy()
    scene.supplies.take_over(found)
    await scene.supplies.first()
    scene.outcome = lambda: KeySet("partner", ALG, TWO, (ONE,))
    assert found.keys["partner"].by_kid("two") is None
    await _settled()
    assert scene.attempts == 1  # it was fetched a moment ago
    scene.now += timelimits.KEYS_AGAIN_SECONDS
    assert found.keys["partner"].by_kid("one") is ONE  # one that is there leads to nothing
    await _settled()
    assert scene.attempts == 1
    for _ in range(5):
        assert found.keys["partner"].by_kid("two") is None
    await _settled()
    assert scene.attempts == 2
    assert found.keys["partner"].by_kid("two") is TWO
    assert found.keys["partner"].by_kid("three") is None
    await _settled()
    assert scene.attempts == 2


@run
async def test_what_failed_leaves_the_keys_as_they_were(scene: Scene) -> None:
    found = policy()
    scene.supplies.take_over(found)
    await scene.supplies.first()
    scene.outcome = scene.fail
    scene.now += timelimits.KEYS_AGAIN_SECONDS
    found.keys["partner"].by_kid("two")
    await _settled()
    assert scene.counted[-1] == ("partner", False)
    assert kids(found) == ["one"]


@run
async def test_an_error_inside_is_no_end(scene: Scene) -> None:
    found = policy()

    def broken() -> KeySet:
        raise RuntimeError("inside")

    scene.outcome = broken
    scene.supplies.take_over(found)
    await scene.supplies.first()
    scene.outcome = lambda: KeySet("partner", ALG, ONE)
    scene.now += timelimits.KEYS_AGAIN_SECONDS
    found.keys["partner"].by_kid("two")
    await _settled()
    assert kids(found) == ["one"]


@run
async def test_a_policy_with_the_same_url_goes_on_with_the_keys_and_fetches_nothing(scene: Scene) -> None:
    before, after = policy(), policy()
    scene.supplies.take_over(before)
    await scene.supplies.first()
    scene.supplies.take_over(after)
    assert kids(after) == ["one"]
    assert after.keys["partner"].now is not before.keys["partner"].now
    await _settled()
    assert scene.attempts == 1


@run
async def test_another_max_age_is_no_other_url_but_counts_at_once(scene: Scene) -> None:
    scene.supplies.take_over(policy())
    await scene.supplies.first()
    after = policy(max_age=60)
    scene.supplies.take_over(after)
    assert kids(after) == ["one"]
    await _settled()
    assert scene.attempts == 2


@run
async def test_another_url_begins_anew(scene: Scene) -> None:
    scene.supplies.take_over(policy())
    await scene.supplies.first()
    scene.outcome = lambda: KeySet("partner", ALG, TWO)
    after = policy(path="/other")
    scene.supplies.take_over(after)
    assert kids(after) == []
    await _settled()
    assert kids(after) == ["two"]


@run
async def test_what_comes_under_an_earlier_policy_counts_under_the_one_in_force(scene: Scene) -> None:
    before, after = policy(), policy()
    scene.supplies.take_over(before)
    await asyncio.sleep(0)  # it is under way
    scene.supplies.take_over(after)
    await scene.supplies.first()
    assert kids(after) == ["one"]
    assert scene.attempts == 1


@run
async def test_a_set_that_is_gone_is_fetched_no_more(scene: Scene) -> None:
    scene.supplies.take_over(policy())
    await scene.supplies.first()
    scene.supplies.take_over(Policy())
    await scene.supplies.first()  # nothing to wait for
    await _settled()
    assert scene.attempts == 1
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


@run
async def test_nobody_waits_for_long(scene: Scene) -> None:
    forever = asyncio.get_running_loop().create_future()

    async def never(*_: object) -> KeySet:
        await forever
        raise AssertionError

    patch = pytest.MonkeyPatch()
    patch.setattr(supplies, "fetch_keys", never)
    patch.setattr(timelimits, "FIRST_KEYS_SECONDS", 0.01)
    scene.supplies.take_over(policy())
    await scene.supplies.first()
    patch.undo()


def sources(failures: int, max_age: float) -> Iterator[float]:
    """The pauses after so many failures, many times."""
    (key_set,) = policy(max_age).keys.values()
    assert key_set.supply is not None
    source = Source(key_set, key_set.supply, None, Policy(), failures=failures)
    return (pause(source) for _ in range(200))


@pytest.mark.parametrize(
    ("failures", "max_age", "least", "most"),
    [
        (0, 3600, 2592, 3168),  # 0.8 of it, give or take a tenth: always before it is over
        (1, 3600, 0.9, 1.1),
        (3, 3600, 3.6, 4.4),
        (7, 3600, 54, 66),
        (10_000, 3600, 54, 66),
        (7, 2, 1.8, 2.2),
    ],
)
def test_pauses_are_spread_and_bounded(failures: int, max_age: float, least: float, most: float) -> None:
    found = list(sources(failures, max_age))
    assert least <= min(found) < max(found) <= most
