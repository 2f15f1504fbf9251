"""`overcoat ca` prints the certificate of the local CA; `overcoat ca rotate` replaces the CA by a new one.

Rules of this module:

- A policy is read only where a CA is made for it (`--constrain`), or has been. Its secrets need not be here.
- A CA that is constrained is followed by one that is, too, unless `--no-constrain` says otherwise.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.commands.localca import CannotStart, publish
from proxy.commands.serve import fail, policy_option
from proxy.disk.ca import CaError, LocalCa, data_directory

if TYPE_CHECKING:
    from proxy.core.certificates.constraints import Constraints
    from proxy.core.rules.policy import Policy

TRUST = "what `overcoat ca` prints now, and what serve --publish-ca writes, has both certificates"


@click.group(invoke_without_command=True)
@click.option("--path", "show_path", is_flag=True, help="Print where the certificate file lies instead.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write ca.pem and ca-bundle.pem (with the system's roots) there instead, and the rest of --publish-ca.",
)
@click.option(
    "--constrain",
    is_flag=True,
    envvar="OVERCOAT_CONSTRAIN_CA",
    help="If it is made now, it may sign for the hosts alone that the policy inspects; else $OVERCOAT_CONSTRAIN_CA.",
)
@policy_option
@click.pass_context
def ca(context: click.Context, show_path: bool, out: Path | None, *, constrain: bool, policy_path: str | None) -> None:
    """Print the local CA's certificate (PEM), and make the CA if there is none yet.

    Apps whose https is inspected must trust it. It lies in $OVERCOAT_DATA, else ~/.local/share/overcoat. While a
    rotation is under way, the new CA's certificate is printed, too.

    Example: overcoat ca > overcoat-ca.pem
    """
    if context.invoked_subcommand is not None:
        context.obj = policy_path  # `ca -p FILE rotate`
        return
    now = datetime.now(UTC)
    try:
        directory = data_directory(os.environ)
        found = LocalCa.find(directory)
        if constrain and found is not None and found.constraints is None:
            click.echo("warning: this CA may sign for any host; overcoat ca rotate --constrain makes another", err=True)
        wanted = _wanted(_load(policy_path)) if constrain and found is None else None
        authority = LocalCa.open(directory, now, constraints=wanted)
    except CaError as e:
        raise fail(str(e)) from None
    if (warning := authority.lifetime.warning(now)) is not None:
        click.echo(f"warning: {warning}", err=True)
    if out is not None:
        try:
            publish(out)
        except CannotStart as e:
            raise fail(str(e)) from None
        click.echo(f"{out}: ca.pem, ca-bundle.pem and the like", err=True)
        return
    click.echo(directory / "ca-cert.pem" if show_path else authority.pem.decode("ascii").rstrip())


def _load(path: str | None) -> Policy:
    from proxy.commands.shared import load_or_exit

    return load_or_exit(path, as_json=False, is_without_secrets=True)


def _wanted(policy: Policy) -> Constraints | None:
    """Return those of the first CA, as `serve` would make it; None, and say so, where the default inspects."""
    if policy.inspects_unnamed:
        click.echo(
            f"warning: this CA may sign for any host, since policy {policy.source} inspects by default", err=True
        )
        return None
    return _constraints(policy)


def _constraints(policy: Policy) -> Constraints:
    """Return those of a CA for a policy."""
    from proxy.core.rules.inspected import NotFixed, constraints_for

    try:
        return constraints_for(policy)
    except NotFixed as why:
        raise fail(
            f"no CA can be constrained to the hosts that policy {policy.source} inspects: {why}; name another policy "
            "(-p), or make one for any host (ca rotate --no-constrain)"
        ) from None


@ca.command()
@click.option("--finish", "finishes", is_flag=True, help="Let the new CA sign, once the apps trust it.")
@click.option(
    "--constrain/--no-constrain",
    "constrains",
    default=None,
    help="The new CA may sign for the hosts alone that the policy inspects, or for any; else as the old one.",
)
@policy_option
@click.pass_obj
def rotate(earlier: str | None, *, finishes: bool, constrains: bool | None, policy_path: str | None) -> None:
    """Make a new local CA beside the old one; with --finish, put it in the old one's place.

    In between apps are given both certificates, and the old CA signs. One that has ended is replaced at once. A sidecar
    that runs takes each step over within seconds, without a restart (with --no-watch, at SIGHUP).

    \b
    Example:
      overcoat ca rotate
      overcoat ca rotate --constrain -p overcoat.yaml
    """
    from proxy.disk import rotating

    now = datetime.now(UTC)
    policy_path = earlier if policy_path is None else policy_path
    try:
        directory = data_directory(os.environ)
        if finishes:
            _check_successor(directory, policy_path)
            authority = rotating.finish(directory, now)
        else:
            old = LocalCa.find(directory)
            constrains = (old is not None and old.constraints is not None) if constrains is None else constrains
            authority = rotating.rotate(directory, now, _constraints(_load(policy_path)) if constrains else None)
    except CaError as e:
        raise fail(str(e)) from None
    ends = f"{authority.lifetime.ends:%Y-%m-%d}"
    if authority.successor is not None:
        click.echo(
            f"A new CA was made in {directory}{_limits(directory, -1)}. The old one signs on, until {ends} at most."
        )
        click.echo(f"Next: make every app trust both ({TRUST}), and start again those that read it at their start.")
        click.echo("When all have it, and not before: overcoat ca rotate --finish")
    else:
        click.echo(
            f"The new CA in {directory}{_limits(directory, 0)} signs from now on, until {ends}. The old key is gone."
        )
        if finishes:
            click.echo(
                "Next: the old certificate can be taken away from the apps; what serve --publish-ca writes lacks it."
            )
        else:
            click.echo(
                "The old one had ended, so inspected hosts are denied no more, but apps do not trust the new one yet."
            )
            click.echo("Next: make every app trust what `overcoat ca` prints now, and start it again.")


def _limits(directory: Path, number: int) -> str:
    """Return for which hosts a published CA may sign, in words; nothing if for any."""
    from proxy.disk.ca import published_mandates

    constraints = published_mandates(directory)[number].constraints
    return "" if constraints is None else f" (only for {constraints}, and for names below)"


def _check_successor(directory: Path, policy_path: str | None) -> None:
    """Check that a constrained successor fits the policy: from now on it would sign."""
    from proxy.core.rules.inspected import outside
    from proxy.disk.ca import published_mandates

    successors = published_mandates(directory)[1:]
    if not successors or successors[0].constraints is None:
        return
    if (left_out := outside(_load(policy_path), successors[0].constraints)) is not None:
        raise fail(
            f"the new CA may not sign for {left_out}, which the policy inspects: overcoat ca rotate makes another"
        )
