"""Signs: who left them, where they count, and when."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from proxy import health
from proxy.health import NotReady, Sign, check, data_folder


def found(folder: Path, policy: str | None = None) -> list[str]:
    """Return the addresses that would be asked."""
    return list(health._found({"OVERCOAT_DATA": str(folder)}, policy))


def test_a_sign_counts_from_when_it_is_made_until_it_is_taken_away(tmp_path: Path) -> None:
    sign = Sign(str(tmp_path), "127.0.0.1:1", None)
    assert found(tmp_path) == ["127.0.0.1:1"]
    sign.take_away()
    with pytest.raises(NotReady, match="no sidecar has left"):
        found(tmp_path)


def test_only_those_with_the_policy_that_is_named_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signs = [Sign(str(tmp_path), f"127.0.0.1:{n}", name) for n, name in enumerate(["a.yaml", "b.yaml", None], start=1)]
    assert found(tmp_path, "b.yaml") == found(tmp_path, str(tmp_path / "b.yaml")) == ["127.0.0.1:2"]
    assert sorted(found(tmp_path)) == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    with pytest.raises(NotReady, match=r"no sidecar of c\.yaml"):
        found(tmp_path, "c.yaml")
    for sign in signs:
        sign.take_away()


def test_one_that_runs_in_the_same_environment_is_meant_whatever_its_flags_say(tmp_path: Path) -> None:
    sign = Sign(str(tmp_path), "127.0.0.1:1", "/etc/overcoat/other.yaml", "/etc/overcoat/overcoat.yaml")
    for name, count in (("overcoat", 1), ("other", 1), ("third", 0)):
        env = {"OVERCOAT_DATA": str(tmp_path), "OVERCOAT_POLICY": f"/etc/overcoat/{name}.yaml"}
        if count:
            assert list(health._found(env, None)) == ["127.0.0.1:1"]
        else:
            with pytest.raises(NotReady, match=r"no sidecar of /etc/overcoat/third\.yaml"):
                list(health._found(env, None))
    with pytest.raises(NotReady, match="no sidecar of"):
        found(tmp_path, "/etc/overcoat/overcoat.yaml")  # a flag names the file itself
    sign.take_away()


def test_one_of_another_network_namespace_is_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign = Sign(str(tmp_path), "127.0.0.1:1", None)
    monkeypatch.setattr(health, "_network", lambda: "net:[1]")
    with pytest.raises(NotReady, match="no sidecar has left"):
        found(tmp_path)
    sign.take_away()


@pytest.mark.parametrize("text", ["", "127.0.0.1:1\n", "127.0.0.1:1\n\n\n\n\n", "\0" * 100_000])
def test_a_file_that_nobody_holds_is_none_and_is_cleared_away(tmp_path: Path, text: str) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "1-dead").write_text(text)
    (tmp_path / "running" / "2-half.new").write_text(text)
    with pytest.raises(NotReady, match="no sidecar has left"):
        found(tmp_path)
    sign = Sign(str(tmp_path), "127.0.0.1:1", None)
    assert sorted(path.name for path in (tmp_path / "running").iterdir() if path != Path(sign.path)) == ["2-half.new"]
    sign.take_away()


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ({"OVERCOAT_PROBES": "0.0.0.0:9465", "OVERCOAT_ADMIN": "127.0.0.1:9464"}, "0.0.0.0:9465"),
        ({"OVERCOAT_PROBES": "off", "OVERCOAT_ADMIN": "127.0.0.1:9464"}, "127.0.0.1:9464"),
        ({"OVERCOAT_ADMIN": "off"}, None),
        ({}, None),
    ],
)
def test_where_none_can_be_left_the_environment_says_whom_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], asked: str | None
) -> None:
    env = {"OVERCOAT_DATA": str(tmp_path), **told}
    with pytest.raises(NotReady, match="no sidecar has left"):  # one could have been left, and was not
        list(health._found(env, None))
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    if asked is None:
        with pytest.raises(NotReady, match="no sidecar has left"):
            list(health._found(env, None))
    else:
        assert list(health._found(env, None)) == [asked]


def test_nobody_else_may_leave_one(tmp_path: Path) -> None:
    sign = Sign(str(tmp_path / "a" / "data"), "127.0.0.1:1", None)
    for path in (tmp_path / "a" / "data", tmp_path / "a" / "data" / "running"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert Path(sign.path).stat().st_mode & 0o777 == 0o600
    sign.take_away()


def test_taking_away_what_somebody_cleared_is_no_error(tmp_path: Path) -> None:
    sign = Sign(str(tmp_path), "127.0.0.1:1", None)
    Path(sign.path).unlink()
    sign.take_away()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_one_that_stands_for_all_addresses_is_called_at_loopback(family: int, host: str) -> None:
    wildcard = {"127.0.0.1": "0.0.0.0", "::1": "[::]"}[host]
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen()
        listener.settimeout(5)
        asking = threading.Thread(
            target=check, kwargs={"env": {}, "address": f"{wildcard}:{listener.getsockname()[1]}"}
        )
        asking.start()
        with listener.accept()[0] as client:
            asked = client.recv(4096)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        asking.join()
    assert asked.startswith(b"GET /ready HTTP/1.0\r\n")


@pytest.mark.parametrize("address", ["", "x", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "[::1:1"])
def test_an_address_that_is_none_is_no_answer(address: str) -> None:
    with pytest.raises(NotReady, match="no answer from"):
        check({}, address=address)


def test_without_a_home_there_is_nowhere_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(RuntimeError, match="set OVERCOAT_DATA"):
        data_folder({})
    with pytest.raises(NotReady, match="set OVERCOAT_DATA"):
        check({})
