"""What happens to one marked value: it is sealed as a JWE, or opened if it is one. `proxy.core.fields.bodies` asks for
the jobs of one body, and replaces the values with them.

Rules of this module:

- A value is bound to its place: the canonical host, and its normalised path in the body.
- No message tells a member's name, since names come from the body, or quotes a value.
- One body must not make all others wait: the work to open its values is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

from proxy.core.decisions import Denied, Reason
from proxy.core.fields import splice
from proxy.core.fields.entries import FieldEntry
from proxy.core.jose import jwe
from proxy.core.jose.keys import Key, KeySet, NoKey
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import Sealing

# Half a second of work at most: opening a value takes one operation with the private key, which is slow with a long RSA
# key.
MAX_OPENED = 512  # for a key whose `opening_cost` is 1
_KNOWN_COST = 0.125  # of a value whose content key is known: no operation with the private key


@dataclass(frozen=True, slots=True)
class Setting:
    """What counts for the work on one body, beside the body.

    Attributes:
        host: the canonical destination, to which values are bound.
        limit: the greatest length of the decoded body in bytes.
        today: the current day in UTC, for the keys' `not_after`.
        sealing: returns what seals the values of one body with a key of a key set; see `sealing.Sealers`.
    """

    host: str
    limit: int
    today: date
    sealing: Callable[[KeySet, Key], Sealing] = Sealing.alone


def sealing(entries: Sequence[FieldEntry], setting: Setting) -> list[splice.Job]:
    """Return the jobs that seal the values of one body.

    Raises:
        Denied: KEY_UNAVAILABLE.

    Their transforms raise `jwe.JweError` if a token would be too long.
    """
    sealer = _Sealer(setting)
    return [sealer.job(entry) for entry in entries]


def sealing_key(entry: FieldEntry, today: date) -> Key:
    """Return the key that seals what an entry selects.

    Raises:
        Denied: KEY_UNAVAILABLE.
    """
    try:
        return entry.keys.sealing_key(today)
    except NoKey as why:
        raise Denied(Reason.KEY_UNAVAILABLE, str(why), why.hint, entries=(entry.name,)) from None


class _Sealer:
    """Seals the values of one body; entries with the same key set share what is made for the body."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._sealings: dict[int, Sealing] = {}

    def job(self, entry: FieldEntry) -> splice.Job:
        keys, key, host = entry.keys, sealing_key(entry, self._setting.today), self._setting.host

        def seal(value: bytes, path: str) -> bytes:
            sealing = self._sealings.get(id(keys)) or self._begin(keys, key)
            return splice.sealed_string(sealing.seal(value, Place(host, path)))

        return splice.Job(entry.marks, seal)

    def _begin(self, keys: KeySet, key: Key) -> Sealing:
        """Begin to seal with a key set, which is done only once there is a value: it takes a while."""
        made = self._sealings[id(keys)] = self._setting.sealing(keys, key)
        return made


def opening(entries: Sequence[FieldEntry], setting: Setting) -> list[splice.Job]:
    """Return the jobs that open the values of one body.

    Their transforms raise `Denied` if a token is not opened, or it would take too long; a value that is no JWE stays as
    it is.
    """
    opener = _Opener(setting)
    return [opener.job(entry) for entry in entries]


class _Opener:
    """Opens the values of one body, within the work that one body may make."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._left = float(MAX_OPENED)
        self._openings: dict[int, jwe.Opening] = {}

    def job(self, entry: FieldEntry) -> splice.Job:
        return splice.Job(entry.marks, lambda value, path: self._open(entry, value, path))

    def of(self, entry: FieldEntry) -> jwe.Opening:
        """Return what opens the body's tokens for an entry."""
        made = self._openings.get(id(entry))
        if made is None:
            spend = partial(self._spend, entry)
            made = self._openings[id(entry)] = jwe.Opening(entry.keys, self._setting.today, spend)
        return made

    def _spend(self, entry: FieldEntry, is_new: bool) -> None:
        """Count the work for one more value; with a content key that is known it is a fraction."""
        self._left -= entry.keys.opening_cost if is_new else _KNOWN_COST
        if self._left < 0:
            detail = "the body has too many fields to decrypt with such keys"
            raise Denied(Reason.BODY_TOO_LARGE, detail, entries=(entry.name,))

    def _open(self, entry: FieldEntry, value: bytes, path: str) -> bytes | None:
        token = splice.token_of(value)
        where = ", ".join(selector.text for selector in entry.selectors)  # no path: names come from the body
        if token is None or not jwe.is_token(token):
            if jwe.is_json_serialized(value):
                raise Denied(
                    Reason.DECRYPTION_FAILED,
                    f"a value at {where} is a JWE, but not in its compact form",
                    entries=(entry.name,),
                )
            return None
        try:
            return self.of(entry).open(token, Place(self._setting.host, path))
        except jwe.JweError as e:
            raise Denied(
                Reason.DECRYPTION_FAILED,
                f"a value at {where} is not opened by key set {entry.keys.name}: {e}",
                entries=(entry.name,),
            ) from None
