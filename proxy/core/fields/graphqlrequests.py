"""Checks the GraphQL of a request: its queries and variables, in JSON, in forms and in the URL.
`proxy.core.fields.kinds` calls it for each body, `addons.encryption` for the URL.

Rules of this module:

- Only entries with `graphql_arguments` have a query looked into; `proxy.core.fields.graphql` does that.
- A marked argument takes its value from a variable that a selector marks, in the JSON of a body, or it is denied.
- Variables in a URL or a form are text, and are not sealed: none of them may be marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from proxy.core.decisions import Denied
from proxy.core.fields import forms, splice
from proxy.core.fields.automaton import Marks, in_each
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.forms import unreadable
from proxy.core.fields.jsontext import string_value
from proxy.core.fields.pauses import Pause, never
from proxy.core.fields.selectors import Segment, Selector, parse_selector
from proxy.core.reasons import Reason

OPERATIONS = "operations"  # the part of a multipart form that holds a GraphQL request

_QUERIES = [Marks((parse_selector("$.query"), parse_selector("$[*].query")), ignore_case=True)]


def check_target(query: str, entries: Sequence[FieldEntry]) -> None:
    """Check what a URL's query holds of GraphQL: it is not sealed, so nothing in it may be marked.

    Args:
        query: the query as sent.
        entries: what is marked.

    Raises:
        Denied: as `check_form`.
    """
    if query and any(entry.graphql_arguments for entry in entries):
        check_form(query.encode("utf-8", "surrogateescape"), entries)


def check_form(text: bytes, entries: Sequence[FieldEntry], pause: Pause = never) -> None:
    """Check the GraphQL of a form or a URL's query, in which variables are text, and are not sealed.

    Args:
        text: the form as sent.
        entries: what is marked.
        pause: called again and again meanwhile.

    Raises:
        Denied: GRAPHQL_LITERAL, or BODY_UNREADABLE or BODY_NOT_JSON if it cannot be read.
    """
    if not any(entry.graphql_arguments for entry in entries):
        return
    for field in forms.fields(text, pause):
        if field.name not in ("query", "variables", OPERATIONS) or field.start == field.end:
            continue
        value = forms.decoded(text[field.start : field.end])
        if field.name == "query":
            check_query(value.decode(), entries, pause)
            continue
        body = value if field.name == OPERATIONS else b'{"variables":' + value + b"}"
        check_json(body, entries, pause)
        if splice.spans_of(body, _anywhere(entries), pause=pause):
            raise Denied(
                Reason.GRAPHQL_LITERAL, "marked GraphQL variables stand in a URL or a form, where none is sealed"
            )


def check_query(query: str, entries: Sequence[FieldEntry], pause: Pause = never) -> frozenset[str]:
    """Check one query, and return the names of the variables that it gives to marked arguments.

    Args:
        query: the text of a GraphQL document.
        entries: what is marked.
        pause: called again and again meanwhile.

    Raises:
        Denied: as `proxy.core.fields.graphql.variables_of`.
    """
    from proxy.core.fields import graphql  # noqa: PLC0415  # the parser is large, and only such entries need it

    marked = frozenset[str]().union(*(entry.graphql_arguments for entry in entries))
    return graphql.variables_of(query, marked, pause=pause)


def check_json(text: bytes, entries: Sequence[FieldEntry], pause: Pause = never) -> None:
    """Check the queries of a GraphQL request, or of several in an array.

    Args:
        text: the JSON text.
        entries: what is marked; `graphql_arguments` of at least one names something.
        pause: called again and again meanwhile.

    Raises:
        Denied: GRAPHQL_LITERAL, if a marked argument is a literal, or a variable that is not marked; BODY_NOT_JSON or
            BODY_UNREADABLE, if it cannot be read.
    """
    used: set[str] = set()
    for span in splice.spans_of(text, _QUERIES, pause=pause):
        query = string_value(text[span.start : span.end])
        if query is not None:
            used |= check_query(query, entries, pause)
        elif text[span.start : span.end] != b"null":
            raise unreadable("a member `query` of a GraphQL request is no text")
    if not used:
        return
    marked = splice.spans_of(text, _anywhere(entries), pause=pause)
    for span in splice.spans_of(text, [_variables(frozenset(used))], pause=pause):
        is_covered = any(each.start <= span.end and span.start <= each.end for each in marked)
        if not is_covered and text[span.start : span.end] != b"null":
            raise Denied(
                Reason.GRAPHQL_LITERAL,
                "a marked argument of the GraphQL query takes its value from a variable that no selector marks",
                "select that variable: $.variables.NAME",
            )


def _anywhere(entries: Sequence[FieldEntry]) -> list[Marks]:
    """Return what entries mark, in one request and in each of an array."""
    return [each for entry in entries for each in (entry.marks, in_each(entry.marks))]


@lru_cache(maxsize=64)
def _variables(names: frozenset[str]) -> Marks:
    """Return what marks the variables with these names, of one request and of each in an array."""
    choices = tuple(sorted(names))
    text = f"$.variables[{','.join(choices)}]"  # a selector is known by it
    of_one = Marks((Selector(text, (Segment(False, ("variables",)), Segment(False, choices))),))
    return Marks((*of_one.selectors, *in_each(of_one).selectors))
