"""The alerts for Prometheus: what they name exists, and promtool takes them and sees them fire when they should.

That each fires in a real Prometheus, with a sidecar, is in tests/e2e/test_alerts.py.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from addons.expected import expect
from addons.metrics import Metrics
from addons.policymetrics import PolicyMetrics
from docs.alerts import ALERTS, alerts_rows, rules_text
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Policy

RULES = Path(__file__).resolve().parents[1] / "config" / "prometheus" / "overcoat.rules.yml"
# When the sidecar started; the time of promtool's tests begins at 0, and is 1200 after 80 steps of 15 s.
LONG_AGO = "-100000x300"
RESTARTED = "-100000x80 1190x200"


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool, which comes with Prometheus."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def judge(folder: Path, test: dict[str, Any], text: str | None = None) -> None:
    """Have promtool judge one of its tests by the rules that the test names: all of them take six times as long.

    Args:
        folder: where files can be written.
        test: the test.
        text: other rules than those of the file.
    """
    rules = yaml.safe_load(text or RULES.read_text())
    named = set(re.findall(r"\bOvercoat\w+", yaml.safe_dump(test)))
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] in named]
        assert group["rules"]
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": test["interval"], "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", str(folder / "test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", str(RULES))
    assert (done.returncode, f"SUCCESS: {len(ALERTS)} rules found" in done.stdout) == (0, True), done.stderr


def test_the_file_has_what_is_written_in_the_code() -> None:
    assert RULES.read_text() == rules_text()
    (group,) = yaml.safe_load(rules_text())["groups"]
    assert [(each["alert"], each["expr"].strip(), each["labels"]["severity"]) for each in group["rules"]] == [
        (alert.name, alert.expr, alert.severity) for alert in ALERTS
    ]
    assert [each.get("for", "") for each in group["rules"]] == [alert.wait for alert in ALERTS]
    assert [each["annotations"] for each in group["rules"]] == [
        {"summary": alert.summary, "description": alert.description, "runbook": alert.runbook} for alert in ALERTS
    ]


def test_the_table_says_them_without_templates() -> None:
    rows = alerts_rows()
    assert [name for name, _, _ in rows] == [f"`{alert.name}`" for alert in ALERTS]
    assert "{{" not in "".join(itertools.chain.from_iterable(rows))
    assert all(text[0].isupper() for _, _, text in rows)


def test_all_that_they_read_exists_and_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    registry.register(PolicyMetrics("1", Policy, 0))
    expect(metrics, Policy())
    shown = {sample.name for family in registry.collect() for sample in family.samples}
    named = {name for alert in ALERTS for name in re.findall(r"overcoat_\w+", alert.expr)}
    assert named - shown == {  # where no rule has such pins, no key an end, or there is no rule
        *("overcoat_pins_expire_timestamp_seconds", "overcoat_key_expiry_timestamp_seconds"),
        *("overcoat_upstream_certificate_expiry_timestamp_seconds", "overcoat_field_failures_total"),
        *("overcoat_pin_checks_total", "overcoat_fields_total"),
        "overcoat_mirror_certificate_expiry_timestamp_seconds",
        *("overcoat_jwks_fetched_timestamp_seconds", "overcoat_jwks_max_age_seconds"),
        "overcoat_client_certificate_expiry_timestamp_seconds",
        "overcoat_crl_expiry_timestamp_seconds",
    }
    lists = [found for alert in ALERTS for found in re.findall(r'reason=~"([^"]+)"', alert.expr)]
    codes = {code for found in lists for code in found.split("|")}
    assert codes <= {reason.code for reason in Reason}
    assert {"pin_mismatch", "certificate_invalid", "internal_error", "key_unavailable", "pins_expired"} <= codes

    # What an app does wrong by itself is told to the app, and is nobody's night.
    assert {reason.code for reason in Reason} - codes == {
        *("bad_request", "headers_too_large", "request_timeout", "proxy_authentication_required", "not_http"),
        *(
            "plain_http_rejected",
            "https_rejected",
            "request_loop",
            "no_forwards_left",
            "drain_timeout",
            "policy_changed",
            "misdirected",
        ),
    }


PIN_MISMATCH = 'mode="enforce", action="deny", outcome="denied", reason="pin_mismatch", status="5xx"'

# name: (what the counter shows every 15 s, what the start shows, [(minutes, whether it fires)])
CASES: dict[str, tuple[str, str, list[tuple[float, bool]]]] = {
    "one event": ("0x80 1x200", LONG_AGO, [(19, False), (20.5, True), (30, True), (41, False)]),
    "a burst within one scrape": ("0x80 20x200", LONG_AGO, [(19, False), (20.5, True), (41, False)]),
    "nothing": ("0x300", LONG_AGO, [(1, False), (30, False)]),
    "long ago": ("3x300", LONG_AGO, [(25, False), (60, False)]),
    "before the first scrape of a new sidecar": ("_x80 1x200", "_x80 1190x200", [(20.5, True), (41, False)]),
    "in a rule that a reload brought": ("_x80 1x200", LONG_AGO, [(20.5, True), (30, True), (45, False)]),
    "as often after a restart as before": ("3x80 3x200", RESTARTED, [(19.5, False), (20.5, True), (41, False)]),
    "a restart and nothing more": ("3x80 0x200", RESTARTED, [(20.5, False), (41, False)]),
    "more after a restart": ("3x80 4x200", RESTARTED, [(20.5, True), (41, False)]),
    "less after a restart": ("3x80 1x200", RESTARTED, [(20.5, True), (41, False)]),
    "with scrapes that failed meanwhile": ("0x80 _x16 1x200", LONG_AGO, [(25, True), (46, False)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_fires_whenever_something_happened_and_only_then(tmp_path: Path, name: str) -> None:
    counter, start, expected = CASES[name]
    labels = 'job="overcoat", instance="a:9464"'
    test = {
        "interval": "15s",
        "input_series": [
            {
                "series": f'overcoat_requests_total{{{labels}, rule="pay", {PIN_MISMATCH}}}',
                "values": counter,
            },
            {
                "series": f'overcoat_requests_total{{{labels}, rule="other", {PIN_MISMATCH}}}',
                "values": "0x300",
            },
            {"series": f"overcoat_start_timestamp_seconds{{{labels}}}", "values": start},
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (rule) (ALERTS{alertname="OvercoatPinMismatch", alertstate="firing"})',
                "eval_time": f"{int(minutes * 60)}s",
                "exp_samples": [{"labels": '{rule="pay"}', "value": 1}] if fires else [],
            }
            for minutes, fires in expected
        ],
    }
    judge(tmp_path, test)


# name: (what the counter of observed pins' results shows every 15 s, whether the alert fires after 21 minutes)
OBSERVED: dict[str, tuple[str, str, bool]] = {
    "a server without a pinned key": ("mismatch", "0x80 1x200", True),
    "pins past their last day": ("expired", "0x80 1x200", True),
    "a pin that matches": ("match", "0x80 1x200", False),
    "one long ago": ("mismatch", "1x300", False),
}


@pytest.mark.parametrize("name", OBSERVED)
def test_what_observed_pins_would_have_refused_is_an_alert_that_says_which_rule(tmp_path: Path, name: str) -> None:
    result, counter, fires = OBSERVED[name]
    labels = 'job="overcoat", instance="a:9464"'
    series = f'overcoat_pin_checks_total{{{labels}, rule="pay", mode="%s", result="{result}", level="-"}}'
    said = next(alert for alert in ALERTS if alert.name == "OvercoatPinsWouldRefuse")
    test = {
        "interval": "15s",
        "input_series": [
            {"series": series % "observe", "values": counter},
            {"series": series % "enforce", "values": "0x80 7x200"},
            {"series": f"overcoat_start_timestamp_seconds{{{labels}}}", "values": LONG_AGO},
        ],
        "alert_rule_test": [
            {
                "alertname": said.name,
                "eval_time": "21m",
                "exp_alerts": [
                    {
                        "exp_labels": {
                            "job": "overcoat",
                            "instance": "a:9464",
                            "severity": said.severity,
                            "rule": "pay",
                            "result": result,
                        },
                        "exp_annotations": {
                            "summary": f"rule pay: pins that are only observed would have refused a server ({result})",
                            "description": said.description,
                            "runbook": said.runbook,
                        },
                    }
                ]
                if fires
                else [],
            }
        ],
    }
    judge(tmp_path, test)


# name: (requests that pass every 15 s, those that do not, whether that fires after half an hour)
SHARES: dict[str, tuple[str, str, bool]] = {
    "one of ten": ("0+9x300", "0+1x300", True),
    "one of a hundred": ("0+99x300", "0+1x300", False),
    "all": ("0x300", "0+1x300", True),
    "none of any": ("0x300", "0x300", False),
    "an hour ago": ("0+9x300", "0+9x20 180x280", False),
    "only for a moment": ("0+9x300", "0x114 9x300", False),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARES)
def test_requests_that_fail_are_an_alert_where_they_are_many_and_for_a_while(tmp_path: Path, name: str) -> None:
    passed, failed, fires = SHARES[name]
    labels = 'job="overcoat", instance="a:9464"'
    series = {
        'rule="pay", action="upgrade", reason="-"': passed,
        'rule="pay", action="deny", reason="upstream_timeout"': failed,
        'rule="pay", action="deny", reason="tls_failed"': "0x300",
        'rule="other", action="upgrade", reason="-"': "0+1000x300",
    }
    test = {
        "interval": "15s",
        "input_series": [
            {"series": f"overcoat_requests_total{{{labels}, {each}}}", "values": values}
            for each, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (rule, reason) (ALERTS{alertname="OvercoatRequestsFail", alertstate="firing"})',
                "eval_time": "30m",
                "exp_samples": [{"labels": '{rule="pay", reason="upstream_timeout"}', "value": 1}] if fires else [],
            }
        ],
    }
    judge(tmp_path, test)


# What an hour brings, yesterday at this time and today, every five minutes; and 23 hours between, with anything.
def _two_days(yesterday: str, today: str) -> str:
    return f"0+{yesterday}x12 {int(yesterday) * 12}x275 {int(yesterday) * 12}+{today}x24"


# name: (fields yesterday, fields today, requests that passed yesterday, and today, whether it fires)
STOPPED: dict[str, tuple[str, str, str, str, bool]] = {
    "none is found any more": ("5", "0", "20", "20", True),
    "of more requests": ("5", "0", "20", "90", True),
    "some are": ("5", "1", "20", "20", False),
    "nobody asks any more": ("5", "0", "20", "0", False),
    "few ask, as on a Sunday": ("5", "0", "20", "5", False),
    "there never were any": ("0", "0", "20", "20", False),
}


@pytest.mark.parametrize("name", STOPPED)
def test_fields_that_are_not_found_any_more_are_an_alert(tmp_path: Path, name: str) -> None:
    *numbers, fires = STOPPED[name]
    fields_before, fields, before, now = numbers
    one, other = (f'job="overcoat", instance="{each}:9464", rule="pay", mode="enforce"' for each in "ab")
    entry = 'entry="request[0]", direction="encrypted"'
    passed = 'action="upgrade", outcome="ok", reason="-", status="2xx"'
    series = {
        # Another sidecar of the job than yesterday.
        f"overcoat_fields_total{{{one}, {entry}}}": f"{_two_days(fields_before, '0')}".rpartition(" ")[0],
        f"overcoat_fields_total{{{other}, {entry}}}": f"_x288 0+{fields}x24",
        f"overcoat_fields_total{{{other}, {entry.replace('[0]', '[1]')}}}": "0+3x312",
        f"overcoat_requests_total{{{one}, {passed}}}": _two_days(before, "0").rpartition(" ")[0],
        f"overcoat_requests_total{{{other}, {passed}}}": f"_x288 0+{now}x24",
    }
    test = {
        "interval": "5m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (job, rule, entry) (ALERTS{alertname="OvercoatFieldsStopped", alertstate="firing"})',
                "eval_time": "25h20m",
                "exp_samples": [
                    {
                        "labels": '{job="overcoat", rule="pay", entry="request[0]"}',
                        "value": 1,
                    }
                ]
                if fires
                else [],
            }
        ],
    }
    judge(tmp_path, test)


# name: (alert, series and what they show every 15 s, whether it fires after an hour)
STATES: dict[str, tuple[str, dict[str, str], bool]] = {
    "a primary key that ends in ten days": (
        "OvercoatKeyExpiresSoon",
        {'overcoat_key_expiry_timestamp_seconds{use="primary"}': "867600x300"},
        True,
    ),
    "an older one": (
        "OvercoatKeyExpiresSoon",
        {'overcoat_key_expiry_timestamp_seconds{use="older"}': "867600x300"},
        False,
    ),
    "a primary key that lasts": (
        "OvercoatKeyExpiresSoon",
        {'overcoat_key_expiry_timestamp_seconds{use="primary"}': "8676000x300"},
        False,
    ),
    "keys that were fetched two and a half times their age ago": (
        "OvercoatJwksStale",
        {
            'overcoat_jwks_fetched_timestamp_seconds{key="partner"}': "-900x300",
            'overcoat_jwks_max_age_seconds{key="partner"}': "1200x300",
        },
        True,
    ),
    "keys that were fetched in time": (
        "OvercoatJwksStale",
        {
            'overcoat_jwks_fetched_timestamp_seconds{key="partner"}': "0+15x300",
            'overcoat_jwks_max_age_seconds{key="partner"}': "1200x300",
        },
        False,
    ),
    "keys of a set that is gone": (
        "OvercoatJwksStale",
        {
            'overcoat_jwks_fetched_timestamp_seconds{key="partner"}': "_x300",
            'overcoat_jwks_max_age_seconds{key="partner"}': "1200x300",
        },
        False,
    ),
    "a mirror's certificate for two days": (
        "OvercoatMirrorCertificateExpiresSoon",
        {'overcoat_mirror_certificate_expiry_timestamp_seconds{host="api.example"}': "172800x300"},
        True,
    ),
    "a mirror's certificate for a week": (
        "OvercoatMirrorCertificateExpiresSoon",
        {'overcoat_mirror_certificate_expiry_timestamp_seconds{host="api.example"}': "604800x300"},
        False,
    ),
    "a client certificate for three weeks": (
        "OvercoatClientCertificateExpiresSoon",
        {'overcoat_client_certificate_expiry_timestamp_seconds{rule="pay"}': "1814400x300"},
        False,
    ),
    "a client certificate for two days": (
        "OvercoatClientCertificateExpiresSoon",
        {'overcoat_client_certificate_expiry_timestamp_seconds{rule="pay"}': "172800x300"},
        True,
    ),
    "a revocation list for five hours": (
        "OvercoatRevocationListExpiresSoon",
        {'overcoat_crl_expiry_timestamp_seconds{issuer="CN=a"}': "21600x300"},
        True,
    ),
    "a revocation list for a day": (
        "OvercoatRevocationListExpiresSoon",
        {'overcoat_crl_expiry_timestamp_seconds{issuer="CN=a"}': "90000x300"},
        False,
    ),
    "a certificate for two days": (
        "OvercoatUpstreamCertificateExpiresSoon",
        {'overcoat_upstream_certificate_expiry_timestamp_seconds{rule="pay"}': "172800x300"},
        True,
    ),
    "a certificate for a week": (
        "OvercoatUpstreamCertificateExpiresSoon",
        {'overcoat_upstream_certificate_expiry_timestamp_seconds{rule="pay"}': "604800x300"},
        False,
    ),
    "pins that only warn, since yesterday": (
        "OvercoatPinsLapsed",
        {'overcoat_pins_expire_timestamp_seconds{rule="pay", after_expiry="warn"}': "-86400x300"},
        True,
    ),
    "pins that deny since yesterday": (
        "OvercoatPinsLapsed",
        {'overcoat_pins_expire_timestamp_seconds{rule="pay", after_expiry="enforce"}': "-86400x300"},
        False,
    ),
    "pins that will only warn": (
        "OvercoatPinsLapsed",
        {'overcoat_pins_expire_timestamp_seconds{rule="pay", after_expiry="warn"}': "86400x300"},
        False,
    ),
    "no certificate so far": (
        "OvercoatUpstreamCertificateExpiresSoon",
        {'overcoat_upstream_certificate_expiry_timestamp_seconds{rule="pay"}': "0x300"},
        False,
    ),
    "every fifth answer an error": (
        "OvercoatUpstreamErrors",
        {
            'overcoat_requests_total{rule="pay", outcome="ok", status="5xx"}': "0+1x300",
            'overcoat_requests_total{rule="pay", outcome="ok", status="2xx"}': "0+4x300",
        },
        True,
    ),
    "few errors, and denials with such a status": (
        "OvercoatUpstreamErrors",
        {
            'overcoat_requests_total{rule="pay", outcome="ok", status="5xx"}': "0+1x300",
            'overcoat_requests_total{rule="pay", outcome="ok", status="2xx"}': "0+40x300",
            'overcoat_requests_total{rule="pay", outcome="denied", status="5xx"}': "0+40x300",
        },
        False,
    ),
    "nearly no descriptors left": (
        "OvercoatDescriptorsShort",
        {
            'overcoat_process_open_descriptors{process="0"}': "900x300",
            'overcoat_process_max_descriptors{process="0"}': "1024x300",
        },
        True,
    ),
    "half of them, and another process's limit": (
        "OvercoatDescriptorsShort",
        {
            'overcoat_process_open_descriptors{process="0"}': "500x300",
            'overcoat_process_max_descriptors{process="0"}': "1024x300",
            'overcoat_process_max_descriptors{process="1"}': "100x300",
        },
        False,
    ),
    "enforced until just now": (
        "OvercoatProtectionEnded",
        {
            'overcoat_info{mode="enforce", version="1"}': "1x200 stale",
            'overcoat_info{mode="observe", version="1"}': "_x200 1x100",
        },
        True,
    ),
    "observed all the time, and another sidecar enforces": (
        "OvercoatProtectionEnded",
        {
            'overcoat_info{instance="a", mode="observe", version="1"}': "1x300",
            'overcoat_info{instance="b", mode="enforce", version="1"}': "1x300",
        },
        False,
    ),
    "observed until just now": (
        "OvercoatProtectionEnded",
        {
            'overcoat_info{mode="observe", version="1"}': "1x200 stale",
            'overcoat_info{mode="enforce", version="1"}': "_x200 1x100",
        },
        False,
    ),
    "all that apps ask is denied": (
        "OvercoatMostDenied",
        {
            'overcoat_requests_total{outcome="denied", reason="proxy_authentication_required"}': "0+1x300",
            'overcoat_requests_total{outcome="denied", reason="plain_http_rejected", rule="old"}': "0+1x300",
            'overcoat_requests_total{outcome="ok", reason="-"}': "0+1x300",
        },
        True,
    ),
    "what one app asks is denied": (
        "OvercoatMostDenied",
        {
            'overcoat_requests_total{outcome="denied", reason="plain_http_rejected"}': "0+1x300",
            'overcoat_requests_total{outcome="ok", reason="-"}': "0+2x300",
        },
        False,
    ),
    "what a few ask is denied": (
        "OvercoatMostDenied",
        {'overcoat_requests_total{outcome="denied", reason="plain_http_rejected"}': "0x200 0+1x100"},
        False,
    ),
    "a worker that has stopped": (
        "OvercoatWorkerHangs",
        {
            'overcoat_process_measured_timestamp_seconds{process="admin"}': "1000+15x300",
            'overcoat_process_measured_timestamp_seconds{process="0"}': "1000x300",
            'overcoat_process_measured_timestamp_seconds{process="1"}': "998+15x300",
        },
        True,
    ),
    "workers of which none has, and a clock that is wrong": (
        "OvercoatWorkerHangs",
        {
            'overcoat_process_measured_timestamp_seconds{process="admin"}': "0+15x300",
            'overcoat_process_measured_timestamp_seconds{process="0"}': "-2+15x300",
            'overcoat_process_measured_timestamp_seconds{process="1"}': "-19+15x300",
        },
        False,
    ),
    "a processor in use": ("OvercoatBusy", {'overcoat_process_cpu_seconds_total{process="0"}': "0+14.5x300"}, True),
    "half of one": ("OvercoatBusy", {'overcoat_process_cpu_seconds_total{process="0"}': "0+7.5x300"}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_an_alert_while_it_lasts(tmp_path: Path, name: str) -> None:
    alert, series, fires = STATES[name]
    test = {
        "interval": "15s",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
                "eval_time": "1h",
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }
    judge(tmp_path, test)


# name: (alert, series, its labels, the summary)
WORDS: dict[str, tuple[str, str, str, str]] = {
    "an end that comes": (
        "OvercoatClientCertificateExpiresSoon",
        "overcoat_client_certificate_expiry_timestamp_seconds 90000x300",
        'rule="pay"',
        "rule pay: the client certificate ends in 1d 0h 0m 0s",
    ),
    "an end that was": (
        "OvercoatClientCertificateExpiresSoon",
        "overcoat_client_certificate_expiry_timestamp_seconds -90000x300",
        'rule="pay"',
        "rule pay: the client certificate has ended",
    ),
    "no rule": (
        "OvercoatUpstreamCertificateExpiresSoon",
        "overcoat_upstream_certificate_expiry_timestamp_seconds 90000x300",
        'rule="-"',
        "hosts without a rule: a server's certificate ends in 1d 0h 0m 0s",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_summary_can_be_read_by_somebody_tired(tmp_path: Path, name: str) -> None:
    alert, series, labels, summary = WORDS[name]
    metric, values = series.split()
    (rule,) = (each for each in ALERTS if each.name == alert)
    test = {
        "interval": "15s",
        "input_series": [{"series": f"{metric}{{{labels}}}", "values": values}],
        "alert_rule_test": [
            {
                "eval_time": "1h",
                "alertname": alert,
                "exp_alerts": [
                    {
                        "exp_labels": {"rule": labels.split('"')[1], "severity": rule.severity},
                        "exp_annotations": {
                            "summary": summary,
                            "description": rule.description,
                            "runbook": rule.runbook,
                        },
                    }
                ],
            }
        ],
    }
    judge(tmp_path, test)


@pytest.mark.parametrize(
    ("fetched", "words"),
    [("2592000000", "not been fetched for 30d 0h 0m 0s"), ("0", "never been fetched")],
)
def test_keys_that_never_came_have_no_age(tmp_path: Path, fetched: str, words: str) -> None:
    # The rules count from 1970, and promtool's time begins there: so its alert is shifted to today.
    now = 2592000000 + 30 * 86400
    text = rules_text().replace("time() - overcoat_jwks_fetched", f"{now} - overcoat_jwks_fetched")
    (rule,) = (each for each in ALERTS if each.name == "OvercoatJwksStale")
    labels = '{key="partner"}'
    test = {
        "interval": "15s",
        "input_series": [
            {"series": f"overcoat_jwks_fetched_timestamp_seconds{labels}", "values": f"{fetched}x300"},
            {"series": f"overcoat_jwks_max_age_seconds{labels}", "values": "3600x300"},
        ],
        "alert_rule_test": [
            {
                "eval_time": "1h",
                "alertname": rule.name,
                "exp_alerts": [
                    {
                        "exp_labels": {"key": "partner", "severity": "warning"},
                        "exp_annotations": {
                            "summary": f"key set partner: its keys have {words}",
                            "description": rule.description,
                            "runbook": rule.runbook,
                        },
                    }
                ],
            }
        ],
    }
    judge(tmp_path, test, text)


def test_how_long_before_is_said_as_it_is() -> None:
    units = {"days": 86400, "hours": 3600}
    for alert in ALERTS:
        limit = re.fullmatch(r".*- time\(\) < (\d+) \* (\d+)", alert.expr)
        if limit is None or int(limit[1]) == 0:
            assert not alert.within, alert.name
            continue
        number, unit = alert.within.split()
        assert (int(number), units[unit]) == (int(limit[1]), int(limit[2])), alert.name
