"""The alerts for Prometheus. `docs/generate.py` makes `config/prometheus/overcoat.rules.yml` and the table in
docs/metrics.md from them.

Rules of this module:

- An event that is counted fires its alert, whether it happened once or many times between two scrapes. `increase` sees
  it only if there was an earlier sample; events without one count, too (see `events`).
- Every metric and every reason in here exists, and each alert fires: tests say so.
- A summary is true at 3 a.m., too: what has ended "has ended" (no negative time), what never was "never" was, and `-`,
  which stands for no rule, is said in words.
- Each names the place in the papers that leads to the end of the trouble.

It is longer than 500 lines, because one table has all alerts, each with its words, as who reads it needs them side by
side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.core.reasons import FIELD_REASONS, Reason

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
        runbook: the place in the papers that goes on from there: a file and a heading, from the repository's folder.
        wait: how long the expression must hold.
        within: of what ends, how long before it fires, in words.
    """

    name: str
    expr: str
    severity: str
    summary: str
    description: str
    runbook: str
    wait: str = ""
    within: str = ""


RULE = '{{ if eq $labels.rule "-" }}hosts without a rule{{ else }}rule {{ $labels.rule }}{{ end }}'
# What is refused for how many connections there are has no rule yet: nobody has read for which host it is.
RULE_IF_KNOWN = RULE.replace("hosts without a rule", "hosts without a rule, or not known yet")
ENDS = "{{ if gt $value 0.0 }}ends in {{ $value | humanizeDuration }}{{ else }}has ended{{ end }}"
# What was never fetched was so at 0, the beginning of 1970: the time since then is no age.
NOT_FETCHED = (
    "{{ if gt $value 1e9 }}never been fetched{{ else }}not been fetched for {{ $value | humanizeDuration }}{{ end }}"
)


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


def _fields_stopped() -> str:
    """Return PromQL for entries that protected fields a day ago and protect none now, although requests go on.

    Of all sidecars of a job together: they come and go, and the requests of one may be others today. A day ago is the
    same hour, and mostly the same work.
    """
    fields = 'sum by (job, rule, entry, direction) (increase(overcoat_fields_total{mode="enforce"}[1h]%s))'
    passed = 'sum by (job, rule) (increase(overcoat_requests_total{mode="enforce", outcome="ok"}[1h]%s))'
    ago = " offset 1d"
    return (
        f"{fields % ago} > 10\n"
        f"unless {fields % ''} > 0\n"
        "and on (job, rule) (\n"
        f"  {passed % ''}\n"
        f"  > 0.5 * {passed % ago}\n"
        ")"
    )


def _most_denied() -> str:
    """Return PromQL for the share of all requests that were denied, if it is most of them, and they are not a few.

    What an app does wrong by itself is told to the app alone. But where all apps do it at once, it is the policy.
    """
    denied = f'sum by (job, instance) (increase(overcoat_requests_total{{outcome="denied"}}[{WINDOW}]))'
    of_all = f"sum by (job, instance) (increase(overcoat_requests_total[{WINDOW}]))"
    return f"{denied}\n/ {of_all}\n> 0.5\nand {denied} > 50"


