"""Starts `overcoat` by forking a process that has its modules already: `tests.e2e.forks` runs it, and asks it.

    python -P tests/e2e/forkserver.py 3        # 3: a socket that it has inherited

Rules of this module:

- It imports what `overcoat serve` has imported when it is ready, and what the process has that reads its policy, and
  nothing more (`tests/e2e/test_forks.py` compares them), so that an import that the product forgot is missing here,
  too; one that is left out here takes time in each fork. It starts no thread, and runs nothing of the product itself.
- The process that reads a sidecar's first policy is a fork, too. At that moment the sidecar has nothing open, and no
  thread; later ones are started as users have them.
- A fork has nothing of it but these modules: environment, folder, arguments, standard streams and descriptors are those
  that were asked for. It runs the script that it was asked for from its first line, and ends as that does.
- Who asked is told the process id, and later the exit status, through a socket of its own. Until it closes that, the
  process stays a zombie, as a child of its own would, so that its process id is no other's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

LONGEST = 128 * 1024  # bytes of a request
STREAMS = 3
MODULES = (
    *("overcoat.__main__", "proxy.cli", "proxy.commands.serve", "proxy.policyfile.load", "proxy.disk.sharing"),
    *("proxy.processes.alone", "proxy.processes.starting", "_strptime", "encodings.ascii"),
)


def import_all() -> None:
    """Import what a sidecar that is ready has imported."""
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)  # as the launcher does
    importlib.import_module("proxy.late").load_late()  # and this the command
    for name in MODULES:
        importlib.import_module(name)
    sys.path.remove(root)


@dataclass(eq=False)
class Fork:
    """A process, and who asked for it.

    Attributes:
        end: a descriptor that can be read when the process has ended; None after that.
        asker: the socket of who asked; None once that has closed it.
    """

    pid: int
    end: int | None
    asker: socket.socket | None


class Server:
    """Forks whenever it is asked to, and tells how the forks end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._forks: set[Fork] = set()

    def serve(self) -> Callable[[], None] | None:
        """Serve until the other end is closed, and return None. In a fork, return what it shall do."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._note(key.data, key.fd)
                    continue
                text, descriptors, _, _ = socket.recv_fds(self._control, LONGEST, STREAMS + 1)
                if not text:
                    return None
                *streams, asker = descriptors
                if self._fork(socket.socket(fileno=asker)):
                    return partial(become, text, streams)
                for each in streams:
                    os.close(each)

    def _fork(self, asker: socket.socket) -> bool:
        """Fork; return whether this is the fork, which then has nothing that is the server's."""
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            self._control.close()
            asker.close()
            for fork in self._forks:
                if fork.asker is not None:
                    fork.asker.close()
                if fork.end is not None:
                    os.close(fork.end)
            return True
        end = os.pidfd_open(pid)
        fork = Fork(pid, end, asker)
        self._forks.add(fork)
        asker.send(str(pid).encode())
        for each in (asker, end):
            self._selector.register(each, selectors.EVENT_READ, fork)
        return False

    def _note(self, fork: Fork, descriptor: int) -> None:
        """Take note that a fork has ended, or that who asked for it has closed the socket."""
        self._selector.unregister(descriptor)
        if descriptor == fork.end:
            os.close(descriptor)
            fork.end = None
            if fork.asker is not None:
                with contextlib.suppress(OSError):  # who asked may be gone
                    fork.asker.send(str(_status(fork.pid)).encode())
        elif fork.asker is not None:
            fork.asker.close()
            fork.asker = None
        if fork.end is None and fork.asker is None:
            os.waitpid(fork.pid, 0)
            self._forks.remove(fork)


def _status(pid: int) -> int:
    """Return how a process ended, which stays a zombie: its exit status, or its signal below 0."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def become(text: bytes, streams: list[int]) -> None:
    """Run a script as the process that was asked for."""
    asked = json.loads(text)
    for number, each in enumerate(streams):
        os.dup2(each, number)
        os.close(each)
    coerced = {name: value for name, value in os.environ.items() if name == "LC_CTYPE"}  # by the interpreter (PEP 538)
    os.environ.clear()
    os.environ.update({**coerced, **asked["environment"]})
    os.chdir(asked["folder"])
    script, *_ = sys.argv = asked["command"]
    if asked["script_is_on_path"]:
        sys.path.insert(0, os.path.dirname(script))
    fork_the_first_reader()
    names = {"__name__": "__main__", "__file__": script, "__builtins__": __builtins__}
    exec(compile(Path(script).read_bytes(), script, "exec"), names)


def fork_the_first_reader() -> None:
    """See above."""
    apart: Any = sys.modules["proxy.processes.apart"]
    start = apart.start

    def fork_it(wire: socket.socket) -> int:
        apart.start = start
        pid = os.fork()
        if not pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
            apart.answer_over(wire)
        return pid

    apart.start = fork_it


if __name__ == "__main__":
    import_all()
    try:
        run = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    except KeyboardInterrupt:  # of the terminal; who asks ends, too
        run = None
    if run is not None:
        run()
