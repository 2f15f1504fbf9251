"""`overcoat env`: what it prints makes a program use and trust a sidecar that runs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.certificates import Authority
from tests.e2e.sidecar import Sidecar, SidecarFailed, clean_environment, overcoat_command, run_command
from tests.e2e.upstream import TlsUpstream

HERE = "127.0.0.2"
MakeTls = Callable[..., TlsUpstream]


def sh(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=env, timeout=30, check=False)


def test_a_shell_that_evals_it_uses_and_trusts_the_sidecar(
    authority: Authority, tls_upstream: MakeTls, tmp_path: Path
) -> None:
    upstream = tls_upstream(HERE, address=HERE)
    odd = tmp_path / "a $HOME 'b; c"
    policy = f"rules: [{{name: seen, hosts: ['{HERE}:{upstream.port}'], https: inspect}}]"
    with Sidecar(policy, tmp_path, authority=authority, env={"OVERCOAT_DATA": str(odd)}) as sidecar:
        printed = sidecar.run("env", "--shell")
        again = sidecar.run("env")
        url = f"{HERE}:{upstream.port}/v1"
        done = sh(f"{printed}{again}\ncurl -sS http://{url} && curl -sS https://{url}", {"PATH": os.environ["PATH"]})
        assert done.returncode == 0, done.stderr
        assert sidecar.wait_for_decision(lambda line: line["action"] == "inspect")["destination"].startswith(HERE)
    assert len(upstream.wait_for_requests(2)) == 2
    for line in shlex.split(printed.replace("export ", "")):
        assert "\n" not in line


def test_json_names_what_was_written(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("mode: enforce", tmp_path, authority=authority) as sidecar:
        found = json.loads(sidecar.run("env", "--json", "-p", "policy.yaml", "--neighbour", "db"))
        assert found["proxy"] == sidecar.proxy_url == found["environment"]["HTTPS_PROXY"]
        assert found["environment"]["NO_PROXY"] == "localhost,127.0.0.1,::1,db"
        for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "WGETRC", "APT_CONFIG"):
            assert Path(found["environment"][name]).is_file()
        java = sidecar.run("env", "--java").split()
        assert f"-Dhttps.proxyPort={sidecar.address[1]}" in java
        assert f"-Djavax.net.ssl.trustStore={found['folder']}/truststore.p12" in java


def test_one_for_all_addresses_is_reached_on_loopback(authority: Authority, tmp_path: Path) -> None:
    policy = "listen: ['socks5://127.0.0.1:0', 'forward://0.0.0.0:0']\nclients: {allow: [loopback]}"
    with Sidecar(policy, tmp_path, authority=authority) as sidecar:
        found = json.loads(sidecar.run("env", "--json"))
        assert found["proxy"] == f"http://127.0.0.1:{sidecar.addresses[1][1]}"


def test_where_none_runs_or_several_do_that_is_said(authority: Authority, tmp_path: Path) -> None:
    with Sidecar("mode: enforce", tmp_path, authority=authority) as sidecar:
        with pytest.raises(SidecarFailed, match=r"no sidecar of other\.yaml runs here: say which"):
            sidecar.run("env", "-p", "other.yaml")
        second = tmp_path / "second"
        second.mkdir()
        env = {"OVERCOAT_DATA": str(sidecar.data), "OVERCOAT_SHARE_CA": "1"}
        with Sidecar("mode: enforce", second, authority=authority, env=env) as other:
            with pytest.raises(SidecarFailed, match="more than one sidecar runs here"):
                sidecar.run("env")
            assert json.loads(sidecar.run("env", "--json", "-p", str(other.policy_file)))["proxy"] == other.proxy_url
        with pytest.raises(SidecarFailed, match="write http://HOST:PORT"):
            sidecar.run("env", "--proxy", "https://127.0.0.1:1")


def test_compose_gets_yaml_that_names_the_volume_and_no_dollar_sign_of_its_own(
    authority: Authority, tmp_path: Path
) -> None:
    with Sidecar("mode: enforce", tmp_path, authority=authority) as sidecar:
        found = yaml.safe_load(sidecar.run("env", "--compose", "--neighbour", "a$b"))
    variables = found["environment"]
    assert found["volumes"] == ["overcoat-ca:/run/overcoat-ca:ro"]
    assert variables["http_proxy"] == "http://overcoat:8080"
    assert variables["NO_PROXY"] == "localhost,127.0.0.1,::1,a$$b"
    assert variables["SSL_CERT_FILE"] == "/run/overcoat-ca/ca-bundle.pem"
    assert "--require /run/overcoat-ca/node.cjs" in variables["NODE_OPTIONS"]


def test_what_a_container_is_told_of_is_published(authority: Authority, tmp_path: Path) -> None:
    """Each file that --compose names is one that OVERCOAT_PUBLISH_CA writes."""
    public = tmp_path / "public"
    with Sidecar("mode: enforce", tmp_path, authority=authority, env={"OVERCOAT_PUBLISH_CA": str(public)}) as sidecar:
        text = sidecar.run("env", "--compose")
    named = {word.strip("\"',:") for word in text.replace("=", " ").split() if "/run/overcoat-ca/" in word}
    assert len(named) >= 7
    for path in named:
        assert (public / path.rpartition("/run/overcoat-ca/")[2]).exists(), path


def test_no_local_ca_is_made(tmp_path: Path) -> None:
    """A sidecar makes it, which may be told to constrain it to the hosts of its policy."""
    data, env = tmp_path / "data", clean_environment({"OVERCOAT_DATA": str(tmp_path / "data")})
    done = run_command([*overcoat_command(), "env", "--proxy", "http://127.0.0.1:8080"], tmp_path, env)
    assert done.returncode == 1
    assert f"there is no local CA in {data}: a sidecar makes it when it starts" in done.stderr
    assert not (data / "ca-key.pem").exists()
    assert run_command([*overcoat_command(), "ca"], tmp_path, env).returncode == 0
    done = run_command([*overcoat_command(), "env", "--proxy", "http://127.0.0.1:8080"], tmp_path, env)
    assert (done.returncode, "http_proxy=http://127.0.0.1:8080" in done.stdout) == (0, True)
