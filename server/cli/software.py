"""`wildflower software`: files other than models, on their way to the handlers of devices.

    wildflower software add labels labels.txt --keys vault --dir server     # signs and publishes

    wildflower software add labels labels.txt --out b.json --dir server     # online
    wildflower sign --bundle b.json --keys vault                            # offline, once per key
    wildflower keys publish b.json --dir server                             # online

A repository begins without a role that may sign software: `wildflower keys delegate-software`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wildflower.ota.errors import SigningError
from wildflower.ota.release.keys import SOFTWARE
from wildflower.ota.release.signing import expiry
from wildflower.ota.release.software import Software
from wildflower.server.blobs import BlobStore
from wildflower.server.cli.keys import BundleMade, Passphrase, Pin, Server, made_bundle
from wildflower.server.cli.sign import sign_with
from wildflower.server.key_ceremony import Ceremony
from wildflower.server.settings import load_settings
from wildflower.server.software import Shelf, Wanted

app = typer.Typer(no_args_is_help=True, help="Sign files other than models, and show them.")


@dataclass(frozen=True, slots=True)
class SoftwareLine:
    """The newest version of a line."""

    name: str
    order: int
    handler: str
    device_class: str
    agent_min: str
    files: list[str]
    digest: str


@dataclass(frozen=True, slots=True)
class SoftwareShown:
    """What is published, who may sign it, and until when it is good."""

    lines: list[SoftwareLine]
    keys: list[str]
    threshold: int
    expires: datetime


@app.command("add", epilog="Example: wildflower software add labels labels.txt --keys vault")
def add(  # noqa: PLR0913  each is an option
    line: Annotated[str, typer.Argument(help="Name of the line, such as labels.")],
    files: Annotated[list[Path], typer.Argument(help="Files, each under its own name.")],
    *,
    handler: Annotated[
        str, typer.Option(help="The program on devices that installs it; by default the line's.")
    ] = "",
    device_class: Annotated[
        str, typer.Option("--class", help="The class of devices that it is for; by default all.")
    ] = "",
    agent_min: Annotated[str, typer.Option(help="Lowest version of the agent.")] = "0",
    order: Annotated[
        int, typer.Option(min=0, help="Its position in the line; 0 for the next.")
    ] = 0,
    keys: Annotated[
        Path | None, typer.Option(help="Directory of keys: sign with them and publish.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a bundle for offline keys; publish nothing.")
    ] = None,
    passphrase: Passphrase = "",
    pin: Pin = "",
    directory: Server = Path("wildflower-server"),
) -> SoftwareLine | BundleMade:
    """Bring a new version of a line of software to the devices whose owners accept the line."""
    if (keys is None) is (out is None):
        raise SigningError(
            "software is signed with --keys, or written for offline keys with --out",
            hint="Give one of the two.",
        )
    shelf = _shelf(directory)
    wanted = Wanted(line, handler or line, device_class, agent_min, order)
    software, bundle = shelf.propose(wanted, files)
    if out is not None:
        return made_bundle(bundle, out)
    if keys is not None:
        bundle, _ = sign_with(bundle, keys, {"passphrase": passphrase, "pin": pin})
    shelf.ceremony.publish(bundle)
    return _line(software)


@app.command("ls", epilog="Example: wildflower software ls --dir server")
def ls(*, directory: Server = Path("wildflower-server")) -> SoftwareShown:
    """List the newest version of every line, who may sign, and until when it is good."""
    shelf = _shelf(directory)
    role = shelf.role()
    return SoftwareShown(
        lines=[_line(one) for one in shelf.lines()],
        keys=list(role.keys),
        threshold=role.threshold,
        expires=expiry(shelf.ceremony.repository.current(SOFTWARE)),
    )


def _shelf(directory: Path) -> Shelf:
    ceremony = Ceremony(directory, lambda: datetime.now(UTC))
    return Shelf(ceremony, BlobStore(load_settings(directory).blobs_path))


def _line(software: Software) -> SoftwareLine:
    return SoftwareLine(
        name=software.name,
        order=software.order,
        handler=software.handler,
        device_class=software.device_class,
        agent_min=software.agent_min,
        files=[entry.name for entry in software.files],
        digest=software.digest,
    )
