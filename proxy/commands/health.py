"""`overcoat healthcheck`, with its options; `proxy.health` does the work."""

from __future__ import annotations

import os

import click

from proxy import timelimits
from proxy.health import NotReady, check


@click.command()
@click.option(
    "-p",
    "--policy",
    type=click.Path(),
    metavar="FILE",
    help="Ask only sidecars with this policy file; else $OVERCOAT_POLICY.",
)
@click.option("--address", metavar="HOST:PORT", help="Ask at this address, of `probes` or the admin listener.")
@click.option(
    "--timeout",
    "seconds",
    type=float,
    default=timelimits.READY_SECONDS,
    show_default=True,
    help="Seconds to wait for an answer.",
)
def healthcheck(policy: str | None, address: str | None, seconds: float) -> None:
    """Exit with 0 if the sidecar on this machine is ready, with 1 if not.

    It finds those that run as this user, by their signs in the data directory ($OVERCOAT_DATA, else
    ~/.local/share/overcoat); all must be ready.

    Example: overcoat healthcheck --address 127.0.0.1:9464
    """
    try:
        check(os.environ, policy, address, seconds)
    except NotReady as e:
        click.echo(f"error: {e}", err=True)
        raise click.exceptions.Exit(1) from None
    click.echo("ready")
