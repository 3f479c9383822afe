"""What people and programs see of a result, and of an error."""

import contextlib
import io
import json
import os
import pty
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import click
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.door_fakes import EVERYTHING, Row, Verdict, everything, fail, several

from wildflower.console import (
    Format,
    complain,
    is_interactive,
    result_type,
    schema_of,
    show,
    to_json,
    wants_json,
)
from wildflower.ota.errors import RefusedError


def shown(result: object, capsys: pytest.CaptureFixture[str], style: Format = Format.TABLE) -> str:
    show(result, style)
    return capsys.readouterr().out


def on_a_terminal(result: object) -> str:
    """Return what is written when standard output is a terminal."""
    reader, writer = pty.openpty()
    before = sys.stdout
    try:
        with os.fdopen(writer, "w") as sys.stdout:
            show(result, Format.TABLE)
            sys.stdout.flush()
            return os.read(reader, 65536).decode()
    finally:
        sys.stdout = before
        os.close(reader)


def test_every_kind_of_value_has_a_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(EVERYTHING, capsys).splitlines() == [
        "text: plain",
        "at: 2026-01-02 03:04:05+00:00",
        "colour: red",
        "payload: 2 bytes",
        "share: 0.1235",
        "large: 123457",
        "missing: nan",
        "good: yes",
        "where: a/b",
        "counts: one=1",
        "name\trunning\tshare",
        "[bold]kitchen[/]\t" + "ab" * 32 + "\t-",
        "evil\\x1b[2J\\nname\t" + "cd" * 32 + ", " + "ef" * 32 + "\t0.5",
        "none: none",
        "inner:",
        "  name: inner",
        "  running: -",
    ]


def test_a_terminal_gets_a_table_with_short_digests_and_no_control_sequences() -> None:
    text = on_a_terminal(EVERYTHING)
    assert "━" in text
    assert "ab" * 6 in text
    assert "ab" * 7 not in text
    assert f"{'cd' * 6}, {'ef' * 6} " in text
    assert "[bold]kitchen[/]" in text, "a device's words are not markup"
    assert "\x1b[2J" not in text


def test_nothing_is_shown_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(None, capsys) == ""
    assert json.loads(shown(None, capsys, Format.JSON)) == {"success": True}


def test_json_holds_only_what_json_has(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(EVERYTHING, capsys, Format.JSON))
    assert found["success"] is True
    assert found["missing"] is None
    assert found["payload"] == "00ff"
    assert found["at"] == "2026-01-02T03:04:05Z"
    assert found["counts"] == {"one": 1}


def test_a_false_succeeded_is_told_in_json() -> None:
    assert to_json(Verdict(1, succeeded=False))["success"] is False


@pytest.mark.parametrize(
    ("function", "result"),
    [(everything, EVERYTHING), (several, Verdict(1)), (fail, None)],
)
def test_real_output_is_valid_against_the_schema(function: object, result: object) -> None:
    assert callable(function)
    schema = schema_of(function)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(to_json(result), schema)


def test_the_schema_refuses_what_is_no_output() -> None:
    with pytest.raises(jsonschema.ValidationError, match="'success' is a required property"):
        jsonschema.validate({"number": 1}, schema_of(several))
    with pytest.raises(jsonschema.ValidationError, match="not of type 'integer'"):
        jsonschema.validate({"success": True, "number": "one"}, schema_of(several))


@pytest.mark.parametrize(
    ("returned", "one"),
    [
        (Row, Row),
        (None, None),
        (Iterator[Row], Row),
        (Iterable[Row], Row),
        (Generator[Row, None, None], Row),
    ],
)
def test_one_result_of_a_stream_is_what_a_schema_describes(returned: object, one: object) -> None:
    def command() -> object:
        raise NotImplementedError

    command.__annotations__["return"] = returned
    assert result_type(command) is one


@given(st.text())
@settings(max_examples=100)
def test_no_text_of_a_device_adds_a_line(text: str) -> None:
    row = Row(text, "-")
    assert json.loads(json.dumps(to_json(row), allow_nan=False))["name"] == text
    with io.StringIO() as written, contextlib.redirect_stdout(written):
        show(row, Format.TABLE)
        lines = written.getvalue().split("\n")
    assert len(lines) == (3 if text else 2)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["fleet", "ls", "--format", "json"], True),
        (["fleet", "ls", "--format=json"], True),
        (["--format", "table"], False),
        (["json"], False),
        (["trace", "--", "--format", "json"], False),
        ([], False),
    ],
)
def test_json_is_wanted_only_by_its_option(arguments: list[str], answer: bool) -> None:
    assert wants_json(arguments) is answer


class NamelessError(RefusedError):
    """An error of ours without words."""


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint", "code"),
    [
        (RefusedError("no", hint="do this"), "RefusedError", "no", "do this", 1),
        (NamelessError(""), "NamelessError", "NamelessError", "", 1),
        (click.UsageError("bad"), "UsageError", "bad", "See: wildflower --help", 2),
        (click.ClickException("no"), "ClickException", "no", "", 1),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            "FileNotFoundError",
            "No such file or directory: x",
            "",
            1,
        ),
        (
            OSError(28, "No space left on device"),
            "OSError",
            "[Errno 28] No space left on device",
            "",
            1,
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch.nn"),
            "ModuleNotFoundError",
            "torch.nn is not installed.",
            "pip install 'wildflower[train]'",
            1,
        ),
        (KeyError("x"), "KeyError", "KeyError: 'x'", "", 1),
        (RuntimeError(), "RuntimeError", "RuntimeError", "", 1),
    ],
)
def test_an_error_is_told_to_programs_and_people(
    error: Exception,
    kind: str,
    message: str,
    hint: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert complain(error, as_json=True) == code
    assert json.loads(capsys.readouterr().out) == {
        "success": False,
        "error": {"type": kind, "message": message, "hint": hint},
    }
    assert complain(error, as_json=False) == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith(f"Error: {message}\n" + (f"{hint}\n" if hint else ""))


def test_only_an_error_that_nobody_raised_on_purpose_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    complain(RefusedError("no"), as_json=False)
    assert caplog.records == []
    complain(KeyError("x"), as_json=False)
    assert [record.getMessage() for record in caplog.records] == ["unexpected error"]


def test_no_line_of_an_error_message_looks_like_another_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complain(RefusedError("wrong\nError: forged\x1b[2J"), as_json=False)
    assert capsys.readouterr().err == "Error: wrong\n    Error: forged\\x1b[2J\n"


def test_nobody_watches_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_interactive()


def test_a_path_is_not_taken_for_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Row(str(Path("x")), ""), capsys) == "name: x\n"
