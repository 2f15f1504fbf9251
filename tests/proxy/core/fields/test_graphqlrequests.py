"""GraphQL requests: in JSON a marked argument has a variable that a selector marks; in forms and URLs none may be."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote_plus

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.graphqlrequests import check_form, check_json, check_query, check_target
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.reasons import Reason

KEYS = KeySet("app", Alg.A256KW, new_key(Alg.A256KW, kid="one"))
PLAIN = FieldEntry((parse_selector("$.ssn"),), KEYS)
ENTRY = FieldEntry((parse_selector("$.variables.ssn"),), KEYS, graphql_arguments=frozenset(("ssn",)))
OTHER = replace(ENTRY, graphql_arguments=frozenset(("pin",)))


def reason_of(text: bytes) -> Reason:
    with pytest.raises(Denied) as denied:
        check_json(text, [ENTRY])
    return denied.value.reason


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b'{"query":null}',
        b'{"query":"{a(ssn:$ssn)}","variables":{"ssn":1}}',
        b'[{"query":"{a(ssn:$ssn)}","variables":{"ssn":1}},{"query":"{a}"}]',
        b'{"query":"{a(ssn:$ssn)}"}',
        b'{"query":"{a(ssn:$x)}","variables":{"x":null}}',
        b'{"query":"{a(ssn:$x)}","variables":{"y":1,"ssn":2}}',
        b'{"query":"{a(b:1)}","variables":{"other":2}}',
    ],
)
def test_variables_that_are_marked_pass(text: bytes) -> None:
    check_json(text, [ENTRY])


def test_a_part_of_a_variable_that_is_marked_will_do() -> None:
    entry = replace(ENTRY, selectors=(parse_selector("$.variables.in.no"),))
    check_json(b'{"query":"{a(ssn:$in)}","variables":{"in":{"no":1}}}', [entry])
    assert reason_of(b'{"query":"{a(ssn:$in)}","variables":{"in":{"no":1}}}') is Reason.GRAPHQL_LITERAL


@pytest.mark.parametrize(
    "text",
    [
        b'{"query":"{a(ssn:\\"078\\")}"}',
        b'{"qu\\u0065ry":"{a(ssn:1)}"}',
        b'{"QUERY":"{a(ssn:1)}"}',
        b'[{"query":"{a}"},{"query":"{a(ssn:1)}"}]',
        b'{"query":"{a}","query":"{a(ssn:1)}"}',
        b'{"query":"{a(ssn:$other)}","variables":{"ssn":1,"other":2}}',
        b'[{"query":"{a(ssn:$other)}","variables":{"other":2}}]',
    ],
)
def test_literals_and_variables_that_nobody_seals_are_denied(text: bytes) -> None:
    assert reason_of(text) is Reason.GRAPHQL_LITERAL
    check_json(text.replace(b"ssn:", b"nss:"), [ENTRY])


@pytest.mark.parametrize("text", [b"{", b'{"query":"{a}"} x', b"[1"])
def test_what_is_no_json_is_denied(text: bytes) -> None:
    assert reason_of(text) is Reason.BODY_NOT_JSON


def test_a_query_that_is_no_text_is_denied() -> None:
    assert reason_of(b'{"query":{"a":1}}') is Reason.BODY_UNREADABLE


def test_the_arguments_of_all_entries_count() -> None:
    assert check_query("{a(ssn:$x,pin:$y,b:$z)}", [PLAIN, ENTRY, OTHER]) == {"x", "y"}
    assert check_query("{a(ssn:$x,pin:$y,b:$z)}", [ENTRY]) == {"x"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"query": "{a}", "variables": '{"x":1}', "x": "{a(ssn:1)}"}, None),
        ({"query": "", "variables": ""}, None),
        ({"query": "{a(ssn:1)}"}, Reason.GRAPHQL_LITERAL),
        ({"variables": '{"ssn":1}'}, Reason.GRAPHQL_LITERAL),
        ({"operations": '{"query":"{a(ssn:1)}"}'}, Reason.GRAPHQL_LITERAL),
        ({"operations": '[{"variables":{"ssn":1}}]'}, Reason.GRAPHQL_LITERAL),
        ({"variables": "nonsense"}, Reason.BODY_NOT_JSON),
        ({"query": "{a"}, Reason.BODY_UNREADABLE),
    ],
)
def test_nothing_is_sealed_in_urls_and_forms(fields: dict[str, str], reason: Reason | None) -> None:
    query = "&".join(f"{name}={quote_plus(value)}" for name, value in fields.items())
    check_target(query, [PLAIN])
    check_form(query.encode(), [PLAIN])
    if reason is None:
        check_target(query, [ENTRY])
        check_form(query.encode(), [ENTRY])
        return
    with pytest.raises(Denied) as of_target:
        check_target(query, [ENTRY])
    with pytest.raises(Denied) as of_form:
        check_form(query.encode(), [PLAIN, ENTRY])
    assert of_target.value.reason is of_form.value.reason is reason
