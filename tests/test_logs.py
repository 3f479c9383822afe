"""A log line is one line, whatever a device put into its fields."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.logs import (
    JsonFormatter,
    LogFormat,
    TextFormatter,
    configure_logging,
    show_decisions,
)

LINE = "%(levelname)s %(name)s: %(message)s"


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Put the loggers back as pytest has set them up."""
    root, ours = logging.getLogger(), logging.getLogger("wildflower")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "wildflower.x", "levelname": "INFO", "msg": message, "args": arguments}
    )
    vars(made).update(fields)
    return made


def test_fields_follow_the_message() -> None:
    line = TextFormatter(LINE).format(record("round %s recorded", 3, device_id="ab", n=2))
    assert line == "INFO wildflower.x: round 3 recorded  device_id=ab  n=2"


def test_a_field_that_could_be_read_as_two_is_quoted() -> None:
    line = TextFormatter(LINE).format(record("seen", name_given='a  role="admin"'))
    assert line == 'INFO wildflower.x: seen  name_given="a  role=\\"admin\\""'


@given(st.text(), st.text())
@settings(max_examples=200)
def test_no_text_forges_a_line(message: str, value: str) -> None:
    line = TextFormatter(LINE).format(record("%s", message, reason=value))
    assert line.isprintable()
    assert line.startswith("INFO wildflower.x: ")
    body = json.loads(JsonFormatter().format(record("%s", message, reason=value)))
    assert (body["message"], body["reason"]) == (message, value)


def test_a_traceback_never_looks_like_a_record() -> None:
    try:
        raise ValueError("x\nINFO wildflower.x: forged")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    first, *rest = TextFormatter(LINE).format(made).splitlines()
    assert first == "INFO wildflower.x: failed"
    assert all(line.startswith("    ") for line in rest)
    body = json.loads(JsonFormatter().format(made))
    assert "ValueError: x" in body["exception"]


def test_a_field_replaces_nothing_that_is_known_of_the_record() -> None:
    body = json.loads(JsonFormatter().format(record("real", level="FORGED", logger="forged")))
    assert (body["level"], body["logger"], body["message"]) == ("INFO", "wildflower.x", "real")


@pytest.mark.parametrize(
    ("verbosity", "seen"),
    [(0, ["warning"]), (1, ["info", "warning"]), (2, ["debug", "others", "info", "warning"])],
)
@pytest.mark.usefixtures("root_logger")
def test_verbosity_opens_our_decisions_first(
    verbosity: int, seen: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogFormat.JSON, verbosity=verbosity)
    logging.getLogger("wildflower.x").debug("debug")
    logging.getLogger("other").info("others")
    logging.getLogger("wildflower.x").info("info")
    logging.getLogger("wildflower.x").warning("warning")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == seen


@pytest.mark.usefixtures("root_logger")
def test_text_lines_begin_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogFormat.TEXT)
    logging.getLogger("wildflower.x").warning("seen", extra={"n": 1})
    time, rest = capsys.readouterr().err.split(" ", 1)
    assert len(time) == len("08:09:10")
    assert rest == "WARNING wildflower.x: seen  n=1\n"


@pytest.mark.usefixtures("root_logger")
def test_a_record_that_cannot_be_written_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogFormat.TEXT)
    logging.getLogger("wildflower.x").warning("%d rounds", "three")
    assert "--- Logging error ---" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "level"), [(0, logging.INFO), (2, logging.DEBUG)])
@pytest.mark.usefixtures("root_logger")
def test_decisions_are_shown_in_the_format_asked_for(
    asked: int, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogFormat.JSON, verbosity=asked)
    show_decisions()
    logging.getLogger("wildflower.x").info("seen")
    assert json.loads(capsys.readouterr().err)["message"] == "seen"
    assert logging.getLogger("wildflower").level == level
