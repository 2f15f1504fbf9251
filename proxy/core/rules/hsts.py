"""HTTP Strict Transport Security (RFC 6797), on behalf of apps that do not keep it themselves: remembers which hosts
want https only. `addons.translation` teaches it, and `decide_plain_http` asks it.

Rules of this module:

- Callers call `learn` only with fields that came over verified TLS.
- A known host is asked over https only, even if the policy lets plain http pass.
- An address is never known (section 8.1.1), and a malformed field is ignored (section 6.1).
- Memory is limited: the host that was learned longest ago is forgotten first.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator

from proxy import timelimits
from proxy.core.destinations import is_address

MAX_HOSTS = 10_000

_DIRECTIVE = re.compile(r"""[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*(?:=[ \t]*("[^"]*"|[^" \t;]+)[ \t]*)?""")
_NUMBER = re.compile(r"[0-9]{1,15}")


def parse_field(value: str) -> tuple[int, bool] | None:
    """Read a Strict-Transport-Security field.

    Args:
        value: the first such field's value.

    Returns:
        `max-age` in seconds, and whether subdomains are included; None if the field is to be ignored.
    """
    found: dict[str, str] = {}
    for part in value.split(";"):
        if not part.strip(" \t"):
            continue
        directive = _DIRECTIVE.fullmatch(part)
        if directive is None or directive[1].lower() in found:
            return None
        found[directive[1].lower()] = (directive[2] or "").strip('"')
    seconds = found.get("max-age", "")
    if not _NUMBER.fullmatch(seconds):
        return None
    return min(int(seconds), timelimits.HSTS_SECONDS), "includesubdomains" in found


class KnownHosts:
    """The hosts that must be asked over https only."""

    def __init__(self, clock: Callable[[], float], is_preloaded: Callable[[str], bool]) -> None:
        """Start without any learned host.

        Args:
            clock: returns seconds, as `time.time` does.
            is_preloaded: tells whether the browsers' list has a host; called only if the policy uses that list.
        """
        self._clock = clock
        self._is_preloaded = is_preloaded
        self._learned: OrderedDict[str, tuple[float, bool]] = OrderedDict()

    def lasting(self) -> KnownHosts:
        """Return the hosts that are known always, and in every worker: those of the browsers' list, and no learned
        ones.
        """
        return KnownHosts(self._clock, self._is_preloaded)

    def learn(self, host: str, value: str) -> None:
        """Take a field from a response that came over verified TLS.

        Args:
            host: the canonical host.
            value: the first Strict-Transport-Security field of the response.
        """
        said = parse_field(value)
        if said is None:
            return
        self._learned.pop(host, None)
        seconds, includes_subdomains = said
        if seconds:
            self._learned[host] = (self._clock() + seconds, includes_subdomains)
            if len(self._learned) > MAX_HOSTS:
                self._learned.popitem(last=False)

    def knows(self, host: str, *, uses_preload: bool) -> bool:
        """Tell whether a host must be asked over https only.

        Args:
            host: the canonical host.
            uses_preload: whether the browsers' list counts, too.
        """
        if is_address(host):
            return False
        now = self._clock()
        for name in _and_above(host):
            until, includes_subdomains = self._learned.get(name, (0.0, False))
            if until > now and (name == host or includes_subdomains):
                return True
        return uses_preload and self._is_preloaded(host)


def _and_above(host: str) -> Iterator[str]:
    while host:
        yield host
        host = host.partition(".")[2]
