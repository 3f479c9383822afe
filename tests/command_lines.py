"""The commands behind the door, found by their words, and command lines parsed but not run."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import click
import pytest
from typer.main import get_command

from wildflower.cli import app, main


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """Type a command; return its JSON, whether it succeeded or not."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--format", "json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["success"] is (end.value.code == 0)
    return found


def top() -> click.Group:
    group = get_command(app)
    assert isinstance(group, click.Group)
    return group


def leaves(entry: str) -> Iterator[tuple[str, Any]]:
    """Yield an entry's commands, each with its words, such as "server up"."""
    command = top().get_command(click.Context(top()), entry)
    assert command is not None
    yield from _below(entry, command)


def _below(words: str, command: click.Command) -> Iterator[tuple[str, Any]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name, child in command.commands.items():
        yield from _below(f"{words} {name}", child)


def find(words: Sequence[str]) -> tuple[click.Command | None, list[str]]:
    """Return the command that the words begin with, and the words that follow it."""
    command: click.Command | None = top()
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        command = command.get_command(click.Context(command), rest.pop(0))
    return command, rest


def check(line: str) -> None:
    """Parse `wildflower ...` as far as names go; values need not exist.

    Raises:
        click.UsageError: There is no such command or option.
    """
    words = shlex.split(line, comments=True)[1:]
    command, rest = find(words)
    if command is None or isinstance(command, click.Group):
        raise click.UsageError(f"no such command: {line}")
    command.make_parser(click.Context(command)).parse_args(rest)
