"""Until when revocation lists are good: the newest of an issuer and scope counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.core.certificates.crls import ends_of
from proxy.core.certificates.der import element, elements, encoded

NOW = datetime(2026, 11, 30, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())


def a_list(issuer: str, days: int, scope: str = "") -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .last_update(NOW - timedelta(days=30))
        .next_update(NOW + timedelta(days=days))
    )
    if scope:
        point = x509.IssuingDistributionPoint(
            [x509.UniformResourceIdentifier(scope)], None, False, False, None, False, False
        )
        builder = builder.add_extension(point, critical=True)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def test_the_newest_of_an_issuer_counts_wherever_it_stands() -> None:
    old, new, other = a_list("A", -1), a_list("A", 7), a_list("B", 1)
    for lists in ([old, new, other], [new, old, other]):
        assert dict(ends_of(lists)) == {"CN=A": NOW + timedelta(days=7), "CN=B": NOW + timedelta(days=1)}


def test_lists_about_different_certificates_are_each_told() -> None:
    ends = ends_of([a_list("A", -1, "http://a/1"), a_list("A", 7, "http://a/2"), a_list("A", 3)])
    assert sorted(end for _, end in ends) == [NOW + timedelta(days=days) for days in (-1, 3, 7)]


def test_one_that_does_not_say_when_the_next_comes_has_no_end() -> None:
    der = a_list("A", 7)
    outer = element(der, 0, len(der))
    signed, *rest = elements(der, outer)
    fields = [der[each.at : each.end] for each in elements(der, signed)]
    del fields[4]  # version, signature, issuer, thisUpdate, nextUpdate
    without = encoded(0x30, encoded(0x30, b"".join(fields)) + b"".join(der[each.at : each.end] for each in rest))
    assert x509.load_der_x509_crl(without).next_update_utc is None
    assert ends_of([without]) == []


def test_there_may_be_none() -> None:
    assert ends_of([]) == []
