"""Writes the demo's output as a picture: `python docs/picture.py demo.svg`, then any SVG renderer makes it a PNG."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from proxy.commands.demo import show
from proxy.demo.cases import run_cases


def main(target: Path) -> None:
    """Run the demo and write its picture."""
    with tempfile.TemporaryDirectory() as directory:
        cases = run_cases(Path(directory))
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=150, file=nowhere, force_terminal=True)
        show(cases, console)
    svg = console.export_svg(title="make demo")
    # The picture must not need fonts from elsewhere, and must keep the indentation.
    svg = svg.replace("<text ", '<text xml:space="preserve" ')
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
