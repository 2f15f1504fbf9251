"""Names for a destination: they agree in any spelling, or the request is refused; what is no name is not quoted."""

from __future__ import annotations

import pytest

from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.http.names import (
    check_host_fields,
    check_hosts_in,
    check_path,
    check_server_name,
    host_field,
    is_own_name,
    mirrored_host,
    read_host_field,
    read_target,
    with_host,
)
from proxy.core.reasons import Reason

ASKED = Destination("api.example", 443)


@pytest.mark.parametrize("spelling", ["api.example", "API.Example.", "Api.example"])
def test_every_spelling_of_a_host_is_one_destination(spelling: str) -> None:
    assert read_target(spelling, 80) == Destination("api.example", 80)


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.1", 80, "is not valid"),
        ("", 80, "has no destination"),
        ("api.example", 0, "port 0 is not a number"),
        ("api.example", 65536, "port 65536 is not a number"),
    ],
)
def test_what_is_no_destination_is_refused_each_time(host: str, port: int, said: str) -> None:
    for _ in range(2):
        with pytest.raises(Denied) as caught:
            read_target(host, port)
        assert caught.value.reason is Reason.BAD_REQUEST
        assert said in caught.value.detail


@pytest.mark.parametrize(
    ("method", "path", "is_one"),
    [
        (b"GET", b"/", True),
        (b"OPTIONS", b"*", True),
        (b"options", b"*", True),
        (b"GET", b"*", False),
        (b"OPTIONS", b"a", False),
        (b"GET", b"http://api.example/", False),
        (b"GET", b"", False),
    ],
)
def test_a_path_begins_with_a_slash(method: bytes, path: bytes, is_one: bool) -> None:
    if is_one:
        check_path(path, method)
        return
    with pytest.raises(Denied) as caught:
        check_path(path, method)
    assert caught.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("api.example", Destination("api.example", 80)),
        ("API.example.:8080", Destination("api.example", 8080)),
        ("[::1]", Destination("::1", 80)),
    ],
)
def test_a_host_field_names_a_destination(value: str, expected: Destination) -> None:
    assert read_host_field(value, 80) == expected


@pytest.mark.parametrize("value", ["", "a b", "me:secret@api.example", "api.example:0", "0x7f.1", "secret/"])
def test_what_is_none_is_refused_and_not_quoted(value: str) -> None:
    for read in (lambda: read_host_field(value, 80), lambda: check_host_fields([value], ASKED, 443)):
        with pytest.raises(Denied) as caught:
            read()
        assert caught.value.reason is Reason.BAD_REQUEST
        assert "secret" not in caught.value.detail


@pytest.mark.parametrize(
    "values", [[], ["api.example"], ["API.example.:443"], ["api.example", "api.example:443"]], ids=range(4)
)
def test_host_fields_that_name_what_was_asked_for_pass(values: list[str]) -> None:
    check_host_fields(values, ASKED, 443)


@pytest.mark.parametrize(
    "values",
    [["other.example"], ["api.example:80"], ["api.example", "other.example"], ["other.example", "api.example"]],
)
def test_each_of_them_must(values: list[str]) -> None:
    with pytest.raises(Denied, match=r"but the request is for api\.example:443") as caught:
        check_host_fields(values, ASKED, 443)
    assert caught.value.reason is Reason.HOST_MISMATCH


def test_the_port_that_is_left_out_is_the_schemes() -> None:
    check_host_fields(["api.example"], Destination("api.example", 80), 80)
    with pytest.raises(Denied):
        check_host_fields(["api.example"], Destination("api.example", 80), 443)


@pytest.mark.parametrize("name", [None, "api.example", "API.Example."])
def test_a_server_name_is_the_host_of_connect_whatever_its_port(name: str | None) -> None:
    check_server_name(name, Destination("api.example", 8443))


@pytest.mark.parametrize("name", ["", "other.example", "x.api.example", "api.example:443", "api\x00.example"])
def test_any_other_and_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(Denied, match=r"not the host of CONNECT api\.example:443") as caught:
        check_server_name(name, ASKED)
    assert caught.value.reason is Reason.HOST_MISMATCH


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "203.0.113.7", "localhost", "overcoat", "a.localhost", "a.b.svc.cluster.local", "a.internal"],
)
def test_what_nobody_can_let_lead_here_is_a_name_of_ours(host: str) -> None:
    assert is_own_name(host, ())


