"""`python -m bench.fields`: what finding, sealing and splicing fields costs, beside json, joserfc and jwcrypto.

Rules of this module:

- The time is that of this thread, as the kernel counts it; other work on the machine is not in it. But a busy machine
  makes everything slower (caches), so only ratios within one run tell anything.
- Sealing with a key agreement depends on the clock: there are some for each second. The clock is the time that the
  contender itself has had, as if it were alone on a processor.
- All contenders of a row take turns, each round in another order. The results are medians; for a ratio, the median of
  the ratios of all rounds.
- What is compared does the same work: joserfc and jwcrypto seal what `json.loads` has read, value by value, and
  `json.dumps` writes the body anew.

What it costs on a request's way through the proxy is a row of `python -m bench`.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from joserfc import jwe
from joserfc.jwk import ECKey, OctKey, RSAKey
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from bench.measure import BODY
from proxy.core.fields.automaton import Marks
from proxy.core.fields.bodies import BodyHead, change
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.splice import Job, splice
from proxy.core.fields.values import Setting
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.jose.keywriting import to_jwk
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import Sealers

FOUR = ("$.card.number", "$.card.cvv", "$.customer.ssn", "$.account.iban")
PLACES = (("card", "number"), ("card", "cvv"), ("customer", "ssn"), ("account", "iban"))
HEAD = BodyHead(["application/json"])
HOST = "api.pay.example"
PLACE = Place(HOST, "$.card.number")
KEYS: dict[str, Any] = {"ECDH-ES+A256KW": ECKey, "RSA-OAEP-256": RSAKey, "A256KW": OctKey}
SHARE = 0.02  # seconds of one measurement: so many calls are made that it takes about as long

type Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured.

    Attributes:
        title: what it is.
        ours: the contender that has a target.
        base: the contender that it is compared with.
        most: the greatest ratio of the two that meets the target; None if there is no target.
        works: all contenders.
    """

    title: str
    ours: str
    base: str
    most: float | None
    works: Mapping[str, Work]


@dataclass(frozen=True, slots=True)
class Result:
    """What a row gave: microseconds by contender, and the ratio of `Row.ours` to `Row.base`."""

    row: Row
    microseconds: Mapping[str, float]
    ratio: float

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.row.most is None or self.ratio <= self.row.most


class Sealer:
    """Seals values with a new key of one kind: as the product does, with joserfc, and with jwcrypto."""

    def __init__(self, alg: str) -> None:
        key = new_key(Alg(alg), kid="bench")
        self.keys = KeySet("bench", key.alg, key)
        self.key = key
        jwk = to_jwk(key, private=True)
        self._joserfc: Any = KEYS[alg].import_key(jwk)
        self._jwcrypto = JWK(**jwk)
        self._header = {"alg": alg, "enc": "A256GCM", "kid": "bench"}
        self._registry = jwe.JWERegistry(algorithms=[alg, "A256GCM"])
        self._spent = 0.0  # seconds

    def ours(self, sealers: Sealers, values: list[bytes]) -> None:
        """Seal the values of one body."""
        start = time.thread_time()
        sealing = sealers.sealing(self.keys, self.key, self._spent)
        for value in values:
            sealing.token(value, PLACE)
        self._spent += time.thread_time() - start

    def fresh(self, values: list[bytes]) -> None:
        """Do so for the first time."""
        self.ours(Sealers(), values)

    def joserfc(self, value: bytes) -> str:
        """Seal one value."""
        return jwe.encrypt_compact(dict(self._header), value, self._joserfc, registry=self._registry)

    def jwcrypto(self, value: bytes) -> str:
        """Seal one value."""
        token = JWE(value, json.dumps(self._header))
        token.add_recipient(self._jwcrypto)
        text: str = token.serialize(compact=True)
        return text

    def work(self, *selectors: str) -> Callable[[bytes], object]:
        """Return the product's whole step for a body."""
        entry = FieldEntry(tuple(map(parse_selector, selectors)), self.keys)
        sealers = Sealers()
        setting = Setting(
            HOST,
            1 << 20,
            datetime.now(UTC).date(),
            lambda keys, key: sealers.sealing(keys, key, time.monotonic()),
            of_request=True,
        )
        return lambda body: change(body, HEAD, [entry], setting)


def each_by(seal: Callable[[bytes], str], values: list[bytes]) -> None:
    """Seal values one by one."""
    for value in values:
        seal(value)


def dump(value: object) -> bytes:
    """Write JSON as a proxy without Overcoat would."""
    return json.dumps(value).encode()


def rewritten(body: bytes) -> bytes:
    """Read and write JSON."""
    return dump(json.loads(body))


def rows_body(count: int, **more: object) -> bytes:
    """Return a body with so many rows in it, about 140 bytes each."""
    return dump(
        {
            "rows": [
                {"id": at, "name": f"User {at}", "email": f"user{at}@shop.example", "tags": ["a", "b"], "at": {"x": 1}}
                for at in range(count)
            ],
            **more,
        }
    )


