"""`wildflower local`: a real server and agents as processes of this machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wildflower.simulation.errors import SimulationError
from wildflower.simulation.local import directory as places
from wildflower.simulation.local import processes
from wildflower.simulation.local.fleet import Fleet
from wildflower.simulation.local.launch import Launch, launch

app = typer.Typer(
    no_args_is_help=True, help="A real server and agents as processes of this machine."
)

Directory = Annotated[Path, typer.Option("--dir", help="The fleet's directory.")]
DEFAULT = Path(".wildflower-local")


@dataclass(frozen=True, slots=True)
class ProcessLine:
    """One process of the fleet."""

    name: str
    pid: int
    alive: bool
    log: str


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """A local fleet and its processes."""

    directory: str
    operator_url: str
    processes: list[ProcessLine]


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a process's log."""

    process: str
    line: str


@dataclass(frozen=True, slots=True)
class Ended:
    """What was ended, and what would not end."""

    ended: list[str]
    left: list[int]

    @property
    def succeeded(self) -> bool:
        """Whether nothing is left."""
        return not self.left


def status_of(fleet: Fleet) -> LocalStatus:
    """Return what runs."""
    rows = [
        ProcessLine(process.name, process.pid, processes.is_alive(process), process.log)
        for process in fleet.processes()
    ]
    return LocalStatus(str(fleet.directory), fleet.remote().url, rows)


@app.command(
    "up", epilog="Example: wildflower local up --devices 8 --model my_task.py --data my.npz"
)
def up(
    *,
    directory: Directory = DEFAULT,
    devices: Annotated[int, typer.Option(min=1, max=64, help="Agents to start.")] = 8,
    model: Annotated[
        Path | None,
        typer.Option(help="A .py file that defines `task`; without it, the demo's digits."),
    ] = None,
    flower_app: Annotated[
        Path | None, typer.Option("--app", help="A directory with a Message-API Flower app.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Examples (.npz with inputs, targets) to deal out to devices."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split over the devices.")] = 0,
) -> LocalStatus:
    """Start a server and agents, enrolled and idle, and return.

    They go on until `wildflower local down`. Every operator command works on the server:
    add `--dir DIR/server` to it.
    """
    with places.claimed(directory):
        fleet = launch(
            Launch(
                directory=directory,
                devices=devices,
                model=model,
                flower_app=flower_app,
                data=data,
                seed=seed,
            )
        )
    return status_of(fleet)


@app.command("status", epilog="Example: wildflower local status")
def status(*, directory: Directory = DEFAULT) -> LocalStatus:
    """Show the processes of the fleet."""
    places.require(directory)
    return status_of(Fleet(directory))


@app.command("logs", epilog="Example: wildflower local logs device-01 --lines 50")
def logs(
    name: Annotated[str, typer.Argument(help='"server" or a device; empty for all.')] = "",
    *,
    directory: Directory = DEFAULT,
    lines: Annotated[int, typer.Option(min=1, help="Lines of each log.")] = 20,
) -> Iterator[LogLine]:
    """Show the end of the processes' logs."""
    places.require(directory)
    fleet = Fleet(directory)
    wanted = [fleet.process(name)] if name else fleet.processes()
    for process in wanted:
        for line in processes.last_lines(process, lines).splitlines():
            yield LogLine(process.name, line)


@app.command("kill", epilog="Example: wildflower local kill device-03 --restart")
def kill(
    name: Annotated[str, typer.Argument(help='"server" or a device.')],
    *,
    directory: Directory = DEFAULT,
    restart: Annotated[bool, typer.Option("--restart", help="Start it again.")] = False,
) -> LocalStatus:
    """End one process as a power cut would (SIGKILL), and start it again if asked."""
    places.require(directory)
    fleet = Fleet(directory)
    fleet.kill(name)
    if restart:
        fleet.restart(name)
    return status_of(fleet)


@app.command("down", epilog="Example: wildflower local down --remove")
def down(
    *,
    directory: Directory = DEFAULT,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the directory as well.")] = False,
) -> Ended:
    """End every process of the fleet."""
    places.require(directory)
    with places.claimed(directory):
        fleet = Fleet(directory)
        names = [process.name for process in fleet.processes() if processes.is_alive(process)]
        left = fleet.down()
        if remove and not left:
            places.remove(directory)
        elif left:
            raise SimulationError(f"processes that would not end: {left}")
    return Ended(names, left)
