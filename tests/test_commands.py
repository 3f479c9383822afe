"""Every command of every room: its help, its example, its schema, and what it needs to be named."""

import json
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import click
import jsonschema
import pytest
from tests.command_lines import check, leaves

from wildflower.cli import ENTRIES, main
from wildflower.console import result_type, schema_of

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
BEYOND_BASE = (
    "alembic", "fastapi", "flwr", "matplotlib", "onnx", "opacus", "pandas", "ray", "safetensors",
    "scipy", "sklearn", "sqlalchemy", "sqlmodel", "starlette", "torch", "uvicorn",
)  # fmt: skip
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BEYOND_BASE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from wildflower.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_command_has_help_an_example_and_output_options(entry: str) -> None:
    for words, command in leaves(entry):
        assert command.help, words
        example = (command.epilog or "").partition("Example: ")[2]
        assert example.startswith(f"wildflower {words}"), f"{words}: {command.epilog!r}"
        check(example)
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--format", "--schema"} <= options, words
        for parameter in command.params:
            assert getattr(parameter, "help", ""), f"{words}: {parameter.name} has no help"


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_command_returns_a_value_that_the_door_can_show(entry: str) -> None:
    for words, command in leaves(entry):
        returned = result_type(presented(command))
        kinds = get_args(returned) if isinstance(returned, UnionType) else (returned,)
        assert all(kind is None or is_dataclass(kind) for kind in kinds), f"{words}: {returned}"


def presented(command: click.Command) -> Any:
    """Return the room's own function behind a command."""
    callback: Any = command.callback
    return callback.__presented__


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_committed_schemas_are_those_of_the_commands(entry: str, update_goldens: bool) -> None:
    made = {
        f"{words.replace(' ', '-')}.json": schema_of(presented(command))
        for words, command in leaves(entry)
    }
    if update_goldens:
        for name, schema in made.items():
            text = json.dumps(schema, indent=2, sort_keys=True)
            (SCHEMAS / name).write_text(f"{text}\n")
    for name, schema in made.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert (SCHEMAS / name).is_file(), f"`make goldens` writes {name}"
        assert json.loads((SCHEMAS / name).read_text()) == schema


def test_no_schema_is_left_of_a_command_that_is_gone() -> None:
    names = {words.replace(" ", "-") for entry in ENTRIES for words, _ in leaves(entry)}
    assert {path.stem for path in SCHEMAS.glob("*.json")} == names


@pytest.mark.parametrize("words", ["doctor", "version"])
def test_real_output_is_valid_against_the_committed_schema(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words.split(), "--format", "json"])
    output = json.loads(capsys.readouterr().out)
    jsonschema.validate(output, json.loads((SCHEMAS / f"{words}.json").read_text()))


@pytest.mark.parametrize("entry", [name for name, entry in ENTRIES.items() if not entry.needs])
def test_a_base_install_can_name_the_command(entry: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, entry, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout.startswith(f"Usage: wildflower {entry}")
