"""Strict-Transport-Security: read as RFC 6797 says, learned for hosts only, remembered within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.decisions import Action
from proxy.core.destinations import Destination
from proxy.core.rules import hsts
from proxy.core.rules.hsts import KnownHosts, parse_field
from proxy.core.rules.policy import Defaults, Https, PlainHttp, Policy
from proxy.core.rules.transport import decide_plain_http
from proxy.timelimits import HSTS_SECONDS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def known(*preloaded: str) -> tuple[KnownHosts, Clock]:
    clock = Clock()
    return KnownHosts(clock, lambda host: host in preloaded), clock


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("max-age=31536000", (31536000, False)),
        ("max-age=31536000; includeSubDomains", (31536000, True)),
        ("  max-age = 60 ;includesubdomains; preload", (60, True)),
        ('max-age="60"', (60, False)),
        ("MAX-AGE=60; INCLUDESUBDOMAINS", (60, True)),
        ("max-age=0", (0, False)),
        (";max-age=1;;", (1, False)),
        ("max-age=999999999999999", (HSTS_SECONDS, False)),
        ("includeSubDomains; max-age=60; new=thing", (60, True)),
        ("", None),
        ("includeSubDomains", None),
        ("max-age", None),
        ("max-age=", None),
        ("max-age=-1", None),
        ("max-age=1.5", None),
        ("max-age=60; max-age=60", None),
        ("max-age=60, max-age=0", None),
        ("max-age=60; a b", None),
    ],
)
def test_a_field_is_read_or_counts_for_nothing(value: str, said: tuple[int, bool] | None) -> None:
    assert parse_field(value) == said


@given(st.text(max_size=80))
def test_no_text_is_an_error(value: str) -> None:
    assert parse_field(value) is None or "max-age" in value.lower()


def test_a_host_is_known_until_its_time_is_over() -> None:
    hosts, clock = known()
    hosts.learn("api.example", "max-age=60")
    assert hosts.knows("api.example", uses_preload=False)
    assert not hosts.knows("www.api.example", uses_preload=False)
    assert not hosts.knows("example", uses_preload=False)
    clock.now += 60
    assert not hosts.knows("api.example", uses_preload=False)


def test_subdomains_are_included_where_it_says_so() -> None:
    hosts, _ = known()
    hosts.learn("example", "max-age=60; includeSubDomains")
    hosts.learn("b.example", "max-age=0")  # forgets itself, but not what is above
    for host in ("example", "a.example", "x.y.example", "b.example"):
        assert hosts.knows(host, uses_preload=False)
    assert not hosts.knows("anexample", uses_preload=False)


def test_no_age_is_an_end() -> None:
    hosts, _ = known()
    hosts.learn("api.example", "max-age=60")
    hosts.learn("api.example", "nothing that counts")
    assert hosts.knows("api.example", uses_preload=False)
    hosts.learn("api.example", "max-age=0")
    assert not hosts.knows("api.example", uses_preload=False)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_is_never_known(host: str) -> None:
    hosts, _ = known(host)
    hosts.learn(host, "max-age=60; includeSubDomains")
    assert not hosts.knows(host, uses_preload=True)


def test_the_browsers_list_counts_only_where_it_is_asked_for() -> None:
    hosts, _ = known("listed.example")
    assert hosts.knows("listed.example", uses_preload=True)
    assert not hosts.knows("listed.example", uses_preload=False)
    assert not hosts.knows("other.example", uses_preload=True)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hsts, "MAX_HOSTS", 2)
    hosts, _ = known()
    for host in ("a.example", "b.example", "a.example", "c.example"):
        hosts.learn(host, "max-age=60")
    hosts.learn("d.example", "max-age=0")  # that there is nothing to remember makes nobody forgotten
    assert [hosts.knows(f"{name}.example", uses_preload=False) for name in "abcd"] == [True, False, True, False]


@pytest.mark.parametrize(
    ("what", "host", "action"),
    [
        (PlainHttp.ALLOW, "known.example", Action.UPGRADE),
        (PlainHttp.ALLOW, "listed.example", Action.UPGRADE),
        (PlainHttp.ALLOW, "other.example", Action.ALLOW),
        (PlainHttp.REJECT, "known.example", Action.DENY),
    ],
)
def test_what_would_be_let_pass_is_upgraded(what: PlainHttp, host: str, action: Action) -> None:
    hosts, _ = known("listed.example")
    hosts.learn("known.example", "max-age=60")
    policy = Policy(defaults=Defaults(what, Https.TUNNEL), hsts_preload=True)
    decision = decide_plain_http(policy, Destination(host, 80), hosts)[1]
    assert decision.action is action
    if action is Action.UPGRADE:
        assert decision.target == Destination(host, 443)
