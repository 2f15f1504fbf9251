"""A pin's life: before it counts (`pins.mode: observe`), while it does (which one matched, and where), and after its
last day (`pins.after_expiry`); and what is said of a server that is refused.

Proves ARCHITECTURE's rules 3 (nothing leaves early), 7 (say why) and 8 (never weaker than without it): what is only
observed lets a server pass for its pins alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from addons.verification import verify_error
from proxy.core.certificates.words import circumstances
from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.clients import Answer, curl
from tests.e2e.sidecar import ROOT, Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream

MakeTls = Callable[..., TlsUpstream]

UNUSED_PIN = "sha256/" + "A" * 42 + "E="
NAMES = ("held.example", "observed.example", "lapsed.example", "observed-lapsed.example", "free.example")
POLICY = """
    rules:
      - {{name: held, hosts: [held.example], pins: {{any_of: ["{unused}", "{middle}", "{root}"]}}}}
      - {{name: observed, hosts: [observed.example], pins: {{any_of: ["{unused}"], mode: observe}}}}
      - name: lapsed
        hosts: [lapsed.example]
        pins: {{any_of: ["{unused}"], expires: {yesterday}, after_expiry: warn}}
      - name: observed-lapsed
        hosts: [observed-lapsed.example]
        pins: {{any_of: ["{unused}"], expires: {yesterday}, mode: observe}}
"""


@dataclass(frozen=True)
class World:
    """What the tests of this module share: a sidecar, an intermediate whose key is pinned, and what it has issued."""

    sidecar: Sidecar
    middle: Authority
    right: Identity

    def ask(self, upstream: TlsUpstream, host: str) -> tuple[Answer, dict[str, Any]]:
        """Send a request with a body, and return its answer and its decision line."""
        answer = curl("-d", "secret", upstream.url(host=host), proxy=self.sidecar.proxy_url)
        asked = f"{host}:{upstream.port}"
        return answer, self.sidecar.wait_for_decision(lambda line: line["destination"] == asked)

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of a counter."""
        return self.sidecar.metrics().value(f"overcoat_{name}_total", **labels)


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    middle = authority.intermediate()
    policy = POLICY.format(
        unused=UNUSED_PIN,
        middle=middle.pin,
        root=authority.pin,
        yesterday=datetime.now(UTC).date() - timedelta(days=1),
    )
    hosts = dict.fromkeys(NAMES, "127.0.0.1")
    with Sidecar(policy, tmp_path_factory.mktemp("life"), authority=authority, hosts=hosts) as sidecar:
        yield World(sidecar, middle, middle.issue(*NAMES))


def test_which_pin_matched_at_which_level_is_counted(world: World, tls_upstream: MakeTls) -> None:
    def counts() -> dict[tuple[str, str], float]:
        metrics = world.sidecar.metrics()
        return {
            (labels["pin"], labels["level"]): value
            for name, labels, value in metrics.samples
            if name == "overcoat_pin_matches_total" and labels["rule"] == "held"
        }

    before = counts()
    levels = ("leaf", "intermediate", "root")
    pins = [pin[:15] for pin in (UNUSED_PIN, world.middle.pin)]
    assert {(pin, level) for pin in pins for level in levels} <= set(before)  # there from the start, as 0
    assert len(before) == 9
    upstream = tls_upstream(identity=world.right)
    answer, line = world.ask(upstream, "held.example")
    assert (answer.status, line["pin"], line["would_deny"]) == (200, "match", False)
    after = counts()
    grown = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    assert {level: value for (_, level), value in grown.items()} == {"intermediate": 1, "root": 1}
    assert world.counted("pin_checks", rule="held", result="match", level="intermediate") == 1


