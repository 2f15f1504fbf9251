"""OkHttp's `CertificatePinner`: its pattern rules as a table, and what of program text is taken for its calls."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.destinations import Destination
from proxy.core.pinimport.okhttp import read_okhttp
from proxy.core.pinimport.rules import MOST_HOSTS, Imported
from proxy.core.pinimport.source import Reader, Token
from proxy.core.rules.policy import Https, PlainHttp, Policy, Rule


def pin(name: str) -> str:
    return "sha256/" + base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()


def asked(imported: Imported, host: str) -> set[str]:
    """Return the pins that hold for a host: those of the first rule that names it."""
    rules = tuple(
        Rule(str(number), each.hosts, PlainHttp.UPGRADE, Https.INSPECT) for number, each in enumerate(imported.rules)
    )
    found = Policy(rules=rules).rule_for(Destination(host, 443))
    return set() if found is None else {str(each) for each in imported.rules[int(found.name)].pins}


# pattern: (hosts that it matches, hosts that it does not), as OkHttp's own documentation and tests have it
PATTERNS: dict[str, tuple[list[str], list[str]]] = {
    "publicobject.com": (["publicobject.com"], ["www.publicobject.com", "xpublicobject.com"]),
    "*.publicobject.com": (
        ["www.publicobject.com", "us-west.publicobject.com"],
        ["publicobject.com", "a.www.publicobject.com", "xpublicobject.com"],
    ),
    "**.publicobject.com": (
        ["publicobject.com", "www.publicobject.com", "us-west.egress.publicobject.com"],
        ["xpublicobject.com", "publicobject.com.example", "com"],
    ),
    "PublicObject.COM": (["publicobject.com"], []),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str) -> None:
    imported = read_okhttp(f'CertificatePinner.Builder().add("{pattern}", "{pin("a")}")')
    matching, others = PATTERNS[pattern]
    assert all(asked(imported, host) == {pin("a")} for host in matching)
    assert not any(asked(imported, host) for host in others)


OF_ITS_DOCUMENTATION = """\
 *     String hostname = "publicobject.com";
 *     CertificatePinner certificatePinner = new CertificatePinner.Builder()
 *         .add(hostname, "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
 *         .build();
 *     OkHttpClient client = OkHttpClient.Builder()
 *         .certificatePinner(certificatePinner)
 *         .build();
 *
 *     Request request = new Request.Builder()
 *         .url("https://" + hostname)
 *         .build();
 *     client.newCall(request).execute();

 CertificatePinner certificatePinner = new CertificatePinner.Builder()
     .add("publicobject.com", "sha256/afwiKY3RxoMmLkuRW1l7QsPZTJPwDS2pdDROQjXw8ig=")
     .add("publicobject.com", "sha256/klO23nT2ehFDXCfx3eHTDRESMz3asj1muO+4aIdjiuY=")
     .add("publicobject.com", "sha256/grX4Ta9HpZx6tSHkmCrvpApTQGo67CYDnvprLg5yRME=")
     .add("publicobject.com", "sha256/lCppFqbkrlJ3EcVFAkeip0+44VaoJUymbnOaEUk7tEU=")
     .build();
"""


def test_the_examples_of_its_documentation() -> None:
    imported = read_okhttp(OF_ITS_DOCUMENTATION)
    (note,) = imported.notes
    assert note == f'line 3: "{"A" * 43}=" is a placeholder and no pin, and not carried over'
    assert asked(imported, "publicobject.com") == {
        "sha256/afwiKY3RxoMmLkuRW1l7QsPZTJPwDS2pdDROQjXw8ig=",
        "sha256/klO23nT2ehFDXCfx3eHTDRESMz3asj1muO+4aIdjiuY=",
        "sha256/grX4Ta9HpZx6tSHkmCrvpApTQGo67CYDnvprLg5yRME=",
        "sha256/lCppFqbkrlJ3EcVFAkeip0+44VaoJUymbnOaEUk7tEU=",
    }


WRONG = ["*", "**", "***.a.com", "a.*.com", "*a.com", "*.*.com", "**.*.com", "", "*.", "a b.com"]


@pytest.mark.parametrize("pattern", WRONG)
def test_what_is_no_pattern_of_okhttps(pattern: str) -> None:
    imported = read_okhttp(f'CertificatePinner.Builder().add("{pattern}", "{pin("a")}")')
    assert imported.rules == ()
    assert "not carried over" in imported.notes[0]


def _matches(pattern: str, host: str) -> bool:
    """Say whether OkHttp's pattern matches, as OkHttp computes it (CertificatePinner.Pin.matchesHostname)."""
    if pattern.startswith("**."):
        suffix = pattern[3:]
        before = len(host) - len(suffix)
        return host.endswith(suffix) and (before == 0 or (before > 0 and host[before - 1] == "."))
    if pattern.startswith("*."):
        suffix = pattern[1:]
        return host.endswith(suffix) and "." not in host[: len(host) - len(suffix)] and len(host) > len(suffix)
    return host == pattern


HOSTS = ["x.com", "a.x.com", "b.x.com", "b.a.x.com", "c.b.a.x.com", "y.com"]
SOME = st.sampled_from([star + host for host in HOSTS for star in ("", "*.", "**.")])


@given(st.lists(st.tuples(SOME, st.sampled_from("pqrs")), max_size=8), st.sampled_from(HOSTS))
def test_the_first_rule_has_the_pins_of_all_patterns_that_a_host_matches(
    added: list[tuple[str, str]], host: str
) -> None:
    calls = "".join(f'.add("{pattern}", "{pin(name)}")' for pattern, name in added)
    imported = read_okhttp(f"CertificatePinner.Builder(){calls}.build()")
    assert asked(imported, host) == {pin(name) for pattern, name in added if _matches(pattern, host)}


P, Q = pin("p"), pin("q")


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        (f'.add("a.com", "{P}", "{Q}")', {P, Q}),
        (f'.add("a.com", "{P}").add("a.com", "{Q}")', {P, Q}),
        (f'.add("a.com", "{P[:10]}" + "{P[10:]}")', {P}),
        (f'.add("a.com", "{P.rstrip("=")}")', {P}),
        (f'String host = "a.com"; x.add(host, "{P}");', {P}),
        (f'const val HOST: String = "a.com"\nx.add(Config.HOST, "{P}")', {P}),
        (f'static final String PIN = "{P}"; x.add("a.com", Pins.PIN)', {P}),
        (f'.add("a.com" /* not "b.com" */, // "{Q}"\n "{P}")', {P}),
        (f'.add("a.com", """{P}""")', {P}),
        (f'.add("a\\u002ecom", "{P}")', {P}),
        (f'.add("a.com", pinOf("{Q}"), "{P}")', {P}),
        (f'.add("a.com", (listOf("{Q}")), "{P}")', {P}),
        (f'char c = \'"\'; x.add("a.com", "{P}")', {P}),
        (f'.add("a.com", "{P}"', {P}),
        (f'// .add("a.com", "{P}")', set()),
        (f'/* .add("a.com", "{P}")', set()),
        (f'add("a.com", "{P}")', set()),
        (f'.add["a.com", "{P}"]', set()),
        (f'.add(host(), "{P}")', set()),
        (f'.add("$host.a.com", "{P}")', set()),
        (f'String h = "a.com"; h = "b.com"; x.add(h, "{P}")', set()),
        (f'String h = "a." + top; x.add(h, "{P}")', set()),
        ('list.add(0, "a.com")', set()),
        ('.add("a.com", "sha1/AAAA")', set()),
        ('.add("a.com", "sha256/AAAA")', set()),
        ('.add("a.com", "md5/AAAA")', set()),
        (f'NSString *h = @"a.com"; x.add(h, "{P}")', {P}),
        (f'.add("\\u{{FFFFFF}}a.com", "{P}")', set()),
        ('.add("a.com", """open', set()),
        (f'x = "open\n.add("a.com", "{P}")', {P}),
        (f'x = "open .add(a.com, {P})', set()),
        ("=", set()),
        ('= "', set()),
    ],
)
def test_what_is_a_call(text: str, pins: set[str]) -> None:
    assert asked(read_okhttp(text), "a.com") == pins


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (f'.add(host(), "{P}")', "line 1: a pattern that is no literal is not carried over, nor are its pins"),
        ('\n.add("a.com", pins)', 'line 2: the pins of "a.com" are no literals, and not carried over'),
        (f'.add("a.com", x(), "{P}")', "line 1: a pin of a.com that is no literal is not carried over"),
        ('.add("a.com", "sha1/AA")', 'line 1: "sha1/AA" of a.com is not carried over: SHA-1 is no hash to pin with'),
        ('.add("a.com", "sha256/AA")', 'line 1: "AA" is no SHA-256 in base64, and not carried over'),
        (f'.add("a.com", "{P}", "x")', 'line 1: "x" is no SHA-256 in base64, and not carried over'),
    ],
)
def test_what_could_not_be_carried_over_is_said(text: str, note: str) -> None:
    assert read_okhttp(text).notes == (note,)


