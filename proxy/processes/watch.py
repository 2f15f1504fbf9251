"""Tells that files of the policy have changed, and have come to rest. `proxy.processes.reload` asks it twice a
second.

Rules of this module:

- It looks at what each name leads to: a file that is written in place, one that takes another's name, and a symbolic
  link anywhere in the path that leads elsewhere (as Kubernetes swaps `..data`) are all seen. Where a file is missing,
  its coming is seen. Nothing is opened.
- A change counts once two looks in a row find the same. So a file is not read while it is being written, and several
  that are replaced one after the other are read together. What never comes to rest is read all the same after a while.
- It tells about versions, not content. Whoever reads finds out whether the content is another; a file that only seems
  to change all the time must not cost much, so reading in vain takes at most a twentieth of the time. A true change is
  read soon, however short a time ago the last one was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from proxy import timelimits
from proxy.disk.reading import Version, version_of

_REST = 19.0  # the pause after reading in vain, in units of the time that it took


class Watch:
    """The files that were read last, and what was found about them since."""

    def __init__(self, versions: Mapping[Path, Version]) -> None:
        """Start.

        Args:
            versions: the files that were read, also those that could not be, and the version of each.
        """
        self._versions = dict(versions)
        self._last = self._versions
        self._since = math.inf  # the time at which a look first found a change
        self._not_before = -math.inf

    def was_read(self, versions: Mapping[Path, Version], began: float, now: float, *, in_vain: bool) -> None:
        """Take note that the files were read again, whatever came of it.

        Args:
            versions: the files that were read this time.
            began: when that began, in seconds of a clock that never goes back.
            now: the present time, by the same clock.
            in_vain: whether it was for files that were only touched.
        """
        self._versions = dict(versions)
        self._last = self._versions
        self._since = math.inf
        self._not_before = now + _REST * (now - began) if in_vain else now

    def was_not_read(self, began: float, now: float) -> None:
        """Take note that it was tried to read the files, and that nothing was read: changes of them count as before.

        Args:
            began: see `was_read`.
            now: see `was_read`.
        """
        self._not_before = now + max(now - began, timelimits.READ_AGAIN_SECONDS)

    def look(self, now: float) -> list[Path]:
        """Return the files that have changed and should be read; none while any of them still changes.

        Args:
            now: the present time, by the clock of `was_read`.
        """
        found = {path: version_of(path) for path in self._versions}
        is_at_rest, self._last = found == self._last, found
        changed = [path for path, version in found.items() if version != self._versions[path]]
        if not changed:
            self._since = math.inf
            return []
        self._since = min(self._since, now)
        is_due = is_at_rest or now >= self._since + timelimits.UNRESTING_SECONDS
        return changed if is_due and now >= self._not_before else []
