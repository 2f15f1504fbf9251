"""The life of an open socket, which is the same for every connection: pauses in reading, time limits, and its ends.

The connections of both sides (`apps.socket`, `upstreams.connection`) and the link to another proxy (`upstreams.route`)
are subclasses. Each of them decides when something is to happen; this class knows how.

Rules of this module:

- Reading goes on only while there is no reason to wait: a reason that ends does not end another one.
- Every timer has a name, so that it can be stopped; with the socket, all of them end.
- Whoever is gone already is no error: `connection_lost` will tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import cast

from proxy import timelimits
from proxy.engine.sockets import Reading
from proxy.engine.timers import Timer, Timers

_NO_TIME = struct.pack("ii", 1, 0)  # for SO_LINGER: an end is a reset, and at once


class Life(Reading):
    """One open socket, as a protocol of asyncio.

    Attributes:
        transport: the transport, which is the socket.
    """

    transport: asyncio.Transport

    def __init__(self, timers: Timers) -> None:
        """Start without a socket.

        Args:
            timers: start the time limits.
        """
        self._call_later = timers.call_later
        self._holds: set[str] = set()  # the reasons for which nothing is read for now
        self._timers: dict[str, Timer] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    # -- reading

    def hold(self, why: str, is_held: bool) -> None:
        """Stop reading while there is any reason to wait.

        Args:
            why: the reason.
            is_held: whether it begins, or ends.
        """
        if is_held is (why in self._holds):
            return
        before = bool(self._holds)
        if is_held:
            self._holds.add(why)
        else:
            self._holds.discard(why)
        if bool(self._holds) != before and not self.transport.is_closing():
            self._pause(not before)

    def _pause(self, is_paused: bool) -> None:
        """Stop reading, or go on."""
        if is_paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # -- time limits

    def _start_timer(self, name: str, seconds: float, step: Callable[..., object], *arguments: object) -> None:
        """Run a step after some time, in place of an earlier step of that name.

        Args:
            name: to stop it by.
            seconds: the time until then.
            step: what to run, unless the socket is gone by then.
            arguments: the step's arguments.
        """
        self._stop_timer(name)
        self._timers[name] = self._call_later(seconds, step, *arguments)

    def _stop_timer(self, name: str) -> None:
        """Forget a step, if there is one of that name."""
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _stop_timers(self) -> None:
        """Forget all steps: the socket is gone."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # -- the ends

    def _end_writing(self) -> bool:
        """Send an EOF after what is in the buffer, and go on reading.

        Returns:
            Whether that was possible: the peer may be gone.
        """
        if self.transport.is_closing():
            return False
        try:
            self.transport.write_eof()
        except OSError:
            return False
        return True

    def _limit_flush(self, step: Callable[[], object]) -> None:
        """Let what is in the buffer of a closed socket be sent within a time limit: the peer may never take it.

        Args:
            step: breaks off what is left after it.
        """
        if "flush" not in self._timers:
            self._start_timer("flush", timelimits.FLUSH_SECONDS, step)

    def _end_with_reset(self) -> None:
        """Have the socket end with a reset, from which nobody can take what has come for everything."""
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_TIME)
