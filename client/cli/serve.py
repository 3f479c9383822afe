"""`wildflower agent serve`: the committed model for programs that are not in Python."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.config import load_config
from wildflower.client.serve_http import serving

app = typer.Typer(no_args_is_help=True, help="Run and inspect a device's agent.")

DEFAULT = Path("/var/lib/wildflower")


@app.command("serve", epilog="Example: wildflower agent serve --socket /run/wildflower/model.sock")
def serve(
    *,
    path: Annotated[Path, typer.Option("--socket", help="Where the Unix socket shall be.")] = Path(
        "/run/wildflower/model.sock"
    ),
    directory: Annotated[Path, typer.Option("--dir", help="The device's directory.")] = DEFAULT,
) -> None:
    """Answer with the committed model over HTTP, until it is told to end (SIGTERM, Ctrl-C).

    Works beside the agent and without it. Who may write to the socket may ask.
    """
    load_config(directory)  # says what to do where no device is
    with serving(directory, path) as server:

        def end(*_: object) -> None:
            threading.Thread(target=server.shutdown).start()  # waits for the loop below

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        server.serve_forever(poll_interval=0.2)
