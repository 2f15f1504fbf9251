"""Builds the key sets of a policy: reads each key once, from its file or variable. `proxy.policyfile.build` makes one
reader for each policy.

Rules of this module:

- No message quotes key material.
- Where secrets are not (`overcoat check --no-secrets`), a new key of the same kind takes the place of one that is not
  there, so that everything round it is checked; and what was not checked is said. A key that is there is read as ever.
- A policy with such stand-ins is never served: nobody could open what they seal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol

from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import Alg, BadKey, Key, KeySet, load_key, new_key
from proxy.disk.keyfiles import KeyFileError, read_key_file
from proxy.policyfile.model import KeyEntry, KeySetSection
from proxy.policyfile.nearby import unreadable
from proxy.policyfile.usable import Usable
from proxy.policyfile.yamltext import Steps, path_text, shown


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
        files: the files that were looked for are appended here.
        unchecked: what was not there is appended here.
    """

    folder: Path
    env: Mapping[str, str]
    is_without_secrets: bool
    report: Report
    note: Callable[[bytes], None]
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
        listed: list[tuple[Steps, KeyEntry]] = [((*steps, "primary"), section.primary)]
        older = usable.numbered((*steps, "older"), section.older or ())
        listed += [((*steps, "older", index), entry) for index, entry in older]
        keys: list[Key] = []
        complete = True
        for at, entry in listed:
            key = self._key(at, entry, section, opens)
            if key is None:
                complete = False
            elif any(key.kid == other.kid for other in keys):
                self.report(
                    (*at, "kid") if entry.kid else at,
                    f"the kid {shown(key.kid)} stands twice in key set {name}; each key needs its own",
                )
                complete = False
            else:
                keys.append(key)
        return KeySet(name, section.alg, keys[0], tuple(keys[1:]), section.bind) if complete else None

    def _key(self, steps: Steps, entry: KeyEntry, section: KeySetSection, opens: bool) -> Key | None:
        file = entry.file or (entry.key.file if entry.key else None)
        at: Steps = (*steps, "file") if entry.file else (*steps, "key")
        try:
            if file is not None:
                self.files.append(self.folder / file)
                data = read_key_file(self.folder / file, unsafe_permissions=section.unsafe_key_permissions)
            else:
                data = self._variable((entry.key.env if entry.key else None) or "")
            self.note(data)
            return load_key(data, alg=section.alg, kid=entry.kid, not_after=entry.not_after)
        except OSError as error:
            if self.is_without_secrets and isinstance(error, FileNotFoundError):
                return self._stand_in(at, f"there is no {self.folder / (file or '')}", entry, section, opens)
            self.report(at, unreadable(self.folder / (file or ""), error))
        except _NotSet as error:
            if self.is_without_secrets:
                return self._stand_in(at, str(error), entry, section, opens)
            self.report(at, str(error))
        except (KeyFileError, BadKey) as error:
            self.report(at, str(error))
        return None

    def _variable(self, name: str) -> bytes:
        if name not in self.env:
            raise _NotSet(f"the environment variable {variable_name(name)} is not set")
        return self.env[name].encode("utf-8", errors="surrogateescape")

    def _stand_in(self, at: Steps, why: str, entry: KeyEntry, section: KeySetSection, opens: bool) -> Key | None:
        self.unchecked.append(f"{path_text(at)}: {why}")
        key = _new_key(section.alg)
        try:
            key = replace(key, kid=entry.kid or f"unknown-{len(self.unchecked)}", not_after=entry.not_after)
        except BadKey as error:
            self.report(at, str(error))
            return None
        return key if opens or isinstance(key.material, SecretBytes) else key.public()


class _NotSet(Exception):
    """A variable is not set."""


@cache
def _new_key(alg: Alg) -> Key:
    return new_key(alg)


def variable_name(name: str) -> str:
    """Return a variable's name for a message, unless it may be a secret that was pasted there."""
    return name if len(name) <= 40 and name.isupper() else "named here"
