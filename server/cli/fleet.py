"""`wildflower fleet`: the devices, what they run, and how it does."""

from dataclasses import dataclass

import typer

from wildflower.server.api.views import DeviceView, SummaryView
from wildflower.server.cli.remote import ServerDirectory, ServerUrl, Token, find_remote

app = typer.Typer(no_args_is_help=True, help="Show the devices and what they run.")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices, and how each artifact does on them."""

    devices: list[DeviceView]
    artifacts: list[SummaryView]


@app.callback()
def group() -> None:
    """Show the devices and what they run."""


@app.command("ls", epilog="Example: wildflower fleet ls")
def ls(*, server: ServerUrl = "", token: Token = "", directory: ServerDirectory = None) -> Fleet:
    """List the devices with what each signed to run, and how each artifact does."""
    remote = find_remote(server, token, directory)
    return Fleet(remote.devices(), remote.summaries())
