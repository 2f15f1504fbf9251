"""What may be taken over while the process runs, and what is said of what may not."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.core.rules.policy import Listener, Mode, Policy
from proxy.engine.roots import with_roots
from proxy.policyfile.refusal import PolicyError, PolicyErrors
from proxy.processes.reload import KEPT, Reader, log_read

FIRST = with_roots(Policy())


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    return tmp_path / "roots.pem"


@pytest.mark.parametrize("change", [{"content": b"other"}, {"secrets": b"other"}])
def test_what_changes_nothing_that_is_fixed_is_taken_over(change: dict[str, Any]) -> None:
    policy = replace(Policy(), mode=Mode.OBSERVE, source="other.yaml", **change)
    taken = Reader(lambda: policy, FIRST, None).again(FIRST)
    assert taken is not None
    assert (taken.mode, taken.trust.anchors) == (Mode.OBSERVE, FIRST.trust.anchors)


def test_what_says_the_same_is_not_taken_over() -> None:
    assert Reader(Policy, FIRST, None).again(FIRST) is FIRST


def test_other_roots_are_another_policy(monkeypatch: pytest.MonkeyPatch, roots: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    taken = Reader(Policy, FIRST, None).again(FIRST)
    assert taken is not FIRST
    assert taken is not None
    assert len(taken.trust.anchors or ()) == 1


def test_what_came_of_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    new = replace(FIRST, content=b"\xab" * 32, mode=Mode.OBSERVE, source="policy.yaml")
    before = replace(FIRST, content=b"\xcd" * 32)
    with caplog.at_level(logging.INFO, "overcoat"):
        log_read(new, before)
        log_read(new, replace(new, secrets=b"other"))
        log_read(new, new)
    start, end = "the policy was read again, and is ", ": hash abababababab, rules 0, mode observe"
    told = [record.message for record in caplog.records if record.levelno == logging.INFO]  # not what is warned of
    assert told == [
        f"{start}in force, in place of cdcdcdcdcdcd{end}",
        f"{start}in force, with other credentials for the upstream proxy{end}",
        f"{start}unchanged{end}",
    ]


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
        assert Reader(lambda: policy, FIRST, None).again(FIRST) is None
    assert caplog.messages == [f"{KEPT}: a change of {named} takes a restart"]


def test_it_is_held_against_the_first_not_the_last() -> None:
    other = replace(FIRST, workers=2)
    read = iter([other, other, Policy()])
    reader = Reader(lambda: next(read), FIRST, None)
    assert reader.again(FIRST) is None
    assert reader.again(FIRST) is None
    assert reader.again(FIRST) is not None


def test_every_error_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Policy:
        raise PolicyErrors([PolicyError("p.yaml", line, 1, "rules", "is wrong") for line in (1, 2)])

    with caplog.at_level(logging.ERROR, "overcoat"):
        assert Reader(load, FIRST, None).again(FIRST) is None
    assert [message.partition(" ")[0] for message in caplog.messages[:2]] == ["p.yaml:1:1:", "p.yaml:2:1:"]
    assert caplog.messages[2:] == [KEPT]
