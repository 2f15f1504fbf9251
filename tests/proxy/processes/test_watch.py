"""When a change of files counts, by a clock of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import timelimits
from proxy.disk.reading import Version, noting_files, read_regular
from proxy.processes.watch import Watch


def read(*paths: Path) -> dict[Path, Version]:
    """Read files as the policy's reader does; return what was noted."""
    versions: dict[Path, Version] = {}
    with noting_files(versions):
        for path in paths:
            try:
                read_regular(path, 100)
            except OSError:
                assert path in versions
    return versions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"first")
    return tmp_path / "file"


def replace_with_same_size_and_time(path: Path) -> None:
    status = path.stat()
    new = path.with_name("new")
    new.write_bytes(b"other")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def swap_links(path: Path) -> None:
    """What it leads to was made before the file was read."""
    path.with_name("link").replace(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"longer than it was"),
        replace_with_same_size_and_time,
        swap_links,
        lambda path: path.unlink(),
        lambda path: path.chmod(0o640),
    ],
)
def test_a_change_counts_once_two_looks_find_the_same(file: Path, change: Callable[[Path], object]) -> None:
    (file.parent / "other").write_bytes(b"other")
    (file.parent / "link").symlink_to("other")
    watch = Watch(read(file))
    assert watch.look(0) == watch.look(1) == []
    change(file)
    assert watch.look(2) == []
    assert watch.look(3) == [file]
    watch.was_read(read(file), 3, 3, in_vain=False)
    assert watch.look(4) == watch.look(5) == []


def test_what_still_changes_is_waited_for_but_not_for_ever(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"")
    watch = Watch(read(file, other))
    other.write_bytes(b"x")
    for second in range(int(timelimits.UNRESTING_SECONDS)):
        file.write_bytes(b"x" * second)
        assert watch.look(second) == []
    file.write_bytes(b"")
    assert watch.look(timelimits.UNRESTING_SECONDS) == [file, other]


def test_the_wait_begins_anew_with_each_reading(file: Path) -> None:
    watch = Watch(read(file))
    file.write_bytes(b"x")
    assert watch.look(0) == []
    watch.was_read(read(file), 0, 0, in_vain=False)  # by a signal
    file.write_bytes(b"y")
    assert watch.look(timelimits.UNRESTING_SECONDS) == []


def test_and_once_all_is_as_it_was(file: Path) -> None:
    (file.parent / "other").write_bytes(b"other")
    link = file.with_name("link")

    def lead(name: str) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(name)

    lead("file")
    watch = Watch(read(link))
    lead("other")
    assert watch.look(0) == []
    lead("file")
    assert watch.look(1) == []
    lead("other")
    assert watch.look(timelimits.UNRESTING_SECONDS) == []


@pytest.mark.parametrize("index", [1, 2])
def test_another_file_counts_however_alike(file: Path, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    watch = Watch(read(file))
    status = list(file.stat())
    status[index] += 1  # inode, device
    times = file.stat()
    alike = os.stat_result(status, {"st_mtime_ns": times.st_mtime_ns, "st_ctime_ns": times.st_ctime_ns})
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda _: alike)
        found = [watch.look(0), watch.look(1)]
    assert found == [[], [file]]


def test_a_file_that_comes_counts(tmp_path: Path) -> None:
    versions = read(tmp_path / "missing")
    assert versions == {tmp_path / "missing": None}
    watch = Watch(versions)
    (tmp_path / "missing").touch()
    assert watch.look(0) == []
    assert watch.look(1) == [tmp_path / "missing"]


def test_what_was_not_read_does_not_count(file: Path) -> None:
    watch = Watch(read(file))
    watch.was_read(read(file.with_name("missing")), 0, 0, in_vain=False)
    file.write_bytes(b"changed")
    assert watch.look(1) == watch.look(2) == []


def test_reading_in_vain_takes_a_twentieth_of_the_time_at_most(file: Path) -> None:
    watch = Watch({file: (0,)})  # as on a file system that says something new each time
    watch.look(0)
    assert watch.look(1) == [file]
    watch.was_read({file: (0,)}, 10, 12, in_vain=True)
    watch.look(13)
    assert watch.look(49.9) == []
    assert watch.look(50) == [file]


def test_after_a_true_change_the_next_is_read_at_once(file: Path) -> None:
    watch = Watch({file: (0,)})
    watch.was_read({file: (0,)}, 10, 12, in_vain=False)
    watch.look(12)
    assert watch.look(12.5) == [file]


def test_what_could_not_be_read_is_read_later(file: Path) -> None:
    watch = Watch({file: (0,)})
    watch.was_not_read(10, 12)
    watch.look(12)
    assert watch.look(12 + timelimits.READ_AGAIN_SECONDS - 0.1) == []
    assert watch.look(12 + timelimits.READ_AGAIN_SECONDS) == [file]
