"""Kinds of bodies: what a body counts as, by its label and by itself, and what is found in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from proxy.core.decisions import Denied
from proxy.core.fields import responses
from proxy.core.fields.automaton import Marks
from proxy.core.fields.entries import FieldEntry, OtherBodies, Work
from proxy.core.fields.kinds import MAX_TEXTS, Kind, is_binary, is_patch, kind_of, splice_body, splice_text
from proxy.core.fields.multipart import MAX_PARTS
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.splice import Job, Spliced
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.reasons import Reason

KEYS = KeySet("app", Alg.A256KW, new_key(Alg.A256KW, kid="one"))
ENTRY = FieldEntry((parse_selector("$.ssn"),), KEYS)
WITH_FORM = replace(ENTRY, form=("ssn",))
GRAPHQL = FieldEntry((parse_selector("$.variables.ssn"),), KEYS, graphql_arguments=frozenset(("ssn",)))
FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"
SEEN: list[tuple[bytes, str]] = []


def splice(text: bytes, content_type: str | None, *entries: FieldEntry, most: int = 100) -> Spliced:
    SEEN.clear()

    def sealed(value: bytes, path: str) -> bytes:
        SEEN.append((value, path))
        return b'"T"'

    types = [] if content_type is None else [content_type]
    entries = entries or (ENTRY,)
    spliced = splice_body(text, types, entries, [Job(entry.marks, sealed) for entry in entries], most)
    is_text = kind_of(types, text) in (Kind.FORM, Kind.MULTIPART) and not re.search(b'operations|"data"', text)
    expected = text  # what is said of the places is right, whatever the kind
    for span in reversed(spliced.spans):
        token = b"T" if is_text else b'\\"T\\"' if span.depth else b'"T"'
        expected = expected[: span.start] + token + expected[span.end :]
    assert spliced.body == expected
    return spliced


def reason_of(text: bytes, content_type: str | None, *entries: FieldEntry, most: int = 100) -> Reason:
    with pytest.raises(Denied) as denied:
        splice(text, content_type, *entries, most=most)
    return denied.value.reason


def part(name: str, value: bytes, more: str = "") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more.encode(), value)


JSON_TYPES = (
    *("application/json", "Application/JSON ; charset=utf-8", "text/json", "application/x-json"),
    *("application/x-amz-json-1.1", "application/vnd.api+json", "application/problem+json", "application/json-rpc"),
    *("application/merge-patch+json", "application/graphql+json", "application/cloudevents-batch+json"),
)
LINES_TYPES = (
    *(
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonl",
        "application/jsonlines",
    ),
    *("application/json-lines", "application/x-jsonlines", "application/stream+json", "application/x-json-stream"),
    *("application/json-l", "application/x-nd-json", "text/x-ndjson", "application/ldjson", "application/json-stream"),
    *("application/vnd.elasticsearch+x-ndjson; compatible-with=8", "application/vnd.example+jsonl"),
)


class TestKinds:
    @pytest.mark.parametrize("content_type", JSON_TYPES)
    def test_json_has_many_labels(self, content_type: str) -> None:
        assert kind_of([content_type], b"x") is Kind.JSON

    @pytest.mark.parametrize("content_type", LINES_TYPES)
    def test_so_have_lines(self, content_type: str) -> None:
        assert kind_of([content_type], b"x") is Kind.LINES
        assert responses.label_of([content_type]) is responses.Label.LINES

    @pytest.mark.parametrize(
        ("content_type", "kind"),
        [
            ("application/json-seq", Kind.SEQUENCE),
            ("application/geo+json-seq", Kind.SEQUENCE),
            ("application/x-json-seq", Kind.SEQUENCE),
            ("application/json-patch+json", Kind.PATCH),
            ("application/x-www-form-urlencoded; charset=UTF-8", Kind.FORM),
            ("multipart/form-data; boundary=x", Kind.MULTIPART),
            ("multipart/mixed; boundary=x", Kind.OTHER),
            ("application/graphql", Kind.GRAPHQL),
            ("text/plain", Kind.OTHER),
            ("x", Kind.OTHER),
            ("application/json, text/plain", Kind.JSON),
        ],
    )
    def test_other_kinds(self, content_type: str, kind: Kind) -> None:
        assert kind_of([content_type], b"x=1") is kind
        assert kind_of([], b"x=1") is Kind.OTHER

    @pytest.mark.parametrize(
        "content_type", [None, "text/plain", "application/octet-stream", FORM, "x", "application/graphql"]
    )
    @pytest.mark.parametrize("text", [b'{"ssn":1}', b' \r\n[{"a":1}]', b'"x"'])
    def test_what_is_json_is_json_whatever_its_label_says(self, content_type: str | None, text: bytes) -> None:
        assert kind_of([content_type] if content_type else [], text) is Kind.JSON

    @pytest.mark.parametrize("text", [b"12", b"true", b" null "])
    def test_so_is_a_json_text_without_names(self, text: bytes) -> None:
        assert kind_of(["text/plain"], text) is Kind.JSON
        assert kind_of([FORM], text) is Kind.FORM

    @pytest.mark.parametrize(
        "content_type",
        ["image/png", "application/grpc+proto", "application/x-protobuf", "application/vnd.google.protobuf", "Video/a"],
    )
    def test_binary_formats_are_not_looked_into(self, content_type: str) -> None:
        assert is_binary([content_type])
        assert kind_of([content_type], b'\n"{') is Kind.OTHER

    def test_others_are(self) -> None:
        assert not any(map(is_binary, ([], ["image/png", "text/plain"], ["application/json"], ["text/plain"])))

    @pytest.mark.parametrize(
        "content_type", ["multipart/form-data, a/b", "x multipart/form-data", "x-www-form-urlencoded"]
    )
    def test_a_label_in_which_some_servers_see_a_form_is_denied(self, content_type: str) -> None:
        assert reason_of(b"ssn=1", content_type) is Reason.BODY_UNREADABLE


class TestJson:
    @pytest.mark.parametrize("content_type", [*JSON_TYPES, "text/plain", FORM, None])
    def test_marked_values_are_found(self, content_type: str | None) -> None:
        assert splice(b'{"a":2,"ssn":1}', content_type).body == b'{"a":2,"ssn":"T"}'
        assert SEEN == [(b"1", "$.ssn")]

    def test_json_labelled_as_a_form_may_not_be_a_form_with_a_marked_field(self) -> None:
        assert splice(b'{"ssn":"a&b=1"}', FORM, WITH_FORM).total == 1
        assert splice(b'{"ssn":"a&ssn=1"}', FORM, ENTRY).total == 1
        assert reason_of(b'{"x":"a&ssn=1"}', FORM, WITH_FORM) is Reason.BODY_UNREADABLE

    @pytest.mark.parametrize("text", [b"ssn=1", b"{", b"\x1f\x8b"])
    def test_what_is_labelled_as_json_and_is_none_is_denied(self, text: bytes) -> None:
        assert reason_of(text, "application/json") is Reason.BODY_NOT_JSON

    @pytest.mark.parametrize("content_type", ["text/plain", FORM, None, "application/graphql"])
    def test_so_is_what_begins_like_json(self, content_type: str | None) -> None:
        passing = replace(ENTRY, other_bodies=OtherBodies.PASS)
        if content_type == "application/graphql":
            assert splice(b"{ssn}", content_type, passing).total == 0
        else:
            assert reason_of(b"{ssn}", content_type, passing) is Reason.BODY_NOT_JSON

    def test_an_array_of_requests_is_looked_into(self) -> None:
        entry = replace(ENTRY, selectors=(parse_selector("$.params.ssn"), parse_selector("$..pin")))
        text = b' [{"jsonrpc":"2.0","params":{"ssn":1}},{"params":{"ssn":2,"pin":3}},{"jsonrpc":"2.0"}]'
        assert splice(text, "application/json", entry).total == 3
        assert SEEN == [(b"1", "$[*].params.ssn"), (b"2", "$[*].params.ssn"), (b"3", "$[*].params.pin")]

    def test_another_array_is_not(self) -> None:
        assert splice(b'[{"ssn":1}]', "application/json").total == 0
        assert splice(b'[{"ssn":1,"method":"x"}]', "application/json").total == 1
        assert splice(b'[[{"method":1}],{"ssn":1}]', "application/json").total == 0

    def test_an_array_that_is_no_json_is_denied(self) -> None:
        assert reason_of(b'[{"method":1}', "application/json") is Reason.BODY_NOT_JSON

    def test_an_array_of_more_than_can_be_looked_at_is_denied(self) -> None:
        text = b"[%s]" % b",".join([b'{"method":1,"params":{}}'] * 50_001)
        assert reason_of(text, "application/json") is Reason.BODY_TOO_LARGE

    def test_so_is_what_stands_in_a_string_of_a_request(self) -> None:
        entry = replace(ENTRY, inside=(parse_selector("$.params"),))
        text = b'[{"method":"a","params":"{\\"ssn\\":1}"}]'
        assert splice(text, "application/json", entry).counts == (1,)
        assert SEEN == [(b"1", "$[*].params$.ssn")]
        everything = replace(ENTRY, inside=(parse_selector("$"),))
        assert reason_of(text, "application/json", everything) is Reason.BODY_NOT_JSON

    def test_all_of_it_may_be_marked(self) -> None:
        entry = replace(ENTRY, selectors=(parse_selector("$"),))
        assert splice(b'[{"method":1}]', "application/json", entry).body == b'"T"'


class TestTexts:
    @pytest.mark.parametrize("content_type", LINES_TYPES)
    def test_each_line_is_a_text(self, content_type: str) -> None:
        text = b'{"ssn":1}\r\n\n{"a":1}\n[{"jsonrpc":"2.0","ssn":{ }}]\n {"ssn":2}'
        assert (
            splice(text, content_type).body == b'{"ssn":"T"}\r\n\n{"a":1}\n[{"jsonrpc":"2.0","ssn":"T"}]\n {"ssn":"T"}'
        )
        assert [path for _, path in SEEN] == ["$.ssn", "$[*].ssn", "$.ssn"]

    def test_so_is_each_record(self) -> None:
        text = b'\x1e{"ssn":1}\n\x1e\x1e{"ssn":\n2}'
        assert splice(text, "application/json-seq").body == b'\x1e{"ssn":"T"}\n\x1e\x1e{"ssn":"T"}'.replace(
            b':"T"}', b':\n"T"}'
        ).replace(b':\n"T"}\n', b':"T"}\n')

    @pytest.mark.parametrize("text", [b'{"ssn":\n1}', b'{"ssn":1}{"ssn":2}\n', b'{"ssn":1}\r{"ssn":2}\n', b"{}\n{"])
    def test_a_line_that_is_no_text_is_denied(self, text: bytes) -> None:
        assert reason_of(text, "application/x-ndjson") is Reason.BODY_NOT_JSON

    def test_their_number_is_limited(self) -> None:
        assert splice(b"1\n" * MAX_TEXTS, "application/x-ndjson").total == 0
        assert reason_of(b"1\n" * (MAX_TEXTS + 1), "application/x-ndjson") is Reason.BODY_TOO_LARGE
        assert reason_of(b"\x1e1" * (MAX_TEXTS + 1), "application/json-seq") is Reason.BODY_TOO_LARGE
        assert reason_of(b'{"ssn":1}\n' * 3, "application/x-ndjson", most=2) is Reason.BODY_TOO_LARGE


class TestPatches:
    PATCH = b'[{"op":"add","path":"/ssn","value":1},{"op":"remove","path":"/a"}]'

    @pytest.mark.parametrize("content_type", ["application/json-patch+json", "application/json", None])
    def test_what_will_stand_at_a_marked_place_is_found(self, content_type: str | None) -> None:
        assert splice(self.PATCH, content_type).body == self.PATCH.replace(b":1", b':"T"')
        assert SEEN == [(b"1", "$.ssn")]

    def test_an_array_that_only_looks_like_one_is_no_patch(self) -> None:
        entry = replace(ENTRY, selectors=(parse_selector("$[*].value"),))
        assert splice(self.PATCH.replace(b"path", b"pat"), "application/json", entry).total == 1
        assert splice(self.PATCH, "application/json", entry).total == 1
        assert SEEN == [(b"1", "$[*].value")]

    def test_what_is_marked_in_both_readings_is_denied(self) -> None:
        entry = replace(ENTRY, selectors=(parse_selector("$[*].value"), parse_selector("$.ssn")))
        assert reason_of(self.PATCH, "application/json", entry) is Reason.BODY_UNREADABLE
        assert splice(self.PATCH, "application/json-patch+json", entry).total == 1

    @pytest.mark.parametrize("text", [b"{}", b"1", b"[1]", b'[{"op":"add"}]'])
    def test_what_is_labelled_as_one_is_one(self, text: bytes) -> None:
        if text in (b"{}", b"1"):
            text = b"[%s]" % text
        assert reason_of(text, "application/json-patch+json") is Reason.BODY_UNREADABLE

    def test_what_is_no_array_is_denied(self) -> None:
        assert reason_of(b'{"ssn":1}', "application/json-patch+json") is Reason.BODY_UNREADABLE
        assert reason_of(b"[", "application/json-patch+json") is Reason.BODY_NOT_JSON

    @pytest.mark.parametrize("name", [b"ssn", b"values", b"a b"])
    def test_a_marked_member_beside_those_of_an_operation_is_denied(self, name: bytes) -> None:
        entry = replace(ENTRY, selectors=(parse_selector("$..ssn"),))
        text = b'[{"op":"add","path":"/x","value":{"ssn":1},"%s":%s}]'
        label = "application/json-patch+json"
        assert (
            reason_of(text % (name, b"1" if name == b"ssn" else b'{"ssn":1}'), label, entry) is Reason.BODY_UNREADABLE
        )
        assert splice(text % (name.upper(), b'{"n":1}'), label, entry).total == 1

    @pytest.mark.parametrize("outer", ["$", "$[*]", "$[0]", "$..*", "$[0:1]"])
    @pytest.mark.parametrize("name", [b"ssn", b"value-2", b"valued", b"values", b"valu\xc3\xa9", b"value\xc3\xa9", b""])
    def test_also_one_in_an_operation_that_is_marked_whole(self, outer: str, name: bytes) -> None:
        """A selector that takes the whole operation hides what others select in it."""
        entry = replace(ENTRY, selectors=(parse_selector(outer), parse_selector("$..ssn")))
        label = "application/json-patch+json"
        text = b'[{"op":"add","path":"/x","value":1%s}]'
        assert reason_of(text % b',"%s":"078"' % name, label, entry) is Reason.BODY_UNREADABLE
        assert splice(text % b',"from":"/x"', label, entry).total >= 0

    def test_but_not_in_another_one(self) -> None:
        entry = replace(ENTRY, selectors=(parse_selector("$[0]"),))
        text = b'[{"op":"add","path":"/x","value":1},{"op":"add","path":"/y","value":1,"ssn":"free"}]'
        assert splice(text, "application/json-patch+json", entry).body == text

    def test_in_a_response_only_the_label_tells_of_one(self) -> None:
        for content_type in ("application/json", "text/plain", None):
            types = [content_type] if content_type else []
            jobs = [Job(ENTRY.marks, lambda _value, _path: b'"T"')]
            assert splice_body(self.PATCH, types, [ENTRY], jobs, 9, of_request=False).body == self.PATCH
        label = ["application/json-patch+json; charset=utf-8"]
        assert splice_body(self.PATCH, label, [ENTRY], jobs, 9, of_request=False).total == 1
        odd = b'[{"op":"read","path":"C:","ssn":1}]'
        assert splice_body(odd, ["application/json"], [ENTRY], jobs, 9, of_request=False).total == 0  # it is $.ssn
        batch = b'[{"op":"add","path":"/ssn","value":1,"result":{}},{"result":1,"ssn":2}]'
        assert splice_body(batch, ["application/json"], [ENTRY], jobs, 9, of_request=False).total == 1

    def test_a_response_is_opened_as_one_if_it_can_be_read_as_one_and_else_as_it_is(self) -> None:
        jobs = [Job(Marks((parse_selector("$.ssn"), parse_selector("$[*].ssn"))), lambda _value, _path: b'"T"')]

        def opened(text: bytes) -> bytes:
            return splice_text(text, jobs, is_labelled=True).body

        assert opened(self.PATCH) == self.PATCH.replace(b":1", b':"T"')
        assert splice_text(self.PATCH, jobs).body == self.PATCH
        for text in (
            b'[{"op":"add","path":"/x","value":1,"ssn":2}]',
            b'[{"op":"add","path":"x","value":1,"ssn":2}]',
            b'[%s{"ssn":2}]' % (b'{"path":""},' * 2001),
            b'{"ssn":2}',
        ):
            assert opened(text) == text.replace(b'"ssn":2', b'"ssn":"T"')
        with pytest.raises(Denied) as denied:
            opened(b"[")
        assert denied.value.reason is Reason.BODY_NOT_JSON

    @pytest.mark.parametrize(
        ("content_types", "is_one"),
        [
            (["application/json-patch+json"], True),
            (["Application/JSON-Patch+json ; charset=utf-8"], True),
            (["application/merge-patch+json"], False),
            (["application/json-patch+json, text/plain"], False),
            (["application/json-patch+json"] * 2, False),
            (["/"], False),
            ([], False),
        ],
    )
    def test_its_label_is_the_only_one(self, content_types: list[str], is_one: bool) -> None:
        assert is_patch(content_types) is is_one

    @pytest.mark.parametrize("text", [b'"078-05-1120"', b" 7", b"{}"])
    def test_what_is_no_array_is_no_patch_and_could_not_be_sealed(self, text: bytes) -> None:
        with pytest.raises(Denied) as denied:
            splice(text, "application/json-patch+json", replace(ENTRY, selectors=(parse_selector("$"),)))
        assert denied.value.reason is Reason.BODY_UNREADABLE


class TestForms:
    def test_marked_fields_are_found(self) -> None:
        assert splice(b"ssn=1&a=2", FORM, WITH_FORM).body == b"ssn=T&a=2"
        assert SEEN == [(b'"1"', "$.ssn")]

    def test_parts_are_found(self) -> None:
        text = part("ssn", b"1") + part("a", b"2") + b"--b--\r\n"
        assert splice(text, MULTIPART, WITH_FORM).body == part("ssn", b"T") + part("a", b"2") + b"--b--\r\n"
        assert SEEN == [(b'"1"', "$.ssn")]
        assert splice(part("a", b"2") + b"--b--\r\n", MULTIPART, WITH_FORM).total == 0

    def test_their_number_is_limited(self) -> None:
        text = part("ssn", b"1") * 3 + b"--b--\r\n"
        assert reason_of(text, MULTIPART, WITH_FORM, most=2) is Reason.BODY_TOO_LARGE

    @pytest.mark.parametrize("name", ["s.sn", "s_sn[]", "s_sn%20", "%73_sn"])
    def test_a_name_that_may_be_a_marked_one_is_denied(self, name: str) -> None:
        entry = replace(WITH_FORM, form=("s_sn",))
        assert reason_of(part(name, b"1") + b"--b--", MULTIPART, entry) is Reason.BODY_UNREADABLE
        assert splice(part("100%", b"1") + b"--b--", MULTIPART, entry).total == 0

    @pytest.mark.parametrize(
        "text",
        [
            part("ssn", b"\xff"),
            part("ssn", b"1", '; filename="x"'),
            part("ssn", b"1", "\r\nContent-Type: text/plain; charset=utf-16"),
            part("_charset_", b"latin-1"),
        ],
    )
    def test_a_marked_part_that_is_no_text_is_denied(self, text: bytes) -> None:
        assert reason_of(text + b"--b--", MULTIPART, WITH_FORM) is Reason.BODY_UNREADABLE
        assert splice(text.replace(b"ssn", b"nss").replace(b"latin-1", b"utf-8") + b"--b--", MULTIPART, WITH_FORM)

    def test_what_takes_the_place_of_a_part_never_forges_another(self) -> None:
        text = part("ssn", b"token") + b"--b--"
        for value in ("x\r\n--b\r\n", "--b", "fine"):
            job = Job(Marks(()), lambda _value, _path, value=value: json.dumps(value).encode())  # type: ignore[misc]
            if value == "fine":
                assert b"fine" in splice_body(text, [MULTIPART], [WITH_FORM], [job], 9).body
            else:
                with pytest.raises(Denied) as denied:
                    splice_body(text, [MULTIPART], [WITH_FORM], [job], 9)
                assert denied.value.reason is Reason.BODY_UNREADABLE

    def test_a_value_that_stays_is_not_counted(self) -> None:
        text = part("ssn", b"1") + b"--b--"
        spliced = splice_body(text, [MULTIPART], [WITH_FORM], [Job(Marks(()), lambda _value, _path: None)], 9)
        assert (spliced.body, spliced.total) == (text, 0)


class TestOtherBodies:
    BODIES = (
        ("text/plain", b"ssn=1"),
        (None, b"<ssn/>"),
        (FORM, b"ssn=1"),
        (MULTIPART, part("ssn", b"1") + b"--b--"),
        ("application/graphql", b"{a}"),
        ("multipart/mixed; boundary=b", b'--b\r\n\r\n{"ssn":1}\r\n--b--'),
        ("image/png", b'{"ssn":1}'),
    )

    @pytest.mark.parametrize(("content_type", "text"), BODIES)
    def test_they_are_denied_or_pass_as_the_entry_says(self, content_type: str | None, text: bytes) -> None:
        passing = replace(ENTRY, other_bodies=OtherBodies.PASS)
        opening = replace(ENTRY, work=Work.DECRYPT)
        assert reason_of(text, content_type) is Reason.BODY_NOT_JSON
        assert reason_of(text, content_type, passing, ENTRY) is Reason.BODY_NOT_JSON
        for entry in (passing, opening):
            assert splice(text, content_type, entry).body is text

    def test_an_entry_that_passes_a_form_leaves_it_to_another(self) -> None:
        passing = replace(ENTRY, other_bodies=OtherBodies.PASS)
        assert splice(b"ssn=1", FORM, passing, WITH_FORM).counts == (0, 1)


class TestGraphql:
    GOOD = b'{"query":"query($s:S){a(ssn:$s)}","variables":{"ssn":1,"s":null}}'

    @pytest.mark.parametrize(
        "text",
        [
            GOOD,
            b'{"query":"{a(ssn:$ssn)}","variables":{"ssn":1}}',
            b'{"query":null,"variables":{"ssn":1}}',
            b'{"extensions":{"persistedQuery":{"sha256Hash":"x"}},"variables":{"ssn":1}}',
            b'[{"query":"{a(ssn:$ssn)}","variables":{"ssn":1}},{"query":"{a}"}]',
            b'{"query":"{a(ssn:{x:$ssn})}","variables":{"ssn":[1]}}',
            b'{"query":"{a(ssn:$x)}","variables":{"y":1,"ssn":2}}',
        ],
    )
    def test_variables_are_sealed(self, text: bytes) -> None:
        assert splice(text, "application/json", GRAPHQL).total == 1

    def test_a_part_of_a_variable_that_is_marked_will_do(self) -> None:
        entry = replace(GRAPHQL, selectors=(parse_selector("$.variables.in.no"),))
        text = b'{"query":"{a(ssn:$in)}","variables":{"in":{"no":1}}}'
        assert splice(text, "application/json", entry).total == 1

    def test_a_body_that_is_a_query(self) -> None:
        assert splice(b"{a(ssn:$x)}", "application/graphql", GRAPHQL).total == 0
        assert reason_of(b"{a(ssn:1)}", "application/graphql", GRAPHQL) is Reason.GRAPHQL_LITERAL
        assert reason_of(b"\xff", "application/graphql", GRAPHQL) is Reason.BODY_UNREADABLE

    @pytest.mark.parametrize(
        ("text", "content_type"),
        [
            (b'{"query":"{a(ssn:1)}"}', "application/json"),
            (b"query=%7Ba(ssn:1)%7D", FORM),
            (part("query", b"{a(ssn:1)}") + b"--b--", MULTIPART),
            (part("variables", b'{"ssn":1}') + b"--b--", MULTIPART),
            (part("operations", b'{"query":"{a(ssn:1)}"}') + b"--b--", MULTIPART),
        ],
    )
    def test_a_query_is_looked_into_in_each_kind_of_body(self, text: bytes, content_type: str) -> None:
        assert reason_of(text, content_type, GRAPHQL) is Reason.GRAPHQL_LITERAL
        assert splice(text.replace(b"ssn", b"nss"), content_type, GRAPHQL).total == 0

    @pytest.mark.parametrize(
        ("more", "text", "places"),
        [
            ("\r\nContent-Type: application/json", b'{"ssn":1,"x":[{"ssn":2}]}', ["$.ssn"]),
            ('; filename="blob"\r\nContent-Type: application/vnd.api+json', b'{"ssn":1}', ["$.ssn"]),
            ("\r\ncontent-type:application/x-ndjson", b'{"ssn":1}\n{"ssn":2}', ["$.ssn", "$.ssn"]),
            ("\r\nContent-Type: application/json-patch+json", b'[{"op":"add","path":"/ssn","value":1}]', ["$.ssn"]),
            ("\r\nContent-Type: application/json", b'[{"method":"a","ssn":1}]', ["$[*].ssn"]),
            ("\r\nContent-Type: application/json", b"", []),
            ("\r\nContent-Type: text/plain", b'{"ssn":1}', []),
            ('; filename="a.json"', b'{"ssn":1}', []),
        ],
    )
    @pytest.mark.parametrize("work", Work)
    def test_a_part_that_says_it_is_json_is_a_body_of_its_own(
        self, more: str, text: bytes, places: list[str], work: Work
    ) -> None:
        body = part("a", b"json") + part("data", text, more) + b"--b--"
        assert splice(body, MULTIPART, replace(WITH_FORM, work=work)).total == len(places)
        assert [path for _, path in SEEN] == places

    @pytest.mark.parametrize(
        ("content_type", "text", "reason"),
        [
            ("application/json", b"{", Reason.BODY_NOT_JSON),
            ("application/json; charset=utf-16", b'{"ssn":1}', Reason.BODY_UNREADABLE),
            ("application/json", b'{"ssn":1,"a":{"ssn":[' + b"1," * 20 + b"2]}}", Reason.BODY_TOO_LARGE),
        ],
    )
    def test_it_is_sealed_or_denied_as_such(self, content_type: str, text: bytes, reason: Reason) -> None:
        entry = replace(WITH_FORM, selectors=(parse_selector("$..ssn"), parse_selector("$.a.ssn[*]")))
        body = part("data", text, f"\r\nContent-Type: {content_type}") + b"--b--"
        assert reason_of(body, MULTIPART, entry, most=1) is reason

    @pytest.mark.parametrize("at", [0, 1])
    def test_behind_a_mirror_none_passes_that_cannot_be_read(self, at: int) -> None:
        """Whether `form` is said or not: another part may hold what must be opened."""
        parts = [part("x", b'{"ssn":"token"}', "\r\nContent-Type: application/json")]
        parts.insert(at, part("y", b"{", "\r\nContent-Type: application/json"))
        for entry in (ENTRY, WITH_FORM):
            reason = reason_of(b"".join((*parts, b"--b--")), MULTIPART, replace(entry, work=Work.DECRYPT))
            assert reason is Reason.BODY_NOT_JSON

    def test_nor_one_of_too_many_parts(self) -> None:
        mirror = replace(ENTRY, work=Work.DECRYPT)
        text = part("a", b"1") * (MAX_PARTS + 1) + b"--b--"
        assert reason_of(text, MULTIPART, mirror) is Reason.BODY_TOO_LARGE

    def test_by_a_marked_name_it_is_sealed_as_a_whole(self) -> None:
        body = part("ssn", b'{"ssn":1}', "\r\nContent-Type: application/json") + b"--b--"
        assert splice(body, MULTIPART, WITH_FORM).total == 1
        assert SEEN == [(b'"{\\"ssn\\":1}"', "$.ssn")]

    def test_a_mirror_opens_the_operations_of_an_upload(self) -> None:
        text = part("operations", b'{"variables":{"ssn":"token"}}') + part("0", b"\xff") + b"--b--"
        mirror = replace(GRAPHQL, work=Work.DECRYPT, graphql_arguments=frozenset())
        assert splice(text, MULTIPART, mirror).total == 1
        assert splice(text.replace(b"operations", b"other"), MULTIPART, mirror).total == 0
        assert reason_of(b"x" + text, MULTIPART, mirror) is Reason.BODY_UNREADABLE
        assert reason_of(text, "multipart/form-data", mirror) is Reason.BODY_UNREADABLE
        with pytest.raises(Denied):
            splice(text, MULTIPART, mirror, most=0)

    def test_an_upload_is_sealed_in_its_operations(self) -> None:
        text = part("operations", b'{"query":"{a(ssn:$ssn)}","variables":{"f":null,"ssn":1}}') + part("map", b"{}")
        text += part("0", b"\xff", '; filename="x"') + b"--b--\r\n"
        assert splice(text, MULTIPART, GRAPHQL).total == 1
        assert SEEN == [(b"1", "$.variables.ssn")]
