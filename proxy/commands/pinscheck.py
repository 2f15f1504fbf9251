"""`overcoat pins check`: tries the pins of a policy on its hosts, side by side, for cron and CI; or on what a server is
to show one day.

Rules of this module:

- It shakes hands as the sidecar would: with the policy's roots, along its routes, and only where it allows to go.
- Exit status 1 says that somebody must act now: a host was not reached, its certificate or keys are not right, or
  something ends within `--days`. A pin without a backup is shown, and is no such thing.
- A pattern names no host that could be asked: it is listed as not tried, unless `--host` names one of its hosts.
- What was seen is remembered for `overcoat check` (`proxy.disk.chains`); where that cannot be written, it is said.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.commands.failed import Failed
from proxy.commands.pinsshared import destination_in, owner_of, rule_of, said_of, shake_hands
from proxy.commands.shared import echo_json, json_option, load_or_exit, plain_table, policy_option, wide_console
from proxy.core.decisions import Denied
from proxy.core.destinations import HTTP_PORT, HTTPS_PORT, Destination
from proxy.core.rules.policy import HostPattern, Https, PlainHttp, Policy, Rule, upgraded

if TYPE_CHECKING:
    from proxy.core.certificates.localca import Lifetime
    from proxy.core.pinlife.candidates import Candidate
    from proxy.core.pinlife.checks import HostCheck

DAYS = 14
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be tried: destinations with their rules; and patterns that are not, each with its rule's name."""

    hosts: dict[Destination, Rule]
    not_tried: tuple[tuple[str, str], ...]


@click.command()
@policy_option
@json_option
@click.option("--days", default=DAYS, show_default=True, metavar="N", help="What ends sooner makes the exit status 1.")
@click.option("--host", "named", multiple=True, metavar="HOST[:PORT]", help="Try this host, too: one of a pattern.")
@click.option(
    "--candidate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Dial nobody: test this PEM chain (the server's first), or this CSR, in place of what the hosts show.",
)
def check(option: str | None, as_json: bool, days: int, named: tuple[str, ...], candidate: Path | None) -> None:
    """Try the hosts of all rules side by side: which pin matches and where, what ends when, and is there a backup?

    It exits with 1 if a host has no pinned key or cannot be reached, and if a certificate, pins or the local CA have
    fewer than --days days left. So it can run in cron, and in CI before a new policy or certificate is put in place.

    \b
    Example: overcoat pins check -p overcoat.yaml --days 21
    Example: overcoat pins check -p overcoat.yaml --candidate new-chain.pem
    """
    policy = load_or_exit(option, as_json=as_json)
    now = datetime.now(UTC)
    try:
        hosts = [destination_in(policy, server) for server in named]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--host") from None
    if candidate is not None:
        report = report_of(_rehearse(policy, candidate, hosts, now), days, now)
    else:
        targets = targets_of(policy, hosts)
        checks = _try(policy, targets, now)
        _remember(checks, now)
        ca = _local_ca()
        report = report_of(
            checks,
            days,
            now,
            not_tried=targets.not_tried,
            local_ca=ca,
            needs_ca=policy.inspects,
            inspected=inspected_of(policy, targets),
        )
    if as_json:
        echo_json(report)
    else:
        _print(report)
    for each in report["hosts"]:
        for trouble in each["troubles"]:
            click.echo(f"error: {each['host']}: {trouble}", err=True)
    if not report["ok"]:
        raise SystemExit(1)


def targets_of(policy: Policy, named: Sequence[Destination] = ()) -> Targets:
    """Return the hosts of a policy with whom the sidecar shakes hands itself.

    Args:
        policy: the policy.
        named: hosts to try beside those that rules name exactly.
    """
    hosts: dict[Destination, Rule] = {}
    not_tried: list[tuple[str, str]] = []
    proxy = policy.upstream_proxy
    if proxy is not None and proxy.is_https:
        hosts[proxy.destination] = proxy.rule
    for rule in policy.rules:
        shakes = rule.pins is not None or rule.https is Https.INSPECT or rule.plain_http is PlainHttp.UPGRADE
        for pattern in rule.hosts:
            if not shakes or rule.raw_tcp:
                not_tried.append((rule.name, str(pattern)))
            elif pattern.kind == "exact":
                hosts.setdefault(_https(pattern, rule), rule)
            elif not any(pattern.matches(each) for each in named):
                not_tried.append((rule.name, str(pattern)))
    for each in named:
        if (found := rule_of(policy, each)) is not None:
            hosts.setdefault(each, found)
        else:
            raise Failed(f"no rule names {each}")
    return Targets(hosts, tuple(not_tried))


