"""The dashboard for Grafana. `docs/generate.py` makes `config/grafana/overcoat.json` and the table in docs/on-call.md
from it.

Rules of this module:

- Each panel answers one question that a person asks at 3 a.m., and says which.
- Each expression returns data once there was traffic: a test asks a real Prometheus.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_WIDTH, _HEIGHT = 24, 7  # of a row of panels, in Grafana's units
_OF = 'job=~"$job", instance=~"$instance"'
_OF_RULE = f'{_OF}, rule=~"$rule"'
_MEASURED = "overcoat_process_measured_timestamp_seconds"
_RATE = "[$__rate_interval]"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: its title.
        question: what it answers.
        targets: PromQL, and the legend of what it returns.
        unit: Grafana's name of the unit.
        kind: Grafana's name of the kind of panel.
        width: in units of which a row has 24.
        stack: whether the series are stacked.
    """

    title: str
    question: str
    targets: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stack: bool = False


def _requests(more: str = "") -> str:
    return f"rate(overcoat_requests_total{{{_OF_RULE}{more}}}{_RATE})"


def _quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    buckets = f"sum by (le) (rate({histogram}_bucket{{{_OF_RULE}}}{_RATE}))"
    return tuple((f"histogram_quantile({share}, {buckets})", f"p{share[2:]}") for share in ("0.50", "0.95", "0.99"))


