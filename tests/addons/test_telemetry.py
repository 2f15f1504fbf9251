"""What the end-to-end tests of telemetry cannot isolate, such as a line that cannot be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest
from mitmproxy.test import tflow
from prometheus_client import CollectorRegistry

from addons.exchange import Exchange
from addons.expected import expect
from addons.metrics import MOST_KIDS, MOST_USERS, OTHER_USERS, Metrics
from addons.policymetrics import PolicyMetrics
from addons.sessions import Sessions
from addons.telemetry import Telemetry
from proxy.core.decisions import Action, Decision, Denied
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, When, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, Supply, new_key
from proxy.core.pins import Pin, PinSet
from proxy.core.reasons import FIELD_REASONS, Outcome, Reason
from proxy.core.rules.policy import HostPattern, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.who.clients import User, hash_password

DENIED = Denied(Reason.BODY_NOT_JSON, "why", "how")


def exchange(mode: Mode = Mode.ENFORCE, action: Action | None = Action.UPGRADE, **more: object) -> Exchange:
    """Return an exchange that was decided."""
    found = Exchange(Policy(mode=mode), "127.0.0.1", "POST", "/")
    found.decision = None if action is None else Decision(action)
    for name, value in more.items():
        setattr(found, name, value)
    return found


def telemetry(write: Callable[[str], object]) -> Telemetry:
    """Return the addon with a registry of its own."""
    return Telemetry(Sessions(), Metrics(CollectorRegistry()), write)


def value(addon: Telemetry, name: str, **labels: str) -> float | None:
    """Return the sum of a metric's samples that have these labels; None if there is none."""
    samples = [sample for family in addon.metrics.registry.collect() for sample in family.samples]
    found = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
    return sum(found) if found else None


def test_a_line_that_cannot_be_written_is_counted_and_harms_nothing() -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError

    addon = telemetry(broken)
    addon.finish(exchange(), 200, None)
    assert value(addon, "overcoat_decision_lines_lost_total") == 1
    assert value(addon, "overcoat_requests_total", rule="-", action="upgrade", reason="-") == 1


def test_a_request_is_finished_once() -> None:
    lines: list[str] = []
    addon = telemetry(lines.append)
    it = exchange()
    for status in (200, None, 502):
        addon.finish(it, status, None)
    assert len(lines) == 1
    assert json.loads(lines[0])["status"] == 200
    assert value(addon, "overcoat_requests_total", rule="-", action="upgrade", reason="-") == 1


@pytest.mark.parametrize("path", ["/a\nb", "/a\u2028b", "/\x1b[31m", '/"}\n{"x":"'])
def test_a_line_is_one_line_of_plain_ascii_whatever_the_path_holds(path: str) -> None:
    lines: list[str] = []
    telemetry(lines.append).finish(exchange(path=path), 200, None)
    (line,) = lines
    assert line.isascii()
    assert line.count("\n") == 1
    assert line.removesuffix("\n").isprintable()
    assert json.loads(line)["path"] == path


def test_the_day_that_pins_expire_is_good_until_its_last_second() -> None:
    pins = PinSet((Pin("spki", bytes(32)),), date(2027, 6, 30))
    hosts = (HostPattern("exact", "a.example"),)
    rule = Rule("a", hosts, PlainHttp.UPGRADE, Https.INSPECT, pins=pins)
    addon = telemetry(lambda _: None)
    policy = Policy(rules=(rule,))
    expect(addon.metrics, policy)
    addon.metrics.registry.register(PolicyMetrics("1.2.3", lambda: policy, 1.5))
    assert value(addon, "overcoat_pins_expire_timestamp_seconds", rule="a") == 1814399999  # 2027-06-30T23:59:59Z
    assert value(addon, "overcoat_info", version="1.2.3", mode="enforce") == 1
    assert value(addon, "overcoat_start_timestamp_seconds") == 1.5


def test_all_that_can_be_counted_under_a_policy_is_there_at_0_before_it_happens() -> None:
    addon = telemetry(lambda _: None)
    pins = PinSet((Pin("spki", bytes(32)),), None)
    hosts = (HostPattern("exact", "a.example"),)
    expect(addon.metrics, Policy(rules=(Rule("a", hosts, PlainHttp.UPGRADE, Https.INSPECT, pins=pins),)))
    for rule in ("a", "-"):
        for outcome in set(Outcome) - {Outcome.OBSERVED}:
            assert value(addon, "overcoat_requests_total", rule=rule, mode="enforce", outcome=outcome) == 0
        for reason in Reason:
            assert value(addon, "overcoat_requests_total", rule=rule, reason=reason.code) == 0
        assert value(addon, "overcoat_request_seconds_count", rule=rule) == 0
        assert value(addon, "overcoat_body_bytes_total", rule=rule, direction="sent") == 0
    for verdict in ("match", "mismatch", "expired"):
        assert value(addon, "overcoat_pin_checks_total", rule="a", result=verdict) == 0
    assert value(addon, "overcoat_fields_total", rule="a", direction="encrypted") is None  # it has no such fields
    for result in ("taken", "refused"):
        assert value(addon, "overcoat_policy_reloads_total", result=result) == 0


