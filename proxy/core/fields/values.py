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

from proxy.core.decisions import Denied, Reason
from proxy.core.fields import splice
from proxy.core.fields.entries import FieldEntry
from proxy.core.jose import jwe
from proxy.core.jose.keys import Key, NoKey
from proxy.core.jose.place import Place

# Half a second of work at most: opening a value takes one operation with the private key, which is slow with a long RSA
# key.
MAX_OPENED = 512  # for a key whose `opening_cost` is 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What counts for the work on one body, beside the body.

    Attributes:
        host: the canonical destination, to which values are bound.
        limit: the greatest length of the decoded body in bytes.
        today: the current day in UTC, for the keys' `not_after`.
        sealer: returns the sealer for a key; see `jwe.Sealers`.
    """

    host: str
    limit: int
    today: date
    sealer: Callable[[Key], jwe.Sealer] = jwe.Sealer


def sealing(entries: Sequence[FieldEntry], setting: Setting) -> list[splice.Job]:
    """Return the jobs that seal the values of one body.

    Raises:
        Denied: KEY_UNAVAILABLE.

    Their transforms raise `jwe.JweError` if a token would be too long.
    """
    return [_sealing(entry, setting) for entry in entries]


def sealing_key(entry: FieldEntry, today: date) -> Key:
    """Return the key that seals what an entry selects.

    Raises:
        Denied: KEY_UNAVAILABLE.
    """
    try:
        return entry.keys.sealing_key(today)
    except NoKey as why:
        raise Denied(Reason.KEY_UNAVAILABLE, str(why), why.hint, entries=(entry.name,)) from None


def _sealing(entry: FieldEntry, setting: Setting) -> splice.Job:
    seal, host = setting.sealer(sealing_key(entry, setting.today)).seal, setting.host
    return splice.Job(entry.selectors, lambda value, path: splice.sealed_string(seal(value, Place(host, path))))


def opening(entries: Sequence[FieldEntry], setting: Setting) -> list[splice.Job]:
    """Return the jobs that open the values of one body, at most `MAX_OPENED` of them.

    Their transforms raise `Denied` if a token is not opened; a value that is no JWE stays as it is.
    """
    opener = _Opener(setting)
    return [opener.job(entry) for entry in entries]


class _Opener:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._left = float(MAX_OPENED)

    def job(self, entry: FieldEntry) -> splice.Job:
        return splice.Job(entry.selectors, lambda value, path: self._open(entry, value, path))

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
        cost = entry.keys.opening_cost
        self._left -= cost
        if self._left < 0:
            most = int(MAX_OPENED / cost)
            detail = f"the body has more than {most} fields to decrypt with such keys"
            raise Denied(Reason.BODY_TOO_LARGE, detail, entries=(entry.name,))
        try:
            return jwe.open_token(token, entry.keys, Place(self._setting.host, path), self._setting.today)
        except jwe.JweError as e:
            raise Denied(
                Reason.DECRYPTION_FAILED,
                f"a value at {where} is not opened by key set {entry.keys.name}: {e}",
                entries=(entry.name,),
            ) from None
