"""What takes an app's bytes off its socket: the interface of all that can be spoken with an app.

`apps.socket` has one speaker at a time, and calls it. HTTP/1 comes first, or what a listener of another kind begins
with; a speaker that is done puts the next one in its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from proxy.core.decisions import Denied


class Speaker(ABC):
    """Takes what the app says.

    Attributes:
        answers: whether it reads requests, so that an app which has left waits for nothing.
    """

    answers = False

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Take bytes."""

    @abstractmethod
    def eof(self) -> None:
        """Take that the app will say no more."""

    @abstractmethod
    def gone(self) -> None:
        """Take that the app's connection is over."""

    @abstractmethod
    def congested(self, is_congested: bool) -> None:
        """Take that the app reads too slowly, or no longer does."""

    @abstractmethod
    def too_slow(self) -> None:
        """Take that the app has not sent what was expected of it in time; see `AppSocket.expect`."""

    def speak_http2(self) -> None:
        """Take that the app and we have agreed on HTTP/2 (ALPN), which only HTTP/1 can make way for."""
        raise RuntimeError("HTTP/2 where it was not offered")

    def drain(self, is_fresh: bool) -> bool:
        """Close as soon as nothing is under way, if that is for the speaker to do.

        Args:
            is_fresh: whether the app has just connected, so that its first request may be on the way.

        Returns:
            Whether it is; else the socket closes once its session has nothing under way.
        """
        del is_fresh
        return False

    def end_silence(self, seconds: float) -> bool:
        """Answer what waits for an upstream that is silent; return whether there was something.

        Args:
            seconds: how long nothing has moved.
        """
        del seconds
        return False

    def give_up(self, denied: Denied) -> bool:
        """End all that is under way with an answer; return whether the speaker has any, else the socket breaks off."""
        del denied
        return False


class _Gone(Speaker):
    """Stands in for the speaker of a connection that has not begun, or is over: nothing that comes is of use."""

    def feed(self, _data: bytes) -> None: ...

    def eof(self) -> None: ...

    def gone(self) -> None: ...

    def congested(self, _is_congested: bool) -> None: ...

    def too_slow(self) -> None: ...


GONE = _Gone()
