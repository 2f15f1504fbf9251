"""A local CA that may sign for some hosts alone: a stolen key is no good for others, and a policy that inspects others
is not taken.

Proves it from outside, with the clients that apps are made of. ARCHITECTURE's rules 1 (fail closed) and 7 (say why).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.core.certificates.constraints import Constraints
from proxy.disk.ca import LocalCa
from proxy.disk.issuing import private_pem
from proxy.disk.rotating import finish, rotate
from tests.e2e.certificates import Authority, Identity
from tests.e2e.clients import RawClient, curl
from tests.e2e.reloading import edit, reload
from tests.e2e.sidecar import Sidecar, SidecarFailed, clean_environment, overcoat_command
from tests.e2e.upstream import TlsUpstream
from tests.waiting import wait_until

PROGRAMS = Path(__file__).parent / "programs"
LISTED, BELOW, OUTSIDE, NEW = "listed.example", "sub.listed.example", "outside.example", "new.example"
HOSTS = dict.fromkeys((LISTED, NEW), "127.0.0.1")
OURS, THEIRS = "127.0.0.2", "127.0.0.3"
MakeTls = Callable[..., TlsUpstream]
PASS_BY = ("Go", "Java")  # they take no proxy to an address of this machine's own
CONSTRAIN = ("--constrain-ca",)
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"
FETCH = "fetch(process.argv[1]).then((got) => console.log(got.status), (e) => { console.error(e); process.exit(1) })"


def policy(port: int, *hosts: str, more: str = "") -> str:
    return f"rules: [{{name: seen, hosts: [{', '.join(hosts)}], https: inspect, https_port: {port}}}]\n{more}"


def inspects(sidecar: Sidecar, upstream: TlsUpstream, host: str) -> bool:
    """Tell whether an app that trusts the local CA alone gets an answer from a host, by https."""
    url = upstream.url(scheme="https", host=host)
    return curl("--http1.1", url, proxy=sidecar.proxy_url, ca_file=sidecar.data / "ca-cert.pem").status == 200


def program(name: str, folder: Path) -> list[str]:
    """Return the command of a client of another make, or skip the test: each gets one URL, and prints the status."""

    def found(tool: str) -> str:
        path = shutil.which(tool)
        if path is None:
            pytest.skip(f"there is no {tool} here")
        return path

    match name:
        case "curl (OpenSSL)":
            return [found("curl"), "-sS", "-w", "%{http_code}", "-o", os.devnull]
        case "Python":
            return [sys.executable, "-c", READ]
        case "Go":
            environment = os.environ | {"GOCACHE": f"{folder}/cache", "GOPATH": f"{folder}/path", "CGO_ENABLED": "0"}
            build = [found("go"), "build", "-o", f"{folder}/get", str(PROGRAMS / "get.go")]
            subprocess.run(build, check=True, env=environment, timeout=100)
            return [f"{folder}/get"]
        case "Node.js":
            return [found("node"), "--input-type=commonjs", "-e", FETCH]
        case "wget (GnuTLS)":
            said = subprocess.run([found("wget"), "-V"], capture_output=True, text=True, check=True).stdout
            if "gnutls" not in said:
                pytest.skip("there is no wget with GnuTLS here")
            return ["sh", "-c", 'wget -q -O /dev/null "$0" && echo 200']
        case "Java":
            subprocess.run([found("javac"), "-d", str(folder), str(PROGRAMS / "Get.java")], check=True, timeout=60)
            return [found("java"), "-cp", str(folder), "Get"]
    raise AssertionError(name)


@dataclass(frozen=True)
class Stolen:
    """A sidecar, a server whose https it inspects, and one that has certificates made with the stolen key."""

    sidecar: Sidecar
    right: TlsUpstream
    stolen: TlsUpstream
    env: dict[str, str]
    authority: LocalCa

    def present(self, host: str) -> str:
        """Have the thief's server show a certificate for a host; return the URL of it."""
        leaf = self.authority.leaf(host, datetime.now(UTC))
        pem = [each.public_bytes(Encoding.PEM) for each in (leaf.certificate, leaf.issuer, self.authority.certificate)]
        self.stolen.present(Identity(private_pem(leaf.key), tuple(pem)))
        return self.stolen.url(scheme="https", host=host)


@pytest.fixture(scope="module")
def stolen(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stolen]:
    folder = tmp_path_factory.mktemp("stolen")
    hosts = {LISTED: OURS, BELOW: THEIRS, OUTSIDE: THEIRS}
    with (
        TlsUpstream(authority, LISTED, OURS, address=OURS) as right,
        TlsUpstream(authority, OUTSIDE, address=THEIRS) as thief,
        Sidecar(
            policy(right.port, LISTED, OURS), folder, authority=authority, hosts=hosts, arguments=CONSTRAIN
        ) as sidecar,
    ):
        env = json.loads(sidecar.run("env", "--json"))["environment"]
        yield Stolen(sidecar, right, thief, env, LocalCa.load(sidecar.data))


