"""Redirects of an upgraded app: what leads in a circle is cut, and what leads on is not.

Proves that no app spins between its http and the server's https.
"""

from __future__ import annotations

import pytest

from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.http.redirects import MAX_URLS, MAX_VISITS, Trail
from proxy.core.reasons import Reason

ASKED = Destination("api.example", 80)
COOKIE = (b"Set-Cookie", b"seen=1")


def is_cut(
    trail: Trail,
    path: str,
    *fields: tuple[bytes, bytes],
    method: str = "GET",
    status: int = 302,
    asked: Destination = ASKED,
) -> bool:
    denied = None
    try:
        trail.follow(method, status, asked, path, fields)
    except Denied as e:
        denied = e
    assert denied is None or (denied.reason, denied.detail.split()[:2]) == (
        Reason.REDIRECT_LOOP,
        [str(asked), "redirects"],
    )
    return denied is not None


def to(location: str) -> tuple[bytes, bytes]:
    return b"Location", location.encode()


class TestTheSameRequestAgain:
    @pytest.mark.parametrize(
        "location", ["http://api.example/a?b", "HTTP://api.example:80/a?b", "http://api.example/a?b#c"]
    )
    @pytest.mark.parametrize(("method", "status"), [("GET", 301), ("HEAD", 302), ("GET", 308), ("POST", 307)])
    def test_is_cut_at_once(self, method: str, status: int, location: str) -> None:
        assert is_cut(Trail(), "/a?b", to(location), method=method, status=status)

    def test_a_url_without_a_path_is_the_root(self) -> None:
        assert is_cut(Trail(), "/", to("http://api.example"))

    @pytest.mark.parametrize(
        ("method", "status", "fields"),
        [
            ("GET", 301, (to("http://api.example/a"),)),
            ("GET", 301, (to("http://other.example/a?b"),)),
            ("GET", 301, (to("https://api.example/a?b"),)),
            ("GET", 301, (to("http://api.example:81/a?b"),)),
            ("GET", 200, (to("http://api.example/a?b"),)),
            ("GET", 304, (to("http://api.example/a?b"),)),
            ("POST", 303, (to("http://api.example/a?b"),)),  # a GET comes next
            ("POST", 301, (to("http://api.example/a?b"),)),
            ("GET", 302, (to("http://api.example/a?b"), COOKIE)),  # another request comes next
            ("GET", 302, ()),
            ("GET", 302, (to("/a?b"),)),  # the server means it
            ("GET", 302, (to("http://api.example/a?b"), (b"Retry-After", b"5"))),
            ("GET", 302, (to("http://[bad/a?b"),)),
            ("GET", 302, (to("http://a@b/"),)),
        ],
    )
    def test_the_twin_that_leads_on_is_not(
        self, method: str, status: int, fields: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        assert not is_cut(Trail(), "/a?b", *fields, method=method, status=status)


class TestCircles:
    def test_a_cookie_that_is_set_anew_each_time_does_not_save_one(self) -> None:
        trail = Trail()
        cut = [is_cut(trail, "/", to("http://api.example/"), COOKIE) for _ in range(MAX_VISITS + 2)]
        assert cut == [*[False] * MAX_VISITS, True, False]

    def test_two_hosts_that_bounce_an_app_are_cut(self) -> None:
        trail, other = Trail(), Destination("www.api.example", 80)
        cut = []
        for _ in range(MAX_VISITS + 1):
            cut.append(is_cut(trail, "/", to("http://www.api.example/")))
            cut.append(is_cut(trail, "/", to("http://api.example:80"), asked=other))
        assert cut == [*[False] * (2 * MAX_VISITS), True, False]

    def test_a_relative_step_is_part_of_one_and_never_cut_itself(self) -> None:
        trail, cut = Trail(), []
        for _ in range(MAX_VISITS + 1):
            cut += [is_cut(trail, "/a", to("b")), is_cut(trail, "/b", to("http://api.example/a"))]
        assert cut == [*[False] * (2 * MAX_VISITS + 1), True]

    @pytest.mark.parametrize("status", [200, 304, 503])
    def test_whatever_is_no_redirect_ends_a_chain(self, status: int) -> None:
        trail = Trail()
        for _ in range(3 * MAX_VISITS):
            assert not is_cut(trail, "/", to("http://api.example/"), COOKIE)
            assert not is_cut(trail, "/", status=status)

    def test_nor_does_one_that_leads_nowhere_carry_one_on(self) -> None:
        trail = Trail()
        for _ in range(3 * MAX_VISITS):
            assert not is_cut(trail, "/", to("http://api.example/"), COOKIE)
            assert not is_cut(trail, "/")

    def test_the_same_redirect_for_many_is_no_circle(self) -> None:
        trail = Trail()
        assert not any(is_cut(trail, "/", to("http://api.example/home")) for _ in range(3 * MAX_VISITS))

    def test_what_is_remembered_is_bounded(self) -> None:
        trail = Trail()
        for number in range(3 * MAX_URLS):
            assert not is_cut(trail, f"/{number}", to(f"http://api.example/{number + 1}"))
            assert len(trail._visits) <= MAX_URLS
