"""`wildflower trace`: follow anything back to its round and on to its devices."""

from typing import Annotated

import typer

from wildflower.server.cli.remote import ServerDirectory, ServerUrl, Token, find_remote
from wildflower.server.trace import Trace

app = typer.Typer(help="Follow anything back to its round and on to its devices.")


@app.command("trace", epilog="Example: wildflower trace device-01")
def trace(
    asked: Annotated[
        str,
        typer.Argument(
            help="A device's name or id; the digest of an artifact, release, model or gate report; "
            "a training or a round; or at least six characters of one."
        ),
    ],
    *,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> Trace:
    """Show every way through the loop that something lies on.

    Each line is a chain: device, artifact, release, gate report, model, round.
    """
    return find_remote(server, token, directory).trace(asked)
