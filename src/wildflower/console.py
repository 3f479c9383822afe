"""How a command's result reaches people and programs.

A room's command is a typed function that returns a frozen dataclass (or an iterator of them) and
prints nothing. Here it gains `--format` and `--schema`, its result is shown as a table on a
terminal, as plain lines in a pipe, or as one JSON object, and its errors become sentences:

    {"success": true, ...the result's fields}
    {"success": false, "error": {"type": ..., "message": ..., "hint": ...}}

A result with a false `succeeded` is shown in full and exits with 1. An error may carry `hint`,
the sentence that says what to do now. Results hold text that devices chose; nothing in it reaches
a terminal as a control sequence or begins a line of its own.
"""

import functools
import inspect
import itertools
import json
import logging
import math
import re
import sys
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Annotated, Any, Final

import click
import typer

from wildflower.extras import extra_of
from wildflower.logs import one_line

log = logging.getLogger(__name__)

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
DIGEST: Final = re.compile(r"\b[0-9a-f]{64}\b")
OF_ALL: Final = ("--log-format", "--verbose", "-v")
"""Options that belong to `wildflower` itself."""

STREAMS: Final = (Iterator, Generator, Iterable)


class Format(StrEnum):
    """What a command writes to standard output."""

    TABLE = "table"
    JSON = "json"


def present_all(application: typer.Typer) -> None:
    """Give every command of a typer application, and of its groups, its output options."""
    for command in application.registered_commands:
        if command.callback is not None and not hasattr(command.callback, "__presented__"):
            command.callback = present(command.callback)
    for group in application.registered_groups:
        if group.typer_instance is not None:
            present_all(group.typer_instance)


def present(function: Callable[..., object]) -> Callable[..., None]:
    """Wrap a command so that what it returns is shown in the format asked for.

    An iterator's results are shown as they come; the exit code is 1 if any of them failed.
    """

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        style = arguments.pop("output_format")
        arguments.pop("schema")
        result = function(**arguments)
        parts = result if isinstance(result, Iterator) else [result]
        succeeded = True
        for part in parts:
            show(part, style, as_line=parts is result)
            succeeded = succeeded and getattr(part, "succeeded", True)
        if not succeeded:
            raise typer.Exit(1)

    signature = inspect.signature(function, eval_str=True)
    parameters = [*signature.parameters.values(), *_output_options(function)]
    wrapped: Any = command
    wrapped.__signature__ = signature.replace(parameters=parameters, return_annotation=None)
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    wrapped.__presented__ = function
    del wrapped.__wrapped__  # typer would look through to the function's own parameters
    return command


def _output_options(function: Callable[..., object]) -> list[inspect.Parameter]:
    def show_schema(asked: bool) -> None:
        if asked:
            click.echo(json.dumps(schema_of(function), indent=2, sort_keys=True))
            raise typer.Exit

    style = typer.Option("--format", help="How to show the result.")
    schema = typer.Option(
        "--schema",
        help="Show the JSON Schema of the output and exit.",
        callback=show_schema,
        is_eager=True,
    )
    only = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            "output_format", only, default=Format.TABLE, annotation=Annotated[Format, style]
        ),
        inspect.Parameter("schema", only, default=False, annotation=Annotated[bool, schema]),
    ]


def result_type(function: Callable[..., object]) -> Any:
    """Return the type of one result: `T` for a function annotated `-> T` or `-> Iterator[T]`."""
    returned = inspect.signature(function, eval_str=True).return_annotation
    if typing.get_origin(returned) in STREAMS:
        return typing.get_args(returned)[0]
    return returned


def schema_of(function: Callable[..., object]) -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of a command's successful output."""
    from pydantic import TypeAdapter  # 40 ms that only --schema has to spend

    kind = result_type(function)
    schema: dict[str, Any] = {"type": "object"}
    if kind is not None:
        schema = TypeAdapter(kind).json_schema(mode="serialization")
    schema["properties"] = {"success": {"type": "boolean"}} | schema.get("properties", {})
    schema["required"] = ["success", *schema.get("required", [])]
    return {"$schema": DIALECT} | schema


def to_json(result: object) -> dict[str, object]:
    """Return a result as the object that `--format json` prints.

    Bytes are hex. A number that JSON cannot hold (NaN, infinite) is null; a field that may be one
    says so with the type `float | None`.
    """
    from pydantic_core import to_jsonable_python

    body: dict[str, object] = {}
    if result is not None:
        body = to_jsonable_python(result, bytes_mode="hex", inf_nan_mode="null", fallback=dict)
    return {"success": getattr(result, "succeeded", True)} | body


