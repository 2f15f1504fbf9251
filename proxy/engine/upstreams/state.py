"""The states of a connection to an upstream, and the tables of what leads from one state to the next.
`connection.UpstreamConnection` and, for HTTP/2, `http2.UpstreamHttp2` have one state each, and go on with
`AFTER[event][state]`. As many rules as possible are in these tables, where they can be read and tested without a
socket:

- Nothing is sent before the handshake is complete, and no second request before the first one has its complete
  response.
- A connection goes to the pool only after a complete request and a complete response, and leaves it only for a request.
- It can be closed at any time, and never opens again.
"""

from __future__ import annotations

from enum import IntEnum, auto, unique

from proxy.engine.transitions import table


@unique
class State(IntEnum):
    """The state of a connection."""

    READY = auto()  # a request may be sent: it is new, or was just taken from the pool
    HANDSHAKE = auto()  # TLS is not complete
    SENDING = auto()  # a request is being sent; no response has begun
    WAITING = auto()  # a request was sent completely; no response has begun
    EARLY = auto()  # a response is coming while its request is still being sent
    READING = auto()  # a response is coming; its request was sent completely
    DONE = auto()  # request and response are complete: another request may follow
    SPENT = auto()  # the response is complete, but no other request may follow
    IDLE = auto()  # in the pool
    CARRYING = auto()  # its bytes are not HTTP/1: HTTP/2, WebSocket, a tunnel
    ENDED = auto()  # the upstream has ended; some of its bytes are still to be read
    CLOSING = auto()  # closed by us: nothing more is read; buffered bytes may still be sent
    LOST = auto()  # the socket is gone; as in ENDED, some bytes may still be read


@unique
class Event(IntEnum):
    """What happens to it."""

    START_TLS = auto()
    SECURE = auto()  # the handshake is complete
    ASK = auto()  # the first part of a request is sent
    ASK_WHOLE = auto()  # all of a request is sent
    SENT = auto()  # the last part of a request is sent
    ANSWER = auto()  # the first byte of a response comes
    DISREGARD = auto()  # the response does not answer the request (RFC 9110, section 15.5.9)
    COMPLETE = auto()  # the response is complete, and the connection stays open
    COMPLETE_LAST = auto()  # the response is complete, and no other may follow
    REST = auto()  # it goes to the pool
    TAKE = auto()  # it leaves the pool for a request
    CARRY = auto()  # we switch to bytes that are not HTTP/1
    SWITCH = auto()  # … the upstream does (101)
    END = auto()  # the upstream has ended; some of its bytes are not read yet
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
            _E.COMPLETE: _S.SPENT,  # its request is incomplete, and stays so
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
        # A connection may have been closed before a tunnel is opened on it: the tunnel then learns of the end as usual.
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
    """Which streams a connection of HTTP/2 may carry. Its end is a state of `proxy.engine.http2.Connection`."""

    OPEN = auto()  # those under way, and new ones
    LEAVING = auto()  # only those under way
    ENDED = auto()  # the upstream has ended; some of its bytes are still to be read


@unique
class SharingEvent(IntEnum):
    """What happens to it."""

    BEGIN = auto()  # a stream is begun
    LEAVE = auto()  # one side wants no new streams
    END = auto()  # the upstream has ended; some of its bytes are not read yet


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
