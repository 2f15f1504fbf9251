"""Builds the core's `Policy` from the model of a policy file, reads the files that it names, and makes the checks that
need several values at once. `proxy.policyfile.load` calls it after the model.

Rules of this module:

- If the model refuses part of the file, the rest is checked all the same, so that one run finds as many errors as
  possible (see `proxy.policyfile.usable`). A known error never leads to a second one.
- Each file is read once, up to a limit. Relative names are relative to the policy file. No message quotes their
  content.
- A combination that cannot do what it promises (pins on a tunnel, encryption on plain http) is refused.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import KeySet
from proxy.core.pinfiles import pin_of_pem
from proxy.core.pins import Pin, PinSet
from proxy.core.rules.policy import (
    Defaults,
    Https,
    Limits,
    Listener,
    Mode,
    PlainHttp,
    Policy,
    Rule,
    RuleLimits,
    UpstreamProxy,
)
from proxy.core.rules.trust import Trust
from proxy.core.who.addresses import address_set
from proxy.core.who.clients import ClientRules, PasswordHash, User, parse_password_hash
from proxy.disk.reading import read_regular
from proxy.policyfile.entries import EntryReader
from proxy.policyfile.hosts import HostIndex, check_hosts
from proxy.policyfile.keysets import KeyReader, variable_name
from proxy.policyfile.mirrors import Mirrors
from proxy.policyfile.model.access import ClientsSection
from proxy.policyfile.model.fields import DecryptEntry, EncryptEntry
from proxy.policyfile.model.limits import LimitsSection, RuleLimitsSection
from proxy.policyfile.model.rules import RuleSection
from proxy.policyfile.model.trust import PinsSection
from proxy.policyfile.model.values import KeySource, PinFile
from proxy.policyfile.model.whole import PolicyFile, UpstreamProxySection
from proxy.policyfile.nearby import missing, unreadable
from proxy.policyfile.refusal import shown
from proxy.policyfile.trusting import TrustReader
from proxy.policyfile.usable import usable_part
from proxy.policyfile.yamltext import Document, Problem, Steps, path_text

_MAX_PIN_FILE_BYTES = 64 * 1024
_MAX_PASSWORD_BYTES = 1024


class Builder:
    """Builds the policy of one document.

    Attributes:
        problems: the errors that this step has found.
        remarks: what is no error but needs attention.
        files: the files that were read.
    """

    def __init__(
        self,
        document: Document,
        folder: Path,
        env: Mapping[str, str],
        *,
        listen: tuple[Listener, ...] | None = None,
        is_without_secrets: bool = False,
    ) -> None:
        """Start.

        Args:
            document: the file.
            folder: what relative names are relative to.
            env: the variables that `{env: NAME}` means.
            listen: listeners that take the place of the file's; empty if these are wrong.
            is_without_secrets: whether secrets that are not there are no error.
        """
        self.problems: list[Problem] = []
        self.remarks: list[str] = []
        self.files: list[Path] = []
        self._content = hashlib.sha256()
        self._secrets = hashlib.sha256()
        self._document = document
        self._usable = usable_part(document.data)
        self._folder = folder
        self._env = env
        self._keys = KeyReader(
            folder, env, is_without_secrets, self._problem, self.note, self._key_password, self.files
        )
        self._trusting = TrustReader(
            folder,
            env,
            is_without_secrets,
            self._file,
            self._problem,
            self.note,
            self.files,
            self.remarks,
            self._keys.unchecked,
        )
        self._listen = listen if listen is not None else tuple(self._usable.file.listen)
        is_known = bool(listen) if listen is not None else not self._usable.is_about_wrong(("listen",))
        self.mirrors = Mirrors(self._listen if is_known else None, folder, is_without_secrets, self.note)
        self._entries = EntryReader(
            self._usable, self._problem, self.remarks, knows_mirrors=self.mirrors.listeners is not None
        )

    def build(self) -> Policy:
        """Return the policy; it is valid only if neither the model nor this step has found an error."""
        file = self._usable.file
        entries = (entry for rule in file.rules or () for entry in (*(rule.request or ()), *(rule.response or ())))
        opening = {entry.key for entry in entries if isinstance(entry, DecryptEntry)}
        keys = self._keys.key_sets(file.keys, self._usable, opening)
        self._check_response_seconds(file)
        defaults = Defaults(file.defaults.plain_http, file.defaults.https)
        trust = self._trusting.trust(file.trust)
        policy = Policy(
            listen=self._listen,
            admin=file.admin,
            probes=file.probes,
            mode=file.mode,
            defaults=defaults,
            trust=trust,
            limits=Limits(**file.limits.model_dump()),
            destinations=address_set(file.destinations.allow or []),
            egress=file.destinations.egress,
            clients=self._clients(file.clients),
            scrapers=address_set(file.clients.admin or []),
            names=frozenset(file.names or ()),
            upstream_proxy=self._upstream_proxy(file.upstream_proxy) if file.upstream_proxy else None,
            hsts_preload=file.hsts_preload,
            via=file.via,
            workers=file.workers,
            open_connections=file.open_connections,
            drain_wait=file.drain_wait,
            drain_timeout=file.drain_timeout,
            keys={name: key_set for name, key_set in keys.items() if key_set is not None},
            rules=self._rules(file.rules or (), keys, defaults, trust),
            certificates=self.mirrors.certificates(),
            files=(*self.files, *self.mirrors.files),
            remarks=(*self.remarks, *self.mirrors.remarks),
            unchecked=(*self._keys.unchecked, *self.mirrors.unchecked),
            content=self._content.digest(),
            secrets=self._secrets.digest(),
        )
        self.mirrors.check_whole(policy, lambda: not self._usable.is_about_wrong(("rules",)))
        return policy

    def note(self, content: bytes, *, is_guessable: bool = False) -> None:
        """Add to the hash of what the policy is made of.

        Args:
            content: the policy's text, or the content of a file or variable.
            is_guessable: whether a person may have chosen it, so that it could be guessed from a hash.
        """
        (self._secrets if is_guessable else self._content).update(hashlib.sha256(content).digest())

    def _check_response_seconds(self, file: PolicyFile) -> None:
        """Check that a time limit for responses can be reached: the idle limit must allow so long a silence."""
        listed: list[tuple[Steps, LimitsSection | RuleLimitsSection]] = [(("limits",), file.limits)]
        for index, rule in self._usable.numbered(("rules",), file.rules or ()):
            if rule.limits is not None:
                listed.append((("rules", index, "limits"), rule.limits))
        for steps, section in listed:
            seconds, idle = section.response_seconds, file.limits.idle_seconds
            if "response_seconds" in section.model_fields_set and seconds is not None and seconds > idle:
                self._problem(
                    (*steps, "response_seconds"),
                    f"{seconds} s are never reached, since a connection on which nothing moves ends after "
                    f"limits.idle_seconds ({idle}): raise that as well",
                )

    def _problem(self, steps: Steps, message: str) -> None:
        if self._usable.is_about_wrong(steps):
            return
        mark = self._document.mark(steps)
        self.problems.append(Problem(steps, mark.line, mark.column, message))

    def _file(
        self, steps: Steps, name: str, limit: int, *, is_guessable: bool = False, is_secret: bool = False
    ) -> bytes | None:
        path = self._folder / name
        self.files.append(path)
        try:
            content, _ = read_regular(path, limit)
        except OSError as error:
            if is_secret and self._keys.is_without_secrets and isinstance(error, FileNotFoundError):
                self._keys.unchecked.append(f"{path_text(steps)}: {missing(self._folder, name)}")
            else:
                self._problem(steps, unreadable(self._folder, name, error))
            return None
        if len(content) > limit:
            self._problem(steps, f"{path} has more than {limit} bytes")
            return None
        self.note(content, is_guessable=is_guessable)
        return content

    def _clients(self, section: ClientsSection) -> ClientRules:
        users: dict[str, User] = {}
        for index, entry in self._usable.numbered(("clients", "users"), section.users or ()):
            steps: Steps = ("clients", "users", index)
            if entry.name in users:
                self._problem((*steps, "name"), f"the user {shown(entry.name)} stands twice")
            password = self._password((*steps, "password_hash"), entry.password_hash)
            if password is not None:
                users[entry.name] = User(entry.name, password)
        costs = {(each.password.ln, each.password.r, each.password.p) for each in users.values()}
        if len(costs) > 1:
            self._problem(
                ("clients", "users"),
                "all hashes take the same cost (ln, r, p): else the time that one takes tells names apart",
            )
        if section.unsafe_open_listener and (section.allow or section.users):
            self._problem(
                ("clients", "unsafe_open_listener"),
                "this is for listeners without `allow` and `users`: leave it out",
            )
        if section.allow is not None:
            return ClientRules(address_set(section.allow), tuple(users.values()))
        if section.users is not None or section.unsafe_open_listener:
            return ClientRules(None, tuple(users.values()))
        return ClientRules()

    # The upstream proxy

    def _upstream_proxy(self, section: UpstreamProxySection) -> UpstreamProxy:
        steps: Steps = ("upstream_proxy",)
        address = section.url
        if section.pins is not None and not address.is_https:
            self._problem((*steps, "pins"), "only an https proxy shows a certificate that could be pinned")
        pins = self._pins((*steps, "pins"), section.pins) if section.pins is not None else None
        authorization = None
        if section.credentials is not None:
            text = self._secret_text((*steps, "credentials"), section.credentials, is_guessable=True)
            if text is not None and (":" not in text or not text.isprintable()):
                self._problem((*steps, "credentials"), "what is there is not NAME:PASSWORD in one line")
            elif text is not None:
                authorization = SecretBytes(b"Basic " + base64.b64encode(text.encode("utf-8")))
        rule = Rule("upstream_proxy", (), PlainHttp.REJECT, Https.INSPECT, pins=pins)
        return UpstreamProxy(address.destination, address.is_https, rule, authorization, tuple(section.direct or ()))

    def _secret_text(
        self, steps: Steps, source: KeySource, *, is_guessable: bool = False, may_have_blanks: bool = False
    ) -> str | None:
        """Return one line of text from outside the policy file; None if it cannot be read. Blanks round it are taken
        off, or only the end of the line.
        """
        blanks = "\r\n" if may_have_blanks else None
        if source.file is not None:
            at: Steps = (*steps, "file")
            content = self._file(at, source.file, _MAX_PASSWORD_BYTES, is_guessable=is_guessable, is_secret=True)
            return None if content is None else content.decode("utf-8", "replace").strip(blanks)
        if source.env in self._env:
            self.note(os.fsencode(self._env[source.env or ""]), is_guessable=is_guessable)
            return self._env[source.env or ""].strip(blanks)
        what = f"the environment variable {variable_name(source.env or '')} is not set"
        if self._keys.is_without_secrets:
            self._keys.unchecked.append(f"{path_text((*steps, 'env'))}: {what}")
        else:
            self._problem((*steps, "env"), what)
        return None

    def _key_password(self, steps: Steps, source: KeySource) -> str | None:
        """Return the password of an encrypted key; None if it cannot be read."""
        return self._secret_text(steps, source, is_guessable=True, may_have_blanks=True)

    def _password(self, steps: Steps, entry: PasswordHash | KeySource) -> PasswordHash | None:
        if isinstance(entry, PasswordHash):
            return entry
        text = self._secret_text(steps, entry)
        if text is None:
            return None
        try:
            return parse_password_hash(text)
        except ValueError as error:
            self._problem(steps, str(error))
            return None

    # Rules

    def _rules(
        self, sections: Sequence[RuleSection], keys: Mapping[str, KeySet | None], defaults: Defaults, trust: Trust
    ) -> tuple[Rule, ...]:
        rules: list[Rule] = []
        names: dict[str, int] = {}
        hosts = HostIndex()
        for index, section in self._usable.numbered(("rules",), sections):
            steps: Steps = ("rules", index)
            if names.setdefault(section.name, index) != index:
                self._problem((*steps, "name"), f"rules[{names[section.name]}] has the name {section.name} already")
            check_hosts(steps, section, hosts, self._usable, self._problem)
            rules.append(self._rule(steps, section, keys, defaults, trust))
        return tuple(rules)

    def _rule(
        self,
        steps: Steps,
        section: RuleSection,
        keys: Mapping[str, KeySet | None],
        defaults: Defaults,
        policys: Trust,
    ) -> Rule:
        entries = [*(section.request or ()), *(section.response or ())]
        raw_needs = {
            "pins": section.pins is not None,
            "encrypt": any(isinstance(entry, EncryptEntry) for entry in entries),
            "decrypt": any(isinstance(entry, DecryptEntry) for entry in entries),
        }
        needs = [name for name, is_needed in raw_needs.items() if is_needed]
        is_mirrored = self.mirrors.is_mirrored(section)
        if is_mirrored:
            hosts = list(self._usable.numbered((*steps, "hosts"), section.hosts))
            self.mirrors.check_rule(steps, section, hosts, self._problem)
        if section.https is Https.TUNNEL and needs:
            self._problem(
                (*steps, "https"),
                f"tunnel carries TLS unopened, but {' and '.join(needs)} of this rule must see inside: leave https out "
                f"(it is inspect then), or take {' and '.join(needs)} out",
            )
        plain_http = section.plain_http or defaults.plain_http
        protects = [name for name in needs if name != "decrypt"]
        if plain_http is PlainHttp.ALLOW and protects and not is_mirrored:
            self._problem(
                (*steps, "plain_http") if section.plain_http else steps,
                f"plain http cannot keep the promise of this rule ({', '.join(protects)}): write plain_http: upgrade "
                "or plain_http: reject",
            )
        is_known = not self._usable.is_about_wrong((*steps, "plain_http"))
        if plain_http is not PlainHttp.UPGRADE and section.https_port is not None and is_known:
            self._problem(
                (*steps, "https_port"),
                f"https_port is where upgraded requests go, but plain_http is {plain_http} here: leave one of them out",
            )
        if section.raw_tcp is not None:
            self._check_raw_tcp((*steps, "raw_tcp"), section, needs)
        https = section.https or (Https.INSPECT if needs else Https.TUNNEL if section.raw_tcp else defaults.https)
        is_known = is_known and not self._usable.is_about_wrong((*steps, "https"))
        trust, certificate = section.trust, section.client_certificate
        if plain_http is PlainHttp.REJECT and https is not Https.INSPECT and is_known:
            for name in [name for name in ("trust", "client_certificate") if getattr(section, name) is not None]:
                self._problem(
                    (*steps, name),
                    f"no certificate of this rule's hosts is looked at (plain_http: {plain_http}, https: {https}): "
                    f"leave {name} out",
                )
        return Rule(
            name=section.name,
            hosts=tuple(section.hosts),
            plain_http=plain_http,
            https=https,
            https_port=section.https_port,
            pins=self._pins((*steps, "pins"), section.pins) if section.pins else None,
            request=self._entries.read((*steps, "request"), section.request or [], keys, is_mirrored=is_mirrored),
            response=self._entries.read((*steps, "response"), section.response or [], keys, is_mirrored=is_mirrored),
            raw_tcp=section.raw_tcp is not None,
            trust=self._trusting.trust_of_rule((*steps, "trust"), trust, policys) if trust is not None else None,
            client_certificate=self._trusting.client_certificate((*steps, "client_certificate"), certificate)
            if certificate is not None
            else None,
            destinations=address_set(section.destinations.allow) if section.destinations is not None else None,
            limits=RuleLimits(section.limits.response_seconds) if section.limits is not None else None,
            mode=section.mode,
        )

    def _check_raw_tcp(self, steps: Steps, section: RuleSection, needs: Sequence[str]) -> None:
        """Check that a rule whose bytes pass unchecked (`raw_tcp`) needs no check of them."""
        if needs or section.https in (Https.INSPECT, Https.REJECT):
            what = " and ".join(needs) or f"https: {section.https}"
            self._problem(steps, f"what is not looked at cannot have {what}: take one of them out")
        if any(pattern.port is None for pattern in section.hosts):
            self._problem(steps, "each of the rule's hosts must name its port: host.example:5432")

    def _pins(self, steps: Steps, section: PinsSection) -> PinSet:
        pins: dict[Pin, int] = {}
        for index, entry in self._usable.numbered((*steps, "any_of"), section.any_of):
            at: Steps = (*steps, "any_of", index)
            pin = self._pin_of_file(at, entry) if isinstance(entry, PinFile) else entry
            if pin is not None and pins.setdefault(pin, index) != index:
                self._problem(at, f"any_of[{pins[pin]}] is the same pin already; a backup is a pin of another key")
        if section.expires is None and "after_expiry" in section.model_fields_set:
            self._problem(
                (*steps, "after_expiry"),
                "without `expires` the pins have no end: give them their last day, or leave it",
            )
        return PinSet(tuple(pins), section.expires, section.after_expiry, section.mode is Mode.OBSERVE)

    def _pin_of_file(self, steps: Steps, entry: PinFile) -> Pin | None:
        content = self._file((*steps, "file"), entry.file, _MAX_PIN_FILE_BYTES)
        if content is None:
            return None
        try:
            return pin_of_pem(content)
        except ValueError as error:
            self._problem((*steps, "file"), f"{self._folder / entry.file}: {error}")
            return None