@pytest.mark.parametrize("host", ["a.example", "a.local", "127.0.0.1.example", "xlocalhost.example"])
def test_any_other_is_one_only_where_the_policy_says_so(host: str) -> None:
    assert not is_own_name(host, ("b.example",))
    assert is_own_name(host, ("b.example", host))


class TestFields:
    """What was found of fields once is not taken for what is true of others, or of another destination."""

    FIELDS = ((b"A", b"1"), (b"hOST", b"api.example"), (b"b", b"2"))

    def test_what_agrees_passes_each_time_and_what_does_not_is_refused_each_time(self) -> None:
        for _ in range(2):
            check_hosts_in(self.FIELDS, ASKED, 443)
            check_hosts_in((), ASKED, 443)
            for fields, asked, port in [
                (self.FIELDS, ASKED, 80),
                (self.FIELDS, Destination("api.example", 444), 443),
                (self.FIELDS, Destination("other.example", 443), 443),
                (((b"Host", b"other.example"),), ASKED, 443),
                ((*self.FIELDS, (b"Host", b"other.example")), ASKED, 443),
            ]:
                with pytest.raises(Denied) as caught:
                    check_hosts_in(fields, asked, port)
                assert caught.value.reason is Reason.HOST_MISMATCH

    @pytest.mark.parametrize(
        ("target", "named"),
        [
            (ASKED, b"api.example"),
            (Destination("api.example", 8443), b"api.example:8443"),
            (Destination("::1", 443), b"[::1]"),
            (Destination("::1", 8443), b"[::1]:8443"),
        ],
    )
    def test_host_follows_the_target_and_nothing_else_changes(self, target: Destination, named: bytes) -> None:
        assert host_field(target) == named
        for _ in range(2):
            found = with_host(self.FIELDS, target)
            assert found == ((b"A", b"1"), (b"hOST", named), (b"b", b"2"))
            assert found[0] is self.FIELDS[0]  # whose type may say that no table may keep it

    @pytest.mark.parametrize("value", [b"api.example", b"API.example.", b"api.example:443"])
    def test_a_host_that_names_the_target_stays_as_it_was_written(self, value: bytes) -> None:
        fields = ((b"Host", value),)
        assert with_host(fields, ASKED) == fields


STOOD_FOR = ("api.example", "www.example", "192.0.2.1")


@pytest.mark.parametrize(
    ("hosts", "authority", "server_name", "found"),
    [
        (["api.example"], "", None, "api.example"),
        (["API.example.:8443"], "", "api.example", "api.example"),
        (["api.example"], "api.example:443", "www.example", "api.example"),
        ([], "www.example", None, "www.example"),
        (["192.0.2.1"], "", None, "192.0.2.1"),
    ],
)
def test_a_mirror_finds_the_host_that_a_request_is_for(
    hosts: list[str], authority: str, server_name: str | None, found: str
) -> None:
    fields = tuple((b"hOst", host.encode()) for host in hosts)
    assert mirrored_host((*fields, (b"a", b"b")), authority, server_name, STOOD_FOR) == Destination(found, 443)


@pytest.mark.parametrize(
    ("hosts", "authority", "server_name", "what"),
    [
        ([], "", None, "names none"),
        (["other.example"], "", None, "names another one"),
        (["127.0.0.1"], "", "api.example", "names another one"),
        (["api.example"], "www.example", None, "names several"),
        (["api.example"], "", "other.example", "TLS server name"),
        (["api.example"], "", "", "TLS server name"),
        (["api.example"], "", "a b", "TLS server name"),
    ],
)
def test_a_mirror_serves_no_other(hosts: list[str], authority: str, server_name: str | None, what: str) -> None:
    fields = tuple((b"Host", host.encode()) for host in hosts)
    with pytest.raises(Denied) as caught:
        mirrored_host(fields, authority, server_name, STOOD_FOR)
    assert caught.value.reason is Reason.MISDIRECTED
    assert what in caught.value.detail
    assert "other" not in caught.value.detail.replace("another", "")
