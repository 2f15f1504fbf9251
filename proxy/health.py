"""Tells whether a sidecar on this machine is ready: what `overcoat healthcheck` does, and how it finds the sidecar. The
launcher runs it directly; `overcoat serve` leaves the signs that it looks for.

A serving sidecar leaves a sign in its data directory: a file with the address to ask, which it keeps locked as long as
it lives. The kernel releases the lock however the sidecar ends. So an unlocked sign belongs to a dead sidecar, whatever
may listen at its address now.

Rules of this module:

- The check runs every few seconds beside the sidecar, and both may have little processor time. So it imports only a few
  modules of the standard library, and never reads the policy, which may also have changed since the start.
- A sign counts only in the network namespace in which it was left: in another one (two containers that share a volume)
  the same address may be somebody else's.
- Nothing is guessed: if no sidecar is found, the check says so, and asks no default address instead. Only if the data
  directory is read-only, so that no sign can be left, may the environment name the address.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from proxy import timelimits

FOLDER = "running"
MAX_BYTES = 8192  # the longest sign or answer that is read
BUILT_IN = "built-in"


class NotReady(Exception):
    """There is no sidecar, or it is not ready. The message is one line."""


def data_folder(env: Mapping[str, str]) -> str:
    """Return where Overcoat keeps its state: $OVERCOAT_DATA, else the XDG data directory.

    Raises:
        RuntimeError: the environment names no folder, and there is no home directory.
    """
    if env.get("OVERCOAT_DATA"):
        return env["OVERCOAT_DATA"]
    if env.get("XDG_DATA_HOME"):
        return os.path.join(env["XDG_DATA_HOME"], "overcoat")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise RuntimeError("there is no home directory: set OVERCOAT_DATA to a directory that this user owns")
    return os.path.join(home, ".local", "share", "overcoat")


def address_text(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets round an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Sign:
    """The sign that a sidecar serves. It exists from its creation until it is taken away or the process ends."""

    def __init__(
        self, folder: str, address: str, policy: str | None, variable: str | None = None, listen: Sequence[str] = ()
    ) -> None:
        """Leave the sign, and remove those of dead sidecars.

        Args:
            folder: the data directory.
            address: the address to ask, `HOST:PORT`; empty if there is none.
            policy: the policy file's path; None for the built-in policy.
            variable: `OVERCOAT_POLICY` in the sidecar's environment: a check from there means this sidecar, whatever
                its flags say.
            listen: where apps may use it as their proxy, each `HOST:PORT`.

        Raises:
            OSError: it cannot be written.
        """
        signs = os.path.join(folder, FOLDER)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.makedirs(signs, mode=0o700, exist_ok=True)
        for path in _files(signs):
            _clear_away(path)
        self.path = os.path.join(signs, f"{os.getpid()}-{os.urandom(8).hex()}")
        made = f"{self.path}.new"  # a temporary name, until it is complete and locked
        self._descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            names = (_policy_text(policy), _policy_text(variable))
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._descriptor, os.fsencode("\n".join((address, _network(), *names, " ".join(listen), ""))))
            os.rename(made, self.path)
        except OSError:
            os.close(self._descriptor)
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise

    def take_away(self) -> None:
        """Remove the sign."""
        with contextlib.suppress(OSError):  # somebody has removed it already
            os.unlink(self.path)
        os.close(self._descriptor)


def check(
    env: Mapping[str, str],
    policy: str | None = None,
    address: str | None = None,
    seconds: float = timelimits.READY_SECONDS,
) -> None:
    """Ask every sidecar that is meant.

    Args:
        env: the environment, with the data directory and `OVERCOAT_POLICY`.
        policy: check only sidecars with this policy file; else with `OVERCOAT_POLICY`; else all of this user's here.
        address: the one address to ask, `HOST:PORT`, whatever signs there are.
        seconds: the time limit for all of them together.

    Raises:
        NotReady: there is none, or not all of them answer in time that they are ready.
    """
    deadline = time.monotonic() + seconds
    for each in [address] if address is not None else _found(env, policy):
        _ask(each, deadline)


def _found(env: Mapping[str, str], policy: str | None) -> Iterator[str]:
    """Yield the addresses of living sidecars."""
    try:
        folder = os.path.join(data_folder(env), FOLDER)
    except RuntimeError as e:
        raise NotReady(str(e)) from None
    count = 0
    for address, _ in _signs(folder, env, policy):
        count += 1
        if not address:
            raise NotReady("the policy has neither probes nor an admin listener to ask")
        yield address
    told = [env[name] for name in ("OVERCOAT_PROBES", "OVERCOAT_ADMIN") if env.get(name, "off") != "off"]
    if not count and told and not os.access(os.path.dirname(folder), os.W_OK):
        count = 1
        yield told[0]
    if not count:
        named = policy or env.get("OVERCOAT_POLICY")
        of = f" of {named}" if named is not None else ""
        raise NotReady(
            f"no sidecar{of} has left its sign in {folder}: it is not up yet, or runs elsewhere or as somebody else "
            "(then name its address: --address HOST:PORT)"
        )


def listeners(env: Mapping[str, str], policy: str | None = None) -> list[str]:
    """Return where each living sidecar that is meant may be used as a proxy: its first such address, `HOST:PORT`.

    Args:
        env: as for `check`.
        policy: as for `check`.

    Raises:
        NotReady: the data directory cannot be found or read.
    """
    try:
        folder = os.path.join(data_folder(env), FOLDER)
    except RuntimeError as e:
        raise NotReady(str(e)) from None
    return [listen.split(" ")[0] for _, listen in _signs(folder, env, policy) if listen]


def _signs(folder: str, env: Mapping[str, str], policy: str | None) -> Iterator[tuple[str, str]]:
    """Yield the address to ask, and where it listens, of each living sidecar that is meant."""
    option, policy = policy, policy or env.get("OVERCOAT_POLICY")
    for path in _files(folder):
        text = _sign_of_the_living(path)
        if text is None:
            continue
        address, network, *its_names, listen = text
        meant_by = its_names if option is None else its_names[:1]
        if network == _network() and (policy is None or _policy_text(policy) in meant_by):
            yield address, listen


def _files(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise NotReady(f"{folder} cannot be read: {e.strerror}") from None
    return [os.path.join(folder, name) for name in sorted(names) if not name.endswith(".new")]


def _sign_of_the_living(path: str) -> list[str] | None:
    """Return what a sign says that is locked: the address to ask, the network, both policy names, and where it listens;
    None for any other file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # it has ended meanwhile
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        fields = os.fsdecode(os.read(descriptor, MAX_BYTES)).split("\n")
        return fields[:5] if len(fields) == 6 else None
    finally:
        os.close(descriptor)
    return None


