"""Who may ask the admin listener, by what name; and the probes listener, which anybody may ask for little.

Proves that metrics are told to nobody whom the policy does not name, and to no page in a browser of this machine.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.clients import Answer, RawClient
from tests.e2e.reloading import reload
from tests.e2e.sidecar import Sidecar, SidecarFailed


def own_address() -> str:
    """Return an address of this machine that others can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:  # nothing is sent: only the route is looked up
        try:
            asking.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no address that others could reach")
        return str(asking.getsockname()[0])


def get(url: str, path: str, host: str | None = "", address: str = "127.0.0.1") -> Answer:
    """Ask a listener.

    Args:
        url: the listener's, of which the port counts.
        path: what to ask for.
        host: what the Host field says; empty for the address, None for no such field.
        address: where to call it.
    """
    port = url.rpartition(":")[2]
    field = "" if host is None else f"Host: {host or f'{address}:{port}'}\r\n"
    with RawClient((address, int(port))) as client:
        client.send(f"GET {path} HTTP/1.1\r\n{field}\r\n".encode())
        return client.read_response()


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def sidecar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    policy = f"""
        workers: {request.param}
        admin: 0.0.0.0:0
        probes: 0.0.0.0:0
        names: [metrics.shop.example, münchen.example]
        clients: {{admin: [10.0.0.0/8]}}
    """
    with Sidecar(policy, tmp_path_factory.mktemp("sidecar")) as sidecar:
        yield sidecar


