"""The publisher: the only writer of the TUF repository, with the online keys.

It holds snapshot, timestamp and rollout keys. It cannot make a release: those come signed, from
the release signer or from offline keys, and the repository verifies everything as a client would
before it writes a byte.
"""

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from wildflower.ota.errors import RefusedError
from wildflower.ota.release import signing
from wildflower.ota.release.audit import FILE as TRAIL
from wildflower.ota.release.audit import Trail, audited
from wildflower.ota.release.keys import APPROVED, AUTO, ROLLOUT, RoleKeys, load_keys
from wildflower.ota.release.manifest import Release, target_path
from wildflower.ota.release.repository import Changes, Lifetimes, Repository
from wildflower.ota.release.statement import open_statement, statement_path
from wildflower.ota.rollout.document import RolloutDocument, document_path
from wildflower.server.signer_wire import SignRequest, ask

ONLINE: Final = ("snapshot", "timestamp", ROLLOUT)


class Publisher:
    """Publishes releases and rollout documents. Safe to use from several threads.

    Args:
        directory: The server's directory, with `tuf` and `keys`.
        signer: The release signer's socket.
        now: The clock, UTC.
    """

    def __init__(self, directory: Path, signer: Path, now: Callable[[], datetime]) -> None:
        self._repository = Repository(directory / "tuf")
        self._signer = signer
        self._now = now
        self._turn = threading.RLock()
        self._keys_at = directory / "keys"
        _ = self._keys  # what cannot be used is told now, not at the first release

    @property
    def _keys(self) -> Mapping[str, RoleKeys]:
        """The online keys, read anew: `wildflower keys publish` may have replaced one."""
        keys = {role: RoleKeys(load_keys([self._keys_at / f"{role}.pem"])) for role in ONLINE}
        return audited(keys, Trail(self._keys_at / TRAIL), self._now)

    def current(self, role: str) -> bytes:
        """Return a role's metadata as it is published.

        Raises:
            SigningError: There is no such role.
        """
        with self._turn:
            return self._repository.current(role)

    def release(self, manifest: Release, *, gate_report: bytes, round_record: bytes) -> str:
        """Have a release signed by the release signer and publish it; return its target path.

        Repeating it with the same manifest changes nothing.

        Raises:
            SignerError: The signer refused, or does not answer.
            RefusedError: A client would refuse what the signer returned.
        """
        path = target_path("auto", manifest.target_group, manifest.order)
        with self._turn:
            if _names(self.current(AUTO), path, manifest):
                return path  # a manifest on the disk alone may be what a crash has left
            request = SignRequest(
                manifest=manifest.to_bytes().decode(),
                gate_report=gate_report.decode(),
                round_record=round_record.decode(),
                metadata=self.current(AUTO).decode(),
            )
            signed = ask(self._signer, request)
            beside = {statement_path(path): signed.provenance} if signed.provenance else {}
            self._add(AUTO, signed.metadata, path, manifest, beside)
        return path

    def approved(self, metadata: bytes, manifest: Release, statement: bytes = b"") -> str:
        """Publish a release that offline keys signed; return its target path.

        Args:
            metadata: The role's, signed.
            manifest: The release.
            statement: The envelope of where it comes from; b"" where nothing is known of it.

        Raises:
            FormatError: The metadata or the statement cannot be parsed.
            RefusedError: It is not signed as the delegation demands, does not name the release, or
                the statement is not of it or signed by none of the role's keys.
        """
        path = target_path("approved", manifest.target_group, manifest.order)
        with self._turn:
            targets = self.current("targets")
            signing.check_delegated(targets, APPROVED, metadata)
            named = signing.read_targets(metadata).signed.targets
            if (statement_path(path) in named) is not bool(statement):
                found = "none was brought" if not statement else "one was brought"
                raise RefusedError(f"the statement of {path}: {found}, the metadata says otherwise")
            if statement:
                opened = open_statement(statement, signing.role_keys(targets, APPROVED))
                opened.check(manifest)
            beside = {statement_path(path): statement} if statement else {}
            self._add(APPROVED, metadata, path, manifest, beside)
        return path

    def statement(self, path: str) -> bytes:
        """Return the envelope beside a published release; b"" if there is none.

        Args:
            path: The target path of its manifest.

        Raises:
            SigningError: There is no such role, or the file has gone.
        """
        role = path.rsplit("/", 2)[0]
        with self._turn:
            return self._repository.target(role, statement_path(path))

    def rollout(self, document: RolloutDocument) -> None:
        """Sign a document with the online key and publish it.

        Raises:
            RefusedError: A client would refuse it.
        """
        path, data = document_path(document.target_group), document.to_bytes()
        with self._turn:
            metadata = signing.put_target(
                self.current(ROLLOUT),
                path,
                data,
                self._keys[ROLLOUT].signers,
                expires=self._now() + Lifetimes().rollout,
            )
            self._publish(Changes({ROLLOUT: metadata}, {path: data}))

    def refresh(self) -> None:
        """Renew what would otherwise expire: rollout metadata, snapshot and timestamp.

        Raises:
            RefusedError: A client would refuse it, because something offline has expired.
        """
        with self._turn:
            renewed = signing.renew(
                self.current(ROLLOUT),
                self._keys[ROLLOUT].signers,
                expires=self._now() + Lifetimes().rollout,
            )
            self._publish(Changes({ROLLOUT: renewed}))

    def renew(self, lifetimes: Lifetimes) -> None:
        """Sign snapshot and timestamp anew, good for as long as somebody needs.

        One step under the repository's own lock: a command may do so beside a running server.

        Raises:
            RefusedError: A client would refuse it, because something offline has expired.
        """
        self._repository.publish(Changes(), self._keys, self._now(), lifetimes)

    def _add(
        self,
        role: str,
        metadata: bytes,
        path: str,
        manifest: Release,
        beside: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        if not _names(metadata, path, manifest):
            raise RefusedError(f"the metadata of {role} does not name {path} as {manifest.digest}")
        self._publish(Changes({role: metadata}, {path: manifest.to_bytes(), **beside}))

    def _publish(self, changes: Changes) -> None:
        self._repository.publish(changes, self._keys, self._now())


def _names(metadata: bytes, path: str, manifest: Release) -> bool:
    named = signing.read_targets(metadata).signed.targets.get(path)
    return named is not None and named.hashes.get("sha256") == manifest.digest