def show(result: object, style: Format, *, as_line: bool = False) -> None:
    """Write one result to standard output, at once: whoever reads a pipe waits for it.

    Args:
        result: What a command returned, or one of several.
        style: The form asked for.
        as_line: Whether to write its values in one line if they fit there; for streams.
    """
    if style is Format.JSON:
        click.echo(json.dumps(to_json(result), allow_nan=False))
    elif as_line and _is_flat(result):
        click.echo("\t".join(_cell(value) for value in _values(result)))
    elif result is not None:
        _show_fields(result, indent="")
    sys.stdout.flush()


def _names(result: object) -> list[str]:
    return [field.name for field in fields(result)] if is_dataclass(result) else []


def _values(result: object) -> list[object]:
    return [getattr(result, name) for name in _names(result)]


def _is_flat(result: object) -> bool:
    values = _values(result)
    return bool(values) and not any(is_dataclass(value) or _is_rows(value) for value in values)


def _show_fields(result: object, indent: str) -> None:
    for name, value in zip(_names(result), _values(result), strict=True):
        _show_field(name.replace("_", " "), value, indent)


def _show_field(name: str, value: object, indent: str) -> None:
    if value is None or value == "":
        return
    if isinstance(value, list | tuple) and _is_rows(value):
        _show_rows(name, value)
    elif is_dataclass(value):
        click.echo(f"{indent}{name}:")
        _show_fields(value, indent + "  ")
    else:
        click.echo(f"{indent}{name}: {_cell(value)}")


def _is_rows(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and is_dataclass(value[0])


def _show_rows(name: str, rows: Sequence[Any]) -> None:
    columns = _names(rows[0])
    cells = [[_cell(value) for value in _values(row)] for row in rows]
    if not sys.stdout.isatty():  # for `cut` and `awk`: a header, then one line a row
        for row in [columns, *cells]:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*(column.replace("_", " ") for column in columns), title=name)
    for row in cells:
        table.add_row(
            *(Text(_shortened(cell)) for cell in row)
        )  # Text: no markup in a device's words
    Console().print(table)


def _shortened(cell: str) -> str:
    """Return a cell with the first twelve characters of each digest, which will do, as in git."""
    return DIGEST.sub(lambda found: found[0][:12], cell)


def _cell(value: object) -> str:  # noqa: PLR0911  one return per kind of value
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return (
                f"{value:.4g}"
                if abs(value) < 10_000 or not math.isfinite(value)
                else f"{value:.0f}"
            )
        case bytes():
            return f"{len(value)} bytes"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case Enum():
            return _cell(value.value)
        case Mapping():
            return ", ".join(f"{key}={_cell(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(_cell(item) for item in value) or "none"
        case _:
            return one_line(str(value))


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, for errors that come before it is parsed."""
    options = list(itertools.takewhile(lambda argument: argument != "--", arguments))
    return "--format=json" in options or ("--format", "json") in itertools.pairwise(options)


def complain(error: Exception, *, as_json: bool) -> int:
    """Tell what went wrong and what to do now; return the exit code."""
    kind, message, hint = _told(error)
    if as_json:
        body = {"type": kind, "message": message, "hint": hint}
        click.echo(json.dumps({"success": False, "error": body}))
    else:
        first, *more = message.splitlines() or [
            kind
        ]  # more: the end of a log; indented, it forges nothing
        lines = [f"Error: {one_line(first)}", *(f"    {one_line(line)}" for line in more), hint]
        click.echo("\n".join(filter(None, lines)), err=True)
    return 2 if isinstance(error, click.UsageError) else 1


def _told(error: Exception) -> tuple[str, str, str]:
    """Return an error's type, message and hint; log those that nobody raised on purpose."""
    kind, message, hint = type(error).__name__, str(error), str(getattr(error, "hint", ""))
    if isinstance(error, click.UsageError):
        return kind, error.format_message(), hint or _usage_hint(error)
    if isinstance(error, click.ClickException):
        return kind, error.format_message(), hint
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return kind, f"{error.name} is not installed.", f"pip install 'wildflower[{extra}]'"
    if _is_ours(error):
        return kind, message or kind, hint
    if isinstance(error, OSError) and error.strerror:  # says what and where by itself
        log.debug("refused by the system", exc_info=error)
        return kind, f"{error.strerror}: {error.filename}" if error.filename else message, hint
    log.error("unexpected error", exc_info=error)
    return kind, f"{kind}: {message}" if message else kind, hint


def _usage_hint(error: click.UsageError) -> str:
    option = getattr(error, "option_name", "")
    if isinstance(error, click.NoSuchOption) and option in OF_ALL:
        return f"{option} comes before the command: wildflower {option} ... COMMAND"
    return f"See: {error.ctx.command_path if error.ctx else 'wildflower'} --help"


def _is_ours(error: Exception) -> bool:
    return any(kind.__module__.split(".")[0] == "wildflower" for kind in type(error).__mro__)


def is_interactive() -> bool:
    """Whether a person watches standard error, so that progress may be drawn."""
    return sys.stderr.isatty()
