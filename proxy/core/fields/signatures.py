"""Recognises requests whose body is signed. Encrypting a field would break the signature, and the server would refuse
the request; so `addons.bodyheads` asks this module first.

Rules of this module:

- Everything counts that is known to cover the body, or a digest of it, and also a field whose name says that it is a
  signature, of a kind that is not listed here. A signature that says it leaves the body out does not count, nor does a
  digest by itself (`proxy.core.http.digests`).
- No message quotes a field's value.
- Everything is read in linear time.

Known are: AWS Signature Version 4 and similar ones, in `Authorization` and in the query; HTTP Message Signatures (RFC
9421) and the drafts before them (draft-cavage-http-signatures); JWS with a detached payload (RFC 7515, appendix F);
OAuth 1.0 body hashes; Hawk payload hashes; and the HMAC fields of webhooks, banks and exchanges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from functools import cached_property, lru_cache
from urllib.parse import unquote

from proxy.core.http.digests import is_digest
from proxy.core.http.heads import KEPT, Fields, names_in

_MAX_REMEMBERED = 64  # characters: the kind of a longer name is not cached
_MIN_SIGNATURE = 16  # characters: an HMAC of 128 bits is longer; `true` and `v2` are no signatures
_UNSIGNED = b"unsigned-payload"
_JWS = b"eyJ"  # how its header begins
_WORDS = re.compile(r"[-_]")
# Words in the names of fields that only describe a signature: X-Signature-Timestamp.
_COMPANIONS = frozenset(
    (
        "agent",
        "alg",
        "algorithm",
        "created",
        "date",
        "encoding",
        "expires",
        "format",
        "headers",
        "id",
        "input",
        "key",
        "keyid",
        "method",
        "nonce",
        "params",
        "time",
        "timestamp",
        "type",
        "version",
    )
)
_NO_SIGNATURES = frozenset(("accept-signature",))  # RFC 9421, section 5.1: it asks for a signature
_BY_NAME = frozenset(
    (
        "plaid-verification",  # a JWT with the hash of the body
        "x-pay-token",  # Visa
        "x-trello-webhook",
    )
)
# Schemes of Authorization: AWS4-HMAC-SHA256, AWS4-ECDSA-P256-SHA256, GOOG4-RSA-SHA256, TC3-HMAC-SHA256,
# EG1-HMAC-SHA256, WECHATPAY2-SHA256-RSA2048, HMAC; SharedKey covers Content-Length (Azure Storage).
_SIGNING_SCHEME = re.compile(r"hmac|sha[0-9]|ecdsa|rsa[0-9-]|\Asharedkey\Z")
_SIGNED_HEADERS = re.compile(r"signedheaders=([^,& \t]*+)")
_CAVAGE_HEADERS = re.compile(r'headers[ \t]*+=[ \t]*+"([^"]*+)"')
# A string that is not closed goes on to the end; nothing inside it counts.
_STRING_OR_PAREN = re.compile(r'(=?)"((?:[^"\\]|\\.)*+)(?:"|\\?+\Z)|[()]', re.DOTALL)
_DETACHED_JWS = re.compile(r"[ \t]*+eyJ[A-Za-z0-9_-]*+\.\.[A-Za-z0-9_-]++[ \t]*+")
_IN_QUERY = frozenset(("x-amz-signature", "x-goog-signature", "bodysha256"))


class _Kind(Enum):
    """What a field's name says about the field."""

    NOTHING = auto()
    SIGNATURE = auto()  # a signature, if the value is long enough
    AUTHORIZATION = auto()
    MESSAGE_SIGNATURE = auto()
    CAVAGE = auto()


def covering(fields: Fields, query: str = "") -> str | None:
    """Return what covers a request's body, so that a changed body would be refused; None if nothing does.

    Args:
        fields: the header fields.
        query: the query of the target, as sent.

    Returns:
        The field's name as sent, or the parameter of the query, in words.
    """
    beside = _Beside(fields)
    looked_at: Iterable[tuple[bytes, bytes]] = fields
    if _say_nothing(names_in(fields)):
        looked_at = [field for field in fields if field[1].lstrip().startswith(_JWS)]
    for name, value in looked_at:
        kind = _kind(name) if len(name) <= _MAX_REMEMBERED else _kind.__wrapped__(name)
        if kind is _Kind.NOTHING and not value.lstrip().startswith(_JWS):
            continue
        if _field_covers(kind, value.decode("latin-1"), beside):
            return f"the field {name.decode('latin-1')}"
    parameter = _covering_parameter(query, fields) if query else None
    return f"{parameter} in the query" if parameter else None


