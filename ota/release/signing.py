"""Edits of TUF metadata as pure functions: bytes and signers in, signed bytes out.

They need the base install only and no server, so that the keys of `models/approved` can stay on a
machine that is never online:

    metadata = add_release(metadata, path, manifest, [alice], expires=...)   # alice's machine
    metadata = countersign(metadata, bob)                                    # bob's machine

An edit never loses what was there: a version goes up by one, a target is never replaced by other
bytes (rollout documents, which are made to be replaced, go through `put_target`), an order in a
target group is used once and only grows. TUF specification 1.0.34, sections 4 and 6.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, RefusedError, SigningError
from wildflower.ota.release.keys import APPROVED, AUTO, DELEGATED, ROLLOUT, SOFTWARE, RoleKeys
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.statement import statement_path

PATHS: Final[Mapping[str, str]] = {
    AUTO: "models/auto/*/*",
    APPROVED: "models/approved/*/*",
    ROLLOUT: "rollout/*",
    SOFTWARE: "software/*",
}
"""The targets that each delegated role may sign; a `*` matches no slash."""

MAX_METADATA: Final = 5_000_000  # bytes; python-tuf's client reads no more of a targets role

S = TypeVar("S", Root, Snapshot, Targets, Timestamp)


def first_root(keys: Mapping[str, RoleKeys], *, expires: datetime) -> bytes:
    """Return version 1 of the root: whose keys sign the top-level roles."""
    root = Root(version=1, expires=_whole(expires), consistent_snapshot=True)
    for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
        for key in keys[role].public_keys:
            root.add_key(key, role)
        root.roles[role].threshold = keys[role].threshold
    return _signed(Metadata(root), keys[Root.type].signers)


def first_targets(keys: Mapping[str, RoleKeys], *, expires: datetime) -> bytes:
    """Return version 1 of the top-level targets: the delegations and nothing else."""
    delegations = Delegations(
        keys={key.keyid: key for role in DELEGATED for key in keys[role].public_keys},
        roles={
            role: DelegatedRole(
                name=role,
                keyids=[key.keyid for key in keys[role].public_keys],
                threshold=keys[role].threshold,
                terminating=True,
                paths=[PATHS[role]],
            )
            for role in DELEGATED
        },
    )
    targets = Targets(version=1, expires=_whole(expires), delegations=delegations)
    return _signed(Metadata(targets), keys[Targets.type].signers)


def first_delegated(keys: RoleKeys, *, expires: datetime) -> bytes:
    """Return version 1 of a delegated role: no target yet."""
    return _signed(Metadata(Targets(version=1, expires=_whole(expires))), keys.signers)


def add_release(
    metadata: bytes,
    path: str,
    manifest: bytes,
    signers: Sequence[Signer],
    *,
    expires: datetime,
    provenance: bytes = b"",
) -> bytes:
    """Return a models role with one release more, in its next version.

    Args:
        metadata: The role's current metadata.
        path: Where the manifest will lie among the targets; must be what `target_path` says.
        manifest: Canonical bytes of the release.
        signers: Who signs; with fewer than the role's threshold the rest may `countersign`.
        expires: When the new version expires.
        provenance: The signed statement that lies beside the manifest; b"" for none.

    Raises:
        FormatError: The metadata or the manifest cannot be parsed.
        SigningError: The path is not the release's, or its order is used or overtaken.
    """
    current = read_targets(metadata)
    release = Release.from_bytes(manifest)
    role = path.split("/")[1] if path.count("/") == 3 else ""
    if f"models/{role}" not in (AUTO, APPROVED) or path != target_path(
        role, release.target_group, release.order
    ):
        raise SigningError(
            f"path {path!r} is not that of release {release.order} of {release.target_group}"
        )
    newest = next_order(metadata, release.target_group) - 1
    if release.order <= newest:
        raise SigningError(
            f"order {release.order} of {release.target_group}: {newest} is signed already",
            hint="Orders only grow; give the release the next one.",
        )
    if provenance:
        _put(current, statement_path(path), provenance)
    return _with_target(current, path, manifest, signers, expires)


def put_target(
    metadata: bytes, path: str, data: bytes, signers: Sequence[Signer], *, expires: datetime
) -> bytes:
    """Return a delegated role in its next version, in which `path` is `data`, new or replaced.

    Raises:
        FormatError: The metadata cannot be parsed.
    """
    return _with_target(read_targets(metadata), path, data, signers, expires)


def put_unsigned(metadata: bytes, path: str, data: bytes) -> bytes:
    """Return metadata that nobody has signed yet with one target that is `data`, new or replaced.

    Raises:
        FormatError: The metadata cannot be parsed.
        SigningError: Somebody has signed it.
    """
    current = read_targets(metadata)
    if current.signatures:
        raise SigningError(f"{path} would change what is signed already")
    _put(current, path, data)
    return current.to_bytes()


def role_keys(targets: bytes, role: str) -> list[Key]:
    """Return the keys that may sign for a delegated role; nothing is verified.

    Args:
        targets: The top-level targets' metadata.
        role: Such as "models/approved".

    Raises:
        FormatError: The metadata cannot be parsed, or delegates nothing to such a role.
    """
    delegations = read_targets(targets).signed.delegations
    roles = (delegations.roles if delegations is not None else None) or {}
    if delegations is None or role not in roles:
        raise FormatError(f"targets metadata: no role {role!r}")
    return [delegations.keys[keyid] for keyid in roles[role].keyids]


def renew(metadata: bytes, signers: Sequence[Signer], *, expires: datetime) -> bytes:
    """Return a targets role in its next version with a later expiry and nothing else changed.

    Raises:
        FormatError: The metadata cannot be parsed.
    """
    return _next(read_targets(metadata), signers, expires)


def countersign(metadata: bytes, signer: Signer) -> bytes:
    """Return the metadata with one signature more; what is signed stays as it is.

    Raises:
        FormatError: The metadata cannot be parsed.
    """
    current = read_targets(metadata)
    current.sign(signer, append=True)
    return current.to_bytes()


def first_snapshot(keys: RoleKeys, roles: Iterable[str], *, expires: datetime) -> bytes:
    """Return version 1 of the snapshot, with version 1 of every targets role."""
    meta = {f"{role}.json": MetaFile(1) for role in roles}
    snapshot = Snapshot(version=1, expires=_whole(expires), meta=meta)
    return _signed(Metadata(snapshot), keys.signers)


def next_snapshot(
    metadata: bytes, versions: Mapping[str, int], signers: Sequence[Signer], *, expires: datetime
) -> bytes:
    """Return the next snapshot.

    Args:
        metadata: The current one.
        versions: New versions by role name; others keep theirs.
        signers: Who signs.
        expires: When it expires.

    Raises:
        FormatError: The metadata cannot be parsed.
        SigningError: A role is unknown, or this or a later version of it is published.
    """
    current = _read(Snapshot, metadata)
    for role, version in versions.items():
        known = current.signed.meta.get(f"{role}.json")
        is_first = known is None and (role, version) == (SOFTWARE, 1)  # it was just delegated
        if not is_first and (known is None or version <= known.version):
            found = "no such role" if known is None else f"version {known.version} is published"
            raise SigningError(f"{role} cannot be published in version {version}: {found}")
        current.signed.meta[f"{role}.json"] = MetaFile(version)
    return _next(current, signers, expires)


def first_timestamp(keys: RoleKeys, *, expires: datetime) -> bytes:
    """Return version 1 of the timestamp, for version 1 of the snapshot."""
    timestamp = Timestamp(version=1, expires=_whole(expires), snapshot_meta=MetaFile(1))
    return _signed(Metadata(timestamp), keys.signers)


def next_timestamp(
    metadata: bytes, snapshot_version: int, signers: Sequence[Signer], *, expires: datetime
) -> bytes:
    """Return the next timestamp.

    Raises:
        FormatError: The metadata cannot be parsed.
    """
    current = _read(Timestamp, metadata)
    current.signed.snapshot_meta = MetaFile(snapshot_version)
    return _next(current, signers, expires)


def read_targets(metadata: bytes) -> Metadata[Targets]:
    """Parse the metadata of a targets role; nothing is verified.

    Raises:
        FormatError: Too long, or not the metadata of a targets role.
    """
    return _read(Targets, metadata)


def published_versions(snapshot: bytes) -> Mapping[str, int]:
    """Return the version of each targets role in a snapshot, by role name; nothing is verified.

    Raises:
        FormatError: Not a snapshot.
    """
    meta = _read(Snapshot, snapshot).signed.meta
    return {name.removesuffix(".json"): file.version for name, file in meta.items()}


def snapshot_version(timestamp: bytes) -> int:
    """Return the snapshot's version that a timestamp names; nothing is verified.

    Raises:
        FormatError: Not a timestamp.
    """
    return _read(Timestamp, timestamp).signed.snapshot_meta.version


def expiry(metadata: bytes) -> datetime:
    """Return when any metadata expires; nothing is verified.

    Raises:
        FormatError: Not TUF metadata.
    """
    try:
        return Metadata.from_bytes(metadata).signed.expires
    except UNREADABLE as error:
        raise FormatError(f"TUF metadata: {error}") from error


def next_order(metadata: bytes, target_group: str) -> int:
    """Return the lowest order that a release of this group can still be given, from 1.

    Raises:
        FormatError: The metadata cannot be parsed.
    """
    used = [0]
    for path in read_targets(metadata).signed.targets:
        *_, group, name = ("", *path.split("/"))
        if group == target_group and name.removesuffix(".json").isdecimal():
            used.append(int(name.removesuffix(".json")))
    return max(used) + 1


def check_signed_by(metadata: bytes, key: Key) -> Metadata[Targets]:
    """Parse the metadata of a targets role and check that this key has signed it.

    Raises:
        FormatError: The metadata cannot be parsed.
        RefusedError: This key's signature is missing or wrong.
    """
    current = read_targets(metadata)
    signature = current.signatures.get(key.keyid)
    if signature is None:
        raise RefusedError(f"expected a signature of key {key.keyid}, found none")
    try:
        key.verify_signature(signature, current.signed_bytes)
    except UnverifiedSignatureError as error:
        raise RefusedError(f"the signature of key {key.keyid} is wrong") from error
    return current


def check_delegated(targets: bytes, role: str, metadata: bytes) -> None:
    """Check that a delegated role is signed by as many of its keys as the delegation demands.

    Raises:
        FormatError: Either metadata cannot be parsed.
        RefusedError: Signatures are missing or wrong.
    """
    delegated = read_targets(metadata)
    try:
        read_targets(targets).signed.verify_delegate(
            role, delegated.signed_bytes, delegated.signatures
        )
    except (RepositoryError, ValueError) as error:
        raise RefusedError(
            f"{role}: {error}", hint="Let the missing signers sign the same metadata."
        ) from error


UNREADABLE: Final = (RepositoryError, ValueError, KeyError, TypeError, AttributeError)
"""What python-tuf raises on bytes that are not metadata."""


def _read(kind: type[S], metadata: bytes) -> Metadata[S]:
    if len(metadata) > MAX_METADATA:
        raise FormatError(f"{kind.type} metadata: {len(metadata)} bytes, at most {MAX_METADATA}")
    try:
        parsed = Metadata[S].from_bytes(metadata)
        _ = parsed.signed_bytes  # JSON has numbers and texts that the signed form has not
    except (*UNREADABLE, RecursionError) as error:
        why = str(error) or "it has no signed form"
        raise FormatError(f"{kind.type} metadata: {why}") from error
    if not isinstance(parsed.signed, kind):
        raise FormatError(f"expected {kind.type} metadata, found {parsed.signed.type}")
    return parsed


def _with_target(
    current: Metadata[Targets],
    path: str,
    data: bytes,
    signers: Sequence[Signer],
    expires: datetime,
) -> bytes:
    _put(current, path, data)
    return _next(current, signers, expires)


def _put(metadata: Metadata[Targets], path: str, data: bytes) -> None:
    metadata.signed.targets[path] = TargetFile(
        length=len(data), hashes={"sha256": canonical.digest(data)}, path=path
    )


def _next(metadata: Metadata[S], signers: Sequence[Signer], expires: datetime) -> bytes:
    metadata.signed.version += 1
    metadata.signed.expires = _whole(expires)
    return _signed(metadata, signers)


def _signed(metadata: Metadata[S], signers: Sequence[Signer]) -> bytes:
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _whole(moment: datetime) -> datetime:
    """TUF's times have no fractions of a second."""
    return moment.replace(microsecond=0)
