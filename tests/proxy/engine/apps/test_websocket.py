"""The app's side of a connection that has switched: what it passes on, and what it says once the upstream is gone."""

from __future__ import annotations

import pytest

from proxy.engine.apps.websocket import Switched


class Conversation:
    """Stands for the conversation that has switched."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.told: list[object] = []

    def switched_from_app(self, data: bytes) -> None:
        self.sent.append(data)

    def switched_end(self) -> None:
        self.told.append("ended")

    def gone(self) -> None:
        self.told.append("gone")

    def app_congested(self, is_congested: bool) -> None:
        self.told.append(is_congested)


def test_bytes_are_for_the_upstream() -> None:
    conversation = Conversation()
    Switched(conversation).feed(b"one")
    assert conversation.sent == [b"one"]


def test_an_end_in_order_is_told_apart_and_back_pressure_is_passed_on() -> None:
    conversation = Conversation()
    speaker = Switched(conversation)
    speaker.congested(True)
    speaker.congested(False)
    speaker.eof()
    speaker.gone()
    assert conversation.told == [True, False, "ended", "gone"]


def test_it_lasts_through_a_drain_and_has_no_deadline() -> None:
    speaker = Switched(Conversation())
    assert speaker.drain(False)
    with pytest.raises(RuntimeError, match="after a switch"):
        speaker.too_slow()
