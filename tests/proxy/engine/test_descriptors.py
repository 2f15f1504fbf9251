"""How many descriptors there are, and who may have the last."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from proxy.core.rules.policy import Limits, Policy
from proxy.engine.descriptors import KEPT_FROM_APPS, AppListener, carried, is_taken, raise_limit, warn_of_limit


@pytest.fixture(autouse=True)
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limit(soft: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_the_soft_limit_becomes_the_hard_one() -> None:
    limit(256)
    raise_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard


def test_where_the_system_gives_less_than_it_says_it_becomes_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def limited(_: int, wanted: tuple[int, int]) -> None:
        asked.append(wanted)
        if wanted[0] == resource.RLIM_INFINITY:
            raise ValueError("not so many")

    with monkeypatch.context() as patched:
        patched.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
        patched.setattr(resource, "setrlimit", limited)
        raise_limit()
    assert asked == [(resource.RLIM_INFINITY,) * 2, (10_240, resource.RLIM_INFINITY)]


@pytest.mark.parametrize(("soft", "most"), [(1024, 480), (512, 224), (256, 112), (64, 28)])
def test_each_connection_takes_two_beside_those_that_are_kept(soft: int, most: int) -> None:
    limit(soft)
    assert carried() == most


@pytest.mark.parametrize(("soft", "first"), [(1024, 960), (512, 448), (64, 56)])
def test_the_last_are_known_by_their_numbers(soft: int, first: int) -> None:
    limit(soft)
    assert not is_taken(first - 1, KEPT_FROM_APPS)
    assert is_taken(first, KEPT_FROM_APPS)


def test_what_cannot_be_carried_is_said(caplog: pytest.LogCaptureFixture) -> None:
    limit(1024)
    policy = replace(Policy(), limits=replace(Limits(), connections=480))
    warn_of_limit(policy)
    assert caplog.text == ""
    warn_of_limit(replace(policy, limits=replace(Limits(), connections=481)))
    assert "limits.connections is 481, but 1024 descriptors carry 480" in caplog.text


def test_an_app_waits_while_only_the_last_are_left() -> None:
    with AppListener(socket.AF_INET, socket.SOCK_STREAM) as listener, socket.socket() as app:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        app.connect(listener.getsockname())
        number = app.fileno() + 1
        limit(number + 1)
        with pytest.raises(OSError, match="Too many") as failure:
            listener.accept()
        assert failure.value.errno == errno.EMFILE
        limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        listener.accept()[0].close()
