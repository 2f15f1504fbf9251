"""Key files: who may read them, what may be one, and that none is overwritten."""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
from pathlib import Path

import pytest

from proxy.core.jose.keys import Alg, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.disk.keyfiles import KeyFileError, check_permissions, create_file, exclusively, read_key_file, replace_file

KEY = new_key(Alg.ECDH_ES_A256KW)
SECRET = to_pem(KEY, private=True)
PUBLIC = to_pem(KEY, private=False)


def _file(folder: Path, data: bytes, mode: int) -> Path:
    path = folder / "a key.pem"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o611])
def test_a_secret_key_that_only_its_owner_can_read_is_read(tmp_path: Path, mode: int) -> None:
    assert read_key_file(_file(tmp_path, SECRET, mode), unsafe_permissions=False) == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o444])
def test_a_secret_key_that_others_have_access_to_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    path = _file(tmp_path, SECRET, mode)
    with pytest.raises(KeyFileError) as caught:
        read_key_file(path, unsafe_permissions=False)
    message = str(caught.value)
    assert message.startswith(f"{path}: mode {mode:04o} ")
    assert f"chmod 600 '{path}'" in message
    assert "--unsafe-key-permissions" in message
    assert "\n" not in message


def test_it_is_read_if_that_is_said_to_be_meant(tmp_path: Path) -> None:
    assert read_key_file(_file(tmp_path, SECRET, 0o444), unsafe_permissions=True) == SECRET


def test_a_public_key_may_be_readable_by_all(tmp_path: Path) -> None:
    assert read_key_file(_file(tmp_path, PUBLIC, 0o644), unsafe_permissions=False) == PUBLIC


@pytest.mark.parametrize("content", [b'{"kty": "any', b"{}", b"x\n-----BEGIN ANYTHING-----\n"])
def test_what_may_be_a_key_counts_as_secret(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(KeyFileError, match="mode 0644"):
        read_key_file(_file(tmp_path, content, 0o644), unsafe_permissions=False)


@pytest.mark.parametrize("content", [b"", b"anything"])
def test_what_is_no_key_is_read_by_whom_refuses_it_as_that(tmp_path: Path, content: bytes) -> None:
    assert read_key_file(_file(tmp_path, content, 0o644), unsafe_permissions=False) == content


def test_a_mounted_secret_behind_a_symbolic_link_is_read(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(_file(tmp_path, SECRET, 0o600))
    assert read_key_file(link, unsafe_permissions=False) == SECRET


def test_a_file_of_64_kib_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    limit = 64 * 1024
    assert len(read_key_file(_file(tmp_path, b"x" * limit, 0o600), unsafe_permissions=False)) == limit
    with pytest.raises(KeyFileError, match="larger than 64 KiB"):
        read_key_file(_file(tmp_path, b"x" * (limit + 1), 0o600), unsafe_permissions=False)


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_key_file(path, unsafe_permissions=False)


@pytest.mark.parametrize("path", [Path("/dev/null"), Path("/")], ids=["device", "directory"])
def test_a_device_or_directory_is_refused(path: Path) -> None:
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_key_file(path, unsafe_permissions=True)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # socket names are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(OSError, match="'s'"):
            read_key_file(Path("s"), unsafe_permissions=False)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_key_file(tmp_path / "none", unsafe_permissions=False)


def test_the_mode_alone_decides_in_the_check_by_itself() -> None:
    check_permissions(Path("k"), stat.S_IFREG | 0o600)
    with pytest.raises(KeyFileError, match=re.escape("k: mode 0640 lets others at a secret key: chmod 600 k ")):
        check_permissions(Path("k"), stat.S_IFREG | 0o640)


def test_a_new_file_has_the_mode_and_the_content(tmp_path: Path) -> None:
    path = tmp_path / "new"
    create_file(path, SECRET, mode=0o600)
    assert path.read_bytes() == SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten_not_even_through_a_dangling_link(tmp_path: Path) -> None:
    there = _file(tmp_path, PUBLIC, 0o600)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (there, link):
        with pytest.raises(FileExistsError):
            create_file(path, SECRET, mode=0o600)
    assert there.read_bytes() == PUBLIC
    assert not (tmp_path / "nowhere").exists()


def test_of_a_file_that_cannot_be_written_nothing_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("proxy.disk.keyfiles.open", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        create_file(tmp_path / "new", SECRET, mode=0o600)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_in_one_step_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "set.jwks"
    replace_file(path, b"one", mode=0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    before = path.stat().st_ino
    (tmp_path / "link").symlink_to(path)
    replace_file(tmp_path / "link", b"two", mode=0o644)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o600)
    assert path.stat().st_ino != before
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_cannot_be_replaced_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.jwks"
    replace_file(path, b"one", mode=0o600)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"two", mode=0o600)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_somebody_else_stays_theirs(tmp_path: Path) -> None:
    path = tmp_path / "set.jwks"
    replace_file(path, b"one", mode=0o600)
    os.chown(path, 12345, 12345)
    replace_file(path, b"two", mode=0o600)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


def test_one_call_at_a_time_has_a_folder_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "set.jwks"
    path.write_bytes(b"")
    (tmp_path / "link").symlink_to(path)
    order: list[str] = []

    def other() -> None:
        with exclusively(tmp_path / "link"):
            order.append("second")

    with exclusively(path) as real:
        assert real == path
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    with pytest.raises(FileNotFoundError), exclusively(tmp_path / "none"):
        pass
