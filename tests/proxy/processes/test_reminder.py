"""Reminders of ends: once a day, at each change, and no flood."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.core.certificates.localca import Lifetime
from proxy.core.rules.policy import Policy
from proxy.policyfile.load import load_policy
from proxy.processes.reminder import Reminder
from tests.proxy.commands.policies import JWK, PIN_A

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ENDS = datetime(2032, 1, 14, tzinfo=UTC)
LIFE = Lifetime(ENDS - 5 * 365 * DAY, ENDS)
NOTHING = Policy()


def said(caplog: pytest.LogCaptureFixture, *, levels: bool = False) -> list[str]:
    messages = [
        f"{record.levelname} {record.getMessage()}" if levels else record.getMessage() for record in caplog.records
    ]
    caplog.clear()
    return messages


def test_while_there_is_nothing_to_say_it_looks_every_hour(caplog: pytest.LogCaptureFixture) -> None:
    now = ENDS - 100 * DAY
    reminder = Reminder(LIFE, NOTHING, now)
    assert [reminder.remind(NOTHING, now + hour * HOUR) for hour in range(48)] == [3600.0] * 48
    assert said(caplog) == []


def test_from_thirty_days_on_it_says_so_once_a_day_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    now = ENDS - 31 * DAY - HOUR / 2
    reminder = Reminder(LIFE, NOTHING, now)
    days: dict[int, list[str]] = {}
    while now < ENDS + 3 * DAY:
        now += timedelta(seconds=reminder.remind(NOTHING, now))
        reminder_said = said(caplog)
        if reminder_said:
            days.setdefault((ENDS - now) // DAY, []).extend(reminder_said)
    texts = [text for day in days.values() for text in day]
    assert sum("ends on" in text for text in texts) == 30
    assert 3 <= sum("ended on" in text for text in texts) <= 4
    assert max(len(day) for day in days.values()) <= 2


def test_it_is_there_at_the_moment_of_the_end(caplog: pytest.LogCaptureFixture) -> None:
    reminder = Reminder(LIFE, NOTHING, ENDS - timedelta(seconds=90))
    assert reminder.remind(NOTHING, ENDS - timedelta(seconds=90)) == 90.0
    assert said(caplog) == []  # `serve` has just said it
    reminder.remind(NOTHING, ENDS)
    assert ["ended on" in text for text in said(caplog)] == [True]


def test_a_clock_that_is_set_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    reminder = Reminder(LIFE, NOTHING, ENDS - 10 * DAY)
    reminder.remind(NOTHING, ENDS + DAY)
    assert ["ended on" in text for text in said(caplog)] == [True]
    reminder.remind(NOTHING, ENDS - 10 * DAY)  # set back
    assert ["ends on" in text for text in said(caplog)] == [True]
    reminder.remind(NOTHING, ENDS - 100 * DAY)
    assert said(caplog) == []
    reminder.remind(NOTHING, LIFE.begins - DAY)
    assert ["clock" in text for text in said(caplog)] == [True]


@pytest.mark.parametrize(
    ("policy", "soon", "past"),
    [
        (
            f'rules: [{{name: pay, hosts: [pay.example], pins: {{any_of: ["{PIN_A}"], expires: 2031-03-10}}}}]',
            "rule pay: its pins will expire on 2031-03-10; after that its hosts are denied",
            "rule pay: its pins expired on 2031-03-10: its hosts are denied",
        ),
        (
            "keys: {app: {alg: A256KW, primary: {key: {env: APP_KEY}, not_after: 2031-03-10}}}",
            "key set app: key app-1 will expire on 2031-03-10; after that what it should encrypt is denied",
            "key set app: key app-1 expired on 2031-03-10: what it should encrypt is denied",
        ),
    ],
)
def test_pins_and_keys_end_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str, soon: str, past: str
) -> None:
    (tmp_path / "policy.yaml").write_text(textwrap.dedent(f"version: 1\n{policy}\n"))
    read = load_policy(tmp_path / "policy.yaml", {"APP_KEY": JWK})
    now = datetime(2031, 2, 7, 12, tzinfo=UTC)  # 31 days before
    reminder = Reminder(LIFE, read, now)
    days: dict[str, list[str]] = {}
    while now < datetime(2031, 3, 14, tzinfo=UTC):
        now += timedelta(seconds=reminder.remind(read, now))
        days.setdefault(f"{now:%m-%d}", []).extend(said(caplog, levels=True))
    assert days["02-07"] == []
    assert days["02-08"] == days["03-09"] == [f"WARNING {soon}"]
    assert days["03-11"] == days["03-12"] == [f"ERROR {past}"]
    reminder.remind(NOTHING, now + DAY)  # another policy is in force
    assert said(caplog) == []
