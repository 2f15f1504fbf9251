"""A chain that no server shows yet: revocation lists say of it what they would say in a handshake."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from proxy.core.rules.trust import Crls, CrlUse, Trust
from proxy.engine.candidates import NotTrusted, verified_chain
from tests.e2e.certificates import Authority

REVOKED = "certificate revoked"
NO_LIST = "unable to get certificate CRL"


@dataclass(frozen=True)
class Case:
    """Lists of a chain's authorities, and what comes of it.

    Attributes:
        lists: makes the lists, of the root, the intermediate and the server's certificate.
        require: what is said under `when: require`; "" if nothing is wrong.
        if_present: the same under `when: if_present`.
        anchor: which of the authorities is trusted.
    """

    lists: Callable[[Authority, Authority, x509.Certificate], Sequence[bytes]]
    require: str
    if_present: str
    anchor: str = "root"


def _own(middle: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(middle.pem)


CASES = {
    "nothing is revoked": Case(lambda root, middle, _: (root.crl(), middle.crl()), "", ""),
    "the server's is": Case(lambda root, middle, leaf: (root.crl(), middle.crl(leaf)), REVOKED, REVOKED),
    "the authority's is": Case(lambda root, middle, _: (root.crl(_own(middle)), middle.crl()), REVOKED, REVOKED),
    "no list": Case(lambda _root, _middle, _leaf: (), NO_LIST, ""),
    "no list of the root": Case(lambda _root, middle, _leaf: (middle.crl(),), NO_LIST, ""),
    "no list of the intermediate authority": Case(lambda root, _middle, _leaf: (root.crl(),), NO_LIST, ""),
    "revoked, and no list of the root": Case(lambda _root, middle, leaf: (middle.crl(leaf),), REVOKED, REVOKED),
    "an ended list": Case(lambda root, middle, _: (root.crl(), middle.crl(days=-1)), "CRL has expired", ""),
    "an ended list with it": Case(
        lambda root, middle, leaf: (root.crl(), middle.crl(leaf, days=-1)), "CRL has expired", REVOKED
    ),
    "a forged list": Case(lambda root, middle, _: (root.crl(), middle.crl(signer=root)), "CRL signature failure", ""),
    "another's list with its number": Case(lambda root, middle, leaf: (root.crl(leaf), middle.crl()), "", ""),
    "an anchor needs no list": Case(lambda _root, middle, _leaf: (middle.crl(),), "", "", "middle"),
    "revoked by an anchor": Case(lambda _root, middle, leaf: (middle.crl(leaf),), REVOKED, REVOKED, "middle"),
}


@pytest.mark.parametrize("when", CrlUse)
@pytest.mark.parametrize("name", CASES)
def test_lists_say_of_it_what_they_would_say_in_a_handshake(name: str, when: CrlUse) -> None:
    case, root = CASES[name], Authority()
    middle = root.intermediate()
    identity = middle.issue("one.example")
    lists = tuple(ssl_der(each, "X509 CRL") for each in case.lists(root, middle, identity.certificate))
    anchor = ssl_der({"root": root, "middle": middle}[case.anchor].pem)
    trust = Trust(anchors=(anchor,), crls=Crls((Path("lists.pem"),), when, lists))
    chain = [ssl_der(each) for each in identity.chain_pem]
    told = case.require if when is CrlUse.REQUIRE else case.if_present
    if not told:
        assert verified_chain(trust, chain)[: len(chain)] == chain
        return
    with pytest.raises(NotTrusted, match=told):
        verified_chain(trust, chain)


def ssl_der(pem: bytes, kind: str = "CERTIFICATE") -> bytes:
    """Return what PEM holds."""
    return ssl.PEM_cert_to_DER_cert(pem.decode().replace(kind, "CERTIFICATE"))
