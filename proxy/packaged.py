"""Where the files of `config/` are: beside the packages in a checkout, inside them in a wheel."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def config_file(name: str) -> Path:
    """Return the path of a file of `config/`.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    for directory in (_HERE / "files", _HERE.parent / "config"):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(name)
