"""What is under way: counted by rule and kind, its bytes once, and no longer than it runs."""

from __future__ import annotations

import json

from mitmproxy import http
from mitmproxy.test import tflow
from prometheus_client import CollectorRegistry

from addons import underway
from addons.exchange import Exchange
from addons.metrics import Metrics
from addons.sessions import Session, Sessions
from addons.telemetry import Telemetry
from proxy.core.decisions import Action, Decision
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.rules.policy import Policy


class World:
    """A telemetry addon with one client connection, and the lines that it wrote."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sessions = Sessions()
        self.telemetry = Telemetry(self.sessions, Metrics(CollectorRegistry()), self.write)
        self.is_full = False

    def write(self, line: str) -> None:
        if self.is_full:
            raise OSError
        self.lines.append(line)

    def begin(self, method: str = "POST") -> tuple[http.HTTPFlow, Session, Exchange]:
        flow = tflow.tflow()
        flow.request.method = method
        session = self.sessions.open(flow.client_conn, Policy())
        exchange = self.sessions.exchange(flow)
        exchange.decision = Decision(Action.TUNNEL if method == "CONNECT" else Action.UPGRADE)
        if method == "CONNECT":
            session.connect = exchange
        return flow, session, exchange

    def look(self, line_seconds: float = 1000) -> int:
        return len(list(self.telemetry.under_way.look(line_seconds)))

    def value(self, name: str, **labels: str) -> float:
        registry = self.telemetry.metrics.registry
        return registry.get_sample_value(name, {"rule": "-", "mode": "enforce", **labels}) or 0


def test_bytes_of_what_runs_are_counted_once() -> None:
    world = World()
    flow, _, exchange = world.begin()
    exchange.bytes_sent = 5
    world.look()
    assert world.value("overcoat_body_bytes_total", direction="sent") == 0  # nothing of it has left
    exchange.has_left = True
    for count in (5, 7):
        exchange.bytes_sent = count
        world.look()
        assert world.value("overcoat_body_bytes_total", direction="sent") == count
    assert world.value("overcoat_in_flight", kind="request") == 1
    exchange.bytes_sent, exchange.bytes_received = 10, 3
    world.telemetry.error(flow)
    assert world.value("overcoat_body_bytes_total", direction="sent") == 10
    assert world.value("overcoat_body_bytes_total", direction="received") == 3
    world.look()
    assert world.value("overcoat_in_flight", kind="request") == 0
    assert world.value("overcoat_body_bytes_total", direction="sent") == 10


def test_a_tunnel_has_lines_while_it_is_open_and_none_that_cannot_be_written_harms() -> None:
    world = World()
    flow, session, exchange = world.begin("CONNECT")
    world.look(0)
    assert world.lines == []  # it is not open yet
    world.telemetry.under_way.opened(exchange, None)
    session.sent = 4
    world.look(1000)
    world.look(0)
    world.is_full = True
    world.look(0)
    assert world.telemetry.metrics.registry.get_sample_value("overcoat_decision_lines_lost_total") == 1
    world.is_full = False
    world.telemetry.client_disconnected(flow.client_conn)
    world.look(0)
    found = [json.loads(line) for line in world.lines]
    assert [(line.get("event"), line["bytes_sent"]) for line in found] == [("opened", 0), ("running", 4), (None, 4)]
    assert {line["id"] for line in found} == {exchange.id}


def test_others_have_a_turn_where_there_is_much() -> None:
    world = World()
    for _ in range(2 * underway._AT_ONCE + 1):
        world.begin()
    assert world.look() == 2
    assert world.value("overcoat_in_flight", kind="request") == 2 * underway._AT_ONCE + 1


def test_fields_of_an_open_websocket_are_counted_while_it_is_open() -> None:
    world = World()
    flow, _, exchange = world.begin()
    entry = FieldEntry((parse_selector("$.a"),), KeySet("k", Alg.A256KW, new_key(Alg.A256KW)), name="request[0]")
    labels = {"entry": "request[0]", "direction": "encrypted"}
    exchange.count_fields((entry,), (2,))
    world.look()
    assert world.value("overcoat_fields_total", **labels) == 0  # a request may still be denied
    exchange.has_switched = True
    for more, count in ((0, 2), (3, 5)):
        exchange.count_fields((entry,), (more,))
        world.look()
        assert world.value("overcoat_fields_total", **labels) == count
    world.telemetry.error(flow)
    assert world.value("overcoat_fields_total", **labels) == 5
    assert json.loads(world.lines[-1])["fields"] == {"request[0]": 5}
