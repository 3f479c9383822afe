"""Changes of keys at a server's directory: what is in force, what is proposed, what is published.

The offline half of a change happens on other machines (`ota.release.bundle`); here it begins and
ends. Publishing signs with the keys that lie in this directory, checks that nothing is missing, has
the repository verify everything as a device would, and then puts new online keys in their places.
Each step may be repeated after a crash.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from wildflower.ota.errors import SigningError
from wildflower.ota.release import signing
from wildflower.ota.release.audit import FILE as TRAIL
from wildflower.ota.release.audit import AuditedSigner, Trail
from wildflower.ota.release.bundle import Bundle, propose
from wildflower.ota.release.ceremony import TOP, Authority, Change, RoleView
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.keyring import find_signers
from wildflower.ota.release.keys import AUTO, RoleKeys, load_key
from wildflower.ota.release.repository import Changes, Repository

ONLINE: Final = ("snapshot", "timestamp", "rollout")
"""Roles whose key the publisher reads from `keys/<role>.pem`."""


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A server's directory, as far as keys go.

    Attributes:
        directory: Holds `tuf`, `keys` and `signer`.
        now: The clock, UTC.
    """

    directory: Path
    now: Callable[[], datetime]

    @property
    def repository(self) -> Repository:
        """What is published."""
        return Repository(self.directory / "tuf")

    def authority(self) -> Authority:
        """Return root and targets as they are published.

        Raises:
            SigningError: There is no repository.
        """
        return Authority(self.repository.current("root"), self.repository.current("targets"))

    def propose(self, change: Change) -> Bundle:
        """Return the bundle that a change takes.

        Raises:
            SigningError: There is no repository, or the change cannot be.
        """
        authority = self.authority()
        delegated = [role.name for role in authority.roles() if role.name not in TOP]
        current = {role: self.repository.current(role) for role in delegated}
        return propose(authority, current, change, self.now())

    def publish(self, bundle: Bundle) -> Bundle:
        """Sign what this server's keys owe, publish everything, put new online keys in place.

        Returns:
            The bundle as it was published.

        Raises:
            FormatError: Metadata cannot be read.
            SigningError: Signatures are missing, the bundle was made from what holds no longer, or
                this server lacks an online key that the new root demands.
            RefusedError: A device would refuse it.
        """
        changes = Changes()  # what is published already is renewed, which completes half a step
        if not self._is_published(bundle):
            self._check_current(bundle)
            bundle, _ = bundle.signed_by(self._signers(bundle.wanted()))
            _check_complete(bundle)
            roles = {role: data for role, data in bundle.proposals.items() if role != "root"}
            changes = Changes(roles, bundle.targets, bundle.proposals.get("root", b""))
        keys = self._online_keys(bundle.after)
        self.repository.publish(changes, keys, self.now())
        self._install()
        return bundle

    def _is_published(self, bundle: Bundle) -> bool:
        published = signing.published_versions(self.repository.current("snapshot"))
        return all(
            (role in TOP or role in published) and self.repository.current(role) == data
            for role, data in bundle.proposals.items()
        )

    def _check_current(self, bundle: Bundle) -> None:
        now = self.authority()
        half_done = now.root == bundle.proposals.get("root")  # a crash before the timestamp
        if now.targets != bundle.authority.targets or not (
            half_done or now.root == bundle.authority.root
        ):
            raise SigningError(
                "the bundle was made from a root or targets that hold no longer",
                hint="Make it again: wildflower keys rotate, or revoke.",
            )

    def _signers(self, wanted: Collection[str]) -> list[Signer]:
        """Return this server's signers for some keys; none of them has a passphrase."""
        places = [path for path in (self._keys, self.directory / "signer") if path.is_dir()]
        return [
            AuditedSigner(signer, Trail(place / TRAIL), self.now)
            for place in places
            for signer in find_signers(place, wanted, lambda _: "")
        ]

    @property
    def _keys(self) -> Path:
        return self.directory / "keys"

    def _online_keys(self, authority: Authority) -> dict[str, RoleKeys]:
        roles = {role.name: role for role in authority.roles()}
        return {role: self._role_keys(roles[role]) for role in ("snapshot", "timestamp")}

    def _role_keys(self, role: RoleView) -> RoleKeys:
        signers = self._signers(role.keys)
        if len(signers) < role.threshold:
            raise SigningError(
                f"{self._keys} holds {len(signers)} of the {role.threshold} keys for {role.name}",
                hint="Put the new key's .pem file there, without a passphrase.",
            )
        return RoleKeys(tuple(signers), role.threshold)

    def _install(self) -> None:
        """Let the file that a process of this server signs with hold a key of its role."""
        roles = {role.name: role for role in self.authority().roles()}
        places = {role: self._keys / f"{role}.pem" for role in ONLINE}
        places[AUTO] = self.directory / "signer" / "key.pem"
        for role, place in places.items():
            if os.access(place.parent, os.R_OK | os.X_OK):  # the signer's may be another user's
                _put_in_place(place, roles[role].keys)


def _put_in_place(place: Path, wanted: Collection[str]) -> None:
    if place.is_file() and _key_id(place) in wanted:
        return
    for path in sorted(place.parent.glob("*.pem")):
        if _key_id(path) in wanted:
            write_durably(place, path.read_bytes(), mode=0o600)
            return


def _key_id(path: Path) -> str:
    """Return a key file's id; "" for one that cannot be used without a passphrase."""
    try:
        return load_key(path).public_key.keyid
    except SigningError:
        return ""


def _check_complete(bundle: Bundle) -> None:
    lacking = [
        f"{one.role} needs {one.missing} more of {', '.join(key[:12] for key in one.unsigned)} "
        f"({one.judge})"
        for one in bundle.missing()
    ]
    if lacking:
        raise SigningError(
            "signatures are missing: " + "; ".join(lacking),
            hint="Let their holders sign the bundle: wildflower sign --bundle FILE --keys DIR",
        )
