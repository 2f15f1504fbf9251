"""Generates what the code knows best: the tables of reasons, metrics, alerts and policy keys in these papers, the JSON
Schema of the policy file, the alerting rules for Prometheus, and the manual page. `make check` runs it with `--check`.

Rules of this module:

- A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else is written by people, and stays.
- The output depends on the code only, so a second run changes nothing.
- A missing, doubled or unknown marker is an error: a table that nobody updates is worse than none.

`python docs/generate.py` writes; with `--check` it writes nothing, names the files that are stale and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from addons.metrics import Metrics
from addons.policymetrics import PolicyMetrics
from docs.alerts import alerts_rows, rules_text
from docs.dashboard import dashboard_text, panels_rows
from docs.manual import manual_text
from proxy.core.decisions import Action
from proxy.core.reasons import Outcome, Reason
from proxy.core.rules.policy import Policy
from proxy.policyfile.model.schema import policy_table, schema_text
from tests.clients.programs import CLIENTS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

_REGION = re.compile(
    r"(?P<start><!-- generated: (?P<name>[a-z-]+) -->\n)(?P<table>.*?)(?P<end><!-- end -->)", re.DOTALL
)
_MARKER = re.compile(r"<!-- (?:generated: [a-z-]+|end) -->")
_EXPOSED_AS = {"counter": "{}_total", "histogram": "{}_bucket, {}_sum, {}_count"}


class BadMarkers(Exception):
    """The markers of a file do not match its tables. The message names the file and what is wrong."""


def reasons_table() -> str:
    """Return the table of reason codes, in the order of the enum."""
    rows = [
        (
            f"`{reason.code}`",
            str(reason.status),
            f"`{reason.proxy_error}`",
            f"{reason.title}. {reason.meaning}",
            reason.hint,
        )
        for reason in Reason
    ]
    return _table(("reason", "status", "`Proxy-Status` error", "meaning", "what to do"), rows)


def metrics_table() -> str:
    """Return the table of metrics, with the names that a scrape shows."""
    counted = [each for each in vars(Metrics(CollectorRegistry())).values() if isinstance(each, MetricWrapperBase)]
    families = [(*each.describe(), each._labelnames) for each in counted]  # there is no public access to labels
    families += [(family, family._labelnames) for family in PolicyMetrics("", Policy, 0).describe()]  # as above
    rows = []
    for family, labels in families:
        names = _EXPOSED_AS.get(family.type, "{}").replace("{}", family.name)
        rows.append((_codes(names.split(", ")), family.type, _codes(labels) or "–", family.documentation))
    return _table(("metric", "type", "labels", "meaning"), rows)


def actions_table() -> str:
    """Return the list of actions that decision lines and metrics name."""
    return ", ".join(f"`{action.value}`" for action in Action) + "\n"


def outcomes_table() -> str:
    """Return the list of outcomes, with the reasons that lead to each."""
    rows = [
        (f"`{outcome.value}`", _codes([reason.code for reason in Reason if reason.outcome is outcome]) or "–")
        for outcome in Outcome
        if outcome is not Outcome.DENIED
    ]
    return _table(("outcome", "reasons"), [*rows, (f"`{Outcome.DENIED.value}`", "all others")])


def panels_table() -> str:
    """Return the table of the dashboard's panels."""
    return _table(("row", "panel", "what it answers"), panels_rows())


def alerts_table() -> str:
    """Return the table of alerts."""
    return _table(("alert", "severity", "what it says, and what to do"), alerts_rows())


def clients_table() -> str:
    """Return the table of programs that were tried under `overcoat run`, from the recorded results."""
    results = json.loads((ROOT / "tests" / "clients" / "results.json").read_text("utf-8"))
    rows = []
    for name, result in results.items():
        client = CLIENTS[name]
        cells = ["yes" if verdict == "ok" else verdict for verdict in result["cases"].values()]
        if not client.sends_json:
            cells[0] += ", without a field"
        rows.append((client.label, f"`{result['version']}`", *cells, client.note))
    titles = ("program", "version", "http upgraded, a field encrypted", "https inspected", "tunnelled", "a pin refused")
    return _table((*titles, "to know"), rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "reasons": ("reasons.md", reasons_table),
    "metrics": ("metrics.md", metrics_table),
    "alerts": ("metrics.md", alerts_table),
    "panels": ("on-call.md", panels_table),
    "actions": ("metrics.md", actions_table),
    "outcomes": ("metrics.md", outcomes_table),
    "policy": ("policy.md", policy_table),
    "clients": ("apps.md", clients_table),
}

FILES: dict[str, Callable[[], str]] = {
    "config/policy.schema.json": schema_text,
    "config/prometheus/overcoat.rules.yml": rules_text,
    "config/overcoat.1": manual_text,
    "config/grafana/overcoat.json": dashboard_text,
}


def _codes(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def renewed(name: str, text: str) -> str:
    """Return a file's text with its tables up to date.

    Args:
        name: the file's name in this folder.
        text: its text now.

    Raises:
        BadMarkers: it lacks a table that belongs there, has one twice, or has one that does not belong there.
    """
    expected = sorted(table for table, (file, _) in TABLES.items() if file == name)
    found = sorted(match["name"] for match in _REGION.finditer(text))
    if found != expected or len(_MARKER.findall(text)) != 2 * len(expected):
        raise BadMarkers(f"docs/{name}: the generated tables must be {expected}, each once and closed; found {found}")
    return _REGION.sub(lambda match: f"{match['start']}\n{TABLES[match['name']][1]()}\n{match['end']}", text)


def main(arguments: Sequence[str]) -> int:
    """Write or check the tables, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated tables of docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is stale")
    check = parser.parse_args(arguments).check
    status = 0
    renewals: list[tuple[str, Path, Callable[[str], str]]] = [
        (f"docs/{name}", DOCS / name, partial(renewed, name)) for name in sorted({file for file, _ in TABLES.values()})
    ]
    renewals += [(name, ROOT / name, partial(_made, make)) for name, make in FILES.items()]
    for name, path, renew in renewals:
        try:
            before = path.read_text("utf-8")
            after = renew(before)
        except (OSError, BadMarkers) as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
            continue
        if before == after:
            continue
        if check:
            print(f"stale: {name}; python docs/generate.py writes it anew", file=sys.stderr)
            status = 1
        else:
            path.write_text(after, "utf-8")
            print(f"wrote {name}")
    return status


def _made(make: Callable[[], str], _: str) -> str:
    return make()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
