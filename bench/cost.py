"""`python -m bench.cost`: Overcoat's processor time a request, in a few seconds, also beside another checkout's.

Rules of this module:

- The time is that of all its processes, user's and system's, as the kernel counts it; other work on the machine is not
  in it. But a busy machine makes everything slower (caches), so compare only results of one run.
- All checkouts run at the same time and are measured in turns, each round in another order. The results are medians;
  for a ratio, the median of the ratios of all rounds.
- It needs no other proxy than Overcoat: only nginx, h2load, wrk, curl, and the project's own .venv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.lab import Lab, LabError, Settings
from bench.measure import STREAMS, Way, check, connector, generator, h2load, wrk
from bench.peers import Contender, Job, overcoat

ROOT = Path(__file__).resolve().parents[1]
WORK = {
    "http1": "HTTP/1.1 keep-alive, upgraded",
    "close": "HTTP/1.1, a new connection for each request, upgraded",
    "fields": "HTTP/1.1 keep-alive, upgraded, four fields of each body encrypted",
    "inspected": "HTTP/1.1 keep-alive, inspected",
    "http2": f"HTTP/2, {STREAMS} streams at once, inspected; HTTP/1.1 to the upstream",
    "http2-both": f"HTTP/2, {STREAMS} streams at once, inspected; HTTP/2 to the upstream, too",
}
WRK = {"close": {"close": True}, "fields": {"body": True}}  # wrk makes this load, for a second each time
USUAL = ("http1", "inspected", "http2")


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkout's process for one kind of work.

    Attributes:
        contender: the process.
        way: the relay through which h2load reaches it; None for our own generator.
        work: its kind of work, a key of `WORK`.
    """

    contender: Contender
    way: Way | None
    work: str

    def cost(self, lab: Lab, count: int) -> float:
        """Return microseconds of processor time a request."""
        used = self.contender.running.run_seconds()
        if self.way is not None:
            load = h2load(lab, self.contender, self.way, http2=True, count=count)
        elif self.work in WRK:
            load = wrk(lab, self.contender, **WRK[self.work])
        else:
            load = generator(lab, self.contender, "--count", str(count), inspect=self.work == "inspected")
        return (self.contender.running.run_seconds() - used) / load.requests * 1e6


def _start(lab: Lab, work: str, checkout: Path) -> Entry:
    job = Job(
        inspect=work not in ("http1", *WRK),
        fields=work == "fields",
        app_http2=work.startswith("http2"),
        upstream_http2=work.endswith("both"),
    )
    contender = overcoat(lab, job, str(checkout), checkout=checkout)
    check(lab, contender, job)
    port = lab.upstream.http2_port if job.upstream_http2 else lab.upstream.port
    return Entry(contender, connector(lab, contender, port) if job.app_http2 else None, work)


def _measure(lab: Lab, work: str, checkouts: Sequence[Path], count: int) -> None:
    """Measure all checkouts at one kind of work, and print it."""
    with lab.row():
        entries = [_start(lab, work, checkout) for checkout in checkouts]
        costs: list[list[float]] = [[] for _ in entries]
        for number in range(-1, lab.settings.rounds):  # the first one warms up
            turn = max(number, 0) % len(entries)
            for place in [*range(turn, len(entries)), *range(turn)]:
                cost = entries[place].cost(lab, count)
                if number >= 0:
                    costs[place].append(cost)
    print(WORK[work])
    for checkout, found in zip(checkouts, costs, strict=True):
        ratios = [mine / other for mine, other in zip(found, costs[0], strict=True)]
        beside = "" if found is costs[0] else f"  {median(ratios):.3f} × ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"  {median(found):7.1f} µs ({min(found):.1f} to {max(found):.1f})  {checkout}{beside}", flush=True)


def main() -> int:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, action="append", default=[], metavar="DIR", help="another checkout")
    parser.add_argument("--only", action="append", choices=list(WORK), help=f"default: {', '.join(USUAL)}")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=800, help="of one measurement (default: %(default)s)")
    options = parser.parse_args()
    checkouts = [ROOT, *(path.resolve() for path in options.against)]
    lacking = [path for path in checkouts if not (path / "overcoat" / "__main__.py").exists()]
    try:
        if lacking:
            raise LabError(f"no checkout of Overcoat: {', '.join(map(str, lacking))}")
        with Lab(Settings(rounds=options.rounds, seconds=1.0), Path(sys.executable), has_peers=False) as lab:
            for work in options.only or USUAL:
                _measure(lab, work, checkouts, options.requests)
    except LabError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
