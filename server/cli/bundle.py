"""`wildflower bundle export` and `import`: the server's half of updates that a person carries."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from wildflower.ota.release.parcel import Parcel, write_parcel
from wildflower.ota.release.repository import Lifetimes
from wildflower.server.blobs import BlobStore
from wildflower.server.cli.remote import DIRECTORY_VARIABLE
from wildflower.server.errors import ServerError, StartError
from wildflower.server.publish import Publisher
from wildflower.server.settings import load_settings
from wildflower.server.sneakernet import pack_release, take_owed

app = typer.Typer(
    no_args_is_help=True, help="Carry releases to devices without a network, and reports back."
)

LONGEST_DAYS: Final = 30
"""Rollout metadata is good for so long; what is packed with it cannot be good for longer."""

Server = Annotated[
    Path, typer.Option("--dir", envvar=DIRECTORY_VARIABLE, help="The server's directory.")
]


@dataclass(frozen=True, slots=True)
class BundleExported:
    """A bundle for the devices of a target group; they refuse it from `good_until` on."""

    bundle: str
    size: int
    files: int
    target_group: str
    release: str
    order: int
    rollout: str
    good_until: datetime


@dataclass(frozen=True, slots=True)
class BundleImported:
    """What a device owed: how much of it was new, had come before, or was refused."""

    device: str
    name: str
    reports: int
    summaries: int
    known: int
    refused: int


@app.command(
    "export",
    epilog="Example: wildflower bundle export --group digits.linux-generic --out stick.tar",
)
def export(
    *,
    group: Annotated[str, typer.Option(help="The target group: MODEL.CLASS.")],
    out: Annotated[Path, typer.Option("--out", help="Where the bundle shall be written.")],
    release: Annotated[
        str,
        typer.Option(help="Digest of the release that it must bring, or its first six digits."),
    ] = "",
    days: Annotated[
        int,
        typer.Option(
            min=0,
            max=LONGEST_DAYS,
            help="How long devices take it; 0: as long as what is published, about a day.",
        ),
    ] = 7,
    directory: Server,
) -> BundleExported:
    """Write the release that is rolled out to a target group into one file.

    To be good for days it needs a timestamp that is: the published one is signed anew, and whoever
    keeps a copy can show devices this state, as old news, for as long.
    """
    now, settings = datetime.now(UTC), load_settings(directory)
    if days:
        publisher = Publisher(directory, directory / "signer" / "signer.sock", lambda: now)
        life = timedelta(days=days)
        publisher.renew(Lifetimes(snapshot=life, timestamp=life))
    blobs = BlobStore(settings.blobs_path)
    packed = pack_release(directory, blobs, group, release=release, now=now)
    try:
        size = write_parcel(out, packed.contents)
    except OSError as error:
        raise ServerError(f"{out} cannot be written: {error.strerror}") from error
    return BundleExported(
        bundle=str(out),
        size=size,
        files=len(packed.contents),
        target_group=group,
        release=packed.release.digest,
        order=packed.release.order,
        rollout=packed.document.rollout,
        good_until=packed.good_until,
    )


@app.command("import", epilog="Example: wildflower bundle import from-device.tar --dir server")
def take(
    bundle: Annotated[Path, typer.Argument(help="What `wildflower bundle collect` wrote.")],
    *,
    directory: Server,
) -> BundleImported:
    """Take a device's reports and summaries, each once; the server may run meanwhile."""
    from wildflower.server.sql import SqlStore  # needs the extra `server`; its neighbours do not

    try:
        parcel = Parcel.open(bundle)
    except OSError as error:
        raise StartError(f"{bundle} cannot be read: {error.strerror}") from error
    with SqlStore.open(load_settings(directory).database_url) as store:
        taken = take_owed(store, parcel, lambda: datetime.now(UTC))
    return BundleImported(
        device=taken.device.device_id,
        name=taken.device.name,
        reports=taken.reports,
        summaries=taken.summaries,
        known=taken.known,
        refused=taken.refused,
    )
