"""`python -m bench.fields`: what sealing and opening the fields of one body costs, beside joserfc, jwcrypto, and
`json.loads` with `json.dumps`; in half a minute, in this process alone.

Rules of this module:

- The time is this process's own processor time, and a row's contenders take turns: other work on the machine is not in
  it, or is in all of them. A figure is the median of all rounds; a ratio the median of the rounds' ratios.
- Each contender's work is checked once before it is measured: others' tokens are opened by ours, ours by theirs.
- Everybody seals with the same key, the same header members (but `epk`) and the same values. Others make a token at a
  time, as that is what they have; ours seals a body at a time, with what it keeps between bodies, as in the sidecar.
- A row that has a target and misses it makes the exit status 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwe as joserfc_jwe
from joserfc.jwk import JWKRegistry
from jwcrypto import jwe as jwcrypto_jwe
from jwcrypto import jwk as jwcrypto_jwk

from proxy.core.fields.bodies import BodyHead, change
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.values import Setting
from proxy.core.jose.jwe import Opening
from proxy.core.jose.keys import Alg, Bind, Key, KeySet, new_key, to_jwk
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import Sealers

TODAY = date(2026, 6, 1)
HOST = "api.pay.example"
VALUES = (b'"4111111111111111"', b'"737"', b'"078-05-1120"', b'"DE02120300000000202051"')
PLACES = tuple(Place(HOST, path) for path in ("$.card.number", "$.card.cvv", "$.customer.ssn", "$.account.iban"))
HEAD = BodyHead(("application/json",))
KINDS: dict[str, Key] = {
    "A256KW": new_key(Alg.A256KW, kid="bench"),
    "ECDH-ES+A256KW, P-256": new_key(Alg.ECDH_ES_A256KW, kid="bench"),
    "ECDH-ES+A256KW, X25519": new_key(Alg.ECDH_ES_A256KW, curve="X25519", kid="bench"),
    "RSA-OAEP-256, 2048 bits": Key("bench", Alg.RSA_OAEP_256, rsa.generate_private_key(65537, 2048)),
}

type Job = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: what is done.
        jobs: who does it, by name; ours is the first.
        target: the least ratio of another's time to ours, and whose; None for none.
        most: the most microseconds of ours, or None.
    """

    name: str
    jobs: dict[str, Job]
    target: tuple[str, float] | None = None
    most: float | None = None


def _theirs(key: Key) -> tuple[Any, Any]:
    """Return the sealing half of a key for joserfc and jwcrypto."""
    jwk: Any = to_jwk(key, private=key.alg is Alg.A256KW)
    return JWKRegistry.import_key(jwk), jwcrypto_jwk.JWK(**jwk)


def _by_joserfc(key: Key, values: Sequence[bytes], places: Sequence[Place]) -> Callable[[], list[str]]:
    theirs, algorithms = _theirs(key)[0], [key.alg.value, "A256GCM"]
    headers = [_header(key, place) for place in places]
    return lambda: [
        joserfc_jwe.encrypt_compact(header, value, theirs, algorithms=algorithms)
        for header, value in zip(headers, values, strict=True)
    ]


def _by_jwcrypto(key: Key, values: Sequence[bytes], places: Sequence[Place]) -> Callable[[], list[str]]:
    theirs, headers = _theirs(key)[1], [json.dumps(_header(key, place)) for place in places]

    def seal() -> list[str]:
        made = []
        for header, value in zip(headers, values, strict=True):
            token = jwcrypto_jwe.JWE(value, header)
            token.add_recipient(theirs)
            made.append(token.serialize(compact=True))
        return made

    return seal


def _header(key: Key, place: Place) -> dict[str, str]:
    return {"alg": key.alg.value, "enc": "A256GCM", "kid": key.kid, "cty": place.media_type}


def _sealing_half(key: Key) -> KeySet:
    own = key if key.alg is Alg.A256KW else key.public()
    return KeySet("bench", key.alg, own)


def _sealing(name: str, key: Key) -> list[Row]:
    keys = _sealing_half(key)
    kept = Sealers()

    def seal(sealers: Sealers, now: float) -> list[str]:
        made = sealers.sealing(keys, keys.keys[0], now)
        return [made.seal(value, place) for value, place in zip(VALUES, PLACES, strict=True)]

    others = {"joserfc": _by_joserfc(key, VALUES, PLACES), "jwcrypto": _by_jwcrypto(key, VALUES, PLACES)}
    opening = Opening(KeySet("bench", key.alg, key), TODAY)
    for make in (lambda: seal(kept, 0.0), *others.values()):
        tokens = make()
        assert [opening.open(token, place) for token, place in zip(tokens, PLACES, strict=True)] == list(VALUES)
    targets: dict[Alg, float] = {Alg.A256KW: 15.0, Alg.ECDH_ES_A256KW: 24.0 if "256," in name else 0.0}
    least = targets.get(key.alg)
    rows = [
        Row(
            f"seal 4 values of one body, {name}",
            {"ours": lambda: seal(kept, time.monotonic()), **others},
            ("joserfc", least) if least else None,
            100.0 if key.alg is Alg.RSA_OAEP_256 else None,
        )
    ]
    if key.alg is Alg.ECDH_ES_A256KW:
        # At a rate below that of shared agreements: nothing is kept from one body to the next.
        rows.append(
            Row(f"… each body with its own ephemeral key, {name}", {"ours": lambda: seal(Sealers(), 0.0), **others})
        )
    return rows


