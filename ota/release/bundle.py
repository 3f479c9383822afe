"""What travels to a machine with keys and back: one file, readable, that needs no network.

    bundle = propose(authority, current, change, now)      # online: what shall be signed
    bundle, made = bundle.signed_by(signers)               # offline, once per machine
    bundle.missing()                                       # nothing: it can be published

A bundle holds what is in force (root and targets), what is proposed (metadata by role) and the
targets that the proposals name. Nobody has to trust it: a machine with keys works out itself what
it is asked for, signs only for roles that its keys have, and the repository verifies the result as
a device would.

    Bundle.from_bytes(bundle.to_bytes()) == bundle
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Self

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError, SigningError
from wildflower.ota.release.approval import sign_statements, statements_in
from wildflower.ota.release.ceremony import (
    TOP,
    Authority,
    Change,
    Owed,
    RoleView,
    change_keys,
    next_unsigned,
    owed,
    read_root,
)
from wildflower.ota.release.keys import APPROVED, DELEGATED, ROLLOUT, SOFTWARE
from wildflower.ota.release.repository import Lifetimes
from wildflower.ota.release.signing import read_targets

KIND: Final = "wildflower.signing-bundle"
PROPOSED: Final = ("root", "targets", *DELEGATED, SOFTWARE)
"""Roles that may be proposed, in the order in which they are told."""
MAX_BUNDLE: Final = 16_000_000  # bytes; metadata of a targets role has at most 5 MB


@dataclass(frozen=True, slots=True)
class Bundle:
    """Metadata on its way to its signatures.

    Attributes:
        authority: Root and targets in force when it was made.
        proposals: New metadata by role; the roles are of `PROPOSED`.
        targets: Contents that the proposals name, by target path.
        current: Metadata in force of the delegated roles that are proposed anew.
    """

    authority: Authority
    proposals: Mapping[str, bytes]
    targets: Mapping[str, bytes] = field(default_factory=dict)
    current: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def after(self) -> Authority:
        """Root and targets that will be in force when it is published."""
        return Authority(
            self.proposals.get("root", self.authority.root),
            self.proposals.get("targets", self.authority.targets),
        )

    def owed(self) -> tuple[Owed, ...]:
        """Return what signatures the proposals have and need.

        Raises:
            FormatError: A part cannot be read.
            SigningError: A proposal does not fit what is in force.
        """
        return owed(self.authority, self.proposals)

    def missing(self) -> tuple[Owed, ...]:
        """Return what is still to be signed; nothing when a device would accept all of it."""
        return tuple(one for one in self.owed() if one.missing)

    def wanted(self) -> frozenset[str]:
        """Return the ids of the keys whose signatures are welcome."""
        return frozenset(key for one in self.owed() for key in one.unsigned)

    def says(self) -> tuple[str, ...]:
        """Return what whoever signs answers for: every key and target that changes, by line.

        Raises:
            FormatError: A part cannot be read.
            RefusedError: A statement is not what is proposed, or of another release.
        """
        lines: list[str] = []
        for role, data in self.proposals.items():
            new = _read(role, data).signed
            lines.append(f"{role} {new.version}, good until {new.expires:%Y-%m-%d}")
            if role in ("root", "targets"):
                lines += self._differences(role)
            if role != "root":
                old = self.authority.targets if role == "targets" else self.current.get(role)
                lines += _target_lines(old, data)
            if role == APPROVED:
                found = statements_in(data, self.targets)
                lines += [f"    {path}: {statement}" for path, statement in found.items()]
        return tuple(lines)

    def _differences(self, judge: str) -> list[str]:
        """Return how the roles change that root or targets speaks of, those that come or go too."""
        before = {role.name: role for role in self.authority.roles()}
        after = {role.name: role for role in self.after.roles()}
        names = [name for name in before | after if (name in TOP) is (judge == "root")]
        none = {name: RoleView(name, 0, ()) for name in names}
        pairs = [((none | before)[name], (none | after)[name]) for name in names]
        return [line for old, new in pairs for line in _differences(old, new)]

    def signed_by(self, signers: Sequence[Signer]) -> tuple[Self, tuple[tuple[str, str], ...]]:
        """Return the bundle with every signature that these signers owe, and (role, key) of each.

        A key signs for the roles that it has and for no other, and not twice. The first keys that
        sign for `models/approved` sign the statements that lie beside its releases, too.

        Raises:
            FormatError: A part cannot be read.
            RefusedError: A statement is not what is proposed, or of another release.
            SigningError: A proposal does not fit what is in force, or a signer cannot sign.
        """
        proposals, targets, made = dict(self.proposals), dict(self.targets), []
        due = _due(self.owed(), signers)
        if approvers := [signer for role, signer in due if role == APPROVED]:
            proposals[APPROVED], targets = sign_statements(proposals[APPROVED], targets, approvers)
        for role, signer in due:
            metadata = _read(role, proposals[role])
            try:
                metadata.sign(signer, append=True)
            except RepositoryError as error:
                raise _cannot_sign(role, signer, error) from error
            proposals[role] = metadata.to_bytes()
            made.append((role, signer.public_key.keyid))
        return replace(self, proposals=proposals, targets=targets), tuple(made)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "root": self.authority.root.decode(),
                "targets": self.authority.targets.decode(),
                "proposals": {role: data.decode() for role, data in self.proposals.items()},
                "contents": {path: data.decode() for path, data in self.targets.items()},
                "current": {role: data.decode() for role, data in self.current.items()},
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a bundle from outside; whether its proposals fit is what `owed` says.

        Raises:
            FormatError: Not a bundle, or a part of it is not what it should be.
        """
        document = canonical.from_bytes(data, kind=KIND, limit=MAX_BUNDLE)
        names = {"kind", "format", "root", "targets", "proposals", "contents", "current"}
        if set(document) != names:
            raise FormatError(f"signing bundle: expected {sorted(names)}, found {sorted(document)}")
        proposals = _object(document["proposals"])
        for role in proposals:
            if role not in PROPOSED:
                raise FormatError(f"signing bundle: a proposal for {role!r}")
        bundle = cls(
            Authority(_text(document["root"]), _text(document["targets"])),
            {role: _text(proposals[role]) for role in PROPOSED if role in proposals},
            {path: _text(text) for path, text in _object(document["contents"]).items()},
            {role: _text(text) for role, text in _object(document["current"]).items()},
        )
        read_root(bundle.authority.root)
        read_targets(bundle.authority.targets)
        for role, metadata in bundle.proposals.items():
            _read(role, metadata)
        for metadata in bundle.current.values():
            read_targets(metadata)
        return bundle