def inspected_of(policy: Policy, targets: Targets) -> frozenset[str]:
    """Return the hosts that apps see under a certificate of the local CA."""
    return frozenset(
        destination.authority
        for destination, rule in targets.hosts.items()
        if rule.https is Https.INSPECT and rule.hosts and not policy.observes(rule) and not policy.is_mirrored(rule)
    )


def _https(pattern: HostPattern, rule: Rule) -> Destination:
    if pattern.port is None:
        return Destination(pattern.host, rule.https_port or HTTPS_PORT)
    asked = Destination(pattern.host, pattern.port)
    return upgraded(asked, rule.https_port) if pattern.port == HTTP_PORT else asked


def _try(policy: Policy, targets: Targets, now: datetime) -> list[HostCheck]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from proxy.core.pinlife.checks import check_host, failed_host

    seen = shake_hands(policy, list(targets.hosts))
    checks = []
    for destination, rule in targets.hosts.items():
        found, host, whose = seen[destination], destination.authority, owner_of(rule)
        if isinstance(found, Denied):
            checks.append(failed_host(host, whose, rule.pins, said_of(found)))
        else:
            chain = [each.public_bytes(Encoding.DER) for each in found.chain]
            checks.append(check_host(host, whose, rule.pins, chain, now))
    return checks


