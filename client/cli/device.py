"""`wildflower device enroll`: turn this machine into a device of a server's fleet."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.enrolment import Enrolment, enrol
from wildflower.client.policy import Policy

app = typer.Typer(no_args_is_help=True, help="Invite and enrol devices.")


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that has just enrolled."""

    device_id: str
    name: str
    device_class: str
    ring: str
    directory: str


@app.command(
    "enroll", epilog="Example: wildflower device enroll wf1.eyJ1... --dir /var/lib/wildflower"
)
def enroll(  # noqa: PLR0913  one option each
    token: Annotated[str, typer.Argument(help="The join token, from `wildflower device invite`.")],
    *,
    directory: Annotated[Path, typer.Option("--dir", help="Where the device will live.")] = Path(
        "/var/lib/wildflower"
    ),
    name: Annotated[
        str, typer.Option(help="What people shall call it; empty: this host's name.")
    ] = "",
    device_class: Annotated[str, typer.Option(help="Device class; empty: the one that fits.")] = "",
    app_reference: Annotated[
        str, typer.Option("--app", help="What it trains; empty: inference only.")
    ] = "",
    data: Annotated[str, typer.Option(help="Its examples, for training.")] = "",
    source: Annotated[
        list[str] | None, typer.Option(help="Where to look for releases first; may be repeated.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help='Whose releases it installs: "auto", "approved".')
    ] = None,
    allow_plain: Annotated[
        bool, typer.Option("--allow-plain", help="Let updates leave unmasked; not recommended.")
    ] = False,
) -> Enrolled:
    """Enrol this machine with a join token.

    The server is compared with the token before anything is sent. Nothing is written unless all
    of it succeeds.
    """
    policy = Policy(
        secagg="allowed" if allow_plain else "required", release=tuple(accept or ("auto",))
    )
    config = enrol(
        token,
        Enrolment(
            directory=directory,
            name=name or socket.gethostname(),
            device_class=device_class,
            app=app_reference,
            data=str(Path(data).absolute()) if data else "",
            sources=tuple(source or ()),
            policy=policy,
        ),
    )
    return Enrolled(
        config.device_id, config.name, config.device_class, config.ring, str(config.directory)
    )
