"""The life of an app's connection, and that of one request on it: their states, and what leads from one to the next.

`socket.AppSocket` and `conversation.Conversation` each have one state at any time; what happens leads them to the one
that is in their table. What is not in it raises, and ends the connection or the stream. As many rules of this side as
possible are in these tables, where they can be read and tested without a socket:

- A request is sent to an upstream only once it is held whole, or while it streams; never after it was answered here.
- An app gets one response: nothing follows what was answered, and nothing is answered here once a response has begun.
- The next request is served only after both this one and its response were whole.
- Whatever happens, it can end; what has ended never goes on.
"""

from __future__ import annotations

from enum import IntEnum, auto, unique

from proxy.engine.transitions import table


@unique
class SocketState(IntEnum):
    """Where an app's connection stands."""

    OPEN = auto()
    HANDSHAKE = auto()  # TLS with the app is not complete
    ENDED = auto()  # the app has said that it will send no more, and may wait for an answer
    CLOSING = auto()  # our last word is said, and on its way; what the app still sends is thrown away
    ABORTED = auto()  # broken off by us
    LOST = auto()  # the socket is gone
    RESET = auto()  # … and not in order


@unique
class SocketEvent(IntEnum):
    """What happens to it."""

    START_TLS = auto()
    SECURE = auto()  # the handshake is complete
    END = auto()  # the app ends its side
    CLOSE = auto()  # we say our last word
    ABORT = auto()  # we break it off
    LOSE = auto()  # the socket is gone, in order
    BREAK = auto()  # … or not


_S, _E = SocketState, SocketEvent
_ENDS = {_E.ABORT: _S.ABORTED, _E.LOSE: _S.LOST, _E.BREAK: _S.RESET}  # possible until it is over
AFTER_SOCKET = table(
    {
        _S.OPEN: {_E.START_TLS: _S.HANDSHAKE, _E.END: _S.ENDED, _E.CLOSE: _S.CLOSING, **_ENDS},
        _S.HANDSHAKE: {_E.SECURE: _S.OPEN, _E.END: _S.ENDED, _E.CLOSE: _S.CLOSING, **_ENDS},
        # An end is told again each time that reading goes on after a pause.
        _S.ENDED: {_E.START_TLS: _S.ENDED, _E.END: _S.ENDED, _E.CLOSE: _S.CLOSING, **_ENDS},
        _S.CLOSING: {_E.END: _S.CLOSING, **_ENDS},
        _S.ABORTED: {_E.END: _S.ABORTED, **_ENDS},
        # What was opened for it may fail later; then there is nothing left to break off.
        _S.LOST: {_E.ABORT: _S.LOST},
        _S.RESET: {_E.ABORT: _S.RESET},
    },
    SocketEvent,
)


@unique
class ConversationState(IntEnum):
    """Where a request and its response stand."""

    HOLDING = auto()  # the request comes, and is kept back: nothing of it has left
    HELD = auto()  # the request is whole, and was kept back until then
    STREAMING = auto()  # the request is passed on as it comes
    STREAMED = auto()  # the request is whole, and was passed on as it came
    EARLY_GATHERING = auto()  # its response is kept back, while the request still streams
    GATHERING = auto()  # its response is kept back
    EARLY_ANSWERING = auto()  # the app is sent its response, while the request still streams
    ANSWERING = auto()  # the app is sent its response
    SWITCHED = auto()  # WebSocket is spoken
    DISCARDING = auto()  # the app has its whole response; what still comes of the request is thrown away
    OVER = auto()


@unique
class ConversationEvent(IntEnum):
    """What happens to them."""

    STREAM = auto()  # the request may be passed on as it comes
    REQUEST_DATA = auto()  # some of its body comes
    END = auto()  # the request is whole
    ASK = auto()  # it goes to an upstream, the first time or again
    GATHER = auto()  # the response's head has come, and is kept back with its body
    BEGIN = auto()  # the response's head goes to the app
    SWITCH = auto()  # … and is the last that is HTTP (101)
    RESPONSE_DATA = auto()  # some of its body comes
    COMPLETE = auto()  # the app has the whole response
    REFUSE = auto()  # the app is given a response that was made here
    BREAK = auto()  # it ends in no order


_C, _V = ConversationState, ConversationEvent
_BREAKS = {_V.BREAK: _C.OVER}
AFTER_CONVERSATION = table(
    {
        _C.HOLDING: {
            _V.STREAM: _C.STREAMING,
            _V.REQUEST_DATA: _C.HOLDING,
            _V.END: _C.HELD,
            _V.REFUSE: _C.DISCARDING,
            **_BREAKS,
        },
        _C.HELD: {
            _V.ASK: _C.HELD,
            _V.GATHER: _C.GATHERING,
            _V.BEGIN: _C.ANSWERING,
            _V.SWITCH: _C.SWITCHED,
            _V.REFUSE: _C.OVER,
            **_BREAKS,
        },
        _C.STREAMING: {
            _V.REQUEST_DATA: _C.STREAMING,
            _V.END: _C.STREAMED,
            _V.ASK: _C.STREAMING,
            _V.GATHER: _C.EARLY_GATHERING,
            _V.BEGIN: _C.EARLY_ANSWERING,
            _V.REFUSE: _C.DISCARDING,
            **_BREAKS,
        },
        _C.STREAMED: {
            _V.ASK: _C.STREAMED,
            _V.GATHER: _C.GATHERING,
            _V.BEGIN: _C.ANSWERING,
            _V.SWITCH: _C.SWITCHED,
            _V.REFUSE: _C.OVER,
            **_BREAKS,
        },
        _C.EARLY_GATHERING: {
            _V.REQUEST_DATA: _C.EARLY_GATHERING,
            _V.END: _C.GATHERING,
            _V.RESPONSE_DATA: _C.EARLY_GATHERING,
            _V.COMPLETE: _C.DISCARDING,
            _V.REFUSE: _C.DISCARDING,
            **_BREAKS,
        },
        _C.GATHERING: {
            _V.RESPONSE_DATA: _C.GATHERING,
            _V.COMPLETE: _C.OVER,
            _V.REFUSE: _C.OVER,
            **_BREAKS,
        },
        _C.EARLY_ANSWERING: {
            _V.REQUEST_DATA: _C.EARLY_ANSWERING,
            _V.END: _C.ANSWERING,
            _V.RESPONSE_DATA: _C.EARLY_ANSWERING,
            _V.COMPLETE: _C.DISCARDING,
            **_BREAKS,
        },
        _C.ANSWERING: {_V.RESPONSE_DATA: _C.ANSWERING, _V.COMPLETE: _C.OVER, **_BREAKS},
        _C.SWITCHED: _BREAKS,
        _C.DISCARDING: {_V.REQUEST_DATA: _C.DISCARDING, _V.END: _C.OVER, **_BREAKS},
        # What was in the same bytes as that which it was ended for still comes here, and is thrown away.
        _C.OVER: {_V.REQUEST_DATA: _C.OVER, _V.END: _C.OVER, _V.RESPONSE_DATA: _C.OVER},
    },
    ConversationEvent,
)
