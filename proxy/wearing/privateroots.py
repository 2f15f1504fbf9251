"""Becomes a program in a mount namespace of its own, in which a bundle stands in the place of the system's roots: for
programs that read that file and nothing else, as Dart and GnuTLS' wget do. `overcoat run --private-roots` runs this
file as a script, in the place of the program.

Rules of this module:

- Only the program and what it starts see the bundle there; the system's own file stays as it is.
- Root of this machine needs a mount namespace alone. Anybody else gets a user namespace around it, in which the user
  stays the same, and other users and setuid programs count for nothing.
- Where the kernel allows neither, the program is not run, and a pipe says why.
- It imports the standard library alone, and little of it: the program waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# Where programs that ask for the system's roots find them: Debian, Alpine; Fedora; openSUSE; Arch, the BSDs.
PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_BIND, _RECURSIVE, _PRIVATE = 1 << 12, 1 << 14, 1 << 18  # mount(2)


class CannotMount(Exception):
    """The kernel does not allow it, or there is nothing to stand in for. The message says which."""


def enter(bundle: str) -> None:
    """Give this process a mount namespace in which the bundle stands in the place of the system's roots.

    Raises:
        CannotMount: that is not possible here.
    """
    places = sorted({os.path.realpath(place) for place in PLACES if os.path.isfile(place)})
    if not places:
        raise CannotMount(f"none of the files is here that programs know as the system's roots: {', '.join(PLACES)}")
    try:
        _unshare()
        _mount(b"none", b"/", _RECURSIVE | _PRIVATE)  # nothing of what follows is seen outside
        for place in places:
            _mount(os.fsencode(bundle), os.fsencode(place), _BIND)
    except OSError as e:
        raise CannotMount(
            f"no mount namespace can be had here ({os.strerror(e.errno or 0).lower()}): it takes root with "
            "CAP_SYS_ADMIN, or a kernel and a container that allow user namespaces"
        ) from None


def _unshare() -> None:
    if sys.platform != "linux":
        raise CannotMount("only Linux has mount namespaces")
    try:
        os.unshare(os.CLONE_NEWNS)
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def _mount(source: bytes, target: bytes, flags: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(source, target, None, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), "")


def main() -> None:
    """Take the bundle, the descriptor of a pipe, the program's path, its name and its arguments; become the program."""
    bundle, pipe, path, *command = sys.argv[1:]
    said = int(pipe)
    os.set_inheritable(said, False)
    try:
        enter(bundle)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        os.execv(path, command)  # noqa: S606  # the user's own program
    except CannotMount as e:
        os.write(said, str(e).encode())
    except OSError as e:
        os.write(said, f"{path} cannot be run: {(e.strerror or str(e)).lower()}".encode())
    sys.exit(1)


if __name__ == "__main__":
    main()
