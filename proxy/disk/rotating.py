"""Replaces the local CA by a new one, with a time in which apps trust both. `overcoat ca rotate` calls it.

Theory of operation. The successor lies beside the CA, in a file of the same kind, from `rotate` on. Whatever prints or
publishes what apps trust then has both certificates, while the old CA signs. `finish` gives the successor's file the
CA's name: in one step there is another CA, and no successor. A sidecar that runs sees both files change.

Rules of this module:

- Each step is one link or one rename of a file that is complete: after a crash there is the CA of before, or the next.
- A successor takes over the mark of cookies, so that nobody has to log in again.
- A CA that has ended signs nothing, so there is nothing to overlap with: it is replaced at once.
- The old key is not kept: nothing needs it any more, and nobody can steal it then.
- A successor that was made for other hosts than those that are wanted now is replaced by another one.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from proxy.core.certificates.constraints import Constraints
from proxy.disk.ca import CERTIFICATE_FILE, KEY_FILE, NEXT_FILE, CaError, LocalCa, check_clock, create, no_access
from proxy.disk.publishing import write_public


def rotate(directory: Path, now: datetime, constraints: Constraints | None = None) -> LocalCa:
    """Make a successor, and put it in the CA's place at once if that has ended.

    Args:
        directory: the data directory.
        now: the current time.
        constraints: the hosts for which the successor may sign; None for any.

    Returns:
        The CA as it is now: it has a successor, or is the new one.

    Raises:
        CaError: there is no CA, one that has not begun, or a successor already; or the files cannot be read or written.
    """
    try:
        authority = _load(directory)
        authority_has_ended = now >= authority.lifetime.ends
        successor = authority.successor
        fits = successor is not None and Constraints.of(successor) == constraints
        if fits and not authority_has_ended:
            raise CaError(
                f"a new CA has been made in {directory} already; once the apps trust it: overcoat ca rotate --finish"
            )
        if now < authority.lifetime.begins:
            raise CaError(f"the local CA in {directory} has not begun by this machine's clock: set the clock")
        if not fits:
            check_clock(directory, now)
            create(directory / NEXT_FILE, now, authority.tag, constraints=constraints, replaces=successor is not None)
        if authority_has_ended:
            return finish(directory, now)
        return _publish(directory)
    except OSError as e:
        raise no_access(directory, e) from None


def finish(directory: Path, now: datetime) -> LocalCa:
    """Put the successor in the CA's place, and return it.

    Raises:
        CaError: there is no successor, or it is not valid now; or the files cannot be read or written.
    """
    try:
        successor = _load(directory).successor
        if successor is None:
            raise CaError(f"no rotation has begun in {directory}: overcoat ca rotate begins one")
        if not successor.not_valid_before_utc <= now < successor.not_valid_after_utc:
            raise CaError(f"the new CA in {directory} is not valid at {now:%Y-%m-%d %H:%M}: is the clock right?")
        os.replace(directory / NEXT_FILE, directory / KEY_FILE)
        return _publish(directory)
    except OSError as e:
        raise no_access(directory, e) from None


def _load(directory: Path) -> LocalCa:
    if not (directory / KEY_FILE).exists():
        raise CaError(f"there is no local CA in {directory} to replace: overcoat ca makes one")
    return LocalCa.load(directory)


def _publish(directory: Path) -> LocalCa:
    authority = LocalCa.load(directory)
    write_public(directory / CERTIFICATE_FILE, authority.pem)
    return authority
