"""A name is looked up once, and what was judged is what is dialled; the first address that answers is taken."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from addons.upstream import Upstream
from proxy import timelimits
from proxy.core.decisions import Denied
from proxy.core.destinations import Destination
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Limits, Mirror, Mode, Policy
from proxy.core.who.addresses import AddressKind, AddressSet
from proxy.engine.upstreams import dialling

LOOPBACK = AddressSet(frozenset({AddressKind.LOOPBACK}))


class Engine:
    """What dialling needs of the engine."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.resolvers = ThreadPoolExecutor(1)
        self.own: list[int] = []
        self.pool = self
        self.has_given_up_idle = False

    def close(self) -> None:
        """Close the idle connections, as a pool does."""
        self.has_given_up_idle = True

    def is_own_address(self, local: tuple[str, int], remote: tuple[str, int]) -> bool:
        return remote[1] in self.own


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let each look-up give the next of some lists of addresses; returns what was asked for."""

    def answer(*lists: list[str]) -> list[str]:
        left, asked = list(lists), []

        def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            return [
                (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
                for each in left.pop(0)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return answer


def connect(
    port: int,
    policy: Policy,
    own: tuple[int, ...] = (),
    host: str = "api.example",
    mirror: Mirror | None = None,
) -> tuple[str, Upstream]:
    """Return the address that was connected to."""

    async def run() -> tuple[str, Upstream]:
        engine = Engine()
        engine.own += own
        record = Upstream(policy, None, mirror=mirror)
        with await dialling.connect(cast(Any, engine), host, port, record) as connection:
            return connection.getpeername()[0], record

    return asyncio.run(run())


def test_the_second_answer_of_a_name_that_changes_is_never_asked_for(
    server: socket.socket, answers: Callable[..., list[str]]
) -> None:
    asked = answers(["127.0.0.1"], ["169.254.169.254"])
    assert connect(server.getsockname()[1], Policy(destinations=LOOPBACK))[0] == "127.0.0.1"
    assert asked == ["api.example"]


def test_of_several_addresses_only_the_allowed_are_dialled(
    server: socket.socket, answers: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(["169.254.169.254", "10.0.0.1", "127.0.0.1"])
    dialled: list[str] = []
    original = dialling._try

    async def noting(loop: Any, family: Any, address: Any) -> socket.socket:
        dialled.append(address[0])
        return await original(loop, family, address)

    monkeypatch.setattr(dialling, "_try", noting)
    assert connect(server.getsockname()[1], Policy(destinations=LOOPBACK))[0] == "127.0.0.1"
    assert dialled == ["127.0.0.1"]


PLAIN = Mirror(Destination("app.internal", 5000), True, ("api.example",))


@pytest.mark.parametrize("mode", Mode)
def test_a_mirrors_server_is_asked_in_plain_http_at_loopback_alone_in_any_mode(
    server: socket.socket, answers: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    dialled: list[str] = []
    original = dialling._try

    async def noting(loop: Any, family: Any, address: Any) -> socket.socket:
        dialled.append(address[0])
        return await original(loop, family, address)

    monkeypatch.setattr(dialling, "_try", noting)
    port = server.getsockname()[1]
    answers(["1.1.1.1", "10.0.0.1", "127.0.0.1"])
    assert connect(port, Policy(mode=mode), host="app.internal", mirror=PLAIN)[0] == "127.0.0.1"
    assert dialled == ["127.0.0.1"]
    for address in ("1.1.1.1", "10.0.0.1"):
        answers([address])
        with pytest.raises(Denied) as refused:
            connect(port, Policy(mode=mode), host="app.internal", mirror=PLAIN)
        assert refused.value.reason is Reason.DESTINATION_FORBIDDEN
    assert dialled == ["127.0.0.1"]


def test_where_none_is_allowed_nothing_is_dialled(server: socket.socket, answers: Callable[..., list[str]]) -> None:
    answers(["127.0.0.1", "::1"])
    with pytest.raises(Denied) as refused:
        connect(server.getsockname()[1], Policy())
    assert refused.value.reason is Reason.DESTINATION_FORBIDDEN
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_an_address_is_not_looked_up(server: socket.socket, answers: Callable[..., list[str]]) -> None:
    asked = answers()
    connect(server.getsockname()[1], Policy(destinations=LOOPBACK), host="127.0.0.1")
    assert asked == []


def test_observing_dials_what_is_forbidden_and_notes_it(
    server: socket.socket, answers: Callable[..., list[str]]
) -> None:
    answers(["127.0.0.1"])
    _, record = connect(server.getsockname()[1], Policy(mode=Mode.OBSERVE))
    assert record.observed is not None
    assert record.observed.reason is Reason.DESTINATION_FORBIDDEN
    assert record.denied is None  # it was dialled, and what fails then is another reason


@pytest.mark.parametrize("policy", [Policy(destinations=LOOPBACK), Policy(mode=Mode.OBSERVE)])
def test_our_own_listener_is_forbidden_whatever_the_policy_says(
    server: socket.socket, answers: Callable[..., list[str]], policy: Policy
) -> None:
    answers(["127.0.0.1"])
    port = server.getsockname()[1]
    with pytest.raises(Denied, match="one of Overcoat's own listeners"):
        connect(port, policy, own=(port,))


def test_one_that_is_reset_as_soon_as_it_is_open_is_unreachable(
    server: socket.socket, answers: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the kernel does not know the peer any more."""
    answers(["127.0.0.1"])
    reset = socket.socket()

    async def first(*_: object) -> socket.socket:
        return reset

    monkeypatch.setattr(dialling, "_first", first)
    with pytest.raises(Denied, match="takes no connection") as failed:
        connect(server.getsockname()[1], Policy(destinations=LOOPBACK))
    assert failed.value.reason is Reason.UPSTREAM_UNREACHABLE
    assert reset.fileno() == -1  # closed