def test_a_mismatch_tells_the_keys_of_each_level_and_those_wanted(
    world: World, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    upstream = tls_upstream(identity=world.right)
    policy = f'rules: [{{name: api, hosts: [held.example], pins: {{any_of: ["{UNUSED_PIN}"]}}}}]'
    with Sidecar(policy, tmp_path, authority=authority, hosts={"held.example": "127.0.0.1"}) as sidecar:
        problem = curl(upstream.url(host="held.example"), proxy=sidecar.proxy_url).json()
        line = sidecar.wait_for_decision()
        metrics = sidecar.metrics()
        page = curl("-H", "Accept: text/html", upstream.url(host="held.example"), proxy=sidecar.proxy_url).body.decode()
    pins = [upstream.pin, world.middle.pin, authority.pin]
    levels = ("leaf", "intermediate", "root")
    seen = [{"level": level, "pin": pin} for level, pin in zip(levels, pins, strict=True)]
    assert (problem["reason"], problem["pins_seen"], problem["pins_wanted"]) == ("pin_mismatch", seen, [UNUSED_PIN])
    assert (line["reason"], line["pins_seen"], line["pins_wanted"]) == ("pin_mismatch", seen, [UNUSED_PIN])
    shown = [unescape(each) for each in re.findall(r"<li><code>(.*?)</code></li>", page)]
    assert shown == [*(f"{level} {pin}" for level, pin in zip(levels, pins, strict=True)), UNUSED_PIN]
    assert metrics.value("overcoat_pin_checks_total", rule="api", mode="enforce", result="mismatch", level="-") == 1
    assert not any(pin in metrics.text for pin in pins)
    upstream.assert_no_application_bytes()


def test_observed_pins_let_pass_and_report(world: World, tls_upstream: MakeTls) -> None:
    upstream = tls_upstream(identity=world.right)
    before = world.counted("pin_checks", rule="observed", mode="observe", result="mismatch")
    answer, line = world.ask(upstream, "observed.example")
    assert answer.status == 200
    assert upstream.wait_for_requests(1)[0].body == b"secret"
    assert (line["action"], line["outcome"], line["reason"], line["mode"]) == ("upgrade", "ok", None, "enforce")
    assert (line["pin"], line["would_deny"]) == ("mismatch", True)
    assert line["pin_detail"].startswith("rule observed pins observed.example, and no key of its verified chain")
    assert [each["pin"] for each in line["pins_seen"]][:2] == [upstream.pin, world.middle.pin]
    assert world.counted("pin_checks", rule="observed", mode="observe", result="mismatch") == before + 1


@pytest.mark.parametrize("variant", [variant for variant in Variant if variant is not Variant.VALID])
@pytest.mark.parametrize("host", ["observed.example", "lapsed.example"])
def test_what_is_wrong_besides_is_refused_as_ever(
    world: World, authority: Authority, tls_upstream: MakeTls, variant: Variant, host: str
) -> None:
    upstream = tls_upstream(identity=authority.issue(host, variant=variant))
    answer, line = world.ask(upstream, host)
    assert (answer.status, answer.json()["reason"]) == (502, "certificate_invalid")
    assert (line["action"], line["would_deny"], "pin_detail" in line) == ("deny", False, False)
    upstream.assert_no_application_bytes()


def test_pins_past_their_day_that_only_warn_let_pass_and_say_so(world: World, tls_upstream: MakeTls) -> None:
    upstream = tls_upstream(identity=world.right)
    for host, mode in (("lapsed.example", "enforce"), ("observed-lapsed.example", "observe")):
        answer, line = world.ask(upstream, host)
        rule = host.removesuffix(".example")
        assert (answer.status, line["pin"], line["outcome"]) == (200, "expired", "ok")
        assert line["pin_detail"].startswith(f"the pins of rule {rule} expired on ")
        assert line["pin_detail"].endswith(f"no key of the verified chain of {host} matches them")
        assert line["would_deny"] is (mode == "observe")
        assert world.counted("pin_checks", rule=rule, mode=mode, result="expired") >= 1
    (labels,) = (
        labels
        for labels in world.sidecar.metrics().labels("overcoat_pins_expire_timestamp_seconds")
        if labels["rule"] == "lapsed"
    )
    assert labels["after_expiry"] == "warn"
    assert "rule lapsed: its pins expired on" in world.sidecar.stderr


def test_a_connection_with_pins_that_only_warn_is_used_again(world: World, tls_upstream: MakeTls) -> None:
    upstream = tls_upstream(identity=world.right)
    for _ in range(2):
        assert curl(upstream.url(host="lapsed.example"), proxy=world.sidecar.proxy_url).status == 200
    assert len(upstream.connections) == 1


@pytest.mark.parametrize("kind", ["observe", "warn", "enforce"])
def test_the_upstream_proxys_pins_have_the_same_life(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, kind: str
) -> None:
    proxy = tls_upstream("proxy.example")
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    more = {"observe": "mode: observe", "warn": f"expires: {yesterday}, after_expiry: warn", "enforce": "mode: enforce"}
    url = f"https://proxy.example:{proxy.port}"
    policy = f'upstream_proxy: {{url: "{url}", pins: {{any_of: ["{UNUSED_PIN}"], {more[kind]}}}}}'
    with Sidecar(policy, tmp_path, authority=authority, hosts={"proxy.example": "127.0.0.1"}) as sidecar:
        answer = curl("http://free.example/", proxy=sidecar.proxy_url)
        line = sidecar.wait_for_decision()
        metrics = sidecar.metrics()
    proxy.settle()
    is_asked = proxy.received != b""
    assert is_asked is (kind != "enforce")  # it is told CONNECT, and knows nothing of that
    assert (answer.json()["reason"] == "pin_mismatch") is (kind == "enforce")
    if kind != "enforce":
        assert line["pin_detail"].startswith("the upstream proxy: ")
    assert line["would_deny"] is (kind == "observe")
    labels = {"observe": ("observe", "mismatch"), "warn": ("enforce", "expired"), "enforce": ("enforce", "mismatch")}
    mode, result = labels[kind]
    name = "overcoat_pin_checks_total"
    assert metrics.value(name, rule="(upstream_proxy)", mode=mode, result=result) == 1
    assert metrics.value(name, rule="(upstream_proxy)") == 1


def test_the_paper_for_3_am_has_the_messages_that_are_printed(
    world: World, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    paper = (ROOT / "docs" / "pinning.md").read_text("utf-8")
    host = "api.pay.example"
    upstream = tls_upstream(identity=world.middle.issue(host))
    other = f"sha256/{'B' * 42}E="
    policy = f'rules: [{{name: payments, hosts: [{host}], pins: {{any_of: ["{UNUSED_PIN}", "{other}"]}}}}]'
    with Sidecar(policy, tmp_path, authority=authority, hosts={host: "127.0.0.1"}) as sidecar:
        problem = curl(upstream.url(host=host), proxy=sidecar.proxy_url).json()
        with pytest.raises(SidecarFailed) as failed:
            sidecar.run("pins", "fetch", "-p", "policy.yaml", f"{host}:{upstream.port}")
    written = json.dumps(problem).replace(f":{upstream.port}", "")
    written = re.sub(r"sha256/[A-Za-z0-9+/]{43}=", "sha256/…", written)
    written = re.sub(r"urn:uuid:[0-9a-f-]+", "urn:uuid:…", written)
    (shown,) = re.findall(r"```json\n(.*?)```", paper, re.DOTALL)
    assert json.loads(written) == json.loads(shown)
    (line,) = re.findall(r"^ *(error: pin_mismatch: .*)$", paper, re.MULTILINE)
    assert line in failed.value.stderr

    now = datetime(2027, 1, 1, tzinfo=UTC)
    certificate = world.right.certificate.public_bytes(serialization.Encoding.DER)
    for error, template in re.findall(r"`certificate_invalid`: \"… (.*?) \(depth 0\): (.*?)\"", paper):
        code = {"certificate has expired": 10, "hostname mismatch": 62}[error]
        assert verify_error(code) == error
        assert re.fullmatch(re.escape(template).replace("…", ".*"), circumstances(code, certificate, now))
    (template,) = re.findall(r"`certificate_invalid`: \"… (its issuer .*?)\"", paper)
    assert re.fullmatch(re.escape(template).replace("…", ".*"), circumstances(20, certificate, now))
