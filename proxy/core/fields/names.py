"""Names of members: decoded, folded, and as they are written in a path. The walkers that `proxy.core.fields.
jsontext` has ask for them.

Rules of this module:

- Where case does not count, two names are equal if folding gives the same. It is wider than any receiver's comparison
  that is known: a value that is sealed needlessly is opened again by its receiver, one that is not sealed is out. It
  takes compatibility forms (full-width letters), case folding in full (`ß` is `ss`), and letters that some upper-case
  table makes equal (`ı` and `i`, the Kelvin sign and `k`, `ſ` and `s`).
- Folding twice gives what folding once does.
"""

from __future__ import annotations

import json
import re
import unicodedata

from proxy.core.jose.place import ascii_text

# For each open container: the decoded name of the current member in UTF-8 (an object), or the current index (an array).
# None stands for the text itself, outside all containers.
type Step = bytes | int | None

_is_shorthand = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_PATH_ESCAPES = {ord(character): "\\" + letter for character, letter in zip("\b\t\n\f\r'\\", "btnfr'\\", strict=True)}
_ROUNDS = 3  # after two, no character changes any more
# Folding makes of so many bytes at least one: composed characters have four at most, of four bytes each, and a dot may
# follow. A name that is longer than so many times another one need not be folded to tell that they differ.
FOLDS = 64


def folded(name: bytes) -> bytes:
    """Return the form in which a name is compared where case does not count.

    Args:
        name: the decoded name, in UTF-8.
    """
    return name.lower() if name.isascii() else _folded_unicode(name)


def _folded_unicode(name: bytes) -> bytes:
    text = name.decode()
    for _ in range(_ROUNDS):
        # Upper case first: it makes one of what an `equalsIgnoreCase` compares in upper case. U+0307 is the dot that
        # folding İ leaves behind an i.
        text = unicodedata.normalize("NFKC", text).upper().casefold().replace("i\u0307", "i")
    return text.encode()


def path_step(step: Step) -> str:
    """Return a step as it is written in a path; nothing for None, the text itself."""
    if step is None:
        return ""
    if isinstance(step, int):
        return "[*]"
    name = step.decode()
    return f".{name}" if _is_shorthand(name) else f"['{ascii_text(name.translate(_PATH_ESCAPES))}']"


def unescaped_name(name: bytes) -> bytes:
    """Decode a member name with escapes, none of which is half a surrogate pair."""
    decoded: str = json.loads('"' + name.decode() + '"')
    return decoded.encode()
