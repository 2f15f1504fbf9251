"""What happens to one marked value: it is sealed as a JWE, or opened if it is one. `proxy.core.fields.bodies` asks for
the jobs of one body, and replaces the values with them.

Rules of this module:

- A value is bound to its place: the canonical host, and its normalised path in the body. The path is where the value
  stands when it is plain: without the envelope that it is sealed in, and by its name before it is renamed for that.
- A value that was sealed before, with the same key set for the same place, is not sealed again unless the policy says
  so; what only looks like it is sealed. Where the key is here that opens it, it must open.
- No message tells a member's name, since names come from the body, or quotes a value.
- One body must not make all others wait: the work to open its values is limited.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from typing import NamedTuple

from proxy.core.decisions import Denied
from proxy.core.fields import splice
from proxy.core.fields.entries import AlreadySealed, FieldEntry, OnFailure, Work
from proxy.core.fields.jsontext import member_path
from proxy.core.fields.pauses import Pause, never
from proxy.core.jose import jwe
from proxy.core.jose.keys import Key, KeySet, NoKey
from proxy.core.jose.place import Place
from proxy.core.jose.sealing import Sealing
from proxy.core.reasons import Reason

# Half a second of work at most: opening a value takes one operation with the private key, which is slow with a long RSA
# key.
MAX_OPENED = 512  # for a key whose `opening_cost` is 1
_DOTS = 4  # in a compact JWE
_new_place = tuple.__new__  # a named tuple's own constructor takes twice as long
_KNOWN_COST = 0.125  # of a value whose content key is known: no operation with the private key


class Setting(NamedTuple):
    """What counts for the work on one body, beside the body.

    Attributes:
        host: the canonical destination, to which values are bound.
        limit: the greatest length of the decoded body in bytes.
        today: the current day in UTC, for the keys' `not_after`.
        sealing: returns what seals the values of one body with a key of a key set; see `sealing.Sealers`.
        of_request: whether it is the body of a request.
        used: returns what is called for each value that a key seals or opens.
        failed: called with the name of an entry, and why its work has failed, where this lets a value or body pass.
        pause: called again and again while a body is worked on; see `proxy.core.fields.pauses`.
    """

    host: str
    limit: int
    today: date
    sealing: Callable[[KeySet, Key], Sealing] = Sealing.alone
    of_request: bool = False
    used: Callable[[KeySet, Key, Work], Callable[[], object]] = lambda keys, key, work: never
    failed: Callable[[str, Reason], object] = lambda _name, _reason: None
    pause: Pause = never


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


def counting(entries: Sequence[FieldEntry], setting: Setting) -> list[splice.Job]:
    """Return the jobs that find out which values of one body `sealing` would replace, and seal none.

    Raises:
        Denied: KEY_UNAVAILABLE.
    """
    sealer = _Sealer(setting)
    return [sealer.job(entry, is_counting=True) for entry in entries]


def told_kids(entries: Sequence[FieldEntry], today: date) -> list[str | None]:
    """Return for each entry the kid that a request's head must say, since profiles of key sets say it there, too; None
    if it need not.

    Args:
        entries: the entries that apply to the request.
        today: the current day, for the days of the keys.

    Raises:
        Denied: KEY_UNAVAILABLE.
    """
    return [
        None if entry.keys.form.kid_field is None or entry.work is not Work.ENCRYPT else sealing_key(entry, today).kid
        for entry in entries
    ]


def kid_fields(entries: Sequence[FieldEntry], counts: Sequence[int], kids: Sequence[str | None]) -> dict[str, str]:
    """Return the fields that a request's head needs.

    Args:
        entries: the entries that apply to the request.
        counts: how many values were sealed for each.
        kids: see `told_kids`.

    Raises:
        Denied: KEY_UNAVAILABLE, if one field would have to say two.
    """
    fields: dict[str, str] = {}
    if not any(kids):
        return fields
    for entry, count, kid in zip(entries, counts, kids, strict=True):
        name = entry.keys.form.kid_field
        if name is None or kid is None or not count:
            continue
        if fields.setdefault(name, kid) != kid:
            raise Denied(
                Reason.KEY_UNAVAILABLE,
                f"the body is sealed with two keys, and the header field {name} has room for one",
                "narrow the `when` of these entries, so that only one of them applies to a request",
                entries=(entry.name,),
            )
    return fields


class _Sealer:
    """Seals the values of one body; entries with the same key set share what is made for the body."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._begun: dict[int, tuple[Sealing, Callable[[], object]]] = {}  # and what counts a value
        self._opener: _Opener | None = None

    def job(self, entry: FieldEntry, *, is_counting: bool = False) -> splice.Job:
        keys, key = entry.keys, sealing_key(entry, self._setting.today)
        host, begun, number = self._setting.host, self._begun, id(keys)
        pad, envelope, looks = entry.pad, entry.envelope, entry.already_sealed is not AlreadySealed.SEAL

        def seal(value: bytes, path: str) -> bytes | None:
            place = _new_place(Place, (host, path))
            # Most values are told from a token by the dots in it, quickly.
            if looks and value.count(b".") >= _DOTS and self._is_sealed(entry, value, place):
                return value if entry.rename is not None else None
            if is_counting:
                return value
            sealing, count = begun.get(number) or self._begin(keys, key)
            if pad > 1:
                value += b" " * (-len(value) % pad)
            sealed = b'"%b"' % sealing.token(value, place)
            count()
            return sealed if envelope is None else envelope.around(sealed)

        return splice.Job(entry.marks, seal, _rename(entry))

    def _is_sealed(self, entry: FieldEntry, value: bytes, place: Place) -> bool:
        """Tell whether a value is a token that was sealed with the entry's key set for this place.

        Raises:
            Denied: ALREADY_SEALED, if the entry says so; or there is too much to be opened.
        """
        text = value if entry.envelope is None else entry.envelope.content(value)
        if text is None or text.count(b".") != _DOTS:
            return False
        token = splice.token_of(text)
        self._opener = self._opener or _Opener(self._setting)
        if token is None or not self._opener.of(entry).has_sealed(token, place):
            return False
        if entry.already_sealed is AlreadySealed.DENY:
            where = _where(entry)
            raise Denied(Reason.ALREADY_SEALED, f"a value at {where} is sealed already", entries=(entry.name,))
        return True

    def _begin(self, keys: KeySet, key: Key) -> tuple[Sealing, Callable[[], object]]:
        """Begin to seal with a key set, which is done only once there is a value: it takes a while."""
        setting = self._setting
        made = self._begun[id(keys)] = setting.sealing(keys, key), setting.used(keys, key, Work.ENCRYPT)
        return made


