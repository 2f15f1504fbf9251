"""What stands in the way of a start, asked without starting; the whole list is tried on the command, in e2e."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.core.rules.policy import Listener, Policy
from proxy.disk.ca import CERTIFICATE_FILE, LocalCa
from proxy.processes.starting import obstacles

POLICY = Policy(listen=(Listener("127.0.0.1", 0),), admin=None)


def test_nothing_is_made(tmp_path: Path) -> None:
    assert obstacles(POLICY, {"OVERCOAT_DATA": str(tmp_path / "a" / "b")}) == []
    assert list(tmp_path.iterdir()) == []


def test_addresses_of_all_kinds_are_tried_and_those_in_use_are_passed_over(tmp_path: Path) -> None:
    env = {"OVERCOAT_DATA": str(tmp_path)}
    elsewhere = Listener("192.0.2.1", 0)
    policy = replace(POLICY, listen=(POLICY.listen[0], elsewhere), admin=elsewhere, probes=elsewhere)
    assert [each.partition(": ")[0] for each in obstacles(policy, env)] == [
        "cannot listen on forward://192.0.2.1:0",
        "cannot listen on 192.0.2.1:0 (admin)",
        "cannot listen on 192.0.2.1:0 (probes)",
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = Listener("127.0.0.1", taken.getsockname()[1])
        assert obstacles(replace(POLICY, listen=(used,), admin=used), env) == []


def test_a_place_that_may_not_be_written_is_one_only_where_something_is_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalCa.open(tmp_path, datetime.now(UTC))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for another user, which root never is
    env = {"OVERCOAT_DATA": str(tmp_path)}
    assert obstacles(POLICY, env) == []
    (tmp_path / CERTIFICATE_FILE).unlink()
    (said,) = obstacles(POLICY, env)
    assert said == (
        f"the local CA in {tmp_path} cannot be read or written: Permission denied; "
        "set OVERCOAT_DATA to a directory that this user owns"
    )
    (said,) = obstacles(POLICY, {"OVERCOAT_DATA": str(tmp_path / "new")})
    assert "Permission denied" in said


def test_no_home_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    (said,) = obstacles(POLICY, {})
    assert said.startswith("there is no home directory")
