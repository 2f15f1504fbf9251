"""`overcoat pins check`, `fetch` of several servers, and `backup`: what a pin's owner runs every week.

Proves ARCHITECTURE's rules 3 and 8 for commands that dial on their own: nothing but a handshake is sent, by the
policy's trust and routes; and what is wrong makes the exit status 1.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from proxy.disk.ca import LocalCa
from tests.e2e.certificates import Authority, Identity, Variant, pin_of
from tests.e2e.clients import curl
from tests.e2e.farm import Party
from tests.e2e.sidecar import Sidecar, SidecarFailed
from tests.e2e.upstream import TlsUpstream

MakeTls = Callable[..., TlsUpstream]
NO_PIN = "sha256/" + "A" * 42 + "E="
# name: (trust.crls.when, what is trusted, what is wrong); there is a list of the intermediate authority alone
REVOCATIONS = {
    "no list of the root": ("if_present", "root", ""),
    "one is required": ("require", "root", "unable to get certificate CRL"),
    "an anchor needs none": ("require", "middle", ""),
    "revoked": ("if_present", "root", "certificate revoked"),
}
HOSTS = {f"{name}.example": "127.0.0.1" for name in ("one", "two", "three", "deep.four", "proxy")}


def checked(sidecar: Sidecar, *arguments: str, status: int = 0) -> tuple[dict[str, Any], str]:
    """Run `overcoat pins check --json`, and return its report and what it said on stderr."""
    try:
        said, errors, found = sidecar.run("pins", "check", "-p", "policy.yaml", "--json", *arguments), "", 0
    except SidecarFailed as failed:
        said, errors, found = failed.stdout, failed.stderr, failed.status or 0
    assert found == status, errors
    return json.loads(said), errors


def by_host(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["host"].partition(":")[0]: each for each in report["hosts"]}


def policy_of(*rules: str) -> str:
    return "rules:\n" + "".join(f"  - {rule}\n" for rule in rules)


def test_all_hosts_are_tried_and_what_is_wrong_makes_it_1(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    middle = authority.intermediate()
    one, two = tls_upstream(identity=middle.issue("one.example")), tls_upstream("two.example")
    three = tls_upstream(identity=authority.issue("three.example", variant=Variant.EXPIRED))
    pins = f"{{any_of: ['{middle.pin}', '{NO_PIN}'], expires: {datetime.now(UTC).date() + timedelta(days=40)}}}"
    good = f"{{name: one, hosts: ['one.example:{one.port}', '**.four.example'], pins: {pins}}}"
    others = (
        f"{{name: two, hosts: ['two.example:{two.port}'], pins: {{any_of: ['{NO_PIN}']}}}}",
        f"{{name: three, hosts: ['three.example:{three.port}']}}",
        "{name: gone, hosts: [gone.example]}",
        "{name: tunnelled, hosts: [t.example], plain_http: reject}",
    )
    sidecar = Sidecar(policy_of(good), tmp_path, authority=authority, hosts=HOSTS)
    report, _ = checked(sidecar)
    assert report["ok"] is True
    (found,) = report["hosts"]
    assert (found["host"], found["rule"], found["result"]) == (f"one.example:{one.port}", "rule one", "match")
    assert (found["level"], found["backups"]) == ("intermediate", [NO_PIN])
    assert (found["pins_days"], found["certificate_ends_at"]) == (40, "leaf")
    assert found["certificate_days"] > 14
    assert report["not_tried"] == [{"rule": "one", "pattern": "**.four.example"}]

    sidecar.write_policy(policy_of(good, *others))
    report, errors = checked(sidecar, status=1)
    hosts = by_host(report)
    assert {name: each["result"] for name, each in hosts.items()} == {
        "one.example": "match",
        "two.example": "mismatch",
        "three.example": "failed",
        "gone.example": "failed",
    }
    assert {"rule": "tunnelled", "pattern": "t.example"} in report["not_tried"]
    assert not hosts["one.example"]["troubles"]
    assert f"error: two.example:{two.port}: mismatch: nothing in the verified chain has a pin of rule two" in errors
    assert f"error: three.example:{three.port}: failed: certificate_invalid: " in errors
    assert "error: gone.example:443: failed: upstream_unreachable: " in errors
    assert "; see that gone.example is spelt as it should be" in errors
    for upstream in (one, two, three):
        upstream.assert_no_application_bytes()


def test_what_ends_too_soon_makes_it_1(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    one = tls_upstream("one.example")
    last = datetime.now(UTC).date() + timedelta(days=20)
    rule = f"{{name: one, hosts: ['one.example:{one.port}'], pins: {{any_of: ['{one.pin}'], expires: {last}}}}}"
    sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
    assert checked(sidecar, "--days", "19")[0]["ok"]
    report, errors = checked(sidecar, "--days", "22", status=1)
    assert report["ok"] is False
    assert f"error: one.example:{one.port}: the pins of rule one expire on {last} (in " in errors
    # A certificate that ends before, and pins without an end.
    days = (one.identity.certificate.not_valid_after_utc - datetime.now(UTC)).days
    sidecar.write_policy(policy_of(rule.replace(f", expires: {last}", "")))
    assert checked(sidecar, "--days", str(days))[0]["ok"]
    _, errors = checked(sidecar, "--days", str(days + 2), status=1)
    assert f"error: one.example:{one.port}: its certificate ends on " in errors


def test_a_pattern_is_tried_by_one_of_its_hosts(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    four = tls_upstream("deep.four.example")
    rule = f"{{name: four, hosts: ['**.four.example'], https_port: {four.port}, pins: {{any_of: ['{four.pin}']}}}}"
    sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
    report, _ = checked(sidecar)
    assert (report["hosts"], len(report["not_tried"])) == ([], 1)
    report, _ = checked(sidecar, "--host", "deep.four.example")
    assert (by_host(report)["deep.four.example"]["result"], report["not_tried"]) == ("match", [])
    with pytest.raises(SidecarFailed, match="no rule names other"):
        sidecar.run("pins", "check", "-p", "policy.yaml", "--host", "other.example")


def test_people_get_a_table(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    one = tls_upstream("one.example", "two.example")
    rule = f"{{name: one, hosts: ['one.example:{one.port}', '*.x.example'], pins: {{any_of: ['{one.pin}']}}}}"
    tunnelled = f"{{name: two, hosts: ['two.example:{one.port}'], https: tunnel}}"
    sidecar = Sidecar(policy_of(rule, tunnelled), tmp_path, authority=authority, hosts=HOSTS)
    LocalCa.open(sidecar.data, datetime.now(UTC))
    said = sidecar.run("pins", "check", "-p", "policy.yaml")
    row = next(line for line in said.splitlines() if line.strip().startswith("one.example"))
    assert row.split()[:4] == [f"one.example:{one.port}", "one", "match", "leaf"]
    assert row.split()[-2:] == ["d", "none"]
    assert row.split()[-3].startswith("182")  # the local CA, under whose certificate an app sees this host
    other = next(line for line in said.splitlines() if line.strip().startswith("two.example"))
    assert other.split()[-2:] == ["-", "-"]  # … and not that one
    assert "not tried: *.x.example of rule one" in said
    assert "the local CA ends" not in said
    sidecar.write_policy(policy_of(tunnelled))
    assert "the local CA ends in 182" in sidecar.run("pins", "check", "-p", "policy.yaml")


def test_a_pin_beside_none_that_matches_is_not_called_a_backup(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    one = tls_upstream("one.example")
    rule = f"{{name: one, hosts: ['one.example:{one.port}'], pins: {{any_of: ['{NO_PIN}']}}}}"
    sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
    with pytest.raises(SidecarFailed) as failed:
        sidecar.run("pins", "check", "-p", "policy.yaml")
    row = next(line for line in failed.value.stdout.splitlines() if line.strip().startswith("one.example"))
    assert (row.split()[2], row.split()[-1]) == ("mismatch", "-")


def test_the_local_ca_counts_where_something_is_inspected(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    one = tls_upstream("one.example")
    LocalCa.open(tmp_path / "data", datetime.now(UTC) - timedelta(days=5 * 365 - 10), any_clock=True)
    for pins, status in ((f", pins: {{any_of: ['{one.pin}', '{NO_PIN}']}}", 1), ("", 0)):
        rule = f"{{name: one, hosts: ['one.example:{one.port}']{pins}}}"
        sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
        report, _ = checked(sidecar, status=status)
        assert report["local_ca"]["is_due"] is bool(status)
        assert report["local_ca"]["days"] in (9, 10)
        assert report["hosts"][0]["local_ca_days"] == (report["local_ca"]["days"] if pins else None)


def test_the_upstream_proxy_and_what_is_behind_it(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    """The way is the policy's: with an upstream proxy that gives no tunnel, the host behind it is not reached."""
    proxy, one = tls_upstream("proxy.example", respond=lambda _: b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"), None
    url = f"https://proxy.example:{proxy.port}"
    policy = f'upstream_proxy: {{url: "{url}", pins: {{any_of: ["{proxy.pin}"]}}}}\n'
    policy += policy_of("{name: one, hosts: [one.example]}")
    sidecar = Sidecar(policy, tmp_path, authority=authority, hosts=HOSTS)
    report, errors = checked(sidecar, status=1)
    hosts = by_host(report)
    assert (hosts["proxy.example"]["rule"], hosts["proxy.example"]["result"]) == ("upstream_proxy", "match")
    assert (hosts["one.example"]["result"], one) == ("failed", None)
    assert "upstream_proxy_failed: the upstream proxy answered CONNECT with 403" in errors


class TestBackups:
    """`overcoat check` knows from `pins check` which pins stand in one chain."""

    def warnings(self, sidecar: Sidecar) -> str:
        return "\n".join(
            each["text"] if isinstance(each, dict) else each
            for each in json.loads(sidecar.run("check", "policy.yaml", "--json"))["warnings"]
        )

    def test_leaf_and_root_of_one_chain_are_no_backup_nor_are_a_key_and_its_certificate(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        one = tls_upstream("one.example")
        whole = one.identity.certificate.fingerprint(hashes.SHA256()).hex()
        for number, (second, has_backup) in enumerate(
            ((authority.pin, False), (f"cert-sha256/{whole}", False), (NO_PIN, True))
        ):
            folder = tmp_path / str(number)
            folder.mkdir()
            rule = f"{{name: one, hosts: ['one.example:{one.port}'], pins: {{any_of: ['{one.pin}', '{second}']}}}}"
            sidecar = Sidecar(policy_of(rule), folder, authority=authority, hosts=HOSTS)
            assert "without a backup" not in self.warnings(sidecar)  # nothing is known yet
            report, _ = checked(sidecar)
            assert (by_host(report)["one.example"]["backups"] != []) is has_backup
            warned = "rule one: 2 pins without a backup: all of them stood in what one.example" in self.warnings(
                sidecar
            )
            assert warned is not has_backup

    def test_a_chain_that_no_pin_vouches_for_is_not_remembered(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        one = tls_upstream("one.example")
        rule = f"{{name: one, hosts: ['one.example:{one.port}'], pins: {{any_of: ['{NO_PIN}']}}}}"
        sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
        checked(sidecar, status=1)
        assert not (sidecar.data / "chains.json").exists()

    def test_where_it_cannot_be_remembered_that_is_said(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        one = tls_upstream("one.example")
        rule = f"{{name: one, hosts: ['one.example:{one.port}'], pins: {{any_of: ['{one.pin}', '{NO_PIN}']}}}}"
        sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
        sidecar.data.write_text("a file where a folder should be")
        assert checked(sidecar)[0]["ok"]


class TestCandidates:
    """A rotation is rehearsed before anything is put in place, and nobody is dialled."""

    def rehearse(
        self, authority: Authority, folder: Path, pins: str, candidate: bytes, *more: str, status: int = 0
    ) -> tuple[dict[str, Any], str]:
        (folder / "next.pem").write_bytes(candidate)
        rule = f"{{name: one, hosts: [one.example], pins: {{any_of: [{pins}]}}}}"
        sidecar = Sidecar(policy_of(rule), folder, authority=authority)  # no host resolves
        return checked(sidecar, "--candidate", "next.pem", *more, status=status)

    def test_a_chain_whose_key_or_ca_is_pinned(self, authority: Authority, tmp_path: Path) -> None:
        middle = authority.intermediate()
        ahead = middle.issue("one.example")
        chain = b"".join(ahead.chain_pem)
        for pin, level in ((ahead.pin, "leaf"), (middle.pin, "intermediate"), (authority.pin, "root")):
            report, _ = self.rehearse(authority, tmp_path, f"'{pin}', '{NO_PIN}'", chain)
            assert (report["hosts"][0]["result"], report["hosts"][0]["level"]) == ("match", level)
        report, errors = self.rehearse(authority, tmp_path, f"'{NO_PIN}'", chain, status=1)
        assert (report["hosts"][0]["result"], ahead.pin in errors) == ("mismatch", True)

    @pytest.mark.parametrize("variant", [variant for variant in Variant if variant is not Variant.VALID])
    def test_a_chain_that_no_handshake_would_take(self, authority: Authority, tmp_path: Path, variant: Variant) -> None:
        wrong = authority.issue("one.example", variant=variant)
        chain = b"".join(wrong.chain_pem)
        _, errors = self.rehearse(authority, tmp_path, f"'{wrong.pin}'", chain, "--host", "one.example", status=1)
        assert "failed: certificate_invalid: " in errors

    def test_a_chain_without_its_intermediate(self, authority: Authority, tmp_path: Path) -> None:
        ahead = authority.intermediate().issue("one.example")
        _, errors = self.rehearse(authority, tmp_path, f"'{ahead.pin}'", ahead.chain_pem[0], status=1)
        assert "failed: certificate_invalid: " in errors

    def test_the_names_in_it_are_somebody_elses_text(self, authority: Authority, tmp_path: Path) -> None:
        root = Party.root("root")
        (tmp_path / "next.pem").write_bytes(root.issues(x509.DNSName("one.example\0\x1b[2J")).pem)
        rule = f"{{name: one, hosts: [one.example], pins: {{any_of: ['{NO_PIN}']}}}}"
        sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority)
        for more in (("--host", "one.example"), ()):
            with pytest.raises(SidecarFailed) as failed:
                sidecar.run("pins", "check", "-p", "policy.yaml", "--candidate", "next.pem", *more)
            assert '"one.example\\u0000\\u001b[2J"' in failed.value.stderr
            assert not re.search(r"[\0\x1b]", failed.value.stderr)

    def test_a_request_is_known_by_its_key(self, authority: Authority, tmp_path: Path) -> None:
        pin, request = self.spare(tmp_path)
        report, _ = self.rehearse(authority, tmp_path, f"'{pin}'", request)
        assert (report["hosts"][0]["result"], report["hosts"][0]["level"]) == ("match", "leaf")
        _, errors = self.rehearse(authority, tmp_path, f"'{NO_PIN}'", request, status=1)
        assert f"mismatch: its key is {pin}, which rule one does not pin" in errors

    def spare(self, folder: Path) -> tuple[str, bytes]:
        sidecar = Sidecar("mode: enforce", folder)
        pin = sidecar.run("pins", "backup", "-p", "policy.yaml", "one.example").strip()
        return pin, (folder / "one.example-spare.csr.pem").read_bytes()

    @pytest.mark.parametrize("wrong", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
    def test_what_is_neither(self, authority: Authority, tmp_path: Path, wrong: bytes) -> None:
        with pytest.raises(json.JSONDecodeError):
            self.rehearse(authority, tmp_path, f"'{NO_PIN}'", wrong, status=1)

    def test_one_that_is_for_no_host_of_the_policy(self, authority: Authority, tmp_path: Path) -> None:
        other = b"".join(authority.issue("other.example").chain_pem)
        with pytest.raises(json.JSONDecodeError):
            self.rehearse(authority, tmp_path, f"'{NO_PIN}'", other, status=1)


class TestRevocation:
    """Revocation lists reach what is tried and what is rehearsed, as they reach a handshake (`test_candidates`)."""

    @pytest.mark.parametrize(("when", "anchor", "told"), REVOCATIONS.values(), ids=list(REVOCATIONS))
    def test_the_sidecar_a_host_that_is_tried_and_a_candidate_come_to_the_same(
        self, tls_upstream: MakeTls, tmp_path: Path, when: str, anchor: str, told: str
    ) -> None:
        root = Authority()
        middle = root.intermediate()
        identity = middle.issue("one.example")
        one = tls_upstream(identity=identity)
        (tmp_path / "list.pem").write_bytes(middle.crl(*[identity.certificate] * (told == "certificate revoked")))
        (tmp_path / "next.pem").write_bytes(b"".join(identity.chain_pem))
        {"root": root, "middle": middle}[anchor].write_pem(tmp_path / "anchor.pem")
        rule = f"{{name: one, hosts: ['one.example:{one.port}'], pins: {{any_of: ['{one.pin}', '{NO_PIN}']}}}}"
        trust = f"trust: {{crls: {{files: [list.pem], when: {when}}}}}\n"
        system = {"SSL_CERT_FILE": str(tmp_path / "anchor.pem")}
        with Sidecar(trust + policy_of(rule), tmp_path, hosts=HOSTS, env=system) as sidecar:
            answer = curl(one.url(host="one.example"), proxy=sidecar.proxy_url)
            assert (told in answer.json()["detail"]) if told else (answer.status == 200)
            for candidate in ((), ("--candidate", "next.pem")):
                report, errors = checked(sidecar, *candidate, status=1 if told else 0)
                assert report["hosts"][0]["result"] == ("failed" if told else "match")
                assert told in errors


class TestBackup:
    @pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048"])
    def test_a_spare_key_serves_once_its_request_is_signed(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path, kind: str
    ) -> None:
        rule = f"{{name: one, hosts: [one.example], pins: {{any_of: ['{NO_PIN}']}}}}"
        sidecar = Sidecar(policy_of(rule), tmp_path, authority=authority, hosts=HOSTS)
        pin = sidecar.run("pins", "backup", "-p", "policy.yaml", "--type", kind, "one.example").strip()
        key_file, request_file = (tmp_path / f"one.example-spare.{what}.pem" for what in ("key", "csr"))
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        key = load_pem_private_key(key_file.read_bytes(), None)
        request = x509.load_pem_x509_csr(request_file.read_bytes())
        assert request.is_signature_valid
        assert request.public_key() == key.public_key()
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["one.example"]

        signed = _signed(request, authority)
        assert pin_of(signed) == pin
        identity = Identity(key_file.read_bytes(), (signed.public_bytes(Encoding.PEM),))
        upstream = tls_upstream(identity=identity)
        rule = f"{{name: one, hosts: ['one.example:{upstream.port}'], pins: {{any_of: ['{NO_PIN}', '{pin}']}}}}"
        sidecar.write_policy(policy_of(rule))
        report, _ = checked(sidecar)
        assert by_host(report)["one.example"]["matches"] == [{"pin": pin, "level": "leaf"}]

    def test_no_file_is_overwritten_and_where_it_belongs_is_said(self, tmp_path: Path) -> None:
        rules = policy_of("{name: zero, hosts: [zero.example]}", "{name: one, hosts: [one.example:8443]}")
        sidecar = Sidecar(rules, tmp_path)
        said = json.loads(sidecar.run("pins", "backup", "-p", "policy.yaml", "--json", "one.example:8443"))
        assert "rules[1].pins.any_of" in said["belongs"]
        key = Path(tmp_path / said["key"]).read_bytes()
        with pytest.raises(SidecarFailed, match="exists already, and keys are never overwritten") as failed:
            sidecar.run("pins", "backup", "-p", "policy.yaml", "one.example:8443")
        assert failed.value.status == 1
        assert Path(tmp_path / said["key"]).read_bytes() == key
        said = json.loads(sidecar.run("pins", "backup", "-p", "policy.yaml", "--json", "nobody.example"))
        assert "No rule of this policy names nobody.example" in said["belongs"]
        address = json.loads(sidecar.run("pins", "backup", "-p", "policy.yaml", "--json", "192.0.2.1"))
        request = x509.load_pem_x509_csr((tmp_path / address["csr"]).read_bytes())
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1"]


def _signed(request: x509.CertificateSigningRequest, authority: Authority) -> x509.Certificate:
    """Return the certificate that a CA makes of a request."""
    issuer = x509.load_pem_x509_certificate(authority.pem)
    key = load_pem_private_key(authority.key_pem, None)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(request.subject).issuer_name(issuer.subject)
    builder = builder.public_key(request.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=90))
    for extension in request.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    from_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    builder = builder.add_extension(from_issuer, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]  # it is no key for exchange only


class TestFetch:
    def test_several_servers_at_once(self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
        one, two = tls_upstream("one.example"), tls_upstream("two.example")
        servers = [f"one.example:{one.port}", f"two.example:{two.port}"]
        sidecar = Sidecar("mode: enforce", tmp_path, authority=authority, hosts=HOSTS)
        shown = json.loads(sidecar.run("pins", "fetch", "-p", "policy.yaml", "--json", *servers))
        assert [each["server"] for each in shown] == servers
        assert [each["chain"][0]["pin"] for each in shown] == [one.pin, two.pin]
        with pytest.raises(SidecarFailed) as failed:  # one of them is not there: the other is shown
            sidecar.run("pins", "fetch", "-p", "policy.yaml", servers[0], "gone.example")
        assert (failed.value.status, one.pin in failed.value.stdout) == (1, True)
        assert "error: upstream_unreachable: " in failed.value.stderr

    @pytest.mark.parametrize("form", [(), ("--json",)])
    def test_what_nobody_vouches_for_is_shown_only_with_a_flag_that_names_itself(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path, form: tuple[str, ...]
    ) -> None:
        upstream = tls_upstream(identity=authority.issue("one.example", variant=Variant.SELF_SIGNED))
        sidecar = Sidecar("mode: enforce", tmp_path, authority=authority, hosts=HOSTS)
        server = f"one.example:{upstream.port}"
        with pytest.raises(SidecarFailed, match="certificate_invalid"):
            sidecar.run("pins", "fetch", "-p", "policy.yaml", server, *form)
        said = sidecar.run("pins", "fetch", "-p", "policy.yaml", server, "--insecure", *form)
        assert "any_of" not in said
        if form:
            shown = json.loads(said)
            assert (shown["verified"], shown["chain"][0]["pin"], shown["advice"]) == (False, upstream.pin, [])
        else:
            assert "NOT VERIFIED (--insecure)" in said.splitlines()[0]
            assert f"{upstream.pin} NOT VERIFIED (--insecure)" in said
        upstream.assert_no_application_bytes()

    def test_it_advises_against_a_key_that_lives_for_weeks(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream(identity=authority.issue("one.example", variant=Variant.VALID))
        sidecar = Sidecar("mode: enforce", tmp_path, authority=authority, hosts=HOSTS)
        shown = json.loads(sidecar.run("pins", "fetch", "-p", "policy.yaml", "--json", f"one.example:{upstream.port}"))
        certificate = upstream.identity.certificate
        days = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days
        assert (shown["advice"] != []) is (days < 100)
