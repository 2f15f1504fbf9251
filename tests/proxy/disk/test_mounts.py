"""Files that are mounts: what the kernel's list says, and what it means that a file has no name any more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.disk import mounts


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose name has a blank, as a mount of its own."""
    file = tmp_path / "a b.yaml"
    file.touch()
    table = tmp_path / "mountinfo"
    point = str(file).replace(" ", "\\040")
    table.write_text(f"22 1 0:5 / / rw - ext4 x rw\nbroken\n23 22 0:5 /q {point} ro,relatime - ext4 x rw\n")
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    return file


def test_a_file_is_a_mount_if_it_is_listed_under_its_own_name(listed: Path) -> None:
    assert mounts.is_mounted_by_itself(listed)
    link = listed.with_name("link.yaml")
    link.symlink_to(listed)
    assert mounts.is_mounted_by_itself(link)
    assert not mounts.is_mounted_by_itself(listed.with_name("other.yaml"))
    assert not mounts.is_mounted_by_itself(listed.parent)


def test_without_such_a_list_nothing_is_said(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_MOUNTS", listed.with_name("none"))
    assert not mounts.is_mounted_by_itself(listed)


def test_a_file_without_a_name_was_replaced(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    assert not mounts.is_replaced(file)
    assert not mounts.is_replaced(tmp_path / "none")
    descriptor = os.open(file, os.O_RDONLY)
    try:
        file.unlink()
        assert mounts.is_replaced(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)
