"""`overcoat pins import`: files as those tools' own documentation has them become rules that `check` takes, and that
say of each host what those tools would say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.core.destinations import Destination
from proxy.core.pins import AfterExpiry
from proxy.core.rules.policy import Policy
from proxy.policyfile.load import load_policy
from tests.e2e.certificates import Authority
from tests.e2e.clients import curl
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream

FILES = Path(__file__).parent / "imports"
A, B, C, D = (
    f"sha256/{text}"
    for text in (
        "7HIpactkIAq2Y49orFOOQKurWxmmSFZhBCoQYcRhJ3Y=",
        "fwza0LRMXouZHRC8Ei+4PyuldPDcf3UKgO/04cDM1oE=",
        "WoiWRyIOVNa9ihaBciRSC7XHjliYS9VwUGOIud4PB18=",
        "afwiKY3RxoMmLkuRW1l7QsPZTJPwDS2pdDROQjXw8ig=",
    )
)
ONE, TWO, THREE, FOUR = (
    f"sha256/{text}="
    for text in (
        "HXXQgxueCIU5TTLHob/bPbwcKOKw6DkfsTWYHbxbqTY",
        "0SDf3cRToyZJaMsoS17oF72VMavLxj/N7WBNasNuiR8",
        "TQEtdMbmwFgYUifM4LDF+xgEtd0z69mPGmkp014d6ZY",
        "rFjc3wG7lTZe43zeYTvPq8k4xdDEutCmIhI5dn4oCeE",
    )
)
LAST = "2098-12-31"


def imported(folder: Path, file: str | Path, *arguments: str) -> tuple[Policy, str]:
    """Import a file; return the policy that is made of it, once `check` has taken it, and its text."""
    sidecar = Sidecar("mode: enforce", folder)
    text = sidecar.run("pins", "import", str(FILES / file), *arguments)
    (folder / "imported.yaml").write_text(text, "utf-8")
    assert json.loads(sidecar.run("check", "imported.yaml", "--json"))["ok"] is True
    return load_policy(folder / "imported.yaml", {}), text


def pins_of(policy: Policy, host: str) -> list[str] | None:
    rule = policy.rule_for(Destination(host, 443))
    return None if rule is None or rule.pins is None else [str(pin) for pin in rule.pins.any_of]


def life_of(policy: Policy, host: str) -> tuple[str | None, bool, bool]:
    """Return the last day of a host's pins, whether they only warn then, and whether they are only observed."""
    rule = policy.rule_for(Destination(host, 443))
    assert rule is not None
    assert rule.pins is not None
    pins = rule.pins
    return pins.expires.isoformat() if pins.expires else None, pins.after_expiry is AfterExpiry.WARN, pins.observes


def test_android(tmp_path: Path) -> None:
    policy, text = imported(tmp_path, "network_security_config.xml")
    for host in ("example.com", "a.example.com", "a.b.example.com", "secure.example.com"):
        assert pins_of(policy, host) == [A, B], host
    assert pins_of(policy, "www.secure.example.com") == [C]
    for host in ("cdn.example.com", "a.cdn.example.com", "other.example", "insecure.other.org"):
        assert pins_of(policy, host) is None, host
    assert life_of(policy, "example.com") == (LAST, True, False)
    assert life_of(policy, "www.secure.example.com") == (None, False, False)
    for note in (
        'overridePins is not carried over: what "user" has signed',
        'a pin with the digest "SHA-1" is not carried over',
        "Android stops pinning on 2099-01-01: the day before is the last, and after_expiry is warn",
        "base-config is not carried over",
        "debug-overrides are not carried over",
        "trust-anchors are not carried over: name a PEM file in trust.roots",
        "no pins: an exception from those of a rule below",
    ):
        assert note in text, note