def test_an_address_that_refuses_gives_way_to_the_next(
    server: socket.socket, answers: Callable[..., list[str]]
) -> None:
    answers(["127.9.9.9", "::1", "127.0.0.1"])
    assert connect(server.getsockname()[1], Policy(destinations=LOOPBACK))[0] == "127.0.0.1"


def test_one_that_does_not_answer_is_not_waited_for_alone(
    server: socket.socket, answers: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(["127.0.0.2", "127.0.0.1"])
    original = dialling._try

    async def silent(loop: Any, family: Any, address: Any) -> socket.socket:
        if address[0] == "127.0.0.2":
            await asyncio.sleep(60)
        return await original(loop, family, address)

    monkeypatch.setattr(dialling, "_try", silent)
    monkeypatch.setattr(timelimits, "NEXT_ADDRESS_SECONDS", 0.01)
    assert connect(server.getsockname()[1], Policy(destinations=LOOPBACK))[0] == "127.0.0.1"


def test_where_all_refuse_it_is_unreachable(answers: Callable[..., list[str]]) -> None:
    answers(["127.0.0.1", "127.0.0.2"])
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(Denied) as refused:
            connect(bound.getsockname()[1], Policy(destinations=LOOPBACK))
    assert refused.value.reason is Reason.UPSTREAM_UNREACHABLE
    assert refused.value.detail.endswith("takes no connection")


def test_a_name_that_nobody_answers_for_takes_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> list[Any]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(dialling, "_look_up", never)
    with pytest.raises(Denied) as refused:
        connect(1, Policy(limits=Limits(connect_seconds=0)))
    assert refused.value.reason is Reason.UPSTREAM_TIMEOUT


@pytest.mark.parametrize(
    ("error", "why", "hint"),
    [
        (socket.EAI_NONAME, "there is no such name", "spelt"),
        (socket.EAI_AGAIN, "the DNS gave no answer", "DNS server"),
        (socket.EAI_FAIL, "the DNS gave no answer", "DNS server"),
    ],
)
def test_a_name_that_is_not_there_and_a_dns_that_does_not_answer_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: int, why: str, hint: str
) -> None:
    def fails(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(error, "words of the system's")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(Denied, match=f"cannot be resolved: {why}") as refused:
        connect(1, Policy())
    assert hint in refused.value.hint


def test_the_upstream_proxy_is_where_the_policy_says_whatever_is_forbidden_to_others(
    server: socket.socket, answers: Callable[..., list[str]]
) -> None:
    answers(["127.0.0.1"])

    async def run() -> None:
        record = Upstream(Policy(), None, is_proxy=True)
        with await dialling.connect(cast(Any, Engine()), "proxy.example", server.getsockname()[1], record):
            assert record.observed is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("found", "kind"),
    [(["127.0.0.1", "10.0.0.1"], AddressKind.LOOPBACK), (["93.184.216.34", "10.0.0.1"], AddressKind.PRIVATE)],
)
def test_the_first_that_is_forbidden_is_named(found: list[str], kind: AddressKind) -> None:
    record = Upstream(Policy(mode=Mode.OBSERVE), None)
    addresses: Any = [(socket.AF_INET, (each, 443)) for each in found]
    assert dialling._allowed(addresses, "api.example", record) == addresses
    assert record.observed is not None
    assert f"at a {kind} address" in record.observed.detail


