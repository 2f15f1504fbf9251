"""What several commands share: loading the policy, tables for people, and parts of a policy as plain values
for JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any, NoReturn

import click
from rich import box
from rich.console import Console
from rich.table import Table

from proxy.core.destinations import Destination, parse_authority
from proxy.core.fields.entries import FieldEntry, Match, Signed, Work
from proxy.core.pins import AfterExpiry, PinSet
from proxy.core.rules.policy import Policy, Rule, UpstreamProxy
from proxy.policyfile.load import load_policy
from proxy.policyfile.model.addresses import ascii_host
from proxy.policyfile.nearby import find_policy
from proxy.policyfile.refusal import PolicyErrors
from proxy.processes.secrecy import SecretVariables

_PIPE_WIDTH = 120

policy_option = click.option(
    "-p",
    "--policy",
    "option",
    type=click.Path(),
    metavar="FILE",
    help="The policy file; else $OVERCOAT_POLICY, ./overcoat.yaml, built-in.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def echo_json(value: object) -> None:
    """Print JSON for programs, and for people who look at it: what a terminal could take for a command is an escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo("".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text))


def load_or_exit(
    option: str | None, *, as_json: bool, is_without_secrets: bool = False, secrets: SecretVariables | None = None
) -> Policy:
    """Load the policy; if it is wrong, print all its errors and exit with status 2."""
    try:
        return load_policy(
            find_policy(option, os.environ),
            os.environ,
            secrets=secrets or SecretVariables(),
            is_without_secrets=is_without_secrets,
        )
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


def wide_console() -> Console:
    """Return a console for tables. A pipe has no width, and a narrow guess would wrap names."""
    return Console(highlight=False, emoji=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def plain_table(*columns: str) -> Table:
    """Return a table with these columns and few ruled lines."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def destination_of(authority: str, default_port: int) -> Destination:
    """Return the destination that a user gives as `host` or `host:port`; the host may be an international name.

    Raises:
        ValueError: it is no destination.
    """
    if not authority.isascii():  # then it is a name, and a colon can only begin the port
        host, colon, port = authority.partition(":")
        authority = ascii_host(host) + colon + port
    return parse_authority(authority, default_port)


def entry_summary(entry: FieldEntry) -> dict[str, Any]:
    """Return a field entry as plain values; its key set only by name."""
    return {
        "name": entry.name,
        "selectors": entry.marks.texts,
        "form": list(entry.form),
        "match": entry.match.value,
        "key": entry.keys.name,
        "methods": sorted(entry.when.methods) if entry.when.methods is not None else None,
        "paths": [glob.text for glob in entry.when.paths] if entry.when.paths is not None else None,
        "envelope": entry.envelope.name if entry.envelope is not None else None,
        "rename": entry.rename,
        **({"on_failure": entry.on_failure.value} if entry.work is Work.DECRYPT else {}),
    }


def marked_by(summary: Mapping[str, Any]) -> list[str]:
    """Return what an entry marks, by its summary: its selectors, the fields of forms, and the arguments of GraphQL."""
    arguments = (f"GraphQL argument {name}" for name in summary.get("graphql_arguments", ()))
    return [*summary["selectors"], *(f"form field {name}" for name in summary["form"]), *arguments]


def manner_of(summary: Mapping[str, Any]) -> str:
    """Return how an entry does its work where that is not as usual, by its summary, as the end of a text."""
    words = [
        "signed or not" if summary.get("signed") == Signed.PASS else "",
        "in any case" if summary["match"] == Match.IGNORE_CASE else "",
        f"in {summary['envelope']}" if summary["envelope"] is not None else "",
        f"as {summary['rename']}" if summary["rename"] is not None else "",
    ]
    return "".join(f", {each}" for each in words if each)


def summary_of(entry: FieldEntry) -> dict[str, Any]:
    """Return an entry as plain values, with all that is said of one that does its work."""
    return encrypt_summary(entry) if entry.work is Work.ENCRYPT else entry_summary(entry)


def encrypt_summary(entry: FieldEntry) -> dict[str, Any]:
    """Return an entry that encrypts as plain values, with what it does to values and signed bodies."""
    return {
        **entry_summary(entry),
        "signed": entry.signed.value,
        "digests": entry.digests.value,
        "signed_headers": sorted(name.decode("ascii") for name in entry.signed_headers),
        "already_sealed": entry.already_sealed.value,
        "pad": entry.pad,
        "graphql_arguments": sorted(entry.graphql_arguments),
        "required": entry.required,
        "other_bodies": entry.other_bodies.value,
    }


def needs_plaintext(rule: Rule) -> list[str]:
    """Return the parts of a rule that need the plaintext of https."""
    parts = {"pins": rule.pins, **{work.value: rule.entries(work) for work in Work}}
    return [name for name, value in parts.items() if value]


def pins_life(pins: PinSet) -> str:
    """Return until when pins count, what comes then, and whether they are only observed; "" if all is as usual."""
    then = ", then only warned of" if pins.after_expiry is AfterExpiry.WARN else ""
    words = [f"until {pins.expires}{then}"] if pins.expires is not None else []
    return ", ".join([*words, *(["only observed"] if pins.observes else [])])


def proxy_url(proxy: UpstreamProxy) -> str:
    """Return the URL of an upstream proxy, without its credentials."""
    return f"{'https' if proxy.is_https else 'http'}://{proxy.destination}"


def today() -> date:
    """Return the current day in UTC, by which pins and keys expire."""
    return datetime.now(UTC).date()
