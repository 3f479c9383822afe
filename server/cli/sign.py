"""`wildflower sign`: sign a release with offline keys.

The keys stay where they are: the role's metadata comes from the server, is edited and signed here,
and goes back. The server checks what it gets as a device would and cannot change a byte of it.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from securesystemslib.signer import Signer

from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.keys import APPROVED, load_key
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.signing import add_release, next_order
from wildflower.server.api.views import ReleaseView
from wildflower.server.cli.remote import Remote, ServerDirectory, ServerUrl, Token, find_remote

app = typer.Typer(help="Sign a release with offline keys.")

ROLE: Final = "approved"
PASSPHRASE_VARIABLE: Final = "WILDFLOWER_KEY_PASSPHRASE"  # noqa: S105  the variable's name


@dataclass(frozen=True, slots=True)
class SignResult:
    """A release that is signed and published."""

    release: str
    target_group: str
    order: int
    path: str
    signatures: int


@app.command("sign", epilog="Example: wildflower sign manifest.json --keys keys --files slot")
def sign(  # noqa: PLR0913  each is an option
    manifest: Annotated[
        Path | None, typer.Argument(help="The release's manifest; or name one by --release.")
    ] = None,
    *,
    release: Annotated[
        str, typer.Option(help="Digest of a published release to sign for `approved` devices.")
    ] = "",
    keys: Annotated[
        Path, typer.Option("--keys", help="Directory with approved-1.pem, approved-2.pem …")
    ] = Path("keys"),
    files: Annotated[
        Path | None,
        typer.Option(help="Directory with the manifest's files, brought to the server if missing."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the signatures are good.")] = 365,
    passphrase: Annotated[
        str, typer.Option(envvar=PASSPHRASE_VARIABLE, help="Of the keys, if they have one.")
    ] = "",
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> SignResult:
    """Sign a release with the `approved` keys and publish it.

    The release gets the next order of its target group. Gates and the release signer have no say:
    this is what people answer for.
    """
    remote = find_remote(server, token, directory)
    signers = load_signers(keys, passphrase.encode() or None)
    wanted = _read_manifest(remote, manifest, release)
    if files is not None:
        bring_files(remote, wanted, files)
    signed, view = sign_release(
        remote, wanted, signers, expires=datetime.now(UTC) + timedelta(days=days)
    )
    return SignResult(view.digest, signed.target_group, signed.order, view.path, len(signers))


def load_signers(directory: Path, passphrase: bytes | None = None) -> list[Signer]:
    """Return the `approved` keys in a directory.

    Raises:
        SigningError: There is none, or one cannot be loaded.
    """
    paths = sorted(directory.glob(f"{ROLE}-*.pem"))
    if not paths:
        raise SigningError(
            f"no {ROLE}-*.pem in {directory}", hint="Name the keys' directory with --keys."
        )
    return [load_key(path, passphrase=passphrase) for path in paths]


def bring_files(remote: Remote, release: Release, directory: Path) -> None:
    """Bring a release's files to the server, those that it lacks.

    Raises:
        FormatError: A file is missing or not what the manifest says.
        RemoteError: The server refuses.
    """
    for entry in release.files:
        if remote.has_blob(entry.digest):
            continue
        path = directory / entry.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}") from error
        found = remote.put_blob(data)
        if found.digest != entry.digest:
            raise FormatError(
                f"{path} is not the manifest's {entry.role}",
                hint=f"Expected {entry.digest}, found {found.digest}.",
            )


def sign_release(
    remote: Remote, release: Release, signers: list[Signer], *, expires: datetime
) -> tuple[Release, ReleaseView]:
    """Sign a release in the next order of its target group and publish it.

    Args:
        remote: The server; it has the release's files.
        release: What to sign; its order is taken where it is free, raised where it is not.
        signers: As many of the role's keys as its threshold demands.
        expires: When the role's metadata expires.

    Raises:
        SigningError: The metadata cannot be edited.
        RemoteError: The server refuses, as a device would.
    """
    metadata = remote.repository(APPROVED)
    used = [one.order for one in remote.releases() if one.target_group == release.target_group]
    lowest = max([next_order(metadata, release.target_group), *(order + 1 for order in used)])
    signed = replace(release, order=max(release.order, lowest))
    path = target_path(ROLE, signed.target_group, signed.order)
    edited = add_release(metadata, path, signed.to_bytes(), signers, expires=expires)
    return signed, remote.submit_release(signed.to_bytes(), edited)


def _read_manifest(remote: Remote, path: Path | None, release: str) -> Release:
    if (path is None) is (not release):
        raise FormatError("nothing to sign", hint="Give a manifest's path, or --release DIGEST.")
    if path is None:
        known = [one.digest for one in remote.releases() if one.digest.startswith(release)]
        if len(known) != 1:
            raise FormatError(f"{len(known)} releases begin with {release!r}")
        return Release.from_bytes(remote.blob(known[0]))
    try:
        return Release.from_bytes(path.read_bytes())
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
