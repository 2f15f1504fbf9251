"""Bodies of every kind with marked values in them, and what of them must arrive.

Rules of this module:

- A body is a row of pieces: bytes that must arrive as they are, and marked values, for which a token must stand.
- Tokens are made and opened by joserfc alone; no line of the product's says whether one is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jwe
from joserfc.jwk import JWKRegistry

from proxy.core.jose.keywriting import to_jwk
from tests.e2e.receiver import TOKEN, Receiver

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=xYz"
GRAPHQL = b"query($ssn: String) {person(ssn: $ssn) {id}}"


@dataclass(frozen=True, slots=True)
class Value:
    """A marked value, where it stands in a body.

    Attributes:
        sent: its bytes there.
        path: its place, as `cty` must say.
        means: the JSON value of the text that it stands for, where it does not stand there as JSON: in forms.
        quote: what stands round its token.
        usual: how it is spelled where it is opened, if that is another spelling of the same text: in forms.
    """

    sent: bytes
    path: str
    means: str | None = None
    quote: bytes = b'"'
    usual: bytes | None = None

    def is_told_by(self, value: bytes) -> bool:
        """Tell whether the plaintext of a token is this value: exactly, or for text the JSON string of it."""
        return value == self.sent if self.means is None else json.loads(value) == self.means


def field(sent: bytes, path: str, means: str | None = None, usual: bytes | None = None) -> Value:
    """Return a value of a form, whose token has no quotes."""
    return Value(sent, path, sent.decode() if means is None else means, b"", usual)


Pieces = Sequence[bytes | Value]


@dataclass(frozen=True, slots=True)
class Body:
    """A body of a request or a response.

    Attributes:
        content_type: its label.
        pieces: all of it.
        host: the host whose rule is about it.
    """

    content_type: str
    pieces: Pieces
    host: str = "pay.example"

    @property
    def plain(self) -> bytes:
        """The body without any token."""
        return b"".join(piece.sent if isinstance(piece, Value) else piece for piece in self.pieces)

    @property
    def usual(self) -> bytes:
        """The body once its tokens are opened: that without any, but for the spelling of text in forms."""
        return b"".join((each.usual or each.sent) if isinstance(each, Value) else each for each in self.pieces)

    @property
    def values(self) -> list[Value]:
        """The marked values."""
        return [piece for piece in self.pieces if isinstance(piece, Value)]


def part(name: str, more: str = "") -> bytes:
    """Return the head of a part of a multipart form, with the delimiter before it."""
    return f'--xYz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()


# What one policy needs, so that all these bodies have something marked in them.
RULES = """
      - name: pay
        hosts: [pay.example]
        request:
          - encrypt: ["$.card.number", "$.ssn", "$.params.ssn"]
            form: [card_number, "card[cvv]"]
            key: pay
      - name: graph
        hosts: [graph.example]
        request:
          - encrypt: ["$.variables.ssn"]
            graphql_arguments: [ssn]
            key: pay
      - name: inside
        hosts: [inside.example]
        request:
          - {encrypt: ["$.ssn"], key: pay, inside: "$.Message"}
          - {encrypt: ["$.ssn"], key: pay, inside: ["$.Records[*].body", "$.Message"]}
