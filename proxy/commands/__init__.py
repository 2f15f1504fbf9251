"""The subcommands of `overcoat`, one module for each group of them. `proxy.cli` imports such a module when its command
is used; slow imports are inside the functions, so that `--help` is fast.
"""
