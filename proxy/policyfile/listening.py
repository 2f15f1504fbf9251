"""Checks of all listeners together: that each has an address of its own, and that it is said who may use those that
others can reach. `proxy.policyfile.load` calls it with the complete policy.

Rules of this module:

- A listener that others can reach serves nobody, unless the policy says whom.
- Where no credentials can be shown, addresses say who may connect.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.core.rules.policy import Listener, ListenerKind, Policy
from proxy.core.who.addresses import parse_ip
from proxy.policyfile.nearby import DEFAULT_FILE
from proxy.policyfile.yamltext import Steps

_WITHOUT_CREDENTIALS = (ListenerKind.REVERSE, ListenerKind.TRANSPARENT, ListenerKind.MIRROR)


def listener_problems(policy: Policy, said: frozenset[str], *, is_from_file: bool) -> Iterator[tuple[Steps, str]]:
    """Yield an error for each address that comes twice, at its second position, and for each listener open to
    everybody.

    Args:
        policy: the policy, with its overrides.
        said: the keys that its `clients` have in the file.
        is_from_file: whether there is a file.
    """
    listeners: list[tuple[Steps, Listener]] = [(("listen", index), each) for index, each in enumerate(policy.listen)]
    own = (("admin", policy.admin), ("probes", policy.probes))
    listeners += [((name,), each) for name, each in own if each is not None]
    seen: set[tuple[str, int]] = set()
    for steps, listener in listeners:
        if listener.port and (listener.host, listener.port) in seen:
            yield steps, f"{listener.address} stands twice; each listener needs its own address"
        elif steps[0] == "admin" and "admin" not in said and not _is_loopback(listener.host):
            yield (
                steps,
                f"others can reach {listener.address}, so say who may ask there: clients: {{admin: [private]}} for a "
                "Prometheus in the same private network; or leave it on 127.0.0.1, and let others ask for /live and "
                "/ready at `probes`",
            )
        elif steps[0] == "listen" and not _is_loopback(listener.host) and not _says_itself(listener):
            message = _open_listener(policy, listener, said, is_from_file=is_from_file)
            if message is not None:
                yield steps, message
        seen.add((listener.host, listener.port))


def _open_listener(policy: Policy, listener: Listener, said: frozenset[str], *, is_from_file: bool) -> str | None:
    if not said - {"admin"}:
        return (
            f"others can reach {listener}, so say who may use it: clients: {{allow: [private]}} for the containers "
            "or machines of a private network, or clients.users"
            + ("" if is_from_file else f"; no policy file was named, and ./{DEFAULT_FILE} does not exist")
        )
    asks_elsewhere = bool(policy.clients.users) and policy.clients.addresses is None
    if asks_elsewhere and listener.kind in _WITHOUT_CREDENTIALS:
        return f"others can reach {listener}, where no app shows credentials: say clients.allow, too"
    return None


def _says_itself(listener: Listener) -> bool:
    """Tell whether a listener says itself who may connect."""
    mirror = listener.mirror
    return mirror is not None and (mirror.is_open or mirror.peers is not None)


def _is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a listener. (0.0.0.0 is a loopback address by kind, but means every
    interface.)
    """
    if host == "localhost":
        return True
    try:
        address = parse_ip(host)
    except ValueError:
        return False
    return address.is_loopback
