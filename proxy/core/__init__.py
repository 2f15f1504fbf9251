"""The decisions, as pure functions on plain values: no I/O, no clock of its own, no mitmproxy."""
