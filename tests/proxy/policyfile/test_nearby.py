"""What lies in place of a policy file: told in words, and never read."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from proxy.policyfile.nearby import is_there, may_be_secret, missing, nearly_named, unreadable, what_lies_there


@pytest.mark.parametrize(
    "name",
    [
        *("overcoat.yml", "Overcoat.yaml", "OVERCOAT.YML", "overcoats.yaml", "overcaot.yaml", "overcoat.ymal"),
        *("overcoat.yaml.txt", "overcoat.yaml.bak", ".overcoat.yaml", "policy.yaml", "Policy.yml"),
    ],
)
def test_a_name_that_may_be_meant(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert nearly_named(tmp_path, "overcoat.yaml") == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("overcoat-ca.pem", "overcoat.schema.json", "overcoat.log", "overcoat", "docker-compose.yml", "values.yaml"),
        *("pay-2026.pub.pem", "x" * 200, "overcoat.yaml" * 10),
    ],
)
def test_a_name_that_is_somebody_elses(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert nearly_named(tmp_path, "overcoat.yaml") == []


def test_the_likeliest_comes_first_and_not_all_are_told(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"overcoat{number}.yaml").touch()
    (tmp_path / "Overcoat.yaml").touch()
    found = nearly_named(tmp_path, "overcoat.yaml")
    assert (found[0], len(found)) == ("Overcoat.yaml", 5)
    assert nearly_named(tmp_path / "none", "overcoat.yaml") == []


def test_a_link_that_leads_nowhere_is_there(tmp_path: Path) -> None:
    link = tmp_path / "overcoat.yaml"
    assert not is_there(link)
    link.symlink_to("elsewhere")
    assert is_there(link)
    assert what_lies_there(link) == "; it is a link to elsewhere"
    (tmp_path / "file").touch()
    assert is_there(tmp_path / "file" / "below")  # it cannot be looked at: whoever reads it is told why


def test_what_is_told_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "overcoat.yaml"
    path.mkdir()
    assert what_lies_there(path).startswith("; it is a folder: Docker makes one where")
    (path / "overcoat.yaml").touch()
    assert what_lies_there(path) == f"; it is a folder, and the policy in it is {path / 'overcoat.yaml'}"


def test_what_is_told_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "overcoat.yaml"
    assert what_lies_there(path / "none" / "overcoat.yaml") == f"; there is no folder {path / 'none'}"
    assert what_lies_there(path) == f"; in {tmp_path} there is nothing at all"
    (tmp_path / "pay.pem").touch()
    assert what_lies_there(path) == f"; in {tmp_path} there is no YAML file"
    (tmp_path / "a.yaml").touch()
    (tmp_path / "b.yml").touch()
    assert what_lies_there(path) == "; of YAML, there is a.yaml, b.yml"
    (tmp_path / "overcoat.yml").touch()
    assert what_lies_there(path) == "; but there is overcoat.yml: rename it, or name it with -p or OVERCOAT_POLICY"
    path.touch()
    assert what_lies_there(path) == ""  # it is there, and something else is wrong


def test_a_folder_that_is_full_is_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    class Entries:
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Entries:
            return self

        def __next__(self) -> os.DirEntry[str]:
            nonlocal taken
            taken += 1
            return next(iter([entry for entry in listed if entry.name == "a"]))

    (tmp_path / "a").touch()
    with os.scandir(tmp_path) as entries:
        listed = list(entries)
    monkeypatch.setattr(os, "scandir", lambda _: Entries())
    assert nearly_named(tmp_path, "overcoat.yaml") == []
    assert taken <= 2001


def _error_of(path: Path) -> OSError:
    with pytest.raises((FileNotFoundError, PermissionError)) as found:
        path.open("rb").close()
    return found.value


def test_what_is_told_of_a_file_of_a_policy_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "policy.yaml").touch()  # may be meant for a policy, but for no key
    start = "keys/pay-2026.pub.pem cannot be read: No such file or directory"
    name, here = "keys/pay-2026.pub.pem", Path()
    error = _error_of(Path(name))
    assert unreadable(here, name, error) == f"{start}; it was looked for in {tmp_path / 'keys'}"
    assert unreadable(tmp_path, name, error) == f"{tmp_path}/{start}"
    assert unreadable(here, "a.pem", error).endswith(f"; it was looked for in {tmp_path}")
    assert unreadable(here, "key/a.pem", error).endswith("; there is no folder key")
    assert unreadable(tmp_path / "crls", "", error).startswith(f"{tmp_path / 'crls'} cannot be read")
    (tmp_path / "keys" / "pay-2025.pub.pem").touch()
    assert unreadable(here, name, error) == f"{start}; but there is pay-2025.pub.pem"
    (tmp_path / "keys" / "pay-2026.pem").touch()  # the private half is nothing to take in its place
    makes = "overcoat keys public keys/pay-2026.pem > keys/pay-2026.pub.pem makes the public one anew"
    assert unreadable(here, name, error) == f"{start}; its private half is there: {makes}"
    assert unreadable(here, "keys/.pub.", error).endswith(f"; it was looked for in {tmp_path / 'keys'}")
    assert unreadable(here, "keys/pay-2026.key", error).endswith("; but there is pay-2026.pem")


@pytest.mark.parametrize(
    "name",
    ["no.pem", "a/b c/pay.pub.pem", "/run/secrets/app_key", "/run/secrets/p12", "keys/app_key", "../x.jwk", "it"],
)
def test_a_name_is_repeated(tmp_path: Path, name: str) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "it").touch()
    assert not may_be_secret(tmp_path, name)
    assert missing(tmp_path, name) == f"there is no {tmp_path / name}"


@pytest.mark.parametrize(
    "name",
    [
        "hunter2",
        "me:hunter2",
        "me:hunter2.pem",
        "pass.word",
        "hunter2.x/y",
        "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U",
        "/c2VjcmV0c2Vjcm/V0c2VjcmV0c2VjcmV0c2VjcmV0+U=",
        "eyJhbGciOiJBMjU2S1cifQ.aaaa..bbbb.cccc",
        "scrypt:16:8:1$aaaa$bbbb",
        "x" * 5000,
        "a/" * 3000 + "b.pem",
        "\0",
    ],
)
def test_what_may_be_the_secret_itself_is_not(tmp_path: Path, name: str) -> None:
    assert missing(tmp_path, name) == "there is no such file"
    told = unreadable(tmp_path, name, FileNotFoundError(errno.ENOENT, "No such file or directory"))
    assert told.startswith("there is no such file: No such file or directory; ")
    assert name not in told


def test_what_may_not_be_looked_at_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr("os.lstat", closed)
    assert not may_be_secret(tmp_path, "hunter2")


def test_what_is_told_of_a_file_of_a_policy_that_is_somebody_elses() -> None:
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as made:
        path, folder = Path(made) / "pay.pem", Path(made) / "closed"
        path.touch()
        folder.mkdir()
        (folder / "pay.pem").touch()
        path.chmod(0)
        folder.chmod(0)
        Path(made).chmod(0o755)
        owner = path.stat().st_uid
        if is_root:
            os.seteuid(65534)
        try:
            user = os.geteuid()
            told, told_inside = (
                unreadable(each.parent, each.name, _error_of(each)) for each in (path, folder / "pay.pem")
            )
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o700)
    start = "cannot be read: Permission denied; "
    assert told == f"{path} {start}it belongs to user {owner} with mode 0000, and Overcoat runs as user {user}"
    expected = f"Overcoat runs as user {user}, and may not look into one of the folders above it"
    assert told_inside == f"{folder / 'pay.pem'} {start}{expected}"
