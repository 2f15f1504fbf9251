"""What the end-to-end tests of fields cannot isolate: the clock, the seams to other stages, odd header fields."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from addons.encryption import Encryption
from addons.exchange import Exchange
from addons.sessions import Sessions
from proxy.core.decisions import Action, Decision
from proxy.core.destinations import Destination
from proxy.core.fields.entries import FieldEntry, Work
from proxy.core.fields.selectors import parse_selector
from proxy.core.jose import jwe, sealing
from proxy.core.jose.keys import Alg, Key, KeySet, new_key
from proxy.core.jose.place import Place
from proxy.core.reasons import Reason
from proxy.core.rules.policy import HostPattern, Https, Limits, Mode, PlainHttp, Policy, Rule

TODAY = date(2026, 6, 30)


class Stage:
    """The addon with one flow that its rule is about."""

    def __init__(self, *, mode: Mode = Mode.ENFORCE, not_after: date | None = None) -> None:
        key = new_key(Alg.A256KW, kid="k")
        self.keys = KeySet("set", Alg.A256KW, Key("k", Alg.A256KW, key.material, not_after))
        entry = FieldEntry((parse_selector("$.card"),), self.keys)
        hosts = (HostPattern("exact", "pay.example"),)
        rule = Rule(
            "pay",
            hosts,
            PlainHttp.UPGRADE,
            Https.INSPECT,
            request=(entry,),
            response=(replace(entry, work=Work.DECRYPT),),
        )
        self.sessions = Sessions()
        self.addon = Encryption(self.sessions, lambda: TODAY)
        self.flow = tflow.tflow()
        self.flow.request.headers.clear()
        self.sessions.open(self.flow.client_conn, Policy(mode=mode, limits=Limits(100), rules=(rule,)))
        self.exchange: Exchange = self.sessions.exchange(self.flow)
        self.exchange.asked = Destination("pay.example", 443)
        self.exchange.rule = rule
        self.exchange.decision = Decision(Action.INSPECT, self.exchange.asked)

    def request(self, body: bytes) -> None:
        """Take the flow through the request's hooks."""
        self.addon.requestheaders(self.flow)
        self.flow.request.data.content = body
        self.addon.request(self.flow)

    def respond(self, media_type: str | None) -> http.Response:
        """Give the flow a response and take it through the hook for its head."""
        self.flow.response = http.Response.make(200, b"", {} if media_type is None else {"Content-Type": media_type})
        self.addon.responseheaders(self.flow)
        return self.flow.response


@pytest.mark.parametrize(
    ("offered", "narrowed"),
    [
        ([], "identity"),
        ([""], "identity"),
        (["*"], "identity"),
        (["gzip"], "gzip"),
        (["x-gzip"], "x-gzip"),
        (["br", "gzip"], "br, gzip"),
        (["compress", "gzip"], "gzip"),
        (["compress,GZip ; q=0.001"], "GZip ; q=0.001"),
        (["gzip;q=0"], "gzip;q=0"),
        (["gzipped"], "identity"),
        (["compress;x=gzip"], "identity"),
    ],
)
def test_accept_encoding_is_narrowed_to_what_the_app_takes_and_we_open(offered: list[str], narrowed: str) -> None:
    stage = Stage()
    stage.flow.request.headers.set_all("accept-encoding", offered)
    stage.addon.requestheaders(stage.flow)
    assert ", ".join(stage.flow.request.headers.get_all("accept-encoding")) == narrowed


@pytest.mark.parametrize(
    ("media_type", "is_held"),
    [
        ("application/json", True),
        ("APPLICATION/JSON;charset=utf-8", True),
        (" application/vnd.api+json ; a=b", True),
        ("application/json-seq", False),
        ("text/event-stream", False),
        ("text/json", True),
        ("", True),
        (None, True),
        ("text/plain; x=application/json", False),
    ],
)
def test_a_response_is_held_unless_it_says_that_it_is_no_json(media_type: str | None, is_held: bool) -> None:
    stage = Stage()
    response = stage.respond(media_type)
    assert stage.exchange.holds_response == is_held
    assert bool(response.stream) != is_held


@pytest.mark.parametrize(("status", "is_held"), [(200, True), (206, True), (101, False)])
def test_what_follows_a_switch_of_protocols_is_no_body(status: int, is_held: bool) -> None:
    stage = Stage()
    stage.flow.response = http.Response.make(status)
    stage.addon.responseheaders(stage.flow)
    assert stage.exchange.holds_response == is_held


