"""Signatures of requests that cover the body: encrypting a field would break them, and the server would refuse.

Rules of this module:

- What is known to cover the body counts, and so does what looks like it: a field whose name says that it is a
  signature, of a kind that nobody has listed. What says of itself that it leaves the body out does not.
- No message has a value of a field in it.
- Everything is read in linear time.

Known are: AWS Signature Version 4 and its like in `Authorization` and in the query, HTTP Message Signatures (RFC 9421)
and the drafts before them (draft-cavage-http-signatures), JWS with the payload left out (RFC 7515, appendix F), OAuth
1.0 body hashes, Hawk payload hashes, and the HMAC fields of webhooks and of banks' and exchanges' interfaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from proxy.core.digests import is_digest
from proxy.core.heads import Fields

_MIN_SIGNATURE = 16  # characters: an HMAC of 128 bits takes more; `true` and `v2` are none
_UNSIGNED = "unsigned-payload"
_WORDS = re.compile(r"[-_]")
# What stands beside a signature and tells of it: X-Signature-Timestamp.
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
_NO_SIGNATURES = frozenset(("accept-signature", "signature", "signature-input"))  # RFC 9421; the last two by themselves
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
# A string that is not closed is taken to the end, so that the next one is not looked for in it.
_STRING_OR_PAREN = re.compile(r'(=?)"((?:[^"\\]|\\.)*+)(?:"|\\?+\Z)|[()]', re.DOTALL)
_DETACHED_JWS = re.compile(r"[ \t]*+eyJ[A-Za-z0-9_-]*+\.\.[A-Za-z0-9_-]++[ \t]*+")
_IN_QUERY = ("x-amz-signature", "x-goog-signature", "bodysha256")


def covering(fields: Fields, query: str = "") -> str | None:
    """Return what of a request covers its body, so that another body would be refused, or None.

    Args:
        fields: the header fields.
        query: the query of the target, as it was sent.

    Returns:
        The field's name as it was sent, or the parameter of the query, in words.
    """
    decoded = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
    values: dict[str, list[str]] = {}
    for name, value in decoded:
        values.setdefault(name.lower(), []).append(value)
    for name, value in decoded:
        lower = name.lower()
        if (
            is_digest(lower.encode("latin-1"))
            or (lower == "authorization" and _authorization_covers(value, values))
            or (lower == "signature-input" and _message_signature_covers(value))
            or (lower == "signature" and "signature-input" not in values and _signature_covers(value))
            or (len(value) >= _MIN_SIGNATURE and _says_signature(lower))
            or _DETACHED_JWS.fullmatch(value)
        ):
            return f"the field {name}"
    parameter = _covering_parameter(query, values) if query else None
    return f"{parameter} in the query" if parameter else None


def _authorization_covers(value: str, values: Mapping[str, Sequence[str]]) -> bool:
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
    return not _says_unsigned(values) or (signed is not None and _covers_by_name(signed[1].split(";")))


def _says_unsigned(values: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a signer says that it left the body out (`x-amz-content-sha256: UNSIGNED-PAYLOAD` and its like)."""
    return any(
        name.endswith("-content-sha256") and all(each.strip().lower() == _UNSIGNED for each in said)
        for name, said in values.items()
    )


def _covers(names: Sequence[str]) -> bool:
    """Tell whether one of these header fields would not fit another body."""
    return any(name.endswith("content-sha256") for name in names) or _covers_by_name(names)


def _covers_by_name(names: Sequence[str]) -> bool:
    """Tell so of fields whose value need not be looked at: a hash may say that there is none."""
    return any(name == "content-length" or is_digest(name.encode("latin-1", "replace")) for name in names)


def _signature_covers(value: str) -> bool:
    lower = value.lower()
    return _cavage_covers(lower) if "keyid=" in lower else len(value) >= _MIN_SIGNATURE


def _cavage_covers(parameters: str) -> bool:
    """Tell so of the parameters of draft-cavage-http-signatures; without `headers`, only Date is signed."""
    return any(_covers(found.split()) for found in _CAVAGE_HEADERS.findall(parameters))


def _message_signature_covers(value: str) -> bool:
    """Tell whether a Signature-Input names a component that would not fit (RFC 9421, section 4.1)."""
    depth, components = 0, []
    for found in _STRING_OR_PAREN.finditer(value):
        if found[0] in ("(", ")"):
            depth += 1 if found[0] == "(" else -1
        elif depth > 0 and not found[1]:  # and no parameter's value
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


def _covering_parameter(query: str, values: Mapping[str, Sequence[str]]) -> str | None:
    pairs = [unquote(pair).lower().partition("=") for pair in query.split("&")]
    said = {name: [value] for name, _, value in pairs}
    found = next((name for name in _IN_QUERY if name in said), None)
    if found is None:
        return None
    signed = [name for key, each in said.items() if key.endswith("-signedheaders") for name in each[0].split(";")]
    is_unsigned = _says_unsigned(said) or _says_unsigned(values)
    return None if is_unsigned and not _covers_by_name(signed) else found