def test_okhttp(tmp_path: Path) -> None:
    policy, text = imported(tmp_path, "Pinner.kt")
    expected = {
        "publicobject.com": [D],
        "www.publicobject.com": [A],
        "api.publicobject.com": [B, A],
        "cdn.publicobject.com": [C, A],  # `*.` and `**.cdn.` both match it
        "a.cdn.publicobject.com": [C],
        "a.b.cdn.publicobject.com": [C],
        "a.www.publicobject.com": None,
        "old.publicobject.com": [A],  # what is commented out is no code
        "dynamic.publicobject.com": [A],
    }
    found = {host: pins_of(policy, host) for host in expected}
    assert {host: sorted(pins or []) for host, pins in found.items()} == {
        host: sorted(pins or []) for host, pins in expected.items()
    }
    for note in (
        '"sha1/DmxUShsZuNiqPQsX2Oi9uv2sCnw=" of *.publicobject.com is not carried over: SHA-1',
        '"a*.publicobject.com" is no pattern of OkHttp\'s, and not carried over',
        'the pins of "dynamic.publicobject.com" are no literals',
        "OkHttp unites the pins of all patterns that a host matches",
    ):
        assert note in text, note


@pytest.mark.parametrize(
    ("field", "hosts", "observes"),
    [
        ('Public-Key-Pins: {}; max-age=5184000; includeSubDomains; report-uri="https://r.example/"', True, False),
        ("{}; max-age=5184000", False, False),
        ("HTTP/1.1 200 OK\r\nPublic-Key-Pins-Report-Only: {}; max-age=1\r\nServer: x; y=z\r\n\r\n", False, True),
    ],
)
def test_a_public_key_pins_field(tmp_path: Path, field: str, hosts: bool, observes: bool) -> None:
    pins = "; ".join(f'pin-sha256="{pin.removeprefix("sha256/")}"' for pin in (A, B))
    (tmp_path / "head.txt").write_text(field.format(pins))
    policy, text = imported(tmp_path, tmp_path / "head.txt", "--host", "example.com")
    assert pins_of(policy, "example.com") == [A, B]
    assert pins_of(policy, "a.example.com") == ([A, B] if hosts else None)
    assert life_of(policy, "example.com") == (None, False, observes)
    assert "is not carried over: each response renewed it" in text
    assert ("report-uri is not carried over" in text) is hosts


def test_trustkits_property_list(tmp_path: Path) -> None:
    policy, text = imported(tmp_path, "TrustKit.plist")
    for host in ("yahoo.com", "www.yahoo.com", "a.b.yahoo.com", "a.mail.yahoo.com"):
        assert pins_of(policy, host) == [THREE, FOUR]
    assert pins_of(policy, "mail.yahoo.com") is None
    assert life_of(policy, "yahoo.com") == ("2099-11-30", True, True)
    for note in (
        "TSKEnforcePinning is off there, so the pins are only observed here",
        "TSKReportUris is not carried over",
        "TrustKit stops pinning on 2099-12-01: the day before is the last, and after_expiry is warn",
        "TSKIgnorePinningForUserDefinedTrustAnchors is not carried over",
    ):
        assert note in text, note


def test_trustkits_dictionary_in_swift(tmp_path: Path) -> None:
    policy, text = imported(tmp_path, "AppDelegate.swift")
    assert pins_of(policy, "a.datatheorem.example") == [ONE, TWO]
    assert pins_of(policy, "www.datatheorem.example") == [ONE]
    assert life_of(policy, "datatheorem.example") == (None, False, False)
    assert life_of(policy, "www.datatheorem.example") == ("2099-11-30", True, True)
    assert "a value that is no literal, and not carried over" in text


def test_trustkits_dictionary_in_objective_c(tmp_path: Path) -> None:
    policy, text = imported(tmp_path, "AppDelegate.m")
    assert pins_of(policy, "www.datatheorem.example") == [ONE, TWO]
    assert life_of(policy, "www.datatheorem.example") == ("2099-11-30", True, True)
    assert pins_of(policy, "a.yahoo.com") == [THREE, FOUR]
    assert life_of(policy, "yahoo.com") == (None, False, False)
    assert "default counts" not in text


