"""The alerts for Prometheus. `docs/generate.py` makes `config/prometheus/overcoat.rules.yml` and the table in
docs/metrics.md from them.

Rules of this module:

- An event that is counted fires its alert, whether it happened once or many times between two scrapes. `increase` sees
  it only if there was an earlier sample; events without one count, too (see `events`).
- Every metric and every reason in here exists, and each alert fires: tests say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.core.decisions import FIELD_REASONS, Reason

_WINDOW_MINUTES = 15
WINDOW = f"{_WINDOW_MINUTES}m"  # how long an event keeps its alert firing: many scrapes, so that some may fail


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: in CamelCase, as is usual in Prometheus.
        expr: PromQL; the alert fires for each series in the result.
        severity: `critical` (there may be an attack, or a protection does not hold), `warning`, `info`.
        summary: one line, with templates for labels.
        description: what to do.
        wait: how long the expression must hold.
    """

    name: str
    expr: str
    severity: str
    summary: str
    description: str
    wait: str = ""


def events(counter: str, by: Sequence[str] = ()) -> str:
    """Return PromQL for how often something happened within the window, with no series if it did not happen.

    Args:
        counter: the series that count it.
        by: the labels to tell apart, beside `job` and `instance`.
    """
    labels = ", ".join(("job", "instance", *by))
    since_start = f"(time() - overcoat_start_timestamp_seconds) < {_WINDOW_MINUTES * 60}"
    return (
        f"sum by ({labels}) (\n"
        # There are samples before and after the event, perhaps with a restart in between.
        f"  increase({counter}[{WINDOW}]) > 0\n"
        # The series is new, because the sidecar or the rule is: it began at 0.
        f"  or ({counter} > 0 unless {counter} offset {WINDOW})\n"
        # After a restart, as much happened before the first scrape as before the restart: no sample shows it.
        f"  or ({counter} > 0 and on (job, instance) {since_start})\n"
        ")"
    )


def denials(*reasons: Reason) -> str:
    """Return the series of requests that were denied for one of these reasons (in observe mode: would have been)."""
    codes = "|".join(reason.code for reason in reasons)
    return f'overcoat_requests_total{{reason=~"{codes}"}}'


def _field_failures() -> str:
    """Return the series of what failed with fields; that there is no key is an alert of its own."""
    codes = "|".join(reason.code for reason in FIELD_REASONS if reason is not Reason.KEY_UNAVAILABLE)
    return f'overcoat_field_failures_total{{reason=~"{codes}"}}'


_DENIED = ("rule", "reason")


def share(*reasons: Reason, above: float) -> str:
    """Return PromQL for the share of a rule's requests that ended for one of these reasons, if it is above a limit.

    One event is no alert here: apps and servers come and go.
    """
    of_all = f"sum by (job, instance, rule) (increase(overcoat_requests_total[{WINDOW}]))"
    return (
        f"sum by (job, instance, rule, reason) (increase({denials(*reasons)}[{WINDOW}]))\n"
        f"/ on (job, instance, rule) group_left () {of_all}\n"
        f"> {above}"
    )


