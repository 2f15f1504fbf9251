"""Overcoat inside stock mitmproxy: mitmdump -s config/mitmproxy_addon.py --set overcoat_policy=overcoat.yaml

See docs/mitmproxy.md. This file only finds Overcoat's packages: beside this folder in a checkout, round it in a wheel.
"""

import sys
from pathlib import Path

_home = next(
    each for each in Path(__file__).resolve().parents if (each / "proxy").is_dir() and (each / "addons").is_dir()
)
sys.path.insert(0, str(_home))

from proxy.stock import Overcoat  # noqa: E402  # the path is set before

addons = [Overcoat()]