class TestWhoMayAsk:
    def test_this_machine_may(self, sidecar: Sidecar) -> None:
        for path in ("/", "/metrics", "/live", "/ready"):
            assert get(sidecar.admin_url, path).status == 200

    @pytest.mark.parametrize("path", ["/", "/metrics", "/live", "/ready", "/other"])
    def test_nobody_else_may_unless_the_policy_says_so(self, sidecar: Sidecar, path: str) -> None:
        answer = get(sidecar.admin_url, path, address=own_address())
        assert (answer.status, b"clients.admin" in answer.body) == (403, True)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_who_is_named_may_from_the_next_reload_on(self, tmp_path: Path, workers: int) -> None:
        policy = "workers: %d\nadmin: 0.0.0.0:0\nclients: {admin: [%s]}\n"
        with Sidecar(policy % (workers, "10.0.0.0/8"), tmp_path) as sidecar:
            assert get(sidecar.admin_url, "/metrics", address=own_address()).status == 403
            reload(sidecar, policy % (workers, own_address()))
            assert get(sidecar.admin_url, "/metrics", address=own_address()).status == 200

    @pytest.mark.parametrize("admin", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
    @pytest.mark.parametrize("clients", ["", "clients: {allow: [private]}", "clients: {unsafe_open_listener: true}"])
    def test_where_others_reach_it_and_nothing_says_who_may_it_does_not_start(
        self, tmp_path: Path, admin: str, clients: str
    ) -> None:
        with pytest.raises(SidecarFailed) as failed, Sidecar(f"admin: '{admin}'\n{clients}", tmp_path):
            pass
        assert failed.value.status == 2
        assert "policy.yaml:1:8: admin: others can reach" in failed.value.stderr
        assert "clients: {admin: [private]}" in failed.value.stderr
        assert "`probes`" in failed.value.stderr

    @pytest.mark.parametrize(("variable", "flag"), [("0.0.0.0:0", ""), ("127.0.0.1:0", "0.0.0.0:0")])
    def test_nor_where_a_variable_or_a_flag_opens_it(self, tmp_path: Path, variable: str, flag: str) -> None:
        env, arguments = {"OVERCOAT_ADMIN": variable}, ["--admin", flag] if flag else []
        with pytest.raises(SidecarFailed) as failed, Sidecar("", tmp_path, env=env, arguments=arguments):
            pass
        label = "--admin" if flag else "OVERCOAT_ADMIN"
        assert f"{label}: others can reach 0.0.0.0:0" in failed.value.stderr

    def test_a_rule_for_it_is_none_for_listeners_of_apps(self, tmp_path: Path) -> None:
        policy = "listen: ['forward://0.0.0.0:0']\nclients: {admin: [private]}\n"
        with pytest.raises(SidecarFailed, match=r"others can reach forward://0\.0\.0\.0:0"), Sidecar(policy, tmp_path):
            pass


class TestByWhatName:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1", "[::1]:9464", "10.244.1.17:9464", "203.0.113.7", "[2001:db8::1]", "localhost", "LOCALHOST.:1",
            "overcoat", "overcoat:9464", "metrics.shop.example", "METRICS.shop.example:9464", "xn--mnchen-3ya.example",
            "overcoat.shop.svc.cluster.local", "host.docker.internal", "app.localhost", None,
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/metrics", "/ready"])
    def test_addresses_local_names_and_those_of_the_policy_are_taken(
        self, sidecar: Sidecar, host: str | None, path: str
    ) -> None:
        assert get(sidecar.admin_url, path, host).status == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example", "evil.example:9464", "metrics.shop.example.evil.example", "x.metrics.shop.example",
            "127.0.0.1.evil.example", "localhost.evil.example", "overcoat.local", "evil.localhostx.example",
            "127.0.0.1, evil.example", "evil.example\r\nHost: 127.0.0.1", "127.0.0.1\r\nHost: evil.example",
            "user@127.0.0.1", "127.0.0.1/", " ", "0x7f.1",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/metrics", "/ready", "/other"])
    def test_a_name_that_somebody_could_let_lead_here_is_refused(self, sidecar: Sidecar, host: str, path: str) -> None:
        answer = get(sidecar.admin_url, path, host)
        assert (answer.status, b"`names`" in answer.body) == (421, True)
        assert b"overcoat_" not in answer.body
        assert b"evil" not in answer.body

    def test_a_refusal_of_head_has_no_body(self, sidecar: Sidecar) -> None:
        port = sidecar.admin_url.rpartition(":")[2]
        with RawClient(("127.0.0.1", int(port))) as client:
            client.send(b"HEAD /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            head, _, body = client.read_to_end().partition(b"\r\n\r\n")
        assert (head.startswith(b"HTTP/1.0 421 "), body) == (True, b"")

    def test_a_reverse_listener_takes_the_names_too(self, tmp_path: Path) -> None:
        policy = """
            listen: [forward://127.0.0.1:0, "reverse://127.0.0.1:0?to=https://api.example"]
            names: [api.shop.example]
        """
        with Sidecar(policy, tmp_path, hosts={"api.example": "127.0.0.1"}) as sidecar:
            url = f"http://{sidecar.listen[1]}"
            assert get(url, "/", "api.shop.example").status == 502  # nobody listens upstream: it went so far
            assert get(url, "/", "evil.example").status == 421


class TestProbes:
    @pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1, x", None])
    def test_anybody_may_ask_whether_it_lives_and_is_ready(self, sidecar: Sidecar, host: str | None) -> None:
        for address in ("127.0.0.1", own_address()):
            assert get(sidecar.probes_url, "/live", host, address).body == b"live\n"
            assert get(sidecar.probes_url, "/ready", host, address).body == b"ready\n"

    @pytest.mark.parametrize("path", ["/", "/metrics", "/policy", "/ready/", "/live/../metrics", "/metrics?/live"])
    def test_and_nothing_else(self, sidecar: Sidecar, path: str) -> None:
        answer = get(sidecar.probes_url, path)
        assert (answer.status, answer.body) == (404, b"there is /live, /ready\n")

    def test_a_variable_and_a_flag_say_where(self, tmp_path: Path) -> None:
        with Sidecar("", tmp_path, env={"OVERCOAT_PROBES": "127.0.0.1:0"}) as sidecar:
            assert get(sidecar.probes_url, "/ready").status == 200
            assert sidecar.run("healthcheck") == "ready\n"
        off = {"OVERCOAT_PROBES": "127.0.0.1:0"}
        with Sidecar("probes: 127.0.0.1:0", tmp_path, env=off, arguments=["--probes", "off"]) as sidecar:
            assert sidecar.probes_url == "http://None"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_it_is_enough_for_the_health_check(self, tmp_path: Path, workers: int) -> None:
        with Sidecar(f"workers: {workers}\nadmin: null\nprobes: 127.0.0.1:0", tmp_path) as sidecar:
            assert sidecar.run("healthcheck") == "ready\n"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_no_app_reaches_it_through_the_proxy(self, tmp_path: Path, workers: int) -> None:
        with Sidecar(f"workers: {workers}\nprobes: 127.0.0.1:0", tmp_path) as sidecar:
            authority = sidecar.probes_url.removeprefix("http://")
            with RawClient(sidecar.address) as client:
                client.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
                answer = client.read_response()
        assert (answer.status, answer.json()["reason"]) == (403, "destination_forbidden")

    def test_it_needs_an_address_of_its_own(self, tmp_path: Path) -> None:
        policy = "admin: 127.0.0.1:9464\nprobes: 127.0.0.1:9464"
        with pytest.raises(SidecarFailed, match=r"policy.yaml:2:9: probes: 127\.0\.0\.1:9464 stands twice"):
            Sidecar(policy, tmp_path).start()

    def test_moving_it_takes_a_restart(self, tmp_path: Path) -> None:
        with Sidecar("probes: 127.0.0.1:0", tmp_path) as sidecar:
            reload(sidecar, "probes: null", "refused")
            assert get(sidecar.probes_url, "/ready").status == 200
