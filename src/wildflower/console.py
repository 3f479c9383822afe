"""How a command's result reaches people and programs.

A room's command is a typed function that returns a frozen dataclass (or an iterator of them) and
prints nothing. Here it gains `--format` and `--schema`, its result is shown as a table on a
terminal, as plain lines in a pipe, or as one JSON object, and its errors become sentences:

    {"success": true, ...the result's fields}
    {"success": false, "error": {"type": ..., "message": ..., "hint": ...}}

A result with a false `succeeded` is shown in full and exits with 1. An error may carry `hint`,
the sentence that says what to do now.
"""

import functools
import inspect
import itertools
import json
import logging
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Any

import click
import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

log = logging.getLogger(__name__)


class Format(StrEnum):
    """What a command writes to standard output."""

    TABLE = "table"
    JSON = "json"


def present_all(application: typer.Typer) -> None:
    """Give every command of a typer application, and of its groups, its output options."""
    for command in application.registered_commands:
        if command.callback is not None and not hasattr(command.callback, "__presented__"):
            command.callback = present(command.callback)
            command.rich_help_panel = None
    for group in application.registered_groups:
        if group.typer_instance is not None:
            present_all(group.typer_instance)


def present(function: Callable[..., object]) -> Callable[..., None]:
    """Wrap a command so that what it returns is shown in the format asked for."""
    signature = inspect.signature(function, eval_str=True)

    def show_schema(asked: bool) -> None:
        if asked:
            click.echo(json.dumps(schema_of(function), indent=2, sort_keys=True))
            raise typer.Exit

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        style = arguments.pop("output_format")
        arguments.pop("schema")
        result = function(**arguments)
        for part in result if isinstance(result, Iterator) else [result]:
            show(part, style)
            if not getattr(part, "succeeded", True):
                raise typer.Exit(1)

    options = [
        inspect.Parameter(
            "output_format",
            inspect.Parameter.KEYWORD_ONLY,
            default=Format.TABLE,
            annotation=Annotated[Format, typer.Option("--format", help="How to show the result.")],
        ),
        inspect.Parameter(
            "schema",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[
                bool,
                typer.Option(
                    "--schema",
                    help="Show the JSON Schema of the output and exit.",
                    callback=show_schema,
                    is_eager=True,
                ),
            ],
        ),
    ]
    parameters = [*signature.parameters.values(), *options]
    wrapped: Any = command
    wrapped.__signature__ = signature.replace(parameters=parameters, return_annotation=None)
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    wrapped.__presented__ = function
    del wrapped.__wrapped__  # typer would look through to the function's own parameters
    return command


def result_type(function: Callable[..., object]) -> Any:
    """Return the type of one result: `T` for a function annotated `-> T` or `-> Iterator[T]`."""
    returned = inspect.signature(function, eval_str=True).return_annotation
    if typing.get_origin(returned) is Iterator:
        return typing.get_args(returned)[0]
    return returned


def schema_of(function: Callable[..., object]) -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of a command's successful output."""
    kind = result_type(function)
    schema: dict[str, Any] = {"type": "object"}
    if kind is not None:
        schema = TypeAdapter(kind).json_schema()
    schema["properties"] = {"success": {"type": "boolean"}} | schema.get("properties", {})
    schema["required"] = ["success", *schema.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def to_json(result: object) -> dict[str, object]:
    """Return a result as the object that `--format json` prints."""
    body: dict[str, object] = {}
    if result is not None:
        body = TypeAdapter(type(result)).dump_python(result, mode="json")
    return {"success": getattr(result, "succeeded", True)} | body


def show(result: object, style: Format) -> None:
    """Write one result to standard output."""
    if style is Format.JSON:
        click.echo(json.dumps(to_json(result)))
    elif result is not None:
        console = Console(soft_wrap=True)
        _show_fields(result, console)


def _show_fields(result: object, console: Console) -> None:
    if not is_dataclass(result):
        console.print(result, markup=False, highlight=False)
        return
    for field in fields(result):
        value = getattr(result, field.name)
        name = field.name.replace("_", " ")
        if isinstance(value, Sequence) and value and is_dataclass(value[0]):
            _show_rows(name, value, console)
        elif is_dataclass(value):
            _show_fields(value, console)
        elif value not in (None, "", [], (), {}):
            console.print(f"{name}: {_cell(value)}", markup=False, highlight=False)


def _show_rows(name: str, rows: Sequence[Any], console: Console) -> None:
    columns = [field.name for field in fields(rows[0])]
    cells = [[_cell(getattr(row, column)) for column in columns] for row in rows]
    if not console.is_terminal:
        for row in [columns, *cells]:
            console.print("\t".join(row), markup=False, highlight=False)
        return
    table = Table(*(column.replace("_", " ") for column in columns), title=name)
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case str() if len(value) == 64 and all(c in "0123456789abcdef" for c in value):
            return value[:12]  # a digest: enough to recognise, as git does
        case list() | tuple():
            return ", ".join(_cell(item) for item in value)
        case dict():
            return ", ".join(f"{key}={_cell(item)}" for key, item in value.items())
        case _:
            return str(value)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, for errors that come before it is parsed."""
    joined = [*arguments, ""]
    pairs = itertools.pairwise(joined)
    return "--format=json" in joined or ("--format", "json") in pairs


def complain(error: Exception, *, as_json: bool) -> int:
    """Tell what went wrong and what to do now; return the exit code."""
    usage = isinstance(error, click.UsageError)
    known = usage or isinstance(error, click.ClickException) or _is_ours(error)
    if not known:
        log.error("unexpected error", exc_info=error)
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    message = message or type(error).__name__
    hint = getattr(error, "hint", "")
    if usage and not hint:
        hint = f"See: {_command_path(error)} --help"
    if as_json:
        body = {"type": type(error).__name__, "message": message, "hint": hint}
        click.echo(json.dumps({"success": False, "error": body}))
    else:
        click.echo(f"Error: {message}" + (f"\n{hint}" if hint else ""), err=True)
    return 2 if usage else 1


def _is_ours(error: Exception) -> bool:
    return any(kind.__module__.split(".")[0] == "wildflower" for kind in type(error).__mro__)


def _command_path(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "wildflower"


def is_interactive() -> bool:
    """Whether a person watches standard error, so that progress may be drawn."""
    return sys.stderr.isatty()
