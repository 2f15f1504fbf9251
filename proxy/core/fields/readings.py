"""Collects the readings of a request: all methods and all paths that common servers may read in it. `addons.marked` and
`overcoat explain` call it, so that no request can avoid an entry of a rule by being read differently by Overcoat and
the server.

Rules of this module:

- A request matches a `when` if one of its readings does. If it may have readings that are not known here, it may be
  anything, and so it matches (fail closed).
- Methods: the one in the request line, and those that header fields, the query or the body ask for instead (Rails,
  Symfony, Laravel, Express, Spring, ASP.NET, WordPress, and frameworks that follow them). All of these obey them for
  POST only; here they count for every method, because other servers may do otherwise.
- Paths: as sent, decoded, without the parts that some servers cut off, and those that header fields of proxies and of
  IIS name instead.
- Each byte is looked at a few times at most. A request that names more than `MOST_NAMED` methods or paths may be any.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote, unquote_to_bytes

from proxy.core.fields.automaton import Marks
from proxy.core.fields.jsontext import NotJson, TooMuchSelected, find_spans, string_value
from proxy.core.fields.selectors import parse_selector
from proxy.core.http.heads import KEPT, Fields, names_in

# The greatest number of methods, and of paths (each after each prefix). An honest request names one or two.
MOST_NAMED = 16

# Maps names to one form before they are compared: some servers take `_` (CGI) or other characters (old CGI) for `-`.
_FOLD = bytes(code + 32 if 65 <= code <= 90 else code if chr(code).isalnum() else 45 for code in range(256))
_METHOD_FIELDS = frozenset(
    (b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-method", b"x-forwarded-method")
)
_PATH_FIELDS = frozenset(
    (
        *(b"x-original-url", b"x-rewrite-url", b"x-original-uri", b"x-rewrite-uri", b"x-override-url"),
        *(b"x-forwarded-uri", b"x-forwarded-url", b"x-forwarded-path", b"x-original-path", b"x-envoy-original-path"),
        b"x-waws-unencoded-url",
    )
)
_PREFIX_FIELDS = frozenset((b"x-forwarded-prefix", b"x-script-name"))
_METHOD = re.compile(r"[A-Za-z][A-Za-z-]*+")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*+://[^/?#]*+")

# The parameter of a query or a form that asks for another method: `_method`, or the name of one of the header fields.
# PHP takes dots, blanks and brackets in a name for `_`.
_PARAMETER = re.compile(
    rb"(?:\A|[&;])(?:[^a-z0-9&;=]++|[^a-z0-9&;=]*+x[^a-z0-9&;=](?:http[^a-z0-9&;=])?)"
    rb"method(?:[^a-z0-9&;=]override)?[^a-z0-9&;=]*+(?:=([^&;]*+)|(?=[&;]|\Z))"
)
_PART = re.compile(rb"content-disposition[^\r\n]*+(?:\r?+\n[ \t][^\r\n]*+)*+")
_PART_NAME = re.compile(rb"(?<!file)name\*?+[ \t]*+=[^;\r\n]*+")
_PART_METHOD = re.compile(
    rb"(?:[^a-z0-9\"'= \t]|[^a-z0-9]x[^a-z0-9](?:http[^a-z0-9])?)method(?:[^a-z0-9]override)?[^a-z0-9]*+\Z"
)
_ESCAPE = re.compile(rb"\\u00([0-7][0-9a-f])")
_JSON_METHOD = [Marks((parse_selector("$._method"),))]

# Empty and dot segments, path parameters, backslashes, control characters, malformed escapes, and escapes of any of
# these or of a percent sign. Servers differ in which of them they resolve, strip or cut off, in which order, and in how
# often they decode.
_AMBIGUOUS = re.compile(
    r"\A(?!/)|//|/\.\.?(?:/|\Z)|[;\\\x00-\x1f\x7f]|%(?:[01]|2[EeFf5]|3[Bb]|5[Cc]|7[Ff]|(?![0-9A-Fa-f]{2}))"
)
_CUT = re.compile(r"[?#]")
_TRIMMED = " .+"  # at the end of a segment; some servers take `+` for a blank
_FORMAT = re.compile(r"\.json\Z", re.IGNORECASE)  # Rails and Spring ignore it when they choose a handler


@dataclass(frozen=True, slots=True)
class Readings:
    """All methods and paths that servers may read in a request.

    Attributes:
        methods: in upper case; None if it may be any.
        paths: without queries, in all spellings; None if it may be any.
    """

    methods: frozenset[str] | None
    paths: tuple[str, ...] | None


def readings(method: str, path: str, query: str = "", fields: Fields = ()) -> Readings:
    """Return the readings of a request, as far as its head tells.

    Args:
        method: its method, in any case: some servers ignore the case.
        path: its path as sent, without the query.
        query: its query.
        fields: its header fields, as they go on.
    """
    methods: frozenset[str] | None = frozenset((method.upper(),))
    prefixes, paths, queries = [""], [path], [query]
    for name, value in fields if _say_more(names_in(fields)) else ():
        folded = name.translate(_FOLD)
        if folded in _METHOD_FIELDS:
            methods = _either(methods, _methods(value))
        elif folded in _PATH_FIELDS:
            url = value.decode("utf-8", "surrogateescape")
            origin = _ORIGIN.match(url)
            there, _, more = url[origin.end() if origin else 0 :].partition("?")
            paths.append(there.partition("#")[0])
            queries.append(more)
        elif folded in _PREFIX_FIELDS:
            prefixes.append(value.decode("utf-8", "surrogateescape").rstrip("/"))
    for each in queries:
        if each:
            methods = _either(methods, _of_form(each.encode("utf-8", "surrogateescape")))
    if len(prefixes) * len(paths) > MOST_NAMED:
        return Readings(methods, None)
    found: list[str] = []
    for each in dict.fromkeys(prefix + path for prefix in prefixes for path in paths):
        spelled = spellings(each)
        if spelled is None:
            return Readings(methods, None)
        found += spelled
    return Readings(methods, tuple(dict.fromkeys(found)))


@lru_cache(KEPT)  # of most requests the names are the same, whatever the values
def _say_more(names: frozenset[bytes]) -> bool:
    folded = {name.translate(_FOLD) for name in names}
    return not folded.isdisjoint(_METHOD_FIELDS | _PATH_FIELDS | _PREFIX_FIELDS)


def may_be_any_method(found: Readings) -> Readings:
    """Return the readings of a request whose body may ask for any method."""
    return replace(found, methods=None)


def may_name_method(content_types: Sequence[str]) -> bool:
    """Tell whether servers may look for a method in a body of this kind: a form, JSON, or an unknown kind.

    Args:
        content_types: the values of Content-Type.
    """
    kind = ",".join(content_types).lower()
    return not kind.strip() or any(each in kind for each in ("urlencoded", "multipart", "json")) or "," in kind


def with_body(found: Readings, body: bytes, content_types: Sequence[str]) -> Readings:
    """Return the readings of a request once its body is known.

    Args:
        found: the readings as its head tells.
        body: the decoded body.
        content_types: the values of Content-Type.
    """
    lower = body.lower()
    is_json = "json" in ",".join(content_types).lower()
    methods = _either(_of_form(body), _of_parts(lower))
    methods = _either(methods, _of_json(body, lower, is_json=is_json))
    return replace(found, methods=_either(found.methods, methods))


def spellings(path: str) -> tuple[str, ...] | None:
    """Return the spellings in which servers read a path; None if they differ so much that it may be any path.

    These are: as sent, decoded (as UTF-8), in the compatibility form that some servers map it to, cut at an escaped `?`
    or `#`, without blanks and dots round segments, without a final slash, without `.json`, and without the slash before
    that. Callers ignore the case of letters.

    Args:
        path: as sent, without the query.
    """
    return _kept(path) if len(path) <= _MOST_KEPT else _spellings(path)


def _spellings(path: str) -> tuple[str, ...] | None:
    if _AMBIGUOUS.search(path):
        return None
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:  # not UTF-8, or an overlong form of another character
        return None
    found = [path, decoded]
    if not decoded.isascii():
        if any(unicodedata.category(each)[0] in "CZ" for each in decoded if each != " "):
            return None  # an invisible character, which some servers strip
        found.append(unicodedata.normalize("NFKC", decoded))
    if cut := _CUT.search(decoded):
        found.append(decoded[: cut.start()])
    found += ["/".join(part.lstrip(" ").rstrip(_TRIMMED) for part in each.split("/")) for each in found]
    found += [each.removesuffix("/") or "/" for each in found]
    found += [_FORMAT.sub("", each) for each in found]
    found += [each.removesuffix("/") or "/" for each in found]
    if any(_AMBIGUOUS.search(each) for each in found[1:]):
        return None
    return tuple(dict.fromkeys(found))


_MOST_KEPT = 256  # characters of a path whose spellings are kept for the next request
_kept = lru_cache(maxsize=1024)(_spellings)


def _either(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return None
    both = one | other
    return both if len(both) <= MOST_NAMED else None


def _methods(value: bytes) -> frozenset[str] | None:
    """Return the methods in a value, which are separated by commas."""
    named = [each.strip() for each in value.decode("latin-1").split(",")]
    if not all(_METHOD.fullmatch(each) for each in named if each):
        return None
    return frozenset(each.upper() for each in named if each)


def _all(values: Iterator[bytes]) -> frozenset[str] | None:
    methods: frozenset[str] | None = frozenset()
    for value in values:
        methods = _either(methods, _methods(value))
    return methods


def _of_form(data: bytes) -> frozenset[str] | None:
    """Return the methods that a query or a form asks for."""
    text = unquote_to_bytes(data.replace(b"+", b" ")).lower()
    return _all(found[1] or b"" for found in _PARAMETER.finditer(text))


def _of_parts(lower: bytes) -> frozenset[str] | None:
    """Return the methods that the parts of a multipart body ask for: any method, if a part has such a name."""
    for part in _PART.finditer(lower):
        for name in _PART_NAME.findall(unquote_to_bytes(part[0]).replace(b"\\", b"")):
            if _PART_METHOD.search(name):
                return None
    return frozenset()


def _of_json(body: bytes, lower: bytes, *, is_json: bool) -> frozenset[str] | None:
    """Return the methods that the member `_method` of a JSON object asks for."""
    if b'"_method"' not in _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode("ascii")), lower):
        return frozenset()
    try:
        spans = find_spans(body, _JSON_METHOD)
    except (NotJson, TooMuchSelected):
        return None if is_json else frozenset()
    values = [string_value(body[span.start : span.end]) for span in spans]
    return None if None in values else _all(each.encode() for each in values if each is not None)
