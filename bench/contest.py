"""Runs one row of the benchmark: checks all contenders, then measures them in rounds, each round in another order. The
rows (`bench.rows`) call it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.lab import Lab
from bench.measure import check
from bench.peers import Contender, Job
from bench.results import Row

STOCK = "mitmdump"

Entry = tuple[Contender, Job]
Measure = Callable[[Contender], dict[str, float]]
Examine = Callable[[Lab, Contender, Job], None]


def contest(
    lab: Lab,
    row: Row,
    entries: Sequence[Entry],
    measure: Measure,
    warm_up: Measure | None = None,
    *,
    examine: Examine = check,
) -> Row:
    """Check and warm up all contenders, then measure them in rounds, each round in another order."""
    contenders = [contender for contender, _ in entries]
    for contender, job in entries:
        examine(lab, contender, job)
        if warm_up is not None:
            warm_up(contender)
    samples: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in contenders}
    for number in range(lab.settings.rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            for key, value in measure(contender).items():
                samples[contender.name].setdefault(key, []).append(value)
    leaves_out = {contender.name: contender.leaves_out for contender in contenders if contender.leaves_out}
    return replace(row, samples=samples, leaves_out=row.leaves_out | leaves_out)