"""
HOSTS = ("pay.example", "graph.example", "inside.example")

REQUESTS: dict[str, Body] = {
    "form": Body(
        FORM,
        (
            b"a=1&card_number=",
            field(b"41%201+1%C3%A9", "$.card_number", "41 1 1é", b"41+1+1%C3%A9"),
            b"&b=%zz+&%63ard_number=",
            field(b"", "$.card_number"),
            b"&card%5Bcvv%5D=",
            field(b'1"\\', "$['card[cvv]']", usual=b"1%22%5C"),
            b"&CARD_NUMBER=x&ssn=free",
        ),
    ),
    "multipart": Body(
        MULTIPART,
        (
            part("note") + b'{"ssn":"free"}\r\n' + part("card_number"),
            field(b'4111\r\n "\\\xc3\xa9', "$.card_number"),
            b"\r\n" + part("f", '; filename="x.bin"\r\nContent-Type: a/b') + bytes(range(256)) * 9 + b"\r\n",
            part("card[cvv]"),
            field(b"12", "$['card[cvv]']"),
            b"\r\n--xYz--\r\n",
        ),
    ),
    "json": Body(
        "application/json",
        (b'\r\n{"card":{"number" :', Value(b'"4111 \\u00e9\xc3\xa9"', "$.card.number"), b'},"n":1.0e0 , "x":"\\/"} '),
    ),
    "json by another label": Body(
        "application/vnd.api+json", (b' {"ssn" : ', Value(b'"078"', "$.ssn"), b',"x":1.0}\n')
    ),
    "json as a form": Body(FORM, (b'{"ssn":', Value(b'"0&7=8"', "$.ssn"), b"}")),
    "json as text": Body("text/plain;charset=UTF-8", (b'{"ssn":', Value(b"[1 ]", "$.ssn"), b"}")),
    "lines": Body(
        "application/x-ndjson",
        (b'{"ssn":', Value(b"1", "$.ssn"), b'}\r\n\n{"x":1}\n {"ssn": ', Value(b'"2"', "$.ssn"), b"}"),
    ),
    "lines by another label": Body(  # as Elasticsearch's clients send them
        "application/vnd.elasticsearch+x-ndjson; compatible-with=8",
        (b'{"index":{}}\n{"ssn":', Value(b'"2"', "$.ssn"), b"}\n"),
    ),
    "sequence": Body(
        "application/json-seq",
        (b'\x1e{"ssn":', Value(b"1", "$.ssn"), b'}\n\x1e{"ssn":\n', Value(b"2", "$.ssn"), b"}\n"),
    ),
    "batch": Body(
        "application/json-rpc",
        (
            b'[{"jsonrpc":"2.0","params":{"ssn":',
            Value(b'"1"', "$[*].params.ssn"),
            b'}},{"jsonrpc":"2.0","params":["ssn"]},{"params":{"ssn" :',
            Value(b"{}", "$[*].params.ssn"),
            b"}}]",
        ),
    ),
    "patch": Body(
        "application/json-patch+json",
        (
            b'[{"op":"test","path":"/ssn","value":',
            Value(b"1", "$.ssn"),
            b'},{"op":"add","path":"/card","value":{"number":',
            Value(b'"4111"', "$.card.number"),
            b',"cvv":1}},{"op":"remove","path":"/card/number"},{"op":"add","value" : ',
            Value(b"[0]", "$.card.number[*]"),
            b',"path":"/c\\u0061rd/number/0"}]',
        ),
    ),
    "merge patch": Body("application/merge-patch+json", (b'{"ssn":', Value(b"null", "$.ssn"), b"}")),
    "graphql": Body(
        "application/json",
        (b'{"query":"%s","variables":{"ssn":' % GRAPHQL, Value(b'"078"', "$.variables.ssn"), b"}}"),
        "graph.example",
    ),
    "graphql batch": Body(
        "application/json",
        (b'[{"query":"{a}"},{"variables":{"ssn":', Value(b"1", "$[*].variables.ssn"), b"}}]"),
        "graph.example",
    ),
    "graphql upload": Body(
        MULTIPART,
        (
            part("operations") + b'{"query":"{a}","variables":{"f":null,"ssn":',
            Value(b"1", "$.variables.ssn"),
            b"}}\r\n"
            + part("map")
            + b'{"0":["variables.f"]}\r\n'
            + part("0", '; filename="x"')
            + b"\xff\r\n--xYz--\r\n",
        ),
        "graph.example",
    ),
    "json inside a string": Body(
        "application/json",
        (
            b'{"Message" : "\\u007b\\"ssn\\" :',
            Value(b"[1]", "$.Message$.ssn", quote=b'\\"'),
            b',\\"x\\":\\"\\\\/\\u00e9\\"}", "ssn":"free"}',
        ),
        "inside.example",
    ),
    "json inside a string inside a string": Body(
        "application/json",
        (
            rb'{"Records":[{"body":"{\"Message\":\"{\\\"ssn\\\":',
            Value(b"1", "$.Records[*].body$.Message$.ssn", quote=b'\\\\\\"'),
            rb'}\"}"},{"body":"{}"}]}',
        ),
        "inside.example",
    ),
}

# The same for responses: each text has its own marked value.
RESPONSES: dict[str, Body] = {
    "json": Body(
        "application/json",
        (
            b' {"token":',
            Value(b'"tok_\\u20ac"', "$.token"),
            b' , "n":1.50,"items":[{"secret":',
            Value(b"[1 ,2]", "$.items[*].secret"),
            b"}]}\n",
        ),
    ),
    "patch": Body(
        "application/json-patch+json",
        (
            b'[{"op":"add","path":"/token","value" : ',
            Value(b'"tok_\\u20ac"', "$.token"),
            b'},{"op":"replace","path":"/items/0","value":{"n":1.0,"secret":',
            Value(b"[1 ,2]", "$.items[*].secret"),
            b'}},\n{"op":"remove","path":"/secret"},{"op":"add","path":"/x","value":{"token":"free"}}]',
        ),
    ),
    "an array that looks like a patch": Body(  # which a response is by its label alone, at both ends
        "application/json",
        (
            rb'[{"op":"read","path":"C:\\x","value":"free"},{"op":"add","path":"/token","value":"free","secret":',
            Value(b'"of a log"', "$[*].secret"),
            b"}]",
        ),
    ),
    "lines": Body(
        "application/x-ndjson",
        (b'{"token":', Value(b'"a\\n"', "$.token"), b'}\r\n\n{"x":1}\n {"token": ', Value(b"null", "$.token"), b"}"),
    ),
    "sequence": Body(
        "application/json-seq",
        (b'\x1e{"token":', Value(b"1", "$.token"), b'}\n\x1e{"token":\n', Value(b'"2"', "$.token"), b"}\n"),
    ),
    "events": Body(
        "text/event-stream",
        (
            b': hello\nid: 1\ndata: {"token":',
            Value(b'"a"', "$.token"),
            b'}\n\nevent: b\r\ndata:{"x": 1,"token":',
            Value(b"{ }", "$.token"),
            b"}\r\n\r\nretry: 5\n\n",
        ),
    ),
}

TEXT_BY_TEXT = frozenset(("lines", "sequence", "events"))  # of these; the others are held


def jwk_of(receiver: Receiver) -> Any:
    """Return a receiver's private key as joserfc has it."""
    jwk: Any = to_jwk(receiver.key, private=True)
    return JWKRegistry.import_key(jwk)