def _remember(checks: Sequence[HostCheck], now: datetime) -> None:
    """Remember the chains of pinned hosts. One that no pin vouches for may be anybody's, and is not remembered."""
    from proxy.core.pinlife.checks import Result
    from proxy.disk.ca import CaError, data_directory
    from proxy.disk.chains import remember_chains

    seen = {each.host: each.seen for each in checks if each.result is Result.MATCH}
    try:
        if seen:
            remember_chains(data_directory(os.environ), seen, now.date())
    except (OSError, CaError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        click.echo(f"warning: what was seen is not remembered, and overcoat check knows no backups: {why}", err=True)


def _rehearse(policy: Policy, file: Path, named: Sequence[Destination], now: datetime) -> list[HostCheck]:
    """Return what a file with a chain or a request would come to, for each host that it is for."""
    from proxy.core.pinlife.candidates import read_candidate
    from proxy.disk.reading import read_regular

    try:
        content, _ = read_regular(file, _MAX_BYTES + 1)
        candidate = read_candidate(content[: _MAX_BYTES + 1])
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise Failed(f"{file}: {error}") from None
    hosts = [(each, rule_of(policy, each)) for each in named] or list(_hosts_of(policy, candidate))
    pinned = [(host, rule) for host, rule in hosts if rule is not None and rule.pins is not None]
    if not pinned:
        names = ", ".join(str(each) for each in named) or _names(candidate)
        raise Failed(f"no rule with pins is for what {file} is for ({names}): name a host with --host")
    return [_tested(policy, candidate, host, rule, now) for host, rule in pinned]


def _hosts_of(policy: Policy, candidate: Candidate) -> Iterator[tuple[Destination, Rule | None]]:
    """Yield the hosts with pins that a candidate is for: those named exactly, and its own names under patterns."""
    found: dict[Destination, Rule] = {}
    for rule in policy.rules:
        for pattern in rule.hosts if rule.pins is not None else ():
            if pattern.kind == "exact" and candidate.is_for(pattern.host):
                found.setdefault(_https(pattern, rule), rule)
    for name in candidate.names:
        if not name.startswith("*."):
            try:
                destination = destination_in(policy, name)
            except ValueError:
                continue
            if (by_name := policy.rule_for(destination)) is not None:
                found.setdefault(destination, by_name)
    yield from found.items()


def _tested(policy: Policy, candidate: Candidate, destination: Destination, rule: Rule, now: datetime) -> HostCheck:
    from proxy.core.pinlife.checks import HostCheck, Result, backups, check_host, failed_host
    from proxy.core.pins import Level, PinMatch
    from proxy.engine.candidates import NotTrusted, verified_chain
    from proxy.engine.roots import NoRoots

    host, whose, pins = destination.authority, owner_of(rule), rule.pins
    assert pins is not None
    if candidate.key is not None:
        is_pinned = candidate.key in pins.any_of
        detail = f"its key is {candidate.key}, which {whose} does not pin; which CA will vouch for it is not known"
        return HostCheck(
            host,
            whose,
            Result.MATCH if is_pinned else Result.MISMATCH,
            (PinMatch(candidate.key, Level.LEAF),) if is_pinned else (),
            backups(pins, (candidate.key,)),
            expires=pins.expires,
            observes=pins.observes,
            detail="" if is_pinned else detail,
        )
    if not candidate.is_for(destination.host):
        said = f"certificate_invalid: it is for {_names(candidate)}, and not for {destination.host}"
        return failed_host(host, whose, pins, said)
    try:
        return check_host(host, whose, pins, verified_chain(policy.trust_for(rule), candidate.chain), now)
    except NotTrusted as error:
        return failed_host(host, whose, pins, f"certificate_invalid: {error}")
    except NoRoots as error:
        raise Failed(str(error)) from None


def _names(candidate: Candidate) -> str:
    """Return for whom a candidate is, for a sentence: what stands in it is somebody else's text."""
    from proxy.core.certificates.words import MOST_NAMES, shown_name

    return ", ".join(map(shown_name, candidate.names[:MOST_NAMES])) or "no host"


def _local_ca() -> Lifetime | None:
    from proxy.disk.ca import CaError, data_directory, published_lifetime

    try:
        return published_lifetime(data_directory(os.environ))
    except CaError:
        return None


def report_of(
    checks: Sequence[HostCheck],
    days: int,
    now: datetime,
    *,
    not_tried: Sequence[tuple[str, str]] = (),
    local_ca: Lifetime | None = None,
    needs_ca: bool = False,
    inspected: Collection[str] = (),
) -> dict[str, Any]:
    """Return the report as plain values.

    Args:
        checks: what came of each host.
        days: what has fewer days left is to be dealt with now.
        now: the present time in UTC.
        not_tried: patterns that were not tried, each with its rule.
        local_ca: the local CA's lifetime, if there is one.
        needs_ca: whether the policy inspects anything, so that its end matters.
        inspected: the hosts for which it signs.
    """
    from proxy.core.pinlife.checks import days_until, troubles

    ca_days = days_until(local_ca.ends, now) if local_ca is not None else None
    hosts = [
        {
            "host": each.host,
            "rule": each.rule,
            "result": each.result.value,
            "level": each.level.value if each.level is not None else None,
            "matches": [{"pin": str(match.pin), "level": match.level.value} for match in each.matches],
            "backups": [str(pin) for pin in each.backups],
            "certificate_ends": each.ends.isoformat() if each.ends is not None else None,
            "certificate_ends_at": each.ends_at.value if each.ends_at is not None else None,
            "certificate_days": days_until(each.ends, now) if each.ends is not None else None,
            "pins_expire": each.expires.isoformat() if each.expires is not None else None,
            "pins_days": days_until(each.expires, now) if each.expires is not None else None,
            "pins_observed": each.observes,
            "local_ca_days": ca_days if each.host in inspected else None,
            "troubles": troubles(each, days, now),
        }
        for each in checks
    ]
    ca_is_due = needs_ca and ca_days is not None and ca_days < days
    return {
        "ok": not ca_is_due and not any(each["troubles"] for each in hosts),
        "days": days,
        "hosts": hosts,
        "not_tried": [{"rule": rule, "pattern": pattern} for rule, pattern in not_tried],
        "local_ca": None
        if local_ca is None
        else {"ends": local_ca.ends.isoformat(), "days": ca_days, "is_needed": needs_ca, "is_due": ca_is_due},
    }


def _print(report: dict[str, Any]) -> None:
    if report["hosts"]:
        table = plain_table("host", "rule", "pins", "matched at", "certificate", "pins' end", "local CA", "backup")
        for each in report["hosts"]:
            table.add_row(
                each["host"],
                each["rule"].removeprefix("rule "),
                each["result"] + (" (observed)" if each["pins_observed"] else ""),
                each["level"] or "-",
                _left(each["certificate_days"]),
                _left(each["pins_days"]),
                _left(each["local_ca_days"]),
                _backup(each),
            )
        wide_console().print(table)
    for each in report["not_tried"]:
        click.echo(f"not tried: {each['pattern']} of rule {each['rule']}")
    if not report["hosts"]:
        click.echo("no host was tried: the policy names none exactly; --host HOST tries one of a pattern")
    ca = report["local_ca"]
    if ca is not None and (ca["is_due"] or all(each["local_ca_days"] is None for each in report["hosts"])):
        due = ", which is due now" if ca["is_due"] else ""
        click.echo(f"the local CA ends in {ca['days']} days{due}")


def _left(days: int | None) -> str:
    return "-" if days is None else f"{days} d"


def _backup(host: dict[str, Any]) -> str:
    if host["result"] in ("unpinned", "failed", "mismatch"):
        return "-"  # where no pin matches, none is the backup of another
    return "yes" if host["backups"] else "none"