def _rename(entry: FieldEntry) -> bytes | None:
    return None if entry.rename is None else json.dumps(entry.rename).encode("ascii")


def _where(entry: FieldEntry) -> str:
    """Return the entry's selectors, for messages. They are no path: names come from the body."""
    return ", ".join(entry.marks.texts)


def opening(entries: Sequence[FieldEntry], setting: Setting) -> list[splice.Job]:
    """Return the jobs that open the values of one body.

    Their transforms raise `Denied` if a token is not opened, or it would take too long, unless the entry lets it pass.
    A value that is no JWE stays as it is.
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
        step = None if entry.rename is None else member_path(entry.rename).removeprefix("$")

        def opened(value: bytes, path: str) -> bytes | None:
            return self._open(entry, value, path if step is None else _parent(path) + step)

        return splice.Job(entry.marks, opened, _rename(entry))

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
        try:
            return self._opened(entry, value, path)
        except Denied as denied:
            if entry.on_failure is OnFailure.DENY:
                raise
            self._setting.failed(entry.name, denied.reason)
            return None

    def _opened(self, entry: FieldEntry, value: bytes, path: str) -> bytes | None:
        token = self._token(entry, value)
        if token is None:
            return None
        opening = self.of(entry)
        try:
            opened = opening.open(token, Place(self._setting.host, path))
        except jwe.JweError as e:
            raise _refused(entry, f"is not opened by key set {entry.keys.name}: {e}") from None
        assert opening.last is not None
        self._setting.used(entry.keys, opening.last, Work.DECRYPT)()
        return opened.rstrip(b" ")  # blanks at the end are `pad`'s, and no part of the value

    def _token(self, entry: FieldEntry, value: bytes) -> str | None:
        """Return the token that a value holds as the entry says; None if it was never sealed.

        Raises:
            Denied: it holds a token in another way, which must not pass as if it were none.
        """
        if entry.envelope is None:
            content: bytes | None = value
        else:
            content = entry.envelope.content(value)
            others = [value] if content is not None else [value, *entry.envelope.members(value)]
            if any(_token(other) is not None for other in others):
                raise _refused(entry, "is a JWE, but not alone in its envelope")
        if any(map(jwe.is_json_serialized, (value,) if content is None else (content,))):
            raise _refused(entry, "is a JWE, but not in its compact form")
        return None if content is None else _token(content)


def _token(value: bytes) -> str | None:
    """Return the text of a JSON string that is meant as a token; None if the value is none."""
    text = splice.token_of(value)
    return text if text is not None and jwe.is_token(text) else None


def _refused(entry: FieldEntry, why: str) -> Denied:
    return Denied(Reason.DECRYPTION_FAILED, f"a value at {_where(entry)} {why}", entries=(entry.name,))


def _parent(path: str) -> str:
    """Return the path of the object that a member stands in.

    Args:
        path: a normalized path (`Span.path`) whose last step is a name.
    """
    # Within quotes each quote of a name has a backslash before it, but for the closing one, which a `[` may precede.
    return path[: path.rindex("['", 0, -2) if path.endswith("']") else path.rindex(".")]