def _cty(host: str, path: str) -> str:
    return 'application/json;host="{}";path="{}"'.format(host, path.replace("\\", "\\\\").replace('"', '\\"'))


def sealed(body: Body, sender: Receiver, host: str) -> bytes:
    """Return a body with tokens of joserfc's in place of its marked values."""
    key, alg = jwk_of(sender), sender.key.alg.value
    made = b""
    for piece in body.pieces:
        if isinstance(piece, bytes):
            made += piece
            continue
        header = {"alg": alg, "enc": "A256GCM", "kid": sender.kid, "cty": _cty(host, piece.path)}
        value = piece.sent if piece.means is None else json.dumps(piece.means).encode()
        token = jwe.encrypt_compact(header, value, key, algorithms=[alg, "A256GCM"])
        made += piece.quote + token.encode() + piece.quote
    return made


def assert_sealed(arrived: bytes, body: Body, receiver: Receiver, host: str) -> None:
    """Check that what arrived, decoded, has a token for each marked value, which joserfc opens, and is otherwise as it
    was sent.

    Args:
        arrived: the decoded body.
        body: what was sent.
        receiver: whose key opens the tokens.
        host: the host that `cty` must name.
    """

    def pattern_of(piece: bytes | Value) -> bytes:
        if isinstance(piece, bytes):
            return re.escape(piece)
        return re.escape(piece.quote) + b"(%s)" % TOKEN + re.escape(piece.quote)

    found = re.fullmatch(b"".join(map(pattern_of, body.pieces)), arrived, re.DOTALL)
    assert found is not None, f"bytes outside the marked values changed: {arrived!r}"
    key, alg = jwk_of(receiver), receiver.key.alg.value
    for token, value in zip(found.groups(), body.values, strict=True):
        opened = jwe.decrypt_compact(token, key, algorithms=[alg, "A256GCM"])
        header = opened.headers()
        assert (header["alg"], header["enc"], header["kid"]) == (alg, "A256GCM", receiver.kid)
        assert header["cty"] == _cty(host, value.path)
        assert opened.plaintext is not None
        assert value.is_told_by(opened.plaintext), f"{opened.plaintext!r} is not {value}"
