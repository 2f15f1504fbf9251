"""The last lines of a process, and what may be too much for them."""

from __future__ import annotations

import json
import os
import random

import pytest

from proxy.processes.recent import KEPT, Recent


def line(**values: object) -> bytes:
    return json.dumps({"time": "t", "reason": None, **values}).encode() + b"\n"


def test_the_last_ones_are_kept() -> None:
    recent = Recent()
    assert list(recent.lines()) == []
    for number in range(3 * KEPT + 7):
        recent.add(line(number=number))
    assert sorted(each["number"] for each in recent.lines()) == list(range(2 * KEPT + 7, 3 * KEPT + 7))
    assert list(recent.lines_with_reason()) == []


def test_those_with_a_reason_stay_longer() -> None:
    recent = Recent()
    recent.add(line(reason="pin_mismatch", path='/"reason": null'))
    for number in range(2 * KEPT):
        recent.add(line(number=number))
    assert [each["reason"] for each in recent.lines_with_reason()] == ["pin_mismatch"]
    assert not any(each["reason"] for each in recent.lines())


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", '"'])
def test_a_line_for_which_there_is_no_room_is_shortened(character: str) -> None:
    recent = Recent()
    texts = dict.fromkeys(("path", "destination", "method", "rule", "detail", "client", "user"), character * 3000)
    recent.add(line(**texts, status=200, looks_secret=[["$.a", "token"]] * 900))
    (found,) = recent.lines()
    assert found["status"] == 200
    assert found["path"].strip(character) == "…"
    assert "looks_secret" not in found


def test_a_line_that_is_being_written_is_left_out() -> None:
    """Another process reads while this one writes; what it reads is whole."""
    recent, sizes = Recent(), random.Random(1)
    child = os.fork()
    if not child:
        for number in range(40_000):
            recent.add(line(text=str(number % 10) * sizes.randrange(1500)))
        os._exit(0)
    met = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        for each in recent.lines():
            met += 1
            assert len(set(each["text"])) <= 1
    assert met > KEPT
