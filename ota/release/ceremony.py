"""Who may sign what, and how that changes: edits of root and delegations as pure functions.

    role, metadata = change_keys(authority, Change("root", (new,), (old.keyid,)), expires=...)

An edit is unsigned: it goes to the machines that hold the keys in a `bundle`. A new root needs the
threshold of the root before it and its own (TUF specification 1.0.34, sections 5.3.4 and 6.1); new
delegations need the threshold of `targets`. No key serves two roles, and no edit leaves a role with
fewer keys than its threshold: what nobody could sign any more would lock every device out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Targets, VerificationResult

from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.signing import MAX_METADATA, UNREADABLE, read_targets

TOP: Final = ("root", "targets", "snapshot", "timestamp")
"""Roles whose keys are in the root; the others' are in the delegations of `targets`."""


@dataclass(frozen=True, slots=True)
class RoleView:
    """Who may sign for a role.

    Attributes:
        name: The role.
        threshold: Signatures a device demands.
        keys: Ids of the keys, in their order.
    """

    name: str
    threshold: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Owed:
    """Signatures that metadata needs before a device accepts it.

    Attributes:
        role: Whose metadata.
        judge: Whose list of keys decides: "root 1", "root 2", "targets 5".
        threshold: How many of `keys` must sign.
        signed: Those that have, and verify.
        unsigned: Those that have not.
    """

    role: str
    judge: str
    threshold: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]

    @property
    def missing(self) -> int:
        """How many signatures are still needed."""
        return max(0, self.threshold - len(self.signed))


@dataclass(frozen=True, slots=True)
class Authority:
    """Root and top-level targets: between them they say who may sign for every role.

    Attributes:
        root: The newest root's metadata.
        targets: The newest metadata of `targets`.
    """

    root: bytes
    targets: bytes

    def roles(self) -> tuple[RoleView, ...]:
        """Return every role, top-level ones first.

        Raises:
            FormatError: Either is not what it should be.
        """
        return tuple(
            RoleView(name, role.threshold, tuple(role.keyids)) for name, role in self._roles()
        )

    def holders(self, keyid: str) -> tuple[str, ...]:
        """Return the roles that a key may sign for."""
        return tuple(role.name for role in self.roles() if keyid in role.keys)

    def _roles(self) -> Iterator[tuple[str, Role]]:
        yield from read_root(self.root).signed.roles.items()
        delegations = read_targets(self.targets).signed.delegations
        if delegations is not None:
            yield from (delegations.roles or {}).items()


def read_root(metadata: bytes) -> Metadata[Root]:
    """Parse root metadata; nothing is verified.

    Raises:
        FormatError: Too long, or not root metadata.
    """
    if len(metadata) > MAX_METADATA:
        raise FormatError(f"root metadata: {len(metadata)} bytes, at most {MAX_METADATA}")
    try:
        parsed: Metadata[Any] = Metadata.from_bytes(metadata)
        _ = parsed.signed_bytes
    except (*UNREADABLE, RecursionError) as error:
        raise FormatError(f"root metadata: {str(error) or 'it has no signed form'}") from error
    if not isinstance(parsed.signed, Root):
        raise FormatError(f"expected root metadata, found {parsed.signed.type}")
    return parsed


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be different in who signs for a role.

    Attributes:
        role: Whose keys change.
        add: Public keys that may sign from then on.
        remove: Ids of keys that may no longer.
        threshold: Signatures demanded from then on; None leaves it as it is.
    """

    role: str
    add: tuple[Key, ...] = ()
    remove: tuple[str, ...] = ()
    threshold: int | None = None


def change_keys(authority: Authority, change: Change, *, expires: datetime) -> tuple[str, bytes]:
    """Return whose metadata changes, "root" or "targets", and its next version, unsigned.

    Args:
        authority: What holds now.
        change: What shall be different.
        expires: When the new version expires.

    Raises:
        FormatError: The authority cannot be read.
        SigningError: There is no such role or key, a key serves another role already, or the role
            would have fewer keys than its threshold.
    """
    role = change.role
    known = {one.name: one for one in authority.roles()}
    if role not in known:
        raise SigningError(f"no role {role!r}", hint=f"Known: {', '.join(known)}.")
    if not (change.add or change.remove or change.threshold):
        raise SigningError(f"nothing to change in {role}", hint="Name keys or a threshold.")
    _check_keys(authority, known[role], change)
    metadata: Metadata[Root] | Metadata[Targets] = (
        read_root(authority.root) if role in TOP else read_targets(authority.targets)
    )
    signed = metadata.signed
    for keyid in change.remove:
        signed.revoke_key(keyid, role)
    for key in change.add:
        signed.add_key(key, role)
    changed = signed.get_delegated_role(role)
    changed.threshold = changed.threshold if change.threshold is None else change.threshold
    if not 1 <= changed.threshold <= len(changed.keyids):
        raise SigningError(
            f"{role} would have {len(changed.keyids)} keys and a threshold of {changed.threshold}",
            hint="Add a key in the same step, or lower the threshold.",
        )
    return ("root" if role in TOP else "targets"), next_unsigned(metadata, expires)


def next_unsigned(metadata: Metadata[Any], expires: datetime) -> bytes:
    """Return metadata in its next version, without any signature."""
    metadata.signed.version += 1
    metadata.signed.expires = expires.replace(microsecond=0)
    metadata.signatures.clear()
    return metadata.to_bytes()


def owed(authority: Authority, proposals: Mapping[str, bytes]) -> tuple[Owed, ...]:
    """Return what signatures proposals have and need.

    Args:
        authority: What holds now.
        proposals: New metadata by role: "root", "targets", delegated roles.

    Raises:
        FormatError: A proposal cannot be read.
        SigningError: A proposal is of a role that nobody delegates to, or the root's version does
            not follow.
    """
    after = Authority(
        proposals.get("root", authority.root), proposals.get("targets", authority.targets)
    )
    found: list[Owed] = []
    for role, data in proposals.items():
        if role == "root":
            found += _owed_by_roots(authority.root, data)
        else:
            judge = read_root(after.root) if role in TOP else read_targets(after.targets)
            metadata = read_targets(data)
            found.append(_owed(role, judge, metadata))
    return tuple(found)


def _owed_by_roots(before: bytes, data: bytes) -> list[Owed]:
    old, new = read_root(before), read_root(data)
    if new.signed.version != old.signed.version + 1:
        raise SigningError(
            f"root {new.signed.version} does not follow root {old.signed.version}",
            hint="Make the change again from the root that is published now.",
        )
    return [_owed("root", old, new), _owed("root", new, new)]


def _owed(role: str, judge: Metadata[Root] | Metadata[Targets], metadata: Metadata[Any]) -> Owed:
    try:
        result: VerificationResult = judge.signed.get_verification_result(
            role, metadata.signed_bytes, metadata.signatures
        )
    except (RepositoryError, ValueError) as error:
        raise SigningError(f"{role}: {error}") from error
    name = f"{judge.signed.type} {judge.signed.version}"
    return Owed(role, name, result.threshold, tuple(result.signed), tuple(result.unsigned))


def _check_keys(authority: Authority, role: RoleView, change: Change) -> None:
    for keyid in change.remove:
        if keyid not in role.keys:
            raise SigningError(
                f"key {keyid[:12]} does not sign for {role.name}",
                hint=f"Its keys are {', '.join(one[:12] for one in role.keys)}.",
            )
    for key in change.add:
        if holders := authority.holders(key.keyid):
            raise SigningError(
                f"key {key.keyid[:12]} signs for {', '.join(holders)} already",
                hint="No key serves two roles, or one twice; make another.",
            )
