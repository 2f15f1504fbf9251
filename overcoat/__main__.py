"""`overcoat`, and `python -m overcoat`: finds Overcoat's own packages before anything else is looked at.

Rules of this module:

- `proxy` and `addons` are names that others have, too: proxy.py's wheel, a folder on PYTHONPATH or in the working
  directory. So a wheel has ours inside the package `overcoat`, and the folder that they are in comes first on the path.
- Nothing of ours, and nothing that is slow to import, is imported before that is done.
- `overcoat healthcheck` as the image runs it, every few seconds and without options, goes its own short way: what the
  other commands are made of takes longer to import than it has (see `proxy.health`).
"""

from __future__ import annotations

import os.path
import sys


def main() -> None:
    """Run the command with the arguments of this process."""
    here = os.path.dirname(os.path.abspath(__file__))
    is_checkout = not os.path.isdir(os.path.join(here, "proxy"))
    sys.path.insert(0, os.path.dirname(here) if is_checkout else here)
    if sys.argv[1:] == ["healthcheck"]:
        from proxy.health import main as healthcheck

        sys.exit(healthcheck())
    from proxy.cli import main as command

    command(prog_name="overcoat")


if __name__ == "__main__":
    main()
