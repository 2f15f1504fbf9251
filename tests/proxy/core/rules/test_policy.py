"""The policy: which patterns match and cover which hosts, which globs match which paths, which rule counts."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, PathGlob, When
from proxy.core.fields.readings import Readings, readings
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.pins import PinSet
from proxy.core.rules.policy import (
    Defaults,
    HostPattern,
    Https,
    Limits,
    Listener,
    ListenerKind,
    Mode,
    PlainHttp,
    Policy,
    Rule,
    RuleLimits,
    UpstreamProxy,
    upgraded,
)
from proxy.core.rules.trust import Trust
from proxy.core.who.addresses import AddressKind, AddressSet

EXACT = HostPattern("exact", "api.example")
ONE_LABEL = HostPattern("one_label", "api.example")
ANY_DEPTH = HostPattern("any_depth", "api.example")


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        (EXACT, "api.example", True),
        (EXACT, "x.api.example", False),
        (EXACT, "example", False),
        (ONE_LABEL, "x.api.example", True),
        (ONE_LABEL, "api.example", False),
        (ONE_LABEL, "y.x.api.example", False),
        (ONE_LABEL, "xapi.example", False),
        (ANY_DEPTH, "api.example", True),
        (ANY_DEPTH, "x.api.example", True),
        (ANY_DEPTH, "y.x.api.example", True),
        (ANY_DEPTH, "xapi.example", False),
        (ANY_DEPTH, "api.example.evil.example", False),
        (HostPattern("exact", "::1"), "::1", True),
    ],
)
def test_a_host_pattern_matches_its_hosts_only(pattern: HostPattern, host: str, matches: bool) -> None:
    assert pattern.matches(Destination(host, 443)) is matches


def test_a_pattern_with_a_port_matches_that_port_only() -> None:
    pattern = HostPattern("exact", "api.example", 8443)
    assert pattern.matches(Destination("api.example", 8443))
    assert not pattern.matches(Destination("api.example", 443))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (EXACT, "api.example"),
        (ONE_LABEL, "*.api.example"),
        (HostPattern("any_depth", "api.example", 443), "**.api.example:443"),
        (HostPattern("exact", "::1"), "[::1]"),
        (HostPattern("exact", "::1", 8443), "[::1]:8443"),
    ],
)
def test_a_pattern_is_written_as_in_the_policy_file(pattern: HostPattern, text: str) -> None:
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("pattern", "other", "covers"),
    [
        (EXACT, EXACT, True),
        (EXACT, ONE_LABEL, False),
        (ONE_LABEL, HostPattern("exact", "x.api.example"), True),
        (ONE_LABEL, EXACT, False),
        (ONE_LABEL, ONE_LABEL, True),
        (ONE_LABEL, HostPattern("one_label", "x.api.example"), False),
        (ONE_LABEL, ANY_DEPTH, False),
        (ANY_DEPTH, EXACT, True),
        (ANY_DEPTH, ONE_LABEL, True),
        (ANY_DEPTH, HostPattern("any_depth", "x.api.example"), True),
        (ANY_DEPTH, HostPattern("any_depth", "xapi.example"), False),
        (ANY_DEPTH, HostPattern("any_depth", "example"), False),
        (EXACT, HostPattern("exact", "api.example", 443), True),
        (HostPattern("exact", "api.example", 443), EXACT, False),
        (HostPattern("exact", "api.example", 443), HostPattern("exact", "api.example", 80), False),
        (HostPattern("exact", "api.example", 443), HostPattern("exact", "api.example", 443), True),
    ],
)
def test_a_pattern_covers_what_it_leaves_nothing_of(pattern: HostPattern, other: HostPattern, covers: bool) -> None:
    assert pattern.covers(other) is covers


_hosts = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
_patterns = st.builds(
    HostPattern, st.sampled_from(["exact", "one_label", "any_depth"]), _hosts, st.sampled_from([None, 80, 443])
)


@given(_patterns, _patterns, _hosts, st.sampled_from([80, 443]))
def test_what_a_covered_pattern_matches_its_cover_matches(
    pattern: HostPattern, other: HostPattern, host: str, port: int
) -> None:
    destination = Destination(host, port)
    if pattern.covers(other) and other.matches(destination):
        assert pattern.matches(destination)


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("/v1/charges", "/v1/charges", True),
        ("/v1/charges", "/v1/charges/", False),
        ("/v1/charges", "/v1/chargesx", False),
        ("/v1/charges", "/x/v1/charges", False),
        ("/v1/charges", "/v1/charges\n", False),
        ("/", "/", True),
        ("/v1.0/a", "/v1x0/a", False),
        ("/v1/*", "/v1/a", True),
        ("/v1/*", "/v1/", True),
        ("/v1/*", "/v1", False),
        ("/v1/*", "/v1/a/b", False),
        ("/v1/*/refund", "/v1/ch_1/refund", True),
        ("/v1/a*", "/v1/abc", True),
        ("/v1/a*c*e", "/v1/abcdcde", True),
        ("/v1/a*c*e", "/v1/abd", False),
        ("/v1/a*c*e", "/v1/ace/", False),
        ("/v1/charges/**", "/v1/charges/a/b", True),
        ("/v1/charges/**", "/v1/charges/", True),
        ("/v1/charges/**", "/v1/charges", True),
        ("/v1/charges/**", "/v1/chargesx", False),
        ("/**", "/", True),
        ("/**/refund", "/refund", True),
        ("/**/refund", "/v1/x/refund", True),
        ("/**/refund", "/v1/norefund", False),
        ("/a*/**/b", "/abc/b", True),
        ("/a/**/b/**/c", "/a/b/b/x/c", True),
        ("/a/**/b/**/c", "/a/x/c", False),
        ("/a/**/b/**/c/d", "/a/c/b/b/c/d", True),
    ],
)
def test_a_path_glob_matches_whole_paths(glob: str, path: str, matches: bool) -> None:
    assert PathGlob.parse(glob).matches(path) is matches


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("v1", "starts with '/'"),
        ("", "starts with '/'"),
        ("/v1?x=1", "no query"),
        ("/v1#x", "no fragment"),
        ("/v1**", "whole segments"),
        ("/***", "whole segments"),
    ],
)
def test_a_malformed_path_glob_is_refused(glob: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathGlob.parse(glob)


def _matches_naively(glob: list[str], path: list[str]) -> bool:
    if not glob:
        return not path
    if glob[0] == "**":
        return any(_matches_naively(glob[1:], path[skipped:]) for skipped in range(len(path) + 1))
    regex = "[^/]*".join(re.escape(literal) for literal in glob[0].split("*"))
    return bool(path) and re.fullmatch(regex, path[0]) is not None and _matches_naively(glob[1:], path[1:])


_segments = st.sampled_from(["", "a", "b", "ab", "aba"])


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "aba", "**", "*", "a*", "*b", "*a*b*"]), min_size=1, max_size=6),
    st.lists(_segments, min_size=1, max_size=7),
)
def test_a_path_glob_matches_what_a_naive_matcher_matches(glob: list[str], path: list[str]) -> None:
    found = PathGlob.parse("/" + "/".join(glob)).matches("/" + "/".join(path))
    assert found is _matches_naively(glob, path)


@pytest.mark.parametrize(
    ("glob", "path"),
    [("/**/a/**/b/**/a/**/z", "/a/b" * 16_000), ("/*a*a*a*a*a*z", "/" + "a" * 64_000)],
)
def test_a_long_path_does_not_make_a_glob_slow(glob: str, path: str) -> None:
    start = time.thread_time()
    assert not PathGlob.parse(glob).matches(path)
    assert time.thread_time() - start < 2  # a backtracking matcher takes hours


def test_a_field_entry_without_conditions_applies_to_every_request() -> None:
    assert When().applies(readings("GET", "/anything"))


@pytest.mark.parametrize(
    ("method", "path", "applies"),
    [
        ("POST", "/v1/charges", True),
        ("POST", "/v1/%63harges/", True),
        ("PUT", "/v2/refunds", True),
        ("GET", "/v1/charges", False),
        ("post", "/v1/charges", True),  # some servers do not mind the case
        ("POST", "/v1/other", False),
        ("POST", "/V1/Charges", True),
        ("POST", "/v1/other.json", False),
    ],
)
def test_a_field_entry_applies_to_its_methods_and_paths(method: str, path: str, applies: bool) -> None:
    when = When(frozenset({"POST", "PUT"}), (PathGlob.parse("/v1/charges"), PathGlob.parse("/v2/*")))
    assert when.applies(readings(method, path)) is applies


@pytest.mark.parametrize(
    "path",
    [
        "/v1//../charges",
        "/a%2fb/../v1/charges",
        "/v1;%2fx/charges",
        "/v1;x/charges",
        "/v1/%2563harges",
        "/v1\\charges",
        "/v1%5Ccharges",
        "/x/%2e%2E/v1/charges",
        "/v1/./charges",
        "/v1/charges/.",
        "/v1/charges/..",
        "/v1/other%3Bx",
        "*",
        "http://api.example/v1/charges",
    ],
)
def test_a_path_that_servers_read_in_different_ways_may_be_any_path(path: str) -> None:
    when = When(frozenset({"POST"}), (PathGlob.parse("/v1/charges"),))
    assert when.applies(readings("POST", path))
    assert not when.applies(readings("GET", path))
    assert not when.applies(readings("POST", "/v1/elsewhere"))


@pytest.mark.parametrize("path", ["/v1/other", "/v1/a.b", "/v1/..a", "/v1/...", "/v1/%20", "/v1/a:b", "/"])
def test_an_ordinary_path_is_what_it_says(path: str) -> None:
    assert not When(paths=(PathGlob.parse("/v1/charges"),)).applies(readings("POST", path))


def test_a_field_entry_for_methods_only_applies_at_every_path() -> None:
    assert When(methods=frozenset({"POST"})).applies(readings("POST", "/x"))
    assert When(methods=frozenset({"POST"})).applies(Readings(None, ()))


def _rule(name: str, *hosts: HostPattern, https_port: int | None = None) -> Rule:
    return Rule(name, hosts, PlainHttp.UPGRADE, Https.TUNNEL, https_port=https_port)


def test_the_first_rule_that_matches_counts() -> None:
    first, second = _rule("first", ONE_LABEL, EXACT), _rule("second", ANY_DEPTH)
    policy = Policy(rules=(first, second))
    assert policy.rule_for(Destination("api.example", 443)) is first
    assert policy.rule_for(Destination("y.x.api.example", 443)) is second
    assert policy.rule_for(Destination("other.example", 443)) is None
    assert policy.rule_for_plain_http(Destination("x.api.example", 80)) is first
    assert policy.rule_for_plain_http(Destination("other.example", 80)) is None


@pytest.mark.parametrize(
    ("default", "of_rules", "passes"),
    [
        ("upgrade", [], False),
        ("reject", ["upgrade", "reject"], False),
        ("allow", [], True),
        ("allow", ["reject"], True),  # a rule is about its own hosts only
        ("reject", ["upgrade", "allow"], True),
    ],
)
def test_plain_http_may_pass_if_it_is_allowed_anywhere(default: str, of_rules: list[str], passes: bool) -> None:
    rules = tuple(Rule(each, (EXACT,), PlainHttp(each), Https.TUNNEL) for each in of_rules)
    assert Policy(defaults=Defaults(PlainHttp(default)), rules=rules).lets_plain_http_pass is passes


@pytest.mark.parametrize(
    ("pattern_port", "https_port", "asked_port", "counts"),
    [
        (443, None, 80, True),
        (443, None, 443, True),
        (443, None, 8080, False),
        (8443, 8443, 80, True),
        (8443, None, 8443, True),
        (80, None, 80, True),
        (80, None, 8080, False),
    ],
)
def test_a_rule_with_a_port_counts_for_plain_http_that_an_upgrade_leads_there(
    pattern_port: int, https_port: int | None, asked_port: int, counts: bool
) -> None:
    rule = _rule("r", HostPattern("exact", "api.example", pattern_port), https_port=https_port)
    found = Policy(rules=(rule,)).rule_for_plain_http(Destination("api.example", asked_port))
    assert (found is rule) is counts


HOSTS = st.sampled_from(["a", "b.a", "c.b.a", "d.b.a", "a.c"])
PATTERNS = st.builds(
    HostPattern, st.sampled_from(["exact", "one_label", "any_depth"]), HOSTS, st.sampled_from([None, 80, 443, 8443])
)
RULES = st.builds(
    Rule,
    st.just("r"),
    st.lists(PATTERNS, min_size=1, max_size=3).map(tuple),
    st.sampled_from(PlainHttp),
    st.just(Https.TUNNEL),
    https_port=st.sampled_from([None, 8443]),
)


@given(st.lists(RULES, max_size=5), HOSTS, st.sampled_from([80, 443, 8443]))
def test_the_rule_that_counts_is_the_one_that_looking_at_each_in_turn_finds(
    rules: list[Rule], host: str, port: int
) -> None:
    policy, asked = Policy(rules=tuple(rules)), Destination(host, port)

    def names(rule: Rule, *destinations: Destination) -> bool:
        return any(pattern.matches(each) for pattern in rule.hosts for each in destinations)

    def names_plain(rule: Rule) -> bool:
        ways = () if rule.plain_http is PlainHttp.ALLOW else (upgraded(asked, rule.https_port), upgraded(asked, None))
        return names(rule, asked, *ways)

    assert policy.rule_for(asked) is next((rule for rule in rules if names(rule, asked)), None)
    assert policy.rule_for_plain_http(asked) is next((rule for rule in rules if names_plain(rule)), None)


@pytest.mark.parametrize(("port", "https_port", "expected"), [(80, None, 443), (8080, None, 8080), (8080, 8443, 8443)])
def test_an_upgrade_goes_to_the_https_port(port: int, https_port: int | None, expected: int) -> None:
    assert upgraded(Destination("api.example", port), https_port) == Destination("api.example", expected)


def test_a_rule_needs_the_plaintext_for_pins_encrypt_or_decrypt() -> None:
    key_set = KeySet("k", Alg.A256KW, new_key(Alg.A256KW))
    entry = FieldEntry((parse_selector("$.a"),), key_set)
    plain = _rule("r", EXACT)
    assert not plain.needs_plaintext
    assert Rule("r", (EXACT,), PlainHttp.UPGRADE, Https.INSPECT, pins=PinSet(())).needs_plaintext
    assert Rule("r", (EXACT,), PlainHttp.UPGRADE, Https.INSPECT, request=(entry,)).needs_plaintext
    assert Rule("r", (EXACT,), PlainHttp.UPGRADE, Https.INSPECT, response=(entry,)).needs_plaintext


@pytest.mark.parametrize(
    ("listener", "text"),
    [
        (Listener("127.0.0.1", 8080), "forward://127.0.0.1:8080"),
        (Listener("::1", 0), "forward://[::1]:0"),
        (
            Listener("127.0.0.1", 80, ListenerKind.REVERSE, Destination("api.example", 8443)),
            "reverse://127.0.0.1:80?to=https://api.example:8443",
        ),
    ],
)
def test_a_listener_is_written_as_in_the_policy_file(listener: Listener, text: str) -> None:
    assert str(listener) == text


@pytest.mark.parametrize(
    "glob",
    ["/v1/{id}/x", "/v1/:id", "/v1/.*", "/v1/../x", "/v1//x", "//", "/v1/./x", "/v1\\x", "/v1/x ", "/v1/%63", "/:id/x"],
)
def test_a_glob_that_could_never_match_what_was_meant_is_refused(glob: str) -> None:
    with pytest.raises(ValueError, match="a path glob"):
        PathGlob.parse(glob)


@pytest.mark.parametrize("glob", ["/", "/v1/", "/v1/x:verify", "/v1/*.json", "/**"])
def test_a_glob_that_is_a_little_unusual_is_taken(glob: str) -> None:
    PathGlob.parse(glob)


@pytest.mark.parametrize(("default", "of_rule", "inspects"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_https_is_inspected_somewhere_if_a_rule_or_the_default_says_so(
    default: int, of_rule: int, inspects: bool
) -> None:
    ways = (Https.TUNNEL, Https.INSPECT)
    rules = (_rule("a", EXACT), replace(_rule("b", ONE_LABEL), https=ways[of_rule]))
    policy = Policy(defaults=Defaults(https=ways[default]), rules=(replace(rules[0], https=Https.TUNNEL), rules[1]))
    assert policy.inspects is inspects


def test_a_rule_trusts_what_it_says_else_what_the_policy_does() -> None:
    roots = Path("roots.pem")
    own = Trust(Path("own.pem"), "1.3", strict=False)
    silent, other = _rule("silent", EXACT), replace(_rule("other", EXACT), trust=own)
    policy = Policy(trust=Trust(roots), rules=(silent, other))
    assert policy.trust_for(None) == policy.trust_for(silent) == Trust(roots)
    assert policy.trust_for(other) == own
    assert {policy.trust_for(rule) for rule in (None, *policy.rules)} == {Trust(roots), own}


def test_each_trust_of_a_policy_can_be_replaced() -> None:
    silent, other = _rule("silent", EXACT), replace(_rule("other", EXACT), trust=Trust(Path("own.pem")))
    policy = Policy(trust=Trust(Path("roots.pem")), rules=(silent, other))
    changed = policy.with_trusts(lambda trust: replace(trust, anchors=(str(trust.roots).encode(),)))
    assert changed.trust.anchors == (b"roots.pem",)
    assert [rule.trust and rule.trust.anchors for rule in changed.rules] == [None, (b"own.pem",)]


def test_a_rule_reaches_what_it_says_else_what_the_policy_does() -> None:
    private, nothing = AddressSet(frozenset({AddressKind.PRIVATE})), AddressSet()
    silent, own, none = (
        replace(_rule(name, EXACT), destinations=reached)
        for name, reached in (
            ("silent", None),
            ("own", AddressSet(frozenset({AddressKind.LOOPBACK}))),
            ("none", nothing),
        )
    )
    policy = Policy(destinations=private, rules=(silent, own, none))
    assert [policy.reachable(rule) for rule in (None, silent, own, none)] == [
        private,
        private,
        own.destinations,
        nothing,
    ]


@pytest.mark.parametrize(("content", "secrets"), [(b"b", b"s"), (b"a", b"t")])
def test_a_policy_says_the_same_as_one_of_the_same_text_and_secrets(content: bytes, secrets: bytes) -> None:
    policy = Policy(content=b"a", secrets=b"s")
    assert policy.says_the_same_as(Policy(content=b"a", secrets=b"s"))
    assert not policy.says_the_same_as(Policy(content=content, secrets=secrets))


def test_an_upstream_proxy_serves_all_but_what_is_to_be_reached_directly() -> None:
    rule = Rule("upstream_proxy", (), PlainHttp.REJECT, Https.INSPECT)
    direct = (HostPattern("any_depth", "corp.example"), HostPattern("exact", "api.example", 8443))
    proxy = UpstreamProxy(Destination("proxy.example", 3128), False, rule, direct=direct)
    assert proxy.serves(Destination("api.example", 443))
    assert not proxy.serves(Destination("api.example", 8443))
    assert not proxy.serves(Destination("a.corp.example", 443))


def test_an_upstream_has_the_time_that_the_rule_gives_it_else_the_policys() -> None:
    silent, own, endless = (
        replace(_rule(name, EXACT), limits=limits)
        for name, limits in (("silent", None), ("own", RuleLimits(7)), ("endless", RuleLimits(None)))
    )
    policy = Policy(limits=Limits(response_seconds=60), rules=(silent, own, endless))
    assert [policy.response_seconds(rule) for rule in (None, silent, own, endless)] == [60, 60, 7, None]


@pytest.mark.parametrize(
    ("mode", "of_rule", "observes", "observes_any"),
    [
        (Mode.ENFORCE, None, False, False),
        (Mode.OBSERVE, None, True, True),
        (Mode.ENFORCE, Mode.OBSERVE, True, True),
        (Mode.OBSERVE, Mode.ENFORCE, False, True),
    ],
)
def test_a_rules_mode_wins_over_the_policys(
    mode: Mode, of_rule: Mode | None, observes: bool, observes_any: bool
) -> None:
    rule = replace(_rule("a", EXACT), mode=of_rule, https=Https.INSPECT)
    policy = Policy(mode=mode, rules=(rule,))
    assert policy.observes(rule) is observes
    assert policy.observes(None) is (mode is Mode.OBSERVE)
    assert policy.observes_any is policy.lets_plain_http_pass is observes_any
    assert policy.inspects is not observes
