"""Lists what needs attention about a policy that is right, such as a pin or key that ends soon. `overcoat check` prints
the list; `overcoat serve` logs it at its start, at each reload, and when something new ends.

Rules of this module:

- There is one list, with the same order and words wherever it is shown.
- A finding says what it affects and what to do. It quotes no key material.
- Nothing is dialled, and nothing is changed.
"""

from __future__ import annotations

import logging
import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from cryptography import x509
from OpenSSL import crypto

from proxy import timelimits
from proxy.core.certificates.crls import ends_of
from proxy.core.destinations import HTTPS_PORT, BadDestination, parse_authority
from proxy.core.fields.entries import Work
from proxy.core.jose.keymaterial import SecretBytes
from proxy.core.jose.keys import Key, KeySet
from proxy.core.pinlife.checks import backups
from proxy.core.pins import PinSet, PinVerdict
from proxy.core.rules.inspected import outside
from proxy.core.rules.policy import Mode, Policy, Rule
from proxy.core.rules.transport import denied_by_address
from proxy.core.rules.trust import CrlUse, Trust
from proxy.disk.ca import CaError, data_directory, published_mandates
from proxy.disk.chains import SeenChain, read_chains
from proxy.disk.mounts import is_mounted_by_itself, is_replaced
from proxy.policyfile.refusal import shown

logger = logging.getLogger("overcoat")

