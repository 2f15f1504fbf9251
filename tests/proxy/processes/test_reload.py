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
from proxy.policyfile.refusal import PolicyError
from proxy.processes.apart import Answer, Reading
from proxy.processes.reload import KEPT, Read, Reader, log_read

FIRST = with_roots(Policy())


class Done(Reading):
    """A reading that is over."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def hear(self) -> Answer:
        return self._answer


def again(*answers: Answer | Policy) -> Reader:
    """Return what reads these, one after the other."""
    given = iter(answers)

    def begin() -> Reading:
        answer = next(given)
        return Done(answer if isinstance(answer, Answer) else Answer(answer, versions={}))

    return Reader(begin, FIRST, None)


def read(reader: Reader) -> Policy | None:
    """Read, and return the policy that came of it."""
    assert reader.begin() is not None
    found = reader.heard(FIRST)
    assert found is not None
    assert found.is_news
    assert found.result == ("refused" if found.policy is None else "unchanged" if found.policy is FIRST else "taken")
    return found.policy


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    return tmp_path / "roots.pem"


@pytest.mark.parametrize("change", [{"content": b"other"}, {"secrets": b"other"}])
def test_what_changes_nothing_that_is_fixed_is_taken_over(change: dict[str, Any]) -> None:
    policy = replace(Policy(), mode=Mode.OBSERVE, source="other.yaml", **change)
    taken = read(again(with_roots(policy)))
    assert taken is not None
    assert (taken.mode, taken.trust.anchors) == (Mode.OBSERVE, FIRST.trust.anchors)


def test_what_says_the_same_is_not_taken_over() -> None:
    assert read(again(with_roots(Policy()))) is FIRST


def test_other_roots_are_another_policy(monkeypatch: pytest.MonkeyPatch, roots: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    taken = read(again(with_roots(Policy())))
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
        assert read(again(policy)) is None
    assert caplog.messages == [f"{KEPT}: a change of {named} takes a restart"]


def test_it_is_held_against_the_first_not_the_last() -> None:
    other = replace(FIRST, workers=2)
    reader = again(other, other, replace(FIRST, content=b"other"))
    assert read(reader) is None
    assert read(reader) is None
    assert read(reader) is not None


def test_every_error_is_said(caplog: pytest.LogCaptureFixture) -> None:
    errors = tuple(PolicyError("p.yaml", line, 1, "rules", "is wrong") for line in (1, 2))
    with caplog.at_level(logging.ERROR, "overcoat"):
        assert read(again(Answer(errors=errors, versions={}))) is None
    assert [message.partition(" ")[0] for message in caplog.messages[:2]] == ["p.yaml:1:1:", "p.yaml:2:1:"]
    assert caplog.messages[2:] == [KEPT]


def test_so_is_why_it_could_not_be_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "overcoat"):
        assert read(again(Answer(failure="why"))) is None
    assert caplog.messages == [f"{KEPT}: why"]


def test_while_it_is_read_it_is_only_noted_that_it_should_be_read_again() -> None:
    reader = again(FIRST, FIRST)
    asked = []
    for is_begun in (True, False):
        assert (reader.begin() is not None) == is_begun
        asked.append(reader.is_asked_again)
    assert reader.heard(FIRST) is not None
    asked.append(reader.is_asked_again)
    assert reader.begin() is not None
    assert [*asked, reader.is_asked_again] == [False, True, True, False]


@pytest.mark.parametrize(("was_refused", "is_news"), [(False, False), (True, True)])
def test_that_files_were_only_touched_is_news_after_a_refusal_alone(
    tmp_path: Path, was_refused: bool, is_news: bool
) -> None:
    reader = again(FIRST)
    reader.is_refused = was_refused
    reader.begin([tmp_path])
    assert reader.heard(FIRST) == Read("unchanged", FIRST, [tmp_path], is_news=is_news)
