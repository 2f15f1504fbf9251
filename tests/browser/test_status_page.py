"""The status page in a real browser: it keeps itself up to date, complains about nothing, and asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, Page, find_chromium
from tests.browser.scene import Scene, scene

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here (make test-browser installs it)"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.fixture
def page(running: Scene) -> Iterator[Page]:
    with Chromium() as browser:
        yield browser.open(running.sidecar.admin_url + "/")


def rows(path: str) -> str:
    return f"[...document.querySelectorAll('#decisions tr')].some((row) => row.textContent.includes('{path}'))"


def test_it_keeps_itself_up_to_date(page: Page, running: Scene) -> None:
    page.evaluate("window.mark = 'the same page'")
    page.evaluate("document.getElementById('only').checked = true")
    for path in ("/first", "/second"):
        assert not page.evaluate(rows(path))
        running.ask("shop.example", path)
        page.wait_for(rows(path))
    running.ask("legacy.example", "/closed")
    page.wait_for(rows("/closed"))
    page.wait_for("document.getElementById('state').textContent.startsWith('live')")
    shown = "[...document.querySelectorAll('#decisions tbody tr')].filter((row) => row.checkVisibility()).length"
    assert page.evaluate(shown) == 1  # what did not pass
    assert page.evaluate("window.mark") == "the same page"
    assert page.complaints() == []
    allowed = {f"{running.sidecar.admin_url}/{name}" for name in ("", "status.css", "status.js", "status.svg")}
    assert page.requested() == allowed


def test_it_stops_while_somebody_reads(page: Page, running: Scene) -> None:
    page.evaluate("document.getElementById('pause').click()")
    page.evaluate(
        "window.asked = 0; const real = fetch; window.fetch = (...all) => { asked += 1; return real(...all); }"
    )
    running.ask("shop.example", "/paused")
    page.evaluate("new Promise((done) => setTimeout(done, 2500))")
    assert page.evaluate("asked") == 0
    page.evaluate("document.getElementById('pause').click()")
    page.wait_for(rows("/paused"))


def test_what_an_app_asked_for_runs_nothing(page: Page, running: Scene) -> None:
    running.ask("shop.example", "/<img/src=x/onerror=window.hit=1>")
    page.wait_for(rows("onerror"))
    assert page.evaluate("window.hit === undefined && !document.querySelector('#decisions img')")
    assert page.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page: Page, running: Scene, scheme: str) -> None:
    running.ask("api.pay.example", "/a-rather-long-path" * 20)
    page.show_as(390, 800, scheme)
    page.wait_for(rows("a-rather-long-path"))
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 128)")
    assert light == (scheme == "light")


def test_that_there_is_no_answer_is_said(tmp_path: Path) -> None:
    with scene(tmp_path, workers=1) as made, Chromium() as browser:
        page = browser.open(made.sidecar.admin_url + "/")
        page.wait_for("document.getElementById('state').textContent.startsWith('live')")
        assert made.sidecar.stop() == 0
        page.wait_for("document.getElementById('state').textContent.startsWith('no answer')")
