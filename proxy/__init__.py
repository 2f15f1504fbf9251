"""Overcoat itself: the command `overcoat`, and a folder for each part of it. The launcher in `overcoat/` and stock
mitmproxy (`config/mitmproxy_addon.py`) start here. What each folder is for stands in ARCHITECTURE.md, under "The
house".

Offers:

- `cli`: main; the command, for the launcher
- `health`: READY_SECONDS, NotReady, Sign, address_text, check, data_folder, main; whether a running sidecar is ready
- `log`: describe, say_all_in_one_form; how messages and errors are written to stderr
"""
