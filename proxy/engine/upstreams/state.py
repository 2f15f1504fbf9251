"""The life of a connection to an upstream: its states, and what leads from one to the next.

`http2.UpstreamHttp2`, which speaks HTTP/2 on such a connection, has a state of its own, `Sharing`.
`connection.UpstreamConnection` has one of these states at any time, and goes on with `AFTER[event][state]`. As many
rules of that side as possible are in this table, where they can be read and tested without a socket:

- Nothing is asked and nothing is carried before the handshake is complete, and no second request before the first one
  has its whole response.
- Only a connection whose request and response were both whole goes to the pool, and out of it only by being taken.
- Whatever happens, it can be closed; what is closed never opens again.
"""

from __future__ import annotations

from enum import IntEnum, auto, unique

from proxy.engine.transitions import table


@unique
class State(IntEnum):
    """Where a connection stands."""

    READY = auto()  # it may be asked: it is new, or was just taken from the pool
    HANDSHAKE = auto()  # TLS is not complete
    SENDING = auto()  # a request is being sent; nothing of a response has come
    WAITING = auto()  # a request was sent whole; nothing of its response has come
    EARLY = auto()  # a response comes while its request is still being sent
    READING = auto()  # a response comes to a request that was sent whole
    DONE = auto()  # request and response were whole: another request may follow
    SPENT = auto()  # the response was whole, but nothing may follow it
    IDLE = auto()  # in the pool
    CARRYING = auto()  # its bytes are not HTTP/1: HTTP/2, WebSocket, a tunnel
    ENDED = auto()  # the upstream has ended; some of what came before is still to be read
    CLOSING = auto()  # closed by us: nothing more is read, what was sent may still go out
    LOST = auto()  # the socket is gone; as after ENDED, some of what came may still be read


@unique
class Event(IntEnum):
    """What happens to it."""

    START_TLS = auto()
    SECURE = auto()  # the handshake is complete
    ASK = auto()  # the first part of a request is sent
    ASK_WHOLE = auto()  # all of a request is sent
    SENT = auto()  # the last part of a request is sent
    ANSWER = auto()  # the first byte of a response comes
    DISREGARD = auto()  # what came is no answer to the request (RFC 9110, section 15.5.9)
    COMPLETE = auto()  # the response is whole, and leaves the connection open
    COMPLETE_LAST = auto()  # the response is whole, and nothing may follow it
    REST = auto()  # it goes to the pool
    TAKE = auto()  # it leaves the pool for a request
    CARRY = auto()  # from now on its bytes are not HTTP/1: we say so
    SWITCH = auto()  # … the upstream says so (101)
    END = auto()  # the upstream has ended, and some of what it sent is not read yet
    CLOSE = auto()  # we close it
    LOSE = auto()  # the socket is gone


_S, _E = State, Event
_ENDS = {_E.CLOSE: _S.CLOSING, _E.LOSE: _S.LOST}  # possible at any time
AFTER = table(
    {
        _S.READY: {
            _E.START_TLS: _S.HANDSHAKE,
            _E.ASK: _S.SENDING,
            _E.ASK_WHOLE: _S.WAITING,
            _E.CARRY: _S.CARRYING,
            **_ENDS,
        },
        _S.HANDSHAKE: {_E.SECURE: _S.READY, **_ENDS},
        _S.SENDING: {_E.SENT: _S.WAITING, _E.ANSWER: _S.EARLY, **_ENDS},
        _S.WAITING: {_E.ANSWER: _S.READING, **_ENDS},
        _S.EARLY: {
            _E.SENT: _S.READING,
            _E.DISREGARD: _S.SENDING,
            _E.COMPLETE: _S.SPENT,  # its request was not whole, and never will be
            _E.COMPLETE_LAST: _S.SPENT,
            _E.SWITCH: _S.CARRYING,
            _E.END: _S.ENDED,
            **_ENDS,
        },
        _S.READING: {
            _E.DISREGARD: _S.WAITING,
            _E.COMPLETE: _S.DONE,
            _E.COMPLETE_LAST: _S.SPENT,
            _E.SWITCH: _S.CARRYING,
            _E.END: _S.ENDED,
            **_ENDS,
        },
        _S.DONE: {_E.REST: _S.IDLE, **_ENDS},
        _S.SPENT: _ENDS,
        _S.IDLE: {_E.TAKE: _S.READY, **_ENDS},
        _S.CARRYING: {_E.END: _S.ENDED, **_ENDS},
        _S.ENDED: {
            _E.SENT: _S.ENDED,
            _E.COMPLETE: _S.SPENT,
            _E.COMPLETE_LAST: _S.SPENT,
            _E.END: _S.ENDED,
            **_ENDS,
        },
        # A tunnel may be opened over what was closed meanwhile: its end is then told as that of any other.
        _S.CLOSING: {_E.CARRY: _S.CLOSING, **_ENDS},
        _S.LOST: {
            _E.CARRY: _S.LOST,
            _E.SENT: _S.LOST,
            _E.COMPLETE: _S.LOST,
            _E.COMPLETE_LAST: _S.LOST,
            _E.CLOSE: _S.LOST,
        },
    },
    Event,
)
CLOSED = frozenset((State.ENDED, State.CLOSING, State.LOST))  # nothing can be sent any more


@unique
class Sharing(IntEnum):
    """Which streams a connection of HTTP/2 carries. That it is over is for `proxy.engine.http2.Connection` to say."""

    OPEN = auto()  # those that are under way, and others that are begun
    LEAVING = auto()  # only those that are under way
    ENDED = auto()  # the upstream has ended; some of what came before is still to be read


@unique
class SharingEvent(IntEnum):
    """What happens to it."""

    BEGIN = auto()  # a stream is begun
    LEAVE = auto()  # either side wants no other stream to be begun
    END = auto()  # the upstream has ended, and some of what it sent is not read yet


SHARED_AFTER = table(
    {
        Sharing.OPEN: {
            SharingEvent.BEGIN: Sharing.OPEN,
            SharingEvent.LEAVE: Sharing.LEAVING,
            SharingEvent.END: Sharing.ENDED,
        },
        Sharing.LEAVING: {SharingEvent.LEAVE: Sharing.LEAVING, SharingEvent.END: Sharing.ENDED},
        Sharing.ENDED: {SharingEvent.LEAVE: Sharing.ENDED, SharingEvent.END: Sharing.ENDED},
    },
    SharingEvent,
)
