"""The launcher, which the command `overcoat` and `python -m overcoat` run: it puts Overcoat's own packages first on the
import path, and then runs `proxy.cli`.

Rules of this module:

- `proxy` and `addons` are names that others use, too: proxy.py's wheel, or a folder on PYTHONPATH or in the working
  directory. So a wheel has ours inside the package `overcoat`, and their folder comes first on the path.
- Nothing of ours, and nothing that is slow to import, is imported before that.
- The image runs `overcoat healthcheck` every few seconds, without options. This takes a short path of its own:
  importing the other commands takes longer than the check may take (see `proxy.health`).
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
