"""`overcoat check`, `schema` and `explain`: what is wrong with a policy, what it may hold, what it does to a request.

Rules of this module:

- `check` exits with 0 only if `serve` would take the policy; its warnings don't change that.
- `explain` asks the functions that decide on real requests, so that it cannot say anything else than they do.
- Nothing is dialled, and neither key material nor a value of a body is printed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
from rich import box
from rich.console import Console
from rich.table import Table

from proxy.config import PolicyErrors, find_policy, load_policy
from proxy.core.decisions import Action, Decision, Denied, Reason
from proxy.core.destinations import Destination, parse_authority
from proxy.core.jsontext import NotJson, TooMuchSelected, find_spans
from proxy.core.policy import HTTP_PORT, HTTPS_PORT, FieldEntry, Https, Mode, Policy, Rule
from proxy.core.transport import decide_https, decide_plain_http
from proxy.model import schema_text
from proxy.policyvalues import ascii_host

SOON = timedelta(days=30)
"""How long before the end of pins and keys `check` starts to warn."""

_PIPE_WIDTH = 120
_MAX_BODY_BYTES = 64 * 1024 * 1024
_URL = re.compile(r"(?:(https?)://)?([^/?#]*)([^?#]*)(?:\?[^#]*)?(?:#.*)?", re.DOTALL | re.IGNORECASE)

policy_option = click.option(
    "-p",
    "--policy",
    "option",
    metavar="FILE",
    help="The policy file; else $OVERCOAT_POLICY, ./overcoat.yaml, built-in.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _today() -> date:
    return datetime.now(UTC).date()


def load_or_exit(option: str | None, *, as_json: bool) -> Policy:
    """Load the policy, or print everything that is wrong with it and exit with status 2."""
    try:
        return load_policy(find_policy(option, os.environ), os.environ)
    except PolicyErrors as refused:
        _refuse(refused, as_json=as_json)


def _refuse(refused: PolicyErrors, *, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps({"ok": False, "errors": [asdict(error) for error in refused.errors]}, indent=2))
    for error in refused.errors:
        click.echo(str(error), err=True)
    count = len(refused.errors)
    click.echo(f"error: the policy has {count} error{'s' if count > 1 else ''}, and is not used", err=True)
    raise SystemExit(2)


# check


@click.command()
@policy_option
@json_option
def check(option: str | None, as_json: bool) -> None:
    """Check the policy; say what it does, or everything that is wrong with it.

    \b
    Example:
      overcoat check -p overcoat.yaml
    """
    policy = load_or_exit(option, as_json=as_json)
    warnings = policy_warnings(policy, _today())
    if as_json:
        click.echo(json.dumps({"ok": True, **policy_summary(policy), "warnings": warnings}, indent=2))
    else:
        _print_summary(policy)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def policy_warnings(policy: Policy, today: date) -> list[str]:
    """Return what is right today but needs attention: pins and keys near or past their end, pins without a backup."""
    warnings = []
    for rule in policy.rules:
        if rule.pins is None:
            continue
        if rule.pins.expires is not None and rule.pins.expires <= today + SOON:
            warnings.append(
                f"rule {rule.name}: its pins {_end(rule.pins.expires, today)}; after that its hosts are denied"
            )
        if len(rule.pins.any_of) == 1:
            warnings.append(f"rule {rule.name}: one pin without a backup; if the upstream's key changes, it is denied")
    for key_set in policy.keys.values():
        for key in (key_set.primary, *key_set.older):
            if key.not_after is not None and key.not_after <= today + SOON:
                warnings.append(f"key set {key_set.name}: key {key.kid} {_end(key.not_after, today)}")
    return warnings


def _end(day: date, today: date) -> str:
    return f"expired on {day}" if day < today else f"will expire on {day}"


def policy_summary(policy: Policy) -> dict[str, Any]:
    """Return the policy in plain values, for JSON; keys by name only."""
    return {
        "source": policy.source,
        "mode": policy.mode.value,
        "listen": [str(listener) for listener in policy.listen],
        "admin": str(policy.admin).removeprefix("forward://") if policy.admin else None,
        "defaults": {"plain_http": policy.defaults.plain_http.value, "https": policy.defaults.https.value},
        "trust": {
            "roots": str(policy.trust.roots) if policy.trust.roots else "system",
            "min_tls": policy.trust.min_tls,
        },
        "limits": {"held_body": policy.limits.held_body},
        "keys": [_key_set_summary(policy, name) for name in policy.keys],
        "rules": [_rule_summary(rule) for rule in policy.rules],
    }


def _key_set_summary(policy: Policy, name: str) -> dict[str, Any]:
    key_set = policy.keys[name]
    keys = (key_set.primary, *key_set.older)
    return {
        "name": name,
        "alg": key_set.alg.value,
        "bind": key_set.bind.value,
        "keys": [
            {"kid": key.kid, "decrypts": key.can_open, "not_after": key.not_after and key.not_after.isoformat()}
            for key in keys
        ],
    }


def _rule_summary(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "hosts": [str(pattern) for pattern in rule.hosts],
        "plain_http": rule.plain_http.value,
        "https": rule.https.value,
        "https_why": _why_inspected(rule),
        "https_port": rule.https_port,
        "pins": [str(pin) for pin in rule.pins.any_of] if rule.pins else [],
        "pins_expire": rule.pins.expires.isoformat() if rule.pins and rule.pins.expires else None,
        "encrypt": [_entry_summary(entry) for entry in rule.encrypt],
        "decrypt": [_entry_summary(entry) for entry in rule.decrypt],
    }


def _entry_summary(entry: FieldEntry) -> dict[str, Any]:
    return {
        "selectors": [selector.text for selector in entry.selectors],
        "key": entry.keys.name,
        "methods": sorted(entry.when.methods) if entry.when.methods is not None else None,
        "paths": [glob.text for glob in entry.when.paths] if entry.when.paths is not None else None,
    }


def _needs(rule: Rule) -> list[str]:
    parts = {"pins": rule.pins, "encrypt": rule.encrypt, "decrypt": rule.decrypt}
    return [name for name, value in parts.items() if value]


def _why_inspected(rule: Rule) -> str:
    if rule.https is not Https.INSPECT:
        return ""
    return ", ".join(_needs(rule)) or "the policy says so"


def _print_summary(policy: Policy) -> None:
    summary = policy_summary(policy)
    click.echo(f"policy    {policy.source}, mode {policy.mode}")
    click.echo(f"listen    {', '.join(summary['listen'])}; admin {summary['admin'] or 'off'}")
    click.echo(f"defaults  plain http: {policy.defaults.plain_http}, https: {policy.defaults.https}")
    click.echo(f"trust     {summary['trust']['roots']} roots, TLS {policy.trust.min_tls} or newer")
    console = wide_console()
    if policy.rules:
        table = plain_table("rule", "hosts", "plain http", "https", "pins")
        for rule in policy.rules:
            why = _why_inspected(rule)
            table.add_row(
                rule.name,
                "\n".join(str(pattern) for pattern in rule.hosts),
                rule.plain_http + (f" to port {rule.https_port}" if rule.https_port else ""),
                rule.https + (f": {why}" if why else ""),
                _pins_text(rule),
            )
        console.print(table)
    if any(rule.encrypt or rule.decrypt for rule in policy.rules):
        table = plain_table("rule", "does", "fields", "key set", "when")
        for rule in policy.rules:
            for does, entries in (("encrypt", rule.encrypt), ("decrypt", rule.decrypt)):
                for entry in entries:
                    fields = "\n".join(selector.text for selector in entry.selectors)
                    table.add_row(rule.name, does, fields, entry.keys.name, _when_text(entry))
        console.print(table)
    if policy.keys:
        table = plain_table("key set", "alg", "kid", "decrypts", "not after")
        for key_set in summary["keys"]:
            for key in key_set["keys"]:
                decrypts = "yes" if key["decrypts"] else "no, public"
                table.add_row(key_set["name"], key_set["alg"], key["kid"], decrypts, key["not_after"] or "no end")
        console.print(table)


def wide_console() -> Console:
    """Return a console for tables. A pipe has no width, and a narrow guess would break names over lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def plain_table(*columns: str) -> Table:
    """Return a table with these columns and few lines."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pins_text(rule: Rule) -> str:
    if rule.pins is None:
        return ""
    return f"{len(rule.pins.any_of)}, " + (f"until {rule.pins.expires}" if rule.pins.expires else "no end")


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


# explain


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to one request.

    Attributes:
        scheme: `http` or `https`, as the app would send it.
        asked: the destination in the request.
        rule: the rule that counts, or None.
        action: what would be done, before pins and keys are looked at.
        why: one sentence.
        dials: the authority that would be dialled, or None.
        denied: the reason codes for which it would be denied today, as far as can be known without dialling.
        pins: the pins that the upstream's chain must have one of.
        pins_expire: the last day of these pins.
        encrypt: the entries that apply to the request, as plain values.
        decrypt: the entries that apply to its response.
        other_entries: the rule's entries that don't apply, because of the method or the path.
        places: the places in the given body that would be encrypted, with the key set.
    """

    scheme: str
    asked: str
    rule: str | None
    action: str
    why: str
    dials: str | None
    denied: list[str]
    pins: list[str]
    pins_expire: str | None
    encrypt: list[dict[str, Any]]
    decrypt: list[dict[str, Any]]
    other_entries: list[dict[str, Any]]
    places: list[dict[str, str]] | None


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: bytes | None
    today: date