_OF_ONES_OWN = 100  # roots: a bundle with more is the public's, which nobody makes anew


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that needs attention.

    Attributes:
        text: one line.
        has_failed: whether something fails already; if not, it may fail some day.
    """

    text: str
    has_failed: bool = False


def findings(policy: Policy, env: Mapping[str, str], now: datetime) -> list[Finding]:
    """Return what needs attention.

    Args:
        policy: the policy; its roots are checked if they were read (`proxy.engine.tls.with_roots`).
        env: the environment, which says where Overcoat keeps its data.
        now: the current time in UTC.
    """
    today = now.date()
    seen = _seen(policy, env)
    found: list[Finding] = []
    if policy.source == "built-in":
        found.append(
            Finding("no policy file was named or found (./overcoat.yaml): nothing is pinned, nothing is encrypted")
        )
    found += _of_modes(policy)
    found += _of_files(policy.files)
    found += [Finding(remark) for remark in policy.remarks]
    for whose, trust in _trusts(policy):
        found += _of_roots(whose, trust, now)
        found += _of_crls(whose, trust, now)
    for rule in policy.rules:
        if not policy.is_mirrored(rule):
            found += _of_hosts(policy, rule)
        found += _of_client_certificate(rule, now)
    for whose, pins, consequence in _all_pins(policy):
        found += _end_of_pins(whose, pins, today, consequence)
        if pins.observes:
            found.append(
                Finding(
                    f"{whose}: its pins are only observed (pins.mode), and refuse no server: take mode out once no "
                    "decision line says would_deny"
                )
            )
        if len(pins.any_of) == 1:
            then = "no pin matches" if pins.observes else "it is denied"
            found.append(Finding(f"{whose}: one pin without a backup; if the upstream's key changes, {then}"))
        else:
            found += _of_backups(whose, pins, seen.get(whose, {}))
    for key_set in policy.keys.values():
        found += _of_keys(policy, key_set, today)
    found += _of_certificates(policy, now)
    found += _of_local_ca(policy, env, now)
    return found


def endings(policy: Policy, now: datetime) -> list[Finding]:
    """Return what ends within `SOON_SECONDS`, or has ended: the findings that appear just because time passes.

    Args:
        policy: the policy.
        now: the current time in UTC.
    """
    today = now.date()
    found: list[Finding] = []
    for whose, pins, consequence in _all_pins(policy):
        found += _end_of_pins(whose, pins, today, consequence)
    for key_set in policy.keys.values():
        for key in key_set.keys:
            found += _end_of_key(key, key_set, today)
    for rule in policy.rules:
        found += _of_client_certificate(rule, now)
    for whose, trust in _trusts(policy):
        found += _of_crls(whose, trust, now)
    found += _of_certificates(policy, now)
    return found


@dataclass(frozen=True, slots=True)
class Ending:
    """The last day of something that a policy relies on.

    Attributes:
        what: what ends.
        day: the last day on which it is good, in UTC.
        then: what happens after that.
    """

    what: str
    day: date
    then: str


def calendar(policy: Policy) -> Iterator[Ending]:
    """Yield all that ends some day: pins, keys and the roots that the policy names. (Those of the system are renewed
    with it.)
    """
    for whose, pins, consequence in _all_pins(policy):
        if pins.expires is not None:
            yield Ending(f"{whose}: pins", pins.expires, consequence)
    for key_set in policy.keys.values():
        for key in key_set.keys:
            if key.not_after is not None:
                yield Ending(_name_of(key, key_set), _last_day(key, key_set) or key.not_after, _without(key, key_set))
    for whose, trust in _trusts(policy):
        if trust.roots is not None:
            for end, name in _ends_of_roots(trust):
                yield Ending(f"{whose}.roots: {shown(name)}", end.date(), "what it signed is not trusted")
        for issuer, ends in _ends_of_crls(trust):
            yield Ending(f"{whose}.crls: {shown(issuer)}", ends.date(), _without_crl(trust))
    for rule in policy.rules:
        if (own := rule.client_certificate) is not None:
            yield Ending(f"rule {rule.name}: client_certificate", own.ends.date(), "its hosts refuse it")
    for mirror, shown_there in policy.certificates.items():
        yield Ending(f"listen: {mirror.cert}", shown_there.ends.date(), _WITHOUT_CERTIFICATE)


def log_findings(found: Iterable[Finding]) -> None:
    """Log findings."""
    for finding in found:
        logger.log(logging.ERROR if finding.has_failed else logging.WARNING, "%s", finding.text)


def _of_modes(policy: Policy) -> Iterator[Finding]:
    what = "protects nothing, plain http stays plain, and fields readable: end it with mode: enforce"
    if policy.mode is Mode.OBSERVE:
        enforced = [rule.name for rule in policy.rules if rule.mode is Mode.ENFORCE]
        but = f" (but in {', '.join(enforced)})" if enforced else ""
        yield Finding(f"mode observe{but} {what}")
    else:
        for rule in policy.rules:
            if rule.mode is Mode.OBSERVE:
                yield Finding(f"rule {rule.name}: mode observe {what}, or take it out")


def _of_writers(directory: Path) -> Iterator[Finding]:
    """Yield a finding for each folder in which users other than this one and root could replace what apps are told to
    trust.
    """
    real = Path(os.path.realpath(directory))
    above = (Path(os.path.realpath(each)) for each in directory.absolute().parents)  # a link to it may be here
    for path in dict.fromkeys((real, *real.parents, *above)):
        try:
            status = path.stat()
        except OSError:
            continue  # it does not exist; `serve` creates it for this user only
        is_data = path == real
        others = stat.S_IWGRP | stat.S_IWOTH if is_data else stat.S_IWOTH
        is_open = status.st_mode & others and (is_data or not status.st_mode & stat.S_ISVTX)
        if not is_open and status.st_uid in (0, os.geteuid()):
            continue
        danger = "put another certificate in the place of the local CA's, which apps are told to trust"
        if is_open:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            yield Finding(
                f"others may write {path} (mode {mode}), and so {danger}: chmod go-w {shlex.quote(str(path))}"
            )
        else:
            owner = f"chown {os.geteuid()} {shlex.quote(str(path))}"
            yield Finding(f"{path} belongs to another user ({status.st_uid}), who can {danger}: {owner}")


def _of_files(files: Sequence[Path]) -> Iterator[Finding]:
    for number, path in enumerate(dict.fromkeys(files)):
        if is_replaced(path):
            yield Finding(
                f"{path} was replaced or removed outside, and what is mounted here is still the old one: start the "
                "container anew, and mount its directory in place of the file",
                has_failed=True,
            )
            continue
        if _may_all_write(path):
            yield Finding(f"{path} may be changed by everyone on this machine: chmod o-w {shlex.quote(str(path))}")
        if number == 0 and is_mounted_by_itself(path):
            yield Finding(
                f"{path} is mounted as a single file, so that a new one under its name, as editors and deployments "
                "write it, is not seen here: mount its directory instead"
            )


def _may_all_write(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False  # it was read a moment ago, and has been removed


def _trusts(policy: Policy) -> Iterator[tuple[str, Trust]]:
    """Yield the policy's `Trust` and those of rules, and where each stands; a file that counts for several, once."""
    roots: set[Path | None] = set()
    crls: set[tuple[Path, ...]] = set()
    for whose, trust in (("trust", policy.trust), *((f"rule {r.name}: trust", r.trust) for r in policy.rules)):
        if trust is None:
            continue
        seen = trust
        if trust.roots in roots:
            seen = replace(seen, roots=None, anchors=None)
        if seen.crls is not None and seen.crls.files in crls:
            seen = replace(seen, crls=None)
        roots.add(trust.roots)
        crls.add(trust.crls.files if trust.crls is not None else ())
        yield whose, seen