SILENT = "one of several processes has done nothing for 20 seconds"
ALERTS = (
    Alert(
        "OvercoatPinMismatch",
        events(denials(Reason.PIN_MISMATCH), _DENIED),
        "critical",
        f"{RULE}: a server showed a valid certificate whose key matches no pin",
        "Nothing was sent to it. Either its key was changed without notice, or somebody else has a certificate for its "
        "name. Ask the server's operator for the key over another channel; never take the pin from what answers now.",
        runbook="docs/pinning.md#at-3-am-a-pin-does-not-match",
    ),
    Alert(
        "OvercoatCertificateInvalid",
        events(denials(Reason.CERTIFICATE_INVALID), _DENIED),
        "critical",
        f"{RULE}: a server's certificate is not valid",
        "Nothing was sent to it. Its certificate has expired, was revoked, names another host, comes from nobody who "
        "is trusted, or somebody on the way shows one of their own; or there is no list of revoked ones (trust.crls) "
        "that is valid now. The decision lines' detail says which, destination and upstream which server.",
        runbook="docs/troubleshooting.md#a-certificate-is-not-valid",
    ),
    Alert(
        "OvercoatPinsExpired",
        events(denials(Reason.PINS_EXPIRED), _DENIED),
        "critical",
        f"{RULE}: its pins have expired, and its hosts are denied",
        "Check the server's key, then renew pins.any_of and pins.expires.",
        runbook="docs/pinning.md#a-pins-life",
    ),
    Alert(
        "OvercoatPinsExpireSoon",
        "overcoat_pins_expire_timestamp_seconds - time() < 30 * 86400",
        "warning",
        f"{RULE}: the time of its pins {ENDS}",
        "From then on its hosts are denied, or with after_expiry: warn no longer held to them. Check the server's key, "
        "then renew pins.any_of and pins.expires.",
        runbook="docs/pinning.md#a-pins-life",
        within="30 days",
    ),
    Alert(
        "OvercoatPinsLapsed",
        'overcoat_pins_expire_timestamp_seconds{after_expiry="warn"} - time() < 0',
        "critical",
        f"{RULE}: its pins have expired, and any valid certificate is let through (after_expiry: warn)",
        "The protection is off until the pins are renewed: check the server's key, then renew pins.any_of and "
        "pins.expires. Decision lines say pin_detail where the server's keys are others meanwhile.",
        runbook="docs/pinning.md#a-pins-life",
    ),
    Alert(
        "OvercoatPinsWouldRefuse",
        events('overcoat_pin_checks_total{mode="observe", result!="match"}', ("rule", "result")),
        "warning",
        f"{RULE}: pins that are only observed would have refused a server ({{{{ $labels.result }}}})",
        "What it was sent has left. Its decision lines have the keys that it showed (pins_seen). Either the pins are "
        "not right yet, or this is what they are for: ask the server's operator, then correct and enforce them.",
        runbook="docs/pinning.md#at-3-am-a-pin-does-not-match",
    ),
    Alert(
        "OvercoatLocalCaExpired",
        events(denials(Reason.LOCAL_CA_EXPIRED, Reason.LOCAL_CA_CONSTRAINED), _DENIED),
        "critical",
        f"{RULE}: the local CA has ended or may not sign, and inspected hosts are denied",
        "Run overcoat ca rotate, as the sidecar's user and with its OVERCOAT_DATA, and make the apps trust what "
        "overcoat ca prints. One that has ended is replaced at once, without a restart; one that may not sign "
        "for these hosts (local_ca_constrained) by --finish.",
        runbook="docs/apps.md#when-it-ends",
    ),
    Alert(
        "OvercoatLocalCaExpiresSoon",
        "(overcoat_local_ca_expiry_timestamp_seconds > 0) - time() < 30 * 86400",
        "warning",
        f"the local CA {ENDS}",
        "From then on inspected hosts are denied. Run overcoat ca rotate, as the sidecar's user and with its "
        "OVERCOAT_DATA, make the apps trust both CAs, and then run overcoat ca rotate --finish.",
        runbook="docs/apps.md#when-it-ends",
        within="30 days",
    ),
    Alert(
        "OvercoatKeyUnavailable",
        events(denials(Reason.KEY_UNAVAILABLE), _DENIED),
        "critical",
        f"{RULE}: there is no key to encrypt with, and requests are denied",
        "The decision lines' detail says which key set, and why: its primary key is past its not_after date, or not "
        "good yet (not_before), so give it another one; or keys that are fetched by URL (jwks) have never come, and "
        "the log says why.",
        runbook="docs/keys.md#rotating",
    ),
    Alert(
        "OvercoatKeyExpiresSoon",
        'overcoat_key_expiry_timestamp_seconds{use="primary"} - time() < 30 * 86400',
        "warning",
        f"key {{{{ $labels.kid }}}} of {{{{ $labels.key }}}} {ENDS}",
        "From then on nothing is encrypted with it, and its requests are denied. Make the next one (overcoat keys "
        "rotate), and give it to who decrypts before it becomes the primary key.",
        runbook="docs/keys.md#rotating",
        within="30 days",
    ),
    Alert(
        "OvercoatMirrorCertificateExpiresSoon",
        "overcoat_mirror_certificate_expiry_timestamp_seconds - time() < 3 * 86400",
        "warning",
        f"{{{{ $labels.host }}}}: its mirror listener's certificate {ENDS}",
        "From then on no peer connects. Renew it: new files are read by themselves. Where certificates are made for a "
        "few days only, it says that their renewal does not work.",
        runbook="docs/policy.md#the-servers-side",
        within="3 days",
    ),
    Alert(
        "OvercoatJwksStale",
        "time() - overcoat_jwks_fetched_timestamp_seconds\n> on (job, instance, key) 2 * overcoat_jwks_max_age_seconds",
        "warning",
        f"key set {{{{ $labels.key }}}}: its keys have {NOT_FETCHED}",
        "The last ones stay in use, so what the other side has replaced or withdrawn is still encrypted with; without "
        "any, its requests are denied. The log says why, and overcoat check tries it once.",
        wait="5m",
        runbook="docs/keys.md#keys-that-others-publish",
    ),
    Alert(
        "OvercoatRevocationListExpiresSoon",
        "overcoat_crl_expiry_timestamp_seconds - time() < 6 * 3600",
        "warning",
        f"the revocation list of {{{{ $labels.issuer }}}} {ENDS}",
        "From then on what its issuer signed is refused (trust.crls.when: require), or what has been revoked since is "
        "accepted (if_present). Whoever fetches the lists into trust.crls.files does not get new ones: see to that; "
        "they are read by themselves.",
        runbook="docs/troubleshooting.md#a-certificate-is-not-valid",
        within="6 hours",
    ),
    Alert(
        "OvercoatUpstreamCertificateExpiresSoon",
        "(overcoat_upstream_certificate_expiry_timestamp_seconds > 0) - time() < 3 * 86400",
        "warning",
        f"{RULE}: a server's certificate {ENDS}",
        "From then on its requests are denied, whoever renews it: tell the server's operator. overcoat pins check "
        "shows which host it is. Where certificates are made for a few days only, it says that their renewal does not "
        "work.",
        runbook="docs/troubleshooting.md#a-certificate-is-not-valid",
        within="3 days",
    ),
    Alert(
        "OvercoatClientCertificateExpiresSoon",
        "overcoat_client_certificate_expiry_timestamp_seconds - time() < 14 * 86400",
        "warning",
        f"{RULE}: the client certificate {ENDS}",
        "From then on the rule's hosts refuse it. Put the new one, and its key, in the place of the old: they are read "
        "at once.",
        runbook="docs/troubleshooting.md#a-client-certificate-is-refused",
        within="14 days",
    ),
    Alert(
        "OvercoatFieldsFail",
        events(_field_failures(), ("rule", "entry", "reason")),
        "warning",
        f"{RULE}, {{{{ $labels.entry }}}}: fields could not be sealed or opened ({{{{ $labels.reason }}}})",
        "The request, or the response, was kept back, unless the entry lets it pass. The lines' field_failures and "
        "detail say which entry and why; client and destination, whose and where to.",
        runbook="docs/troubleshooting.md#fields-fail",
    ),
    Alert(
        "OvercoatFieldsStopped",
        _fields_stopped(),
        "warning",
        f"{RULE}, {{{{ $labels.entry }}}}: it has found no field for an hour, and yesterday at this time it did",
        "The rule's requests go on, so they may leave with these fields readable: an app writes them under another "
        "name, at another place or to another path, or somebody has changed the entry. A line with encrypted 0 says "
        "which app and path; overcoat explain --body, what the entry finds in such a body. required: true denies what "
        "has no such field.",
        wait="15m",
        runbook="docs/troubleshooting.md#nothing-is-encrypted",
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
            Reason.REDIRECT_LOOP,
            Reason.APP_TLS_FAILED,
            Reason.IDLE_TIMEOUT,
            Reason.TOO_MANY_CONNECTIONS,
            above=0.05,
        ),
        "warning",
        f"{RULE_IF_KNOWN}: {{{{ $value | humanizePercentage }}}} of the requests fail ({{{{ $labels.reason }}}})",
        "The reason says whose fault that is: the server's or the way there (upstream_..., tls_failed, redirect_loop), "
        "that of our client certificate, the app's that does not trust the local CA (app_tls_failed), or that of a "
        "limit. The decision lines' destination and upstream say which host, client which app, detail what went wrong.",
        wait="5m",
        runbook="docs/troubleshooting.md#the-app-gets-a-status",
    ),
    Alert(
        "OvercoatUpstreamErrors",
        f'sum by (job, instance, rule) (increase(overcoat_requests_total{{status="5xx", outcome="ok"}}[{WINDOW}]))\n'
        f'/ sum by (job, instance, rule) (increase(overcoat_requests_total{{outcome="ok"}}[{WINDOW}]))\n'
        "> 0.1",
        "warning",
        f"{RULE}: {{{{ $value | humanizePercentage }}}} of the servers' answers are errors of theirs (5xx)",
        "Overcoat passes them on: the fault is behind it. The decision lines say which paths, and which address "
        "answered.",
        wait="10m",
        runbook="docs/on-call.md#us-or-them",
    ),
    Alert(
        "OvercoatDescriptorsShort",
        "overcoat_process_open_descriptors / overcoat_process_max_descriptors > 0.8",
        "warning",
        "process {{ $labels.process }}: {{ $value | humanizePercentage }} of its file descriptors are in use",
        "Without free ones new connections wait or are refused (too_many_connections). Raise the limit (ulimit -n), or "
        "find out which app keeps so many open.",
        wait="5m",
        runbook="docs/on-call.md#us-or-them",
    ),
    Alert(
        "OvercoatWorkerHangs",
        # Of one clock both, and as old as the scrape: what Prometheus takes for the present time has no part in it.
        'max by (job, instance) (overcoat_process_measured_timestamp_seconds{process="admin"})\n'
        "- on (job, instance) group_right () overcoat_process_measured_timestamp_seconds\n"
        "> 20",
        "critical",
        "process {{ $labels.process }}: it has done nothing for {{ $value | humanizeDuration }}",
        "It hangs, or is stopped, and apps that are connected to it, or come to it, wait; /ready does not know. See "
        "what it waits for (its state in ps, the disk of --lines, the container's processor limit), keep that for a "
        "report, and end it with SIGKILL: it is replaced at once.",
        wait="1m",
        runbook="docs/on-call.md#us-or-them",
    ),
    Alert(
        "OvercoatBusy",
        "rate(overcoat_process_cpu_seconds_total[5m]) > 0.9",
        "warning",
        "process {{ $labels.process }}: it has used {{ $value | humanizePercentage }} of a processor",
        "One process uses one processor at most, and requests begin to wait. Give it more workers, or other machines "
        "a part of its apps.",
        wait="15m",
        runbook="docs/on-call.md#us-or-them",
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
        "the policy does not know a destination or an app, perhaps since it was changed: the lines name client and "
        "destination, overcoat_policy_taken_timestamp_seconds and the log say when.",
        runbook="docs/troubleshooting.md#the-app-gets-a-status",
    ),
    Alert(
        "OvercoatMostDenied",
        _most_denied(),
        "warning",
        "{{ $value | humanizePercentage }} of all requests are denied",
        "Overcoat itself refuses them: overcoat_requests_total by reason says why, and the lines, whom. If it began at "
        "once, look first whether the policy was changed then (overcoat_policy_taken_timestamp_seconds, and the log): "
        "who may use the proxy, passwords, plain_http and https, the list of hosts. No single reason need have an "
        "alert of its own.",
        wait="5m",
        runbook="docs/on-call.md#us-or-them",
    ),
    Alert(
        "OvercoatInternalError",
        f"{events('overcoat_hook_failures_total')}\nor\n{events(denials(Reason.INTERNAL_ERROR))}",
        "critical",
        "Overcoat failed inside, and kept a request back",
        "See its log for the place, and report it.",
        runbook="docs/troubleshooting.md#a-message-in-the-log",
    ),
    Alert(
        "OvercoatReloadRefused",
        "overcoat_policy_refused == 1",
        "warning",
        "a policy that was read again was refused: the one before stays in force",
        "Its log says what is wrong, and so does overcoat check: a restart with it would fail. Or listeners or workers "
        "are others now, which takes a restart. Until one is taken nothing that was changed counts.",
        runbook="docs/troubleshooting.md#a-message-in-the-log",
    ),
    Alert(
        "OvercoatDecisionLinesLost",
        events("overcoat_decision_lines_lost_total"),
        "warning",
        "decision lines could not be written",
        "The record of requests has a gap. Overcoat's log says why: who reads its standard output is gone or too slow, "
        "or the disk of its file is full.",
        runbook="docs/troubleshooting.md#a-message-in-the-log",
    ),
    Alert(
        "OvercoatWorkerReplaced",
        events("overcoat_worker_restarts_total"),
        "warning",
        "a worker, or the admin endpoint, ended by itself, and was replaced",
        "What a worker had under way was cut off. Its log says how it ended, and whether it was a worker; the "
        "kernel's, whether memory ran out.",
        runbook="docs/troubleshooting.md#a-message-in-the-log",
    ),
    Alert(
        "OvercoatObserves",
        'overcoat_info{mode="observe"} == 1',
        "info",
        "it observes, and protects nothing",
        "End it with mode: enforce once its decision lines show what enforcing would do.",
        wait="1h",
        runbook="docs/tutorial-observe.md#enforce",
    ),
    Alert(
        "OvercoatProtectionEnded",
        'overcoat_info{mode="observe"} == 1\n'
        'and on (job, instance) max_over_time(overcoat_info{mode="enforce"}[1d]) == 1',
        "critical",
        "it has enforced its policy until today, and now only observes",
        "Plain http stays plain, fields leave readable, and no pin refuses anything: somebody has changed mode, in the "
        "policy, in OVERCOAT_MODE or by --mode. overcoat_policy_taken_timestamp_seconds and the log say when. Apps may "
        "fail, too, whose plain http goes to a port of TLS again (upstream_failed).",
        runbook="docs/on-call.md#us-or-them",
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
        runbook="docs/troubleshooting.md#a-container-is-unhealthy-or-not-ready",
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
            f"          summary: {json.dumps(alert.summary)}",  # which is YAML, too
            f"          description: {json.dumps(alert.description)}",
            f"          runbook: {alert.runbook}",
        ]
    return "\n".join(lines) + "\n"


