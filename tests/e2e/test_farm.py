"""A farm of servers, most of them wrong in one way: what curl decides, what Python 3.13 decides by default, and what
the sidecar decides on http that it upgrades, on https that it inspects, and on https that it tunnels.

Proves ARCHITECTURE's rules 3 (nothing leaves early) and 8 (never weaker than without it):

- What curl or Python refuses, the sidecar refuses, and the server that is refused has had no byte of an application.
- Where the sidecar decides otherwise than either of them, the row says why. It may be stricter, and is never laxer.
- A tunnel is the app's own business: what is decided in it is what the app decides without the sidecar.

The columns are what these programs do by default, with the same roots, revocation lists and client certificates, as
built against OpenSSL 3. Another OpenSSL may have other opinions: then only the rules above are held.
"""

from __future__ import annotations

import functools
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.e2e.app import connect
from tests.e2e.certificates import Authority, Identity
from tests.e2e.clients import RawClient, curl
from tests.e2e.farm import (
    GroupServer,
    Party,
    ServerByHand,
    alternative,
    as_version_1,
    elliptic_curve,
    finite_field,
    purposes,
    rsa_key,
    usage,
    with_names_twice,
    with_serial,
)
from tests.e2e.sidecar import Sidecar
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

OK, NO = True, False
TAKEN = ""
INVALID = "certificate_invalid"
NO_PIN = "sha256/" + "A" * 42 + "E="
WEAK = "DEFAULT:@SECLEVEL=0"  # what a server needs to load a certificate that is too weak for the default
DOMAIN = "farm.example"
Server = TlsUpstream | GroupServer | ServerByHand
STRICT = "it demands the form of RFC 5280, as Python does"
NAMES = "a host is named by a subjectAltName only (RFC 9525, section 6.2)"
AEAD = "forward secrecy and AEAD only (RFC 9325)"


Make = Callable[["Farm", str], "Made"]


class Farm:
    """What the rows share: a root and an intermediate authority that are right."""

    def __init__(self) -> None:
        self.root = Party.root("farm root")
        self.middle = self.root.authority("farm middle")


@dataclass(frozen=True)
class Made:
    """What a row comes to.

    Attributes:
        party: what its servers present.
        trusted: what all clients trust.
        server: makes a server; a `TlsUpstream` if None.
        options: of that `TlsUpstream`.
        lists: revocation lists, which all clients are given.
        shown: the client certificate that all clients are given.
        trust: more of the `trust` of the sidecar's rule.
        rule: more of that rule.
        curl: more options of curl's.
    """

    party: Party
    trusted: bytes
    server: Callable[[], Server] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    lists: bytes = b""
    shown: Identity | None = None
    trust: str = ""
    rule: str = ""
    curl: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """A server, and what is decided about it.

    Attributes:
        make: makes it, for a host.
        curl: whether curl takes it.
        python: whether Python 3.13 does.
        sidecar: the sidecar's reason to refuse it; "" if it takes it.
        why: why the sidecar decides otherwise than one of them.
        words: what the denial's detail says.
        host: whom the clients mean; a name of its own by default.
        since: the version of OpenSSL that it takes to speak with it.
    """

    make: Make
    curl: bool
    python: bool
    sidecar: str
    why: str = ""
    words: str = ""
    host: str = ""
    since: tuple[int, int] = (3, 0)


def leaf(*names: str | x509.GeneralName, options: Mapping[str, Any] | None = None, **changes: Any) -> Make:
    """A server under the farm's intermediate authority; its names are the host's if there are none."""
    return lambda farm, host: Made(
        farm.middle.issues(*(names or (host,)), **changes), farm.root.pem, options=options or {}
    )


def middle(options: Mapping[str, Any] | None = None, **changes: Any) -> Make:
    """A server that is right, under an intermediate authority that is not."""
    return lambda farm, host: Made(
        farm.root.authority(f"middle of {host}", **changes).issues(host), farm.root.pem, options=options or {}
    )


def root(**changes: Any) -> Make:
    """A server that is right, under a trusted root that is not."""

    def make(_: Farm, host: str) -> Made:
        own = Party.root(f"root of {host}", **changes)
        return Made(own.issues(host), own.pem)

    return make


def tls(trust: str = "", **options: Any) -> Make:
    """A server whose certificate is right, with other options of TLS."""
    return lambda farm, host: Made(farm.middle.issues(host), farm.root.pem, options=options, trust=trust)


