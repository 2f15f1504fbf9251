"""`overcoat env` prints the variables with which programs use and trust a sidecar that runs: what `overcoat run` sets,
in the form that a shell, a compose file, Java or a program reads.

Rules of this module:

- It makes no local CA: a sidecar makes its own when it starts, and may constrain it to the hosts of its policy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import click

from proxy.commands.failed import Failed
from proxy.health import NotReady, data_folder, listeners
from proxy.wearing.own import NotReadable, write_own
from proxy.wearing.variables import Coat, shell_text

FOLDER = "apps"  # in the data directory; everything else in there is nobody else's business
IN_CONTAINERS = "/run/overcoat-ca"  # where the compose files have it


@click.command()
@click.option(
    "-p",
    "--policy",
    "policy_path",
    type=click.Path(),
    metavar="FILE",
    help="The policy of the sidecar that is meant, where several run; else $OVERCOAT_POLICY.",
)
@click.option("--shell", "form", flag_value="shell", default=True, help="For a shell to eval (the default).")
@click.option("--compose", "form", flag_value="compose", help="For the service of an app in a compose file.")
@click.option("--java", "form", flag_value="java", help="Java's options alone.")
@click.option("--json", "form", flag_value="json", help="For programs.")
@click.option("--proxy", metavar="URL", help="The sidecar's URL instead, http://HOST:PORT.")
@click.option("--neighbour", "neighbours", multiple=True, metavar="HOST", help="Reached without it, too (any number).")
def env(policy_path: str | None, form: str, proxy: str | None, neighbours: tuple[str, ...]) -> None:
    """Print the variables with which programs use a running sidecar and trust its local CA.

    What they name is written to the folder `apps` in the data directory; --compose names the volume of the compose
    files instead, which a sidecar fills that has OVERCOAT_PUBLISH_CA.

    Example: eval "$(overcoat env --shell)"
    """
    if proxy is not None and not _is_proxy(proxy):
        raise click.BadParameter("write http://HOST:PORT", param_hint="--proxy")
    if form == "compose":
        coat = Coat(proxy or "http://overcoat:8080", IN_CONTAINERS, {}, neighbours)
        click.echo(compose_text(coat.variables({})), nl=False)
        return
    try:
        proxy = proxy or _running(policy_path)
        folder = Path(data_folder(os.environ)).absolute() / FOLDER
        _write(folder)
        coat = Coat(proxy, str(folder), write_own(folder, os.environ), neighbours)
        variables = coat.variables(os.environ)
        if form == "java":
            click.echo(coat.java_options(os.environ))
        elif form == "json":
            click.echo(json.dumps({"proxy": proxy, "folder": str(folder), "environment": variables}, indent=1))
        else:
            click.echo(shell_text(variables), nl=False)
    except (NotReady, NotReadable, ValueError, RuntimeError) as e:
        raise Failed(str(e)) from None
    except OSError as e:
        raise Failed(f"{e.filename} cannot be written: {(e.strerror or str(e)).lower()}") from None


def _is_proxy(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme == "http" and bool(url.hostname) and bool(url.port) and url.path in ("", "/")
    except ValueError:
        return False


def _running(policy: str | None) -> str:
    """Return the URL of the one sidecar that is meant.

    Raises:
        NotReady: there is none, or more than one.
    """
    found = sorted(set(listeners(os.environ, policy)))
    if len(found) != 1:
        named = policy or os.environ.get("OVERCOAT_POLICY")
        of = f" of {named}" if named else ""
        which = f"more than one sidecar{of} runs here ({', '.join(found)})" if found else f"no sidecar{of} runs here"
        raise NotReady(f"{which}: say which by -p, or by --proxy http://HOST:PORT; `overcoat run` brings its own")
    host, _, port = found[0].rpartition(":")
    local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  # such a one is reached on loopback
    return f"http://{local}:{port}"


def _write(folder: Path) -> None:
    """Write the files that the variables name.

    Raises:
        NotReady: they cannot be written, or there is no local CA.
    """
    from proxy.core.rules.trust import Trust
    from proxy.disk.ca import CaError, LocalCa, data_directory
    from proxy.disk.publishing import PublishingError
    from proxy.engine.roots import NoRoots, read_roots
    from proxy.wearing.files import write_files

    try:
        directory = data_directory(os.environ)
        authority = LocalCa.find(directory)
        if authority is None:
            raise NotReady(
                f"there is no local CA in {directory}: a sidecar makes it when it starts, or overcoat ca does"
            )
        write_files(folder, authority.pem, read_roots(Trust()))
    except (CaError, PublishingError, NoRoots) as e:
        raise NotReady(str(e)) from None


def compose_text(variables: dict[str, str]) -> str:
    """Return the lines of a compose file for the service of an app. Compose takes a dollar sign for a variable of its
    own, unless it is doubled.
    """
    lines = [f"  {name}: {json.dumps(value.replace('$', '$$'))}" for name, value in variables.items()]
    volume = json.dumps(f"overcoat-ca:{IN_CONTAINERS}:ro")
    return "\n".join(["environment:", *lines, f"volumes: [{volume}]", ""])