@lru_cache(KEPT)  # of most requests the names are the same, whatever the values
def _say_nothing(names: frozenset[bytes]) -> bool:
    return all(_kind.__wrapped__(name) is _Kind.NOTHING for name in names)


@lru_cache(maxsize=512)  # a few names come again and again
def _kind(name: bytes) -> _Kind:
    lower = name.lower().decode("latin-1")
    if lower == "authorization":
        return _Kind.AUTHORIZATION
    if lower == "signature-input":
        return _Kind.MESSAGE_SIGNATURE
    if lower == "signature":
        return _Kind.CAVAGE
    return _Kind.SIGNATURE if _says_signature(lower) else _Kind.NOTHING


class _Beside:
    """What the other fields say about a signature; looked up once, whatever the number of signatures."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    @cached_property
    def unsigned(self) -> bool:
        return _says_unsigned(self._fields)

    @cached_property
    def input(self) -> bool:
        return any(_kind(name) is _Kind.MESSAGE_SIGNATURE for name, _ in self._fields)


def _field_covers(kind: _Kind, value: str, beside: _Beside) -> bool:
    match kind:
        case _Kind.AUTHORIZATION:
            return _authorization_covers(value, beside)
        case _Kind.MESSAGE_SIGNATURE:
            return _message_signature_covers(value)
        case _Kind.CAVAGE:
            return not beside.input and _signature_covers(value)
        case _Kind.SIGNATURE if len(value) >= _MIN_SIGNATURE:
            return True
        case _:
            return _DETACHED_JWS.fullmatch(value) is not None


def _authorization_covers(value: str, beside: _Beside) -> bool:
    scheme, _, rest = value.strip().lower().partition(" ")
    if scheme == "signature":
        return _cavage_covers(rest)
    if scheme == "oauth":
        return "oauth_body_hash" in rest
    if scheme == "hawk":
        return "hash=" in rest
    if not _SIGNING_SCHEME.search(scheme):
        return False
    signed = _SIGNED_HEADERS.search(rest)
    return not beside.unsigned or (signed is not None and _covers_by_name(signed[1].split(";")))


def _says_unsigned(fields: Fields) -> bool:
    """Tell whether the signer says that the body is left out (`x-amz-content-sha256: UNSIGNED-PAYLOAD`, say)."""
    said = {value.strip().lower() for name, value in fields if name.lower().endswith(b"-content-sha256")}
    return said == {_UNSIGNED}


def _covers(names: Sequence[str]) -> bool:
    """Tell whether one of these header fields would not match a changed body."""
    return any(name.endswith("content-sha256") for name in names) or _covers_by_name(names)


def _covers_by_name(names: Sequence[str]) -> bool:
    """Tell the same for fields whose value makes no difference; the value of a hash may say that there is none."""
    return any(name == "content-length" or is_digest(name.encode("latin-1", "replace")) for name in names)


def _signature_covers(value: str) -> bool:
    lower = value.lower()
    return _cavage_covers(lower) if "keyid=" in lower else len(value) >= _MIN_SIGNATURE


def _cavage_covers(parameters: str) -> bool:
    """Tell whether the parameters of draft-cavage-http-signatures cover the body; without `headers`, they sign only
    Date.
    """
    return any(_covers(found.split()) for found in _CAVAGE_HEADERS.findall(parameters))


def _message_signature_covers(value: str) -> bool:
    """Tell whether a Signature-Input names a component that covers the body (RFC 9421, section 4.1)."""
    depth, components = 0, []
    for found in _STRING_OR_PAREN.finditer(value):
        if found[0] in ("(", ")"):
            depth += 1 if found[0] == "(" else -1
        elif depth > 0 and not found[1]:  # not a parameter's value
            components.append(found[2].lower())
    return _covers(components)


def _says_signature(name: str) -> bool:
    """Tell whether a field's name says that it holds a signature: X-Hub-Signature-256, X-Shopify-Hmac-Sha256."""
    if name in _NO_SIGNATURES:
        return False
    words = _WORDS.split(name)
    if words[-1] in _COMPANIONS:
        return False
    return (
        name in _BY_NAME
        or words[-1] == "sign"
        or any(word == "sig" or "hmac" in word or word.endswith("signature") for word in words)
    )


def _covering_parameter(query: str, fields: Fields) -> str | None:
    pairs = [unquote(pair).lower().partition("=") for pair in query.split("&")]
    found = next((name for name, _, _ in pairs if name in _IN_QUERY), None)
    if found is None:
        return None
    signed = [each for name, _, value in pairs if name.endswith("-signedheaders") for each in value.split(";")]
    said = tuple((name.encode("utf-8"), value.encode("utf-8")) for name, _, value in pairs)
    return None if _says_unsigned((*said, *fields)) and not _covers_by_name(signed) else found
