"""`wildflower sign`: sign a release with offline keys.

The keys stay where they are: the role's metadata comes from the server, is edited and signed here,
and goes back. The server checks what it gets as a device would and cannot change a byte of it.

Where the keys' machine has no network, a bundle travels in place of the metadata:

    wildflower sign --release latest --prepare b.json --dir server      # online
    wildflower sign --bundle b.json --keys vault                        # offline, once per machine
    wildflower sign --submit b.json --dir server                        # online
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from securesystemslib.signer import Signer

from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.approval import ENDING as STATEMENT_ENDING
from wildflower.ota.release.audit import FILE as TRAIL
from wildflower.ota.release.audit import AuditedSigner, Trail
from wildflower.ota.release.bundle import Bundle
from wildflower.ota.release.ceremony import Authority
from wildflower.ota.release.keyring import find_signers
from wildflower.ota.release.keys import APPROVED, AUTO, load_key
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.signing import add_release, next_order, role_keys
from wildflower.ota.release.statement import open_statement, sign_statement, statement_path
from wildflower.server.api.views import ReleaseView
from wildflower.server.cli.keys import (
    PASSPHRASE_VARIABLE,
    PIN_VARIABLE,
    bundle_missing,
    read_bundle,
    write_bundle,
)
from wildflower.server.cli.remote import Remote, ServerDirectory, ServerUrl, Token, find_remote

app = typer.Typer(help="Sign a release with offline keys.")

ROLE: Final = "approved"


@dataclass(frozen=True, slots=True)
class SignResult:
    """A release that is signed and published."""

    release: str
    target_group: str
    order: int
    path: str
    signatures: int


@dataclass(frozen=True, slots=True)
class BundlePrepared:
    """A release that waits for signatures."""

    bundle: str
    says: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class BundleSigned:
    """A bundle with signatures more; what it says is what was signed."""

    bundle: str
    says: list[str]
    signed: list[str]
    missing: list[str]


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
    prepare: Annotated[
        Path | None, typer.Option(help="Write a bundle for offline machines; sign nothing.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Sign a bundle with --keys; needs no server.")
    ] = None,
    submit: Annotated[
        Path | None, typer.Option(help="Publish the release of a bundle that is signed.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the signatures are good.")] = 365,
    pin: Annotated[str, typer.Option(envvar=PIN_VARIABLE, help="Of a PKCS #11 token.")] = "",
    passphrase: Annotated[
        str, typer.Option(envvar=PASSPHRASE_VARIABLE, help="Of the keys, if they have one.")
    ] = "",
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> SignResult | BundlePrepared | BundleSigned:
    """Sign a release with the `approved` keys and publish it.

    The release gets the next order of its target group. Gates and the release signer have no say:
    this is what people answer for. Where it comes from is stated beside it, as the release signer
    has stated it for the automatic release of the model. A bundle (--bundle) may also hold a change
    of keys.
    """
    if bundle is not None:
        return sign_bundle(bundle, keys, {"passphrase": passphrase, "pin": pin})
    remote = find_remote(server, token, directory)
    if submit is not None:
        return submit_bundle(remote, submit)
    expires = datetime.now(UTC) + timedelta(days=days)
    if prepare is not None:
        wanted = _read_manifest(remote, manifest, release)
        return prepare_bundle(remote, wanted, prepare, expires=expires)
    signers = load_signers(keys, passphrase.encode() or None)
    wanted = _read_manifest(remote, manifest, release)
    if files is not None:
        bring_files(remote, wanted, files)
    signed, view = sign_release(remote, wanted, signers, expires=expires)
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
    trail = Trail(directory / TRAIL)
    return [AuditedSigner(load_key(path, passphrase=passphrase), trail, _now) for path in paths]


def sign_bundle(path: Path, keys: Path, secrets: Mapping[str, str]) -> BundleSigned:
    """Sign a bundle, in its place, with every key of a directory that owes it a signature.

    Raises:
        FormatError: It is no bundle.
        SigningError: No key here owes it one, or a key cannot be used.
    """
    signed, told = sign_with(read_bundle(path), keys, secrets)
    write_bundle(path, signed)
    return BundleSigned(str(path), list(signed.says()), told, bundle_missing(signed))


def sign_with(bundle: Bundle, keys: Path, secrets: Mapping[str, str]) -> tuple[Bundle, list[str]]:
    """Return a bundle with what a directory's keys owe it, and what each of them signed.

    Raises:
        SigningError: No key here owes it a signature, or a key cannot be used.
    """
    trail = Trail(keys / TRAIL)
    signers = [
        AuditedSigner(signer, trail, _now)
        for signer in find_signers(keys, bundle.wanted(), lambda name: secrets.get(name, ""))
    ]
    if not signers:
        raise SigningError(
            f"no key in {keys} owes this bundle a signature",
            hint="; ".join(bundle_missing(bundle)) or "It has all it needs.",
        )
    signed, made = bundle.signed_by(signers)
    return signed, [f"{role} by {key[:12]}" for role, key in made]


def prepare_bundle(
    remote: Remote, release: Release, path: Path, *, expires: datetime
) -> BundlePrepared:
    """Write a bundle in which a release waits for the signatures of the `approved` keys.

    Raises:
        SigningError: The metadata cannot be edited, or the bundle not written.
        RemoteError: The server refuses.
    """
    metadata = remote.repository(APPROVED)
    ordered = _in_order(remote, release, metadata)
    target = target_path(ROLE, ordered.target_group, ordered.order)
    statement = make_statement(remote, ordered, [])
    edited = add_release(
        metadata, target, ordered.to_bytes(), [], expires=expires, provenance=statement
    )
    beside = {statement_path(target): statement} if statement else {}
    made = Bundle(
        Authority(remote.repository("root"), remote.repository("targets")),
        {APPROVED: edited},
        {target: ordered.to_bytes(), **beside},
        {APPROVED: metadata},
    )
    write_bundle(path, made)
    return BundlePrepared(str(path), list(made.says()), bundle_missing(made))


def submit_bundle(remote: Remote, path: Path) -> SignResult:
    """Publish the one release of a bundle.

    Raises:
        FormatError: It is no bundle, or holds no release.
        RemoteError: The server refuses, as a device would.
    """
    found = read_bundle(path)
    metadata = found.proposals.get(APPROVED, b"")
    manifests = [one for one in found.targets if not one.endswith(STATEMENT_ENDING)]
    if not metadata or len(manifests) != 1:
        raise FormatError(
            f"{path} holds no release", hint="A change of keys is for: wildflower keys publish"
        )
    [target] = manifests
    manifest, statement = found.targets[target], found.targets.get(statement_path(target), b"")
    release = Release.from_bytes(manifest)
    view = remote.submit_release(manifest, metadata, statement)
    [owing] = found.owed()
    return SignResult(view.digest, release.target_group, release.order, target, len(owing.signed))


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
    signed = _in_order(remote, release, metadata)
    path = target_path(ROLE, signed.target_group, signed.order)
    statement = make_statement(remote, signed, signers)
    edited = add_release(
        metadata, path, signed.to_bytes(), signers, expires=expires, provenance=statement
    )
    return signed, remote.submit_release(signed.to_bytes(), edited, statement)


def make_statement(remote: Remote, release: Release, signers: Sequence[Signer]) -> bytes:
    """Return the statement of where a release comes from, b"" where the server knows nothing of it.

    What it says the release signer has said, of an automatic release of the same model.

    Args:
        remote: The server.
        release: What it shall be of.
        signers: Who signs it.

    Raises:
        RefusedError: The server's statement is not signed by the release signer.
        FormatError: The server's statement cannot be read.
        RemoteError: The server refuses.
    """
    lineage = release.lineage
    known = [one for one in remote.releases() if (one.role, one.model) == ("auto", lineage.model)]
    known.sort(key=lambda one: one.artifact != release.artifact.digest)
    for one in known:
        if data := remote.statement(one.digest):
            found = open_statement(data, role_keys(remote.repository("targets"), AUTO))
            if (found.training, found.round_number) == (lineage.training, lineage.round_number):
                return sign_statement(found.taken_over(release), signers)
    return b""


def _now() -> datetime:
    return datetime.now(UTC)


def _in_order(remote: Remote, release: Release, metadata: bytes) -> Release:
    """Return the release in its order where that is free, in the next one where it is not."""
    used = [one.order for one in remote.releases() if one.target_group == release.target_group]
    lowest = max([next_order(metadata, release.target_group), *(order + 1 for order in used)])
    return replace(release, order=max(release.order, lowest))


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
