"""`overcoat serve` runs the sidecar: it reads the policy, binds the listeners, and serves in this process or in several
workers (`proxy.processes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.commands.localca import CannotStart, hold, open_authority, publish, renew_authority
from proxy.engine.descriptors import raise_limit, warn_of_limit
from proxy.health import Sign, address_text, data_folder
from proxy.log import say_all_in_one_form
from proxy.policyfile.nearby import find_policy
from proxy.policyfile.refusal import PolicyErrors
from proxy.processes.apart import Reading
from proxy.processes.manager import tell_manager
from proxy.processes.readable import form_for
from proxy.processes.secrecy import SecretVariables
from proxy.processes.signals import take_over_signals

if TYPE_CHECKING:
    from proxy.core.rules.policy import Policy
    from proxy.disk.ca import LocalCa
    from proxy.engine.server import Bound
    from proxy.policyfile.refusal import PolicyError
    from proxy.processes.admin import AdminSockets
    from proxy.processes.alone import Alone
    from proxy.processes.readable import Form
    from proxy.processes.reload import Reader

logger = logging.getLogger("overcoat")

policy_option = click.option(
    "-p",
    "--policy",
    "policy_path",
    type=click.Path(),
    metavar="FILE",
    help="The policy file; else $OVERCOAT_POLICY, ./overcoat.yaml, the built-in default.",
)


def fail(message: str, status: int = 1) -> click.exceptions.Exit:
    """Print one line of error and return the exit to raise."""
    click.echo(f"error: {message}", err=True)
    return click.exceptions.Exit(status)


def refused(errors: Sequence[PolicyError]) -> click.exceptions.Exit:
    """Print all errors of a policy, and return the exit to raise."""
    for error in errors:
        click.echo(str(error), err=True)
    count = len(errors)
    return fail(f"the policy has {count} {'error' if count == 1 else 'errors'}; nothing was started", 2)


@click.command()
@policy_option
@click.option("--listen", metavar="URL,…", help="Listen here instead, for example forward://127.0.0.1:8080.")
@click.option("--admin", metavar="HOST:PORT", help="The admin listener's address instead.")
@click.option("--probes", metavar="HOST:PORT", help="Answer /live and /ready alone here instead.")
@click.option("--mode", type=click.Choice(["enforce", "observe"]), help="The mode instead.")
@click.option(
    "--publish-ca",
    type=click.Path(path_type=Path),
    envvar="OVERCOAT_PUBLISH_CA",
    metavar="FOLDER",
    help="Write ca.pem and ca-bundle.pem there, for apps to trust; else $OVERCOAT_PUBLISH_CA.",
)
@click.option(
    "--share-ca",
    is_flag=True,
    envvar="OVERCOAT_SHARE_CA",
    help="Start although another sidecar uses the same data directory, and so the same CA; else $OVERCOAT_SHARE_CA.",
)
@click.option(
    "--constrain-ca",
    is_flag=True,
    envvar="OVERCOAT_CONSTRAIN_CA",
    help="A CA that is made now may sign for the hosts alone that the policy inspects; else $OVERCOAT_CONSTRAIN_CA.",
)
@click.option("--lines", type=click.Path(path_type=Path), metavar="FILE", help="Append decision lines to FILE.")
@click.option("--log-file", type=click.Path(path_type=Path), metavar="FILE", help="Append everything else to FILE.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="For people or programs, wherever it goes.")
@click.option("--watch/--no-watch", default=True, help="Read the policy again when a file of it changes (the default).")
@click.option("--until-eof", is_flag=True, hidden=True)  # for `overcoat run`: one process, as long as its input is open
def serve(
    *,
    policy_path: str | None,
    listen: str | None,
    admin: str | None,
    mode: str | None,
    lines: Path | None,
    log_file: Path | None,
    log_format: str | None,
    probes: str | None,
    publish_ca: Path | None,
    share_ca: bool,
    constrain_ca: bool,
    watch: bool,
    until_eof: bool,
) -> None:
    """Run the sidecar until SIGTERM, SIGINT or SIGQUIT; it then lets running requests end. A second SIGTERM or SIGINT
    ends it at once.

    SIGHUP reads the policy file again, and so does a change of it or of a file that it names; one with errors changes
    nothing. SIGUSR1 opens the file of --lines again.

    Decision lines go to stdout, everything else to stderr: as text for people on a terminal, else as JSON.

    Example: overcoat serve -p overcoat.yaml
    """
    given = {"listen": listen, "admin": admin, "probes": probes, "mode": mode}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        path = find_policy(policy_path, os.environ)
    except PolicyErrors as e:
        raise refused(e.errors) from None
    secrets = SecretVariables()
    os.register_at_fork(after_in_child=secrets.forget)  # only the parent has the policy read again
    signals = take_over_signals()
    begin = partial(Reading, path, overrides, secrets)
    reading = begin()
    # Half of the start is imports: they are done while the policy is read.
    from proxy.processes.reload import Reader
    from proxy.processes.starting import unfit

    answer = reading.wait()
    if answer.errors:
        raise refused(answer.errors)
    try:
        say_all_in_one_form(sys.stderr, log_format, log_file)
    except OSError as e:
        raise fail(f"the log cannot be written to {log_file}: {(e.strerror or str(e)).lower()}") from None
    form = form_for(sys.stdout if lines is None else None, log_format, os.environ)
    raise_limit()
    if secrets.taken:  # whoever started this process can keep them from others
        extra = {"facts": {"event": "secrets", "variables": secrets.taken}}
        logger.info("secrets were read from the environment: %s", ", ".join(secrets.taken), extra=extra)
    try:
        if answer.policy is None:
            raise CannotStart(answer.failure)
        policy = answer.policy
        count = 1 if until_eof else policy.workers or processors()
        reader = Reader(begin, policy, answer.versions if watch else None)
        with contextlib.ExitStack() as closing:
            if lines is not None:
                _check_lines(lines)
            if not until_eof:  # `overcoat run` starts one for each program of a user, and these share by design
                hold(shares=share_ca)
            authority = open_authority(policy, constrains=constrain_ca)
            reader.unfit = partial(unfit, authority=authority)
            if publish_ca is not None:
                publish(publish_ca)
            if signals.asks_to_drain:
                status = 0
            elif count == 1:
                from proxy.processes.alone import Alone

                renew = partial(renew_authority, authority, publish_ca, reader)
                making = partial(Alone, policy, reader, authority, renew, lines=lines, form=form, until_eof=until_eof)
                status = int(asyncio.run(_serve_alone(policy, making, None if until_eof else closing)) > 0)
            else:
                status = _serve_together(
                    policy, reader, authority, closing, lines, count=count, publish_ca=publish_ca, form=form
                )
    except CannotStart as e:
        logger.error("%s", e)
        status = e.status
    else:
        logger.info("stopped")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)  # does not wait for threads that still resolve a name


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_lines(path: Path) -> None:
    from proxy.processes.decisionlines import open_lines

    try:
        os.close(open_lines(path))
    except OSError as e:
        raise CannotStart(f"decision lines cannot be written to {path}: {(e.strerror or str(e)).lower()}") from None


async def _serve_alone(policy: Policy, make: Callable[[], Alone], closing: contextlib.ExitStack | None) -> int:
    """Serve in this process; return how much was cut off at the end."""
    from proxy.engine.roots import NoRoots
    from proxy.engine.server import BindError

    try:
        alone, (bound,) = make(), _bind(policy, 1)
    except (NoRoots, BindError) as e:
        raise CannotStart(str(e)) from None
    admin = _bind_admin(policy)
    return await alone.serve(bound, admin, lambda: _announce(policy, bound, admin, closing))


def _serve_together(
    policy: Policy,
    reader: Reader,
    authority: LocalCa,
    closing: contextlib.ExitStack,
    lines: Path | None,
    *,
    count: int,
    publish_ca: Path | None,
    form: Form | None,
) -> int:
    """Serve with several worker processes; return the exit status."""
    from proxy.processes.metricsfiles import prepare_metrics

    directory = prepare_metrics()
    from proxy.engine.roots import NoRoots
    from proxy.engine.server import BindError
    from proxy.processes.children import Desk, Equipment, administer, work
    from proxy.processes.recent import Recent
    from proxy.processes.reminder import Reminder
    from proxy.processes.supervisor import Seat, Shared, Supervisor, SupervisorFailed

    try:
        shares = _bind(policy, count)
        admin_sockets = _bind_admin(policy)
        guarded = tuple(each.getsockname()[:2] for each in admin_sockets.all)
        is_ready = Shared()
        recents = [Recent() for _ in shares]
        seats = [
            Seat(
                "a worker",
                True,
                str(number),
                [each.socket for each in share],
                partial(work, Equipment(authority, directory, guarded, share, lines, recent, form)),
            )
            for number, (share, recent) in enumerate(zip(shares, recents, strict=True))
        ]
        if admin_sockets.all:
            answer = partial(administer, Desk(directory, is_ready, time.time(), admin_sockets, recents))
            seats.append(Seat("the admin endpoint", False, "admin", admin_sockets.all, answer))
        reminder = Reminder(authority.lifetime, policy, datetime.now(UTC))
        renew = partial(renew_authority, authority, publish_ca, reader, reminder)
        supervisor = Supervisor(
            seats,
            is_ready,
            directory,
            policy,
            reader,
            remind=reminder.remind,
            renew=renew,
        )
        status = supervisor.run(lambda: _announce(policy, shares[0], admin_sockets, closing))
    except (BindError, NoRoots, SupervisorFailed) as e:
        raise CannotStart(str(e)) from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return status


def _bind_admin(policy: Policy) -> AdminSockets:
    from proxy.engine.server import BindError
    from proxy.processes.admin import AdminSockets
    from proxy.processes.starting import bind_own

    try:
        return AdminSockets(bind_own(policy.admin, "admin"), bind_own(policy.probes, "probes"))
    except BindError as e:
        raise CannotStart(str(e)) from None


def _bind(policy: Policy, count: int) -> list[list[Bound]]:
    """Bind every listener for each worker; return each worker's sockets."""
    from proxy.engine.server import bind

    shares: list[list[Bound]] = [[] for _ in range(count)]
    for listener in policy.listen:
        for share, bound in zip(shares, bind(listener, count), strict=True):
            share.extend(bound)
    return shares


