"""Ids are UUIDs, and no two are the same, in a child either."""

from __future__ import annotations

import os
import uuid

from addons.ids import id_of, next_number


def test_they_are_uuids_of_the_eighth_version_and_count_up() -> None:
    found = [id_of(next_number()) for _ in range(100)]
    assert len(set(found)) == 100
    for each in found:
        assert (uuid.UUID(each).version, str(uuid.UUID(each))) == (8, each)
        assert uuid.UUID(each).variant == uuid.RFC_4122


def test_a_child_has_others() -> None:
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, id_of(1).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read()[:24] != id_of(1)[:24]
    os.waitpid(child, 0)
