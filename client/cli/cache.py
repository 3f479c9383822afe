"""`wildflower cache serve`: a LAN fetches a release once."""

from pathlib import Path
from typing import Annotated

import typer

from wildflower.client.cache_server import run_cache
from wildflower.client.errors import ConfigError
from wildflower.wakeup import woken_by_signals

app = typer.Typer(no_args_is_help=True, help="Serve releases to a LAN that fetches them once.")


@app.callback()
def group() -> None:
    """Serve releases to a LAN that fetches them once."""


@app.command(
    "serve",
    epilog="Example: wildflower cache serve --dir cache --upstream https://wildflower.example:8443",
)
def serve(
    *,
    directory: Annotated[Path, typer.Option("--dir", help="Where it keeps files.")],
    upstream: Annotated[str, typer.Option(help="The server's device HTTPS, or another cache.")],
    listen: Annotated[str, typer.Option(help="Where it listens: HOST:PORT.")] = "0.0.0.0:8480",
    max_bytes: Annotated[
        int, typer.Option(min=1_000_000, help="What its files may take together.")
    ] = 2_000_000_000,
    ca: Annotated[
        Path | None, typer.Option(help="The server's CA, such as a device's identity/ca.pem.")
    ] = None,
) -> None:
    """Serve what the server serves to devices, each file fetched once, until told to end.

    Devices name it in agent.toml: sources = ["http://HOST:PORT"]. It holds no key and is trusted
    for nothing: what it might make up is refused, told, and fetched from the next source.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--listen {listen!r} is no address", hint="Such as 0.0.0.0:8480.")
    if not upstream.startswith(("https://", "http://")):
        raise ConfigError(f"--upstream {upstream!r} is no URL", hint="Such as https://HOST:PORT.")
    with woken_by_signals() as wait:
        run_cache(
            directory,
            (host, int(port)),
            upstream,
            max_bytes=max_bytes,
            ca=ca,
            until=wait.sleep,
        )
