"""`overcoat password`: prints the hash of a password, for users of the proxy."""

from __future__ import annotations

import os
import sys

import click


@click.command()
def password() -> None:
    """Print the hash of a password, for `clients.users` of the policy.

    The password is asked for, or read as one line from the standard input; it is never an argument, which others on
    the machine could see.

    Example: overcoat password > sidecar-password.hash
    """
    from proxy.core.who.clients import hash_password

    if sys.stdin.isatty():
        text = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        text = sys.stdin.readline().rstrip("\r\n")
    if not text:
        click.echo("error: the password is empty", err=True)
        raise click.exceptions.Exit(1)
    click.echo(str(hash_password(text, os.urandom(16))))