def propose(
    authority: Authority,
    current: Mapping[str, bytes],
    change: Change,
    now: datetime,
    lifetimes: Lifetimes | None = None,
) -> Bundle:
    """Return the bundle that a change of keys takes, with nothing signed.

    Metadata of the role that its own keys would no longer vouch for is part of it: else devices
    would refuse the whole role from then on.

    Args:
        authority: What holds now.
        current: Metadata of every delegated role, by role.
        change: What shall be different.
        now: From when the new metadata is good.
        lifetimes: For how long it is.

    Raises:
        FormatError: Metadata cannot be read.
        SigningError: See `ceremony.change_keys`.
    """
    good = lifetimes or Lifetimes()
    changed = "root" if change.role in TOP else "targets"
    _, data = change_keys(
        authority, change, expires=now + (good.root if changed == "root" else good.targets)
    )
    proposals = {changed: data}
    metadata = {**current, "targets": authority.targets}.get(change.role)
    if metadata is not None:  # root judges itself; snapshot and timestamp are signed all the time
        [judged] = owed(authority, {**proposals, change.role: metadata})[-1:]
        if judged.missing:
            lifetime = good.rollout if change.role == ROLLOUT else good.models
            proposals[change.role] = next_unsigned(read_targets(metadata), now + lifetime)
    return Bundle(authority, proposals, current={r: current[r] for r in proposals if r in current})


def _differences(old: RoleView, new: RoleView) -> list[str]:
    lines = [f"  {old.name}: + key {key[:12]}" for key in new.keys if key not in old.keys]
    lines += [f"  {old.name}: - key {key[:12]}" for key in old.keys if key not in new.keys]
    if old.threshold != new.threshold:
        lines.append(f"  {old.name}: threshold {old.threshold} -> {new.threshold}")
    return lines


def _target_lines(old: bytes | None, new: bytes) -> list[str]:
    was = read_targets(old).signed.targets if old else {}
    now = read_targets(new).signed.targets
    lines = [
        f"  {'~' if path in was else '+'} {path} {one.hashes.get('sha256', '')[:12]}"
        for path, one in now.items()
        if was.get(path) != one
    ]
    return lines + [f"  - {path}" for path in was if path not in now]


def _due(owing: Sequence[Owed], signers: Sequence[Signer]) -> list[tuple[str, Signer]]:
    """Return who is to sign for what, each pair once: a root is owed to two judges."""
    pairs = {
        (one.role, signer.public_key.keyid): (one.role, signer)
        for one in owing
        for signer in signers
        if signer.public_key.keyid in one.unsigned
    }
    return list(pairs.values())


def _cannot_sign(role: str, signer: Signer, error: RepositoryError) -> SigningError:
    """Return what a person can act on: the signer's own error, which python-tuf has wrapped."""
    cause = error.__cause__
    if isinstance(cause, SigningError):
        return cause
    why = str(cause) or type(cause).__name__
    return SigningError(
        f"key {signer.public_key.keyid[:12]} cannot sign {role}: {why}",
        hint="Is the token plugged in, and the PIN right?",
    )


def _read(role: str, metadata: bytes) -> Metadata[Any]:
    return read_root(metadata) if role == "root" else read_targets(metadata)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"signing bundle: expected an object, found {type(value).__name__}")
    return value


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise FormatError(f"signing bundle: expected a text, found {type(value).__name__}")
    return value.encode()
