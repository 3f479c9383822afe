"""`wildflower device invite`; enrolling is the device's half (`client.cli.device`)."""

from typing import Annotated

import typer

from wildflower.server.api.views import InvitationView
from wildflower.server.cli.remote import ServerDirectory, ServerUrl, Token, find_remote

app = typer.Typer(no_args_is_help=True, help="Invite and enrol devices.")


@app.callback()
def group() -> None:
    """Invite and enrol devices."""


@app.command("invite", epilog="Example: wildflower device invite --dir server --uses 8")
def invite(
    *,
    ring: Annotated[str, typer.Option(help="The ring that its devices join.")] = "default",
    uses: Annotated[int, typer.Option(min=1, help="How many devices may enrol with it.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="How long it is good.")] = 24.0,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> InvitationView:
    """Make a join token. It is shown once: whoever has it may enrol a device."""
    return find_remote(server, token, directory).invite(ring=ring, uses=uses, hours=hours)