def _days_left(metric: str, more: str = "") -> str:
    return f"((overcoat_{metric}{{{_OF}{more}}} > 0) - time()) / 86400"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            Panel(
                "Requests and tunnels",
                "Does anything arrive at all?",
                ((f"sum({_requests()})", "per second"),),
                "reqps",
                "stat",
                4,
            ),
            Panel(
                "Not well ended",
                "Which share was denied, failed, cut, left, drained or idle?",
                ((f"""sum({_requests(', outcome!~"ok|observed"')}) / (sum({_requests()}) > 0)""", "of all"),),
                "percentunit",
                "stat",
                4,
            ),
            Panel(
                "Mode",
                "Is it enforced, or only observed?",
                ((f"sum by (mode) (overcoat_info{{{_OF}}})", "{{mode}}"),),
                "short",
                "stat",
                4,
            ),
            Panel(
                "Policy refused",
                "Was the policy, as it was last read, refused (1)? Then an older one is in force.",
                ((f"overcoat_policy_refused{{{_OF}}}", "{{instance}}"),),
                "short",
                "stat",
                4,
            ),
            Panel(
                "Policy in force since",
                "Did somebody change the policy just now?",
                ((f"time() - overcoat_policy_taken_timestamp_seconds{{{_OF}}}", "{{instance}}"),),
                "s",
                "stat",
                4,
            ),
            Panel(
                "Running since",
                "Was it restarted?",
                ((f"time() - overcoat_start_timestamp_seconds{{{_OF}}}", "{{instance}}"),),
                "s",
                "stat",
                4,
            ),
        ),
    ),
    (
        "Traffic",
        (
            Panel(
                "Outcomes",
                "How do requests and tunnels end, and since when otherwise?",
                ((f"sum by (outcome) ({_requests()})", "{{outcome}}"),),
                "reqps",
                width=12,
                stack=True,
            ),
            Panel(
                "By rule and action",
                "Whose traffic is it, and what does the policy say of it?",
                ((f"sum by (rule, action) ({_requests()})", "{{rule}} {{action}}"),),
                "reqps",
                width=12,
            ),
            Panel(
                "Reasons",
                "Why are requests denied, or why do they fail? docs/reasons.md says what to do about each.",
                ((f"""sum by (reason) ({_requests(', reason!="-"')}) > 0""", "{{reason}}"),),
                "reqps",
                width=12,
            ),
            Panel(
                "What the servers answer",
                "Are the errors theirs?",
                ((f"""sum by (status) ({_requests(', outcome=~"ok|observed", status!="-"')})""", "{{status}}"),),
                "reqps",
                width=12,
                stack=True,
            ),
            Panel(
                "What enforcing would deny",
                "May a rule, or all, leave observe mode?",
                (
                    (
                        f"""sum by (rule, reason) ({_requests(', outcome="observed", action="deny"')})""",
                        "{{rule}} {{reason}}",
                    ),
                ),
                "reqps",
                width=12,
            ),
            Panel(
                "Users",
                "Who sends so much?",
                ((f"sum by (user) (rate(overcoat_user_requests_total{{{_OF}}}{_RATE}))", "{{user}}"),),
                "reqps",
                width=12,
            ),
        ),
    ),
    (
        "Time",
        (
            Panel("Overcoat's own time", "Is it us that is slow?", _quantiles("overcoat_own_seconds"), "s"),
            Panel(
                "The servers' time",
                "Or is it them? From when a request was ready to be sent to the head of its response, connecting "
                "included.",
                _quantiles("overcoat_upstream_seconds"),
                "s",
            ),
            Panel(
                "The whole of a request",
                "What does an app wait, its own sending and reading included? Tunnels count, too.",
                _quantiles("overcoat_request_seconds"),
                "s",
            ),
        ),
    ),
    (
        "Under way",
        (
            Panel(
                "In flight",
                "Does something hang, or pile up?",
                ((f"sum by (kind) (overcoat_in_flight{{{_OF_RULE}}})", "{{kind}}"),),
            ),
            Panel(
                "Bytes",
                "Do bytes still move, in long tunnels, too?",
                (
                    (
                        f"sum by (direction) (rate(overcoat_body_bytes_total{{{_OF_RULE}}}{_RATE}))",
                        "{{direction}}",
                    ),
                ),
                "Bps",
            ),
            Panel(
                "Connections",
                "How many apps are connected, and are connections to servers reused (hit), or made anew (miss)?",
                (
                    (f"sum(overcoat_client_connections{{{_OF}}})", "apps, open"),
                    (f"sum by (result) (rate(overcoat_upstream_connections_total{{{_OF}}}{_RATE}))", "{{result}}/s"),
                ),
            ),
        ),
    ),
    (
        "Protection",
        (
            Panel(
                "Fields",
                "Are the marked fields still encrypted, and decrypted?",
                (
                    (
                        f"sum by (rule, entry, direction) (rate(overcoat_fields_total{{{_OF_RULE}}}{_RATE}))",
                        "{{rule}} {{entry}} {{direction}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                "Fields that failed",
                "Which entry of a rule fails, and why, whether that denies or passes?",
                (
                    (
                        f"sum by (rule, entry, reason) (increase(overcoat_field_failures_total{{{_OF_RULE}}}{_RATE}))",
                        "{{rule}} {{entry}} {{reason}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                "Keys in use",
                "Which keys still seal and open? One that rests can go.",
                (
                    (
                        f"sum by (key, kid, direction) (increase(overcoat_key_uses_total{{{_OF}}}[1d]))",
                        "{{key}} {{kid}} {{direction}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                "Fetched keys",
                "How old are the keys that are fetched by URL, in shares of the time for which they are to be used?",
                (
                    (
                        f"(time() - overcoat_jwks_fetched_timestamp_seconds{{{_OF}}})"
                        " / on (job, instance, key) overcoat_jwks_max_age_seconds",
                        "{{key}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                "Pins",
                "Do the servers show the pinned keys?",
                (
                    (
                        f"sum by (rule, result) (rate(overcoat_pin_checks_total{{{_OF_RULE}}}{_RATE}))",
                        "{{rule}} {{result}}",
                    ),
                ),
                width=12,
            ),
            Panel(
                "Pins in use",
                "Which pins do the servers' chains have, and where? One that is not here can go, or is the backup.",
                (
                    (
                        f"sum by (rule, pin, level) (increase(overcoat_pin_matches_total{{{_OF_RULE}}}[1d])) > 0",
                        "{{rule}} {{pin}} {{level}}",
                    ),
                ),
            ),
            Panel(
                "Days left",
                "What ends soon? From then on its requests are denied.",
                (
                    (_days_left("pins_expire_timestamp_seconds"), "pins of {{rule}}"),
                    (_days_left("key_expiry_timestamp_seconds"), "key {{key}} {{kid}} ({{use}})"),
                    (_days_left("upstream_certificate_expiry_timestamp_seconds"), "certificate of {{rule}}"),
                    (_days_left("client_certificate_expiry_timestamp_seconds"), "client certificate of {{rule}}"),
                    (_days_left("mirror_certificate_expiry_timestamp_seconds"), "mirror {{host}}"),
                    (_days_left("crl_expiry_timestamp_seconds"), "revocation list of {{issuer}} ({{when}})"),
                    (_days_left("local_ca_expiry_timestamp_seconds"), "local CA"),
                ),
                "d",
                "bargauge",
                width=12,
            ),
        ),
    ),
    (
        "The processes",
        (
            Panel(
                "Processor",
                "Is a process at its end? One uses one processor (1) at most.",
                ((f"rate(overcoat_process_cpu_seconds_total{{{_OF}}}{_RATE})", "{{process}}"),),
                width=6,
            ),
            Panel(
                "Lag",
                "Does the event loop come too late, because it is busy or blocked? Is a worker silent, since it hangs?",
                (
                    (f"overcoat_process_lag_seconds{{{_OF}}}", "{{process}}"),
                    (
                        f"max by (job, instance) ({_MEASURED}{{{_OF}}}) "
                        f"- on (job, instance) group_right () {_MEASURED}{{{_OF}}}",
                        "{{process}} silent for",
                    ),
                ),
                "s",
                width=6,
            ),
            Panel(
                "Memory",
                "Does it grow without end?",
                ((f"overcoat_process_resident_memory_bytes{{{_OF}}}", "{{process}}"),),
                "bytes",
                width=6,
            ),
            Panel(
                "Descriptors",
                "How full is it? At 100 % new connections wait.",
                (
                    (
                        f"overcoat_process_open_descriptors{{{_OF}}} / overcoat_process_max_descriptors{{{_OF}}}",
                        "{{process}}",
                    ),
                ),
                "percentunit",
                width=6,
            ),
            Panel(
                "What must not happen",
                "Did a worker end, did lines get lost, did something fail inside, was something cut off?",
                (
                    (f"increase(overcoat_worker_restarts_total{{{_OF}}}[1h])", "processes replaced"),
                    (f"increase(overcoat_decision_lines_lost_total{{{_OF}}}[1h])", "lines lost"),
                    (f"increase(overcoat_hook_failures_total{{{_OF}}}[1h])", "failures inside"),
                    (f"increase(overcoat_drain_cuts_total{{{_OF}}}[1h])", "cut off by draining"),
                ),
                width=12,
            ),
            Panel(
                "Readings of the policy",
                "When was it read, and how did that end?",
                ((f"sum by (result) (increase(overcoat_policy_reloads_total{{{_OF}}}[1h]))", "{{result}}"),),
                width=6,
            ),
            Panel(
                "Policy",
                "Do all sidecars have the same one?",
                ((f"sum by (hash) (overcoat_policy_info{{{_OF}}})", "{{hash}}"),),
                "short",
                "stat",
                6,
            ),
        ),
    ),
)


def panels() -> list[Panel]:
    """Return all panels."""
    return [panel for _, found in ROWS for panel in found]


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _shown(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"fillOpacity": 20 if panel.stack else 0, "stacking": {"mode": "normal" if panel.stack else "none"}}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.question,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": {"h": 4 if panel.kind == "stat" else _HEIGHT, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": {"legend": {"showLegend": True, "displayMode": "list"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expr, "legendFormat": legend, "datasource": _SOURCE}
            | ({"exemplar": True} if panel.kind == "timeseries" else {"instant": True})
            for place, (expr, legend) in enumerate(panel.targets)
        ],
    }


def dashboard_text() -> str:
    """Return the dashboard as JSON."""
    shown: list[dict[str, Any]] = []
    y = 0
    for title, found in ROWS:
        row = {"h": 1, "w": _WIDTH, "x": 0, "y": y}
        shown.append({"id": len(shown) + 1, "title": title, "type": "row", "gridPos": row, "panels": []})
        x, y = 0, y + 1
        for panel in found:
            if x + panel.width > _WIDTH:
                x, y = 0, y + _HEIGHT
            shown.append(_shown(panel, len(shown) + 1, x, y))
            x += panel.width
        y += _HEIGHT
    dashboard = {
        "uid": "overcoat",
        "title": "Overcoat",
        "tags": ["overcoat"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "graphTooltip": 1,
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
                _variable("job", "label_values(overcoat_info, job)"),
                _variable("instance", 'label_values(overcoat_info{job=~"$job"}, instance)'),
                _variable("rule", 'label_values(overcoat_in_flight{job=~"$job", instance=~"$instance"}, rule)'),
            ]
        },
        "panels": shown,
    }
    return json.dumps(dashboard, indent=1) + "\n"


def panels_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the table of panels: where it is, its title, and what it answers."""
    return [(title, panel.title, panel.question) for title, found in ROWS for panel in found]
