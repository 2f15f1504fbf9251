"""Runs `overcoat` and counts the steps of Python's interpreter (bytecodes) that it takes. `test_costs` runs it.

    python counted.py FILE serve -p POLICY

While FILE.on exists, steps are counted; FILE.counts says that counting has begun. Once FILE.on is gone, the number is
written to FILE. What the thread that writes decision lines does is left out: that depends on time.
"""

import runpy
import sys
import threading
import time
from pathlib import Path
from types import CodeType

LEFT_OUT = ("threading.py", "counted.py")
TOOL = 3


class Counter:
    def __init__(self) -> None:
        self.steps: dict[CodeType, int] = {}
        sys.monitoring.use_tool_id(TOOL, "counted")
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.INSTRUCTION, self.count)

    def count(self, code: CodeType, _at: int) -> None:
        self.steps[code] = self.steps.get(code, 0) + 1

    def total(self) -> int:
        """Return the number of steps, without those that depend on time."""
        return sum(
            count
            for code, count in list(self.steps.items())
            if not code.co_filename.endswith(LEFT_OUT) and not code.co_qualname.startswith("LineWriter._")
        )

    def watch(self, file: Path) -> None:
        """Count as often as it is asked for."""
        wanted, begun = (file.with_name(f"{file.name}.{what}") for what in ("on", "counts"))
        while True:
            while not wanted.exists():
                time.sleep(0.01)
            self.steps.clear()
            sys.monitoring.set_events(TOOL, sys.monitoring.events.INSTRUCTION)
            begun.touch()
            while wanted.exists():
                time.sleep(0.01)
            sys.monitoring.set_events(TOOL, 0)
            begun.write_text(str(self.total()))
            begun.replace(file)


if __name__ == "__main__":
    threading.Thread(target=Counter().watch, args=(Path(sys.argv.pop(1)),), daemon=True).start()
    sys.argv[0] = "overcoat"
    runpy.run_module("overcoat", run_name="__main__")
