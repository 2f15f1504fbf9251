"""The report: docs/benchmarks.md, and its chart.

Rules of this module:

- Every figure is a median of rounds, and stands with the least and the greatest of them.
- A ratio is taken round by round, and its median is shown: what disturbs the machine for a while disturbs both.
- Targets that are not met, and rows that are missing or incomplete, are shown as clearly as targets that are met.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl

from bench.lab import LabError
from bench.results import OVERCOAT, Metric, Row

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen first

MIN_ROUNDS = 5
_PROGRAMS = {"nginx": "-v", "haproxy": "-v", "squid": "-v", "wrk": "-v", "h2load": "--version", "curl": "--version"}
_OURS, _OTHERS, _INK = "#0b6e4f", "#8a94a0", "#222222"

_INTRODUCTION = """\
# Benchmarks

*Made by `make bench`, which runs all of this side by side on one machine; see [bench/](../bench/README.md).*

Load generators and the upstream (nginx with TLS) run on the same machine, away from the proxy's core. All proxies of a
row run at the same time and are measured in turns, each round in another order. Figures are medians of the rounds, with
the least and the greatest in brackets; a ratio is taken within each round. Before it is measured, every proxy is
checked: a request must arrive over TLS, exactly once; where there are pins, a server with another key must be refused;
encrypted fields are opened with the private key. While it is measured, a single failed request ends the row, and the
upstream's own count must be no less than the client's. Overcoat writes a decision line for every request, to /dev/null;
the others write no log. The fastest of them are held back by the load generator's core, not by their own. Absolute
figures say more about the machine than about the proxies; ratios travel better.
"""


def describe_machine(overcoat: Path) -> dict[str, str]:
    """Return what the figures depend on: the machine and all versions."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    found = {
        "Processor": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "System": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Overcoat": _first_version([str(overcoat), "--version"]),
    }
    for name in ("mitmproxy", "proxy.py", "joserfc", "grpcio"):
        found[name] = version(name)
    for name, argument in _PROGRAMS.items():
        program = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if program is not None:
            found[name] = _first_version([program, argument])
    return found


def _first_version(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # wrk says its version with status 1
    number = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout + done.stderr)
    return number[0] if number else "unknown"


def read(files: Sequence[Path]) -> tuple[dict[str, str], list[Row]]:
    """Read what `--json` wrote; of a row that is in several files the last one's counts.

    Raises:
        LabError: a file cannot be read.
    """
    rows: dict[str, Row] = {}
    machine: dict[str, str] = {}
    for file in files:
        try:
            data = json.loads(file.read_text("utf-8"))
            machine = data["machine"]
            rows |= {row["name"]: Row.from_json(row) for row in data["rows"]}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise LabError(f"{file} holds no results: {e}") from None
    return machine, list(rows.values())


def write(folder: Path, machine: dict[str, str], rows: Sequence[Row]) -> None:
    """Write benchmarks.md and benchmarks.png into a folder."""
    measured = [row for row in rows if row.samples]
    limits = Path(__file__).with_name("limits.md").read_text("utf-8")
    parts = [_INTRODUCTION, _machine(machine, measured), _targets(rows), limits, "![All rows](benchmarks.png)\n"]
    parts += [_section(row) for row in rows]
    (folder / "benchmarks.md").write_text("\n".join(parts), "utf-8")
    _chart(folder / "benchmarks.png", measured)


def _machine(machine: dict[str, str], rows: Sequence[Row]) -> str:
    dates = sorted({row.date for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never"
    return f"Measured {when}. " + ", ".join(f"{name}: {value}" for name, value in machine.items()) + ".\n"


def _targets(rows: Sequence[Row]) -> str:
    lines = ["## Targets\n", "| work | target | measured | |", "| --- | --- | --- | --- |"]
    for row in rows:
        for target in row.targets:
            measured, verdict = f"not available: {row.unavailable}", "–"
            if not row.unavailable:
                measured, verdict = row.figure_text(target), "met" if row.is_met(target) else "**not met**"
                verdict = verdict if target.limit is not None else "–"
            lines.append(f"| [{target.text}](#{_anchor(row.title)}) | {target.limit_text} | {measured} | {verdict} |")
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _section(row: Row) -> str:
    lines = [f"## {row.title}\n", f"{row.how}"]
    if row.unavailable:
        return "\n".join([*lines, f"\nNot available: {row.unavailable}.\n"])
    rounds = max(len(values) for samples in row.samples.values() for values in samples.values())
    lines[-1] += f" {rounds} rounds."
    lines.append("\n| | " + " | ".join(f"{metric.title} ({metric.unit})" for metric in row.metrics) + " |")
    lines.append("| --- |" + " ---: |" * len(row.metrics))
    for name, samples in row.samples.items():
        cells = [_cell(samples.get(metric.key), metric) for metric in row.metrics]
        label = f"**{name}**" if name.startswith(OVERCOAT) else name
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if row.leaves_out:
        lines.append("\nLeft out: " + "; ".join(f"*{name}*: {text}" for name, text in row.leaves_out.items()) + ".")
    return "\n".join(lines) + "\n"


def _cell(values: list[float] | None, metric: Metric) -> str:
    if not values:
        return "–"
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    digits = metric.digits
    return f"{middle:,.{digits}f} ({ordered[0]:,.{digits}f} to {ordered[-1]:,.{digits}f})"


def _chart(path: Path, rows: Sequence[Row]) -> None:
    """Draw one panel a row: its first metric on a logarithmic scale, since C and Python lie far apart."""
    columns = 2
    lines = (len(rows) + columns - 1) // columns
    figure, panels = plt.subplots(lines, columns, figsize=(12.0, 2.1 * lines), squeeze=False, layout="constrained")
    for panel in panels.flat[len(rows) :]:
        panel.set_visible(False)
    for row, panel in zip(rows, panels.flat, strict=False):
        metric = row.metrics[0]
        names = [name for name, samples in row.samples.items() if metric.key in samples]
        for place, name in enumerate(names):
            values = row.samples[name][metric.key]
            middle = row.median(name, metric.key)
            is_ours = name.startswith(OVERCOAT) or name.endswith(("worker", "workers"))
            colour = _OURS if is_ours else _OTHERS
            panel.plot([min(values), max(values)], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            panel.plot([middle], [place], "o", color=colour, markersize=7)
            panel.annotate(
                f"{middle:,.{metric.digits}f}",
                (max(values), place),
                xytext=(7, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=9,
                color=_INK,
            )
        panel.set_xscale("log")
        low, high = panel.get_xlim()
        stretch = max(1.0, 10 / (high / low)) ** 0.5  # at least a decade; otherwise small differences would look large
        low, high = low / stretch, high * stretch
        panel.set_xlim(low, high * (high / low) ** 0.15)  # room for the figures beside the dots
        panel.set_yticks(range(len(names)), names, fontsize=9)
        panel.set_ylim(len(names) - 0.4, -0.6)
        better = ", less is better" if row.targets and row.targets[0].sense == "most" else ""
        panel.set_title(f"{row.title} ({metric.unit}{better})", loc="left", fontsize=9, fontweight="bold")
        panel.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        panel.tick_params(axis="y", length=0)
        for name, label in zip(names, panel.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if name.startswith(OVERCOAT) else "normal")
        for side in ("top", "right", "bottom"):
            panel.spines[side].set_visible(False)
    figure.suptitle(
        "Medians, least to greatest; more is better unless it says less; each panel has a logarithmic scale of its own",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
