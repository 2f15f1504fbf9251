"""Encrypts or decrypts the marked fields of one body, from the bytes that came to the bytes that go on; or says why
that is denied. The addon `addons.encryption` calls it with each body that it holds.

Rules of this module:

- A body that its receiver might read differently than we do (another charset, an unknown coding) is denied.
- If nothing is selected, the body goes on unchanged, byte for byte.
- One body must not make all others wait: the decoded length and the number of fields are limited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from functools import lru_cache
from typing import NamedTuple

from proxy.core.decisions import Denied
from proxy.core.fields import encodings, kinds, splice, values
from proxy.core.fields.entries import Digests, FieldEntry, OnFailure, Signed, Work
from proxy.core.fields.kinds import Kind
from proxy.core.fields.responses import Label, label_of, may_be_json
from proxy.core.fields.values import Setting
from proxy.core.http.digests import BadDigest, first_digest, followed, is_digest, recomputed, without_digests
from proxy.core.http.heads import Fields
from proxy.core.jose import jwe
from proxy.core.reasons import Reason

_UNREAD = frozenset((Reason.BODY_NOT_JSON, Reason.ENCODING_UNSUPPORTED, Reason.BODY_TOO_LARGE))
MAX_SEALED = 4096  # half a second of work at most
_LOOKED_AT = 1024  # bytes at the beginning of a body, which tell what it is

_UTF8 = ("utf-8", "utf8", "us-ascii")
_DIGEST_HINT = (
    "set digests: recompute on the entry, or drop if the server does without, or make the app send it without a digest"
)
_WEIGHT_ZERO = re.compile(r"[Qq]=0(?:\.0{0,3})?")


class BodyHead(NamedTuple):
    """What a message's header fields say about its body.

    Attributes:
        content_types: the values of Content-Type.
        content_encoding: the values of Content-Encoding, joined by commas, or None.
        signature: what covers the body and would break if the body changed; see `signatures.covering`.
        fields: all fields of its head and its trailers, for what else is said of the body there.
    """

    content_types: Sequence[str] = ()
    content_encoding: str | None = None
    signature: str | None = None
    fields: Fields = ()


class Changed(NamedTuple):
    """A body whose fields were encrypted or decrypted.

    Attributes:
        body: the body to send, in the same coding as it came; the same object if nothing was changed.
        counts: how many values were changed for each entry.
    """

    body: bytes
    counts: tuple[int, ...]


def unchangeable(work: Work, why: str, entries: tuple[str, ...] = ()) -> Denied:
    """Return the denial of a response with whose fields nothing can be done.

    Args:
        work: what was to be done.
        why: why it cannot be done.
        entries: the names of the entries that it is about, where that is known.
    """
    if work is Work.ENCRYPT:
        return Denied(Reason.RESPONSE_NOT_SEALED, f"the response cannot be sealed: {why}", entries=entries)
    return Denied(Reason.DECRYPTION_FAILED, f"the response cannot be decrypted: {why}", entries=entries)


def too_large(limit: int) -> Denied:
    """Return the denial of a body that is too long to be held.

    Args:
        limit: the greatest length in bytes.
    """
    return Denied(
        Reason.BODY_TOO_LARGE,
        f"the body is longer than the {limit} bytes that are held to protect its fields",
    )


def check_before(head: BodyHead, entries: Sequence[FieldEntry], today: date) -> None:
    """Check, before the body comes, whether its fields can be encrypted at all.

    Args:
        head: what its header fields say.
        entries: entries that encrypt.
        today: the current day, for the days of the keys.

    Raises:
        Denied: KEY_UNAVAILABLE or ENCODING_UNSUPPORTED.
    """
    for entry in entries:
        values.sealing_key(entry, today)
    _check_form(tuple(head.content_types), head.content_encoding)


@lru_cache(maxsize=32)
def _check_form(content_types: tuple[str, ...], content_encoding: str | None) -> None:
    """Check that a body is in a form in which its fields can be found."""
    check_charset(content_types)
    if len(content_types) > 1:
        raise Denied(
            Reason.ENCODING_UNSUPPORTED, "the body's Content-Type is given more than once", "send one Content-Type"
        )
    encodings.parse_encoding(content_encoding)


def change(body: bytes, head: BodyHead, entries: Sequence[FieldEntry], setting: Setting) -> Changed:
    """Do with the fields of a body what entries say; all of them do the same work.

    Args:
        body: the whole body, as it came.
        head: what its header fields say.
        entries: which fields, and with which keys.
        setting: what counts beside the body.

    Raises:
        Denied: the fields cannot be encrypted; or DECRYPTION_FAILED, and the detail says why.
    """
    work = decrypt if entries[0].work is Work.DECRYPT else encrypt
    return work(body, head, entries, setting)


def encrypt(body: bytes, head: BodyHead, entries: Sequence[FieldEntry], setting: Setting) -> Changed:
    """Encrypt the fields that entries select; see `change`. The body stays in the coding in which it came.

    Raises:
        Denied: the fields cannot be encrypted.
    """
    try:
        return _splice(body, head, entries, values.sealing(entries, setting), setting)
    except jwe.JweError:  # sealing fails for one reason only: the token would be too long
        raise too_large(setting.limit) from None


def count_marked(body: bytes, head: BodyHead, entries: Sequence[FieldEntry], setting: Setting) -> tuple[int, ...]:
    """Return how many values `encrypt` would encrypt, for each entry.

    Raises:
        Denied: as `encrypt` would.
    """
    return _splice(body, head, entries, values.counting(entries, setting), setting).counts


def decrypt(body: bytes, head: BodyHead, entries: Sequence[FieldEntry], setting: Setting) -> Changed:
    """Decrypt the fields that entries select, if they hold a JWE; see `change`.

    A value that is no JWE was never sealed, and stays as it is. So does a body that is no JSON, if its label says
    nothing about it (see `Label`); one of a request that cannot be read, if it is another kind of body, and no form
    with fields to open (see `_is_other`); and what cannot be opened, where the entries say so (`OnFailure`).

    Raises:
        Denied: DECRYPTION_FAILED, of a request REQUEST_NOT_OPENED; the detail says why.
    """
    unchanged = Changed(body, (0,) * len(entries))
    try:
        if not body:
            return unchanged
        check_charset(head.content_types)
        codings = encodings.parse_encoding(head.content_encoding)
        text, codings = encodings.take_off(body, codings, setting.limit, pause=setting.pause)
        jobs = values.opening(entries, setting)
        if setting.of_request:
            if not text:
                return unchanged
            spliced = kinds.splice_body(text, head.content_types, entries, jobs, MAX_SEALED, pause=setting.pause)
        elif label_of(head.content_types) is not Label.JSON and not may_be_json(text):
            return unchanged
        else:
            is_labelled = kinds.is_patch(head.content_types)
            spliced = kinds.splice_text(text, jobs, is_labelled=is_labelled, pause=setting.pause)
        if not spliced.total:
            return unchanged
        return Changed(encodings.encode(spliced.body, codings, pause=setting.pause), spliced.counts)
    except Denied as denied:
        if setting.of_request and denied.reason in _UNREAD and _is_other(body, head, entries, denied.reason):
            return unchanged
        why = denied
    except ValueError:
        why = not_one_value()
    if passes(why, entries, setting):
        return unchanged
    if setting.of_request:
        raise Denied(Reason.REQUEST_NOT_OPENED, f"the request cannot be decrypted: {why.detail}", entries=why.entries)
    raise unchangeable(Work.DECRYPT, why.detail, why.entries)


def _is_other(body: bytes, head: BodyHead, entries: Sequence[FieldEntry], why: Reason) -> bool:
    """Tell whether a request's body that cannot be read is none in which a value could have been sealed.

    Args:
        body: the whole body, as it came.
        head: what its header fields say.
        entries: what is to be opened.
        why: why it cannot be read; one of `_UNREAD`.
    """
    if label_of(head.content_types) is not Label.OTHER:
        return False
    try:
        label = kinds.label_of(head.content_types) or Kind.OTHER
    except Denied:
        return False
    if any(kinds.takes(entry, label) for entry in entries):  # a form, in which a field may be sealed
        return False
    if why is Reason.BODY_NOT_JSON or kinds.is_binary(head.content_types):
        return True
    # Its charset, its coding or its length kept it from being read: what begins like JSON may be JSON.
    return not may_be_json(encodings.beginning(body, head.content_encoding or "", _LOOKED_AT))


def not_one_value() -> Denied:
    """Return the denial of a body in which the sender sealed something that is not one JSON value; splice raises
    ValueError for it.
    """
    return Denied(Reason.DECRYPTION_FAILED, "a field opens to something that is not one JSON value")


def passes(why: Denied, entries: Sequence[FieldEntry], setting: Setting) -> bool:
    """Tell whether what cannot be decrypted goes on as it came, because all entries say so; note the failure then."""
    if any(entry.work is Work.ENCRYPT or entry.on_failure is OnFailure.DENY for entry in entries):
        return False
    for name in why.entries or [entry.name for entry in entries]:
        setting.failed(name, why.reason)
    return True


def _splice(
    body: bytes, head: BodyHead, entries: Sequence[FieldEntry], jobs: Sequence[splice.Job], setting: Setting
) -> Changed:
    required, pause = Required(entries), setting.pause
    codings = encodings.parse_encoding(head.content_encoding) if body else ()
    text, codings = encodings.take_off(body, codings, setting.limit, pause=pause)
    if not text:
        required.check()
        return Changed(body, (0,) * len(entries))
    jobs, of_request = required.watching(jobs), setting.of_request
    spliced = kinds.splice_body(text, head.content_types, entries, jobs, MAX_SEALED, of_request=of_request, pause=pause)
    required.check()
    if not any(spliced.counts):
        return Changed(body, spliced.counts)
    check_signature(head, entries, spliced.counts)
    return Changed(encodings.encode(spliced.body, codings, pause=pause), spliced.counts)


def check_signature(head: BodyHead, entries: Sequence[FieldEntry], counts: Sequence[int]) -> None:
    """Check that nothing signs a body that was changed, or that the entries let it pass.

    Args:
        head: what the header fields say.
        entries: what is marked.
        counts: how many values of each entry were changed.

    Raises:
        Denied: SIGNED_BODY.
    """
    changing = [entry for entry, count in zip(entries, counts, strict=True) if count]
    signature, digest = _signature(head, changing), first_digest(head.fields)
    if signature is not None:
        if names := tuple(entry.name for entry in changing if entry.signed is Signed.DENY):
            detail = f"{signature} covers the body, whose fields must be encrypted"
            raise Denied(Reason.SIGNED_BODY, detail, entries=names)
        return
    if digest is not None and (names := tuple(entry.name for entry in changing if entry.digests is Digests.DENY)):
        detail = f"the field {digest} holds a digest of the body, whose fields must be encrypted"
        raise Denied(Reason.SIGNED_BODY, detail, _DIGEST_HINT, entries=names)


def covered_by(head: BodyHead, entries: Sequence[FieldEntry]) -> str | None:
    """Return what signs a body, or holds a digest of it, in words; None if nothing does."""
    digest = first_digest(head.fields)
    return _signature(head, entries) or (None if digest is None else f"the field {digest}")


def _signature(head: BodyHead, entries: Sequence[FieldEntry]) -> str | None:
    """Return what signs a body, in words: what is known to, or what the entries name."""
    if head.signature is not None:
        return head.signature
    named = [name for entry in entries for name in entry.signed_headers]
    if not named:
        return None
    return next((f"the field {name.decode('latin-1')}" for name, _ in head.fields if name.lower() in named), None)


def with_digests(
    fields: Fields, head: BodyHead, entries: Sequence[FieldEntry], before: bytes, changed: Changed
) -> Fields:
    """Return a request's header fields for the body that it has now, as the entries say of digests.

    Those that a signature covers stay as they are, and so do all if nothing was changed. A digest from the trailers
    becomes a header field.

    Args:
        fields: its header fields.
        head: what they, and the trailers, said before.
        entries: the entries that were asked to change it.
        before: the body as it came.
        changed: what they made of it.

    Raises:
        Denied: SIGNED_BODY: a digest cannot be written anew.
    """
    if first_digest(head.fields) is None:
        return fields
    changing = [entry for entry, count in zip(entries, changed.counts, strict=True) if count]
    if not changing or _signature(head, changing) is not None:
        return fields
    left = without_digests(fields)
    if all(entry.digests is not Digests.RECOMPUTE for entry in changing):
        return left
    trailing = tuple(field for field in head.fields[len(fields) :] if is_digest(field[0]))
    try:
        return recomputed((*fields, *trailing), before, changed.body)
    except BadDigest as why:
        names = tuple(entry.name for entry in changing)
        raise Denied(Reason.SIGNED_BODY, str(why), _DIGEST_HINT, entries=names) from None


def followed_digests(
    fields: Fields, head: BodyHead, entries: Sequence[FieldEntry], before: bytes, body: bytes
) -> Fields:
    """Return a request's header fields once its sealed body was opened: what they are without a sidecar on either side.

    Where a signature covers the body, it was made before the body was sealed, and so were the digests beside it.

    Args:
        fields: its header fields.
        head: what they, and the trailers, said before.
        entries: the entries that were asked to open it.
        before: the body as it came.
        body: the opened one.
    """
    return fields if _signature(head, entries) is not None else followed(fields, before, body)


class Required:
    """Whether something was found for each entry that is `required`."""

    def __init__(self, entries: Sequence[FieldEntry]) -> None:
        self._missing = {number for number, entry in enumerate(entries) if entry.required}
        self._entries = entries

    def watching(self, jobs: Sequence[splice.Job]) -> Sequence[splice.Job]:
        """Return jobs that note what they find, also where they leave it as it is."""
        if not self._missing:
            return jobs
        return [self._watching(job, number) if number in self._missing else job for number, job in enumerate(jobs)]

    def _watching(self, job: splice.Job, number: int) -> splice.Job:
        def transform(value: bytes, path: str) -> bytes | None:
            self._missing.discard(number)
            return job.transform(value, path)

        return replace(job, transform=transform)

    def check(self) -> None:
        """Check that nothing is missing, at the end of the body.

        Raises:
            Denied: FIELDS_MISSING.
        """
        if self._missing:
            entry = self._entries[min(self._missing)]
            marked = ", ".join((*(selector.text for selector in entry.selectors), *entry.form))
            detail = f"nothing in the request is at {marked}, which the rule requires"
            raise Denied(Reason.FIELDS_MISSING, detail, entries=(entry.name,))


def check_charset(content_types: Sequence[str]) -> None:
    """Refuse a body that its receiver would not read as UTF-8: the receiver would find other names in it than we do.

    Raises:
        Denied: ENCODING_UNSUPPORTED.
    """
    if any(charset not in _UTF8 for charset in _charsets(";".join(content_types))):
        raise Denied(
            Reason.ENCODING_UNSUPPORTED,
            "the body's Content-Type names another charset than UTF-8",
            "send JSON in UTF-8, which is all that RFC 8259 knows",
        )


def _charsets(content_type: str) -> Iterator[str]:
    """Yield everything that some reader may take for the charset, even under another name, in quotes, or within a
    value.
    """
    for parameter in content_type.lower().split(";"):
        _, equals, value = parameter.partition("charset")[2].partition("=")
        if equals:
            yield value.strip(" \t\"'")


def acceptable(offered: str) -> str:
    """Return the Accept-Encoding to send instead of the app's: of what it offers, what can be decoded here, as the app
    wrote it; `identity` if nothing is left.

    Args:
        offered: the app's value. `*` stays only with weight 0, which asks for no other coding (RFC 9110, section
            12.4.2).
    """
    kept = []
    for offer in offered.split(","):
        coding, _, weight = offer.partition(";")
        is_known = encodings.offers(coding)
        if is_known or (coding.strip() == "*" and _WEIGHT_ZERO.fullmatch(weight.strip())):
            kept.append(offer.strip())
    return ", ".join(kept) or "identity"
