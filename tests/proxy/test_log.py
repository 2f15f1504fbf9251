"""Messages: their time, one form for programs and one for people, and nothing that an exception quotes."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest

from proxy.log import ForPeople, ForPrograms, say_all_in_one_form

CANARY = "canary-4111"


def record(message: str, *arguments: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("overcoat", logging.WARNING, "x.py", 1, message, arguments, None)
    made.created = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() + 0.0625
    made.__dict__.update(more)
    return made


def failed() -> BaseException:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        return error


class TestForms:
    def test_programs_get_an_object_with_time_level_message_and_facts(self) -> None:
        line = ForPrograms().format(record("%d of\n%s", 2, "three", facts={"event": "ready"}))
        assert json.loads(line) == {
            "time": "2026-03-01T12:00:00.062+00:00",
            "level": "warning",
            "message": "2 of\nthree",
            "event": "ready",
        }
        assert "\n" not in line

    def test_people_get_a_line_that_moves_no_cursor(self) -> None:
        line = ForPeople().format(record("one\n\x1b[2Jtwo", facts={"event": "ready"}))
        assert line == "2026-03-01T12:00:00Z WARNING one  [2Jtwo"

    @pytest.mark.parametrize("form", [ForPeople(), ForPrograms()])
    def test_an_exception_is_named_without_its_message(self, form: logging.Formatter) -> None:
        error = failed()
        line = form.format(record("it failed", exc_info=(type(error), error, error.__traceback__)))
        assert "it failed: ValueError in failed (test_log.py:" in line
        assert CANARY not in line


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def untouched() -> Iterator[None]:
    """Puts everything back that `say_all_in_one_form` takes over."""
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raises
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


@pytest.mark.usefixtures("untouched")
class TestEverythingGoesOneWay:
    def test_a_warning_of_a_library(self) -> None:
        say_all_in_one_form(said := StringIO())
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)  # pytest has put its own in between
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        assert json.loads(said.getvalue())["level"] == "warning"
        assert "DeprecationWarning: old" in json.loads(said.getvalue())["message"]

    def test_an_error_that_nobody_caught_in_this_thread_and_in_another(self) -> None:
        say_all_in_one_form(said := StringIO())
        error = failed()
        sys.excepthook(type(error), error, error.__traceback__)
        thread = threading.Thread(target=failing_thread)
        thread.start()
        thread.join()
        one, other = (json.loads(line)["message"] for line in said.getvalue().splitlines())
        assert "ValueError in failed (test_log.py:" in one
        assert "KeyError in failing_thread (test_log.py:" in other
        assert CANARY not in one + other

    def test_an_error_without_a_value_is_named(self) -> None:
        say_all_in_one_form(said := StringIO())
        sys.excepthook(MemoryError, None, None)  # type: ignore[arg-type]  # as the interpreter may
        assert json.loads(said.getvalue())["message"].endswith("MemoryError")

    def test_a_terminal_gets_text(self) -> None:
        say_all_in_one_form(said := Terminal())
        logging.getLogger("overcoat").info("hello")
        assert said.getvalue().endswith("Z INFO hello\n")

    def test_a_closed_stream_is_no_error(self) -> None:
        say_all_in_one_form(None)
        logging.getLogger("overcoat").error("lost")

    def test_nor_is_one_that_takes_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        stream = StringIO()
        say_all_in_one_form(stream)
        stream.close()
        logging.getLogger("overcoat").error("lost")
        assert capsys.readouterr().err == ""


def failing_thread() -> None:
    raise KeyError(CANARY)


class TestFile:
    @pytest.fixture(autouse=True)
    def as_it_was(self) -> Iterator[None]:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
        yield
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(False)

    def test_messages_are_appended_to_a_file_of_the_owners_alone(self, tmp_path: Path) -> None:
        file, stderr = tmp_path / "log", StringIO()
        file.write_text("before\n")
        file.chmod(0o644)
        say_all_in_one_form(stderr, file=file)
        logging.getLogger("overcoat").error("one")
        assert [line[:6] for line in file.read_text().splitlines()] == ["before", '{"time']
        file.rename(tmp_path / "log.1")  # logrotate
        logging.getLogger("overcoat").error("two")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["two"]
        file.unlink()
        logging.getLogger("overcoat").error("three")
        assert "three" in file.read_text()
        assert stderr.getvalue() == ""

    @pytest.mark.parametrize(("wanted", "is_text"), [("text", True), ("json", False), (None, False)])
    def test_in_the_form_that_is_wanted(self, tmp_path: Path, wanted: str | None, is_text: bool) -> None:
        say_all_in_one_form(StringIO(), wanted, tmp_path / "log")
        logging.getLogger("overcoat").error("one")
        assert (tmp_path / "log").read_text().startswith("{") is not is_text

    @pytest.mark.parametrize(("wanted", "is_text"), [("text", True), ("json", False), (None, True)])
    def test_on_a_terminal_too(self, wanted: str | None, is_text: bool) -> None:
        terminal = Terminal()
        say_all_in_one_form(terminal, wanted)
        logging.getLogger("overcoat").error("one")
        assert terminal.getvalue().startswith("{") is not is_text

    def test_what_cannot_be_opened_or_is_no_file_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for name in ("", "no/log", "pipe"):
            with pytest.raises(OSError):  # noqa: PT011  # of several kinds
                say_all_in_one_form(None, file=tmp_path / name)

    def test_a_file_that_cannot_be_opened_again_is_written_on_and_a_full_disk_stops_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "folder").mkdir()
        file = tmp_path / "folder" / "log"
        say_all_in_one_form(None, file=file)
        (tmp_path / "folder").rename(tmp_path / "moved")
        logging.getLogger("overcoat").error("one")
        assert "one" in (tmp_path / "moved" / "log").read_text()

        def full(_descriptor: int, _data: bytes) -> int:
            raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr(os, "write", full)
        logging.getLogger("overcoat").error("two")