@pytest.mark.parametrize("client", ["curl (OpenSSL)", "Python", "Go", "Node.js", "wget (GnuTLS)", "Java"])
def test_clients_take_what_is_listed_and_nothing_else_that_the_key_signs(
    stolen: Stolen, client: str, tmp_path: Path
) -> None:
    """The thief's server is reached by a tunnel, or directly: the certificate is all that keeps an app from it."""
    command = program(client, tmp_path)
    env = {"PATH": os.environ["PATH"], **stolen.env}

    def ask(url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, url], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60, check=False
        )

    for host in (LISTED, *([] if client in PASS_BY else [OURS])):
        done = ask(stolen.right.url(scheme="https", host=host))
        assert (done.returncode, done.stdout.strip()[-3:]) == (0, "200"), (host, done.stderr)
    done = ask(stolen.present(BELOW))  # the same server, way and key: only the name is another
    assert (done.returncode, done.stdout.strip()[-3:]) == (0, "200"), done.stderr
    before = stolen.stolen.received
    for host in (OUTSIDE, THEIRS):
        done = ask(stolen.present(host))
        assert done.returncode != 0, (host, done.stdout)
        assert not done.stdout.strip().endswith("200"), done.stdout
    stolen.stolen.settle()
    assert stolen.stolen.received == before


