"""Has a sidecar read its policy again, and replaces its files. Tests call it whose policy changes while it runs."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from pathlib import Path

from tests.e2e.sidecar import Sidecar, overcoat_command
from tests.waiting import wait_until


def reload(sidecar: Sidecar, policy: str | None = None, result: str = "taken") -> None:
    """Have the policy read again, and wait until it was.

    Args:
        sidecar: the sidecar.
        policy: what is written into the policy file before; None to leave it as it is.
        result: how it must end: `taken`, `unchanged` or `refused`.
    """

    def count() -> float:
        return sidecar.metrics().value("overcoat_policy_reloads_total", result=result)

    before = count()
    if policy is not None:
        sidecar.write_policy(policy)
    sidecar.signal(signal.SIGHUP)
    wait_until(lambda: count() > before, f"the policy is {result}", seconds=20)


def cannot_mount(folder: Path) -> str:
    """Return why no mount namespace can be had here, or nothing."""
    if shutil.which("unshare") is None:
        return "there is no unshare here"
    probe = folder / "probe"
    probe.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "mount", "--bind", str(probe), str(probe)], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"nothing can be mounted here: {done.stderr.strip()}"


def mounted(outside: Path, inside: Path, options: str = "rw") -> list[str]:
    """Return the command that runs Overcoat where `inside` shows what lies `outside`, as a container would."""
    place = shlex.quote(str(inside))
    script = (
        f"mount --bind {shlex.quote(str(outside))} {place} && mount -o remount,bind,{options} {place} "
        '&& cd "$PWD" && exec "$@"'
    )
    return ["unshare", "-m", "sh", "-c", script, "sh", *overcoat_command()]


def edit(path: Path, text: str) -> None:
    """Change a file as editors and deployments do: a new one takes its name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
