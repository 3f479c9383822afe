"""The door: what it imports, how it answers a wrong call, and with which exit code it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonschema
import pytest
from typer.main import get_command

from wildflower import __version__
from wildflower.cli import ENTRIES, Entry, app, main

FAKE = Entry(
    "Commands of two rooms.", ("tests.door_fakes:app", "tests.door_fakes:more"), needs="click"
)
MISSING = Entry(
    "Never there.", ("nowhere.at.all:app",), needs="package_that_is_nowhere", extra="server"
)
HEAVY = ("torch", "flwr", "onnx", "onnxruntime", "numpy", "sqlmodel", "fastapi", "matplotlib")


@pytest.fixture(autouse=True)
def entries() -> Iterator[None]:
    """Mount the fakes beside the real commands."""
    ENTRIES.update(fake=FAKE, missing=MISSING)
    yield
    del ENTRIES["fake"], ENTRIES["missing"]


def call(*arguments: str) -> int:
    """Return the exit code of `wildflower ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | environment,
    )


def test_the_door_imports_no_room_and_nothing_heavy() -> None:
    found = python("import sys, wildflower.cli; print(*sys.modules)").stdout.split()
    rooms = ("server", "client", "strategies", "ota", "simulation")
    assert "wildflower.cli" in found
    assert not [m for m in found if m.split(".")[0] in (*HEAVY, "rich", "pydantic")]
    assert not [m for m in found if m.split(".")[:2] in [["wildflower", room] for room in rooms]]


def test_help_imports_no_room_and_is_there_at_once() -> None:
    started = time.process_time()
    asked = "import sys; from wildflower.cli import main\ntry: main(['--help'])\n"
    found = python(asked + "except SystemExit: print(*sys.modules)").stdout
    assert time.process_time() - started < 5
    assert "Example: wildflower demo" in found
    assert "wildflower.server" not in found.split()


@pytest.mark.parametrize(
    ("incomplete", "expected"), [("ro", ["round", "rollout"]), ("--verb", ["--verbose"])]
)
def test_completion_knows_names_and_options(incomplete: str, expected: list[str]) -> None:
    group = get_command(app)
    context = group.make_context("wildflower", [], resilient_parsing=True)
    assert [item.value for item in group.shell_complete(context, incomplete)] == expected


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_name_as_plain_text(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(option) == 0
    text = capsys.readouterr().out
    assert "[default: text]" in text.replace("\n" + " " * 28, " ")
    assert "\\[" not in text
    assert all(f"  {name} " in text for name in ENTRIES)


@pytest.mark.parametrize(
    "arguments",
    [
        ("fake", "several", "-h"),
        ("fake", "below", "leaf", "--help"),
        ("fake", "--help"),
        ("version", "-h"),
    ],
)
def test_help_below_is_the_same_plain_text(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: wildflower {arguments[0]}")
    assert text.isascii(), "no boxes"
    assert "completion" not in text
    assert "\\[" not in text


def test_an_option_s_default_is_shown_without_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    call("fake", "several", "--help")
    text = capsys.readouterr().out
    assert "[default: 0]" in text
    assert "[default: table]" in text
    assert text.count("COUNT  How many.  [required]") == 1
    assert "Example: wildflower fake several 3" in text


def test_no_arguments_is_help_and_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("Usage: wildflower")


def test_two_rooms_feed_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fake", "other") == 0
    assert call("fake", "several", "2") == 0
    assert call("fake", "below", "leaf") == 0
    assert capsys.readouterr().out == (
        "number: 1\nsucceeded: yes\n"  # one result
        "1\tyes\n2\tyes\n"  # a stream
        "number: 2\nsucceeded: yes\n"
    )


def test_a_missing_extra_is_one_line_that_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("missing", "up", "--dir", "x") == 1
    assert capsys.readouterr().err == (
        "Error: `wildflower missing` needs package_that_is_nowhere: "
        "pip install 'wildflower[server]'\n"
    )
    call("--help")
    assert re.search(r"missing +needs package_that_is_nowhere", capsys.readouterr().out)
    assert call("missing", "--help") == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rond"], "No such command 'rond'. Did you mean 'round'?"),
        (["qqqq"], "No such command 'qqqq'."),
        (["fake", "sevral"], "No such command 'sevral'. Did you mean 'several'?"),
        (["--log-fmt"], "No such option '--log-fmt'. Did you mean '--log-format'?"),
        (["fake", "several", "1", "--fail"], "No such option '--fail'. Did you mean '--fail-at'?"),
        (["fake", "several"], "Missing argument 'COUNT'."),
        (["fake", "several", "x"], "'x' is not a valid int"),
        (["fake", "several", "1", "--format", "xml"], "'xml' is not one of 'table', 'json'."),
    ],
)
def test_a_wrong_call_is_told_in_a_sentence_and_exits_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert sentence in written.err
    assert "\nSee: wildflower" in written.err


@pytest.mark.parametrize("option", ["--log-format", "--verbose", "-v"])
def test_an_option_of_all_commands_in_the_wrong_place_is_told_its_place(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("fake", "everything", option) == 2
    assert f"\n{option} comes before the command" in capsys.readouterr().err


def test_a_wrong_call_is_json_where_json_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("fake", "several", "x", "--format", "json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "BadParameter"
    assert error["hint"] == "See: wildflower fake several --help"


def test_every_result_of_a_stream_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fake", "several", "2", "--format", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"success": True, "number": n, "succeeded": True} for n in (1, 2)]


def test_one_failed_result_shows_all_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fake", "several", "3", "--fail-at", "2", "--format", "json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["success"] for line in lines] == [True, False, True]


def test_real_output_is_valid_against_the_printed_schema(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("fake", "several", "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    call("fake", "several", "1", "--format", "json")
    jsonschema.validate(json.loads(capsys.readouterr().out), schema)


@pytest.mark.parametrize(
    ("how", "code", "sentence"),
    [
        ("refused", 1, "Error: wrong\n    hash\nTry another source.\n"),
        ("missing-file", 1, "Error: No such file or directory: /nonexistent/file\n"),
        ("bug", 1, "Error: KeyError: 'oops'\n"),
        ("torch", 1, "Error: torch is not installed.\npip install 'wildflower[train]'\n"),
        ("interrupted", 130, ""),
    ],
)
def test_the_exit_code_tells_the_truth(
    how: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("fake", "fail", how) == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith(sentence)


def test_an_error_of_a_room_is_json_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fake", "fail", "refused", "--format=json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "success": False,
        "error": {"type": "RefusedError", "message": "wrong\nhash", "hint": "Try another source."},
    }


def test_an_aborted_prompt_exits_130() -> None:
    ENTRIES["fake"] = Entry("Abort.", ("tests.door_fakes:aborting",))
    assert call("fake") == 130


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_log_line_cannot_be_forged_by_a_field(style: str) -> None:
    asked = (
        "from tests.door_fakes import *; from wildflower.cli import ENTRIES, Entry, app, main\n"
        "ENTRIES['fake'] = Entry('', ('tests.door_fakes:app',))\n"
        f"main(['--log-format', '{style}', 'fake', 'fail', 'odd'])"
    )
    (line,) = python(asked).stderr.splitlines()
    if style == "json":
        assert json.loads(line)["how"] == "odd 12:00:00 INFO x: forged\n"
    else:
        assert line.endswith('odd\\nline  how="odd 12:00:00 INFO x: forged\\n"')


def test_ctrl_c_exits_130_without_a_traceback() -> None:
    code = (
        "from wildflower.cli import ENTRIES, Entry, app, main\n"
        "ENTRIES['fake'] = Entry('', ('tests.door_fakes:waiting',))\n"
        "main(['fake'])"
    )
    root = Path(__file__).parents[1]
    heeding = ["env", "--default-signal=INT"]  # a shell's background jobs begin without Ctrl-C
    with subprocess.Popen(
        [*heeding, sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert told == ""


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"wildflower {__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("wildflower r", ["round", "rollout"]), ("wildflower --log", ["--log-format"])],
)
def test_bash_completes_names_without_importing_rooms(words: str, expected: list[str]) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from wildflower.cli import main; main([])"
    )
    done = python(code, _WILDFLOWER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="1")
    assert done.stdout.split() == expected
    assert "wildflower.server" not in done.stderr.split()


def test_bash_gets_a_completion_script() -> None:
    done = python(
        "from wildflower.cli import main; main(['--show-completion', 'bash'])",
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert "_WILDFLOWER_COMPLETE=complete_bash" in done.stdout
    assert done.returncode == 0