def _of_crls(whose: str, trust: Trust, now: datetime) -> Iterator[Finding]:
    for issuer, ends in _ends_of_crls(trust):
        if now <= ends:
            continue
        is_required = trust.crls is not None and trust.crls.when is CrlUse.REQUIRE
        yield Finding(
            f"{whose}.crls: the list of {shown(issuer)} ended on {ends:%Y-%m-%d}: {_without_crl(trust)}",
            has_failed=is_required,
        )


def _without_crl(trust: Trust) -> str:
    if trust.crls is not None and trust.crls.when is CrlUse.REQUIRE:
        return "what its issuer signed is refused"
    return "what has been revoked since is accepted"


def _ends_of_crls(trust: Trust) -> Iterator[tuple[str, datetime]]:
    if trust.crls is not None:
        yield from ends_of(trust.crls.lists)


def _of_client_certificate(rule: Rule, now: datetime) -> Iterator[Finding]:
    own = rule.client_certificate
    if own is None:
        return
    whose = f"rule {rule.name}: client_certificate {own.file}"
    if own.ends < now:
        yield Finding(f"{whose} ended on {own.ends:%Y-%m-%d}: the rule's hosts refuse it; get a new one", True)
    elif own.ends <= now + timedelta(seconds=timelimits.SOON_SECONDS):
        yield Finding(f"{whose} ends on {own.ends:%Y-%m-%d}; afterwards the rule's hosts refuse it: get a new one")


def _of_roots(place: str, trust: Trust, now: datetime) -> Iterator[Finding]:
    if trust.anchors is None:
        return
    whose = f"{place}.roots: {trust.roots}" if trust.roots is not None else "the system's trusted roots"
    ends = list(_ends_of_roots(trust))
    past = [end for end in ends if end[0] < now]
    if len(past) == len(ends):
        yield Finding(f"{whose}: all certificates have expired, so that no upstream is trusted", has_failed=True)
    elif trust.roots is not None:  # the system's bundle is not the user's to change
        near = [end for end in ends if now <= end[0] <= now + timedelta(seconds=timelimits.SOON_SECONDS)]
        for when, group in (("expired", past), ("will expire", near)):
            if group:
                more = f", and {len(group) - 1} more" if len(group) > 1 else ""
                first, name = min(group)
                yield Finding(f"{whose}: {shown(name)} {when} on {first:%Y-%m-%d}{more}")
        yield from _without_usage(whose, trust)