def sealed_by(seal: Callable[[bytes], str], body: bytes, places: Callable[[Any], list[tuple[Any, Any]]]) -> bytes:
    """Read a body, seal values of it one by one, and write it anew."""
    read = json.loads(body)
    for container, name in places(read):
        container[name] = seal(dump(container[name]))
    return dump(read)


def all_rows() -> list[Row]:
    """Return the rows."""
    four = [b'"4111111111111111"', b'"737"', b'"078-05-1120"', b'"DE02120300000000202051"']
    rows: list[Row] = []
    for alg, most in (("A256KW", 1 / 15), ("ECDH-ES+A256KW", 1 / 24), ("RSA-OAEP-256", None)):
        sealer, sealers = Sealer(alg), Sealers()
        rows.append(
            Row(
                f"sealing 4 values of one body, {alg}",
                "Overcoat",
                "joserfc",
                most,
                {
                    "Overcoat": partial(sealer.ours, sealers, four),
                    "Overcoat, all fresh": partial(sealer.fresh, four),
                    "joserfc": partial(each_by, sealer.joserfc, four),
                    "jwcrypto": partial(each_by, sealer.jwcrypto, four),
                },
            )
        )
    small = dump(json.loads(BODY))
    put = [Job(Marks(tuple(map(parse_selector, FOUR))), lambda value, path: b'"x"')]
    rows.append(
        Row(
            f"{len(small)}-byte body, 4 values found and spliced",
            "Overcoat",
            "loads + dumps",
            15 / 14,
            {"Overcoat": lambda: splice(small, put), "loads + dumps": lambda: rewritten(small)},
        )
    )
    fast = Sealer("A256KW")
    one = rows_body(980, card={"number": "4111111111111111"})
    whole, card = fast.work(*FOUR), [("card", "number")]
    rows.append(
        Row(
            f"{len(one) // 1000} KB body, 1 value, whole step",
            "Overcoat",
            "loads + dumps",
            1.0,
            {
                "Overcoat": lambda: whole(one),
                "Overcoat, $..": partial(fast.work("$..number"), one),
                "loads + dumps": lambda: rewritten(one),
                "joserfc": lambda: sealed_by(fast.joserfc, one, lambda read: [(read[a], b) for a, b in card]),
            },
        )
    )
    none = rows_body(980)
    rows.append(
        Row(
            f"{len(none) // 1000} KB body without a marked name",
            "Overcoat",
            "loads",
            0.3,
            {
                "Overcoat": lambda: whole(none),
                "Overcoat, $..": partial(fast.work("$..number", "$..ssn"), none),
                "loads": lambda: json.loads(none),
            },
        )
    )
    many = dump([{"id": at, "number": f"4111 1111 1111 {at:04}", "note": "x" * 70} for at in range(800)])
    each = fast.work("$[*].number")
    rows.append(
        Row(
            f"800 values in {len(many) // 1000} KB",
            "Overcoat",
            "joserfc",
            1 / 3,
            {
                "Overcoat": lambda: each(many),
                "joserfc": lambda: sealed_by(fast.joserfc, many, lambda read: [(row, "number") for row in read]),
                "loads + dumps": lambda: rewritten(many),
            },
        )
    )
    return rows


def seconds(work: Work, calls: int) -> float:
    """Return the processor time of one call."""
    start = time.thread_time()
    for _ in range(calls):
        work()
    return (time.thread_time() - start) / calls


def measure(row: Row, rounds: int) -> Result:
    """Measure a row."""
    calls = {}
    for name, work in row.works.items():
        once = seconds(work, 1)
        several = max(1, round(SHARE / 4 / max(once, 1e-7)))
        # Work that was never done before takes longer.
        calls[name] = max(1, round(SHARE / max(seconds(work, several), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in row.works}
    names = list(row.works)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(seconds(row.works[name], calls[name]))
    ratios = [mine / base for mine, base in zip(samples[row.ours], samples[row.base], strict=True)]
    return Result(row, {name: median(found) * 1e6 for name, found in samples.items()}, median(ratios))


def memory(work: Work) -> int:
    """Return how many bytes Python has at most while it works, above what it had before."""
    work()
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def main() -> int:
    """Measure and print all rows; return the exit status: 1 if a target is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.fields", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    results = []
    for row in all_rows():
        result = measure(row, options.rounds)
        results.append(result)
        print(row.title)
        for name, found in result.microseconds.items():
            peak = memory(row.works[name]) / 1000
            print(f"  {name:<22}{found:>10,.1f} µs {peak:>10,.0f} KB at most")
        limit = "" if row.most is None else f"; at most {row.most:.2f}: {'met' if result.is_met else 'NOT MET'}"
        print(f"  {result.ratio:.2f} of {row.base}{limit}\n", flush=True)
    if options.json:
        found_by_title = {
            each.row.title: {**each.microseconds, "ratio": each.ratio, "is_met": each.is_met} for each in results
        }
        options.json.write_text(json.dumps(found_by_title, indent=1))
    return 0 if all(result.is_met for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
