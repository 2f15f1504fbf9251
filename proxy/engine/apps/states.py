"""The states of an app's connection and of one request on it, and the tables of what leads from one state to the next.
`socket.AppSocket` and `conversation.Conversation` have one state each. An event that is not in the table raises, and
ends the connection or the stream. As many rules as possible are in these tables, where they can be read and tested
without a socket:

- A request is sent to an upstream only once it is complete, or while it streams; never after it was answered here.
- An app gets one response: nothing follows an answer that was made here, and no such answer is made once a response has
  begun.
- The next request is served only after both this request and its response are complete.
- It can end at any time, and never goes on after its end.
"""

from __future__ import annotations

from enum import IntEnum, auto, unique

from proxy.engine.transitions import table


@unique
class SocketState(IntEnum):
    """The state of an app's connection."""

    OPEN = auto()
    HANDSHAKE = auto()  # TLS with the app is not complete
    ENDED = auto()  # the app has said that it will send no more, and may wait for an answer
    CLOSING = auto()  # we have sent our last bytes; bytes from the app are thrown away
    ABORTED = auto()  # broken off by us
    LOST = auto()  # the socket is gone
    RESET = auto()  # … after a reset


@unique
class SocketEvent(IntEnum):
    """What happens to it."""

    START_TLS = auto()
    SECURE = auto()  # the handshake is complete
    END = auto()  # the app ends its side
    CLOSE = auto()  # we send our last bytes, and close
    ABORT = auto()  # we break it off
    LOSE = auto()  # the socket is gone, in order
    BREAK = auto()  # … or by a reset


_S, _E = SocketState, SocketEvent
_ENDS = {_E.ABORT: _S.ABORTED, _E.LOSE: _S.LOST, _E.BREAK: _S.RESET}  # possible until it is over
AFTER_SOCKET = table(
    {
        _S.OPEN: {_E.START_TLS: _S.HANDSHAKE, _E.END: _S.ENDED, _E.CLOSE: _S.CLOSING, **_ENDS},
        _S.HANDSHAKE: {_E.SECURE: _S.OPEN, _E.END: _S.ENDED, _E.CLOSE: _S.CLOSING, **_ENDS},
        # asyncio reports the end again each time that reading goes on after a pause.
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
    """The state of a request and its response."""

    HOLDING = auto()  # the request is coming, and is held: nothing of it has left
    HELD = auto()  # the request is complete, and is held
    STREAMING = auto()  # the request is coming, and is passed on
    STREAMED = auto()  # the request is complete, and was passed on
    EARLY_GATHERING = auto()  # the response is held, while the request still streams
    GATHERING = auto()  # the response is held
    EARLY_ANSWERING = auto()  # the response is sent, while the request still streams
    ANSWERING = auto()  # the response is sent
    SWITCHED = auto()  # WebSocket is spoken
    DISCARDING = auto()  # the response is complete; the rest of the request is thrown away
    OVER = auto()


@unique
class ConversationEvent(IntEnum):
    """What happens to them."""

    STREAM = auto()  # the request may be passed on while it comes
    REQUEST_DATA = auto()  # a piece of the body comes
    END = auto()  # the request is complete
    ASK = auto()  # it goes to an upstream, the first time or again
    GATHER = auto()  # the response's head has come, and is held with its body
    BEGIN = auto()  # the response's head goes to the app
    SWITCH = auto()  # … and ends HTTP (101)
    RESPONSE_DATA = auto()  # a piece of the body comes
    COMPLETE = auto()  # the response is complete
    DENY = auto()  # the app gets a response that was made here
    BREAK = auto()  # it does not end in order


_C, _V = ConversationState, ConversationEvent
_BREAKS = {_V.BREAK: _C.OVER}
AFTER_CONVERSATION = table(
    {
        _C.HOLDING: {
            _V.STREAM: _C.STREAMING,
            _V.REQUEST_DATA: _C.HOLDING,
            _V.END: _C.HELD,
            _V.DENY: _C.DISCARDING,
            **_BREAKS,
        },
        _C.HELD: {
            _V.ASK: _C.HELD,
            _V.GATHER: _C.GATHERING,
            _V.BEGIN: _C.ANSWERING,
            _V.SWITCH: _C.SWITCHED,
            _V.DENY: _C.OVER,
            **_BREAKS,
        },
        _C.STREAMING: {
            _V.REQUEST_DATA: _C.STREAMING,
            _V.END: _C.STREAMED,
            _V.ASK: _C.STREAMING,
            _V.GATHER: _C.EARLY_GATHERING,
            _V.BEGIN: _C.EARLY_ANSWERING,
            _V.DENY: _C.DISCARDING,
            **_BREAKS,
        },
        _C.STREAMED: {
            _V.ASK: _C.STREAMED,
            _V.GATHER: _C.GATHERING,
            _V.BEGIN: _C.ANSWERING,
            _V.SWITCH: _C.SWITCHED,
            _V.DENY: _C.OVER,
            **_BREAKS,
        },
        _C.EARLY_GATHERING: {
            _V.REQUEST_DATA: _C.EARLY_GATHERING,
            _V.END: _C.GATHERING,
            _V.RESPONSE_DATA: _C.EARLY_GATHERING,
            _V.BEGIN: _C.EARLY_ANSWERING,
            _V.COMPLETE: _C.DISCARDING,
            _V.DENY: _C.DISCARDING,
            **_BREAKS,
        },
        _C.GATHERING: {
            _V.RESPONSE_DATA: _C.GATHERING,
            _V.BEGIN: _C.ANSWERING,
            _V.COMPLETE: _C.OVER,
            _V.DENY: _C.OVER,
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
        # The rest of the bytes for which it was ended still comes here, and is thrown away.
        _C.OVER: {_V.REQUEST_DATA: _C.OVER, _V.END: _C.OVER, _V.RESPONSE_DATA: _C.OVER},
    },
    ConversationEvent,
)
