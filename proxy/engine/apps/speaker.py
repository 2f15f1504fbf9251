"""The interface of everything that can be spoken with an app. `apps.socket` gives received bytes to one speaker at a
time: first to the one for HTTP/1, or for another kind of listener; a speaker that is done puts the next one in its
place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from proxy.core.decisions import Denied


class Speaker(ABC):
    """Reads what an app sends.

    Attributes:
        answers: whether it reads requests. If so, an app that has left waits for nothing.
    """

    answers = False

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Handle received bytes."""

    @abstractmethod
    def eof(self) -> None:
        """Called when the app will send no more."""

    @abstractmethod
    def gone(self) -> None:
        """Called when the app's connection is over."""

    @abstractmethod
    def congested(self, is_congested: bool) -> None:
        """Called when the app reads too slowly, and when it has caught up."""

    @abstractmethod
    def too_slow(self) -> None:
        """Called when the app has not sent in time what it owes; see `AppSocket.expect`."""

    def speak_http2(self) -> None:
        """Called when the app and we have agreed on HTTP/2 (ALPN); only the speaker for HTTP/1 allows that."""
        raise RuntimeError("HTTP/2 where it was not offered")

    def drain(self, is_fresh: bool) -> bool:
        """Close as soon as nothing is under way, if the speaker does that itself.

        Args:
            is_fresh: whether the app has just connected, so that its first request may be coming.

        Returns:
            Whether the speaker does it. If not, the socket closes once its session has nothing under way.
        """
        del is_fresh
        return False

    def end_silence(self, seconds: float) -> bool:
        """Answer requests that wait for a silent upstream; return whether there were any.

        Args:
            seconds: how long nothing has moved.
        """
        del seconds
        return False

    def give_up(self, denied: Denied) -> bool:
        """End everything under way with an answer; return whether the speaker can. If not, the socket breaks off."""
        del denied
        return False


class _Gone(Speaker):
    """Replaces the speaker of a connection that has not begun, or is over: received bytes are ignored."""

    def feed(self, _data: bytes) -> None: ...

    def eof(self) -> None: ...

    def gone(self) -> None: ...

    def congested(self, _is_congested: bool) -> None: ...

    def too_slow(self) -> None: ...


GONE = _Gone()
