"""What a sidecar does with its local CA beside signing: it keeps its data directory to itself, publishes what apps
trust, and takes another CA over. `overcoat serve` and `overcoat ca` call it.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.disk.ca import CaError, LocalCa, data_directory

if TYPE_CHECKING:
    from proxy.core.rules.policy import Policy
    from proxy.processes.reload import Reader
    from proxy.processes.reminder import Reminder

logger = logging.getLogger("overcoat")


class CannotStart(Exception):
    """The sidecar cannot start; the message is one line.

    Attributes:
        status: the exit status.
    """

    def __init__(self, said: str, status: int = 1) -> None:
        super().__init__(said)
        self.status = status


def hold(*, shares: bool) -> None:
    """Keep other sidecars from sharing the CA in silence, as long as this process lives."""
    from proxy.disk.sharing import Hold, InUse

    try:
        directory = data_directory(os.environ)
        hold = Hold(directory, shares=shares)
    except CaError as e:
        raise CannotStart(str(e)) from None
    except InUse as e:
        raise CannotStart(str(e), 2) from None
    os.register_at_fork(after_in_child=hold.forget)  # the lock ends with the parent, whatever workers still do
    if hold.is_shared_by_design:
        logger.info("%s cannot be written: its CA is taken for one that several sidecars share", directory)
    elif hold.problem is not None:
        logger.warning("whether another sidecar uses %s cannot be told: %s", directory, hold.problem)


def open_authority(policy: Policy, *, constrains: bool) -> LocalCa:
    """Return the local CA; make it if there is none.

    Args:
        policy: the policy to be served.
        constrains: whether one that is made may sign for the hosts alone that the policy inspects. Where these are no
            fixed list, it may sign for any host, which is said.

    Raises:
        CannotStart: it cannot be used, or not for this policy.
    """
    from proxy.processes.starting import first_constraints, unfit

    try:
        directory = data_directory(os.environ)
        constraints = first_constraints(policy, directory) if constrains else None
        authority = LocalCa.open(directory, datetime.now(UTC), constraints=constraints)
    except CaError as e:
        raise CannotStart(str(e)) from None
    if (said := unfit(policy, authority)) is not None:
        raise CannotStart(said)
    return authority


def publish(folder: Path) -> None:
    """Write what apps trust. Without roots of the system's own, the bundle is the local CA alone."""
    from proxy.core.rules.trust import Trust
    from proxy.disk.publishing import PublishingError
    from proxy.engine.roots import NoRoots, read_roots
    from proxy.wearing.files import write_files

    try:
        authority = LocalCa.open(data_directory(os.environ), datetime.now(UTC))
        try:
            roots = read_roots(Trust())
        except NoRoots as e:
            logger.warning("%s holds the local CA alone: %s", folder / "ca-bundle.pem", e)
            roots = ()
        write_files(folder, authority.pem, roots)
    except (CaError, PublishingError) as e:
        raise CannotStart(str(e)) from None


def renew_authority(
    authority: LocalCa, folder: Path | None, reader: Reader, reminder: Reminder, policy: Policy
) -> bool:
    """Read the local CA again if its files have changed, and publish what apps should trust now.

    Args:
        authority: the CA.
        folder: where it is published; None if nowhere.
        reader: knows whether a policy waits for another CA, and will be read again.
        reminder: warns of its end.
        policy: the policy in force.

    Returns:
        Whether there is another one, or another successor.
    """
    from proxy.processes.starting import unfit

    before = authority.certificate
    try:
        if not authority.renew():
            return False
    except CaError as e:
        logger.error(
            "the local CA is used as it was before: %s; a restart would be without it, and apps trust no other", e
        )
        return False
    reminder.lifetime = authority.lifetime
    if authority.certificate != before:
        logger.info("another local CA signs from now on; it ends on %s", f"{authority.lifetime.ends:%Y-%m-%d}")
    elif authority.successor is not None:
        logger.info("the local CA has a successor, which apps should trust, too")
    if not reader.waits_for_ca and (said := unfit(policy, authority)) is not None:
        logger.error("such hosts are denied from now on (local_ca_constrained): %s", said)
    if folder is not None:
        try:
            publish(folder)
        except CannotStart as e:
            logger.error("%s", e)
    return True
