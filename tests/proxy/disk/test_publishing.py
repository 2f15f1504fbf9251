"""What apps trust, in a folder of its own: the certificate, the bundle, and nothing else."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.disk.ca import LocalCa
from proxy.disk.publishing import PublishingError, publish_ca
from tests.e2e.certificates import Authority


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A local CA's certificate."""
    return LocalCa.open(tmp_path_factory.mktemp("data"), datetime.now(UTC)).pem


@pytest.fixture
def umask() -> Iterator[None]:
    """As many services have it: others may not read what is made."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def trusted(path: Path) -> list[bytes]:
    """Return the certificates of a bundle in DER, as OpenSSL reads them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=path)
    return context.get_ca_certs(binary_form=True)


@pytest.mark.usefixtures("umask")
def test_both_files_are_there_for_everybody_and_nothing_else(local: bytes, tmp_path: Path) -> None:
    root = ssl.PEM_cert_to_DER_cert(Authority().write_pem(tmp_path / "root.pem").read_text())
    folder = tmp_path / "public"
    publish_ca(folder, local, [root])
    assert sorted(each.name for each in folder.iterdir()) == ["ca-bundle.pem", "ca.pem"]
    assert (folder / "ca.pem").read_bytes() == local
    assert sorted(trusted(folder / "ca-bundle.pem")) == sorted([root, ssl.PEM_cert_to_DER_cert(local.decode())])
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o644}


def test_files_are_replaced_whole_and_only_if_they_differ(local: bytes, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"an older one")
    old = (tmp_path / "ca.pem").stat().st_ino
    with (tmp_path / "ca.pem").open("rb") as reader:
        publish_ca(tmp_path, local, [])
        assert reader.read() == b"an older one"
    first = (tmp_path / "ca.pem").stat()
    assert first.st_ino != old
    publish_ca(tmp_path, local, [])
    assert (tmp_path / "ca.pem").stat() == first


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_in_the_way_is_said_in_one_line(local: bytes, tmp_path: Path, is_file: bool) -> None:
    folder = tmp_path / "public"
    if is_file:
        folder.touch()
    else:
        (folder / "ca.pem").mkdir(parents=True)
    with pytest.raises(PublishingError, match=r"^the local CA's certificate cannot be written to .*public: [a-z ]+$"):
        publish_ca(folder, local, [])
    assert is_file or [each.name for each in folder.iterdir()] == ["ca.pem"]