def _announce(
    policy: Policy, bound: list[Bound], admin_sockets: AdminSockets, closing: contextlib.ExitStack | None
) -> None:
    """Tell people, programs and `overcoat healthcheck` that the sidecar serves; the check only if its sign can be taken
    away again.
    """
    from proxy.core.rules.policy import ListenerKind
    from proxy.policyfile.findings import findings, log_findings

    listen = ["{}:{}".format(*each.socket.getsockname()[:2]) for each in bound]
    logger.info(
        "policy %s: rules %d, mode %s, hash %s", policy.source, len(policy.rules), policy.mode, policy.short_hash
    )
    log_findings(findings(policy, os.environ, datetime.now(UTC)))
    warn_of_limit(policy)
    admin, probes = (
        each and address_text(*each.getsockname()[:2]) for each in (admin_sockets.admin, admin_sockets.probes)
    )
    try:
        if closing is not None:
            policy_file = None if policy.source == "built-in" else policy.source
            ways = [
                address_text(*each.socket.getsockname()[:2])
                for each in bound
                if each.listener.kind is ListenerKind.FORWARD
            ]
            asked, variable = probes or admin or "", os.environ.get("OVERCOAT_POLICY")
            sign = Sign(data_folder(os.environ), asked, policy_file, variable, ways)
            closing.callback(sign.take_away)
    except OSError as e:
        told = "unless OVERCOAT_PROBES or OVERCOAT_ADMIN says where it is"
        logger.warning("overcoat healthcheck will not find this sidecar, %s: %s: %s", told, e.filename, e.strerror)
    # For programs, too: a supervisor that asked for free ports learns them here.
    facts = {"event": "ready", "listen": listen, "admin": admin, "probes": probes}
    where = (", ".join(listen), admin or "off", probes or "off")
    logger.info("ready: listening on %s, admin %s, probes %s", *where, extra={"facts": facts})
    tell_manager("READY=1")
