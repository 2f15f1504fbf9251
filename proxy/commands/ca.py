"""`overcoat ca` prints the certificate of the local CA; `overcoat ca rotate` replaces the CA by a new one."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from proxy.commands.localca import CannotStart, publish
from proxy.commands.serve import fail
from proxy.disk.ca import CaError, LocalCa, data_directory

TRUST = "what `overcoat ca` prints now, and what serve --publish-ca writes, has both certificates"


@click.group(invoke_without_command=True)
@click.option("--path", "show_path", is_flag=True, help="Print where the certificate file lies instead.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write ca.pem and ca-bundle.pem (with the system's roots) there instead, and the rest of --publish-ca.",
)
@click.pass_context
def ca(context: click.Context, show_path: bool, out: Path | None) -> None:
    """Print the local CA's certificate (PEM), and make the CA if there is none yet.

    Apps whose https is inspected must trust it. It lies in $OVERCOAT_DATA, else ~/.local/share/overcoat. While a
    rotation is under way, the new CA's certificate is printed, too.

    Example: overcoat ca > overcoat-ca.pem
    """
    if context.invoked_subcommand is not None:
        return
    now = datetime.now(UTC)
    try:
        directory = data_directory(os.environ)
        authority = LocalCa.open(directory, now)
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


@ca.command()
@click.option("--finish", "finishes", is_flag=True, help="Let the new CA sign, once the apps trust it.")
def rotate(finishes: bool) -> None:
    """Make a new local CA beside the old one; with --finish, put it in the old one's place.

    In between apps are given both certificates, and the old CA signs. One that has ended is replaced at once. A sidecar
    that runs takes each step over within seconds, without a restart (with --no-watch, at SIGHUP).

    Example: overcoat ca rotate
    """
    from proxy.disk import rotating

    now = datetime.now(UTC)
    try:
        directory = data_directory(os.environ)
        authority = rotating.finish(directory, now) if finishes else rotating.rotate(directory, now)
    except CaError as e:
        raise fail(str(e)) from None
    ends = f"{authority.lifetime.ends:%Y-%m-%d}"
    if authority.successor is not None:
        click.echo(f"A new CA was made in {directory}. The old one signs on, until {ends} at most.")
        click.echo(f"Next: make every app trust both ({TRUST}), and start again those that read it at their start.")
        click.echo("When all have it, and not before: overcoat ca rotate --finish")
    else:
        click.echo(f"The new CA in {directory} signs from now on, until {ends}. The old key is gone.")
        if finishes:
            click.echo(
                "Next: the old certificate can be taken away from the apps; what serve --publish-ca writes lacks it."
            )
        else:
            click.echo(
                "The old one had ended, so inspected hosts are denied no more, but apps do not trust the new one yet."
            )
            click.echo("Next: make every app trust what `overcoat ca` prints now, and start it again.")
