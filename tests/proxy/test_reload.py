"""What may be taken over while the process runs, and what is said of what may not."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from proxy.config import PolicyError, PolicyErrors
from proxy.core.policy import Listener, Mode, Policy
from proxy.reload import KEPT, Reader

FIRST = Policy()


@pytest.mark.parametrize("policy", [Policy(), replace(FIRST, mode=Mode.OBSERVE, source="other.yaml")])
def test_what_changes_nothing_that_is_fixed_is_taken_over(policy: Policy) -> None:
    assert Reader(lambda: policy, FIRST).again() is policy


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        (replace(FIRST, listen=(Listener("127.0.0.1", 1),)), "listen"),
        (replace(FIRST, listen=(*FIRST.listen, Listener("::1", 8080))), "listen"),
        (replace(FIRST, admin=None), "admin"),
        (replace(FIRST, workers=2, admin=None), "admin and workers"),
    ],
)
def test_what_is_fixed_takes_a_restart(policy: Policy, named: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "overcoat"):
        assert Reader(lambda: policy, FIRST).again() is None
    assert caplog.messages == [f"{KEPT}: a change of {named} takes a restart"]


def test_it_is_held_against_the_first_not_the_last() -> None:
    other = replace(FIRST, workers=2)
    read = iter([other, other, Policy()])
    reader = Reader(lambda: next(read), FIRST)
    assert reader.again() is None
    assert reader.again() is None
    assert reader.again() is not None


def test_every_error_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Policy:
        raise PolicyErrors([PolicyError("p.yaml", line, 1, "rules", "is wrong") for line in (1, 2)])

    with caplog.at_level(logging.ERROR, "overcoat"):
        assert Reader(load, FIRST).again() is None
    assert [message.partition(" ")[0] for message in caplog.messages[:2]] == ["p.yaml:1:1:", "p.yaml:2:1:"]
    assert caplog.messages[2:] == [KEPT]
