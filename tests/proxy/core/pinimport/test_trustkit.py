"""TrustKit's configuration: what each key comes to, in each of the languages."""

from __future__ import annotations

import plistlib
from contextlib import suppress
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pinimport.rules import Imported, Pinned
from proxy.core.pinimport.trustkit import read_dictionary, read_plist

HASHES = ["HXXQgxueCIU5TTLHob/bPbwcKOKw6DkfsTWYHbxbqTY=", "0SDf3cRToyZJaMsoS17oF72VMavLxj/N7WBNasNuiR8="]
PINS = [f"sha256/{each}" for each in HASHES]


def plist(domain: dict[str, Any], **around: Any) -> Imported:
    return read_plist(plistlib.dumps({"TSKPinnedDomains": {"a.example": domain}, **around}))


def only(imported: Imported) -> Pinned:
    (rule,) = imported.rules
    assert [str(pin) for pin in rule.pins] == PINS
    return rule


def swift(domain: str, around: str = "") -> Imported:
    hashes = ", ".join(f'"{each}"' for each in HASHES)
    return read_dictionary(f'[{around}kTSKPinnedDomains: ["a.example": [kTSKPublicKeyHashes: [{hashes}],{domain}]]]')


def objective_c(domain: str, around: str = "") -> Imported:
    hashes = ", ".join(f'@"{each}"' for each in HASHES)
    text = f'@{{{around}kTSKPinnedDomains : @{{@"a.example" : @{{ kTSKPublicKeyHashes : @[{hashes}], {domain} }}}}}};'
    return read_dictionary(text)


@pytest.mark.parametrize(
    ("more", "host", "observes"),
    [
        ({}, "a.example", False),
        ({"TSKIncludeSubdomains": True}, "**.a.example", False),
        ({"TSKIncludeSubdomains": False}, "a.example", False),
        ({"TSKEnforcePinning": False}, "a.example", True),
        ({"TSKEnforcePinning": True}, "a.example", False),
    ],
)
def test_a_property_list(more: dict[str, bool], host: str, observes: bool) -> None:
    rule = only(plist({"TSKPublicKeyHashes": HASHES, **more}))
    assert (str(rule.hosts[0]), rule.observes, rule.last_day) == (host, observes, None)


def test_the_day_is_a_text_or_a_date() -> None:
    for day in ("2099-12-01", datetime(2099, 12, 1, 12, 0)):
        assert only(plist({"TSKPublicKeyHashes": HASHES, "TSKExpirationDate": day})).last_day == date(2099, 11, 30)
    for wrong in ("soon", "0001-01-01", 7):
        rule = only(plist({"TSKPublicKeyHashes": HASHES, "TSKExpirationDate": wrong}))
        assert rule.last_day is None
        assert "not carried over: the pins have no end" in rule.notes[0]


@pytest.mark.parametrize("yes", ["true", "NSNumber(value: true)", "NSNumber(booleanLiteral: true)"])
@pytest.mark.parametrize("no", ["false", "NSNumber(value: false)"])
def test_swift(yes: str, no: str) -> None:
    rule = only(swift(f'kTSKIncludeSubdomains: {yes}, kTSKEnforcePinning: {no}, kTSKExpirationDate: "2099-12-01"'))
    assert (str(rule.hosts[0]), rule.observes, rule.last_day) == ("**.a.example", True, date(2099, 11, 30))
    unknown = only(swift("kTSKIncludeSubdomains: flag(), kTSKEnforcePinning: !x"))
    assert (str(unknown.hosts[0]), unknown.observes) == ("a.example", False)
    assert len([note for note in unknown.notes if "its default counts" in note]) == 2


@pytest.mark.parametrize("yes", ["@YES", "@(YES)", "[NSNumber numberWithBool:YES]"])
@pytest.mark.parametrize("no", ["@NO", "@(NO)", "[NSNumber numberWithBool:NO]"])
def test_objective_c(yes: str, no: str) -> None:
    text = f'kTSKIncludeSubdomains : {yes}, kTSKEnforcePinning : {no}, kTSKExpirationDate : @"2099-12-01"'
    rule = only(objective_c(text))
    assert (str(rule.hosts[0]), rule.observes, rule.last_day) == ("**.a.example", True, date(2099, 11, 30))
    assert not any("default" in note for note in rule.notes)
    nothing = only(objective_c("kTSKIncludeSubdomains : [NSNumber numberWithInt:x]"))
    assert str(nothing.hosts[0]) == "a.example"