def _without_usage(whose: str, trust: Trust) -> Iterator[Finding]:
    """Yield the authorities under which strict verification refuses every certificate (RFC 5280, section 4.2.1.3). One
    that names hosts is a server's own: what `openssl req -x509` makes says that it is both.
    """
    anchors = trust.anchors or ()
    for anchor in anchors if trust.strict and len(anchors) <= _OF_ONES_OWN else ():
        try:
            certificate = x509.load_der_x509_certificate(anchor)
            kinds: set[type[x509.ExtensionType]] = {type(extension.value) for extension in certificate.extensions}
        except ValueError:  # it is no certificate to this library; OpenSSL takes more
            continue
        if x509.BasicConstraints in kinds and not kinds & {x509.KeyUsage, x509.SubjectAlternativeName}:
            yield Finding(
                f"{whose}: {shown(certificate.subject.rfc4514_string())} does not say what its key is for, so what it "
                "has signed is refused: make it anew with -addext keyUsage=critical,keyCertSign,cRLSign, or write "
                "strict: false beside the roots"
            )


def _ends_of_roots(trust: Trust) -> Iterator[tuple[datetime, str]]:
    for anchor in trust.anchors or ():
        certificate = crypto.load_certificate(crypto.FILETYPE_ASN1, anchor)
        names = [
            f"{key.decode('ascii')}={value.decode('utf-8', 'replace')}"
            for key, value in certificate.get_subject().get_components()
        ]
        yield _end_of(certificate), ", ".join(names)


def _end_of(certificate: crypto.X509) -> datetime:
    text = (certificate.get_notAfter() or b"").decode("ascii")  # OpenSSL has only one form
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _of_hosts(policy: Policy, rule: Rule) -> Iterator[Finding]:
    for pattern in rule.hosts:
        if pattern.kind == "exact" and (denied := denied_by_address(policy, rule, pattern.host)) is not None:
            yield Finding(f"rule {rule.name}: {pattern} is never reached: {denied.hint}")


def _all_pins(policy: Policy) -> Iterator[tuple[str, PinSet, str]]:
    """Yield for each pin set: whose it is, the pins, and what happens when they end."""
    proxy = policy.upstream_proxy
    if proxy is not None and proxy.rule.pins is not None:
        yield "the upstream proxy", proxy.rule.pins, _then(proxy.rule.pins, "nothing leaves")
    for rule in policy.rules:
        if rule.pins is not None:
            yield f"rule {rule.name}", rule.pins, _then(rule.pins, "its hosts are denied")


def _seen(policy: Policy, env: Mapping[str, str]) -> dict[str, dict[str, SeenChain]]:
    """Return what `overcoat pins check` has seen last of the hosts of each pin set, by whose it is."""
    try:
        chains = read_chains(data_directory(env))
    except CaError:
        return {}
    proxy = policy.upstream_proxy
    found: dict[str, dict[str, SeenChain]] = {}
    for host, chain in chains.items():
        try:
            destination = parse_authority(host, HTTPS_PORT)
        except BadDestination:
            continue
        rule = policy.rule_for(destination)
        if proxy is not None and proxy.destination == destination:
            found.setdefault("the upstream proxy", {})[host] = chain
        elif rule is not None:
            found.setdefault(f"rule {rule.name}", {})[host] = chain
    return found


def _of_backups(whose: str, pins: PinSet, seen: Mapping[str, SeenChain]) -> Iterator[Finding]:
    """Yield a finding if every pin stood in the chains that the hosts have shown last: of one, none is a backup."""
    if not seen or backups(pins, frozenset(pin for chain in seen.values() for pin in chain.pins)):
        return
    host, chain = max(seen.items(), key=lambda each: each[1].day)
    also = f" and {len(seen) - 1} more" if len(seen) > 1 else ""
    yield Finding(
        f"{whose}: {len(pins.any_of)} pins without a backup: all of them stood in what {host}{also} showed last, on "
        f"{chain.day}; add the pin of a key that is not in use yet (overcoat pins backup)"
    )


def _then(pins: PinSet, consequence: str) -> str:
    return consequence if pins.refuses(PinVerdict.EXPIRED) else "any valid certificate is let through"


