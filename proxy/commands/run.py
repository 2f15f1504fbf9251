"""`overcoat run` runs a program with a sidecar of its own: it starts the sidecar, sets the variables by which programs
find it and trust it, runs the program, and says at the end what was done (`proxy.wearing`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from proxy.commands.failed import Failed
from proxy.commands.runreport import Report, say

if TYPE_CHECKING:
    from proxy.wearing.sidecar import Sidecar


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-p",
    "--policy",
    "policy_path",
    type=click.Path(),
    metavar="FILE",
    help="The policy file; else $OVERCOAT_POLICY, ./overcoat.yaml, the built-in default.",
)
@click.option("--mode", type=click.Choice(["enforce", "observe"]), help="The mode instead of the policy's.")
@click.option("--lines", metavar="FILE", help="Append decision lines to FILE; - is standard error.")
@click.option("--private-roots", is_flag=True, help="Let CMD find the local CA among the system's roots, too (Linux).")
@click.option("--wait", "for_all", is_flag=True, help="Wait for all that CMD has started, too (Linux).")
@click.option("--json", "as_json", is_flag=True, help="Say at the end as JSON what was done.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing at the end.")
@click.argument("command", nargs=-1, required=True, metavar="-- CMD [ARGUMENT]…", type=click.UNPROCESSED)
def run(
    *,
    policy_path: str | None,
    mode: str | None,
    lines: str | None,
    private_roots: bool,
    for_all: bool,
    as_json: bool,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run CMD with a sidecar of its own on a free port, for as long as CMD runs.

    CMD gets the variables by which common runtimes find the sidecar and trust its local CA; its terminal, signals and
    exit status are as without. At the end standard error says what was done. The exit status is CMD's, or 128 and the
    signal's number; 127 if there is no CMD, 126 if it cannot be run, 2 for a wrong policy, 1 if the sidecar fails.

    --private-roots is for programs that read no variable (Dart and Flutter, for one): CMD sees the local CA among the
    system's roots, and nobody else does.

    Example: overcoat run -p overcoat.yaml -- curl http://api.pay.example/v1/charges
    """
    from proxy.wearing.program import CannotRun, end_like, find
    from proxy.wearing.variables import BUNDLE

    try:
        path = find(command[0])
        with contextlib.ExitStack() as closing:
            sink = _sink(lines, closing)
            folder = closing.enter_context(_public_folder())
            arguments = [] if policy_path is None else ["--policy", policy_path]
            arguments += [] if mode is None else ["--mode", mode]
            status = _run(
                path,
                command,
                folder,
                arguments,
                sink,
                roots=str(folder / BUNDLE) if private_roots else None,
                for_all=for_all,
                as_json=as_json,
                quiet=quiet,
            )
    except CannotRun as e:
        raise Failed(str(e), e.status) from None
    end_like(status)