def alerts_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the table of alerts: name, severity, and what they say."""
    return [
        (
            f"`{alert.name}`",
            alert.severity,
            f"{_without_templates(alert)}. {alert.description} [More]({alert.runbook.removeprefix('docs/')})",
        )
        for alert in ALERTS
    ]


def _without_templates(alert: Alert) -> str:
    text = alert.summary
    for template, words in (
        (f"{RULE_IF_KNOWN}: ", ""),
        (f"{RULE}: ", ""),
        (f"{RULE}, {{{{ $labels.entry }}}}: ", ""),
        (ENDS, f"ends within {alert.within}, or has ended"),
        (NOT_FETCHED, "not been fetched for twice the time for which they are to be used, or never"),
        ("{{ $labels.host }}: its mirror", "a mirror"),
        ("of {{ $labels.issuer }}", "of an issuer"),
        ("{{ $labels.reason }}", "with its reason"),
        ("({{ $labels.result }})", "(mismatch or expired)"),
        ("{{ $value | humanizePercentage }} of the servers'", "more than 10 % of the servers'"),
        ("{{ $value | humanizePercentage }} of its file", "more than 80 % of its file"),
        ("{{ $value | humanizePercentage }} of a processor", "more than 90 % of a processor"),
        ("{{ $value | humanizePercentage }} of all requests", "more than half of all requests, and more than 50,"),
        ("{{ $value | humanizePercentage }}", "more than 5 %"),
        ("process {{ $labels.process }}: it has done nothing for {{ $value | humanizeDuration }}", SILENT),
        ("process {{ $labels.process }}: ", ""),
        ("key {{ $labels.kid }} of {{ $labels.key }}", "the primary key of a key set"),
        ("key set {{ $labels.key }}: its keys", "the keys of a key set"),
    ):
        text = text.replace(template, words)
    return text[0].upper() + text[1:]