def rule_with_fields(mode: Mode | None = None) -> Rule:
    """Return a rule whose requests and responses have fields."""
    keys = KeySet("k", Alg.A256KW, new_key(Alg.A256KW))
    entry = FieldEntry((parse_selector("$.card"),), keys, name="request[0]")
    return Rule(
        "a",
        (HostPattern("exact", "a.example"),),
        PlainHttp.UPGRADE,
        Https.INSPECT,
        request=(entry, replace(entry, name="request[1]", when=When(methods=frozenset({"PUT"})))),
        response=(replace(entry, work=Work.DECRYPT, name="response[0]"),),
        mode=mode,
    )


def with_fields(mode: Mode | None = None, *, has_left: bool = False) -> Exchange:
    """Return an exchange of such a rule."""
    it = exchange(asked=Destination("a.example", 443), has_left=has_left)
    it.settle(rule_with_fields(mode), Decision(Action.UPGRADE))
    return it


def test_fields_and_their_failures_are_there_at_0_for_each_entry() -> None:
    for mode in Mode:
        addon = telemetry(lambda _: None)
        expect(addon.metrics, Policy(rules=(rule_with_fields(mode),)))
        for name, direction in (("request[0]", "encrypted"), ("request[1]", "encrypted"), ("response[0]", "decrypted")):
            done = value(addon, "overcoat_fields_total", rule="a", mode=mode, entry=name, direction=direction)
            assert done == (0 if mode is Mode.ENFORCE else None)  # in observe mode nothing is done with any
            for reason in FIELD_REASONS:
                labels = {"rule": "a", "mode": mode.value, "entry": name, "reason": reason.code}
                assert value(addon, "overcoat_field_failures_total", **labels) == 0
        (family,) = [each for each in addon.metrics.registry.collect() if each.name == "overcoat_fields"]
        assert len(family.samples) == (3 if mode is Mode.ENFORCE else 0)


def test_fields_are_counted_by_entry_and_in_observe_mode_not_at_all() -> None:
    for mode, counted in ((Mode.ENFORCE, 2), (Mode.OBSERVE, None)):
        addon, it = telemetry(lambda _: None), with_fields(mode)
        assert it.rule is not None
        it.count_fields(it.rule.request, (0, 2))
        addon.finish(it, 200, None)
        assert value(addon, "overcoat_fields_total", entry="request[1]", direction="encrypted") == counted
        assert value(addon, "overcoat_fields_total", entry="request[0]") is None


def test_fields_of_a_request_that_did_not_leave_are_not_counted() -> None:
    lines: list[str] = []
    addon, it = telemetry(lines.append), with_fields()
    assert it.rule is not None
    it.count_fields(it.rule.request, (1, 1))
    it.break_off(Denied(Reason.PIN_MISMATCH, "why"))
    addon.finish(it, 502, None)
    assert value(addon, "overcoat_fields_total") is None
    assert value(addon, "overcoat_field_failures_total") is None  # the fields are not to blame
    assert json.loads(lines[0])["encrypted"] == 0
    assert "fields" not in json.loads(lines[0])


@pytest.mark.parametrize(
    ("denied", "has_left", "mode", "blamed"),
    [
        (Denied(Reason.SIGNED_BODY, "why", entries=("request[1]",)), False, None, {"request[1]"}),
        (Denied(Reason.BODY_NOT_JSON, "why"), False, None, {"request[0]"}),  # request[1] is about PUT
        (Denied(Reason.DECRYPTION_FAILED, "why"), True, None, {"response[0]"}),
        (Denied(Reason.BODY_NOT_JSON, "why"), True, Mode.OBSERVE, {"request[0]"}),
        (Denied(Reason.CERTIFICATE_INVALID, "why"), False, None, set()),
    ],
)
def test_a_denial_is_a_failure_of_the_entries_that_it_is_about(
    denied: Denied, has_left: bool, mode: Mode | None, blamed: set[str]
) -> None:
    lines: list[str] = []
    addon, it = telemetry(lines.append), with_fields(mode, has_left=has_left)
    it.note_reason(denied)
    addon.finish(it, 422, None)
    samples = [sample for family in addon.metrics.registry.collect() for sample in family.samples]
    found = [each for each in samples if each.name == "overcoat_field_failures_total"]
    assert {(each.labels["entry"], each.labels["reason"], each.value) for each in found} == {
        (name, denied.reason.code, 1) for name in blamed
    }
    said = json.loads(lines[0])
    assert said.get("field_failures", {}) == {name: {denied.reason.code: 1} for name in blamed}


