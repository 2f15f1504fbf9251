"""Reads the policy in a process of its own, which ends once it has answered. `proxy.commands.serve` does so at the
start, and `proxy.processes.reload` each time the policy is read again.

Why: what reads a policy file (the model, YAML, every message) takes 10 MiB, a seventh of what a sidecar needs, and is
needed for a moment. And a policy of a thousand rules takes most of a second, in which apps go on being served.

Theory of operation. Both processes hold one end of a wire (`proxy.processes.wires`). Over it goes one question, and
back comes one answer: the policy as a whole, or why there is none. The other process is a new Python, not a fork: this
one has threads, and all that the other one should not have.

Rules of this module:

- The environment goes over the wire, but for what a new Python itself needs: what the system shows of the other process
  has no secret at any moment. One that the policy names is read once. The answer names what was read, and this process
  then removes that from its own environment; when the policy is read again, the question has it.
- No signal but SIGKILL ends the other process: one that is sent to a whole group of processes is meant for this one.
  It has no other work, writes nothing, and ends with its answer, or when it is given up.
- Where memory is short, the system ends the other process, not this one.
- Whatever ends it, or keeps it from answering, is a policy that could not be read, and is said.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy import timelimits
from proxy.core.rules.policy import Policy
from proxy.disk.reading import Version, noting_files
from proxy.policyfile.refusal import PolicyError, PolicyErrors
from proxy.processes.secrecy import SecretVariables, keep_private, name_process
from proxy.processes.signals import DRAIN, RELOAD, REOPEN, ending
from proxy.processes.wires import new_wire, pack, receive, send, unframed, unpack

_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from proxy.processes.apart import serve_input; serve_input()"
# What the interpreter and the libraries below it read before any code of ours runs.
_OF_PYTHON = ("PYTHON", "LC_", "LANG", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "OPENSSL_")
_PIECE = 256 * 1024  # bytes that are taken from the wire at once


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be read.

    Attributes:
        path: the policy file; None for the built-in default.
        overrides: see `proxy.policyfile.load.load_policy`.
        environment: the environment of who asks.
        secrets: the variables that are in it no more, since they were read before.
    """

    path: Path | None
    overrides: Mapping[str, str]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it.

    Attributes:
        policy: the policy, with its roots; None if it cannot be used.
        errors: what is wrong in it.
        failure: why it cannot be used although nothing is wrong in it, in one line; "" for nothing.
        versions: the files that were read, also those that could not be, and the version of each.
        secrets: the variables of the environment that were read.
    """

    policy: Policy | None = None
    errors: tuple[PolicyError, ...] = ()
    failure: str = ""
    versions: Mapping[Path, Version] | None = None
    secrets: tuple[str, ...] = ()


class Reading:
    """A policy that is being read by another process.

    Attributes:
        descriptor: readable once there is something to hear.
        pid: the other process; None if the system allows no further one.
        status: how it ended, for whoever reaps all processes: a status, or a signal (negative).
        deadline: the time, by a clock that never goes back, at which it is given up.
    """

    def __init__(self, path: Path | None, overrides: Mapping[str, str], secrets: SecretVariables) -> None:
        """Begin.

        Args:
            path: the policy file; None for the built-in default.
            overrides: the values from the command line.
            secrets: the secret variables of this process.
        """
        self._secrets = secrets
        self._heard = bytearray()
        self.status: int | None = None
        self.deadline = time.monotonic() + timelimits.READ_POLICY_SECONDS
        self.pid: int | None = None
        self._ending = ""
        self._wire, theirs = new_wire()
        self.descriptor = self._wire.fileno()
        try:
            with theirs:
                self.pid = start(theirs)
        except OSError as e:
            self._ending = f"cannot be started: {(e.strerror or str(e)).lower()}"
        with contextlib.suppress(OSError):  # it has ended, or does not listen: `hear` finds out
            send(self._wire, pack(Question(path, overrides, dict(os.environ), secrets.kept)))
        self._wire.setblocking(False)

    def wait(self) -> Answer:
        """Wait for the answer."""
        while (answer := self.hear()) is None:
            select.select([self._wire], [], [], max(0.0, self.deadline - time.monotonic()))
        return answer

    def hear(self) -> Answer | None:
        """Return the answer if it is there; None if it is to be waited for."""
        try:
            data = self._wire.recv(_PIECE)
        except BlockingIOError:
            if time.monotonic() < self.deadline:
                return None
            self.give_up()
            return Answer(failure=f"reading it took more than {timelimits.READ_POLICY_SECONDS:.0f} s")
        except OSError:
            data = b""
        if not data:
            status = self.give_up()
            return Answer(failure=f"the process that reads it {self._ending or ending(status)}")
        self._heard += data
        for message in unframed(self._heard):
            self.give_up()
            answer = unpack(message, Answer)
            self._secrets.take(answer.secrets)
            return answer
        return None

    def leave_to_parent(self) -> None:
        """Do not listen: for a process that was forked meanwhile."""
        self._wire.close()

    def give_up(self) -> int:
        """End the other process, if it has not ended; return how it ended."""
        self._wire.close()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it was reaped already
                os.kill(self.pid, signal.SIGKILL)
                self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status or 0


def start(wire: socket.socket) -> int:
    """Start the other process, and return its number.

    Args:
        wire: its end of the wire, which becomes its standard input.

    Raises:
        OSError: the system allows no further process.
    """
    flags = ["-I" if sys.flags.isolated else "-P", *(["-B"] if sys.dont_write_bytecode else [])]
    return os.posix_spawn(
        sys.executable,
        [sys.executable, *flags, "-c", _CODE, str(Path(__file__).parents[2])],
        {name: value for name, value in os.environ.items() if name.startswith(_OF_PYTHON)},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, wire.fileno(), 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),  # standard output is for decision lines
        ],
        setsigmask=DRAIN | {RELOAD, REOPEN},
    )


def serve_input() -> None:
    """Answer the question that comes from standard input, and end this process."""
    answer_over(socket.socket(fileno=0))


def answer_over(wire: socket.socket) -> None:
    """Answer the question that comes over a wire, and end this process."""
    _be_the_first_to_go()
    keep_private()
    name_process("overcoat-reader")
    wire.settimeout(None)
    message = receive(wire)
    if message is not None:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            send(wire, pack(_answer(unpack(message, Question))))
    os._exit(0)


def _answer(question: Question) -> Answer:
    # Only the other process may import what reads a policy.
    from proxy.engine.roots import NoRoots, with_roots  # noqa: PLC0415  # see above
    from proxy.policyfile.load import load_policy  # noqa: PLC0415  # see above

    os.environ.clear()
    os.environ.update(question.environment)
    secrets, versions = SecretVariables(question.secrets), dict[Path, Version]()
    policy, errors, failure = None, tuple[PolicyError, ...](), ""
    try:
        with noting_files(versions):
            policy = with_roots(load_policy(question.path, os.environ, question.overrides, secrets))
    except PolicyErrors as e:
        errors = e.errors
    except NoRoots as e:
        failure = str(e)
    except Exception as e:  # whatever it is: the sidecar must go on serving
        failure = f"reading it failed with {type(e).__name__}"
    return Answer(policy, errors, failure, versions, tuple(secrets.taken))


def _be_the_first_to_go() -> None:
    """Ask the system to end this process first where memory is short (Linux)."""
    with contextlib.suppress(OSError):  # there is no such file elsewhere, or nobody may write it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