def _run(
    path: str,
    command: Sequence[str],
    folder: Path,
    arguments: Sequence[str],
    sink: IO[str] | None,
    *,
    roots: str | None,
    for_all: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the program; return its exit status, negative for a signal."""
    from proxy.wearing.program import Program, Signals, left_behind
    from proxy.wearing.seen import Watch, children_of
    from proxy.wearing.sidecar import Sidecar, SidecarFailed
    from proxy.wearing.tally import Tally

    tally = Tally()

    def take(line: dict[str, Any], text: str) -> None:
        nonlocal sink
        tally.take(line)
        if sink is not None:
            try:
                sink.write(text)
                sink.flush()
            except OSError as e:  # a full disk: the program goes on, and so does the count of what it does
                with contextlib.suppress(OSError):  # what is still in its buffer fails once more
                    sink.close()
                sink = None
                _warn(f"warning: decision lines are not written any more: {os.strerror(e.errno or 0).lower()}")

    # The sidecar begins with the signals as they are; its port is one that is free.
    own = ["--listen", "forward://127.0.0.1:0", "--admin", "off", "--probes", "off", "--publish-ca", str(folder)]
    own += ["--log-format", "json"]  # whatever variables say of forms: it is read here
    sidecar = Sidecar([*own, *arguments])
    try:
        signals = Signals()
        sidecar.listen_to(take, _warn)
        address = sidecar.wait_until_ready(lambda: signals.asks_to_end() is not None)
        if address is None:
            return -(signals.asks_to_end() or 0)
        environment = _environment(f"http://{address}", folder, sidecar.secrets)
        program = Program(path, command, environment, signals, roots)
        watch = Watch(lambda: [pid for pid in children_of(os.getpid()) if pid != sidecar.pid])
        guard = _Guard(sidecar, command[0])
        status = program.wait(sidecar.pid, guard.look, for_all=for_all)
        watch.end()
        left = left_behind({sidecar.pid})
    except SidecarFailed as e:
        click.echo(e, err=True)
        return e.status
    finally:
        sidecar.end()
    if not quiet:
        report = Report(command[0], status, tally, watch, left, guard.has_ended)
        report.print_json() if as_json else report.print()
    return status


class _Guard:
    """Says at once when the sidecar ends before the program does.

    Attributes:
        has_ended: whether it has.
    """

    def __init__(self, sidecar: Sidecar, name: str) -> None:
        self._sidecar = sidecar
        self._name = name
        self.has_ended = False

    def look(self) -> None:
        """Look whether it still runs."""
        if self.has_ended or (status := self._sidecar.ended()) is None:
            return
        self.has_ended = True
        how = f"of signal {-status}" if status < 0 else f"with status {status}"
        _warn(f"error: the sidecar has ended {how}: {self._name} has no way out through it any more")


def _environment(proxy: str, folder: Path, secrets: Sequence[str]) -> dict[str, str]:
    """Return the program's variables.

    Args:
        proxy: the sidecar's URL.
        folder: where the sidecar has written what programs trust.
        secrets: variables that the policy has read a secret from, which the program has no business with.
    """
    from proxy.wearing.own import NotReadable, write_own
    from proxy.wearing.program import CannotRun
    from proxy.wearing.variables import PROXIES, Coat

    before = {name: value for name, value in os.environ.items() if name not in secrets}
    if secrets:
        _warn(f"note: not handed on, since the policy reads a secret from it: {', '.join(secrets)}")
    if others := sorted({name for name in PROXIES if before.get(name)}):
        _warn(f"note: replaced: {', '.join(others)}; what was there belongs in the policy's upstream_proxy")
    try:
        return before | Coat(proxy, str(folder), write_own(folder, before)).variables(before)
    except (NotReadable, ValueError) as e:
        raise CannotRun(str(e), 1) from None
    except OSError as e:
        raise CannotRun(f"{folder} cannot be written: {e.strerror}", 1) from None


@contextlib.contextmanager
def _public_folder() -> Iterator[Path]:
    """Make a folder that everybody may read, since CMD may run things as others, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="overcoat-") as name:
        os.chmod(name, 0o755)  # noqa: S103  # only public parts go there
        yield Path(name)


def _sink(lines: str | None, closing: contextlib.ExitStack) -> IO[str] | None:
    """Return where decision lines go; never to standard output, which is CMD's."""
    from proxy.processes.decisionlines import open_lines
    from proxy.wearing.program import CannotRun

    if lines is None:
        return None
    if lines == "-":
        return sys.stderr
    try:
        return closing.enter_context(os.fdopen(open_lines(Path(lines)), "w", encoding="utf-8"))
    except OSError as e:
        raise CannotRun(f"decision lines cannot be written to {lines}: {(e.strerror or str(e)).lower()}", 1) from None


def _warn(text: str) -> None:
    colour = {"error": "red", "warning": "yellow"}.get(text.partition(":")[0])
    say(text, colour)