def _clear_away(path: str) -> None:
    if _sign_of_the_living(path) is None:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _policy_text(policy: str | None) -> str:
    # Not the real path: if a configuration is mounted by symbolic links, that path differs after each change.
    return BUILT_IN if policy is None else os.path.abspath(policy)


def _network() -> str:
    """Return what identifies the network namespace; the same everywhere on systems without them."""
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), timelimits.LEAST_READ_SECONDS)


def _ask(address: str, deadline: float) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")  # for the address that stands for all, the system dials loopback
    answer = b""
    try:
        with socket.create_connection((host, int(port)), _left(deadline)) as asked:
            asked.sendall(f"GET /ready HTTP/1.0\r\nHost: {address_text(host, int(port))}\r\n\r\n".encode())
            while b"\r\n" not in answer and len(answer) < MAX_BYTES:
                asked.settimeout(_left(deadline))
                piece = asked.recv(MAX_BYTES)
                if not piece:
                    break
                answer += piece
    except (OSError, ValueError, OverflowError) as e:
        raise NotReady(f"no answer from {address}: {getattr(e, 'strerror', None) or e}") from None
    words = answer.partition(b"\r\n")[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise NotReady(f"no answer from {address}: what came is not HTTP")
    if words[1] != b"200":
        raise NotReady(f"the sidecar at {address} answers {words[1].decode()}: not ready")


def main() -> int:
    """Run `overcoat healthcheck` without options: print the result, and return the exit status."""
    try:
        check(os.environ)
    except NotReady as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print("ready")
    return 0
