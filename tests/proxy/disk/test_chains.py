"""What hosts have shown last: it is kept, replaced and bounded, and a damaged file counts as none."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from proxy.core.pins import Pin
from proxy.disk.chains import FILE, MOST_HOSTS, SeenChain, read_chains, remember_chains

ONE, TWO = Pin("spki", bytes(range(32))), Pin("certificate", bytes(range(1, 33)))
MONDAY, TUESDAY = date(2027, 3, 1), date(2027, 3, 2)


def test_what_is_remembered_is_read_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert read_chains(folder) == {}
    remember_chains(folder, {"a.example:443": [ONE, TWO], "b.example:443": [ONE]}, MONDAY)
    file = remember_chains(folder, {"a.example:443": [TWO]}, TUESDAY)
    assert file == folder / FILE
    assert read_chains(folder) == {
        "a.example:443": SeenChain(TUESDAY, frozenset((TWO,))),
        "b.example:443": SeenChain(MONDAY, frozenset((ONE,))),
    }


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    remember_chains(tmp_path, {"old.example:443": [ONE]}, MONDAY)
    remember_chains(tmp_path, {f"h{number}.example:443": [ONE] for number in range(MOST_HOSTS)}, TUESDAY)
    found = read_chains(tmp_path)
    assert (len(found), "old.example:443" in found) == (MOST_HOSTS, False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 2, "hosts": {}}',
        b'{"version": 1, "hosts": []}',
        b'{"version": 1, "hosts": {"a": {"day": "2027-03-01", "pins": ["no pin"]}}}',
        b'{"version": 1, "hosts": {"a": {"day": 1, "pins": []}}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_file_is_none_and_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert read_chains(tmp_path) == {}
    remember_chains(tmp_path, {"a.example:443": [ONE]}, MONDAY)
    assert list(json.loads((tmp_path / FILE).read_bytes())["hosts"]) == ["a.example:443"]
