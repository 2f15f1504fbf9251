"""Where long work on a body may be interrupted: what reads or changes one calls a `Pause` again and again, so that its
caller can see to others meanwhile. The engine gives one that does (`proxy.engine.turns`); without it, nothing pauses.

Rules of this module:

- Between two pauses lies a bounded piece of work, some milliseconds at most, whatever the body: `STEP` bytes of a text
  that is read item by item, one value, one line, one field. Compiled parsers and regular expressions read a whole text
  at once, which takes less.
- A pause may raise, to end the work for good. Whoever pauses leaves nothing behind that is half done.
- What a pause returns says nothing, and no result depends on where work was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable

type Pause = Callable[[], object]

STEP = 2048  # bytes
SHORT = 4096  # bytes of a body, with no coding that makes more of them, on which the work is short, whatever it is


def never() -> None:
    """Do nothing: the work is done in one go."""
