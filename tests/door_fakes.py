"""A room's commands as the door sees them: typed functions that return values and print nothing."""

import logging
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from wildflower.ota.errors import RefusedError

log = logging.getLogger("wildflower.door_fakes")


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    running: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Everything:
    text: str
    at: datetime
    colour: Colour
    payload: bytes
    nothing: str | None
    share: float
    large: float
    missing: float | None
    good: bool
    where: Path
    counts: Mapping[str, int]
    rows: tuple[Row, ...]
    none: tuple[str, ...] = ()
    inner: Row = field(default=Row("inner", "-"))


@dataclass(frozen=True, slots=True)
class Verdict:
    number: int
    succeeded: bool = True


EVERYTHING = Everything(
    text="plain",
    at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    colour=Colour.RED,
    payload=b"\x00\xff",
    nothing=None,
    share=0.123456,
    large=123456.7,
    missing=float("nan"),
    good=True,
    where=Path("a/b"),
    counts={"one": 1},
    rows=(
        Row("[bold]kitchen[/]", "ab" * 32),
        Row("evil\x1b[2J\nname", f"{'cd' * 32}, {'ef' * 32}", 0.5),
    ),
)

app = typer.Typer(help="Commands of one room.")
more = typer.Typer(help="Commands of another room.")
below = typer.Typer(help="A group inside a group.")
app.add_typer(below, name="below")


@app.command(epilog="Example: wildflower fake everything")
def everything() -> Everything:
    """Return a value of every kind."""
    return EVERYTHING


@app.command(epilog="Example: wildflower fake several 3")
def several(
    count: Annotated[int, typer.Argument(help="How many.")],
    fail_at: Annotated[int, typer.Option(help="Which one fails.")] = 0,
) -> Iterator[Verdict]:
    """Return results one after the other."""
    for number in range(1, count + 1):
        yield Verdict(number, succeeded=number != fail_at)


@app.command(epilog="Example: wildflower fake fail refused")
def fail(how: str) -> None:
    """Fail in one of several ways."""
    match how:
        case "refused":
            raise RefusedError("wrong\nhash", hint="Try another source.")
        case "missing-file":
            Path("/nonexistent/file").read_bytes()
        case "bug":
            raise KeyError("oops")
        case "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        case "interrupted":
            raise KeyboardInterrupt
        case _:
            log.warning("odd\nline", extra={"how": f"{how} 12:00:00 INFO x: forged\n"})


@more.command(epilog="Example: wildflower fake other")
def other() -> Verdict:
    """Return a verdict from the other room."""
    return Verdict(1)


@below.command(epilog="Example: wildflower fake below leaf")
def leaf() -> Verdict:
    """Return a verdict from below."""
    return Verdict(2)


aborting = typer.Typer()
waiting = typer.Typer()


@aborting.command()
def abort() -> None:
    """Leave a prompt."""
    raise typer.Abort


@waiting.command()
def wait() -> None:
    """Wait for a signal."""
    print("ready", flush=True)  # noqa: T201  the test waits for it
    signal.pause()
