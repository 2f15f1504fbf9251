"""Readings: what servers take a request for, whatever its request line says, and what they do not.

Proves ARCHITECTURE's rule 1 for `when`: what may be read as a marked request is one.
"""

from __future__ import annotations

import pytest

from proxy.core.fields.entries import PathGlob, When
from proxy.core.fields.readings import (
    MOST_NAMED,
    Readings,
    may_be_any_method,
    may_name_method,
    readings,
    spellings,
    with_body,
)

PUT_PAY = When(frozenset({"PUT"}), (PathGlob.parse("/v1/pay"),))
FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/json"


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/", {"/"}),
            ("/v1/a", {"/v1/a"}),
            ("/v1/a/", {"/v1/a/", "/v1/a"}),
            ("/v1/%61", {"/v1/%61", "/v1/a"}),
            ("/v1/a.json", {"/v1/a.json", "/v1/a"}),
            ("/v1/a.JSON", {"/v1/a.JSON", "/v1/a"}),
            ("/v1/a.json/", {"/v1/a.json/", "/v1/a.json", "/v1/a"}),
            ("/v1/a/.json", {"/v1/a/.json", "/v1/a/", "/v1/a"}),
            ("/.json", {"/.json", "/"}),
            ("/v1/a%20", {"/v1/a%20", "/v1/a ", "/v1/a"}),
            ("/v1/a.%20.", {"/v1/a.%20.", "/v1/a. .", "/v1/a.%20", "/v1/a"}),
            ("/v1/%20a/b+", {"/v1/%20a/b+", "/v1/ a/b+", "/v1/%20a/b", "/v1/a/b"}),
            ("/v1/a%3Fb", {"/v1/a%3Fb", "/v1/a?b", "/v1/a"}),
            ("/m%C3%BCller", {"/m%C3%BCller", "/müller"}),
            ("/%C3%BC%20a", {"/%C3%BC%20a", "/ü a"}),
            ("/%EF%BD%81", {"/%EF%BD%81", "/\uff41", "/a"}),  # full-width
            ("/a%EF%BC%8Fb", {"/a%EF%BC%8Fb", "/a\uff0fb", "/a/b"}),
        ],
    )
    def test_they_have_every_spelling_that_a_server_may_read(self, path: str, expected: set[str]) -> None:
        found = spellings(path)
        assert found is not None
        assert set(found) == expected
        assert found[0] == path

    @pytest.mark.parametrize(
        "path",
        [
            *("/v1/pay%0a", "/v1/pay%0D", "/v1/pay%00", "/v1/pay%00.png", "/v1/pay%09", "/v1/pay%7f", "/v1%1f/pay"),
            *("/v1//pay", "/v1/./pay", "/x/../v1/pay", "/v1/pay;x", "/v1%2fpay", "/v1%2Fpay", "/v1%5cpay", "/v1\\pay"),
            *("/v1/p%2561y", "/v1/pay%3bx", "/v1/%2e/pay", "/v1/pay%", "/v1/pay%u0041", "/v1/pay%6", "/v1/%zz"),
            *("/v1/%c0%aepay", "/v1%c0%afpay", "/v1/%ff", "/v1/%e0%80%af", "/v1/%ed%a0%80"),
            *("/v1/%e2%80%8bpay", "/v1/pay%c2%a0", "/v1/pay%c2%85", "/v1/pay%ef%bc%9bx"),
            *("/v1/pay%ef%bc%85", "/v1/%ef%bc%8e%ef%bc%8e/pay", "/v1/.../pay", "/v1/%20/pay", "v1/pay", "*", ""),
        ],
    )
    def test_one_that_servers_read_in_different_ways_may_be_any(self, path: str) -> None:
        assert spellings(path) is None
        assert readings("GET", path).paths is None

    @pytest.mark.parametrize(
        "name", ["X-Original-URL", "X-ORIGINAL-URL", "x-rewrite-url", "X_Original_Url", "X-Forwarded-Uri"]
    )
    def test_they_may_stand_in_fields(self, name: str) -> None:
        def found(value: bytes) -> Readings:
            return readings("PUT", "/other", fields=((b"Accept", b"*/*"), (name.encode(), value)))

        for value in (b"/v1/pay", b"/v1/pay?x=1", b"https://a.example/v1/pay#f", b"v1/pay", b"/v1/p%61y/", b"\xff"):
            assert PUT_PAY.applies(found(value)), value
        assert not PUT_PAY.applies(found(b"/v1/other"))  # the twin
        assert found(b"/v1/other").paths == found(b"https://a.example/v1/other").paths == ("/other", "/v1/other")

    def test_a_prefix_may_be_cut_off_by_who_has_added_it(self) -> None:
        fields = ((b"X-Forwarded-Prefix", b"/v1/"),)
        assert readings("PUT", "/pay", fields=fields).paths == ("/pay", "/v1/pay")
        assert not PUT_PAY.applies(readings("PUT", "/pay"))

    def test_where_more_are_named_than_anybody_means_it_may_be_any(self) -> None:
        def found(prefixes: int, paths: int) -> Readings:
            fields = tuple((b"X-Forwarded-Prefix", b"/%d" % each) for each in range(prefixes))
            fields += tuple((b"X-Original-URL", b"/a/%d" % each) for each in range(paths))
            return readings("PUT", "/a", fields=fields)

        for prefixes, paths in ((0, MOST_NAMED - 1), (MOST_NAMED - 1, 0), (3, 3)):  # and the path, behind no prefix
            assert not PUT_PAY.applies(found(prefixes, paths))
        for prefixes, paths in ((0, MOST_NAMED), (MOST_NAMED, 0), (4, 3)):
            assert found(prefixes, paths).paths is None

    def test_other_fields_say_nothing_of_it(self) -> None:
        fields = ((b"Original-URL", b"/v1/pay"), (b"X-Original", b"/v1/pay"), (b"Referer", b"/v1/pay"))
        assert readings("PUT", "/other", fields=fields).paths == ("/other",)


