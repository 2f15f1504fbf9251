"""`python -m proxy` is `overcoat`."""

from proxy.cli import main

main(prog_name="overcoat")
