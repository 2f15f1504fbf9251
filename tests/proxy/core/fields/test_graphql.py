"""GraphQL: a marked argument takes its value from variables, wherever it stands."""

from __future__ import annotations

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields.graphql import MAX_QUERY, MAX_TOKENS, variables_of
from proxy.core.reasons import Reason

SSN = frozenset(("ssn",))


def reason_of(query: str) -> Reason:
    with pytest.raises(Denied) as denied:
        variables_of(query, SSN)
    return denied.value.reason


@pytest.mark.parametrize(
    "query",
    [
        '{person(ssn: "078")}',
        "{person(ssn: 78)}",
        "{person(ssn: 7.8)}",
        "{person(ssn: true)}",
        "{person(ssn: SECRET)}",
        '{person(ssn: """078""")}',
        '{person(ssn: ["078"])}',
        '{person(ssn: {a: [{b: "078"}]})}',
        '{person(ssn: {a: $x, b: "078"})}',
        '{person(a: {ssn: "078"})}',
        '{person(a: [{b: {ssn: "078"}}])}',
        '{x: person(ssn: "078")}',
        '{person @d(ssn: "078")}',
        '{...F} fragment F on P {person(ssn: "078")}',
        '{... on P {person(ssn: "078")}}',
        'query Q($x: String = "078") {person(ssn: $x)}',
        'query Q($x: In = {ssn: "078"}) {person(in: $x)}',
        'query Q($x: S @d(ssn: "078")) {a}',
        'mutation {a(x: 1) b: set(x: 1, ssn: "078") {id}}',
        'subscription {a(ssn: "078")}',
        'query A {a} query B {b(ssn: "078")}',
        'input In {ssn: String = "078"}',
        '{a(#\nssn#\n:,"078")}',
    ],
)
def test_a_literal_is_denied(query: str) -> None:
    assert reason_of(query) is Reason.GRAPHQL_LITERAL
    assert variables_of(query, frozenset(("other",))) == frozenset()


@pytest.mark.parametrize(
    ("query", "used"),
    [
        ("{person(ssn: $x)}", {"x"}),
        ("{person(ssn: [$x, {a: $y}])}", {"x", "y"}),
        ('query Q($x: S, $y: S = "1", $z: S = null) {a(ssn: $x, b: $y) c(ssn: $z)}', {"x", "z"}),
        ("{person(ssn: null)}", set()),
        ("{person(ssn: [])}", set()),
        ('{ssn person(x: "ssn") {ssn}}', set()),
        ('{person(SSN: "078")}', set()),
        ("{person(in: {ssn: $s})}", {"s"}),
        ("input In {ssn: String = null, b: Int = 1}", set()),
    ],
)
def test_a_variable_is_fine(query: str, used: set[str]) -> None:
    assert variables_of(query, SSN) == used


@pytest.mark.parametrize("query", ["", "{", "{a(ssn: )}", "nonsense", '{a(ssn: "x)}', "{a}" * 9000, "\ud800"])
def test_what_is_no_query_is_denied(query: str) -> None:
    assert reason_of(query) is Reason.BODY_UNREADABLE


def test_hostile_queries_end_in_a_denial() -> None:
    for unit, end in (("{a", "}"), ("[", "]")):
        for depth in (10, 1000, 3000):
            query = unit * depth + end * depth if unit != "[" else "{a(x:" + unit * depth + end * depth + ")}"
            if depth == 10:
                assert variables_of(query, SSN) == frozenset()
            else:
                assert reason_of(query) is Reason.BODY_UNREADABLE
    assert reason_of("{" + "a " * MAX_TOKENS + "}") is Reason.BODY_UNREADABLE
    assert reason_of("{a" + " " * MAX_QUERY + "}") is Reason.BODY_TOO_LARGE
