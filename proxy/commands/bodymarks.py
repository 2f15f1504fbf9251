"""Shows a body with what would be encrypted, or decrypted, in it marked. `proxy.commands.explain` calls it.

Rules of this module:

- What is marked, the code finds that does the work on real bodies; here it only leaves everything as it is.
- What a terminal could take for a command is shown as an escape.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from proxy.core.fields.bodies import MAX_SEALED
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.jsontext import Span
from proxy.core.fields.kinds import splice_body
from proxy.core.fields.splice import Job

MOST_SHOWN = 64 * 1024  # bytes of a body
_BEFORE, _BEHIND = "⟦", "⟧"


def marked_spans(entries: Sequence[FieldEntry], body: bytes, content_types: Sequence[str]) -> Sequence[Span]:
    """Return where the values stand that entries mark; the job of each is the number of its entry.

    Args:
        entries: what is marked; all of them do the same work.
        body: the decoded body.
        content_types: the values of Content-Type.

    Raises:
        Denied: the body cannot be read, or is of a kind that is denied.
    """
    if not entries or not body:
        return ()
    jobs = [Job(entry.marks, lambda value, _: value) for entry in entries]
    return splice_body(body, content_types, entries, jobs, MAX_SEALED).spans


def shown_body(body: bytes, spans: Sequence[Span], *, is_terminal: bool) -> str:
    """Return a body as text, with the marked values in colour on a terminal, and in brackets elsewhere.

    Args:
        body: the decoded body.
        spans: the marked values.
        is_terminal: whether a terminal shows it.
    """
    pieces, copied = [], 0
    for span in spans:
        if span.end > MOST_SHOWN:
            break
        value = shown_text(body[span.start : span.end])
        marked = click.style(value, reverse=True) if is_terminal else f"{_BEFORE}{value}{_BEHIND}"
        pieces += [shown_text(body[copied : span.start]), marked]
        copied = span.end
    pieces.append(shown_text(body[copied : max(MOST_SHOWN, copied)]))
    left = len(body) - max(MOST_SHOWN, copied)
    return "".join(pieces) + (f"\n… and {left} bytes more" if left > 0 else "")


def shown_text(data: bytes) -> str:
    """Return bytes as text in which nothing is a command to a terminal."""
    text = data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)