def _opening(name: str, key: Key) -> Row:
    keys = KeySet("bench", key.alg, key)
    made = Sealers().sealing(keys, key, 0.0)
    tokens = [made.seal(value, place) for value, place in zip(VALUES, PLACES, strict=True)]
    jwk: Any = to_jwk(key, private=True)
    theirs = JWKRegistry.import_key(jwk)
    algorithms = [key.alg.value, "A256GCM"]

    def ours() -> list[bytes]:
        opening = Opening(keys, TODAY)
        return [opening.open(token, place) for token, place in zip(tokens, PLACES, strict=True)]

    def joserfc() -> list[bytes | None]:
        return [joserfc_jwe.decrypt_compact(token, theirs, algorithms=algorithms).plaintext for token in tokens]

    assert ours() == joserfc() == list(VALUES)
    return Row(f"open these 4, {name}", {"ours": ours, "joserfc": joserfc})


def _many(count: int = 800, size: int = 100_000) -> Row:
    """Seal many values of a body of 100 KB, from the bytes that come to those that leave."""
    key = KINDS["A256KW"]
    items = [{"id": f"{number:06d}", "ssn": f"078-05-{number:04d}", "note": ""} for number in range(count)]
    rest = size - len(json.dumps(items))
    for item in items:
        item["note"] = "x" * max(0, rest // count)
    body = json.dumps(items).encode()
    sealers = Sealers()
    setting = Setting(HOST, 1 << 24, TODAY, lambda keys, key: sealers.sealing(keys, key, time.monotonic()))
    entry = FieldEntry((parse_selector("$[*].ssn"),), KeySet("bench", key.alg, key))
    theirs, place = _theirs(key)[0], Place(HOST, "$[*].ssn")
    header, algorithms = _header(key, place), [key.alg.value, "A256GCM"]

    def ours() -> bytes:
        return change(body, HEAD, [entry], setting).body

    def joserfc() -> bytes:
        members = json.loads(body)
        for member in members:
            value = json.dumps(member["ssn"]).encode()
            member["ssn"] = joserfc_jwe.encrypt_compact(header, value, theirs, algorithms=algorithms)
        return json.dumps(members).encode()

    back = replace(entry, work=Work.DECRYPT, keys=replace(entry.keys, bind=Bind.PLACE))
    for sealed in (ours(), joserfc()):
        some = json.dumps(json.loads(sealed)[:40]).encode()
        assert json.loads(change(some, HEAD, [back], setting).body) == items[:40]
    return Row(
        f"seal {count} values of a body of {len(body) // 1000} KB, A256KW, whole step",
        {"ours": ours, "joserfc": joserfc, "loads + dumps": lambda: json.dumps(json.loads(body))},
        ("joserfc", 3.0),
    )


def rows() -> list[Row]:
    """Return all rows in their order."""
    made = [row for name, key in KINDS.items() for row in _sealing(name, key)]
    return [*made, *(_opening(name, key) for name, key in KINDS.items()), _many()]


def measure(row: Row, rounds: int) -> dict[str, list[float]]:
    """Return microseconds for each contender and round; they take turns within a round."""
    counts = {name: _count(job) for name, job in row.jobs.items()}
    found: dict[str, list[float]] = {name: [] for name in row.jobs}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, job in row.jobs.items():
                begin = time.process_time()
                for _ in range(counts[name]):
                    job()
                found[name].append((time.process_time() - begin) / counts[name] * 1e6)
            gc.collect()
    finally:
        gc.enable()
    return found


def _count(job: Job) -> int:
    """Return how often a job runs in about 40 ms."""
    job()
    begin = time.process_time()
    job()
    return max(1, int(0.04 / max(time.process_time() - begin, 1e-6)))


def main() -> int:
    """Measure all rows, and print them."""
    parser = argparse.ArgumentParser(prog="python -m bench.fields", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name has this in it")
    options = parser.parse_args()
    missed = 0
    for row in rows():
        if options.only not in row.name:
            continue
        found = measure(row, options.rounds)
        ours = found.pop("ours")
        print(f"{row.name}\n  {'ours':16} {median(ours):9.1f} µs")
        if row.most is not None:
            is_met = median(ours) <= row.most
            missed += not is_met
            print(f"  {'':16} at most {row.most:.0f}: {'met' if is_met else 'MISSED'}")
        for name, times in found.items():
            ratio = median(theirs / mine for theirs, mine in zip(times, ours, strict=True))
            verdict = ""
            if row.target is not None and row.target[0] == name:
                is_met = ratio >= row.target[1]
                missed += not is_met
                verdict = f"  at least {row.target[1]:.0f} ×: {'met' if is_met else 'MISSED'}"
            print(f"  {name:16} {median(times):9.1f} µs  {ratio:6.1f} ×{verdict}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