class TestAPolicyThatInspectsMore:
    @pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
    def workers(self, request: pytest.FixtureRequest) -> int:
        found: int = request.param
        return found

    def test_is_not_taken_until_another_ca_has_come(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path, workers: int
    ) -> None:
        upstream = tls_upstream(LISTED, NEW)
        many = f"workers: {workers}"
        listed, both = policy(upstream.port, LISTED, more=many), policy(upstream.port, NEW, more=many)
        with Sidecar(listed, tmp_path, authority=authority, hosts=HOSTS, arguments=CONSTRAIN) as sidecar:
            old = (sidecar.data / "ca-cert.pem").read_bytes()
            assert inspects(sidecar, upstream, LISTED)

            reload(sidecar, both, "refused")
            said = sidecar.stderr
            assert (
                f"the policy inspects {NEW} (rule seen), for which the local CA in {sidecar.data} may not sign" in said
            )
            assert "run `overcoat ca rotate`" in said
            assert inspects(sidecar, upstream, LISTED)  # the policy before stays in force
            assert not inspects(sidecar, upstream, NEW)

            assert NEW in sidecar.run("ca", "rotate", "-p", "policy.yaml")
            wait_until(lambda: "the local CA has a successor" in sidecar.stderr)
            with pytest.raises(SidecarFailed, match="has made one that may; once the apps trust it"):
                sidecar.run("check", "-p", "policy.yaml")
            assert (sidecar.data / "ca-cert.pem").read_bytes().startswith(old)
            assert inspects(sidecar, upstream, LISTED)

            sidecar.run("ca", "rotate", "--finish", "-p", "policy.yaml")
            wait_until(
                lambda: "and is in force" in sidecar.stderr, "the policy is taken without another word", seconds=20
            )
            wait_until(lambda: all(inspects(sidecar, upstream, NEW) for _ in range(4)), "all workers", seconds=20)
            assert f"only for {NEW}, and for names below" in sidecar.run("check", "-p", "policy.yaml")
            assert "local_ca_constrained" not in sidecar.stderr

    def test_does_not_start(self, authority: Authority, tmp_path: Path) -> None:
        LocalCa.open(tmp_path / "data", datetime.now(UTC), constraints=Constraints.to([LISTED]))
        with Sidecar(policy(443, LISTED), tmp_path, authority=authority):
            pass
        refused = Sidecar(policy(443, LISTED, f'"**.{NEW}"'), tmp_path, authority=authority)
        with pytest.raises(SidecarFailed, match="may not sign: run `overcoat ca rotate`") as caught:
            refused.start()
        assert caught.value.status == 1
        assert rf"**.{NEW} (rule seen)" in str(caught.value)
        for way in ("check", "check --json"):
            with pytest.raises(SidecarFailed, match="may not sign"):
                refused.run(*way.split(), "-p", "policy.yaml")

    def test_is_denied_where_another_ca_came_in_its_place(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path, workers: int
    ) -> None:
        upstream = tls_upstream(LISTED, NEW)
        now = datetime.now(UTC)
        both = policy(upstream.port, LISTED, NEW, more=f"workers: {workers}")
        with Sidecar(both, tmp_path, authority=authority, hosts=HOSTS, arguments=CONSTRAIN) as sidecar:
            rotate(sidecar.data, now, Constraints.to([LISTED]))
            with pytest.raises(SidecarFailed, match=f"the new CA may not sign for {NEW}"):
                sidecar.run("ca", "rotate", "--finish", "-p", "policy.yaml")
            finish(sidecar.data, now)
            wait_until(lambda: "such hosts are denied from now on (local_ca_constrained)" in sidecar.stderr)
            with RawClient(sidecar.address) as client:
                client.send(f"CONNECT {NEW}:443 HTTP/1.1\r\nHost: {NEW}:443\r\n\r\n".encode())
                problem = client.read_response(method="CONNECT_REFUSED").json()
            assert (problem["reason"], problem["status"]) == ("local_ca_constrained", 503)
            assert problem["detail"] == f"the local CA may not sign for {NEW}"
            assert sidecar.wait_for_decision(lambda line: line["reason"] == "local_ca_constrained")["rule"] == "seen"
            assert inspects(sidecar, upstream, LISTED)
            assert curl(upstream.url(host=NEW), proxy=sidecar.proxy_url).status == 200  # an upgrade needs no CA

    def test_may_inspect_less_and_what_it_only_observes(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream(LISTED, NEW)
        with Sidecar(
            policy(upstream.port, LISTED), tmp_path, authority=authority, hosts=HOSTS, arguments=CONSTRAIN
        ) as sidecar:
            reload(sidecar, f"rules: [{{name: seen, hosts: [{NEW}], https: inspect, mode: observe}}]")
            reload(sidecar, policy(upstream.port, LISTED))
            assert inspects(sidecar, upstream, LISTED)


class TestWhereHostsAreNoFixedList:
    def test_a_default_that_inspects_has_a_ca_for_all(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        upstream = tls_upstream(LISTED, NEW)
        default = "defaults: {https: inspect}"
        with Sidecar(default, tmp_path, authority=authority, hosts=HOSTS, arguments=CONSTRAIN) as sidecar:
            assert "the new local CA may sign for any host (--constrain-ca)" in sidecar.stderr
            assert "its default inspects hosts that no rule names" in sidecar.run("check", "-p", "policy.yaml")
            assert inspects(sidecar, upstream, LISTED)
            reload(sidecar, policy(upstream.port, NEW, more=default))
            assert inspects(sidecar, upstream, NEW)

    def test_one_that_inspects_none_makes_one_for_all(self, authority: Authority, tmp_path: Path) -> None:
        with Sidecar("mode: enforce", tmp_path, authority=authority, arguments=CONSTRAIN) as sidecar:
            assert "it inspects no host" in sidecar.stderr
            reload(sidecar, policy(443, NEW))

    def test_without_being_asked_none_is_constrained(self, authority: Authority, tmp_path: Path) -> None:
        with Sidecar(policy(443, LISTED), tmp_path, authority=authority) as sidecar:
            reload(sidecar, policy(443, NEW))
            said = sidecar.run("check", "-p", "policy.yaml")
            assert f"may sign for any host; with `overcoat ca rotate --constrain` only for {NEW}" in said
            assert LocalCa.load(sidecar.data).constraints is None

    def test_a_ca_that_is_there_stays_as_it_is(
        self, authority: Authority, tls_upstream: MakeTls, tmp_path: Path
    ) -> None:
        LocalCa.open(tmp_path / "data", datetime.now(UTC))
        upstream = tls_upstream(LISTED, NEW)
        with Sidecar(
            policy(upstream.port, LISTED), tmp_path, authority=authority, hosts=HOSTS, arguments=CONSTRAIN
        ) as sidecar:
            reload(sidecar, policy(upstream.port, NEW))
            assert inspects(sidecar, upstream, NEW)


class TestTheCommands:
    @pytest.fixture
    def sidecar(self, tmp_path: Path) -> Sidecar:
        return Sidecar(policy(443, LISTED, f'"*.{NEW}"', "192.0.2.7"), tmp_path)  # for its folder; none is started

    def constraints(self, sidecar: Sidecar) -> list[str] | None:
        found = LocalCa.load(sidecar.data).constraints
        return None if found is None else found.texts()

    @pytest.mark.parametrize("by", ["option", "variable"])
    def test_ca_makes_one_for_the_policy(self, sidecar: Sidecar, by: str) -> None:
        before = sidecar.run("check", "--json", "-p", "policy.yaml")
        assert json.loads(before)["local_ca"] == {
            "is_made": False,
            "constrained_to": None,
            "could_be_constrained_to": [LISTED, NEW, "192.0.2.7"],
            "why_not": None,
            "left_out": None,
        }
        if by == "variable":
            sidecar._environment["OVERCOAT_CONSTRAIN_CA"] = "1"
            assert f"not made yet; will sign only for {LISTED}, {NEW}" in sidecar.run("check", "-p", "policy.yaml")
        printed = sidecar.run("ca", "-p", "policy.yaml", *(["--constrain"] if by == "option" else []))
        made = x509.load_pem_x509_certificate(printed.encode())
        assert made.extensions.get_extension_for_class(x509.NameConstraints).critical
        assert self.constraints(sidecar) == [LISTED, NEW, "192.0.2.7"]
        assert sidecar.run("ca") == printed
        assert f"may sign only for {LISTED}, {NEW}, 192.0.2.7, and for names below" in sidecar.run(
            "check", "-p", "policy.yaml"
        )

    def test_ca_says_that_one_which_is_there_may_sign_for_any_host(self, sidecar: Sidecar) -> None:
        made = sidecar.run("ca")
        done = subprocess.run(
            [*overcoat_command(), "ca", "--constrain", "-p", "policy.yaml"],
            capture_output=True,
            text=True,
            env=clean_environment({"OVERCOAT_DATA": str(sidecar.data)}),
            cwd=sidecar.policy_file.parent,
            timeout=60,
            check=True,
        )
        assert done.stdout == made
        assert "this CA may sign for any host; overcoat ca rotate --constrain makes another" in done.stderr

    def test_ca_makes_one_for_any_host_where_the_default_inspects(self, sidecar: Sidecar) -> None:
        edit(sidecar.policy_file, sidecar.policy_file.read_text() + "defaults: {https: inspect}\n")
        sidecar.run("ca", "--constrain", "-p", "policy.yaml")
        assert self.constraints(sidecar) is None

    def test_explain_says_that_it_may_not_sign(self, sidecar: Sidecar) -> None:
        sidecar.run("ca", "--constrain", "-p", "policy.yaml")
        edit(sidecar.policy_file, sidecar.policy_file.read_text().replace(LISTED, OUTSIDE))
        said = sidecar.run("explain", "-p", "policy.yaml", f"https://{OUTSIDE}")
        assert "denied   local_ca_constrained" in said
        assert f"answer   503: the local CA may not sign for {OUTSIDE}" in said
        assert "local_ca_constrained" not in sidecar.run("explain", "-p", "policy.yaml", f"https://x.{NEW}")

    def test_rotate_goes_on_as_before_unless_it_is_told(self, sidecar: Sidecar) -> None:
        def rotate(*options: str) -> list[str] | None:
            sidecar.run("ca", "rotate", "-p", "policy.yaml", *options)
            sidecar.run("ca", "rotate", "-p", "policy.yaml", "--finish")
            return self.constraints(sidecar)

        sidecar.run("ca")
        assert rotate() is None
        assert rotate("--constrain") == [LISTED, NEW, "192.0.2.7"]
        edit(sidecar.policy_file, sidecar.policy_file.read_text().replace(", 192.0.2.7", ""))
        assert rotate() == [LISTED, NEW]
        assert rotate("--no-constrain") is None
        (sidecar.policy_file.parent / "empty.yaml").write_text("version: 1\n")
        with pytest.raises(SidecarFailed, match=r"no CA can be constrained .* it inspects no host"):
            sidecar.run("ca", "-p", "empty.yaml", "rotate", "--constrain")

    def test_a_successor_for_other_hosts_is_replaced(self, sidecar: Sidecar) -> None:
        sidecar.run("ca", "--constrain", "-p", "policy.yaml")
        sidecar.run("ca", "rotate", "-p", "policy.yaml")
        with pytest.raises(SidecarFailed, match="a new CA has been made"):
            sidecar.run("ca", "rotate", "-p", "policy.yaml")
        edit(sidecar.policy_file, sidecar.policy_file.read_text().replace(LISTED, OUTSIDE))
        with pytest.raises(SidecarFailed, match="overcoat ca rotate makes another"):
            sidecar.run("ca", "rotate", "--finish", "-p", "policy.yaml")
        assert OUTSIDE in sidecar.run("ca", "rotate", "-p", "policy.yaml")
        sidecar.run("ca", "rotate", "--finish", "-p", "policy.yaml")
        assert self.constraints(sidecar) == [NEW, OUTSIDE, "192.0.2.7"]

    def test_without_a_policy_none_is_guessed(self, sidecar: Sidecar, tmp_path: Path) -> None:
        own = sidecar.policy_file.rename(tmp_path / "own.txt")
        with pytest.raises(SidecarFailed, match="policy built-in inspects: it inspects no host; name another policy"):
            sidecar.run("ca", "--constrain")
        assert not (sidecar.data / "ca-key.pem").exists()
        sidecar.run("ca", "--constrain", "-p", str(own))
        with pytest.raises(SidecarFailed, match="name another policy"):
            sidecar.run("ca", "rotate")
        assert self.constraints(sidecar) is not None
