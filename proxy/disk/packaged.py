"""Finds the files of `config/` that come with Overcoat: beside the packages in a checkout, inside them in a wheel. The
demo calls it.
"""

from __future__ import annotations

from pathlib import Path

_PROXY = Path(__file__).resolve().parents[1]


def config_file(name: str) -> Path:
    """Return the path of a file of `config/`.

    Raises:
        FileNotFoundError: there is no file with that name.
    """
    for directory in (_PROXY / "files", _PROXY.parent / "config"):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(name)
