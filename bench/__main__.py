"""`python -m bench`: run the rows, print what they gave, and write docs/benchmarks.md and its chart."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench.lab import Lab, LabError, Settings
from bench.report import MIN_ROUNDS, describe_machine, read, write
from bench.results import Row
from bench.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]


def _arguments() -> argparse.Namespace:
    usual = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measures Overcoat and its peers side by side."
    )
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, help="of one measurement (default: %(default)s)"
    )
    parser.add_argument("--connections", type=int, default=usual.connections, help="at once (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=usual.scale, help="of 1 GiB and 100,000 requests, to try out")
    parser.add_argument(
        "--overcoat", type=Path, default=ROOT / ".venv" / "bin" / "overcoat", help="the command to measure"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    parser.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="measure nothing; report these files")
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> Iterator[Row]:
    """Measure row after row. A row that fails is named and left out; the others are measured all the same."""
    settings = Settings(options.rounds, options.seconds, options.connections, options.scale)
    with Lab(settings, options.overcoat.absolute()) as lab:
        for name in options.only or ROWS:
            started = time.monotonic()
            try:
                with lab.row():
                    row = ROWS[name](lab)
            except LabError as e:
                print(f"\n{name}: FAILED: {e}", flush=True)
                continue
            row = replace(row, seconds=options.seconds, date=f"{datetime.now(UTC):%Y-%m-%d}")
            _show(row, time.monotonic() - started)
            yield row


def _show(row: Row, seconds: float) -> None:
    print(f"\n{row.name}: {row.title} ({seconds:.0f} s)")
    if row.unavailable:
        print(f"  not available: {row.unavailable}")
    else:
        for contender, samples in row.samples.items():
            shown = [
                f"{row.median(contender, m.key):>10,.{m.digits}f} {m.unit}" for m in row.metrics if m.key in samples
            ]
            print(f"  {contender:<22}" + "  ".join(shown))
        for target in row.targets:
            verdict = "met" if row.is_met(target) else "NOT MET"
            asked = f"; {target.limit_text}: {verdict}" if target.limit is not None else ""
            print(f"  {target.text}: {row.figure_text(target)}{asked}")
    sys.stdout.flush()


def _run(options: argparse.Namespace) -> list[str]:
    """Measure, or read earlier results; return the targets that are not met."""
    if options.report:
        machine, rows = read(options.report)
    else:
        rows = list(_measure(options))
        machine = describe_machine(options.overcoat.absolute())
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": [row.to_json() for row in rows]}, indent=1))
    missing = sorted(set(options.only or ROWS) - {row.name for row in rows})
    if missing:
        raise LabError(f"rows that were not measured: {', '.join(missing)}")
    if options.report or (not options.only and options.rounds >= MIN_ROUNDS and options.scale >= 1.0):
        write(ROOT / "docs", machine, sorted(rows, key=lambda row: list(ROWS).index(row.name)))
        print("\nwrote docs/benchmarks.md and docs/benchmarks.png")
    else:
        print(f"\ndocs/benchmarks.md is left alone: it takes all rows, {MIN_ROUNDS} rounds and the full scale")
    return [target.text for row in rows for target in row.targets if row.unavailable or not row.is_met(target)]


def main() -> int:
    """Do what the arguments say; return 1 if something is missing or failed, or a target is not met."""
    try:
        missed = _run(_arguments())
    except LabError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    for text in missed:
        print(f"not met: {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
