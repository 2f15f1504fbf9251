"""What deploy/ says is right: Kubernetes knows every key, the policies load, and times and ports agree with them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proxy.core.rules.policy import Policy
from proxy.policyfile.load import load_policy

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
FOLDERS = sorted(path.parent for path in KUBERNETES.glob("*/kustomization.yaml"))
VERSIONS = ("1.29", "1.37")  # the first with native sidecars, and a late one
PODS = ("sidecar/app.yaml", "gateway/deployment.yaml")

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
each_pod = pytest.mark.parametrize("where", PODS)


def manifests(folder: Path) -> Iterator[dict[str, Any]]:
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((folder / name).read_text())


def pod_of(where: str) -> dict[str, Any]:
    return dict(yaml.safe_load((KUBERNETES / where).read_text())["spec"]["template"]["spec"])


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in [*pod["initContainers"], *pod["containers"]] if each["name"] == "overcoat")


def policy_of(where: str) -> Policy:
    return load_policy((KUBERNETES / where).with_name("overcoat.yaml"), {})


@each_folder
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_key(folder: Path, version: str) -> None:
    for each in manifests(folder):
        kubernetes_validate.validate(each, version, strict=True)


def test_a_wrong_key_would_be_found() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@each_folder
def test_kustomize_makes_of_them_what_kubernetes_takes(folder: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=True)
    found = list(yaml.safe_load_all(done.stdout))
    for each in found:
        kubernetes_validate.validate(each, VERSIONS[-1], strict=True)
    kinds = [each["kind"] for each in found]
    assert sorted(kinds) == sorted(
        [each["kind"] for each in manifests(folder)] + ["ConfigMap"] * (folder.name != "apps")
    )


@each_pod
def test_the_policy_loads_and_the_container_has_its_ports(where: str) -> None:
    policy, container = policy_of(where), sidecar_of(pod_of(where))
    assert policy.admin is not None
    assert policy.probes is not None
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert (ports["metrics"], ports["probes"]) == (policy.admin.port, policy.probes.port)
    (listener,) = policy.listen
    assert ports.get("proxy", listener.port) == listener.port
    for probe, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/live")):
        assert container[probe]["httpGet"] == {"path": path, "port": "probes"}


@each_pod
def test_whoever_ends_the_pod_waits_longer_than_the_sidecar_drains(where: str) -> None:
    policy, pod = policy_of(where), pod_of(where)
    probe = sidecar_of(pod)["readinessProbe"]
    assert policy.drain_wait > probe["periodSeconds"] * probe["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] >= policy.drain_wait + policy.drain_timeout + 2


@each_pod
def test_containers_have_no_rights_they_do_not_need(where: str) -> None:
    pod = pod_of(where)
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_the_app_in_the_pod_sees_the_ca_and_never_its_key() -> None:
    pod = pod_of("sidecar/app.yaml")
    (app,) = pod["containers"]
    assert app["volumeMounts"] == [{"name": "ca", "mountPath": "/run/overcoat-ca", "readOnly": True}]
    assert {"name": "data", "mountPath": "/var/lib/overcoat"} in sidecar_of(pod)["volumeMounts"]


def test_apps_may_reach_the_gateway_and_nothing_outside() -> None:
    (policy,) = manifests(KUBERNETES / "apps")
    assert policy["spec"]["podSelector"] == {}
    assert policy["spec"]["policyTypes"] == ["Egress"]
    assert not [to for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    gateway = policy["spec"]["egress"][0]
    (service,) = [each for each in manifests(KUBERNETES / "gateway") if each["kind"] == "Service"]
    assert gateway["to"][0]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert gateway["ports"] == [{"port": sidecar_of(pod_of("gateway/deployment.yaml"))["ports"][0]["containerPort"]}]