@pytest.mark.parametrize(
    ("name", "content", "arguments", "told"),
    [
        ("a.txt", "nothing", (), "this looks like none of android, okhttp, hpkp, trustkit"),
        ("a.xml", "<network-security-config/>", (), "no pin in it could be carried over"),
        ("a.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><network-security-config/>", (), "a document type (DTD) or an entity"),
        ("a.xml", "<network-security-config>", (), "no well-formed XML"),
        ("a.txt", 'pin-sha256="AAAA"', (), "say which one sent it (--host)"),
        ("a.txt", 'pin-sha256="AAAA"', ("--host", "a.example"), "there is no pin-sha256 in it"),
        ("a.m", "kTSKPinnedDomains: nothing", (), "there is no kTSKPinnedDomains with a dictionary in it"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, name: str, content: str, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SidecarFailed) as failed:
        Sidecar("mode: enforce", tmp_path).run("pins", "import", name, *arguments)
    assert (failed.value.status, failed.value.stdout) == (1, "")
    assert told in failed.value.stderr


def test_imported_rules_hold_in_a_handshake(
    authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
) -> None:
    right, wrong = tls_upstream("a.pinned.example"), tls_upstream("a.pinned.example")
    (tmp_path / "config.xml").write_text(
        "<network-security-config><domain-config><domain includeSubdomains='true'>pinned.example</domain><pin-set><pin "
        f"digest='SHA-256'>{right.pin.removeprefix('sha256/')}</pin></pin-set></domain-config></network-security-config>"
    )
    text = Sidecar("mode: enforce", tmp_path).run("pins", "import", "config.xml")
    with Sidecar(text, tmp_path, authority=authority, hosts={"a.pinned.example": "127.0.0.1"}) as sidecar:
        assert curl(right.url(host="a.pinned.example"), proxy=sidecar.proxy_url).status == 200
        assert curl(wrong.url(host="a.pinned.example"), proxy=sidecar.proxy_url).json()["reason"] == "pin_mismatch"
    wrong.assert_no_application_bytes()


# OkHttp's pattern: (hosts that it matches, hosts that it does not)
OF_OKHTTP: dict[str, tuple[list[str], list[str]]] = {
    "exact.example": (["exact.example"], ["a.exact.example", "xexact.example"]),
    "*.one.example": (["a.one.example", "b.one.example"], ["one.example", "b.a.one.example", "aone.example"]),
    "**.any.example": (["any.example", "a.any.example", "b.a.any.example"], ["xany.example", "any.example.org"]),
}


def test_the_sidecar_decides_by_imported_patterns_as_okhttp_would(
    authority: Authority, tls_upstream: Callable[..., TlsUpstream], tmp_path: Path
) -> None:
    names = [host for lists in OF_OKHTTP.values() for hosts in lists for host in hosts]
    right, wrong = (tls_upstream(*names) for _ in range(2))
    calls = "".join(f'.add("{pattern}", "{right.pin}")' for pattern in OF_OKHTTP)
    (tmp_path / "Pinner.java").write_text(f"new CertificatePinner.Builder(){calls}.build();")
    text = Sidecar("mode: enforce", tmp_path).run("pins", "import", "Pinner.java")
    with Sidecar(text, tmp_path, authority=authority, hosts=dict.fromkeys(names, "127.0.0.1")) as sidecar:

        def reasons(upstream: TlsUpstream) -> dict[str, str]:
            answers = {host: curl(upstream.url(host=host), proxy=sidecar.proxy_url) for host in names}
            return {host: str(answer.json().get("reason", "")) for host, answer in answers.items()}

        assert reasons(right) == dict.fromkeys(names, "")
        found = reasons(wrong)
    for pattern, (matching, others) in OF_OKHTTP.items():
        assert {host: found[host] for host in matching} == dict.fromkeys(matching, "pin_mismatch"), pattern
        assert {host: found[host] for host in others} == dict.fromkeys(others, ""), pattern