class TestMethods:
    @pytest.mark.parametrize(
        "name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "x_http_method_override"]
    )
    @pytest.mark.parametrize(
        ("value", "methods"),
        [
            (b"PUT", {"POST", "PUT"}),
            (b" put ", {"POST", "PUT"}),
            (b"GET, put", {"POST", "GET", "PUT"}),
            (b"VERSION-CONTROL", {"POST", "VERSION-CONTROL"}),
            (b"", {"POST"}),
            (b"PUT;q=1", None),
            (b'"PUT"', None),
        ],
    )
    def test_they_may_stand_in_fields(self, name: str, value: bytes, methods: set[str] | None) -> None:
        found = readings("post", "/v1/pay", fields=((name.encode(), value),)).methods
        assert found == methods

    @pytest.mark.parametrize(
        ("query", "methods"),
        [
            ("_method=put", {"POST", "PUT"}),
            ("a=1&_method=PUT&b", {"POST", "PUT"}),
            ("a=1;_method=PUT", {"POST", "PUT"}),
            ("%5Fmethod=PUT", {"POST", "PUT"}),
            ("_%6dethod=%50UT", {"POST", "PUT"}),
            (".method=PUT", {"POST", "PUT"}),
            ("_method[]=PUT", {"POST", "PUT"}),
            ("_METHOD=PUT", {"POST", "PUT"}),
            ("X-HTTP-Method-Override=PUT", {"POST", "PUT"}),
            ("x_method_override=PUT", {"POST", "PUT"}),
            ("_method=P%55T%00", None),
            ("_method", {"POST"}),
            ("method=PUT", {"POST"}),
            ("payment_method=PUT", {"POST"}),
            ("x=_method=PUT", {"POST"}),
            ("_methods=PUT", {"POST"}),
        ],
    )
    def test_they_may_stand_in_the_query_or_in_a_form(self, query: str, methods: set[str] | None) -> None:
        assert readings("POST", "/v1/pay", query).methods == methods
        assert readings("POST", "/", fields=((b"X-Original-URL", b"/v1/pay?" + query.encode()),)).methods == methods
        by_head = readings("POST", "/v1/pay")
        assert with_body(by_head, query.encode(), [FORM]).methods == methods

    @pytest.mark.parametrize(
        ("name", "asks"),
        [
            ('name="_method"', True),
            ("name=_method", True),
            ('NAME="_METHOD"', True),
            ("name*=utf-8''%5Fmethod", True),
            ('name="\\_method"', True),
            ('name="_method[]"', True),
            ('name="X-HTTP-Method-Override"', True),
            ('x=y;\r\n name="_method"', True),
            ('name="method"', False),
            ('name="payment_methods"', False),
            ('name="file"; filename="_method"', False),
        ],
    )
    def test_they_may_stand_in_a_part(self, name: str, asks: bool) -> None:
        body = f"--b\r\nContent-Disposition: form-data; {name}\r\n\r\nPUT\r\n--b--\r\n".encode()
        found = with_body(readings("POST", "/v1/pay"), body, [MULTIPART]).methods
        assert found == (None if asks else {"POST"})

    @pytest.mark.parametrize(
        ("body", "methods"),
        [
            (b'{"_method":"put","x":1}', {"POST", "PUT"}),
            (b'{"\\u005fmethod":"PUT"}', {"POST", "PUT"}),
            (b'{"_method":"PUT","_method":"PATCH"}', {"POST", "PUT", "PATCH"}),
            (b'{"_method":["PUT"]}', None),
            (b'{"_method":"PUT",}', None),
            (b'{"a":{"_method":"PUT"}}', {"POST"}),
            (b'{"method":"PUT"}', {"POST"}),
            (b'{"a":"_method"', None),
            (b"[", {"POST"}),
        ],
    )
    def test_they_may_stand_in_json(self, body: bytes, methods: set[str] | None) -> None:
        assert with_body(readings("POST", "/v1/pay"), body, [JSON]).methods == methods

    def test_what_is_no_json_and_does_not_say_so_asks_for_nothing(self) -> None:
        assert with_body(readings("POST", "/"), b'a="_method"', [FORM]).methods == frozenset({"POST"})

    def test_where_more_are_named_than_anybody_means_it_may_be_any(self) -> None:
        def named(count: int) -> str:
            return "&".join(f"_method={'A' * each}" for each in range(1, count + 1))

        post = readings("POST", "/")
        for count, is_any in ((MOST_NAMED - 1, False), (MOST_NAMED, True)):  # and POST
            assert (readings("POST", "/", named(count)).methods is None) is is_any
            assert (with_body(post, named(count).encode(), [FORM]).methods is None) is is_any

    @pytest.mark.parametrize(
        ("types", "may"),
        [
            ([], True),
            ([""], True),
            ([FORM], True),
            ([MULTIPART], True),
            (["application/vnd.x+json"], True),
            (["text/plain", "text/html"], True),
            (["application/octet-stream"], False),
            (["text/plain; charset=utf-8"], False),
        ],
    )
    def test_some_kinds_of_bodies_are_looked_into(self, types: list[str], may: bool) -> None:
        assert may_name_method(types) is may

    def test_what_may_ask_for_any_method_applies_at_its_path(self) -> None:
        found = readings("POST", "/v1/pay")
        assert not PUT_PAY.applies(found)
        assert PUT_PAY.applies(may_be_any_method(found))
        assert not PUT_PAY.applies(may_be_any_method(readings("POST", "/v1/other")))
