"""The status page of the admin listener: HTML for people, the same as JSON for programs that ask for it, and the page's
own style, script and picture. `proxy.processes.admin` serves it.

Rules of this module:

- Whatever a peer chose is escaped (Jinja2's autoescape), and characters that would not be seen are shown as escapes.
- The page loads nothing from elsewhere, and its policy for browsers (CSP) forbids it. Nothing in it is inline.
- Without the script it is complete, and the browser loads it anew from time to time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from proxy.disk.packaged import config_file

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from jinja2 import Template

_FILES = {
    "/status.css": ("status/status.css", "text/css; charset=utf-8"),
    "/status.js": ("status/status.js", "text/javascript; charset=utf-8"),
    "/status.svg": ("status/status.svg", "image/svg+xml"),
}
_FIELDS = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]
_SHOWN = 160  # characters of a text; its beginning and its end


def status_pages(view: Callable[[], Mapping[str, Any]]) -> dict[str, WSGIApplication]:
    """Return the page and what belongs to it, by their paths.

    Args:
        view: returns what is to be shown; see `proxy.processes.status`.
    """

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if _wants_json(environ.get("HTTP_ACCEPT", "")):
            return _answer(start_response, "application/json", json.dumps(view(), indent=1) + "\n")
        return _answer(start_response, "text/html; charset=utf-8", _template().render(view()))

    def file(path: str, kind: str) -> WSGIApplication:
        def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            return _answer(start_response, kind, config_file(path).read_text("utf-8"))

        return app

    return {"/": page, **{path: file(*each) for path, each in _FILES.items()}}


def _wants_json(accept: str) -> bool:
    """Tell whether a program asks: it names JSON, and not HTML before it."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    known = [kind for kind in kinds if kind in ("text/html", "application/json")]
    return known[:1] == ["application/json"]


def _answer(start_response: StartResponse, kind: str, text: str) -> list[bytes]:
    start_response("200 OK", [("Content-Type", kind), *_FIELDS])
    return [text.encode("utf-8")]


@functools.cache
def _template() -> Template:
    """Return the page's template. Jinja2 is loaded only if somebody looks at the page."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  # see above

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"shown": shown, "span": span, "number": number, "rate": rate, "size": size}
    return made.from_string(config_file("status/status.html").read_text("utf-8"))


def shown(text: object) -> str:
    """Return a text of which each character is seen, cut in the middle if it is long."""
    whole = "-" if text is None else str(text)
    if len(whole) > _SHOWN:
        whole = f"{whole[: _SHOWN // 2]}…{whole[-_SHOWN // 2 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in whole)


def span(seconds: float) -> str:
    """Return a length of time in words, as its greatest unit says it: `3 min`."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def number(value: float) -> str:
    """Return a number with spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def rate(value: float) -> str:
    """Return a number per second, or per minute where that is less than one."""
    if not value:
        return "0"
    if value < 1:
        return f"{value * 60:.1f}/min"
    return f"{value:.1f}/s" if value < 100 else f"{number(value)}/s"


def size(seconds: float) -> str:
    """Return how long a request took."""
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else span(seconds)