@pytest.mark.parametrize(("mode", "found"), [(Mode.OBSERVE, ["1.1.1.1"]), (Mode.ENFORCE, ["1.1.1.1", "10.0.0.1"])])
def test_where_one_may_be_dialled_and_is_nothing_is_noted(mode: Mode, found: list[str]) -> None:
    record = Upstream(Policy(mode=mode), None)
    addresses: Any = [(socket.AF_INET, (each, 443)) for each in found]
    assert dialling._allowed(addresses, "api.example", record) == addresses[:1]
    assert record.observed is None


def test_a_connection_that_comes_too_late_is_closed() -> None:
    one, other = socket.socketpair()

    async def run() -> None:
        async def connects() -> socket.socket:
            return one

        async def fails() -> socket.socket:
            raise ConnectionRefusedError

        async def hangs() -> socket.socket:
            await asyncio.sleep(60)
            return one

        tasks = [asyncio.create_task(each) for each in (connects(), fails(), hangs())]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            dialling._close_result(task)

    with other:
        asyncio.run(run())
        assert one.fileno() == -1


class TestAddressesThatNobodyLooksUp:
    """Behind another proxy, names are for it to look up; what is known of an address is judged here."""

    @pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "localhost", "a.localhost"])
    def test_what_is_not_public_is_forbidden(self, host: str) -> None:
        with pytest.raises(Denied) as refused:
            dialling.check_address(host, Upstream(Policy(), None))
        assert refused.value.reason is Reason.DESTINATION_FORBIDDEN

    def test_in_observe_mode_that_is_noted(self) -> None:
        record = Upstream(Policy(mode=Mode.OBSERVE), None)
        dialling.check_address("127.0.0.1", record)
        assert record.observed is not None
        assert record.observed.reason is Reason.DESTINATION_FORBIDDEN

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("host", ["93.184.216.34", "api.example", "notlocalhost", "localhost.example"])
    def test_all_others_pass(self, mode: Mode, host: str) -> None:
        record = Upstream(Policy(mode=mode), None)
        dialling.check_address(host, record)
        assert record.observed is None

    @pytest.mark.parametrize(
        ("host", "is_one"),
        [
            ("127.0.0.1", True),
            ("127.9.9.9", True),
            ("::1", True),
            ("localhost", True),
            ("a.localhost", True),
            ("10.0.0.1", False),
            ("api.example", False),
            ("notlocalhost", False),
            ("localhost.example", False),
        ],
    )
    def test_what_always_leads_to_this_machine(self, host: str, is_one: bool) -> None:
        assert dialling.is_loopback(host) is is_one

    @pytest.mark.parametrize(("host", "here"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("name", None)])
    def test_from_where_this_machine_would_connect(self, host: str, here: str | None) -> None:
        assert dialling.local_address_to(host) == here


def test_families_take_turns() -> None:
    def of(*texts: str) -> list[Any]:
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, 1)) for each in texts]

    turns = dialling._alternating(of("::1", "::2", "::3", "10.0.0.1"))
    assert [address[0] for _, address in turns] == ["::1", "10.0.0.1", "::2", "::3"]
    turns = dialling._alternating(of("10.0.0.1", "::1", "::2"))
    assert [address[0] for _, address in turns] == ["10.0.0.1", "::1", "::2"]


class TestDescriptors:
    """The last of them are not for connections to servers: see `proxy.engine.descriptors`."""

    def dial(self, port: int) -> Engine:
        async def run() -> Engine:
            engine = Engine()
            record = Upstream(Policy(destinations=LOOPBACK), None)
            with await dialling.connect(cast(Any, engine), "127.0.0.1", port, record):
                return engine

        return asyncio.run(run())

    def test_while_there_are_enough_idle_connections_are_kept(self, server: socket.socket) -> None:
        assert not self.dial(server.getsockname()[1]).has_given_up_idle

    def test_idle_connections_are_given_up_for_one_that_is_needed(
        self, server: socket.socket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = [True, False]
        monkeypatch.setattr(dialling, "is_taken", lambda *_: taken.pop(0))
        assert self.dial(server.getsockname()[1]).has_given_up_idle

    def test_one_of_the_last_is_not_used(self, server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dialling, "is_taken", lambda *_: True)
        with pytest.raises(Denied, match="no descriptor is left for a connection to") as denied:
            self.dial(server.getsockname()[1])
        assert denied.value.reason is Reason.UPSTREAM_UNREACHABLE
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
