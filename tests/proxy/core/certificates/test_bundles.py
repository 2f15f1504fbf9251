"""Bundles of certificates: what is read, what is refused, and in which line it stands."""

from __future__ import annotations

import base64
import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.certificates.bundles import BadBundle, read_bundle

DER = bytes(range(200))


def pem(label: str = "CERTIFICATE", der: bytes = DER) -> str:
    body = base64.b64encode(der).decode()
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def test_certificates_are_found_between_any_text_with_their_lines() -> None:
    text = f"# mine\n{pem()}\nSubject: x\n{pem('X509 CERTIFICATE', DER[1:])}".replace("\n", "\r\n")
    bundle = read_bundle(text.encode())
    assert bundle.certificates == (DER, DER[1:])
    assert bundle.lines == (2, 11)
    assert bundle.others == ()


def test_two_files_put_together_without_a_line_feed_are_two_certificates() -> None:
    assert len(read_bundle((pem().rstrip() + pem()).encode()).certificates) == 2


def test_what_else_lies_in_it_is_named() -> None:
    text = pem("PRIVATE KEY") + pem() + pem("X509 CRL")
    assert read_bundle(text.encode()).others == (("PRIVATE KEY", 1), ("X509 CRL", 15))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (pem() + pem().partition("-----END")[0], "the CERTIFICATE that begins in line 8 is cut off"),
        (pem() + pem()[:30], "the CERTIFICATE that begins in line 8 is cut off"),
        (pem().partition("-----END")[0] + pem(), "the CERTIFICATE that begins in line 1 is cut off"),
        (pem() + pem("X509 CRL").replace("END X509 CRL", "END CERTIFICATE"), "the X509 CRL that begins in line 8"),
        (pem() + pem().replace("Ag", "A!"), "the certificate that begins in line 8 is damaged"),
        ("", "there is no certificate in PEM in it"),
        (pem("PRIVATE KEY"), "there is no certificate in PEM in it"),
        ("\x30\x03abc", "may be DER, which `openssl x509 -inform DER`"),
    ],
)
def test_what_is_not_whole_is_refused(text: str, told: str) -> None:
    with pytest.raises(BadBundle) as refused:
        read_bundle(text.encode())
    assert told in str(refused.value)


@pytest.mark.parametrize("text", ["", "x", pem("PRIVATE KEY")])
def test_what_is_text_is_not_said_to_be_der(text: str) -> None:
    with pytest.raises(BadBundle) as refused:
        read_bundle(text.encode())
    assert "DER" not in str(refused.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_bundle_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadBundle):
        assert read_bundle(data).certificates


def test_the_time_is_linear() -> None:
    def seconds(count: int) -> float:
        data = b"-----BEGIN A-----" * count + b"-----END A-----" * count
        start = time.thread_time()
        with pytest.raises(BadBundle):
            read_bundle(b"-----BEGIN B-----\n-----END B-----" * count + data)
        return time.thread_time() - start

    few = min(seconds(5_000) for _ in range(3))
    assert min(seconds(20_000) for _ in range(3)) < 8 * few + 0.05