def test_what_passes_though_it_failed_is_a_failure_too() -> None:
    addon, it = telemetry(lambda _: None), with_fields()
    it.count_failure("response[0]", Reason.DECRYPTION_FAILED)
    it.count_failure("response[0]", Reason.DECRYPTION_FAILED)
    addon.finish(it, 200, None)
    assert value(addon, "overcoat_field_failures_total", entry="response[0]", reason="decryption_failed") == 2
    assert value(addon, "overcoat_requests_total", reason="-") == 1


def test_users_have_labels_of_their_own_up_to_a_number() -> None:
    metrics = Metrics(CollectorRegistry())
    some = hash_password("secret", bytes(16))
    users = tuple(User(f"u{number}", some) for number in range(MOST_USERS + 5))
    policy = Policy(clients=replace(Policy().clients, users=users))
    expect(metrics, policy)
    assert metrics.user_label(policy, "u99") == "u99"
    assert metrics.user_label(policy, "u100") == OTHER_USERS
    (family,) = [each for each in metrics.registry.collect() if each.name == "overcoat_user_requests"]
    assert len({sample.labels["user"] for sample in family.samples}) == MOST_USERS + 1


def test_a_rule_that_observes_has_series_of_its_own_mode() -> None:
    addon = telemetry(lambda _: None)
    rule = Rule("a", (HostPattern("exact", "a.example"),), PlainHttp.UPGRADE, Https.INSPECT, mode=Mode.OBSERVE)
    expect(addon.metrics, Policy(rules=(rule,)))
    assert value(addon, "overcoat_requests_total", rule="a", mode="observe") == 0
    assert value(addon, "overcoat_requests_total", rule="a", mode="enforce") is None
    assert value(addon, "overcoat_requests_total", rule="-", mode="enforce") == 0
    it = exchange()
    it.settle(rule, Decision(Action.UPGRADE))
    addon.finish(it, 200, None)
    assert value(addon, "overcoat_requests_total", rule="a", mode="observe", outcome="observed") == 1


@pytest.mark.parametrize(
    ("it", "outcome"),
    [
        (exchange(), Outcome.OK),
        (exchange(app_left=True), Outcome.APP_LEFT),
        (exchange(denied=DENIED), Outcome.DENIED),
        (exchange(denied=DENIED, app_left=True), Outcome.DENIED),
        (exchange(denied=Denied(Reason.UPSTREAM_CUT, "why")), Outcome.UPSTREAM_CUT),
        (exchange(denied=Denied(Reason.TLS_FAILED, "why")), Outcome.UPSTREAM_FAILED),
        (exchange(denied=Denied(Reason.APP_TLS_FAILED, "why")), Outcome.APP_LEFT),
        (exchange(denied=Denied(Reason.DRAIN_TIMEOUT, "why")), Outcome.DRAINED),
        (exchange(denied=Denied(Reason.IDLE_TIMEOUT, "why")), Outcome.IDLE),
        (exchange(Mode.OBSERVE), Outcome.OBSERVED),
        (exchange(Mode.OBSERVE, denied=DENIED), Outcome.OBSERVED),
        (exchange(Mode.OBSERVE, app_left=True), Outcome.APP_LEFT),
        (exchange(Mode.OBSERVE, denied=DENIED, is_carried_out=True), Outcome.DENIED),
    ],
)
def test_each_ends_in_one_outcome_the_same_in_line_and_metric(it: Exchange, outcome: Outcome) -> None:
    lines: list[str] = []
    addon = telemetry(lines.append)
    addon.finish(it, None, None)
    assert json.loads(lines[0])["outcome"] == outcome
    assert value(addon, "overcoat_requests_total", outcome=outcome, mode=it.policy.mode) == 1
    assert value(addon, "overcoat_requests_total") == 1


def test_a_held_response_is_counted_by_what_came_and_a_missing_body_is_none() -> None:
    lines: list[str] = []
    addon = telemetry(lines.append)
    flow = tflow.tflow(resp=True)
    addon.sessions.open(flow.client_conn, Policy())
    assert flow.response is not None
    flow.response.data.content = None
    addon.response(flow)
    assert json.loads(lines[0])["bytes_received"] == 0


def test_names_of_keys_that_others_choose_are_bounded() -> None:
    metrics = Metrics(CollectorRegistry())
    supply = Supply("https://keys.example/", "keys.example", 443, "/", 3600)
    fetched = KeySet("partner", Alg.A256KW, None, supply=supply)
    own = KeySet("app", Alg.A256KW, new_key(Alg.A256KW, kid="own"))
    key = new_key(Alg.A256KW)
    for number in range(MOST_KIDS + 5):
        metrics.key_used(fetched, replace(key, kid=f"k{number}"), Work.ENCRYPT)()
    for used in own.keys:
        metrics.key_used(own, used, Work.DECRYPT)()
    (family,) = [each for each in metrics.registry.collect() if each.name == "overcoat_key_uses"]
    counts = {(each.labels["kid"], each.labels["direction"]): each.value for each in family.samples}
    assert len(counts) == MOST_KIDS + 2
    assert counts["(others)", "encrypted"] == 5
    assert counts["k0", "encrypted"] == 1
    assert counts["own", "decrypted"] == 1