ALERTS = (
    Alert(
        "OvercoatPinMismatch",
        events(denials(Reason.PIN_MISMATCH), _DENIED),
        "critical",
        "rule {{ $labels.rule }}: a server showed a valid certificate whose key matches no pin",
        "Nothing was sent to it. Either its key was changed without notice, or somebody else has a certificate for its "
        "name. Ask the server's operator for the key over another channel; never take the pin from what answers now.",
    ),
    Alert(
        "OvercoatCertificateInvalid",
        events(denials(Reason.CERTIFICATE_INVALID), _DENIED),
        "critical",
        "rule {{ $labels.rule }}: a server's certificate is not valid",
        "Nothing was sent to it. Its certificate has expired, names another host, comes from nobody who is trusted, or "
        "somebody on the way shows one of their own. The decision line's detail says which.",
    ),
    Alert(
        "OvercoatPinsExpired",
        events(denials(Reason.PINS_EXPIRED), _DENIED),
        "critical",
        "rule {{ $labels.rule }}: its pins have expired, and its hosts are denied",
        "Check the server's key, then renew pins.any_of and pins.expires.",
    ),
    Alert(
        "OvercoatPinsExpireSoon",
        "overcoat_pins_expire_timestamp_seconds - time() < 30 * 86400",
        "warning",
        "rule {{ $labels.rule }}: its pins expire in {{ $value | humanizeDuration }}",
        "From then on its hosts are denied, or with after_expiry: warn no longer held to them. Check the server's key, "
        "then renew pins.any_of and pins.expires.",
    ),
    Alert(
        "OvercoatPinsLapsed",
        'overcoat_pins_expire_timestamp_seconds{after_expiry="warn"} - time() < 0',
        "critical",
        "rule {{ $labels.rule }}: its pins have expired, and any valid certificate is let through (after_expiry: warn)",
        "The protection is off until the pins are renewed: check the server's key, then renew pins.any_of and "
        "pins.expires. Decision lines say pin_detail where the server's keys are others meanwhile.",
    ),
    Alert(
        "OvercoatPinsWouldRefuse",
        events('overcoat_pin_checks_total{mode="observe", result!="match"}', ("rule", "result")),
        "warning",
        "rule {{ $labels.rule }}: pins that are only observed would have refused a server ({{ $labels.result }})",
        "What it was sent has left. Its decision lines have the keys that it showed (pins_seen). Either the pins are "
        "not right yet, or this is what they are for: ask the server's operator, then correct and enforce them.",
    ),
    Alert(
        "OvercoatLocalCaExpired",
        events(denials(Reason.LOCAL_CA_EXPIRED), _DENIED),
        "critical",
        "rule {{ $labels.rule }}: the local CA has ended, and inspected hosts are denied",
        "Run overcoat ca rotate, which replaces it at once, and make the apps trust the new CA.",
    ),
    Alert(
        "OvercoatLocalCaExpiresSoon",
        "(overcoat_local_ca_expiry_timestamp_seconds > 0) - time() < 30 * 86400",
        "warning",
        "the local CA ends in {{ $value | humanizeDuration }}",
        "From then on inspected hosts are denied. Run overcoat ca rotate, make the apps trust both CAs, and then run "
        "overcoat ca rotate --finish.",
    ),
    Alert(
        "OvercoatKeyUnavailable",
        events(denials(Reason.KEY_UNAVAILABLE), _DENIED),
        "critical",
        "rule {{ $labels.rule }}: there is no key to encrypt with, and requests are denied",
        "The key set's primary key is past its not_after date, or not good yet (not_before): give it another one. "
        "Keys that are fetched by URL (jwks) may never have come: the log says why.",
    ),
    Alert(
        "OvercoatKeyExpiresSoon",
        'overcoat_key_expiry_timestamp_seconds{use="primary"} - time() < 30 * 86400',
        "warning",
        "key {{ $labels.kid }} of {{ $labels.key }} ends in {{ $value | humanizeDuration }}",
        "From then on nothing is encrypted with it, and its requests are denied. Make the next one (overcoat keys "
        "rotate), and give it to who decrypts before it becomes the primary key.",
    ),
    Alert(
        "OvercoatMirrorCertificateExpiresSoon",
        "overcoat_mirror_certificate_expiry_timestamp_seconds - time() < 3 * 86400",
        "warning",
        "{{ $labels.host }}: its mirror listener's certificate ends in {{ $value | humanizeDuration }}",
        "From then on no peer connects. Renew it: new files are read by themselves. Where certificates are made for a "
        "few days only, it says that their renewal does not work.",
    ),
    Alert(
        "OvercoatJwksStale",
        "time() - overcoat_jwks_fetched_timestamp_seconds\n> on (job, instance, key) 2 * overcoat_jwks_max_age_seconds",
        "warning",
        "key set {{ $labels.key }}: its keys have not been fetched for {{ $value | humanizeDuration }}",
        "The last ones stay in use, so what the other side has replaced or withdrawn is still encrypted with; without "
        "any, its requests are denied. The log says why, and overcoat check tries it once.",
        wait="5m",
    ),
    Alert(
        "OvercoatUpstreamCertificateExpiresSoon",
        "(overcoat_upstream_certificate_expiry_timestamp_seconds > 0) - time() < 3 * 86400",
        "warning",
        "rule {{ $labels.rule }}: a server's certificate ends in {{ $value | humanizeDuration }}",
        "From then on its requests are denied, whoever renews it: tell the server's operator. Where certificates are "
        "made for a few days only, it says that their renewal does not work.",
    ),
    Alert(
        "OvercoatClientCertificateExpiresSoon",
        "overcoat_client_certificate_expiry_timestamp_seconds - time() < 14 * 86400",
        "warning",
        "rule {{ $labels.rule }}: the client certificate ends in {{ $value | humanizeDuration }}",
        "From then on the rule's hosts refuse it. Put the new one, and its key, in the place of the old: they are read "
        "at once. A negative time says that it has ended.",
    ),
    Alert(
        "OvercoatFieldsFail",
        events(_field_failures(), ("rule", "entry", "reason")),
        "warning",
        "rule {{ $labels.rule }}, {{ $labels.entry }}: fields could not be sealed or opened ({{ $labels.reason }})",
        "The request, or the response, was kept back, unless the entry lets it pass. The lines' field_failures and "
        "detail say which and why, docs/reasons.md what to change.",
    ),
    Alert(
        "OvercoatRequestsFail",
        share(
            Reason.UPSTREAM_UNREACHABLE,
            Reason.UPSTREAM_PROXY_FAILED,
            Reason.UPSTREAM_TIMEOUT,
            Reason.UPSTREAM_FAILED,
            Reason.UPSTREAM_CUT,
            Reason.TLS_FAILED,
            Reason.CLIENT_CERTIFICATE_REFUSED,
            Reason.KEY_EXCHANGE_REFUSED,
            Reason.APP_TLS_FAILED,
            Reason.IDLE_TIMEOUT,
            Reason.TOO_MANY_CONNECTIONS,
            above=0.05,
        ),
        "warning",
        "rule {{ $labels.rule }}: {{ $value | humanizePercentage }} of the requests fail ({{ $labels.reason }})",
        "docs/reasons.md says whose fault that is: the upstream's or the way there, the app's that does not trust the "
        "local CA, or that of a limit. The decision line's detail says which host, and what went wrong.",
        wait="5m",
    ),
    Alert(
        "OvercoatUpstreamErrors",
        f'sum by (job, instance, rule) (increase(overcoat_requests_total{{status="5xx", outcome="ok"}}[{WINDOW}]))\n'
        f'/ sum by (job, instance, rule) (increase(overcoat_requests_total{{outcome="ok"}}[{WINDOW}]))\n'
        "> 0.1",
        "warning",
        "rule {{ $labels.rule }}: {{ $value | humanizePercentage }} of the servers' answers are errors of theirs (5xx)",
        "Overcoat passes them on: the fault is behind it. The decision lines say which paths, and which address "
        "answered.",
        wait="10m",
    ),
    Alert(
        "OvercoatDescriptorsShort",
        "overcoat_process_open_descriptors / overcoat_process_max_descriptors > 0.8",
        "warning",
        "process {{ $labels.process }}: {{ $value | humanizePercentage }} of its file descriptors are in use",
        "Without free ones new connections wait or are refused (too_many_connections). Raise the limit (ulimit -n), or "
        "find out which app keeps so many open.",
        wait="5m",
    ),
    Alert(
        "OvercoatBusy",
        "rate(overcoat_process_cpu_seconds_total[5m]) > 0.9",
        "warning",
        "process {{ $labels.process }}: it has used {{ $value | humanizePercentage }} of a processor",
        "One process uses one processor at most, and requests begin to wait. Give it more workers, or other machines "
        "a part of its apps.",
        wait="15m",
    ),
    Alert(
        "OvercoatForbidden",
        events(
            denials(
                Reason.DESTINATION_FORBIDDEN, Reason.CLIENT_FORBIDDEN, Reason.HOST_MISMATCH, Reason.TOO_MANY_ATTEMPTS
            ),
            _DENIED,
        ),
        "warning",
        "somebody asked for what is not allowed ({{ $labels.reason }})",
        "An app, or who uses it, tries to reach what it must not, under another name, or with guessed passwords. Or "
        "the policy does not know a destination or an app yet. The decision lines name client and destination.",
    ),
    Alert(
        "OvercoatInternalError",
        f"{events('overcoat_hook_failures_total')}\nor\n{events(denials(Reason.INTERNAL_ERROR))}",
        "critical",
        "Overcoat failed inside, and kept a request back",
        "See its log for the place, and report it.",
    ),
    Alert(
        "OvercoatReloadRefused",
        "overcoat_policy_refused == 1",
        "warning",
        "a policy that was read again was refused: the one before stays in force",
        "Its log says what is wrong, and so does overcoat check: a restart with it would fail. Or listeners or workers "
        "are others now, which takes a restart. Until one is taken nothing that was changed counts.",
    ),
    Alert(
        "OvercoatDecisionLinesLost",
        events("overcoat_decision_lines_lost_total"),
        "warning",
        "decision lines could not be written",
        "The record of requests has a gap. Overcoat's log says why: who reads its standard output is gone or too slow, "
        "or the disk of its file is full.",
    ),
    Alert(
        "OvercoatWorkerReplaced",
        events("overcoat_worker_restarts_total"),
        "warning",
        "a worker, or the admin endpoint, ended by itself, and was replaced",
        "What a worker had under way was cut off. Its log says which it was and how it ended; the kernel's, whether "
        "memory ran out.",
    ),
    Alert(
        "OvercoatObserves",
        'overcoat_info{mode="observe"} == 1',
        "info",
        "it observes, and protects nothing",
        "End it with mode: enforce once its decision lines show what enforcing would do.",
        wait="1h",
    ),
    Alert(
        "OvercoatDown",
        'up{job="overcoat"} == 0 or absent(up{job="overcoat"})',
        "critical",
        "the sidecar is down, or cannot be scraped",
        "No other alert of these can fire. If it is down, apps that go through it reach nothing. If it is not, "
        "Prometheus says what it got: 403 where clients.admin does not name its address, 421 where names lacks the "
        "name that it calls, nothing where admin is at an address that it does not reach.",
        wait="1m",
    ),
)


