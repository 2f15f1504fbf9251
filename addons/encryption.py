"""Encryption: marked fields of request bodies become JWEs, marked fields of responses become plaintext.

Rules of this addon:

- A body with fields to protect is held until it is whole and protected; any other body streams through.
- What should be protected and can't be is denied, before anything of it has left.
- Nothing selected: the body goes on as the very bytes that came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime

from mitmproxy import http

from addons.exchange import Exchange, Sessions
from proxy.core import encodings, fields, jwe
from proxy.core.decisions import Denied, Reason
from proxy.core.policy import FieldEntry

# One app's body, or one upstream's, must not keep all others waiting: half a second of work at the most.
MAX_SEALED = 4096
MAX_OPENED = 512

Transform = Callable[[bytes, str], bytes]

_CHARSET = re.compile(r"charset[^;=]*=[ \t]*[\"']?([^\"';]*)", re.IGNORECASE)
_WEIGHT_ZERO = re.compile(r"q=0(?:\.0{0,3})?")
_DIGESTS = ("content-digest", "repr-digest", "digest", "content-md5")


class Encryption:
    """Decides which bodies are held, and splices their fields."""

    def __init__(self, sessions: Sessions, today: Callable[[], date] = lambda: datetime.now(UTC).date()) -> None:
        self.sessions = sessions
        self.today = today

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Hold a body that has fields to encrypt; let any other stream."""
        exchange = self.sessions.exchange(flow)
        if flow.response is not None:
            return
        entries = _applying(exchange, exchange.rule.encrypt if exchange.rule else ())
        if not entries:
            flow.request.stream = exchange.count_sent
        else:
            try:
                self._check_before_body(exchange, entries, flow.request)
            except Denied as denied:
                exchange.deny(flow, denied)
            if exchange.observing:
                flow.request.stream = _Tee(exchange, flow.request)
            elif flow.response is None:
                exchange.holds_request = True
        if _applying(exchange, exchange.rule.decrypt if exchange.rule else ()) and not exchange.observing:
            # The response must come in an encoding that can be opened here (RFC 9110, section 12.5.3).
            offered = flow.request.headers.get("accept-encoding", "")
            flow.request.headers["accept-encoding"] = "gzip" if _takes_gzip(offered) else "identity"

    def _check_before_body(self, exchange: Exchange, entries: tuple[FieldEntry, ...], request: http.Request) -> None:
        if "upgrade" in request.headers:
            raise Denied(
                Reason.BODY_NOT_JSON,
                "the request asks for WebSocket, whose messages cannot be protected as a body can",
                "narrow the rule's `when` to the requests that have fields to encrypt",
            )
        for entry in entries:
            if entry.keys.primary.expired(self.today()):
                raise Denied(
                    Reason.KEY_UNAVAILABLE,
                    f"key {entry.keys.primary.kid} of key set {entry.keys.name} is past its not_after date",
                    f"give key set {entry.keys.name} a new primary key",
                )
        _check_charset(request.headers)
        encodings.parse_encoding(_joined(request.headers, "content-encoding"))
        length = request.headers.get("content-length", "0")
        if int(length) > exchange.policy.limits.held_body:
            raise body_too_large(exchange)

    def request(self, flow: http.HTTPFlow) -> None:
        """Encrypt the fields of a held body."""
        exchange = self.sessions.exchange(flow)
        if not exchange.holds_request or flow.response is not None:
            return
        body = flow.request.data.content or b""
        try:
            protected, count = self._encrypt(exchange, flow.request, body)
        except Denied as denied:
            exchange.deny(flow, denied)
            return
        except jwe.JweError:  # the one thing that can go wrong in sealing
            exchange.deny(flow, body_too_large(exchange))
            return
        exchange.fields_encrypted = count
        exchange.bytes_sent = len(protected)
        _replace_body(flow.request, protected)

    def _encrypt(self, exchange: Exchange, request: http.Request, body: bytes) -> tuple[bytes, int]:
        if not body:
            return body, 0
        spliced, encoding = _splice_request(exchange, request, body, lambda entry: _sealer(exchange, entry))
        if spliced.total == 0:
            return body, 0
        return encodings.encode(spliced.body, encoding), spliced.total

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Hold a JSON response that has fields to decrypt; let any other stream."""
        exchange = self.sessions.exchange(flow)
        response = flow.response
        if response is None or (exchange.denied is not None and not exchange.observing):
            return
        entries = _applying(exchange, exchange.rule.decrypt if exchange.rule else ())
        if entries and not exchange.observing and _is_json(response):
            exchange.holds_response = True
        else:
            response.stream = exchange.count_received

    def response(self, flow: http.HTTPFlow) -> None:
        """Decrypt the fields of a held response."""
        exchange = self.sessions.exchange(flow)
        if not exchange.holds_response or flow.response is None or exchange.denied is not None:
            return
        body = flow.response.data.content or b""
        try:
            opened, count = self._decrypt(exchange, flow.response, body)
        except (Denied, jwe.JweError) as e:
            exchange.refuse(flow, Denied(Reason.DECRYPTION_FAILED, f"the response cannot be decrypted: {_why(e)}"))
            return
        exchange.fields_decrypted = count
        exchange.bytes_received = len(body)
        _replace_body(flow.response, opened)

    def _decrypt(self, exchange: Exchange, response: http.Response, body: bytes) -> tuple[bytes, int]:
        if not body:
            return body, 0
        entries = _applying(exchange, exchange.rule.decrypt if exchange.rule else ())
        _check_charset(response.headers)
        encoding = encodings.parse_encoding(_joined(response.headers, "content-encoding"))
        plain = encodings.decode(body, encoding, exchange.policy.limits.held_body)
        jobs = [fields.Job(entry.selectors, self._opener(exchange, entry)) for entry in entries]
        try:
            spliced = fields.splice(plain, jobs, MAX_OPENED)
        except ValueError:  # its sender sealed something else than a value
            raise Denied(Reason.DECRYPTION_FAILED, "a field opens to something that is not one JSON value") from None
        if spliced.total == 0:
            return body, 0
        return encodings.encode(spliced.body, encoding), spliced.total

    def _opener(self, exchange: Exchange, entry: FieldEntry) -> Transform:
        host = _host(exchange)

        def open_value(value: bytes, path: str) -> bytes:
            token = fields.token_of(value)
            if token is None:  # the place is not named: member names come from the body
                where = ", ".join(selector.text for selector in entry.selectors)
                raise Denied(Reason.DECRYPTION_FAILED, f"a value at {where} is no string holding a JWE")
            return jwe.open_token(token, entry.keys, jwe.Place(host, path), self.today())

        return open_value


def body_too_large(exchange: Exchange) -> Denied:
    """Return the denial of a body that is longer than what is held."""
    return Denied(
        Reason.BODY_TOO_LARGE,
        f"the body is longer than the {exchange.policy.limits.held_body} bytes that are held to protect its fields",
        "raise limits.held_body in the policy, or narrow the rule's `when`",
    )


def _splice_request(
    exchange: Exchange, request: http.Request, body: bytes, transform: Callable[[FieldEntry], Transform]
) -> tuple[fields.Spliced, encodings.Encoding]:
    """Replace the marked values of a request's body, and say how the body was coded.

    Raises:
        Denied: the body cannot be read, or a digest in the head covers what must change.
    """
    entries = _applying(exchange, exchange.rule.encrypt if exchange.rule else ())
    encoding = encodings.parse_encoding(_joined(request.headers, "content-encoding"))
    plain = encodings.decode(body, encoding, exchange.policy.limits.held_body)
    jobs = [fields.Job(entry.selectors, transform(entry)) for entry in entries]
    spliced = fields.splice(plain, jobs, MAX_SEALED)
    for name in _DIGESTS if spliced.total else ():
        if name in request.headers:
            raise Denied(
                Reason.SIGNED_BODY,
                f"the request carries {name} over a body whose fields must be encrypted",
                "make the app send this request without a body digest",
            )
    return spliced, encoding


def _check_charset(headers: http.Headers) -> None:
    """Refuse a body that its receiver would not read as UTF-8: it would find other names in it than we do.

    Raises:
        Denied: ENCODING_UNSUPPORTED.
    """
    content_types = headers.get_all("content-type")
    charsets = _CHARSET.findall(";".join(content_types))
    if len(content_types) > 1 or any(charset.lower() not in ("utf-8", "utf8", "us-ascii") for charset in charsets):
        raise Denied(
            Reason.ENCODING_UNSUPPORTED,
            "the body's Content-Type is given more than once, or names another charset than UTF-8",
            "send JSON in UTF-8, which is all that RFC 8259 knows",
        )


def _host(exchange: Exchange) -> str:
    if exchange.asked is None:
        raise RuntimeError("no destination was decided before the body")
    return exchange.asked.host


def _sealer(exchange: Exchange, entry: FieldEntry) -> Transform:
    host, sealer = _host(exchange), jwe.Sealer(entry.keys.primary)
    return lambda value, path: fields.sealed_string(sealer.seal(value, jwe.Place(host, path)))


def _applying(exchange: Exchange, entries: tuple[FieldEntry, ...]) -> tuple[FieldEntry, ...]:
    return tuple(entry for entry in entries if entry.when.applies(exchange.method, exchange.path))


def _joined(headers: http.Headers, name: str) -> str | None:
    values = headers.get_all(name)
    return ", ".join(values) if values else None


def _takes_gzip(offered: str) -> bool:
    """Tell whether an Accept-Encoding value names gzip, and not with a weight of 0 (RFC 9110, section 12.4.2)."""
    for offer in offered.lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() in ("gzip", "x-gzip") and not _WEIGHT_ZERO.fullmatch(weight.strip()):
            return True
    return False


def _is_json(response: http.Response) -> bool:
    media_type: str = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _replace_body(message: http.Message, body: bytes) -> None:
    """Set the body as it goes on the wire, and its length where a length is what frames it."""
    if message.data.content is body:
        return
    message.data.content = body
    if "transfer-encoding" not in message.headers:
        message.headers["content-length"] = str(len(body))


def _why(error: Exception) -> str:
    return error.detail if isinstance(error, Denied) else str(error)


def _unchanged(value: bytes, _path: str) -> bytes:
    return value


class _Tee:
    """Passes a body on untouched and counts, in observe mode, what would have been encrypted in it."""

    def __init__(self, exchange: Exchange, request: http.Request) -> None:
        self.exchange = exchange
        self.request = request
        self.held = bytearray()

    def __call__(self, data: bytes) -> bytes:
        limit = self.exchange.policy.limits.held_body
        if data:
            self.exchange.count_sent(data)
            if len(self.held) <= limit:
                self.held += data
            return data
        try:
            if len(self.held) > limit:
                raise body_too_large(self.exchange)
            if self.held:
                spliced, _ = _splice_request(self.exchange, self.request, bytes(self.held), lambda _: _unchanged)
                self.exchange.fields_encrypted = spliced.total
        except Denied as denied:
            self.exchange.note(denied)
        self.held.clear()
        return data
