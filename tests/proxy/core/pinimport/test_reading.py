"""Whose pins a text has; a Public-Key-Pins field; and the text of rules, into which nothing foreign breaks out."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import date

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.pinimport.reading import MOST_BYTES, Kind, NotReadable, import_pins, kind_of
from proxy.core.pinimport.rules import MOST_PINS, Imported, Pinned, as_policy, in_order, pattern_of, quoted
from proxy.core.pins import Pin

DIGEST = base64.b64encode(hashlib.sha256(b"a").digest()).decode()
PIN = Pin("spki", hashlib.sha256(b"a").digest())


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<network-security-config/>", Kind.ANDROID),
        (b"TSKPinnedDomains", Kind.TRUSTKIT),
        (b"CertificatePinner.Builder()", Kind.OKHTTP),
        (b'Pin-SHA256="x"', Kind.HPKP),
        (b"something else", None),
    ],
)
def test_whose_they_are(data: bytes, kind: Kind | None) -> None:
    assert kind_of(data) is kind


@pytest.mark.parametrize(
    ("data", "kind", "host", "told"),
    [
        (b"x" * (MOST_BYTES + 1), Kind.OKHTTP, None, "more than 1048576 bytes"),
        (b"", Kind.ANDROID, None, "well-formed"),
        (b"<plist", Kind.TRUSTKIT, None, "property list"),
        (b"", Kind.TRUSTKIT, None, "no kTSKPinnedDomains"),
        (b"", Kind.HPKP, None, "--host"),
        (b"", Kind.HPKP, "a.example", "no pin-sha256"),
        (f'.add("h.com", "sha256/{DIGEST}")'.encode() + b"\n" * MOST_BYTES, Kind.OKHTTP, None, "more than"),
        (f'pin-sha256="{DIGEST}"'.encode(), Kind.HPKP, "a b", "no host"),
        (f'pin-sha256="{DIGEST}"; max-age=0'.encode(), Kind.HPKP, "a.example", "forget the pins"),
    ],
)
def test_what_is_not_of_that_kind(data: bytes, kind: Kind, host: str | None, told: str) -> None:
    with pytest.raises(NotReadable) as refused:
        import_pins(data, kind, host)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("text", "pattern", "observes", "notes"),
    [
        ('pin-sha256="{}"', "a.example", False, []),
        ("pin-sha256={}", "a.example", False, []),
        ('Public-Key-Pins: max-age=60; PIN-SHA256="{}"; includeSubDomains', "**.a.example", False, ["max-age=60"]),
        ('public-key-pins-report-only:pin-sha256="{}"', "a.example", True, []),
        ('pin-sha256="{}"; report-uri="https://r.example/"', "a.example", False, ["report-uri is not carried over"]),
        ('pin-sha256="{}"; pin-sha256; foo', "a.example", False, ['"" is no SHA-256', '"foo" is not known']),
        ('Public-Key-Pins: pin-sha256="{}"\nincludeSubDomains: no', "a.example", False, []),
    ],
)
def test_a_public_key_pins_field(text: str, pattern: str, observes: bool, notes: list[str]) -> None:
    found = import_pins(text.format(DIGEST).encode(), Kind.HPKP, "a.example")
    (rule,) = found.rules
    assert (str(rule.hosts[0]), rule.pins, rule.observes) == (pattern, (PIN,), observes)
    assert len(found.notes) == len(notes)
    assert all(said.startswith(note) for said, note in zip(found.notes, notes, strict=True))


D6, E9, LP = (
    f"sha256/{text}="
    for text in (
        "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM",
        "E9CZ9INDbd+2eRQozYqqbQ2yXLVKB9+xcprMF+44U1g",
        "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ",
    )
)
# The examples of RFC 7469, section 2.1.5, as they are printed there, and what each says
OF_THE_RFC = [
    (f"Public-Key-Pins: max-age=3000;\n    {D6};\n    {E9}", [D6, E9], "example.com", False),
    (f"Public-Key-Pins: max-age=2592000;\n    {E9};\n    {LP}", [E9, LP], "example.com", False),
    (
        f'Public-Key-Pins: max-age=2592000;\n    {E9};\n    {LP};\n    report-uri="http://example.com/pkp-report"',
        [E9, LP],
        "example.com",
        False,
    ),
    (
        f"Public-Key-Pins-Report-Only: max-age=2592000;\n    {E9};\n    {LP};\n"
        '    report-uri="https://other.example.net/pkp-report"',
        [E9, LP],
        "example.com",
        True,
    ),
    (f"Public-Key-Pins:\n    {D6};\n    {LP};\n    max-age=259200", [D6, LP], "example.com", False),
    (
        f"Public-Key-Pins:\n    {D6};\n    {E9};\n    {LP};\n    max-age=10000; includeSubDomains",
        [D6, E9, LP],
        "**.example.com",
        False,
    ),
]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(("text", "pins", "pattern", "observes"), OF_THE_RFC)
def test_the_examples_of_the_rfc(text: str, pins: list[str], pattern: str, observes: bool, ending: str) -> None:
    text = re.sub(r"sha256/(\S+=)", r'pin-sha256="\1"', f"{text}\nServer: a; b=c\n").replace("\n", ending)
    (rule,) = import_pins(text.encode(), Kind.HPKP, "example.com").rules
    assert ([str(pin) for pin in rule.pins], str(rule.hosts[0]), rule.observes) == (pins, pattern, observes)


def test_okhttps_text_is_read() -> None:
    (rule,) = import_pins(f'\ufeff.add("h.example", "sha256/{DIGEST}")'.encode(), Kind.OKHTTP).rules
    assert (str(rule.hosts[0]), rule.pins) == ("h.example", (PIN,))


def test_the_text_of_rules_is_what_it_should_be() -> None:
    rules = (
        Pinned((pattern_of("a.example"),), (PIN,), date(2030, 1, 1), True, ("one note",)),
        Pinned((pattern_of("a.example", "any_depth"), pattern_of("2001:db8::1")), (PIN,)),
        Pinned((pattern_of("b.example"),), ()),
        Pinned((pattern_of("c.example"),), (PIN,)),
    )
    text = as_policy(Imported(rules, ("a note",)), "A title.")
    assert text.startswith("# A title.\n# a note\nversion: 1\nrules:\n  # one note\n")
    found = yaml.safe_load(text)
    assert [rule["name"] for rule in found["rules"]] == ["a-example", "a-example-2", "b-example", "c-example"]
    assert found["rules"][0]["pins"] == {
        "any_of": [str(PIN)],
        "expires": date(2030, 1, 1),
        "after_expiry": "warn",
        "mode": "observe",
    }
    assert found["rules"][1]["hosts"] == ["**.a.example", "[2001:db8::1]"]
    assert "pins" not in found["rules"][2]
    assert yaml.safe_load(as_policy(Imported((), ()), "Nothing.")) == {"version": 1}


@given(st.text(max_size=400))
def test_foreign_words_stay_on_one_line(words: str) -> None:
    rules = in_order([Pinned((pattern_of("a.example"),), (PIN,), notes=(quoted(words),))], [quoted(words)])
    lines = as_policy(rules, "Title.").split("\n")
    assert len(lines) == 11
    assert yaml.safe_load("\n".join(lines))["rules"][0]["pins"] == {"any_of": [str(PIN)]}


def test_a_kind_that_nobody_knows_is_ours_to_mend() -> None:
    with pytest.raises(AssertionError):
        pattern_of("a.example", "three_labels")


def _shared_by_many(kind: Kind, count: int) -> bytes:
    """Text in which so many pins are given to one host, and others have them, too."""
    digests = [base64.b64encode(hashlib.sha256(b"%d" % number).digest()).decode() for number in range(count)]
    if kind is Kind.ANDROID:
        pins = f'<pin digest="SHA-256">{digests[0]}</pin>' + "<pin/>\n" * (count - 1)  # notes are repeated like pins
        nested = "<domain-config><domain>a.x</domain></domain-config>"
        return (
            f"<network-security-config><domain-config><pin-set>{pins}</pin-set>{nested}</domain-config>"
            "</network-security-config>"
        ).encode()
    wide = "".join(f'.add("**.x", "sha256/{digest}")' for digest in digests)
    return f'CertificatePinner.Builder(){wide}.add("a.x", "sha256/{digests[0]}")'.encode()


@pytest.mark.parametrize("kind", [Kind.ANDROID, Kind.OKHTTP])
def test_what_many_hosts_share_is_limited(kind: Kind) -> None:
    """Each rule repeats it: a file of 100 KB became a policy of 500 MB."""
    assert import_pins(_shared_by_many(kind, MOST_PINS), kind).rules
    with pytest.raises(NotReadable, match=f"more than {MOST_PINS} pins"):
        import_pins(_shared_by_many(kind, MOST_PINS + 1), kind)