def rules_text() -> str:
    """Return the file of alerting rules."""
    lines = [
        "# Alerts for Overcoat, made by docs/generate.py. The job is to be called overcoat.",
        "groups:",
        "  - name: overcoat",
        "    rules:",
    ]
    for alert in ALERTS:
        lines += [f"      - alert: {alert.name}", "        expr: |"]
        lines += [f"          {line}" for line in alert.expr.splitlines()]
        if alert.wait:
            lines.append(f"        for: {alert.wait}")
        lines += [
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f'          summary: "{alert.summary}"',
            f'          description: "{alert.description}"',
        ]
    return "\n".join(lines) + "\n"


def alerts_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the table of alerts: name, severity, and what they say."""
    return [
        (f"`{alert.name}`", alert.severity, f"{_without_templates(alert.summary)}. {alert.description}")
        for alert in ALERTS
    ]


def _without_templates(text: str) -> str:
    for template, words in (
        ("rule {{ $labels.rule }}: ", ""),
        ("{{ $labels.host }}: its mirror", "a mirror"),
        ("rule {{ $labels.rule }}, {{ $labels.entry }}: ", ""),
        ("{{ $labels.reason }}", "with its reason"),
        ("({{ $labels.result }})", "(mismatch or expired)"),
        ("{{ $value | humanizePercentage }} of the servers'", "more than 10 % of the servers'"),
        ("{{ $value | humanizePercentage }} of its file", "more than 80 % of its file"),
        ("{{ $value | humanizePercentage }} of a processor", "more than 90 % of a processor"),
        ("{{ $value | humanizePercentage }}", "more than 5 %"),
        ("certificate ends in {{ $value | humanizeDuration }}", "certificate ends within 3 days"),
        ("in {{ $value | humanizeDuration }}", "within 30 days"),
        ("process {{ $labels.process }}: ", ""),
        ("key {{ $labels.kid }} of {{ $labels.key }}", "the primary key of a key set"),
        ("key set {{ $labels.key }}: its keys", "the keys of a key set"),
        ("for {{ $value | humanizeDuration }}", "for twice the time for which they are to be used"),
    ):
        text = text.replace(template, words)
    return text[0].upper() + text[1:]
