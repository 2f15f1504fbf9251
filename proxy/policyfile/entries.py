"""Makes the core's field entries of what stands in a rule's `request` and `response`. `proxy.policyfile.build` calls it
for each rule.

Rules of this module: those of `proxy.policyfile.build`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from proxy.core.fields.entries import FieldEntry, When, Work
from proxy.core.fields.envelopes import Envelope
from proxy.core.fields.selectors import Selector
from proxy.core.jose.keys import KeySet
from proxy.policyfile.mirrors import wrong_work
from proxy.policyfile.model.fields import DecryptEntry, EncryptEntry, WhenSection
from proxy.policyfile.refusal import shown
from proxy.policyfile.usable import Usable
from proxy.policyfile.yamltext import Steps, path_text


@dataclass(frozen=True, slots=True)
class EntryReader:
    """Makes the field entries of one policy.

    Attributes:
        usable: what of the file the model has taken.
        report: takes errors.
        remarks: what is no error but needs attention is appended here.
        knows_mirrors: whether it is known which hosts mirror listeners stand for.
    """

    usable: Usable
    report: Callable[[Steps, str], None]
    remarks: list[str]
    knows_mirrors: bool

    def read(
        self,
        steps: Steps,
        entries: Sequence[EncryptEntry | DecryptEntry],
        keys: Mapping[str, KeySet | None],
        *,
        is_mirrored: bool,
    ) -> tuple[FieldEntry, ...]:
        """Return the entries of one list.

        Args:
            steps: where it stands; the last step is `request` or `response`.
            entries: what the model has read there.
            keys: the key sets by name; None stands for one that is wrong.
            is_mirrored: whether mirror listeners stand for the rule's hosts.
        """
        made: list[FieldEntry] = []
        for index, entry in self.usable.numbered(steps, entries):
            at: Steps = (*steps, index)
            work = _work(entry)
            wrong = wrong_work(work, of_request=steps[-1] == "request", is_mirrored=is_mirrored)
            if wrong is not None and self.knows_mirrors:
                self.report((*at, work.value), wrong)
            if entry.key not in keys:
                near = difflib.get_close_matches(entry.key, keys, n=1)
                known = ", ".join(keys) if keys else "none"
                hint = f"; did you mean {near[0]}?" if near else ""
                self.report((*at, "key"), f"there is no key set {entry.key}{hint} (known: {known})")
                continue
            key_set = keys[entry.key]
            if key_set is None:  # the error is reported at the key set
                continue
            made.append(_made(entry, key_set, f"{steps[-1]}[{index}]"))
            self._check(at, entry, made[-1], of_request=steps[-1] == "request")
        return tuple(made)

    def _check(self, steps: Steps, entry: EncryptEntry | DecryptEntry, made: FieldEntry, *, of_request: bool) -> None:
        """Report what clashes in an entry, and remark what it may not mean."""
        if isinstance(entry, EncryptEntry) and entry.form and (made.envelope is not None or entry.rename is not None):
            self.report(
                (*steps, "form"),
                "a form's field is sealed as a token under its own name: leave envelope and rename out, or "
                "give forms an entry of their own",
            )
        if made.work is Work.DECRYPT and not made.keys.can_open:
            self.report(
                (*steps, "key"),
                f"key set {entry.key} has public keys only; decrypting takes a private or symmetric key",
            )
        for name in () if of_request else ("form", "graphql_arguments"):
            if getattr(entry, name, None) is not None:
                self.report((*steps, name), "this is about requests: leave it out")
        if entry.rename is not None and not all(selector.ends_in_name for selector in made.selectors):
            self.report((*steps, "rename"), "only a member has a name: each field must end in one")
        if made.work is Work.ENCRYPT and of_request and "match" not in entry.model_fields_set:
            self._recommend_match(steps, made.selectors)

    def _recommend_match(self, steps: Steps, selectors: Sequence[Selector]) -> None:
        """Remark that a receiver may read more names than those of the first selector whose names are all letters."""
        for selector in selectors:
            names = [name for segment in selector.segments for name in segment.choices if isinstance(name, str)]
            if names and all(map(str.isalpha, names)):
                self.remarks.append(
                    f"{path_text(steps)}: {shown(selector.text)} is matched exactly, and servers that take names in "
                    f"any case (in Go, .NET) read {shown(names[-1].swapcase())}, too: write match: ignore_case, or "
                    "match: exact if the servers are exact"
                )
                return


def _work(entry: EncryptEntry | DecryptEntry) -> Work:
    return Work.ENCRYPT if isinstance(entry, EncryptEntry) else Work.DECRYPT


def _made(entry: EncryptEntry | DecryptEntry, key_set: KeySet, name: str) -> FieldEntry:
    made = FieldEntry(
        tuple(entry.encrypt if isinstance(entry, EncryptEntry) else entry.decrypt),
        key_set,
        _work(entry),
        _when(entry.when),
        name=name,
        envelope=Envelope(envelope) if (envelope := entry.envelope or key_set.form.envelope) else None,
        rename=entry.rename,
        inside=entry.inside or (),
        match=entry.match,
        form=tuple(dict.fromkeys(entry.form or ())),
    )
    if isinstance(entry, DecryptEntry):
        return replace(made, on_failure=entry.on_failure)
    return replace(
        made,
        digests=entry.digests,
        signed_headers=frozenset(header.encode("ascii") for header in entry.signed_headers or ()),
        signed=entry.signed,
        already_sealed=entry.already_sealed,
        pad=entry.pad,
        graphql_arguments=frozenset(entry.graphql_arguments or ()),
        other_bodies=entry.other_bodies,
        required=entry.required,
    )


def _when(section: WhenSection | None) -> When:
    if section is None:
        return When()
    return When(
        frozenset(section.methods) if section.methods else None,
        tuple(section.paths) if section.paths else None,
    )
