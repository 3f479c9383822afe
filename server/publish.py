"""The publisher: the one who writes the TUF repository, with the online keys and no others.

It holds the keys of `snapshot`, `timestamp` and `rollout`. With them it can order devices to
install, pause or go back, within what is signed; it cannot make a release. Models come from the
release signer (`models/auto`) or from people with offline keys (`models/approved`), and whatever
comes is verified as a device would before anything points at it.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from wildflower.ota import canonical
from wildflower.ota.errors import OtaError, RefusedError
from wildflower.ota.release import signing
from wildflower.ota.release.keys import APPROVED, AUTO, ROLLOUT, RoleKeys, key_files, load_keys
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.repository import Changes, Lifetimes, Repository
from wildflower.ota.rollout.document import RolloutDocument, document_path
from wildflower.server.errors import ConflictError, NotFoundError, SignerError
from wildflower.server.signature_request import SignRequest
from wildflower.server.signer import ask

log = logging.getLogger(__name__)

ONLINE: Final = (ROLLOUT, "snapshot", "timestamp")
"""Roles whose keys lie on the server."""


class Publisher:
    """Writes `<directory>/tuf`. One per server; safe to use from several threads.

    Args:
        directory: The server's directory, with `keys`, `tuf` and `blobs`.
        signer_socket: Where the release signer listens.
        now: The time, UTC.
        lifetimes: For how long what is signed here is good.

    Raises:
        SigningError: An online key is missing or others may read it.
    """

    def __init__(
        self,
        directory: Path,
        signer_socket: Path,
        now: Callable[[], datetime],
        lifetimes: Lifetimes | None = None,
    ) -> None:
        files = key_files(directory / "keys", Path())
        self._keys = {role: RoleKeys(load_keys(files[role])) for role in ONLINE}
        self._repository = Repository(directory / "tuf")
        self._blobs = directory / "blobs"
        self._signer_socket = signer_socket
        self._now = now
        self._lifetimes = lifetimes or Lifetimes()
        self._lock = threading.Lock()

    @property
    def root(self) -> bytes:
        """The TUF root that devices pin."""
        return self._repository.root

    def current(self, role: str) -> bytes:
        """Return a role's metadata as it is published now.

        Raises:
            NotFoundError: There is no such role.
        """
        try:
            return self._repository.current(role)
        except OtaError as error:
            raise NotFoundError(str(error), hint=error.hint) from error

    def next_order(self, role: str, target_group: str) -> int:
        """Return the lowest order that a release of the group can still be given.

        It lies above the orders of both models roles: a group is one line, whoever signs.

        Args:
            role: "auto" or "approved"; unknown roles are an error, not an order.
            target_group: The release's target group.

        Raises:
            NotFoundError: There is no such role.
        """
        self.current(f"models/{role}")
        return max(
            signing.next_order(self.current(name), target_group) for name in (AUTO, APPROVED)
        )

    def release(self, manifest: Release, *, gate_report: bytes, round_record: bytes) -> str:
        """Let the release signer sign a release, and publish it.

        Args:
            manifest: The release.
            gate_report: Canonical bytes of the gates' report on its artifact.
            round_record: Canonical bytes of the record of the round that made its model.

        Returns:
            The target path of the manifest.

        Raises:
            SignerError: The signer refused or does not answer.
            RefusedError: What it signed does not verify.
        """
        data = manifest.to_bytes()
        path = target_path("auto", manifest.target_group, manifest.order)
        with self._lock:
            metadata = ask(
                self._signer_socket,
                SignRequest(data, gate_report, round_record),
                self.current(AUTO),
            )
            found = signing.read_targets(metadata).signed.targets.get(path)
            if found is None or found.hashes.get("sha256") != manifest.digest:
                raise SignerError(f"the signer answered with metadata that lacks {path}")
            self._publish(Changes({AUTO: metadata}, {path: data}))
        log.info("published a release", extra={"path": path, "release": manifest.digest})
        return path

    def approved(self, metadata: bytes, manifests: Mapping[str, bytes] | None = None) -> list[str]:
        """Publish `models/approved` as people have signed it.

        Args:
            metadata: The role's new metadata, with all its signatures.
            manifests: Contents of its new targets, by path; what is missing here is looked up by
                digest among the server's blobs.

        Returns:
            The target paths that are new.

        Raises:
            RefusedError: Signatures are missing or wrong, a manifest is missing, or its path is
                not its own.
            ConflictError: It was made from metadata that is no longer the current one.
            FormatError: It cannot be parsed.
        """
        with self._lock:
            signing.check_delegated(self.current("targets"), APPROVED, metadata)
            self._check_successor(metadata)
            known = signing.read_targets(self.current(APPROVED)).signed.targets
            new = {
                path: self._manifest(path, target.hashes.get("sha256", ""), manifests or {})
                for path, target in signing.read_targets(metadata).signed.targets.items()
                if path not in known
            }
            self._publish(Changes({APPROVED: metadata}, new))
        log.info("published approved releases", extra={"paths": ",".join(new)})
        return list(new)

    def rollout(self, *documents: RolloutDocument) -> None:
        """Publish rollout documents, together.

        Raises:
            RefusedError: A document orders a release that nobody has signed for its target group.
        """
        with self._lock:
            metadata = self.current(ROLLOUT)
            targets = {document_path(one.target_group): one.to_bytes() for one in documents}
            for document in documents:
                self._check_release(document)
            for path, data in targets.items():
                metadata = signing.put_target(
                    metadata,
                    path,
                    data,
                    self._keys[ROLLOUT].signers,
                    expires=self._now() + self._lifetimes.rollout,
                )
            self._publish(Changes({ROLLOUT: metadata}, targets))
        for document in documents:
            log.info(
                "published a rollout document",
                extra={
                    "rollout": document.rollout,
                    "target_group": document.target_group,
                    "order": document.order.value,
                    "permille": document.permille,
                },
            )

    def refresh(self) -> None:
        """Sign a new timestamp; renew snapshot and rollout where half of their life is over.

        Raises:
            RefusedError: A client would refuse it, because an offline role has expired.
        """
        with self._lock:
            if self._is_old(ROLLOUT, self._lifetimes.rollout / 2):
                renewed = signing.renew(
                    self.current(ROLLOUT),
                    self._keys[ROLLOUT].signers,
                    expires=self._now() + self._lifetimes.rollout,
                )
                self._publish(Changes({ROLLOUT: renewed}))
            elif self._is_old("snapshot", self._lifetimes.snapshot / 2):
                self._publish(Changes())
            else:
                self._repository.renew_timestamp(
                    self._keys["timestamp"], self._now(), self._lifetimes
                )

    def _publish(self, changes: Changes) -> None:
        self._repository.publish(changes, self._keys, self._now(), self._lifetimes)

    def _is_old(self, role: str, rest: timedelta) -> bool:
        return signing.expiry(self.current(role)) - self._now() < rest

    def _check_successor(self, metadata: bytes) -> None:
        """Refuse what would lose a release that was published after the signers took their copy."""
        current = signing.read_targets(self.current(APPROVED)).signed
        offered = signing.read_targets(metadata).signed
        if offered.version <= current.version or any(
            offered.targets.get(path) != target for path, target in current.targets.items()
        ):
            raise ConflictError(
                f"{APPROVED} version {offered.version} does not continue version {current.version}",
                hint="Fetch the current metadata and sign the release again.",
            )

    def _manifest(self, path: str, digest: str, manifests: Mapping[str, bytes]) -> bytes:
        data = manifests.get(path)
        if data is None:
            try:
                data = (self._blobs / digest[:2] / digest).read_bytes()
            except OSError as error:
                raise RefusedError(
                    f"{path}: its manifest {digest} is not here",
                    hint="Send the manifest along with the metadata.",
                ) from error
        if canonical.digest(data) != digest:
            raise RefusedError(f"{path}: found manifest {canonical.digest(data)}, signed {digest}")
        release = Release.from_bytes(data)
        own = target_path("approved", release.target_group, release.order)
        if own != path:
            raise RefusedError(f"{path}: found the release of {own}")
        return data

    def _check_release(self, document: RolloutDocument) -> None:
        """Devices would refuse it anyway; refusing it here tells the operator at once."""
        role = next((r for r in (AUTO, APPROVED) if document.release_path.startswith(f"{r}/")), "")
        if not role:
            raise RefusedError(f"{document.release_path}: no such models role")
        signed = signing.read_targets(self.current(role)).signed.targets.get(document.release_path)
        if signed is None or signed.hashes.get("sha256") != document.release:
            raise RefusedError(
                f"{document.release_path}: nobody has signed release {document.release} there"
            )
        if document.release_path.split("/")[2] != document.target_group:
            raise RefusedError(
                f"{document.release_path}: not a release for {document.target_group}"
            )