def test_very_many_hosts_are_refused() -> None:
    calls = "".join(f'.add("h{number}.com", "{P}")' for number in range(MOST_HOSTS + 1))
    with pytest.raises(ValueError, match="more than 2000 hosts"):
        read_okhttp(calls)


def test_calls_in_one_another_are_not_read_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 1 MiB took a minute, when each call was read up to 400 tokens far."""
    looks = 0
    at = Reader.at

    def counted(self: Reader, place: int) -> Token | None:
        nonlocal looks
        looks += 1
        return at(self, place)

    monkeypatch.setattr(Reader, "at", counted)
    read_okhttp(".add(" * 1000)  # three tokens each
    assert looks < 3000 * 15
    note = 'line 1: the pins of "a.com" are no literals, and not carried over'
    assert read_okhttp(f'.add("a.com", {"x(" * 9}"{P}"{")" * 9}, "{P}")').notes == (note,)
    assert asked(read_okhttp(f'.add("a.com", {"x(" * 8}"{P}"{")" * 8}, "{P}")'), "a.com") == {P}


@given(st.text(alphabet="ad.(){}[]\"'/*+@,:=$\\n sha256", max_size=200))
def test_no_text_makes_it_raise(text: str) -> None:
    read_okhttp(text)
    read_okhttp(f'.add("a.com", "{P}"{text}')
