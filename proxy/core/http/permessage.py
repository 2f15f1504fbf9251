"""Compression of WebSocket messages, permessage-deflate (RFC 7692): what of an offer may go on, what was agreed on, and
messages inflated and deflated. `addons.messages` asks about the handshake, `proxy.core.http.websocket` about messages.

Rules of this module:

- An offer of anything else ends here: messages in a form that nobody here knows could not be looked at.
- The answer is held to the offer, as a careful client would.
- Nothing is inflated beyond a limit.
- Both directions go on with a context of their own on each side. Ours use less memory than was agreed on as the most,
  which RFC 7692 leaves to whoever compresses.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

NAME = "permessage-deflate"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # RFC 9110's token, not a secret
_PARAMETER = re.compile(rf'({_TOKEN})(?:[ \t]*+=[ \t]*+(?:"({_TOKEN})"|({_TOKEN})))?+')
_BITS = re.compile(r"[89]|1[0-5]")
_TAIL = b"\x00\x00\xff\xff"  # of a message, which is not sent (section 7.2.1)
_NOTHING = b"\x00"  # an empty message (section 7.2.3.6)
# A context of ours takes 32 KiB then, in place of 256.
_MOST_BITS, _MEMORY = 12, 5
_PIECE = 16 * 1024  # bytes that are deflated at once: about a millisecond
_LEAST_BITS = 9  # zlib makes no raw stream of a smaller window


class BadAnswer(ValueError):
    """The server has answered the offer of extensions with something that it does not allow."""


class BadMessage(ValueError):
    """A compressed message cannot be inflated."""


class TooLarge(Exception):
    """A message is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What an offer, or the answer to one, says. Bits are None where nothing is said of them.

    Attributes:
        server_forgets: whether the server begins each message with an empty context.
        client_forgets: whether the client does.
        server_bits: the greatest window that the server may use, as a power of two.
        client_bits: the same of the client.
        takes_client_bits: whether the answer may limit the client's window.
    """

    server_forgets: bool = False
    client_forgets: bool = False
    server_bits: int | None = None
    client_bits: int | None = None
    takes_client_bits: bool = False

    def allows(self, answer: Parameters) -> bool:
        """Tell whether a server may answer this offer so (section 7.1)."""
        if self.server_forgets and not answer.server_forgets:
            return False
        if self.server_bits is not None and (answer.server_bits is None or answer.server_bits > self.server_bits):
            return False
        if answer.client_bits is None:
            return True
        return self.takes_client_bits and answer.client_bits <= (self.client_bits or 15)


def _elements(values: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each extension of a list: its text, its name, its parameters as they stand there."""
    for value in values:
        for element in value.split(","):
            if text := element.strip(" \t"):
                name, *parameters = (part.strip(" \t") for part in text.split(";"))
                yield text, name, parameters


def _parameters(texts: Sequence[str], *, is_answer: bool) -> Parameters | None:
    """Return what parameters say; None if one is unknown, wrong, or there twice."""
    found: dict[str, str | None] = {}
    for text in texts:
        match = _PARAMETER.fullmatch(text)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2] or match[3]
    bits: dict[str, int | None] = {}
    for name in ("server_max_window_bits", "client_max_window_bits"):
        value = found.get(name)
        if value is not None and not _BITS.fullmatch(value):
            return None
        if name in found and value is None and (is_answer or name[0] == "s"):
            return None
        bits[name] = None if value is None else int(value)
    flags = ("server_no_context_takeover", "client_no_context_takeover")
    if any(found.get(flag) is not None for flag in flags) or found.keys() - {*bits, *flags}:
        return None
    return Parameters(
        flags[0] in found,
        flags[1] in found,
        bits["server_max_window_bits"],
        bits["client_max_window_bits"],
        "client_max_window_bits" in found,
    )


def offers(values: Sequence[str]) -> str:
    """Return what of an app's offers may go on, as the value of one field; "" if there is nothing.

    Args:
        values: the values of the request's Sec-WebSocket-Extensions fields.
    """
    return ", ".join(
        text
        for text, name, parameters in _elements(values)
        if name == NAME and _parameters(parameters, is_answer=False) is not None
    )


def agreed(offered: Sequence[str], answered: Sequence[str]) -> Parameters | None:
    """Return what was agreed on; None if nothing is compressed.

    Args:
        offered: the values of the request's Sec-WebSocket-Extensions fields.
        answered: those of the response.

    Raises:
        BadAnswer: the answer has something that the offer does not allow.
    """
    answers = list(_elements(answered))
    if not answers:
        return None
    if len(answers) > 1 or answers[0][1] != NAME:
        raise BadAnswer("it answers with extensions that were not offered")
    answer = _parameters(answers[0][2], is_answer=True)
    if answer is not None:
        for _, name, parameters in _elements(offered):
            offer = _parameters(parameters, is_answer=False) if name == NAME else None
            if offer is not None and offer.allows(answer):
                return answer
    raise BadAnswer(f"it answers the offer of {NAME} with what was not offered")


class Inflater:
    """Inflates the messages of one direction."""

    def __init__(self, bits: int | None, *, forgets: bool) -> None:
        """Start.

        Args:
            bits: the greatest window that the sender uses.
            forgets: whether it begins each message with an empty context.
        """
        self._bits = -(bits or 15)
        self._forgets = forgets
        self._context = zlib.decompressobj(self._bits)

    def inflate(self, data: bytes, most: int) -> bytes:
        """Inflate a part of a message.

        Raises:
            BadMessage: it is not compressed as it says.
            TooLarge: it has more bytes than `most`.
        """
        try:
            out = self._context.decompress(data, most + 1)
        except zlib.error:
            raise BadMessage("a compressed message cannot be inflated") from None
        if len(out) > most:
            raise TooLarge
        if self._context.eof:  # what follows could not be read with the same context
            raise BadMessage("a compressed message has a final block, which is not read")
        return out

    def end(self, most: int) -> bytes:
        """Inflate the end of a message.

        Raises:
            BadMessage: it is not compressed as it says.
            TooLarge: it has more bytes than `most`.
        """
        out = self.inflate(_TAIL, most)
        if self._forgets:
            self._context = zlib.decompressobj(self._bits)
        return out


class Deflater:
    """Deflates the messages of one direction."""

    def __init__(self, bits: int | None, *, forgets: bool) -> None:
        """Start.

        Args:
            bits: the greatest window that may be used, at least 9.
            forgets: whether each message begins with an empty context.
        """
        self._bits = -min(bits or 15, _MOST_BITS)
        self._forgets = forgets
        self._context = self._new()

    def _new(self) -> zlib._Compress:
        return zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, self._bits, _MEMORY)

    def deflate(self, payload: bytes, pause: Callable[[], object] = lambda: None) -> bytes:
        """Return a message's payload, compressed.

        Args:
            payload: the message.
            pause: called after each piece.
        """
        out = []
        for at in range(0, len(payload), _PIECE):
            out.append(self._context.compress(payload[at : at + _PIECE]))
            pause()
        out.append(self._context.flush(zlib.Z_SYNC_FLUSH))
        if self._forgets:
            self._context = self._new()
        return b"".join(out).removesuffix(_TAIL) or _NOTHING


def deflater(bits: int | None, *, forgets: bool) -> Deflater | None:
    """Return what deflates the messages of one direction; None if they go on uncompressed, as they always may: zlib
    knows no window that is as small as was agreed on.
    """
    return None if bits is not None and bits < _LEAST_BITS else Deflater(bits, forgets=forgets)