@click.command()
@policy_option
@click.option("-X", "--request", "method", metavar="METHOD", help="The method; GET, or POST with --body.")
@click.option(
    "--body",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A JSON body: list the places in it that would be encrypted.",
)
@json_option
@click.argument("url")
def explain(option: str | None, method: str | None, body: Path | None, as_json: bool, url: str) -> None:
    """Say what would happen to a request for URL, and why. Nothing is sent.

    URL is http://…, https://…, or a host for both.

    \b
    Example:
      overcoat explain -X POST --body charge.json http://api.pay.example/v1/charges
    """
    try:
        requests, path = _requests(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    policy = load_or_exit(option, as_json=as_json)
    method = method or ("POST" if body else "GET")
    request = _Request(method, path, _read_body(body) if body else None, _today())
    explanations = [_explain(policy, scheme, destination, request) for scheme, destination in requests]
    if as_json:
        answer = {"mode": policy.mode.value, "method": method, "requests": [asdict(item) for item in explanations]}
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for explanation in explanations:
        _print_explanation(explanation, method, path)
    if policy.mode is Mode.OBSERVE:
        click.echo("The mode is observe: this is decided, counted and logged, but nothing is changed.")


def _requests(url: str) -> tuple[list[tuple[str, Destination]], str]:
    """Return the schemes and destinations that a URL stands for, and its path."""
    match = _URL.fullmatch(url)
    if match is None or (match[1] is None and "://" in url):
        raise ValueError("write http://…, https://…, or only a host")
    scheme, authority, path = match[1], match[2], match[3] or "/"
    ports = {"http": HTTP_PORT, "https": HTTPS_PORT}
    schemes = [scheme.lower()] if scheme else list(ports)
    return [(each, destination_of(authority, ports[each])) for each in schemes], path


def destination_of(authority: str, default_port: int) -> Destination:
    """Return the destination that a user names by `host` or `host:port`; the host may be an internationalised name.

    Raises:
        ValueError: it names none.
    """
    if not authority.isascii():  # so it is a name, and its only colon is the port's
        host, colon, port = authority.partition(":")
        authority = ascii_host(host) + colon + port
    return parse_authority(authority, default_port)


def _read_body(file: Path) -> bytes:
    with file.open("rb") as opened:
        text = opened.read(_MAX_BODY_BYTES + 1)
    if len(text) > _MAX_BODY_BYTES:
        raise click.BadParameter(f"the body has more than {_MAX_BODY_BYTES} bytes", param_hint="--body")
    return text


def _explain(policy: Policy, scheme: str, asked: Destination, request: _Request) -> Explanation:
    decide = decide_plain_http if scheme == "http" else decide_https
    rule, decision = decide(policy, asked)
    denied = [decision.denied.reason.code] if decision.denied else []
    opened = rule if decision.action not in (Action.DENY, Action.TUNNEL) else None
    encrypt, not_encrypt = _split(opened.encrypt if opened else (), request)
    decrypt, not_decrypt = _split(opened.decrypt if opened else (), request)
    pins = opened.pins if opened else None
    if pins and pins.expires and request.today > pins.expires:
        denied.append(Reason.PINS_EXPIRED.code)
    if any(entry.keys.primary.expired(request.today) for entry in encrypt):
        denied.append(Reason.KEY_UNAVAILABLE.code)
    places = None
    if request.body is not None and opened is not None:
        try:
            places = _places(encrypt, request.body)
        except Denied as refused:
            denied.append(refused.reason.code)
    return Explanation(
        scheme=scheme,
        asked=str(asked),
        rule=rule.name if rule else None,
        action=decision.action.value,
        why=_why(policy, rule, decision, scheme),
        dials=str(decision.target) if decision.target else None,
        denied=denied,
        pins=[str(pin) for pin in pins.any_of] if pins else [],
        pins_expire=pins.expires.isoformat() if pins and pins.expires else None,
        encrypt=[_entry_summary(entry) for entry in encrypt],
        decrypt=[_entry_summary(entry) for entry in decrypt],
        other_entries=[_entry_summary(entry) for entry in (*not_encrypt, *not_decrypt)],
        places=places,
    )


def _split(entries: Sequence[FieldEntry], request: _Request) -> tuple[list[FieldEntry], list[FieldEntry]]:
    """Return the entries that apply to a request, and those that don't."""
    applying = [entry for entry in entries if entry.when.applies(request.method, request.path)]
    return applying, [entry for entry in entries if entry not in applying]


def _places(entries: Sequence[FieldEntry], body: bytes) -> list[dict[str, str]]:
    if not entries:
        return []
    try:
        spans = find_spans(body, [entry.selectors for entry in entries])
    except NotJson as error:
        raise Denied(Reason.BODY_NOT_JSON, str(error)) from None
    except TooMuchSelected as error:
        raise Denied(Reason.BODY_TOO_LARGE, str(error)) from None
    return [{"path": span.path, "key": entries[span.job].keys.name} for span in spans]


def _why(policy: Policy, rule: Rule | None, decision: Decision, scheme: str) -> str:
    if decision.denied:
        return f"{decision.denied.detail}; {decision.denied.hint}"
    where = f"rule {rule.name} says" if rule else "no rule names this host, and the defaults say"
    if decision.action is Action.INSPECT and rule and _needs(rule):
        return f"inspected because rule {rule.name} has {', '.join(_needs(rule))}"
    if scheme == "http":
        what = rule.plain_http if rule else policy.defaults.plain_http
        return f"{where} plain_http: {what}"
    return f"{where} https: {rule.https if rule else policy.defaults.https}"


_ACTIONS = {
    Action.UPGRADE: "upgrade: plain http from the app leaves as https",
    Action.ALLOW: "allow: plain http leaves as it came",
    Action.INSPECT: "inspect: https is opened, checked and sent on as https",
    Action.TUNNEL: "tunnel: https is carried end to end, untouched",
    Action.DENY: "deny: nothing leaves",
}


def _print_explanation(explanation: Explanation, method: str, path: str) -> None:
    lines = [
        ("rule", explanation.rule or "none"),
        ("action", _ACTIONS[Action(explanation.action)]),
        ("why", explanation.why),
        ("dials", explanation.dials or "nothing"),
    ]
    if explanation.pins:
        until = f", until {explanation.pins_expire}" if explanation.pins_expire else ""
        lines.append(("pins", f"one of {len(explanation.pins)}{until}"))
        lines += [("", pin) for pin in explanation.pins]
    for name, entries in (("encrypt", explanation.encrypt), ("decrypt", explanation.decrypt)):
        lines += [(name, f"{', '.join(entry['selectors'])} with {entry['key']}") for entry in entries]
    for entry in explanation.other_entries:
        conditions = [*(entry["methods"] or ()), *(entry["paths"] or ())]
        lines.append(("not here", f"{', '.join(entry['selectors'])}: only {' '.join(conditions)}"))
    if explanation.places is not None:
        lines += [("in body", f"{place['path']} with {place['key']}") for place in explanation.places]
        if not explanation.places:
            lines.append(("in body", "nothing to encrypt"))
    if explanation.denied:
        lines.append(("denied", ", ".join(explanation.denied)))
    click.echo(f"{method} {explanation.scheme}://{explanation.asked}{path}")
    for name, text in lines:
        click.echo(f"  {name:<9}{text}")
