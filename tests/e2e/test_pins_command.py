"""`overcoat pins fetch`: it shows the keys that the sidecar would see, and what it shows makes a rule that works.

Proves ARCHITECTURE's rules 2, 3 and 8 for a command that dials on its own: verified chains only, nothing sent but a
handshake.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.core.pins import pin_of_public_key_info
from tests.e2e.certificates import Authority, Identity, Variant
from tests.e2e.clients import curl
from tests.e2e.farm import Party, with_serial
from tests.e2e.sidecar import Sidecar, SidecarFailed, clean_environment, overcoat_command
from tests.e2e.upstream import PlainUpstream, TlsUpstream

MakeTls = Callable[..., TlsUpstream]
HOSTS = {"api.example": "127.0.0.1"}
NO_PIN = "sha256/" + "A" * 42 + "E="


def failure(sidecar: Sidecar, *arguments: str) -> SidecarFailed:
    with pytest.raises(SidecarFailed) as failed:
        sidecar.run("pins", "fetch", "-p", "policy.yaml", *arguments)
    return failed.value


def refusal(sidecar: Sidecar, *arguments: str) -> SidecarFailed:
    refused = failure(sidecar, *arguments)
    assert refused.stdout == ""
    return refused


def test_a_url_is_no_server(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("mode: enforce", tmp_path, authority=authority) as sidecar:
        for url in ("https://api.example:8443/", "http://api.example", "api.example/v1"):
            refused = refusal(sidecar, url)
            assert "only the host is named here, and its port if need be: leave https:// out" in refused.stderr


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
        failed = failure(sidecar, f"api.example:{upstream.port}", "--json")
        shown = json.loads(failed.stdout)
        assert [each["pin"] for each in shown["chain"]] == [identity.pin, middle.pin, authority.pin]
        assert (shown["server"], shown["result"]) == (f"api.example:{upstream.port}", "mismatch")
        upstream.assert_no_application_bytes()
        for depth, each in enumerate(shown["chain"]):
            for name in ("pin", "certificate_pin"):
                folder = tmp_path / each[name].replace("/", "-")
                folder.mkdir()
                with Sidecar(rule.format(each[name]), folder, authority=authority, hosts=HOSTS) as pinned:
                    assert curl(upstream.url(host="api.example"), proxy=pinned.proxy_url).status == 200
                    found = json.loads(pinned.run(*command, "-p", "policy.yaml", "--json"))
                    assert (found["result"], found["pinned_by"]) == ("match", "rule api")
                    assert [level["matches"] for level in found["chain"]] == [
                        [each[name]] if number == depth else [] for number in range(3)
                    ]


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["for people", "for programs"])
def test_where_no_pin_matches_nothing_is_printed_to_paste(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, form: tuple[str, ...]
) -> None:
    """What an attacker on the path would show: a certificate that is valid for the name, with a key of their own."""
    theirs, ours = authority.issue("api.example"), authority.issue("api.example")
    upstream = tls_upstream(identity=theirs)
    rule = f"rules: [{{name: api, hosts: [api.example], pins: {{any_of: ['{ours.pin}', '{NO_PIN}']}}}}]"
    sidecar = Sidecar(rule, tmp_path, authority=authority, hosts=HOSTS)
    failed = failure(sidecar, f"api.example:{upstream.port}", *form)
    assert failed.status == 1
    assert "any_of" not in failed.stdout + failed.stderr
    assert "For the rule" not in failed.stdout
    assert "error: pin_mismatch: nothing in the verified chain has any of the 2 pins of rule api" in failed.stderr
    assert "Ask the server's operator" in failed.stderr
    assert "it is an attack: change nothing in the policy" in failed.stderr
    if form:
        shown = json.loads(failed.stdout)
        assert shown["not_in_chain"] == [ours.pin, NO_PIN]
        assert all(each["matches"] == [] for each in shown["chain"])
    # The twin: the server with the pinned key, and nothing else changed.
    upstream.present(ours)
    said = sidecar.run("pins", "fetch", "-p", "policy.yaml", f"api.example:{upstream.port}", *form)
    assert "any_of" not in said
    if not form:
        assert f"rule api pins the server: {ours.pin}" in said
        assert f"rule api also pins what is not in this chain: {NO_PIN}" in said
    upstream.assert_no_application_bytes()


@pytest.mark.parametrize(
    ("more", "mode", "is_refused"),
    [
        ("", "enforce", True),
        (", expires: 2026-01-01", "enforce", True),
        (", expires: 2026-01-01, after_expiry: warn", "enforce", False),
        (", mode: observe", "enforce", False),
        ("", "observe", False),
    ],
)
def test_a_mismatch_says_what_the_sidecar_does_with_that_server(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, more: str, mode: str, is_refused: bool
) -> None:
    upstream = tls_upstream("api.example")
    rule = f"rules: [{{name: api, hosts: [api.example], pins: {{any_of: ['{NO_PIN}']{more}}}}}]"
    with Sidecar(f"mode: {mode}\n{rule}", tmp_path, authority=authority, hosts=HOSTS) as sidecar:
        failed = failure(sidecar, f"api.example:{upstream.port}", "--json")
        told = "sends nothing to it" if is_refused else "sends to it all the same, since the policy has these pins"
        assert told in failed.stderr
        assert json.loads(failed.stdout)["refused"] is is_refused
        url = upstream.url(scheme="https", host="api.example")
        ca_file = sidecar.ca_file if mode == "enforce" else tmp_path / "roots.pem"  # where it observes, it tunnels
        assert (curl(url, proxy=sidecar.proxy_url, ca_file=ca_file).status == 200) is not is_refused


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_said_of_serial_numbers_which_openssl_takes(
    tls_upstream: MakeTls, tmp_path: Path, workers: int
) -> None:
    root = Party.root("root", edit=with_serial(b"\xff"))
    leaf = root.issues("api.example", edit=with_serial(b"\0"))
    upstream = tls_upstream(identity=leaf.identity)
    (tmp_path / "root.pem").write_bytes(root.pem)
    info = leaf.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = pin_of_public_key_info(info)
    policy = f"""
        workers: {workers}
        trust: {{roots: root.pem}}
        rules: [{{name: api, hosts: ["api.example:{upstream.port}"], pins: {{any_of: ['{pin}', '{NO_PIN}']}}}}]
    """
    with Sidecar(policy, tmp_path, hosts=HOSTS) as sidecar:
        assert curl(upstream.url(host="api.example"), proxy=sidecar.proxy_url).status == 200
        assert "Parsed" not in sidecar.stderr
    where = f"api.example:{upstream.port}"
    for arguments in (("fetch", where, "--json"), ("fetch", "--insecure", where), ("check",)):
        done = subprocess.run(
            [*overcoat_command(HOSTS), "pins", arguments[0], "-p", "policy.yaml", *arguments[1:]],
            cwd=tmp_path,
            env=clean_environment({"OVERCOAT_DATA": str(sidecar.data)}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "Parsed" in done.stderr) == (0, False), done.stderr


def test_the_level_that_is_pinned_is_named(authority: Authority, tls_upstream: MakeTls, tmp_path: Path) -> None:
    middle = authority.intermediate()
    upstream = tls_upstream(identity=middle.issue("api.example"))
    pins = f"{{any_of: ['{middle.pin}', '{authority.pin}']}}"
    rule = f"rules: [{{name: api, hosts: [api.example], pins: {pins}}}]"
    sidecar = Sidecar(rule, tmp_path, authority=authority, hosts=HOSTS)
    said = sidecar.run("pins", "fetch", "-p", "policy.yaml", f"api.example:{upstream.port}")
    assert f"rule api pins an intermediate CA: {middle.pin}" in said
    assert f"rule api pins the root: {authority.pin}" in said
    assert "rule api pins the server" not in said
    lines = said.splitlines()[1:13]  # a pin that is broken over two lines can be neither compared nor searched for
    assert [line.split()[-1] for line in lines[3::4]] == [authority.pin, middle.pin, upstream.pin]
    levels = ("the root", "an intermediate CA", "the server")
    assert all(f" {level}: " in line for line, level in zip(lines[::4], levels, strict=True))
    ends = ("in the policy (key)", "in the policy (key)", "not in the policy")
    assert all(line.endswith(f", {end}") and "P-256" in line for line, end in zip(lines[2::4], ends, strict=True))


@pytest.mark.parametrize("is_right", [True, False])
def test_pins_past_their_day_are_said_to_be(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path, is_right: bool
) -> None:
    upstream = tls_upstream("api.example")
    pin = upstream.pin if is_right else NO_PIN
    rule = f"rules: [{{name: api, hosts: [api.example], pins: {{any_of: ['{pin}'], expires: 2026-01-01}}}}]"
    sidecar = Sidecar(rule, tmp_path, authority=authority, hosts=HOSTS)
    if not is_right:
        assert "error: pin_mismatch" in failure(sidecar, f"api.example:{upstream.port}").stderr
        return
    shown = json.loads(sidecar.run("pins", "fetch", "-p", "policy.yaml", f"api.example:{upstream.port}", "--json"))
    assert (shown["result"], shown["pins_expired"], shown["pins_expire"]) == ("match", True, "2026-01-01")


def test_the_upstream_proxys_own_pins_are_those_that_count_for_it(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    proxy = tls_upstream("proxy.example")
    for pin in (proxy.pin, NO_PIN):
        folder = tmp_path / pin.replace("/", "-")
        folder.mkdir()
        url = f"https://proxy.example:{proxy.port}"
        policy = f'upstream_proxy: {{url: "{url}", pins: {{any_of: ["{pin}"]}}}}'
        sidecar = Sidecar(policy, folder, authority=authority, hosts={"proxy.example": "127.0.0.1"})
        if pin == NO_PIN:
            assert "has the one pin of upstream_proxy" in failure(sidecar, f"proxy.example:{proxy.port}").stderr
        else:
            said = sidecar.run("pins", "fetch", "-p", "policy.yaml", f"proxy.example:{proxy.port}")
            assert f"upstream_proxy pins the server: {pin}" in said


def openssl(folder: Path, *arguments: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


FORMS = {
    "RSA-PSS": ("-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"),
    "RSA-PSS with parameters": (
        *("-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_pss_keygen_md:sha256"),
        *("-pkeyopt", "rsa_pss_keygen_mgf1_md:sha256", "-pkeyopt", "rsa_pss_keygen_saltlen:32"),
    ),
    "a compressed point": (
        *("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-pkeyopt", "point-format:compressed"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pin_of_a_file_is_that_of_the_server_whatever_the_form_of_its_key(
    tls_upstream: MakeTls, tmp_path: Path, form: str
) -> None:
    """Another program than ours makes the key, its public half and the certificate."""
    openssl(tmp_path, "genpkey", *FORMS[form], "-out", "key.pem")
    openssl(tmp_path, "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
    names = "subjectAltName=" + ",".join(f"DNS:{name}.example" for name in ("key", "public", "certificate"))
    openssl(
        tmp_path,
        *["req", "-x509", "-new", "-key", "key.pem", "-subj", "/CN=api", "-days", "30", "-out", "certificate.pem"],
        "-addext",
        names,
    )
    identity = Identity((tmp_path / "key.pem").read_bytes(), ((tmp_path / "certificate.pem").read_bytes(),))
    upstream = tls_upstream(identity=identity)
    files = ("key", "public", "certificate")
    rules = "".join(
        f"\n  - {{name: {each}, hosts: [{each}.example], pins: {{any_of: [{{file: {each}.pem}}]}}}}" for each in files
    )
    policy = f"trust: {{roots: certificate.pem}}\nrules:{rules}"
    hosts = {f"{each}.example": "127.0.0.1" for each in files}
    with Sidecar(policy, tmp_path, hosts=hosts) as sidecar:
        for each in files:
            answer = curl(upstream.url(host=f"{each}.example"), proxy=sidecar.proxy_url)
            assert answer.status == 200, (each, answer.body)
            server = f"{each}.example:{upstream.port}"
            shown = json.loads(sidecar.run("pins", "fetch", "-p", "policy.yaml", server, "--json"))
            assert shown["chain"][0]["matches"] == [shown["chain"][0]["pin"]]


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
