"""Turns decision lines into lines for people, for a terminal. `proxy.processes.decisionlines` calls it in its thread,
so that no request waits for it.

Rules of this module:

- A line says in short what its JSON says: when, what was asked, what was done, how it ended, and why if it was denied.
- What an app or a server chose never controls the terminal: every character that is not printable is replaced.
- Colours only repeat what the words say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TextIO

_MOST_PATH = 160  # characters
_RED, _GREEN, _YELLOW, _CYAN, _DIM = "31", "32", "33", "36", "2"
_OF_ACTION = {"deny": _RED, "upgrade": _GREEN, "inspect": _GREEN, "mirror": _GREEN, "tunnel": _CYAN, "allow": _YELLOW}

type Form = Callable[[bytes], bytes]


def form_for(stream: TextIO | None, wanted: str | None, env: Mapping[str, str]) -> Form | None:
    """Return what decision lines are turned into for a stream; None if they stay JSON.

    Args:
        stream: where they go; None for a file.
        wanted: `text` or `json`; None for text on a terminal, and JSON anywhere else.
        env: the environment: NO_COLOR (https://no-color.org) and `TERM=dumb` ask for no colours.
    """
    is_terminal = stream is not None and stream.isatty()
    if wanted == "json" or (wanted is None and not is_terminal):
        return None
    has_colours = is_terminal and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
    return lambda line: readable(line, has_colours=has_colours)


def readable(line: bytes, *, has_colours: bool) -> bytes:
    """Return a decision line for people, with its line feed.

    Args:
        line: the line as JSON.
        has_colours: whether to write colours (ECMA-48).
    """
    said = json.loads(line)

    def coloured(text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if has_colours and text else text

    path = _text(said, "path")
    where = _text(said, "destination", "?") + (path if len(path) <= _MOST_PATH else f"{path[:_MOST_PATH]}…")
    action = _text(said, "action")
    colour = _OF_ACTION.get(action, _CYAN)
    outcome = _text(said, "outcome", "ok")
    if outcome not in ("ok", "denied"):
        action, colour = f"{action} {outcome}", _RED
    elif said.get("event") is not None:  # a tunnel that is open
        action = f"{action} {_text(said, 'event')}"
    parts = [
        coloured(_text(said, "time")[11:19], _DIM),
        f"{_text(said, 'method') or '-':<7}",
        where,
        coloured(action, colour),
        _text(said, "status", "-"),
        _duration(said.get("seconds")),
    ]
    if (rule := _text(said, "rule")) != "":
        parts.append(coloured(f"[{rule}]", _DIM))
    if said.get("user") is not None:
        parts.append(f"user {_text(said, 'user')}")
    for name in ("encrypted", "decrypted"):
        if said.get(name):
            parts.append(f"{name} {int(said[name])}")
    parts += _by_entry(said)
    if said.get("pin") is not None:
        parts.append(f"pin {_text(said, 'pin')}")
    if said.get("mode") == "observe":
        parts.append(coloured(_would(said), _RED if said.get("would_deny") else _YELLOW))
    if said.get("reason") is not None:
        parts.append(coloured(_text(said, "reason"), _YELLOW if said.get("would_deny") else _RED))
    if said.get("detail") is not None:
        parts.append(_text(said, "detail"))
    if said.get("pin_detail") is not None:
        parts.append(coloured(_text(said, "pin_detail"), _YELLOW))
    return (" ".join(parts) + "\n").encode("utf-8")


def _by_entry(said: Mapping[str, Any]) -> list[str]:
    """Return what became of each entry's fields: how many if there are several entries, and what failed."""
    done, failed = said.get("fields"), said.get("field_failures")
    parts = []
    if isinstance(done, dict) and len(done) > 1:
        parts.append("(" + ", ".join(f"{_text(done, name)} by {_plain(name)}" for name in done) + ")")
    for name, why in failed.items() if isinstance(failed, dict) else ():
        parts.append(f"failed {_plain(name)} ({', '.join(map(_plain, why))})")
    return parts


def _would(said: Mapping[str, Any]) -> str:
    fields = f", encrypt {int(said['would_encrypt'])}" if said.get("would_encrypt") else ""
    return f"would {_text(said, 'would')}{fields}"


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    return f"{seconds * 1000:.0f}ms" if seconds < 10 else f"{seconds:.0f}s"


def _text(said: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a text of a line, without any character that could control a terminal."""
    value = said.get(name)
    return _plain(default if value is None else str(value))


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
