"""Overcoat's version, which the metrics and the status page show. pyproject.toml has the same
(`tests/proxy/test_version.py`).

`importlib.metadata` would say it, too, but it takes close to a MiB of each process, with readers of mails and of zip
files.
"""

from __future__ import annotations

VERSION = "0.1.0"
