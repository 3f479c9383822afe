"""`wildflower server`: set up, run and inspect the server."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from wildflower.server.api.views import StatusView
from wildflower.server.cli.remote import (
    DIRECTORY_VARIABLE,
    ServerDirectory,
    ServerUrl,
    Token,
    find_remote,
)
from wildflower.server.cli.service import ServiceRun, run_service

app = typer.Typer(no_args_is_help=True, help="Set up, run and inspect the server.")

Directory = Annotated[
    Path, typer.Option("--dir", envvar=DIRECTORY_VARIABLE, help="The server's directory.")
]


@dataclass(frozen=True, slots=True)
class InitResult:
    """A new server."""

    directory: str
    profile: str
    enrol_url: str
    operator_url: str
    ca: str
    root: str
    notes: list[str]


@app.command("init", epilog="Example: wildflower server init --dir server --app my_task.py")
def init(
    *,
    directory: Directory = Path("wildflower-server"),
    profile: Annotated[
        str, typer.Option(help="Who holds which keys: single, or demo for throw-away servers.")
    ] = "single",
    host: Annotated[str, typer.Option(help="Address that devices' listeners bind.")] = "127.0.0.1",
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Host name or address that devices use; may be repeated."),
    ] = None,
    learns: Annotated[
        str, typer.Option("--app", help="What is learned: module:object, a .py file, a Flower app.")
    ] = "",
    proxy_data: Annotated[
        Path | None,
        typer.Option(help="Your own examples (.npz) for calibration and gates."),
    ] = None,
    model_name: Annotated[
        str, typer.Option(help="Name of the model's line; the task's own name if empty.")
    ] = "",
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Choose ports that are free, not the usual ones.")
    ] = False,
) -> InitResult:
    """Make a directory a server: enrolment CA, signing keys by role, database, operator token."""
    from wildflower.server.initialise import Options, initialise

    options = Options(
        profile=profile,
        host=host,
        names=tuple(names or ()),
        free_ports=free_ports,
        settings=_learning(learns, proxy_data, model_name),
    )
    made = initialise(directory.absolute(), options, now=datetime.now(UTC))
    return InitResult(
        directory=str(made.directory),
        profile=made.profile,
        enrol_url=made.enrol_url,
        operator_url=made.operator_url,
        ca=made.ca,
        root=made.root,
        notes=list(made.notes),
    )


@app.command("up", epilog="Example: wildflower server up --dir server")
def up(*, directory: Directory = Path("wildflower-server")) -> ServiceRun:
    """Run the server until Ctrl-C or SIGTERM: all listeners, Flower, the release signer."""
    from wildflower.server.daemon import run_server
    from wildflower.server.flower_link import superlink_environment

    os.environ.update(superlink_environment(directory.absolute()))
    return run_service(directory, lambda stopping: run_server(directory, stopping))


@app.command("status", epilog="Example: wildflower server status --dir server")
def status(
    *, server: ServerUrl = "", token: Token = "", directory: ServerDirectory = None
) -> StatusView:
    """Show whether the server is up, where it listens, and what it does."""
    return find_remote(server, token, directory).status()


def _learning(learns: str, proxy_data: Path | None, model_name: str) -> dict[str, Any]:
    """Return the settings of what is learned; files are named by their absolute paths."""
    if not learns:
        return {"model_name": model_name} if model_name else {}
    is_path = learns.endswith(".py") or Path(learns).is_dir()
    reference = str(Path(learns).absolute()) if is_path else learns
    settings: dict[str, Any] = {"app": reference, "model_name": model_name or _name_of(reference)}
    if proxy_data is not None:
        settings["proxy_data"] = str(proxy_data.absolute())
    return settings


def _name_of(reference: str) -> str:
    from wildflower.strategies.task import find_task

    if Path(reference).is_dir():
        return Path(reference).name
    return find_task(reference).name
