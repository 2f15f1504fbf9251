"""What the policy file's reader checks of mirror listeners, beside what stands in each by itself: their certificates,
and that rules and mirrors fit each other. `proxy.policyfile.build` calls it.

Rules of this module:

- A rule is either about what leaves, or about what comes to hosts for which a mirror stands: never about both. What is
  encrypted in one direction is decrypted in the other; a list that says otherwise would leave values readable.
- A mirror that protects nothing is an error: each of its hosts is in a rule.
- Certificate and key are read as a whole, checked by `proxy.core.certificates.serving`, and served as they were read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from proxy.core.certificates.serving import (
    BadServerCertificate,
    BadServerKey,
    ServerCertificate,
    read_server_certificate,
)
from proxy.core.destinations import HTTPS_PORT, Destination
from proxy.core.fields.entries import Work
from proxy.core.rules.policy import HostPattern, Listener, Mirror, Policy
from proxy.core.rules.transport import forbidden_behind_mirror
from proxy.core.who.addresses import parse_ip
from proxy.disk.reading import MAX_ROOTS_BYTES, read_regular
from proxy.policyfile.model.rules import RuleSection
from proxy.policyfile.nearby import missing, unreadable
from proxy.policyfile.yamltext import Steps

_FOR_OTHERS = 0o066  # group or others may read or write


class Unreadable(Exception):
    """A file cannot be read. The message says why."""


@dataclass(slots=True)
class Mirrors:
    """The mirror listeners of one policy.

    Attributes:
        listeners: all listeners of the policy, those of a flag or variable in place of the file's; None if they are not
            known, since one of them is wrong.
        folder: what relative names are relative to.
        is_without_secrets: whether a key that is not there is no error.
        note: takes the content of what was read, for the policy's hash.
        problems: errors, each with the number of the listener that it is about.
        files: the files that were looked for.
        remarks: what is no error but needs attention.
        unchecked: what was not there.
    """

    listeners: Sequence[Listener] | None
    folder: Path
    is_without_secrets: bool
    note: Callable[[bytes], None]
    problems: list[tuple[int, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    _left: dict[str, int] = field(init=False)  # the hosts that no rule has named yet, each with its listener's number

    def __post_init__(self) -> None:
        self._left = {name: number for number, mirror in self._numbered() for name in mirror.names}

    def _numbered(self) -> list[tuple[int, Mirror]]:
        found = enumerate(self.listeners or ())
        return [(number, each.mirror) for number, each in found if each.mirror is not None]

    # Rules

    def is_mirrored(self, section: RuleSection) -> bool:
        """Tell whether a rule is the one that counts for a host that a mirror stands for. It is called once for each
        rule, in their order.
        """
        found = [
            name
            for name in self._left
            if any(
                pattern.matches(Destination(name, HTTPS_PORT)) or (pattern.kind, pattern.host) == ("exact", name)
                for pattern in section.hosts
            )
        ]
        for name in found:
            del self._left[name]
        return bool(found)

    def check_rule(
        self,
        steps: Steps,
        section: RuleSection,
        hosts: Sequence[tuple[int, HostPattern]],
        report: Callable[[Steps, str], None],
    ) -> None:
        """Check that a rule for hosts that mirrors stand for is about nothing else.

        Args:
            steps: where the rule stands.
            section: the rule.
            hosts: its hosts, each with its number in the file.
            report: takes errors.
        """
        names = {name for _, mirror in self._numbered() for name in mirror.names}
        for index, pattern in hosts:
            if not _is_one_of(pattern, names):
                report(
                    (*steps, "hosts", index),
                    f"a mirror listener stands for other hosts of this rule, and none for exactly {pattern}: what "
                    "comes to a server and what leaves for others take rules of their own",
                )
        for name in ("plain_http", "https", "https_port", "raw_tcp"):
            if getattr(section, name) is not None:
                report(
                    (*steps, name),
                    "this is about what leaves, and a mirror listener stands for these hosts: leave it out",
                )
        own = {pattern.host for _, pattern in hosts}
        if all(mirror.is_plain for _, mirror in self._numbered() if not own.isdisjoint(mirror.names)):
            for name in ("pins", "trust", "client_certificate"):
                if getattr(section, name) is not None:
                    report(
                        (*steps, name),
                        "the mirror speaks plain http with its server (to=http://…), which shows no certificate: leave "
                        "it out",
                    )

    def check_whole(self, policy: Policy, is_known: Callable[[], bool]) -> None:
        """Check each mirror, now that the rules are known.

        Args:
            policy: the policy.
            is_known: tells whether all rules are right, so that one that is missing is really missing.
        """
        for number, mirror in self._numbered():
            missing = [name for name in mirror.names if self._left.get(name) == number]
            if missing and is_known():
                self.problems.append(
                    (number, f"no rule names {' and '.join(missing)}, so nothing would be opened or sealed there")
                )
            if mirror.cert is None and policy.clients_of(mirror).addresses is None:
                self.problems.append(
                    (
                        number,
                        "without cert= and key= it speaks plain http, so say which addresses may connect: "
                        "from=10.1.0.0/16, or clients.allow",
                    )
                )
            self._check_server(number, mirror, policy)

    def _check_server(self, number: int, mirror: Mirror, policy: Policy) -> None:
        try:
            address = parse_ip("127.0.0.1" if mirror.to.host == "localhost" else mirror.to.host)
        except ValueError:
            return  # a name: its addresses are looked at when it is dialled
        for name in mirror.names:
            rule = policy.rule_for(Destination(name, HTTPS_PORT))
            denied = forbidden_behind_mirror(policy, rule, mirror.to.host, address, is_plain=mirror.is_plain)
            if denied is not None:
                self.problems.append((number, f"{denied.detail}: {denied.hint}"))
                return

    # Certificates

    def certificates(self) -> dict[Mirror, ServerCertificate]:
        """Read what the mirrors show that speak TLS; errors are among the problems."""
        found: dict[Mirror, ServerCertificate] = {}
        for number, mirror in self._numbered():
            if mirror.cert is None or mirror.key is None:
                continue
            try:
                chain, key = self._read(mirror.cert), self._read(mirror.key, is_key=True)
                if key is not None and chain is not None:
                    found[mirror] = read_server_certificate(chain, key, mirror.names, datetime.now(UTC))
            except Unreadable as error:
                self.problems.append((number, str(error)))
            except BadServerCertificate as error:
                self.problems.append((number, f"cert={mirror.cert}: {error}"))
            except BadServerKey as error:
                self.problems.append((number, f"key={mirror.key}: {error}"))
        return found

    def _read(self, name: str, *, is_key: bool = False) -> bytes | None:
        path = self.folder / name
        self.files.append(path)
        try:
            content, status = read_regular(path, MAX_ROOTS_BYTES)
        except OSError as error:
            if is_key and self.is_without_secrets and isinstance(error, FileNotFoundError):
                self.unchecked.append(f"listen: {missing(self.folder, name)}")
                return None
            raise Unreadable(unreadable(self.folder, name, error)) from None
        if len(content) > MAX_ROOTS_BYTES:
            raise Unreadable(f"{path} has more than {MAX_ROOTS_BYTES} bytes")
        if is_key and status.st_mode & _FOR_OTHERS:
            self.remarks.append(f"listen: {path} may be read by others, and is a private key: chmod 600 {path}")
        self.note(content)
        return content


def _is_one_of(pattern: HostPattern, names: set[str]) -> bool:
    return pattern.kind == "exact" and pattern.host in names and pattern.port in (None, HTTPS_PORT)


def wrong_work(work: Work, *, of_request: bool, is_mirrored: bool) -> str | None:
    """Return what is wrong with an entry of a rule's `request` or `response` list; None if it does the right work.

    Args:
        work: what it does.
        of_request: whether it is about requests.
        is_mirrored: whether a mirror listener stands for the rule's hosts.
    """
    right = Work.DECRYPT if of_request is is_mirrored else Work.ENCRYPT
    if work is right:
        return None
    which = "request" if of_request else "response"
    if is_mirrored:
        return (
            "a mirror listener stands for these hosts: it decrypts requests and encrypts responses; write "
            f"{right} here, in {which}"
        )
    return (
        f"{which}s to these hosts are {right}ed here: write {right}; only where a mirror listener stands for the hosts "
        f"(mirror://…&for=HOST), {which}s are {work}ed"
    )
