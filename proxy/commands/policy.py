"""`overcoat check` says what is wrong with a policy and what it does; `overcoat schema` prints the JSON Schema of
policies.

Rules of this module:

- `check` refuses whatever `serve` would refuse, with the same status and in the same words. It also exits with 1 if
  something in the policy has stopped working.
- Nothing is dialled, and no key material is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from proxy.commands.ownca import OwnCa, local_ca_of
from proxy.commands.shared import (
    encrypt_summary,
    entry_summary,
    json_option,
    load_or_exit,
    manner_of,
    marked_by,
    needs_plaintext,
    pins_life,
    plain_table,
    policy_option,
    proxy_url,
    summary_of,
    wide_console,
)
from proxy.core.fields.entries import FieldEntry, OnFailure, Work
from proxy.core.rules.policy import Egress, Https, Mode, PlainHttp, Policy, Rule
from proxy.core.rules.trust import KeyExchange, Trust
from proxy.core.who.addresses import AddressSet
from proxy.policyfile.findings import Finding, findings
from proxy.policyfile.model.schema import schema_text
from proxy.processes.secrecy import SecretVariables


@click.command()
@policy_option
@json_option
@click.option("--no-secrets", is_flag=True, help="Keys and passwords may be missing: they are not here, as in CI.")
@click.argument("files", nargs=-1, metavar="[FILE]…")
def check(*, option: str | None, as_json: bool, no_secrets: bool, files: tuple[str, ...]) -> None:
    """Check the policy; say what it does and what needs attention, or everything that is wrong with it. Several FILEs
    are checked one after the other.

    Keys that the policy names by URL (`jwks`) are fetched, once. Nothing else is dialled.

    With --no-secrets, keys and passwords that are not here are not looked at, nor whether `serve` could start here, and
    nothing is fetched. Everything else is checked, and what was not is said.

    Exit status: 2 if the policy is wrong, 1 if `serve` would not start with it here, or if something in it has ended,
    such as pins or a key, else 0.

    \b
    Example:
      overcoat check -p overcoat.yaml
    """
    if files and option is not None:
        raise click.UsageError("name the policy once: with -p, or without it")
    if as_json and len(files) > 1:
        raise click.UsageError("--json is about one policy")
    worst, secrets = 0, SecretVariables()  # it takes variables away, so all files share it
    for file in files or (option,):
        try:
            _check(file, secrets, as_json=as_json, no_secrets=no_secrets)
        except SystemExit as ended:
            worst = max(worst, int(ended.code or 0))
    if worst:
        raise SystemExit(worst)


def _check(option: str | None, secrets: SecretVariables, *, as_json: bool, no_secrets: bool) -> None:
    from proxy.engine.roots import NoRoots, with_roots
    from proxy.processes.starting import obstacles

    policy = load_or_exit(option, as_json=as_json, is_without_secrets=no_secrets, secrets=secrets)
    local_ca = None if no_secrets else local_ca_of(policy, os.environ)
    found = []
    try:
        policy = with_roots(policy)
    except NoRoots as e:
        found.append(Finding(str(e), has_failed=True))
    if not no_secrets:
        found += [Finding(text, has_failed=True) for text in obstacles(policy, os.environ)]
        found += _fetched(policy)
    found += findings(policy, os.environ, datetime.now(UTC))
    failed = [finding.text for finding in found if finding.has_failed]
    supplied = [
        f"keys.{name}.jwks: {each.supply.shown}" for name, each in policy.keys.items() if each.supply is not None
    ]
    unchecked = [*policy.unchecked, *supplied, "whether serve would start here"] if no_secrets else []
    if as_json:
        warnings = [finding.text for finding in found if not finding.has_failed]
        said = {"warnings": warnings, "failed": failed, **({"unchecked": unchecked} if no_secrets else {})}
        own = {"local_ca": None if local_ca is None else local_ca.summary()}
        click.echo(json.dumps({"ok": not failed, **policy_summary(policy), **own, **said}, indent=2))
    else:
        _print_summary(policy, local_ca)
    for finding in found:
        click.echo(f"{'error' if finding.has_failed else 'warning'}: {finding.text}", err=True)
    for text in unchecked:
        click.echo(f"not checked: {text}", err=True)
    if failed:
        raise SystemExit(1)


def _fetched(policy: Policy) -> list[Finding]:
    """Fetch the keys that the policy names by URL, once; return what is wrong with them."""
    from proxy.engine.probe import fetch
    from proxy.engine.roots import NoRoots
    from proxy.engine.upstreams.supplies import SupplyFailed

    found = []
    for key_set in policy.keys.values():
        if (supply := key_set.supply) is not None:
            try:
                supply.current = asyncio.run(fetch(policy, key_set, supply))
            except SupplyFailed as why:
                text = f"key set {key_set.name}: its keys cannot be fetched from {supply.shown}: {why}"
                then = "what it should encrypt is denied, by a sidecar that has no earlier keys"
                found.append(Finding(f"{text}; {then}", has_failed=True))
            except NoRoots:
                pass  # that is said already
    return found


def policy_summary(policy: Policy) -> dict[str, Any]:
    """Return the policy as plain values, for JSON; keys only by name."""
    return {
        "source": policy.source,
        "hash": policy.short_hash if not policy.unchecked else None,
        "mode": policy.mode.value,
        "listen": [str(listener) for listener in policy.listen],
        "admin": policy.admin.address if policy.admin else None,
        "probes": policy.probes.address if policy.probes else None,
        "names": sorted(policy.names),
        "defaults": {"plain_http": policy.defaults.plain_http.value, "https": policy.defaults.https.value},
        "trust": _trust_summary(policy.trust),
        "limits": asdict(policy.limits),
        "clients": {
            "allow": _clients_allowed(policy),
            "users": [user.name for user in policy.clients.users],
            "admin": ["loopback", *policy.scrapers.texts()],
        },
        "destinations": {"allow": policy.destinations.texts(), "egress": policy.egress.value},
        "upstream_proxy": _proxy_summary(policy),
        "hsts_preload": policy.hsts_preload,
        "via": policy.via,
        "workers": policy.workers or "auto",
        "keys": [_key_set_summary(policy, name) for name in policy.keys],
        "rules": [_rule_summary(policy, rule) for rule in policy.rules],
    }


def _clients_allowed(policy: Policy) -> list[str]:
    addresses = policy.clients.addresses
    return ["anywhere"] if addresses is None else addresses.texts()


def _proxy_summary(policy: Policy) -> dict[str, Any] | None:
    proxy = policy.upstream_proxy
    if proxy is None:
        return None
    return {
        "url": proxy_url(proxy),
        "pins": [str(pin) for pin in proxy.rule.pins.any_of] if proxy.rule.pins else [],
        "shows_credentials": proxy.authorization is not None,
        "direct": [str(pattern) for pattern in proxy.direct],
    }


def _key_set_summary(policy: Policy, name: str) -> dict[str, Any]:
    key_set = policy.keys[name]
    keys = key_set.keys
    return {
        "name": name,
        "alg": key_set.alg.value,
        "enc": key_set.enc.value,
        "profile": key_set.profile.value if key_set.profile is not None else None,
        "bind": key_set.bind.value,
        "grace_days": key_set.grace,
        "jwks": key_set.supply.shown if key_set.supply is not None else None,
        "keys": [
            {
                "kid": key.kid,
                "decrypts": key.can_open,
                "not_before": key.not_before and key.not_before.isoformat(),
                "not_after": key.not_after and key.not_after.isoformat(),
            }
            for key in keys
        ],
    }


def _rule_summary(policy: Policy, rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "hosts": [str(pattern) for pattern in rule.hosts],
        "mode": (rule.mode or policy.mode).value,
        "mirrored": policy.is_mirrored(rule),
        "plain_http": rule.plain_http.value,
        "https": rule.https.value,
        "https_why": _why_inspected(rule),
        "https_port": rule.https_port,
        "destinations": rule.destinations.texts() if rule.destinations is not None else None,
        "response_seconds": policy.response_seconds(rule),
        "raw_tcp": rule.raw_tcp,
        "trust": _trust_summary(policy.trust_for(rule)),
        "client_certificate": str(rule.client_certificate.file) if rule.client_certificate else None,
        "pins": [str(pin) for pin in rule.pins.any_of] if rule.pins else [],
        "pins_expire": rule.pins.expires.isoformat() if rule.pins and rule.pins.expires else None,
        "pins_after_expiry": rule.pins.after_expiry.value if rule.pins and rule.pins.expires else None,
        "pins_mode": (Mode.OBSERVE if rule.pins.observes else Mode.ENFORCE).value if rule.pins else None,
        "encrypt": [encrypt_summary(entry) for entry in rule.entries(Work.ENCRYPT)],
        "decrypt": [entry_summary(entry) for entry in rule.entries(Work.DECRYPT)],
    }


def _why_inspected(rule: Rule) -> str:
    if rule.raw_tcp:
        return "and anything else, unseen (raw_tcp)"
    if rule.https is not Https.INSPECT:
        return ""
    return ", ".join(needs_plaintext(rule)) or "the policy says so"


def _own_listeners_text(policy: Policy) -> str:
    scrapers = policy.scrapers.texts()
    asked = f" (asked from loopback, {', '.join(scrapers)})" if scrapers else ""
    admin = f"admin {policy.admin.address}{asked}" if policy.admin else "admin off"
    return admin + (f"; probes {policy.probes.address}" if policy.probes else "")


def _print_summary(policy: Policy, local_ca: OwnCa | None) -> None:
    summary = policy_summary(policy)
    known = policy.short_hash if not policy.unchecked else "unknown, since keys are not here"
    click.echo(f"policy    {policy.source}, mode {policy.mode}, hash {known}")
    click.echo(f"listen    {', '.join(summary['listen'])}; {_own_listeners_text(policy)}")
    click.echo(f"clients   {_clients_text(policy)}")
    click.echo(f"reaches   {_reached(policy.destinations)}{_route_text(policy)}")
    for rule in policy.rules:
        if rule.destinations is not None:
            click.echo(f"          rule {rule.name}: {_reached(rule.destinations)}")
    if policy.egress is Egress.LISTED:
        click.echo("defaults  hosts that no rule names are denied (egress: listed)")
    else:
        may_differ = policy.hsts_preload and policy.defaults.plain_http is PlainHttp.ALLOW
        preload = ", upgrade on the browsers' list" if may_differ else ""
        click.echo(f"defaults  plain http: {policy.defaults.plain_http}{preload}, https: {policy.defaults.https}")
    click.echo(f"trust     {_trust_text(policy.trust)}")
    for rule in policy.rules:
        if rule.trust is not None and rule.trust != policy.trust:
            click.echo(f"          rule {rule.name}: {_trust_text(rule.trust)}")
        if rule.client_certificate is not None:
            click.echo(f"          rule {rule.name}: shows {rule.client_certificate.file}")
    if local_ca is not None and (text := str(local_ca)):
        click.echo(f"local CA  {text}")
    if policy.workers != 1:
        click.echo(f"workers   {summary['workers']}")
    console = wide_console()
    if policy.rules:
        table = plain_table("rule", "hosts", "plain http", "https", "pins")
        for rule in policy.rules:
            why = _why_inspected(rule)
            table.add_row(
                rule.name if policy.observes(rule) is policy.observes(None) else f"{rule.name} ({rule.mode})",
                "\n".join(str(pattern) for pattern in rule.hosts),
                *(
                    ("", "mirror: requests are opened, responses sealed")
                    if policy.is_mirrored(rule)
                    else (
                        rule.plain_http + (f" to port {rule.https_port}" if rule.https_port else ""),
                        rule.https + (f": {why}" if why else ""),
                    )
                ),
                _pins_text(rule),
            )
        console.print(table)
    if any(rule.fields for rule in policy.rules):
        table = plain_table("rule", "entry", "does", "fields", "key set", "when")
        for rule in policy.rules:
            for entry in rule.fields:
                told = summary_of(entry)
                fields, even = "\n".join(marked_by(told)), manner_of(told)
                even += ", or passes" if entry.on_failure is OnFailure.PASS else ""
                table.add_row(rule.name, entry.name, entry.work + even, fields, entry.keys.name, _when_text(entry))
        console.print(table)
    if policy.keys:
        table = plain_table("key set", "alg", "kid", "decrypts", "good")
        for key_set in summary["keys"]:
            if not key_set["keys"]:
                table.add_row(key_set["name"], key_set["alg"], f"from {key_set['jwks']}", "no, public", "")
            for key in key_set["keys"]:
                decrypts = "yes" if key["decrypts"] else "no, public"
                days = _days_text(key, key_set["grace_days"])
                table.add_row(key_set["name"], key_set["alg"], key["kid"], decrypts, days)
        console.print(table)


def _days_text(key: Mapping[str, Any], grace: int) -> str:
    begins = f"from {key['not_before']} " if key["not_before"] else ""
    ends = f"until {key['not_after']}" if key["not_after"] else "no end" if not begins else ""
    return f"{begins}{ends}{f' (+ {grace} d)' if grace and key['not_after'] else ''}".strip()


def _trust_summary(trust: Trust) -> dict[str, Any]:
    return {
        "roots": str(trust.roots) if trust.roots else "system",
        "min_tls": trust.min_tls,
        "strict": trust.strict,
        "key_exchange": trust.key_exchange.value,
        "crls": None
        if trust.crls is None
        else {"files": [str(file) for file in trust.crls.files], "when": trust.crls.when.value},
    }


def _trust_text(trust: Trust) -> str:
    parts = [
        f"{trust.roots or 'system'} roots",
        f"TLS {trust.min_tls} or newer",
        "strict" if trust.strict else "not strict (RFC 5280)",
    ]
    if trust.key_exchange is KeyExchange.HYBRID:
        parts.append("hybrid key exchange only")
    if trust.crls is not None:
        parts.append(f"{len(trust.crls.lists)} revocation lists ({trust.crls.when})")
    return ", ".join(parts)


def _clients_text(policy: Policy) -> str:
    users = [user.name for user in policy.clients.users]
    return ", ".join(_clients_allowed(policy)) + (f"; with the password of {' or '.join(users)}" if users else "")


def _reached(addresses: AddressSet) -> str:
    return ", ".join(["public addresses", *addresses.texts()])


def _route_text(policy: Policy) -> str:
    proxy = policy.upstream_proxy
    if proxy is None:
        return ""
    direct = f", but directly {', '.join(str(pattern) for pattern in proxy.direct)}" if proxy.direct else ""
    pins = f" ({len(proxy.rule.pins.any_of)} pins)" if proxy.rule.pins else ""
    return f"; through {proxy_url(proxy)}{pins}{direct}"


def _pins_text(rule: Rule) -> str:
    if rule.pins is None:
        return ""
    return f"{len(rule.pins.any_of)}, {pins_life(rule.pins) or 'no end'}"


def _when_text(entry: FieldEntry) -> str:
    methods = [", ".join(sorted(entry.when.methods))] if entry.when.methods is not None else []
    paths = [glob.text for glob in entry.when.paths] if entry.when.paths is not None else []
    return "\n".join(methods + paths) or "always"


# schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of the policy file, for editors.

    \b
    Example:
      overcoat schema > overcoat.schema.json
    """
    click.echo(schema_text(), nl=False)
