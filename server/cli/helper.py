"""`wildflower helper`: set up, run and inspect a helper of one-shot aggregation."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from wildflower.server.cli.service import ServiceRun, read_place, run_service
from wildflower.server.errors import SettingsError

app = typer.Typer(no_args_is_help=True, help="Set up, run and inspect a helper.")

Directory = Annotated[Path, typer.Option("--dir", help="The helper's directory.")]

STATEMENT: Final = (
    "Of each session this helper tells one sum of masks, of no fewer devices than its minimum and"
    " their own policies demand. It sees no update. Server and helper together could see each one:"
    " let different people run them."
)


@dataclass(frozen=True, slots=True)
class HelperView:
    """A helper.

    Attributes:
        digest: SHA-256 of its key: what devices pin (policy.toml, key helpers), and the server.
    """

    directory: str
    digest: str
    min_cohort: int
    ca: str
    answered: int
    statement: str


@app.command(
    "init", epilog="Example: wildflower helper init --dir helper --ca ca.pem --min-cohort 20"
)
def init(
    *,
    directory: Directory = Path("wildflower-helper"),
    ca: Annotated[
        Path, typer.Option("--ca", help="The enrolment CA of the devices (server: ca/ca.pem).")
    ] = Path("ca.pem"),
    min_cohort: Annotated[
        int, typer.Option("--min-cohort", help="Fewest devices whose masks it adds up.")
    ] = 3,
) -> HelperView:
    """Make a directory a helper: its keys, its card, the CA whose devices it believes."""
    from wildflower.server.helper import make_helper

    try:
        ca_pem = ca.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{ca} cannot be read: {error.strerror}", hint="Name the enrolment CA with --ca."
        ) from error
    make_helper(
        directory.absolute(),
        ca_pem=ca_pem,
        min_cohort=min_cohort,
        entropy=os.urandom(32),
        now=datetime.now(UTC),
    )
    return _view(directory)


@app.command("run", epilog="Example: wildflower helper run --dir helper --listen 127.0.0.1:8450")
def run(
    *,
    directory: Directory = Path("wildflower-helper"),
    listen: Annotated[
        str, typer.Option("--listen", help="Where to listen, host:port.")
    ] = "127.0.0.1:8450",
) -> ServiceRun:
    """Run a helper until Ctrl-C or SIGTERM."""
    from wildflower.server.helper import run_helper

    place = read_place(listen)
    return run_service(directory, lambda stopping: run_helper(directory, place, stopping))


@app.command("show", epilog="Example: wildflower helper show --dir helper")
def show(*, directory: Directory = Path("wildflower-helper")) -> HelperView:
    """Show a helper's digest, its minimum, and what it promises."""
    return _view(directory)


def _view(directory: Path) -> HelperView:
    from wildflower.server.helper import opened

    with opened(directory) as home:
        card = home.helper.card
        return HelperView(
            str(directory), card.digest, card.min_cohort, home.ca, home.answered, STATEMENT
        )
