"""`wildflower keyholder`: hold the keys of homomorphic rounds, on another host than the server.

A key holder makes a key pair for each run of a training and decrypts one sum in each round. It can
decrypt every update that it gets hold of, and cannot see how many updates are in a sum: `show`
prints what may be expected of it. The server gets the token that `init` made, and every device the
key holder's digest, as `key_holder` in its policy.toml.
"""

import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wildflower.server.cli.service import ServiceRun, read_place, run_service

app = typer.Typer(
    no_args_is_help=True, help="Hold the keys of homomorphic rounds, away from the server."
)

Directory = Annotated[Path, typer.Option("--dir", help="The key holder's directory.")]


@dataclass(frozen=True, slots=True)
class KeyHolderInit:
    """A new key holder.

    Attributes:
        digest: SHA-256 of its key: what devices pin (policy.toml, key key_holder), and the server.
        token: Where the token is; who has it may ask for sums.
    """

    directory: str
    digest: str
    token: str
    notes: list[str]


@dataclass(frozen=True, slots=True)
class RunWithKey:
    """A run that a key holder has a key for, and how many of its rounds it answered."""

    run: str
    key: str
    expires: datetime
    rounds: int


@dataclass(frozen=True, slots=True)
class KeyHolderView:
    """A key holder, what may be expected of it, and what it has done."""

    digest: str
    min_cohort: int
    days: int
    can: str
    does: str
    cannot_see: str
    protects: str
    runs: list[RunWithKey]


@app.command("init", epilog="Example: wildflower keyholder init --dir keyholder --min-cohort 20")
def init(
    *,
    directory: Directory = Path("wildflower-keyholder"),
    min_cohort: Annotated[
        int, typer.Option("--min-cohort", help="Fewest updates whose sum is decrypted.")
    ] = 3,
    days: Annotated[int, typer.Option(help="After which a run's key is erased.")] = 30,
) -> KeyHolderInit:
    """Make a directory a key holder: its identity, its terms, the server's token."""
    from wildflower.server.keyholder import Terms
    from wildflower.server.keyholder_home import TOKEN_FILE, make_key_holder

    place = directory.absolute()
    identity = make_key_holder(
        place, Terms(min_cohort, days), entropy=os.urandom(32), now=datetime.now(UTC)
    )
    token = place / TOKEN_FILE
    return KeyHolderInit(
        directory=str(place),
        digest=identity.digest,
        token=str(token),
        notes=[
            f"Move {token} to the server: whoever has it may ask for sums",
            f'Tell each device: key_holder = "{identity.digest}" in its policy.toml',
        ],
    )


@app.command("run", epilog="Example: wildflower keyholder run --dir keyholder --listen [::]:8446")
def run(
    *,
    directory: Directory = Path("wildflower-keyholder"),
    listen: Annotated[
        str, typer.Option("--listen", help="Where to listen, host:port.")
    ] = "127.0.0.1:8446",
) -> ServiceRun:
    """Run the key holder until Ctrl-C or SIGTERM."""
    from wildflower.server.keyholder_home import run_key_holder

    place = read_place(listen)

    def serve(stopping: threading.Event) -> None:
        run_key_holder(directory.absolute(), place, stopping, now=lambda: datetime.now(UTC))

    return run_service(directory, serve)


@app.command("show", epilog="Example: wildflower keyholder show --dir keyholder")
def show(*, directory: Directory = Path("wildflower-keyholder")) -> KeyHolderView:
    """Show who the key holder is, what may be expected of it, and which keys it has."""
    from wildflower.server.keyholder_home import open_key_holder

    home = open_key_holder(directory.absolute(), now=lambda: datetime.now(UTC))
    trust = home.terms.trust
    return KeyHolderView(
        digest=home.identity.digest,
        min_cohort=home.terms.min_cohort,
        days=home.terms.days,
        can=trust.can,
        does=trust.does,
        cannot_see=trust.cannot_see,
        protects=trust.protects,
        runs=[
            RunWithKey(each.run, each.key, datetime.fromtimestamp(each.expires, UTC), each.rounds)
            for each in home.holder.runs()
        ],
    )
