"""Runs `overcoat` and counts the steps of Python's interpreter (bytecodes) that it takes. `test_costs` runs it.

    python counted.py FILE serve -p POLICY

While FILE.on exists, steps are counted; FILE.counts says that counting has begun. Once FILE.on is gone, the number is
written to FILE, and behind it how many of them somebody waited for: those from where a socket is read to where
something is written. Only the thread of the event loop counts: what others do, such as the one that writes decision
lines, depends on time.
"""

import runpy
import sys
import threading
import time
from pathlib import Path
from types import CodeType

from proxy.engine.transport import SocketTransport

TOOL = 3


class Counter:
    def __init__(self) -> None:
        self.steps = self.waited = self._since = 0
        self._loop = threading.main_thread().ident
        events = sys.monitoring.events
        sys.monitoring.use_tool_id(TOOL, "counted")
        sys.monitoring.register_callback(TOOL, events.INSTRUCTION, self.count)
        sys.monitoring.register_callback(TOOL, events.PY_START, self.begin)
        for function in (SocketTransport._read, SocketTransport.write):
            sys.monitoring.set_local_events(TOOL, function.__code__, events.PY_START)

    def begin(self, code: CodeType, _at: int) -> None:
        """Note that a socket is read, or something is written."""
        if code is SocketTransport.write.__code__:
            self.waited += self.steps - self._since
        self._since = self.steps

    def count(self, _code: CodeType, _at: int) -> None:
        if threading.get_ident() == self._loop:
            self.steps += 1

    def watch(self, file: Path) -> None:
        """Count as often as it is asked for."""
        wanted, begun = (file.with_name(f"{file.name}.{what}") for what in ("on", "counts"))
        while True:
            while not wanted.exists():
                time.sleep(0.01)
            self.steps = self.waited = self._since = 0
            sys.monitoring.set_events(TOOL, sys.monitoring.events.INSTRUCTION)
            begun.touch()
            while wanted.exists():
                time.sleep(0.01)
            sys.monitoring.set_events(TOOL, 0)
            begun.write_text(f"{self.steps} {self.waited}")
            begun.replace(file)


if __name__ == "__main__":
    threading.Thread(target=Counter().watch, args=(Path(sys.argv.pop(1)),), daemon=True).start()
    sys.argv[0] = "overcoat"
    runpy.run_module("overcoat", run_name="__main__")
