"""Upgrade, reject, allow, tunnel, inspect: every rule and every default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from proxy.core.decisions import Action, Decision
from proxy.core.destinations import Destination
from proxy.core.pins import Pin, PinSet
from proxy.core.reasons import Reason
from proxy.core.rules.hsts import KnownHosts
from proxy.core.rules.policy import (
    Defaults,
    Egress,
    HostPattern,
    Https,
    Listener,
    ListenerKind,
    Mirror,
    Mode,
    PlainHttp,
    Policy,
    Rule,
)
from proxy.core.rules.transport import (
    decide_https,
    decide_mirror,
    decide_plain_http,
    denied_by_address,
    forbidden_address,
    forbidden_behind_mirror,
    hint_for_neighbour,
    own_listener,
    unresolved,
    untaken,
)
from proxy.core.rules.trust import Crls, CrlUse, KeyExchange, Trust
from proxy.core.who.addresses import AddressKind, AddressSet, parse_ip
from proxy.core.who.clients import ClientRules

RULE = Rule("r", (HostPattern("exact", "api.example"),), PlainHttp.UPGRADE, Https.TUNNEL)
ASKED = Destination("api.example", 80)
ASKED_TLS = Destination("api.example", 443)
OTHER = Destination("other.example", 8080)


def _policy(plain_http: PlainHttp, https: Https, https_port: int | None = None) -> Policy:
    """A policy whose one rule says this for api.example, and whose defaults say the same for the rest."""
    rule = Rule("r", (HostPattern("exact", "api.example"),), plain_http, https, https_port)
    return Policy(defaults=Defaults(plain_http, https), rules=(rule,))


@pytest.mark.parametrize(
    ("plain_http", "asked", "action", "target"),
    [
        (PlainHttp.UPGRADE, ASKED, Action.UPGRADE, ASKED_TLS),
        (PlainHttp.UPGRADE, OTHER, Action.UPGRADE, OTHER),
        (PlainHttp.ALLOW, ASKED, Action.ALLOW, ASKED),
        (PlainHttp.ALLOW, OTHER, Action.ALLOW, OTHER),
    ],
)
def test_plain_http_is_upgraded_or_allowed(
    plain_http: PlainHttp, asked: Destination, action: Action, target: Destination
) -> None:
    rule, decision = decide_plain_http(_policy(plain_http, Https.TUNNEL), asked)
    assert (rule.name if rule else None) == ("r" if asked is ASKED else None)
    assert (decision.action, decision.target, decision.denied) == (action, target, None)


@pytest.mark.parametrize(
    ("plain_http", "is_listed", "uses_list", "action"),
    [
        (PlainHttp.ALLOW, True, True, Action.UPGRADE),
        (PlainHttp.ALLOW, True, False, Action.ALLOW),
        (PlainHttp.ALLOW, False, True, Action.ALLOW),
        (PlainHttp.UPGRADE, True, True, Action.UPGRADE),
        (PlainHttp.REJECT, True, True, Action.DENY),
    ],
)
def test_a_host_that_wants_https_only_is_upgraded_where_plain_http_might_pass(
    plain_http: PlainHttp, is_listed: bool, uses_list: bool, action: Action
) -> None:
    known = KnownHosts(lambda: 0.0, lambda host: is_listed and host == ASKED.host)
    policy = replace(_policy(plain_http, Https.TUNNEL), hsts_preload=uses_list)
    rule, decision = decide_plain_http(policy, ASKED, known)
    assert rule is policy.rules[0]
    assert decision.action is action
    assert decision.is_by_hsts is (plain_http is PlainHttp.ALLOW and action is Action.UPGRADE)
    assert decide_plain_http(policy, OTHER, known)[1].is_by_hsts is False


def test_an_upgrade_goes_to_the_port_that_the_rule_names() -> None:
    _, decision = decide_plain_http(_policy(PlainHttp.UPGRADE, Https.TUNNEL, 8443), ASKED)
    assert decision.target == Destination("api.example", 8443)


@pytest.mark.parametrize(("asked", "where"), [(ASKED, "rule r"), (OTHER, "the policy's default")])
def test_plain_http_is_rejected_without_a_target(asked: Destination, where: str) -> None:
    _, decision = decide_plain_http(_policy(PlainHttp.REJECT, Https.TUNNEL), asked)
    assert (decision.action, decision.target) == (Action.DENY, None)
    assert decision.denied is not None
    assert decision.denied.reason is Reason.PLAIN_HTTP_REJECTED
    assert decision.denied.detail.startswith(where)
    assert decision.denied.hint.startswith("use https://")


@pytest.mark.parametrize(("https", "action"), [(Https.TUNNEL, Action.TUNNEL), (Https.INSPECT, Action.INSPECT)])
@pytest.mark.parametrize("asked", [ASKED_TLS, OTHER])
def test_https_is_tunnelled_or_inspected_where_it_was_asked_for(
    https: Https, action: Action, asked: Destination
) -> None:
    rule, decision = decide_https(_policy(PlainHttp.UPGRADE, https, 8443), asked)
    assert (rule.name if rule else None) == ("r" if asked is ASKED_TLS else None)
    assert (decision.action, decision.target, decision.denied) == (action, asked, None)


@pytest.mark.parametrize(("asked", "where"), [(ASKED_TLS, "rule r"), (OTHER, "the policy's default")])
def test_https_is_rejected_without_a_target(asked: Destination, where: str) -> None:
    _, decision = decide_https(_policy(PlainHttp.UPGRADE, Https.REJECT), asked)
    assert (decision.action, decision.target) == (Action.DENY, None)
    assert decision.denied is not None
    assert decision.denied.reason is Reason.HTTPS_REJECTED
    assert decision.denied.detail.startswith(where)


def test_an_upgrade_is_held_to_the_rule_of_the_destination_that_is_dialled() -> None:
    asked = Rule("asked", (HostPattern("exact", "api.example", 80),), PlainHttp.UPGRADE, Https.TUNNEL)
    dialled = Rule("dialled", (HostPattern("exact", "api.example", 443),), PlainHttp.UPGRADE, Https.INSPECT)
    rule, decision = decide_plain_http(Policy(rules=(asked, dialled)), Destination("api.example", 80))
    assert rule is dialled
    assert decision.target == Destination("api.example", 443)
    alone, _ = decide_plain_http(Policy(rules=(asked,)), Destination("api.example", 80))
    assert alone is asked


@pytest.mark.parametrize(
    ("of_asked", "of_dialled", "https", "counts"),
    [
        (Mode.ENFORCE, Mode.ENFORCE, Https.INSPECT, "dialled"),
        (Mode.OBSERVE, Mode.OBSERVE, Https.INSPECT, "dialled"),
        (Mode.OBSERVE, Mode.ENFORCE, Https.INSPECT, "asked"),  # it stays plain http, and is not dialled there
        (Mode.ENFORCE, Mode.OBSERVE, Https.INSPECT, "asked"),  # it is upgraded, whatever is only observed there
        (Mode.OBSERVE, Mode.ENFORCE, Https.REJECT, "asked"),
        (Mode.ENFORCE, Mode.OBSERVE, Https.REJECT, "asked"),
    ],
)
def test_an_upgrade_has_the_mode_of_the_rule_that_upgrades(
    of_asked: Mode, of_dialled: Mode, https: Https, counts: str
) -> None:
    asked = Rule("asked", (HostPattern("exact", "api.example", 80),), PlainHttp.UPGRADE, Https.TUNNEL, mode=of_asked)
    dialled = Rule("dialled", (HostPattern("exact", "api.example", 443),), PlainHttp.UPGRADE, https, mode=of_dialled)
    policy = Policy(rules=(asked, dialled))
    rule, decision = decide_plain_http(policy, ASKED)
    assert rule is not None
    assert (rule.name, decision.action) == (counts, Action.UPGRADE)
    assert policy.observes(rule) is (of_asked is Mode.OBSERVE)


def _rule(name: str, *hosts: str, **more: object) -> Rule:
    patterns = tuple(
        HostPattern("any_depth" if host.startswith("**.") else "exact", host.removeprefix("**.").split(":")[0], port)
        for host in hosts
        for port in [int(host.split(":")[1]) if ":" in host else None]
    )
    given: dict[str, object] = {"plain_http": PlainHttp.UPGRADE, "https": Https.TUNNEL} | more
    return Rule(name, patterns, **given)  # type: ignore[arg-type]  # the table's values fit


_PINS = PinSet((Pin("spki", bytes(32)),))


def test_a_broader_later_rule_does_not_take_the_protection_of_one_for_port_80_away() -> None:
    strict = _rule("strict", "api.example:80", pins=_PINS, https=Https.INSPECT)
    rule, decision = decide_plain_http(Policy(rules=(strict, _rule("rest", "**.example"))), ASKED)
    assert rule is strict
    assert decision.action is Action.UPGRADE


def test_one_rule_may_protect_both_ports() -> None:
    both = _rule("both", "api.example", pins=_PINS, https=Https.INSPECT)
    rule, decision = decide_plain_http(Policy(rules=(both,)), ASKED)
    assert rule is both
    assert (decision.action, decision.target) == (Action.UPGRADE, ASKED_TLS)


def test_what_no_rule_names_is_upgraded_to_where_one_may_protect_it() -> None:
    own = _rule("own", "api.example:443", plain_http=PlainHttp.ALLOW, pins=_PINS, https=Https.INSPECT)
    rule, decision = decide_plain_http(Policy(rules=(own,)), ASKED)
    assert rule is own
    assert (decision.action, decision.target) == (Action.UPGRADE, ASKED_TLS)


@pytest.mark.parametrize(
    ("of_rule", "default", "action"),
    [(Https.INSPECT, Https.TUNNEL, Action.INSPECT), (Https.TUNNEL, Https.REJECT, Action.TUNNEL)],
)
def test_a_rule_counts_and_not_the_default(of_rule: Https, default: Https, action: Action) -> None:
    policy = Policy(defaults=Defaults(https=default), rules=(_rule("own", "api.example", https=of_rule),))
    assert decide_https(policy, ASKED_TLS)[1].action is action


def test_two_rules_that_protect_the_two_ports_in_different_ways_deny() -> None:
    one = _rule("one", "api.example:80", pins=_PINS, https=Https.INSPECT)
    two = _rule("two", "api.example:443", pins=_PINS, https=Https.INSPECT)
    _, decision = decide_plain_http(Policy(rules=(one, two)), ASKED)
    assert decision.denied is not None
    assert decision.denied.reason is Reason.PLAIN_HTTP_REJECTED


_CRLS = Crls((Path("a.crl"),), lists=(b"a",))


@pytest.mark.parametrize(
    ("strong", "weak"),
    [
        ({"min_tls": "1.3"}, {}),
        ({"strict": True}, {"strict": False}),
        ({"key_exchange": KeyExchange.HYBRID}, {}),
        ({"crls": _CRLS}, {}),
        ({"crls": replace(_CRLS, when=CrlUse.REQUIRE)}, {"crls": _CRLS}),
        ({"roots": Path("own.pem")}, {}),
        ({"anchors": (b"own",)}, {"anchors": (b"other",)}),
    ],
)
def test_no_upgrade_takes_a_servers_trust_away(strong: dict[str, object], weak: dict[str, object]) -> None:
    """Whichever of the two rules has it, and whether the other one protects something or not."""
    strict, lax = (Trust(**each) for each in (strong, weak))  # type: ignore[arg-type]  # the table's values fit
    pinned: dict[str, object] = {"pins": _PINS, "https": Https.INSPECT}
    for is_dialled, has_other_more in product((False, True), repeat=2):
        ports = ["api.example:80", "api.example:443"]
        strong_one = _rule("strong", ports.pop(is_dialled), trust=strict)
        weak_one = _rule("weak", *ports, **(pinned if has_other_more else {}))
        rules = (weak_one, strong_one) if is_dialled else (strong_one, weak_one)  # the first may be about both ports
        rule, decision = decide_plain_http(Policy(rules=rules, trust=lax), ASKED)
        if has_other_more:
            assert decision.denied is not None
            assert decision.denied.reason is Reason.PLAIN_HTTP_REJECTED
        else:
            assert (rule, decision.action) == (strong_one, Action.UPGRADE)


@pytest.mark.parametrize(
    ("strong", "weak"),
    [
        ({}, {}),
        ({"min_tls": "1.3", "key_exchange": KeyExchange.HYBRID, "crls": _CRLS}, {"strict": False}),
    ],
)
@pytest.mark.parametrize("own", ["80", "443"])
def test_a_trust_that_takes_more_is_not_missed(own: str, strong: dict[str, object], weak: dict[str, object]) -> None:
    strict, lax = (Trust(**each) for each in (strong, weak))  # type: ignore[arg-type]  # the table's values fit
    strong_one = _rule("strong", f"api.example:{own}", trust=strict, pins=_PINS, https=Https.INSPECT)
    weak_one = _rule("weak", "**.example", trust=lax)
    rule, decision = decide_plain_http(Policy(rules=(strong_one, weak_one)), ASKED)
    assert (rule, decision.action) == (strong_one, Action.UPGRADE)


def test_a_rule_for_443_that_lets_plain_http_pass_is_not_about_port_80() -> None:
    own = _rule("own", "api.example:443", plain_http=PlainHttp.ALLOW)
    strict = _rule("strict", "api.example", pins=_PINS, https=Https.INSPECT)
    rule, decision = decide_plain_http(Policy(rules=(own, strict)), ASKED)
    assert rule is strict
    assert decision.action is Action.UPGRADE


def test_a_rule_for_443_is_about_port_80_even_if_it_upgrades_to_another_port() -> None:
    strict = _rule("strict", "api.example:443", pins=_PINS, https=Https.INSPECT, https_port=8443)
    policy = Policy(defaults=Defaults(plain_http=PlainHttp.ALLOW), rules=(strict,))
    rule, decision = decide_plain_http(policy, ASKED)
    assert rule is strict
    assert decision.target == Destination("api.example", 8443)


def test_an_upgrade_to_a_destination_whose_https_is_rejected_is_denied() -> None:
    closed = _rule("closed", "api.example:443", plain_http=PlainHttp.REJECT, https=Https.REJECT)
    rest = _rule("rest", "**.example", https_port=443)
    rule, decision = decide_plain_http(Policy(rules=(closed, rest)), Destination("api.example", 8081))
    assert rule is closed
    assert decision.denied is not None
    assert decision.denied.reason is Reason.HTTPS_REJECTED


@pytest.mark.parametrize("asked", [OTHER, Destination("other.example", 443)])
def test_where_only_listed_hosts_are_reached_others_are_forbidden_whatever_the_defaults_say(asked: Destination) -> None:
    policy = replace(_policy(PlainHttp.ALLOW, Https.TUNNEL), egress=Egress.LISTED)
    for decide in (decide_plain_http, decide_https):
        rule, decision = decide(policy, asked)
        assert rule is None
        assert decision.action is Action.DENY
        assert decision.denied is not None
        assert decision.denied.reason is Reason.DESTINATION_FORBIDDEN
    assert decide_plain_http(policy, ASKED)[1].action is Action.ALLOW
    assert decide_https(policy, ASKED_TLS)[1].action is Action.TUNNEL


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("localhost", "loopback"),
        ("a.localhost", "loopback"),
        ("10.0.0.1", "private"),
        ("169.254.169.254", "metadata"),
        ("224.0.0.251", "multicast"),
        ("1.1.1.1", None),
        ("2606:4700::1", None),
        ("api.example", None),  # what it leads to is for a look-up to say
        ("alocalhost", None),
        ("localhost.example", None),
    ],
)
def test_an_address_that_is_not_public_is_forbidden_before_anything_is_looked_up(host: str, kind: str | None) -> None:
    denied = denied_by_address(Policy(), None, host)
    if kind is None:
        assert denied is None
        return
    assert denied is not None
    assert denied.reason is Reason.DESTINATION_FORBIDDEN
    assert f"is at a {kind} address" in denied.detail
    where = "address" if kind == "metadata" else "network"  # of the former, a network does not include it
    assert f"a rule of its own with destinations: {{allow: [{kind}]}} (or just its {where})" in denied.hint


def test_what_the_policy_allows_is_not() -> None:
    policy = Policy(destinations=AddressSet(frozenset((AddressKind.LOOPBACK,))))
    assert [denied_by_address(policy, None, host) for host in ("127.0.0.1", "localhost", "::1")] == [None] * 3
    assert denied_by_address(policy, None, "10.0.0.1") is not None


def test_a_rule_says_for_its_hosts_alone_where_they_may_be() -> None:
    loopback, private = (AddressSet(frozenset((kind,))) for kind in (AddressKind.LOOPBACK, AddressKind.PRIVATE))
    policy = Policy(destinations=loopback)
    assert denied_by_address(policy, RULE, "127.0.0.1") is None  # it says nothing of its own
    rule = replace(RULE, destinations=private)
    assert denied_by_address(policy, rule, "10.0.0.1") is None
    assert denied_by_address(policy, rule, "127.0.0.1") is not None


def test_a_name_that_leads_to_a_forbidden_address_is_named() -> None:
    denied = forbidden_address("api.example", AddressKind.PRIVATE, None)
    assert denied.detail == "api.example is at a private address, where the policy lets nothing go"


NO_TLS = "plain_http: allow if it speaks no TLS"


@pytest.mark.parametrize(
    ("host", "kind", "starts"),
    [
        ("localhost", AddressKind.LOOPBACK, "that is where Overcoat runs; what the app has on a localhost of its own"),
        ("127.0.0.1", AddressKind.LOOPBACK, "that is where Overcoat runs; what the app has on a localhost of its own"),
        ("search", AddressKind.PRIVATE, "if search is a neighbour of the app's, name it in the app's NO_PROXY"),
        ("api.example", AddressKind.PRIVATE, "if api.example is a neighbour of the app's"),
        ("100.64.0.1", AddressKind.CGNAT, "if 100.64.0.1 is a neighbour of the app's"),
        ("a.local", AddressKind.LINK_LOCAL, "if a.local is a neighbour of the app's"),
        ("search", AddressKind.RESERVED, "if search is a neighbour of the app's"),
        ("host.docker.internal", AddressKind.RESERVED, "if host.docker.internal is a neighbour of the app's"),
    ],
)
def test_a_forbidden_neighbour_is_told_of_no_proxy_before_a_rule(host: str, kind: AddressKind, starts: str) -> None:
    hint = forbidden_address(host, kind, None).hint
    assert hint.startswith(starts)
    assert "NO_PROXY" in hint
    assert hint.endswith(
        f"give it a rule of its own with destinations: {{allow: [{kind}]}} (or just its network), and {NO_TLS}"
    )


@pytest.mark.parametrize(
    ("host", "kind", "where"),
    [
        ("api.example", AddressKind.RESERVED, "network"),
        ("224.0.0.251", AddressKind.MULTICAST, "network"),
        ("metadata.google.internal", AddressKind.METADATA, "address"),
        ("169.254.169.254", AddressKind.METADATA, "address"),
    ],
)
def test_what_is_no_neighbour_gets_the_rule_alone(host: str, kind: AddressKind, where: str) -> None:
    expected = f"if the app is to reach it, give it a rule of its own with destinations: {{allow: [{kind}]}}"
    assert forbidden_address(host, kind, None).hint == f"{expected} (or just its {where})"


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        (RULE, f", and {NO_TLS}"),
        (replace(RULE, plain_http=PlainHttp.ALLOW), ""),
        (replace(RULE, pins=PinSet((Pin("spki", bytes(32)),))), ""),  # where plain http would be refused
    ],
)
def test_a_rule_that_is_there_is_named_and_told_only_what_it_lacks(rule: Rule, more: str) -> None:
    hint = forbidden_address("api.example", AddressKind.PRIVATE, rule).hint
    assert hint.endswith(f"write destinations: {{allow: [private]}} (or just its network) in rule r{more}")


@pytest.mark.parametrize("host", ["search", "localhost", "10.1.2.3", "a.internal", "fe80::1", "100.64.0.1"])
def test_what_is_wrong_with_a_neighbour_otherwise_leads_to_the_same(host: str) -> None:
    hint = hint_for_neighbour(host, None)
    assert "NO_PROXY" in hint
    assert NO_TLS in hint
    assert hint_for_neighbour(host, RULE).endswith("if it speaks no TLS, write plain_http: allow in rule r")
    assert hint_for_neighbour(host, replace(RULE, pins=PinSet((Pin("spki", bytes(32)),)))) == ""
    denied = decide_plain_http(replace(_policy(PlainHttp.REJECT, Https.TUNNEL)), Destination(host, 9200))[1].denied
    assert denied is not None
    assert denied.hint == hint
    denied = decide_https(Policy(egress=Egress.LISTED), Destination(host, 9200))[1].denied
    assert denied is not None
    assert denied.hint == hint


@pytest.mark.parametrize("host", ["api.example", "1.1.1.1", "2606:4700::1", "224.0.0.1", "169.254.169.254"])
def test_what_is_far_away_gets_no_such_hint(host: str) -> None:
    assert hint_for_neighbour(host, None) == ""


def test_a_name_that_leads_nowhere_may_be_a_neighbours() -> None:
    assert "spelt" in unresolved("api.example", is_unknown=True).hint
    assert "DNS server" in unresolved("api.example", is_unknown=False).hint
    for is_unknown in (True, False):
        assert "NO_PROXY" in unresolved("search", is_unknown=is_unknown).hint
        assert unresolved("search", is_unknown=is_unknown).reason is Reason.UPSTREAM_UNREACHABLE


@pytest.mark.parametrize("host", ["localhost", "app.localhost", "127.0.0.1", "::1"])
def test_a_port_of_overcoats_own_machine_that_nobody_listens_on_may_be_the_apps(host: str) -> None:
    denied = untaken(host, 3000)
    assert (denied.reason, denied.detail) == (
        Reason.UPSTREAM_UNREACHABLE,
        f"{host} port 3000 takes no connection",
    )
    assert denied.hint.startswith("that is where Overcoat runs; what the app has on a localhost of its own, it reaches")


@pytest.mark.parametrize("host", ["api.example", "10.0.0.1", "search"])
def test_a_port_elsewhere_that_nobody_listens_on_is_not_the_apps(host: str) -> None:
    assert untaken(host, 3000).hint == Reason.UPSTREAM_UNREACHABLE.hint


def test_a_listener_of_our_own_is_no_destination() -> None:
    denied = own_listener("127.0.0.1 port 8080")
    assert denied.reason is Reason.DESTINATION_FORBIDDEN
    assert denied.detail == "127.0.0.1 port 8080 is one of Overcoat's own listeners"
    assert "another port" in denied.hint


class TestWhatIsKept:
    """What was decided once is not decided again, and no rule is decided by what may have changed since."""

    def test_what_is_learned_of_a_host_holds_at_once_and_only_as_long_as_it_lasts(self) -> None:
        now = [0.0]
        known = KnownHosts(lambda: now[0], lambda _: False)
        policy = _policy(PlainHttp.ALLOW, Https.TUNNEL)
        actions = [decide_plain_http(policy, ASKED, known)[1].action]
        known.learn(ASKED.host, "max-age=10")
        actions.append(decide_plain_http(policy, ASKED, known)[1].action)
        assert decide_plain_http(policy, ASKED, known)[1].is_by_hsts
        actions.append(decide_plain_http(policy, ASKED)[1].action)  # who does not ask is not told
        now[0] = 11.0
        actions.append(decide_plain_http(policy, ASKED, known)[1].action)
        assert actions == [Action.ALLOW, Action.UPGRADE, Action.ALLOW, Action.ALLOW]

    @pytest.mark.parametrize("decide", [decide_plain_http, decide_https])
    def test_another_policy_decides_for_itself(self, decide: Callable[..., tuple[Rule | None, Decision]]) -> None:
        lax, strict = _policy(PlainHttp.ALLOW, Https.TUNNEL), _policy(PlainHttp.REJECT, Https.REJECT)
        for _ in range(2):
            assert decide(lax, ASKED)[1].denied is None
            assert decide(strict, ASKED)[1].action is Action.DENY
            assert decide(replace(lax, egress=Egress.LISTED), OTHER)[1].action is Action.DENY

    @pytest.mark.parametrize("decide", [decide_plain_http, decide_https])
    def test_each_destination_has_its_own(self, decide: Callable[..., tuple[Rule | None, Decision]]) -> None:
        policy = _policy(PlainHttp.UPGRADE, Https.TUNNEL)
        for _ in range(2):
            assert [decide(policy, asked)[1].target for asked in (ASKED_TLS, OTHER)] == [ASKED_TLS, OTHER]

    @pytest.mark.parametrize("decide", [decide_plain_http, decide_https])
    def test_it_is_decided_once(
        self, decide: Callable[..., tuple[Rule | None, Decision]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        policy = _policy(PlainHttp.UPGRADE, Https.TUNNEL)
        first = decide(policy, ASKED)
        monkeypatch.setattr(Policy, "rule_for", None)
        monkeypatch.setattr(Policy, "rule_for_plain_http", None)
        assert decide(policy, Destination(ASKED.host, ASKED.port)) is first

    @pytest.mark.parametrize("decide", [decide_plain_http, decide_https])
    def test_a_denial_is_made_anew_since_it_is_raised(
        self, decide: Callable[..., tuple[Rule | None, Decision]]
    ) -> None:
        policy = _policy(PlainHttp.REJECT, Https.REJECT)
        one, other = (decide(policy, ASKED)[1].denied for _ in range(2))
        assert one is not None
        assert one is not other


# What comes to mirror listeners

TO = Destination("127.0.0.1", 5000)
MIRROR = Mirror(TO, True, ("api.example", "www.example"))
MIRRORED = Policy(
    listen=(Listener("127.0.0.1", 0), Listener("0.0.0.0", 8443, ListenerKind.MIRROR, mirror=MIRROR)),
    rules=(RULE,),
)


def test_what_comes_to_a_mirror_goes_to_its_server_under_the_rule_of_its_host() -> None:
    assert decide_mirror(MIRRORED, ASKED_TLS, TO) == (RULE, Decision(Action.MIRROR, TO))
    assert decide_mirror(MIRRORED, Destination("www.example", 443), TO) == (None, Decision(Action.MIRROR, TO))


@pytest.mark.parametrize("decide", [decide_https, decide_plain_http])
@pytest.mark.parametrize("port", [80, 443, 8443])
def test_nothing_leaves_for_a_host_that_a_mirror_stands_for(
    decide: Callable[[Policy, Destination], tuple[Rule | None, Decision]], port: int
) -> None:
    for policy in (MIRRORED, replace(MIRRORED, mode=Mode.OBSERVE)):
        _, decision = decide(policy, Destination("api.example", port))
        assert decision.denied is not None
        assert decision.denied.reason is Reason.DESTINATION_FORBIDDEN
    assert decide(MIRRORED, Destination("a.api.example", port))[1].denied is None


@pytest.mark.parametrize(
    ("address", "allow", "is_plain", "is_allowed"),
    [
        ("127.0.0.1", (), True, True),
        ("::1", (), True, True),
        ("127.0.0.1", (), False, True),
        ("10.1.2.3", (), True, False),
        ("10.1.2.3", (), False, False),
        ("10.1.2.3", (AddressKind.PRIVATE,), True, True),
        ("10.1.2.3", (AddressKind.PRIVATE,), False, True),
        ("10.1.2.3", (AddressKind.CGNAT,), True, False),
        ("1.1.1.1", (AddressKind.PRIVATE,), True, False),
        ("1.1.1.1", (), False, True),
        ("169.254.169.254", (AddressKind.LINK_LOCAL,), True, False),
    ],
)
def test_a_mirrors_server_is_near_unless_it_speaks_tls(
    address: str, allow: tuple[AddressKind, ...], is_plain: bool, is_allowed: bool
) -> None:
    rule = replace(RULE, destinations=AddressSet(frozenset(allow)))
    for policy in (MIRRORED, replace(MIRRORED, mode=Mode.OBSERVE)):
        denied = forbidden_behind_mirror(policy, rule, "app.example", parse_ip(address), is_plain=is_plain)
        assert (denied is None) is is_allowed
        assert denied is None or denied.reason is Reason.DESTINATION_FORBIDDEN


def test_a_mirrors_server_that_is_not_there_is_told_apart() -> None:
    assert "mirror" in untaken("127.0.0.1", 5000, is_behind_mirror=True).hint
    assert "mirror" not in untaken("127.0.0.1", 5000).hint


def test_a_policy_knows_its_mirrors() -> None:
    assert MIRRORED.mirror_for("www.example") is MIRROR
    assert MIRRORED.mirror_for("other.example") is None
    assert MIRRORED.is_mirrored(RULE)
    assert not MIRRORED.is_mirrored(None)
    assert not MIRRORED.is_mirrored(replace(RULE, hosts=(HostPattern("any_depth", "api.example"),)))
    assert not Policy(rules=(RULE,)).is_mirrored(RULE)


@pytest.mark.parametrize(
    ("mirror", "clients"),
    [
        (None, MIRRORED.clients),
        (MIRROR, ClientRules(MIRRORED.clients.addresses)),
        (replace(MIRROR, is_open=True), ClientRules(None)),
        (replace(MIRROR, peers=AddressSet()), ClientRules(AddressSet())),
    ],
)
def test_a_mirror_may_say_itself_who_connects(mirror: Mirror | None, clients: ClientRules) -> None:
    assert MIRRORED.clients_of(mirror) == clients


def test_a_mirror_is_shown_as_it_is_written() -> None:
    whole = replace(MIRROR, cert="a.pem", key="a.key", is_plain=False, is_open=True)
    assert str(whole) == "to=https://127.0.0.1:5000&for=api.example&for=www.example&cert=a.pem&key=a.key&from=any"
    assert str(MIRROR) == "to=http://127.0.0.1:5000&for=api.example&for=www.example"
    peers = replace(MIRROR, peers=AddressSet(frozenset((AddressKind.PRIVATE,))))
    listener = Listener("::", 8443, ListenerKind.MIRROR, mirror=peers)
    assert str(listener) == "mirror://[::]:8443?to=http://127.0.0.1:5000&for=api.example&for=www.example&from=private"