def test_an_exception_stands_before_what_it_is_excepted_from() -> None:
    for key in ("kSKExcludeSubdomainFromParentPolicy", "TSKExcludeSubdomainFromParentPolicy"):
        domains = {
            "example": {"TSKPublicKeyHashes": HASHES, "TSKIncludeSubdomains": True},
            "a.example": {key: True},
            "a.other": {key: True},
        }
        imported = read_plist(plistlib.dumps({"TSKPinnedDomains": domains}))
        assert [(str(rule.hosts[0]), len(rule.pins)) for rule in imported.rules] == [
            ("a.example", 0),
            ("**.example", 2),
        ]
    (exception, _) = read_dictionary(
        'kTSKPinnedDomains: ["a.b.c": [kTSKExcludeSubdomainFromParentPolicy: true], "b.c": [kTSKIncludeSubdomains: '
        f'true, kTSKPublicKeyHashes: ["{HASHES[0]}"]]]'
    ).rules
    assert (str(exception.hosts[0]), exception.pins) == ("a.b.c", ())


def test_what_could_not_be_carried_over_is_said() -> None:
    imported = plist(
        {
            "TSKPublicKeyHashes": [*HASHES, "junk", 7],
            "TSKReportUris": ["x"],
            "TSKDisableDefaultReportUri": True,
            "Other": 1,
        }
    )
    assert only(imported).notes == (
        '"junk" is no SHA-256 in base64, and not carried over',
        "a value that is no literal, and not carried over",
        '"Other" is not known, and not carried over',
        "TSKReportUris is not carried over: decision lines and metrics report",
    )
    none = plist({"TSKPublicKeyHashes": ["junk"]})
    assert (none.rules, none.notes[-1]) == (
        (),
        'none of the pins of "a.example" could be carried over: it is NOT pinned here',
    )
    assert plist({}).rules == ()
    wrong = read_plist(plistlib.dumps({"TSKPinnedDomains": {"a b": {"TSKPublicKeyHashes": HASHES}, "c.example": 1}}))
    assert wrong.notes == (
        '"a b" is no host, and not carried over',
        'what stands for "c.example" is not known here, and not carried over',
    )
    ignores = swift("", "kTSKIgnorePinningForUserDefinedTrustAnchors: true, ")
    assert "what such roots have signed is held to the pins here, too" in ignores.notes[0]
    assert objective_c("", "kTSKIgnorePinningForUserDefinedTrustAnchors : @NO, ").notes == ()
    unnamed = read_dictionary('kTSKPinnedDomains: [domain(): [kTSKPublicKeyHashes: []], "a": [:]]')
    assert "a key that is no literal is not carried over, nor what it stands for" in unnamed.notes[0]


@pytest.mark.parametrize("data", [b"", b"<plist>", b"<plist><array/></plist>", plistlib.dumps({}), plistlib.dumps([])])
def test_what_is_no_such_list(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"property list|TSKPinnedDomains"):
        read_plist(data)


def test_entities_are_refused() -> None:
    bomb = b'<!DOCTYPE plist [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><plist><string>&b;</string></plist>'
    with pytest.raises(ValueError, match="no property list"):
        read_plist(bomb)


@pytest.mark.parametrize(
    "text", ["", "kTSKPinnedDomains", "kTSKPinnedDomains:", "kTSKPinnedDomains: 1", "kTSKPinnedDomains: [1"]
)
def test_what_is_no_such_dictionary(text: str) -> None:
    with pytest.raises(ValueError, match="no kTSKPinnedDomains with a dictionary"):
        read_dictionary(text)


def test_depth_is_limited() -> None:
    deep = "[" * 5000 + "]" * 5000
    assert read_dictionary(f'kTSKPinnedDomains: ["a": {deep}]').rules == ()


@given(st.text(alphabet='kTSK[]{}():,;"@YESNO \\n', max_size=120))
def test_no_text_raises_anything_else(text: str) -> None:
    for whole in (f"kTSKPinnedDomains: [{text}", f"kTSKPinnedDomains: @{{{text}}}"):
        with suppress(ValueError):
            read_dictionary(whole)