def _end_of_pins(whose: str, pins: PinSet, today: date, consequence: str) -> Iterator[Finding]:
    if pins.have_ended(today):
        fails = pins.refuses(PinVerdict.EXPIRED)
        yield Finding(f"{whose}: its pins expired on {pins.expires}: {consequence}", has_failed=fails)
    elif pins.expires is not None and pins.expires <= today + timedelta(seconds=timelimits.SOON_SECONDS):
        yield Finding(f"{whose}: its pins will expire on {pins.expires}; after that {consequence}")


def _of_keys(policy: Policy, key_set: KeySet, today: date) -> Iterator[Finding]:
    seals = any(entry.keys is key_set for rule in policy.rules for entry in rule.entries(Work.ENCRYPT))
    opens = any(entry.keys is key_set for rule in policy.rules for entry in rule.entries(Work.DECRYPT))
    for key in key_set.keys:
        yield from _end_of_key(key, key_set, today)
        if seals and not opens and key.can_open and not isinstance(key.material, SecretBytes):
            yield Finding(
                f"{_name_of(key, key_set)} is a private key, and this policy only encrypts with it: put its public "
                "half in its place (overcoat keys public FILE), and keep the private one where the values are opened"
            )


def _end_of_key(key: Key, key_set: KeySet, today: date) -> Iterator[Finding]:
    whose, last = _name_of(key, key_set), _last_day(key, key_set)
    if key is key_set.now.primary and key.begins_later(today):
        yield Finding(f"{whose} is not good before {key.not_before}: {_without(key, key_set)}", has_failed=True)
    if last is not None and last < today:
        yield Finding(f"{whose} expired on {last}: {_without(key, key_set)}", has_failed=True)
    elif last is not None and last <= today + timedelta(seconds=timelimits.SOON_SECONDS):
        yield Finding(f"{whose} will expire on {last}; after that {_without(key, key_set)}")


def _last_day(key: Key, key_set: KeySet) -> date | None:
    """Return the last day on which a key does what it is there for: the primary one seals, the others open."""
    return key.not_after if key is key_set.now.primary else key_set.last_opening(key)


def _name_of(key: Key, key_set: KeySet) -> str:
    return f"key set {key_set.name}: key {key.kid}"


def _without(key: Key, key_set: KeySet) -> str:
    if key is key_set.now.primary:
        return "what it should encrypt is denied"
    return "what it encrypted is not opened any more"


_WITHOUT_CERTIFICATE = "no peer connects to the mirror listener any more"


def _of_certificates(policy: Policy, now: datetime) -> Iterator[Finding]:
    """Yield a finding for each certificate of a mirror listener that ends soon, or has."""
    for mirror, certificate in policy.certificates.items():
        day = f"{certificate.ends:%Y-%m-%d}"
        if certificate.ends < now:
            yield Finding(f"listen: {mirror.cert} ended on {day}: {_WITHOUT_CERTIFICATE}", has_failed=True)
        elif certificate.ends <= now + timedelta(seconds=timelimits.SOON_SECONDS):
            yield Finding(f"listen: {mirror.cert} will end on {day}; after that {_WITHOUT_CERTIFICATE}")


def _of_local_ca(policy: Policy, env: Mapping[str, str], now: datetime) -> Iterator[Finding]:
    try:
        directory = data_directory(env)
    except CaError:  # there is no home directory; `serve` reports that itself
        return
    yield from _of_writers(directory)
    mandates = published_mandates(directory)
    for own in mandates[:1]:
        if (warning := own.lifetime.warning(now)) is not None:
            yield Finding(warning, has_failed=policy.inspects and not own.lifetime.holds(now))
    for successor in mandates[1:]:
        if (left_out := outside(policy, successor.constraints)) is not None:
            yield Finding(
                f"the new CA that `overcoat ca rotate` has made may not sign for {left_out}, which this policy "
                "inspects; run it again, and make the apps trust what it makes then"
            )