def test_a_response_without_a_body_is_given_no_length() -> None:
    stage = Stage()
    stage.exchange.method = "HEAD"
    response = stage.respond("application/json")
    response.data.content = None
    stage.addon.response(stage.flow)
    assert "content-length" not in response.headers


@pytest.mark.parametrize(("last_day", "reason"), [(TODAY, None), (TODAY - timedelta(days=1), Reason.KEY_UNAVAILABLE)])
def test_the_last_day_of_a_key_is_still_good(last_day: date, reason: Reason | None) -> None:
    stage = Stage(not_after=last_day)
    stage.request(b'{"card":1}')
    assert (stage.exchange.denied.reason if stage.exchange.denied else None) == reason
    assert (stage.flow.response is None) == (reason is None)
    assert stage.exchange.fields_encrypted == (0 if reason else 1)


def test_what_was_encrypted_opens_to_the_same_value_at_the_same_place() -> None:
    stage = Stage()
    stage.request(b'{ "card": [1.0] }')
    body = stage.flow.request.data.content
    assert body is not None
    token = body.removeprefix(b'{ "card": "').removesuffix(b'" }').decode()
    assert jwe.open_token(token, stage.keys, Place("pay.example", "$.card"), TODAY) == b"[1.0]"
    assert stage.flow.request.headers["content-length"] == str(len(body))
    assert stage.exchange.bytes_sent == len(body)


def test_a_value_too_long_for_a_token_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_TOKEN_CHARACTERS", 10)
    stage = Stage()
    stage.request(b'{"card":1}')
    assert stage.exchange.denied is not None
    assert stage.exchange.denied.reason is Reason.BODY_TOO_LARGE
    assert stage.flow.request.data.content == b'{"card":1}'  # which stays here: the flow has its answer
    assert stage.flow.response is not None


def test_a_request_that_was_answered_before_is_left_alone() -> None:
    stage = Stage()
    stage.flow.response = http.Response.make(403)
    stage.request(b"no json")
    assert stage.exchange.denied is None
    assert not stage.exchange.holds_request


def test_without_a_destination_nothing_is_encrypted_for_a_guess() -> None:
    stage = Stage()
    stage.exchange.asked = None
    with pytest.raises(RuntimeError, match="no destination"):
        stage.request(b'{"card":1}')


def test_a_length_that_is_no_number_is_an_error_and_never_a_pass() -> None:
    stage = Stage()
    stage.flow.request.headers["content-length"] = "x"
    with pytest.raises(ValueError, match="invalid literal"):
        stage.addon.requestheaders(stage.flow)


def test_observing_keeps_no_more_of_a_body_than_enforcing_would() -> None:
    stage = Stage(mode=Mode.OBSERVE)
    stage.addon.requestheaders(stage.flow)
    tee = stage.flow.request.stream
    assert callable(tee)
    pieces = [b'{"card":"', *[b"x" * 50] * 20, b'"}']
    for piece in pieces:
        assert tee(piece) == piece
        assert len(tee._then.held) <= 100 + 50  # type: ignore[attr-defined]  # what it keeps is what is asked about here
    assert tee(b"") == b""
    assert not tee._then.held  # type: ignore[attr-defined]  # the same
    assert stage.exchange.denied is not None
    assert stage.exchange.denied.reason is Reason.BODY_TOO_LARGE
    assert stage.exchange.bytes_sent == sum(map(len, pieces))
    assert stage.flow.response is None


@pytest.mark.parametrize(("more", "reason"), [(b"", None), (b" ", Reason.BODY_TOO_LARGE)])
def test_observing_counts_in_no_part_of_a_body(more: bytes, reason: Reason | None) -> None:
    stage = Stage(mode=Mode.OBSERVE)
    stage.addon.requestheaders(stage.flow)
    tee = stage.flow.request.stream
    assert callable(tee)
    for piece in (b'{"card":1}'.ljust(100), *([more] if more else []), b""):  # 100 is the limit
        tee(piece)
    assert (stage.exchange.denied.reason if stage.exchange.denied else None) is reason
    assert stage.exchange.fields_encrypted == (1 if reason is None else 0)


def test_the_first_reason_stays_where_observing_finds_several() -> None:
    stage = Stage(mode=Mode.OBSERVE, not_after=TODAY - timedelta(days=1))
    stage.addon.requestheaders(stage.flow)
    tee = stage.flow.request.stream
    assert callable(tee)
    tee(b"no json")
    tee(b"")
    assert stage.exchange.denied is not None
    assert stage.exchange.denied.reason is Reason.KEY_UNAVAILABLE