def of_rsa(bits: int = 2048, **options: Any) -> Make:
    """The same with an RSA key."""
    return lambda farm, host: Made(farm.middle.issues(host, key=rsa_key(bits)), farm.root.pem, options=options)


def groups(names: str, trust: str = "") -> Make:
    """A server that exchanges keys in these groups only."""

    def make(farm: Farm, host: str) -> Made:
        party = farm.middle.issues(host)
        return Made(party, farm.root.pem, lambda: GroupServer(party.identity, names), trust=trust)

    return make


def by_hand(
    suite: int = 0xC02F, parameters: Callable[[], bytes] = elliptic_curve, ending: bytes = b"", **changes: Any
) -> Make:
    """A server that takes a cipher suite of TLS 1.2, offered or not, and shows what OpenSSL lets no server show."""

    def make(farm: Farm, host: str) -> Made:
        party = farm.middle.issues(host, key=rsa_key(), **changes)
        return Made(party, farm.root.pem, lambda: ServerByHand(party, suite, parameters(), ending))

    return make


def revoked(what: str) -> Make:
    """A server whose certificate, or whose authority's, is on a revocation list; or none is."""

    def make(farm: Farm, host: str) -> Made:
        own = farm.root.authority(f"middle of {host}")
        party = own.issues(host)
        lists = farm.root.crl(*[own] * (what == "middle")) + own.crl(*[party] * (what == "leaf"))
        trust = "crls: {files: [ROW.crl.pem], when: require}"
        return Made(party, farm.root.pem, lists=lists, trust=trust, curl=("--crlfile", "ROW.crl.pem"))

    return make


def wants_client(shown: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Make:
    """A server that asks for a client certificate."""

    def make(farm: Farm, host: str) -> Made:
        wanted = Authority()
        own = {"none": None, "right": wanted, "wrong": Authority()}[shown]
        rule = "client_certificate: {cert: ROW.cert.pem, key: {file: ROW.key.pem}}"
        return Made(
            farm.middle.issues(host),
            farm.root.pem,
            options={"clients": wanted, "max_tls": version},
            shown=None if own is None else own.issue("app@client.example"),
            rule=rule if own else "",
            curl=("--cert", "ROW.cert.pem", "--key", "ROW.key.pem") if own else (),
        )

    return make


def constrained(**constraints: list[x509.GeneralName]) -> Make:
    """A server under an authority that may issue for some names only."""
    lists = {f"{kind}_subtrees": constraints.get(kind) for kind in ("permitted", "excluded")}
    return middle(put=[x509.NameConstraints(**lists)])


def anchored(at: str) -> Make:
    """A server of which another certificate than the root is trusted."""

    def make(farm: Farm, host: str) -> Made:
        party = farm.middle.issues(host)
        return Made(party, {"middle": farm.middle.pem, "leaf": party.pem}[at])

    return make


def itself(farm: Farm, host: str) -> Made:
    """A server that nobody vouches for but itself."""
    return Made(_itself(host), farm.root.pem)


def itself_trusted(_: Farm, host: str) -> Made:
    """The same, trusted."""
    return Made(_itself(host), _itself(host).pem)


@functools.cache
def _itself(host: str) -> Party:
    return Party.root(host, put=[alternative(host), x509.BasicConstraints(False, None), usage("digital_signature")])


def pinned(pins: str) -> Make:
    """A server whose rule has pins."""

    def make(farm: Farm, host: str) -> Made:
        party = farm.middle.issues(host)
        pin = party.identity.pin if pins == "right" else NO_PIN
        wanted = pin.replace("sha256/", "sha256//")
        return Made(party, farm.root.pem, rule=f'pins: {{any_of: ["{pin}"]}}', curl=("--pinnedpubkey", wanted))

    return make


def other_root(farm: Farm, host: str) -> Made:
    """A server under a root that nobody trusts."""
    return Made(Party.root("stranger").authority("strange middle").issues(host), farm.root.pem)


def incomplete(farm: Farm, host: str) -> Made:
    """A server that does not send its intermediate authority's certificate."""
    whole = farm.middle.issues(host)
    return Made(replace(whole, behind=()), farm.root.pem)


def sending(*others: str) -> Make:
    """A server that sends these certificates behind its own."""

    def make(farm: Farm, host: str) -> Made:
        known = {"root": farm.root.der, "middle": farm.middle.der, "stranger": Party.root("stranger").der}
        return Made(replace(farm.middle.issues(host), behind=tuple(known[each] for each in others)), farm.root.pem)

    return make


def too_long(farm: Farm, host: str) -> Made:
    """An authority that may sign servers only has signed another authority."""
    only_servers = farm.root.authority(f"only servers {host}", put=[x509.BasicConstraints(ca=True, path_length=0)])
    return Made(only_servers.authority(f"too much {host}").issues(host), farm.root.pem)


CRITICAL = {"marked": {x509.UnrecognizedExtension: True}}
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\0")
LENGTH_ALONE = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), bytes.fromhex("3003020100"))
V1_0, V1_1, V1_2, V1_3 = (ssl.TLSVersion[f"TLSv1{minor}"] for minor in ("", "_1", "_2", "_3"))

