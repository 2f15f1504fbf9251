"""Reminders of the local CA's end: once a day, at each change, and no flood."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from proxy.core.localca import Lifetime
from proxy.reminder import Reminder

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ENDS = datetime(2032, 1, 14, tzinfo=UTC)
LIFE = Lifetime(ENDS - 5 * 365 * DAY, ENDS)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


def test_while_there_is_nothing_to_say_it_looks_every_hour(caplog: pytest.LogCaptureFixture) -> None:
    now = ENDS - 100 * DAY
    reminder = Reminder(LIFE, now)
    assert [reminder.remind(now + hour * HOUR) for hour in range(48)] == [3600.0] * 48
    assert said(caplog) == []


def test_from_thirty_days_on_it_says_so_once_a_day_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    now = ENDS - 31 * DAY - HOUR / 2
    reminder = Reminder(LIFE, now)
    days: dict[int, list[str]] = {}
    while now < ENDS + 3 * DAY:
        now += timedelta(seconds=reminder.remind(now))
        reminder_said = said(caplog)
        if reminder_said:
            days.setdefault((ENDS - now) // DAY, []).extend(reminder_said)
    texts = [text for day in days.values() for text in day]
    assert sum("ends on" in text for text in texts) == 30
    assert 3 <= sum("ended on" in text for text in texts) <= 4
    assert max(len(day) for day in days.values()) <= 2


def test_it_is_there_at_the_moment_of_the_end(caplog: pytest.LogCaptureFixture) -> None:
    reminder = Reminder(LIFE, ENDS - timedelta(seconds=90))
    assert reminder.remind(ENDS - timedelta(seconds=90)) == 90.0
    assert said(caplog) == []  # `serve` has just said it
    reminder.remind(ENDS)
    assert ["ended on" in text for text in said(caplog)] == [True]


def test_a_clock_that_is_set_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    reminder = Reminder(LIFE, ENDS - 10 * DAY)
    reminder.remind(ENDS + DAY)
    assert ["ended on" in text for text in said(caplog)] == [True]
    reminder.remind(ENDS - 10 * DAY)  # set back
    assert ["ends on" in text for text in said(caplog)] == [True]
    reminder.remind(ENDS - 100 * DAY)
    assert said(caplog) == []
    reminder.remind(LIFE.begins - DAY)
    assert ["clock" in text for text in said(caplog)] == [True]
