"""`overcoat pins fetch`: it shows the keys that the sidecar would see, and what it shows makes a rule that works.

Proves DESIGN rules 2, 3 and 8 for a command that dials on its own: verified chains only, nothing sent but a handshake.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.certificates import Authority, Variant
from tests.e2e.clients import curl
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import PlainUpstream, TlsUpstream

MakeTls = Callable[..., TlsUpstream]
HOSTS = {"api.example": "127.0.0.1"}
NO_PIN = "sha256/" + "A" * 42 + "E="


def refusal(sidecar: Sidecar, *arguments: str) -> SidecarFailed:
    with pytest.raises(SidecarFailed) as refused:
        sidecar.run("pins", "fetch", "-p", "policy.yaml", *arguments)
    assert refused.value.stdout == ""
    return refused.value


def test_the_hint_of_a_mismatch_leads_to_a_rule_that_matches(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    middle = authority.intermediate()
    identity = middle.issue("api.example")
    upstream = tls_upstream(identity=identity)
    rule = "rules: [{{name: api, hosts: [api.example], pins: {{any_of: ['{}']}}}}]"
    with Sidecar(rule.format(NO_PIN), tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        denied = curl(upstream.url(host="api.example"), proxy=sidecar.proxy_url).json()
        assert (denied["reason"], identity.pin in denied["detail"]) == ("pin_mismatch", True)
        command = denied["hint"].partition("run overcoat ")[2].partition(" for ")[0].split()
        assert command == ["pins", "fetch", f"api.example:{upstream.port}"]
        shown = json.loads(sidecar.run(*command, "-p", "policy.yaml", "--json"))
        assert [each["pin"] for each in shown["chain"]] == [identity.pin, middle.pin, authority.pin]
        assert shown["server"] == f"api.example:{upstream.port}"
        upstream.assert_no_application_bytes()
        for each in shown["chain"]:
            for name in ("pin", "certificate_pin"):
                folder = tmp_path / each[name].replace("/", "-")
                folder.mkdir()
                with Sidecar(rule.format(each[name]), folder, authority=authority, hosts=HOSTS) as pinned:
                    assert curl(upstream.url(host="api.example"), proxy=pinned.proxy_url).status == 200


def test_people_see_the_pins_and_are_told_to_compare_them(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    upstream = tls_upstream("api.example")
    policy = f"rules: [{{name: api, hosts: [api.example], https_port: {upstream.port}}}]"
    sidecar = Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS)
    shown = sidecar.run("pins", "fetch", "-p", "policy.yaml", "API.example.")
    assert f"api.example:{upstream.port}, TLSv1.3: its certificate is valid." in shown
    assert f'pins: {{any_of: ["{upstream.pin}"]}}' in shown
    assert authority.pin in shown
    upstream.settle()
    assert upstream.connections[0].sni == "api.example"


@pytest.mark.parametrize("variant", [variant for variant in Variant if variant is not Variant.VALID])
def test_what_cannot_be_verified_is_not_shown(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, variant: Variant
) -> None:
    upstream = tls_upstream(identity=authority.issue("api.example", variant=variant))
    sidecar = Sidecar("mode: observe", tmp_path, authority=authority, hosts=HOSTS)
    failed = refusal(sidecar, f"api.example:{upstream.port}")
    assert failed.status == 1
    assert "error: certificate_invalid: the certificate of api.example is not valid" in failed.stderr
    upstream.assert_no_application_bytes()


def test_it_goes_only_where_the_sidecar_would(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    upstream = tls_upstream("api.example")
    sidecar = Sidecar("destinations: {egress: any}", tmp_path, authority=authority, hosts=HOSTS)
    failed = refusal(sidecar, f"api.example:{upstream.port}")
    assert "error: destination_forbidden: api.example is at a loopback address" in failed.stderr
    upstream.settle()
    assert not upstream.connections


def test_who_speaks_no_tls_and_who_is_not_there(
    authority: Authority, plain_upstream: PlainUpstream, tmp_path: Path
) -> None:
    sidecar = Sidecar("mode: enforce", tmp_path, authority=authority, hosts=HOSTS)

    assert "error: tls_failed: " in refusal(sidecar, f"api.example:{plain_upstream.port}").stderr
    assert "error: upstream_unreachable: " in refusal(sidecar, "nobody.example").stderr
    wrong = refusal(sidecar, "https://api.example")
    assert (wrong.status, "HOST[:PORT]" in wrong.stderr) == (2, True)
