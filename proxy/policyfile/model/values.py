"""Parses the single values of the policy file, from text into the core's types. The sections of the model call it for
each value.

Rules of this module:

- A value is parsed while the model validates it, so that one run finds all wrong values of a file.
- Each error says what would be right. A value that may be a secret by mistake (a key pasted as a file name) is not
  quoted.
- Nothing is converted silently: text stays text, and `True` is not 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from proxy.core.fields.entries import PathGlob
from proxy.core.jose.keys import MAX_KID_LENGTH
from proxy.core.pins import Pin, parse_pin
from proxy.core.rules.policy import HostPattern, Listener
from proxy.core.who.addresses import AddressKind, Network, parse_addresses
from proxy.core.who.clients import PasswordHash, parse_password_hash, parse_user_name
from proxy.policyfile.model.addresses import (
    MAX_PATH_LENGTH,
    JwksUrl,
    ProxyAddress,
    parse_admin,
    parse_host_pattern,
    parse_jwks_url,
    parse_listener,
    parse_path,
    parse_proxy_url,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NO_NAME = re.compile(r"[^a-z0-9_-]+")
_VIA = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")  # a token (RFC 9110, section 5.6.2) without lower case
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GRAPHQL_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DURATION = re.compile(r"([1-9][0-9]{0,5})(s|m|h|d|w)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_MOST_DAYS = 3660
_MOST_AGE_DAYS = 30
_OFF = frozenset({"", "null", "none", "off", "no", "false", "~"})
_MAX_MEMBER_NAME = 256
MAX_WORKERS = 64


@dataclass(frozen=True, slots=True)
class PinFile:
    """A pin that is computed from the certificate or key in a PEM file."""

    file: str


@dataclass(frozen=True, slots=True)
class KeySource:
    """The source of a key: either an environment variable or a file."""

    env: str | None = None
    file: str | None = None


def _parse_host_name(text: str) -> str:
    pattern = parse_host_pattern(text)
    if pattern.kind != "exact" or pattern.port is not None:
        raise ValueError("a name of this sidecar is one whole host name, without stars and without a port")
    return pattern.host


def _parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        near = _NO_NAME.sub("-", text.lower()).strip("-_")
        meant = f": write {near}" if _NAME.fullmatch(near) else ""
        raise ValueError(f"a name is 1 to 63 of a-z, 0-9, '_' and '-', and starts with a letter or digit{meant}")
    return text


def _parse_via(text: str) -> str:
    if not _VIA.fullmatch(text):
        raise ValueError("a name for Via is a token of 1 to 64 characters (RFC 9110, section 5.6.2), without a comment")
    return text


def _parse_kid(text: str) -> str:
    if not 1 <= len(text) <= MAX_KID_LENGTH or not text.isprintable():
        raise ValueError(f"a kid has 1 to {MAX_KID_LENGTH} printable characters")
    return text


def _parse_member_name(text: str) -> str:
    if not 1 <= len(text) <= _MAX_MEMBER_NAME or not text.isprintable():
        raise ValueError(f"a member's name has 1 to {_MAX_MEMBER_NAME} printable characters")
    return text


def _parse_variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("this is no name of an environment variable: letters, digits and '_' only")
    return text


def _parse_form_name(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("a field's name has at least one character, and no invisible one")
    return text


def _parse_field_name(text: str) -> str:
    if not _FIELD_NAME.fullmatch(text):
        raise ValueError("the name of a header field has only letters, digits and some marks (RFC 9110, section 5.6.2)")
    return text.lower()


def _parse_graphql_name(text: str) -> str:
    if not _GRAPHQL_NAME.fullmatch(text):
        raise ValueError("a GraphQL name has ASCII letters, digits and '_', and begins with no digit")
    return text


def _parse_method(text: str) -> str:
    if text.upper() in ("*", "CONNECT", "ALL", "ANY"):
        raise ValueError(f"{text} is no method that a body comes with; leave methods out to mean all of them")
    if _METHOD.fullmatch(text):
        return text
    if _METHOD.fullmatch(text.upper()):
        raise ValueError(f"methods are exact and upper-case: write {text.upper()}")
    raise ValueError("this is no HTTP method (a token, RFC 9110, section 9.1)")


def parsed[T](parse: Callable[[str], T]) -> PlainValidator:
    """Return the validator for a value that is text in the file and a `T` once it is parsed."""

    def validate(value: object) -> T:
        if not isinstance(value, str):
            raise PydanticCustomError("string_type", "must be text")
        return parse(value)

    return PlainValidator(validate)


def _parse_version(value: object) -> Literal[1]:
    if type(value) is int and value == 1:  # without the type, True would pass: `True == 1`
        return 1
    raise ValueError("this must be 1, the only version there is, without quotes")


def _parse_day(value: object) -> date:
    if type(value) is date:
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"there is no such day as {value}") from None
    raise ValueError("a day is written YYYY-MM-DD, such as 2027-06-30")


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("a time is a number and a unit: 90s, 15m, 1h, 30d or 4w")
    return int(found[1]) * _UNITS[found[2]]


def _parse_days(text: str) -> int:
    days, rest = divmod(_seconds(text), _UNITS["d"])
    if rest or days > _MOST_DAYS:
        raise ValueError(f"this is counted in whole days, up to {_MOST_DAYS}: write 30d or 4w")
    return days


def _parse_max_age(text: str) -> int:
    seconds = _seconds(text)
    if seconds > _MOST_AGE_DAYS * _UNITS["d"]:
        raise ValueError(f"keys that somebody else publishes are fetched again within {_MOST_AGE_DAYS} days")
    return seconds


def _parse_admin_entry(value: object) -> Listener | None:
    if value is None:
        return None
    if value is False or (isinstance(value, str) and value.lower() in _OFF):
        raise ValueError("write null, without quotes, to have no such listener")
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be text")
    return parse_admin(value)


def _parse_pin_entry(value: object) -> Pin | PinFile:
    if isinstance(value, str):
        return parse_pin(value)
    if isinstance(value, dict) and list(value) == ["file"] and isinstance(value["file"], str):
        return PinFile(parse_path(value["file"]))
    raise ValueError("a pin is text such as sha256/…, or {file: NAME.pem} with a certificate or a key in PEM")


def _parse_key_source(value: object) -> KeySource:
    if isinstance(value, dict) and len(value) == 1:
        if isinstance(value.get("env"), str):
            return KeySource(env=_parse_variable(value["env"]))
        if isinstance(value.get("file"), str):
            return KeySource(file=parse_path(value["file"]))
    raise ValueError(
        "where a key comes from is {env: NAME} or {file: PATH}, one of them; a key never stands here itself"
    )


def _parse_set_source(value: object) -> KeySource:
    if isinstance(value, str):
        return KeySource(file=parse_path(value))
    try:
        return _parse_key_source(value)
    except ValueError:
        raise ValueError(
            "a JWK Set is named by its file, keys/app.jwks, or by {env: NAME}; it never stands here itself"
        ) from None


def _parse_password_entry(value: object) -> PasswordHash | KeySource:
    if isinstance(value, str):
        return parse_password_hash(value)
    try:
        return _parse_key_source(value)
    except ValueError:
        raise ValueError(
            "this is the text that `overcoat password` prints, or {env: NAME} or {file: PATH} of it; never the password"
        ) from None


def _parse_workers(value: object) -> int:
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WORKERS:
        raise PydanticCustomError("workers", f"write a number from 1 to {MAX_WORKERS}, or auto for one a processor")
    return value


def text_schema(**keywords: Any) -> WithJsonSchema:
    """Return the JSON Schema of a value that is text in the file, with keywords that say more of it."""
    return WithJsonSchema({"type": "string", **keywords})


def _one_of_these(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    }


Name = Annotated[str, parsed(_parse_name), text_schema(pattern=f"^{_NAME.pattern}$")]
WorkerCount = Annotated[
    int,
    PlainValidator(_parse_workers),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}, {"const": "auto"}]}),
]
Version = Annotated[Literal[1], PlainValidator(_parse_version), WithJsonSchema({"const": 1})]
ViaName = Annotated[str, parsed(_parse_via), text_schema(pattern=f"^{_VIA.pattern}$")]
Kid = Annotated[str, parsed(_parse_kid), text_schema(minLength=1, maxLength=MAX_KID_LENGTH)]
MemberName = Annotated[str, parsed(_parse_member_name), text_schema(minLength=1, maxLength=_MAX_MEMBER_NAME)]
FileName = Annotated[str, parsed(parse_path), text_schema(minLength=1, maxLength=MAX_PATH_LENGTH)]
Days = Annotated[int, parsed(_parse_days), text_schema(pattern="^[1-9][0-9]{0,5}[smhdw]$")]
JwksUrlText = Annotated[JwksUrl, parsed(parse_jwks_url), text_schema(pattern="^https://")]
MaxAge = Annotated[int, parsed(_parse_max_age), text_schema(pattern="^[1-9][0-9]{0,5}[smhdw]$")]
Day = Annotated[date, PlainValidator(_parse_day), text_schema(format="date")]
ListenerText = Annotated[
    Listener,
    parsed(parse_listener),
    text_schema(
        pattern=r"^((forward|socks5|transparent)://.+:[0-9]+|reverse://.+:[0-9]+\?to=https://.+|mirror://.+:[0-9]+\?.+)$"
    ),
]
HostName = Annotated[str, parsed(_parse_host_name), text_schema(minLength=1, pattern="^[^*/]+$")]
HostText = Annotated[HostPattern, parsed(parse_host_pattern), text_schema(minLength=1)]
ProxyUrl = Annotated[ProxyAddress, parsed(parse_proxy_url), text_schema(pattern="^https?://[^@/]+:[0-9]+/?$")]
PathText = Annotated[PathGlob, parsed(PathGlob.parse), text_schema(pattern="^/[^?#]*$")]
MethodText = Annotated[str, parsed(_parse_method), text_schema(pattern=f"^{_METHOD.pattern}$")]
FieldNameText = Annotated[str, parsed(_parse_field_name), text_schema(pattern=f"^{_FIELD_NAME.pattern}$")]
FormName = Annotated[str, parsed(_parse_form_name), text_schema(minLength=1)]
GraphqlName = Annotated[str, parsed(_parse_graphql_name), text_schema(pattern=f"^{_GRAPHQL_NAME.pattern}$")]

AddressesText = Annotated[AddressKind | Network, parsed(parse_addresses), text_schema(minLength=1)]
UserName = Annotated[str, parsed(parse_user_name), text_schema(minLength=1, maxLength=64, pattern="^[^:]+$")]

AdminText = Annotated[
    Listener | None,
    PlainValidator(_parse_admin_entry),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": "^.+:[0-9]+$"}, {"type": "null"}]}),
]
ResponseSeconds = Annotated[
    Annotated[int, Field(ge=1, le=86_400)] | None,
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 86_400}, {"type": "null"}]}),
]
PinEntry = Annotated[
    Pin | PinFile,
    PlainValidator(_parse_pin_entry),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^(sha256[/:]|pin-sha256=|cert-sha256/)"},
                _one_of_these(file={"type": "string", "minLength": 1, "maxLength": MAX_PATH_LENGTH}),
            ]
        }
    ),
]
_SOURCE = _one_of_these(
    env={
        "type": "string",
        "pattern": f"^{_VARIABLE.pattern}$",
        "description": "The environment variable that holds it.",
    },
    file={
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_PATH_LENGTH,
        "description": "The file that holds it.",
    },
)
KeySourceEntry = Annotated[KeySource, PlainValidator(_parse_key_source), WithJsonSchema(_SOURCE)]
SetSource = Annotated[
    KeySource,
    PlainValidator(_parse_set_source),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_PATH_LENGTH}, _SOURCE]}),
]
PasswordEntry = Annotated[
    PasswordHash | KeySource,
    PlainValidator(_parse_password_entry),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\$scrypt\$"}, _SOURCE]}),
]