ROWS: dict[str, Row] = {
    "right": Row(leaf(), OK, OK, TAKEN),
    # As the sites of badssl.com
    "expired": Row(leaf(begins=-30, ends=-1), NO, NO, INVALID, words="expired (depth 0): it is valid from"),
    "not yet valid": Row(leaf(begins=1), NO, NO, INVALID, words="not yet valid"),
    "wrong host": Row(leaf("elsewhere.example"), NO, NO, INVALID, words="it names elsewhere.example"),
    "self-signed": Row(itself, NO, NO, INVALID, words="self-signed certificate (depth 0): nobody but"),
    "self-signed and trusted": Row(itself_trusted, OK, OK, TAKEN),
    "untrusted root": Row(other_root, NO, NO, INVALID, words='its issuer is "CN=stranger"'),
    "revoked": Row(revoked("leaf"), NO, NO, INVALID, words="certificate revoked (depth 0)"),
    "revoked authority": Row(revoked("middle"), NO, NO, INVALID, words="certificate revoked (depth 1)"),
    "not revoked": Row(revoked("nothing"), OK, OK, TAKEN),
    "incomplete chain": Row(incomplete, NO, NO, INVALID, words="its issuer is "),
    "chain in disorder": Row(sending("root", "middle"), OK, OK, TAKEN),
    "a stranger sent along": Row(sending("stranger", "middle"), OK, OK, TAKEN),
    "expired authority": Row(middle(begins=-30, ends=-1), NO, NO, INVALID, words="certificate has expired (depth 1)"),
    "expired root": Row(root(begins=-30, ends=-1), NO, NO, INVALID, words="certificate has expired (depth 1)"),
    "no common name": Row(leaf(subject=None), OK, OK, TAKEN),
    "no common name, no other": Row(leaf(subject=None, without=[x509.SubjectAlternativeName]), NO, NO, INVALID),
    "no other name": Row(leaf(without=[x509.SubjectAlternativeName]), NO, NO, INVALID),
    "common name only": Row(
        lambda farm, host: Made(farm.middle.issues(subject=host), farm.root.pem), OK, OK, INVALID, NAMES
    ),
    "SHA-1": Row(leaf(has_sha1=True, options={"ciphers": WEAK}), NO, NO, INVALID),
    "SHA-1 of an authority": Row(middle(has_sha1=True, options={"ciphers": WEAK}), NO, NO, INVALID),
    "RSA 1024 of an authority": Row(middle(key=rsa_key(1024), options={"ciphers": WEAK}), NO, NO, INVALID),
    "SHA-1 of a root": Row(root(has_sha1=True), OK, OK, TAKEN),
    "RSA 1024": Row(of_rsa(1024, ciphers=WEAK), NO, NO, INVALID),
    "RSA 2048": Row(of_rsa(), OK, OK, TAKEN),
    "RSA 8192": Row(of_rsa(8192), OK, OK, TAKEN),
    "P-384": Row(leaf(key=ec.generate_private_key(ec.SECP384R1())), OK, OK, TAKEN),
    "Ed25519": Row(leaf(key=ed25519.Ed25519PrivateKey.generate()), OK, OK, TAKEN),
    "a name as long as may be": Row(leaf(), OK, OK, TAKEN, host=f"{'a' * 63}.{'b' * 63}.{DOMAIN}"),
    "an OCSP answer that must be stapled": Row(
        leaf(put=[x509.TLSFeature([x509.TLSFeatureType.status_request])]), OK, OK, TAKEN
    ),
    "1000 names": Row(
        lambda farm, host: Made(farm.middle.issues(*(f"n{n}.{host}" for n in range(999)), host), farm.root.pem),
        OK,
        OK,
        TAKEN,
    ),
    "10000 names": Row(
        lambda farm, host: Made(farm.middle.issues(*(f"n{n}.{host}" for n in range(9999)), host), farm.root.pem),
        NO,
        NO,
        "tls_failed",
    ),
    "a star as a label": Row(leaf(f"*.{DOMAIN}"), OK, OK, TAKEN),
    "a star for two labels": Row(leaf(f"*.{DOMAIN}"), NO, NO, INVALID, host=f"two.labels.{DOMAIN}"),
    "two stars": Row(leaf(f"*.*.{DOMAIN}"), NO, NO, INVALID, host=f"two.stars.{DOMAIN}"),
    "a star for a whole domain": Row(leaf("*.example"), NO, NO, INVALID, host="whole.example"),
    "a star alone": Row(leaf("*"), NO, NO, INVALID),
    "a star and a dot": Row(leaf("*."), NO, NO, INVALID),
    "a star in a label": Row(leaf(f"p*.{DOMAIN}"), NO, NO, INVALID, host=f"part.{DOMAIN}"),
    "a star at a label's beginning": Row(leaf(f"*t.{DOMAIN}"), NO, NO, INVALID, host=f"start.{DOMAIN}"),
    "a star within a label": Row(leaf(f"w*n.{DOMAIN}"), NO, NO, INVALID, host=f"within.{DOMAIN}"),
    "a star that is not the first label": Row(leaf("inner.*.example"), NO, NO, INVALID, host=f"inner.{DOMAIN}"),
    "a star in an A-label": Row(leaf(f"xn--b*.{DOMAIN}"), NO, NO, INVALID, host=f"xn--bcher-kva.{DOMAIN}"),
    "another's pin": Row(pinned("other"), NO, OK, "pin_mismatch", "Python knows no pins"),
    "its own pin": Row(pinned("right"), OK, OK, TAKEN),
    # The form of certificates
    "no authority key identifier": Row(leaf(without=[x509.AuthorityKeyIdentifier]), OK, NO, INVALID, STRICT),
    "no authority key identifier of an authority": Row(
        middle(without=[x509.AuthorityKeyIdentifier]), OK, NO, INVALID, STRICT
    ),
    "no subject key identifier of an authority": Row(
        middle(without=[x509.SubjectKeyIdentifier]), OK, NO, INVALID, STRICT
    ),
    "no subject key identifier of a root": Row(root(without=[x509.SubjectKeyIdentifier]), OK, NO, INVALID, STRICT),
    "no subject key identifier": Row(leaf(without=[x509.SubjectKeyIdentifier]), OK, OK, TAKEN),
    "a critical authority key identifier": Row(leaf(marked={x509.AuthorityKeyIdentifier: True}), NO, NO, INVALID),
    "a critical subject key identifier": Row(leaf(marked={x509.SubjectKeyIdentifier: True}), NO, NO, INVALID),
    "constraints of an authority not critical": Row(
        middle(marked={x509.BasicConstraints: False}), OK, NO, INVALID, STRICT
    ),
    "constraints of a root not critical": Row(root(marked={x509.BasicConstraints: False}), OK, NO, INVALID, STRICT),
    "no constraints of an authority": Row(middle(without=[x509.BasicConstraints]), NO, NO, INVALID),
    "an authority that is none": Row(middle(put=[x509.BasicConstraints(False, None)]), NO, NO, INVALID),
    "no key usage of an authority": Row(middle(without=[x509.KeyUsage]), OK, NO, INVALID, STRICT),
    "key usage without keyCertSign": Row(middle(put=[usage("crl_sign", "digital_signature")]), NO, NO, INVALID),
    "keyCertSign of a server": Row(leaf(put=[usage("digital_signature", "key_cert_sign")]), OK, NO, INVALID, STRICT),
    "a path length of a server": Row(leaf(put=[LENGTH_ALONE]), OK, NO, INVALID, STRICT),
    "path length exceeded": Row(too_long, NO, NO, INVALID),
    "for clients": Row(leaf(put=[purposes("client")]), NO, NO, INVALID),
    "for servers and clients": Row(leaf(put=[purposes("server", "client")]), OK, OK, TAKEN),
    "for any purpose": Row(leaf(put=[purposes("any")]), NO, NO, INVALID),
    "for no purpose in particular": Row(leaf(without=[x509.ExtendedKeyUsage]), OK, OK, TAKEN),
    "an authority for clients": Row(middle(put=[purposes("client")]), NO, NO, INVALID),
    "an authority for servers": Row(middle(put=[purposes("server")]), OK, OK, TAKEN),
    "a key for signing lists": Row(leaf(put=[usage("crl_sign")]), NO, NO, INVALID),
    "names not critical without a subject": Row(
        leaf(subject=None, marked={x509.SubjectAlternativeName: False}), OK, NO, INVALID, STRICT
    ),
    "names twice": Row(by_hand(edit=with_names_twice("elsewhere.example")), NO, NO, INVALID),
    "trusted at the intermediate": Row(anchored("middle"), OK, OK, TAKEN),
    "trusted at the server": Row(anchored("leaf"), OK, OK, TAKEN),
    "an authority of version 1": Row(middle(edit=as_version_1), NO, NO, INVALID),
    "a root of version 1": Row(root(edit=as_version_1), OK, NO, INVALID, STRICT),
    "a negative serial number": Row(leaf(edit=with_serial(b"\xff")), OK, OK, TAKEN),
    "the serial number 0": Row(leaf(edit=with_serial(b"\0")), OK, OK, TAKEN),
    "a negative serial number of a root": Row(root(edit=with_serial(b"\x80\0")), OK, OK, TAKEN),
    "a serial number of 30 octets": Row(leaf(edit=with_serial(b"\x01" * 30)), OK, OK, TAKEN),
    "an unknown critical extension": Row(leaf(put=[UNKNOWN]), NO, NO, INVALID),
    "an unknown critical extension of an authority": Row(middle(put=[UNKNOWN]), NO, NO, INVALID),
    "an unknown extension": Row(leaf(put=[UNKNOWN], marked={x509.UnrecognizedExtension: False}), OK, OK, TAKEN),
    "an address": Row(leaf("127.0.0.1"), OK, OK, TAKEN, host="127.0.0.1"),
    "an address as a host's name": Row(leaf(x509.DNSName("127.0.0.1")), NO, NO, INVALID, host="127.0.0.1"),
    "another address": Row(leaf("127.0.0.2", "::1"), NO, NO, INVALID, host="127.0.0.1"),
    "an address by a name of its own": Row(leaf("localhost"), NO, NO, INVALID, host="127.0.0.1"),
    "an address as a common name": Row(
        lambda farm, host: Made(farm.middle.issues(subject=host), farm.root.pem),
        OK,
        NO,
        INVALID,
        NAMES,
        host="127.0.0.1",
    ),
    "NUL in a name": Row(
        lambda farm, host: Made(farm.middle.issues(x509.DNSName(f"{host}\0.evil.example")), farm.root.pem),
        NO,
        NO,
        INVALID,
    ),
    "NUL in the common name": Row(
        lambda farm, host: Made(farm.middle.issues(subject=f"{host}\0.evil.example"), farm.root.pem), NO, NO, INVALID
    ),
    "an A-label": Row(leaf(), OK, OK, TAKEN, host=f"xn--mnchen-3ya.{DOMAIN}"),
    "a U-label": Row(
        leaf(x509.DNSName._init_without_validation(f"münchen.{DOMAIN}")),
        NO,
        NO,
        INVALID,
        host=f"xn--mnchen-3ya.{DOMAIN}",
    ),
    "upper case": Row(lambda farm, host: Made(farm.middle.issues(host.upper()), farm.root.pem), OK, OK, TAKEN),
    "a dot at the end": Row(
        lambda farm, host: Made(farm.middle.issues(f"{host}."), farm.root.pem),
        OK,
        NO,
        INVALID,
        "a subjectAltName has no dot at its end (RFC 5280, section 4.2.1.6)",
    ),
    "constrained to it": Row(constrained(permitted=[x509.DNSName(DOMAIN)]), OK, OK, TAKEN),
    "constrained to another": Row(constrained(permitted=[x509.DNSName("other.example")]), NO, NO, INVALID),
    "excluded by constraints": Row(constrained(excluded=[x509.DNSName(DOMAIN)]), NO, NO, INVALID),
    # Versions and cipher suites
    "TLS 1.0": Row(
        tls(min_tls=V1_0, max_tls=V1_0),
        NO,
        NO,
        "tls_failed",
        words="speaks no version of TLS",
    ),
    "TLS 1.1": Row(
        tls(min_tls=V1_1, max_tls=V1_1),
        NO,
        NO,
        "tls_failed",
        words="speaks no version of TLS",
    ),
    "TLS 1.2": Row(tls(max_tls=V1_2), OK, OK, TAKEN),
    "TLS 1.3": Row(tls(min_tls=V1_3), OK, OK, TAKEN),
    "TLS 1.2 where the rule wants 1.3": Row(
        tls('min_tls: "1.3"', max_tls=V1_2), OK, OK, "tls_failed", "its rule says so"
    ),
    "a downgrade from 1.3": Row(by_hand(ending=b"DOWNGRD\x01"), NO, NO, "tls_failed"),
    "a downgrade to 1.1": Row(by_hand(ending=b"DOWNGRD\0"), NO, NO, "tls_failed"),
    "no downgrade": Row(by_hand(), OK, OK, TAKEN),
    "null": Row(by_hand(0x003B, bytes), NO, NO, "tls_failed"),
    "null with forward secrecy": Row(by_hand(0xC010), NO, NO, "tls_failed"),
    "RC4": Row(by_hand(0x0005, bytes), NO, NO, "tls_failed"),
    "3DES": Row(by_hand(0x000A, bytes), NO, NO, "tls_failed"),
    "export": Row(by_hand(0x0003, bytes), NO, NO, "tls_failed"),
    "nobody's key": Row(by_hand(0x00A6, functools.partial(finite_field, 2048)), NO, NO, "tls_failed"),
    "dh480": Row(by_hand(0x009E, functools.partial(finite_field, 480)), NO, NO, "tls_failed"),
    "dh1024": Row(by_hand(0x009E, functools.partial(finite_field, 1024)), NO, NO, "tls_failed"),
    "dh2048": Row(
        by_hand(0x009E, functools.partial(finite_field, 2048)),
        OK,
        OK,
        "tls_failed",
        "the group is the server's choice, and nobody checks it: ECDHE only",
    ),
    "static RSA": Row(of_rsa(max_tls=V1_2, ciphers="AES128-GCM-SHA256"), OK, NO, "tls_failed", AEAD),
    "CBC": Row(
        tls(max_tls=V1_2, ciphers="ECDHE-ECDSA-AES128-SHA256"), OK, OK, "tls_failed", AEAD, "accepts none of the"
    ),
    "AES-GCM": Row(tls(max_tls=V1_2, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"), OK, OK, TAKEN),
    "ChaCha20": Row(tls(max_tls=V1_2, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305"), OK, OK, TAKEN),
    # Groups of the key exchange
    "X25519": Row(groups("X25519"), OK, OK, TAKEN),
    "P-256": Row(groups("P-256"), OK, OK, TAKEN),
    "hybrid only": Row(groups("X25519MLKEM768"), OK, OK, TAKEN, since=(3, 5)),
    "ffdhe2048": Row(groups("ffdhe2048"), OK, OK, TAKEN),
    "X25519 where the rule wants the hybrid one": Row(
        groups("X25519", "key_exchange: hybrid"), OK, OK, "key_exchange_refused", "its rule says so"
    ),
    "the hybrid one where the rule wants it": Row(
        groups("X25519MLKEM768", "key_exchange: hybrid"), OK, OK, TAKEN, since=(3, 5)
    ),
    # Client certificates: here it is the server that refuses
    "a client certificate is missing": Row(wants_client("none"), NO, NO, "client_certificate_refused"),
    "a client certificate is missing, TLS 1.2": Row(wants_client("none", V1_2), NO, NO, "client_certificate_refused"),
    "a client certificate of another authority": Row(wants_client("wrong"), NO, NO, "client_certificate_refused"),
    "a client certificate of another authority, TLS 1.2": Row(
        wants_client("wrong", V1_2), NO, NO, "client_certificate_refused"
    ),
    "a client certificate that is right": Row(wants_client("right"), OK, OK, TAKEN),
    "a client certificate that is right, TLS 1.2": Row(wants_client("right", V1_2), OK, OK, TAKEN),
}


@dataclass(frozen=True)
class Running:
    """A row with its servers.

    Attributes:
        host: whom the clients mean.
        made: what it came to.
        direct: the server that clients ask without the sidecar, and through its tunnel.
        asked: the one that the sidecar asks.
        files: the beginning of its files' names.
    """

    host: str
    made: Made
    direct: Server
    asked: Server
    files: Path

    def given(self, *options: str) -> list[str]:
        """Return curl's options with the names of this row's files."""
        return [option.replace("ROW", str(self.files)) for option in options]

    @property
    def roots(self) -> Path:
        """What all clients trust."""
        return self.files.with_name(f"{self.files.name}.roots.pem")

    def python(self) -> ssl.SSLContext:
        """Return the context that Python 3.13 makes by default, with this row's files."""
        context = ssl.create_default_context(cafile=self.roots)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # the default from 3.13 on
        if self.made.lists:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
            context.load_verify_locations(f"{self.files}.crl.pem")
        if self.made.shown is not None:
            self.made.shown.load_into(context)
        return context

    @classmethod
    def start(cls, stack: ExitStack, farm: Farm, name: str, row: Row, folder: Path) -> Running:
        """Start a row's servers, and write its files."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        host = row.host or f"{slug}.{DOMAIN}"
        made = row.make(farm, host)

        def server() -> Server:
            if made.server is not None:
                other = made.server()
                stack.callback(other.close)
                return other
            return stack.enter_context(TlsUpstream(Authority(), identity=made.party.identity, **made.options))

        it = cls(host, made, server(), server(), folder / slug)
        it.roots.write_bytes(made.trusted)
        if made.lists:
            (folder / f"{slug}.crl.pem").write_bytes(made.lists)
        if made.shown is not None:
            (folder / f"{slug}.cert.pem").write_bytes(b"".join(made.shown.chain_pem))
            key = folder / f"{slug}.key.pem"
            key.touch(0o600)
            key.write_bytes(made.shown.key_pem)
        return it

    def rule(self) -> str:
        """Return the sidecar's rule."""
        trust = ", ".join(filter(None, (f"roots: {self.roots.name}", self.made.trust)))
        more = f", {self.made.rule}" if self.made.rule else ""
        hosts = f'"{self.host}:{self.asked.port}"'
        rule = f"{{name: '{self.files.name}', hosts: [{hosts}], https: inspect, trust: {{{trust}}}{more}}}"
        return f"  - {rule}\n".replace("ROW", self.files.name)


@dataclass(frozen=True)
class World:
    """All rows, and one sidecar for them."""

    sidecar: Sidecar
    rows: Mapping[str, Running]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("farm")
    farm = Farm()
    with ExitStack() as stack:
        rows = {name: Running.start(stack, farm, name, row, folder) for name, row in ROWS.items()}
        hosts = {row.host: "127.0.0.1" for row in rows.values()}
        policy = "rules:\n" + "".join(row.rule() for row in rows.values())
        sidecar = stack.enter_context(Sidecar(policy, folder, authority=Authority(), hosts=hosts))
        yield World(sidecar, rows)


def has_taken(server: Server, ask: Callable[[], bool]) -> bool:
    """Ask a server; tell whether it was taken, which of one by hand is known only there."""
    if not isinstance(server, ServerByHand):
        return ask()
    before = server.took, server.refused
    assert not ask()
    server.settle()
    took, refused = server.took - before[0], server.refused - before[1]
    assert took + refused == 1, "neither an alert nor another message of the handshake came"
    return bool(took)


def ask_over(connection: socket.socket, row: Running, path: str) -> bool:
    """Ask with Python's ssl, over a connection that there is; tell whether there was an answer."""
    try:
        with row.python().wrap_socket(connection, server_hostname=row.host) as secured:
            secured.sendall(request(row, row.direct, path))
            return secured.recv(4096).startswith(b"HTTP/1.1 200 ")
    except OSError:  # an ssl.SSLError, or a reset
        return False


def request(row: Running, server: Server, path: str, scheme: str = "") -> bytes:
    authority = f"{row.host}:{server.port}"
    target = f"{scheme}{authority}{path}" if scheme else path
    return f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()


def of_curl(row: Running) -> bool:
    url = f"https://{row.host}:{row.direct.port}/of-curl"
    way = () if row.host == "127.0.0.1" else ("--resolve", f"{row.host}:{row.direct.port}:127.0.0.1")
    return curl(*row.given(*row.made.curl), *way, "--http1.1", url, ca_file=row.roots).status == 200


def of_python(row: Running) -> bool:
    with socket.create_connection(("127.0.0.1", row.direct.port), 10) as connection:
        return ask_over(connection, row, "/of-python")


def tunnelled(row: Running, sidecar: Sidecar) -> bool:
    with socket.create_connection(sidecar.address, 10) as connection:
        authority = f"{row.host}:{row.direct.port}"
        connection.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        return ask_over(connection, row, "/tunnelled")


def upgraded(row: Running, sidecar: Sidecar) -> tuple[str, str]:
    """Return the sidecar's reason and detail; two times "" if there is an answer of the server's."""
    with RawClient(sidecar.address) as client:
        client.send(request(row, row.asked, "/upgraded", "http://"))
        return denial(client)


def inspected(row: Running, sidecar: Sidecar) -> tuple[str, str]:
    """As `upgraded`, for https."""
    with connect(sidecar, f"{row.host}:{row.asked.port}") as client:
        client.start_tls(row.host, ca_file=sidecar.ca_file)
        client.send(request(row, row.asked, "/inspected"))
        return denial(client)


def denial(client: RawClient) -> tuple[str, str]:
    answer = client.read_response()
    said = {} if answer.status == 200 else answer.json()
    assert answer.status in (200, 502)
    return str(said.get("reason", "")), str(said.get("detail", ""))


@functools.cache
def curls_openssl() -> tuple[int, ...] | None:
    """Return the version of OpenSSL that curl has; None if there is no curl, or it has none."""
    if (program := shutil.which("curl")) is None:
        return None
    said = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r" OpenSSL/(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def hold(row: Row, has_taken_it: bool, column: bool, version: tuple[int, ...] | None) -> None:
    """Hold what another program decides against the table, and the sidecar against that.

    Args:
        row: the row.
        has_taken_it: what it decides.
        column: what stands in its column.
        version: of its OpenSSL; None if it has another library.
    """
    if version is not None and version < row.since:
        assert not has_taken_it
        return
    assert has_taken_it or row.sidecar, "the sidecar is laxer"
    if version is not None and version[0] == 3:
        assert has_taken_it is column


@pytest.mark.parametrize("name", ROWS)
def test_curl(world: World, name: str) -> None:
    it = world.rows[name]
    hold(ROWS[name], has_taken(it.direct, lambda: of_curl(it)), ROWS[name].curl, curls_openssl())


@pytest.mark.parametrize("name", ROWS)
def test_python_and_a_tunnel_in_which_it_decides_the_same(world: World, name: str) -> None:
    it = world.rows[name]
    has_taken_it = has_taken(it.direct, lambda: of_python(it))
    hold(ROWS[name], has_taken_it, ROWS[name].python, ssl.OPENSSL_VERSION_INFO[:2])
    assert has_taken(it.direct, lambda: tunnelled(it, world.sidecar)) is has_taken_it
    it.direct.settle()
    is_answered = has_taken_it and not isinstance(it.direct, ServerByHand)
    assert (b"/of-python" in it.direct.received, b"/tunnelled" in it.direct.received) == (is_answered, is_answered)


@pytest.mark.parametrize("name", ROWS)
def test_the_sidecar(world: World, name: str) -> None:
    row, it = ROWS[name], world.rows[name]
    reasons: list[str] = []

    def ask(how: Callable[[Running, Sidecar], tuple[str, str]]) -> bool:
        reason, detail = how(it, world.sidecar)
        reasons.append(reason)
        assert row.words in detail
        return not reason

    for how in (upgraded, inspected):
        assert has_taken(it.asked, functools.partial(ask, how)) is not bool(row.sidecar)
    if row.sidecar or not isinstance(it.asked, ServerByHand):  # who does it by hand says no more than hello
        assert reasons == [row.sidecar] * 2
    it.asked.settle()
    found = re.findall(rb"^GET (\S+)", it.asked.received, re.MULTILINE)
    assert found == ([] if reasons[0] else [b"/upgraded", b"/inspected"])
    assert not reasons[0] or it.asked.received == b""
    if isinstance(it.asked, TlsUpstream):
        assert all(each.wire[:2] == b"\x16\x03" and b"HTTP/1" not in each.wire for each in it.asked.connections)
        assert not reasons[0] or not any(each.handshake_completed for each in it.asked.connections)
    asked = f"{it.host}:{it.asked.port}"

    def told() -> list[str]:
        lines = [each for each in world.sidecar.decisions() if (each["destination"], each["method"]) == (asked, "GET")]
        return [line["reason"] or "" for line in lines]

    wait_until(lambda: told() == reasons, "the decision lines say so, too")


def test_where_the_sidecar_decides_otherwise_the_row_says_why() -> None:
    for name, row in ROWS.items():
        is_taken = not row.sidecar
        assert bool(row.why) is not (is_taken is row.curl is row.python), name
        assert row.sidecar or (row.curl and row.python), f"{name}: laxer"
