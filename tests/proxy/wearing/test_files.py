"""The folder of files that programs read, and what is added to a user's own."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from proxy.core.certificates.bundles import read_bundle
from proxy.disk.publishing import PublishingError
from proxy.wearing.files import java_store, write_files
from proxy.wearing.own import NotReadable, write_own
from tests.e2e.certificates import Authority

OURS, SYSTEM, CORPORATE = Authority(), Authority(), Authority()


def der(authority: Authority) -> bytes:
    return x509.load_pem_x509_certificate(authority.pem).public_bytes(Encoding.DER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path / "coat", OURS.pem, [der(SYSTEM)])
    return tmp_path / "coat"


def certificates(path: str | Path) -> set[bytes]:
    return set(read_bundle(Path(path).read_bytes()).certificates)


def test_everybody_may_read_all_of_it(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_each_file_names_the_bundle_by_its_whole_path(folder: Path) -> None:
    for name in ("wgetrc", "apt.conf", "php/overcoat.ini"):
        assert f"{folder}/ca-bundle.pem" in (folder / name).read_text("ascii")
    assert f'auto_prepend_file = "{folder}/php/first.php"' in (folder / "php" / "overcoat.ini").read_text("ascii")


def test_the_folder_may_be_named_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(Path("coat"), OURS.pem, [])
    assert f"{tmp_path}/coat/ca-bundle.pem" in (tmp_path / "coat" / "wgetrc").read_text("ascii")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "coat").mkdir()
    (tmp_path / "coat" / "php").write_text("in the way")
    with pytest.raises(PublishingError, match="cannot be written to"):
        write_files(tmp_path / "coat", OURS.pem, [])


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    """Whoever may write in the folder, as an app that it is mounted into, makes nobody write or open another one."""
    private, public = tmp_path / "private", tmp_path / "public"
    private.mkdir(mode=0o700)
    public.mkdir()
    for name in ("php", "ca.pem", "ca-bundle.pem", "wgetrc"):
        (public / name).symlink_to(private if name == "php" else private / name)
    write_files(public, OURS.pem, [])
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert list(private.iterdir()) == []
    assert (public / "php" / "overcoat.ini").is_file()


def test_javas_store_has_all_that_java_can_read(folder: Path) -> None:
    found = pkcs12.load_pkcs12((folder / "truststore.p12").read_bytes(), b"changeit")
    assert {each.certificate.public_bytes(Encoding.DER) for each in found.additional_certs} == {der(OURS), der(SYSTEM)}
    odd = pkcs12.load_pkcs12(java_store(OURS.pem, [b"no certificate"]), b"changeit")
    assert len(odd.additional_certs) == 1


def test_nothing_of_ones_own_needs_nothing_of_ones_own(folder: Path) -> None:
    assert write_own(folder, {"HOME": "/nonexistent"}) == {}


def test_a_users_bundle_is_kept_and_ours_added(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "corporate.pem"
    theirs.write_bytes(CORPORATE.pem + CORPORATE.key_pem)
    env = {"REQUESTS_CA_BUNDLE": str(theirs), "NODE_EXTRA_CA_CERTS": str(theirs)}
    own = write_own(folder, env)
    assert own["REQUESTS_CA_BUNDLE"] == own["NODE_EXTRA_CA_CERTS"]
    assert certificates(own["REQUESTS_CA_BUNDLE"]) == {der(OURS), der(CORPORATE)}
    assert b"PRIVATE KEY" not in Path(own["REQUESTS_CA_BUNDLE"]).read_bytes()
    assert "CURL_CA_BUNDLE" not in own


def test_the_file_of_the_whole_system_is_in_the_bundle_already(folder: Path, tmp_path: Path) -> None:
    theirs = SYSTEM.write_pem(tmp_path / "system.pem")
    assert write_own(folder, {"SSL_CERT_FILE": str(theirs)}) == {"SSL_CERT_FILE": f"{folder}/ca-bundle.pem"}


def test_ours_of_before_stays_as_it_is(folder: Path) -> None:
    env = {
        "CURL_CA_BUNDLE": f"{folder}/ca-bundle.pem",
        "WGETRC": f"{folder}/wgetrc",
        "APT_CONFIG": f"{folder}/apt.conf",
    }
    assert write_own(folder, env) == env


def test_a_second_time_changes_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".wgetrc").write_text("password = secret")
    env = {"HOME": str(tmp_path), "CURL_CA_BUNDLE": str(CORPORATE.write_pem(tmp_path / "c.pem"))}
    once = write_own(folder, env)
    assert write_own(folder, env | once) == once
    roots = read_bundle((folder / "ca-bundle.pem").read_bytes()).certificates
    write_files(folder, OURS.pem, roots)
    assert read_bundle((folder / "ca-bundle.pem").read_bytes()).certificates == roots


def test_a_folder_of_certificates_is_read(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "certs"
    theirs.mkdir()
    CORPORATE.write_pem(theirs / "a.pem")
    SYSTEM.write_pem(theirs / "b.pem")
    (theirs / "README").write_text("not one")
    own = write_own(folder, {"REQUESTS_CA_BUNDLE": str(theirs)})
    assert certificates(own["REQUESTS_CA_BUNDLE"]) == {der(OURS), der(CORPORATE), der(SYSTEM)}


@pytest.mark.parametrize("name", ["missing.pem", "empty.pem"])
def test_a_bundle_that_cannot_be_read_is_said(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(NotReadable, match=rf"CURL_CA_BUNDLE names .*{name}, which cannot be read"):
        write_own(folder, {"CURL_CA_BUNDLE": str(tmp_path / name)})


def test_a_users_wgetrc_is_kept_and_not_shown_to_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".wgetrc").write_text("password = secret")
    own = write_own(folder, {"HOME": str(tmp_path)})
    path = Path(own["WGETRC"])
    assert path.read_text() == f"password = secret\nca_certificate = {folder}/ca-bundle.pem\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert write_own(folder, {"HOME": str(tmp_path)}) == own  # a second time


def test_a_users_settings_of_apt_are_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "apt.conf").write_text('Acquire::Retries "3";\n')
    own = write_own(folder, {"APT_CONFIG": str(tmp_path / "apt.conf")})
    assert Path(own["APT_CONFIG"]).read_text().startswith('Acquire::Retries "3";\nAcquire::https::CAInfo')
    with pytest.raises(NotReadable, match="which APT_CONFIG stands for, cannot be read"):
        write_own(folder, {"APT_CONFIG": str(tmp_path / "none")})
