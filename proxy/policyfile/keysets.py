"""Builds the key sets of a policy: reads each key once, from its file or variable. `proxy.policyfile.build` makes one
reader for each policy.

Rules of this module:

- No message quotes key material.
- Where secrets are not (`overcoat check --no-secrets`), a new key of the same kind takes the place of one that is not
  there, so that everything round it is checked; and what was not checked is said. A key that is there is read as ever.
- A policy with such stand-ins is never served: nobody could open what they seal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol

from proxy.core.jose.jwksets import keys_of_set
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import Alg, BadKey, Bind, Key, KeySet, Supply, load_key, new_key
from proxy.core.jose.profiles import form_of
from proxy.disk.keyfiles import KeyFileError, read_key_file
from proxy.policyfile.model.keys import KeyEntry, KeySetSection
from proxy.policyfile.model.values import KeySource
from proxy.policyfile.nearby import missing, unreadable
from proxy.policyfile.refusal import shown
from proxy.policyfile.usable import Usable
from proxy.policyfile.yamltext import Steps, path_text

DEFAULT_MAX_AGE = 3600  # seconds


class Report(Protocol):
    """Takes an error, and where it is."""

    def __call__(self, steps: Steps, message: str, /) -> None:
        """Take it."""


@dataclass(slots=True)
class KeyReader:
    """Reads the keys of one policy.

    Attributes:
        folder: what relative names are relative to.
        env: the variables that `{env: NAME}` means.
        is_without_secrets: whether secrets that are not there are no error.
        report: takes errors.
        note: takes the content of what was read, for the policy's hash.
        password: reads a password; returns None if it cannot be read, which it has reported then.
        files: the files that were looked for are appended here.
        unchecked: what was not there is appended here.
    """

    folder: Path
    env: Mapping[str, str]
    is_without_secrets: bool
    report: Report
    note: Callable[[bytes], None]
    password: Callable[[Steps, KeySource], str | None]
    files: list[Path]
    unchecked: list[str] = field(default_factory=list)

    def key_sets(
        self, sections: Mapping[str, KeySetSection], usable: Usable, opening: Collection[str]
    ) -> dict[str, KeySet | None]:
        """Return the key sets by name; None for one that is wrong, so that its name is known all the same.

        Args:
            sections: the sections of the file.
            usable: knows what of them the model has refused.
            opening: the names of the sets with which something is decrypted.
        """
        known = {str(steps[1]): None for steps in usable.wrong if steps[:1] == ("keys",) and len(steps) == 2}
        built = {name: self._key_set(name, each, usable, name in opening) for name, each in sections.items()}
        whole = {name: None if usable.is_about_wrong(("keys", name)) else each for name, each in built.items()}
        return {**known, **whole}

    def _key_set(self, name: str, section: KeySetSection, usable: Usable, opens: bool) -> KeySet | None:
        steps: Steps = ("keys", name)
        keys: Sequence[Key] | None
        supply: Supply | None = None
        if section.jwks is not None:
            there, max_age = section.jwks.destination, section.max_age or DEFAULT_MAX_AGE
            supply = Supply(str(section.jwks), there.host, there.port, section.jwks.path, max_age, section.kid)
            keys = ()
        elif section.set is not None:
            keys = self._whole_set((*steps, "set"), section.set, section, opens)
        elif section.primary is not None:
            listed: list[tuple[Steps, KeyEntry]] = [((*steps, "primary"), section.primary)]
            older = usable.numbered((*steps, "older"), section.older or ())
            keys = self._listed(
                [*listed, *(((*steps, "older", index), entry) for index, entry in older)], section, opens
            )
        else:  # the model has refused it
            keys = None
        if keys is None:
            return None
        form = form_of(section.profile)
        primary = keys[0] if keys else None
        made = KeySet(name, section.alg, primary, tuple(keys[1:]), section.bind, section.grace, supply)
        try:
            return replace(
                made,
                enc=section.enc or form.enc,
                profile=section.profile,
                bind=section.bind if section.profile is None else Bind.NONE,
            )
        except BadKey as error:
            self.report(steps, str(error))
            return None

    def _listed(
        self, listed: Sequence[tuple[Steps, KeyEntry]], section: KeySetSection, opens: bool
    ) -> Sequence[Key] | None:
        """Return the keys of a set whose entries each name one; None if one of them is wrong."""
        keys: list[Key] = []
        for at, entry in listed:
            key = self._key(at, entry, section, opens)
            if key is not None and any(key.kid == other.kid for other in keys):
                self.report(
                    (*at, "kid") if entry.kid else at,
                    f"the kid {shown(key.kid)} stands twice in key set {at[1]}; each key needs its own",
                )
            elif key is not None:
                keys.append(key)
        return keys if len(keys) == len(listed) else None

    def _whole_set(self, at: Steps, source: KeySource, section: KeySetSection, opens: bool) -> Sequence[Key] | None:
        def read(data: bytes, where: str) -> Sequence[Key]:
            return keys_of_set(data, alg=section.alg, source=where, profile=section.profile)

        return self._read(at, source, section, read, lambda: (self._new(section.alg, opens),))

    def _key(self, steps: Steps, entry: KeyEntry, section: KeySetSection, opens: bool) -> Key | None:
        source = KeySource(file=entry.file) if entry.file else entry.key or KeySource()
        password: bytes | None = None
        is_here = True
        if entry.password is not None:
            text = self.password((*steps, "password"), entry.password)
            if text is None and not self.is_without_secrets:
                return None
            is_here, password = text is not None, (text or "").encode("utf-8", "surrogateescape")

        def read(data: bytes, where: str) -> Key:
            if not is_here:
                return stand_in()
            return load_key(
                data,
                alg=section.alg,
                kid=entry.kid,
                not_after=entry.not_after,
                not_before=entry.not_before,
                password=password,
                source=where,
                profile=section.profile,
            )

        def stand_in() -> Key:
            key = replace(self._new(section.alg, opens), not_after=entry.not_after, not_before=entry.not_before)
            return key if entry.kid is None else replace(key, kid=entry.kid)

        return self._read((*steps, "file" if entry.file else "key"), source, section, read, stand_in)

    def _read[T](
        self,
        at: Steps,
        source: KeySource,
        section: KeySetSection,
        read: Callable[[bytes, str], T],
        stand_in: Callable[[], T],
    ) -> T | None:
        """Read what a file or variable holds; None if it is wrong, which is reported then.

        Args:
            at: where the policy names it.
            source: the file or variable.
            section: the key set.
            read: makes something of the content, and is told where it comes from; raises BadKey.
            stand_in: makes something in its place, where secrets are not; raises BadKey.
        """
        path = self.folder / source.file if source.file is not None else None
        try:
            try:
                if path is not None:
                    self.files.append(path)
                    data = read_key_file(path, unsafe_permissions=section.unsafe_key_permissions)
                else:
                    data = self._variable(source.env or "")
            except (FileNotFoundError, _NotSet) as error:
                if not self.is_without_secrets:
                    raise
                why = str(error) if path is None else missing(self.folder, source.file or "")
                self.unchecked.append(f"{path_text(at)}: {why}")
                return stand_in()
            self.note(data)
            return read(data, str(path) if path is not None else f"${source.env}")
        except OSError as error:
            self.report(at, unreadable(self.folder, source.file or "", error))
        except (_NotSet, KeyFileError, BadKey) as error:
            self.report(at, str(error))
        return None

    def _variable(self, name: str) -> bytes:
        if name not in self.env:
            raise _NotSet(f"the environment variable {variable_name(name)} is not set")
        return self.env[name].encode("utf-8", errors="surrogateescape")

    def _new(self, alg: Alg, opens: bool) -> Key:
        """Return a new key in the place of one that is not here."""
        key = replace(_new_key(alg), kid=f"unknown-{len(self.unchecked)}")
        return key if opens or isinstance(key.material, SecretBytes) else key.public()


class _NotSet(Exception):
    """A variable is not set."""


@cache
def _new_key(alg: Alg) -> Key:
    return new_key(alg)


def variable_name(name: str) -> str:
    """Return a variable's name for a message, unless it may be a secret that was pasted there."""
    return name if len(name) <= 40 and name.isupper() else "named here"
