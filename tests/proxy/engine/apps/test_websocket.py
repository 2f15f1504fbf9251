"""The app's side of a connection that has switched: what it passes on, and what it says once the upstream is gone."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.engine.apps.websocket import Switched


class Conversation:
    """Stands for the conversation that has switched, and for its upstream."""

    def __init__(self) -> None:
        self.upstream: Any = self
        self.sent: list[bytes] = []
        self.told: list[object] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def gone(self) -> None:
        self.told.append("gone")

    def app_congested(self, is_congested: bool) -> None:
        self.told.append(is_congested)


def test_bytes_reach_the_upstream_while_it_is_open_and_nobody_afterwards() -> None:
    conversation = Conversation()
    speaker = Switched(conversation)
    speaker.feed(b"one")
    conversation.upstream = None
    speaker.feed(b"two")
    assert conversation.sent == [b"one"]


def test_whatever_ends_the_app_ends_the_conversation_and_back_pressure_is_passed_on() -> None:
    conversation = Conversation()
    speaker = Switched(conversation)
    speaker.congested(True)
    speaker.congested(False)
    speaker.eof()
    speaker.gone()
    assert conversation.told == [True, False, "gone", "gone"]


def test_it_lasts_through_a_drain_and_has_no_deadline() -> None:
    speaker = Switched(Conversation())
    assert speaker.drain(False)
    with pytest.raises(RuntimeError, match="after a switch"):
        speaker.too_slow()
