"""A TUF repository in a directory of static files, written so that readers never see half a step.

    metadata/<version>.root.json, <version>.targets.json, <version>.snapshot.json, timestamp.json
    metadata/<version>.models/auto.json     a role's slash is a real directory: clients ask for
                                            `1.models%2Fauto.json`, static servers decode that
    targets/<folder>/<sha256>.<name>        consistent snapshots: content is part of the name

Files are added, never changed, except for `timestamp.json`, which is written last: until then
nothing points at what is new, after it everything is there (TUF specification 1.0.34, section 6.2).
A crash in between leaves files that nobody reads and the next publication overwrites.

Before the timestamp is written, a client's whole verification runs over what would be there. What
does not verify is not published, whoever asks for it.
"""

import fcntl
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tuf.api.metadata import TargetFile

from wildflower.ota import canonical
from wildflower.ota.errors import FetchError, RefusedError, SigningError
from wildflower.ota.release import signing
from wildflower.ota.release.ceremony import read_root
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.keys import DELEGATED, RoleKeys
from wildflower.ota.release.trust import METADATA, TARGETS, NotThereError, TrustedView

TARGET_ROLES: Final = ("targets", *DELEGATED)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """For how long each kind of metadata is good once it is signed.

    The online ones are short, because a server that is cut off or captured can withhold news for
    at most that long; the offline ones are long, because people sign them.
    """

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)
    models: timedelta = timedelta(days=365)
    rollout: timedelta = timedelta(days=30)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Changes:
    """What one publication adds.

    Attributes:
        roles: New metadata of targets roles, by role name.
        targets: Contents of new targets, by target path.
        root: The next root; b"" for none. Online keys that are new in it sign at once.
    """

    roles: Mapping[str, bytes] = field(default_factory=dict)
    targets: Mapping[str, bytes] = field(default_factory=dict)
    root: bytes = b""


class Repository:
    """The files of one repository. One writer at a time.

    Args:
        directory: Holds `metadata` and `targets`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(
        self, keys: Mapping[str, RoleKeys], now: datetime, lifetimes: Lifetimes | None = None
    ) -> bytes:
        """Write a new repository without any target; return the root that devices pin.

        Args:
            keys: Signers of every role in `keys.ROLES`.
            now: When it is made.
            lifetimes: For how long the first metadata is good.

        Raises:
            SigningError: There is a repository already.
        """
        if (self._directory / METADATA_DIR / "timestamp.json").exists():
            raise SigningError(f"{self._directory} holds a repository already")
        good = lifetimes or Lifetimes()
        root = signing.first_root(keys, expires=now + good.root)
        files = {
            "1.root.json": root,
            "1.targets.json": signing.first_targets(keys, expires=now + good.targets),
        }
        for role in DELEGATED:
            lifetime = good.rollout if role == "rollout" else good.models
            files[f"1.{role}.json"] = signing.first_delegated(keys[role], expires=now + lifetime)
        files["1.snapshot.json"] = signing.first_snapshot(
            keys["snapshot"], TARGET_ROLES, expires=now + good.snapshot
        )
        files["timestamp.json"] = signing.first_timestamp(
            keys["timestamp"], expires=now + good.timestamp
        )
        paths = [_some_path(role) for role in DELEGATED]
        self._verify(root, {f"{METADATA}/{name}": data for name, data in files.items()}, paths, now)
        for name, data in files.items():
            write_durably(self._directory / METADATA_DIR / name, data)
        (self._directory / TARGETS_DIR).mkdir(parents=True, exist_ok=True)
        return root

    @property
    def root(self) -> bytes:
        """The first root, which devices pin."""
        return self._metadata("1.root.json")

    def current(self, role: str) -> bytes:
        """Return a role's metadata as it is published now.

        Args:
            role: One of `keys.ROLES`.

        Raises:
            SigningError: There is no such role, or no repository.
        """
        if role == "timestamp":
            return self._metadata("timestamp.json")
        if role == "root":
            return self._newest_root()
        number = signing.snapshot_version(self._metadata("timestamp.json"))
        snapshot = self._metadata(f"{number}.snapshot.json")
        if role == "snapshot":
            return snapshot
        version = signing.published_versions(snapshot).get(role)
        if version is None:
            raise SigningError(f"no role {role!r}", hint=f"Known: {', '.join(TARGET_ROLES)}")
        return self._metadata(f"{version}.{role}.json")

    def targets(self, role: str) -> Mapping[str, bytes]:
        """Return the contents of all targets that a role signs, by their path.

        Raises:
            SigningError: There is no such role, or a content that is signed is missing.
        """
        signed = signing.read_targets(self.current(role)).signed.targets
        return {path: self._content(path, one) for path, one in signed.items()}

    def target(self, role: str, path: str) -> bytes:
        """Return the content of a role's target as it is published now; b"" if it has none.

        Raises:
            SigningError: There is no such role, or its file has gone.
        """
        named = signing.read_targets(self.current(role)).signed.targets.get(path)
        return self._content(path, named) if named is not None else b""

    def publish(
        self,
        changes: Changes,
        keys: Mapping[str, RoleKeys],
        now: datetime,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        """Verify and write changes, the new snapshot and the new timestamp.

        Args:
            changes: New metadata and targets; empty renews snapshot and timestamp.
            keys: Signers of snapshot and timestamp.
            now: When it happens.
            lifetimes: For how long snapshot and timestamp are good.

        Raises:
            FormatError: Metadata cannot be parsed.
            SigningError: A role would go back to an older version.
            RefusedError: A client would refuse what would be published; nothing points at it.
        """
        with self._alone():
            self._publish(changes, keys, now, lifetimes or Lifetimes())

    def _publish(
        self, changes: Changes, keys: Mapping[str, RoleKeys], now: datetime, good: Lifetimes
    ) -> None:
        versions = {
            role: signing.read_targets(data).signed.version for role, data in changes.roles.items()
        }
        snapshot = signing.next_snapshot(
            self.current("snapshot"),
            versions,
            keys["snapshot"].signers,
            expires=now + good.snapshot,
        )
        number = signing.snapshot_version(self.current("timestamp")) + 1
        timestamp = signing.next_timestamp(
            self.current("timestamp"),
            number,
            keys["timestamp"].signers,
            expires=now + good.timestamp,
        )
        self._write(
            {
                **{
                    f"{TARGETS}/{_hashed(path, canonical.digest(data))}": data
                    for path, data in changes.targets.items()
                },
                **{f"{METADATA}/{versions[r]}.{r}.json": d for r, d in changes.roles.items()},
                f"{METADATA}/{number}.snapshot.json": snapshot,
                **self._root_file(changes.root),
                f"{METADATA}/timestamp.json": timestamp,
            },
            (*changes.targets, *(_some_path(role) for role in _touched(changes))),
            now,
        )

    def _content(self, path: str, signed: TargetFile) -> bytes:
        file = self._directory / TARGETS_DIR / _hashed(path, signed.hashes["sha256"])
        try:
            return file.read_bytes()
        except OSError as error:
            raise SigningError(f"target {path} cannot be read: {error.strerror}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process writes; an operator's command and the server may both."""
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        with self._directory.with_name(f".{self._directory.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _root_file(self, root: bytes) -> Mapping[str, bytes]:
        """Return the next root's file; it comes right before the timestamp.

        Clients ask for it by its number, so that it is the one file that is seen before the
        timestamp is there: between the two, online keys that it replaced have signed what is
        served, and clients wait.

        Raises:
            SigningError: There is another root of this version: some devices have it.
        """
        if not root:
            return {}
        name = f"{read_root(root).signed.version}.root.json"
        path = self._directory / METADATA_DIR / name
        if path.exists() and path.read_bytes() != root:
            raise SigningError(
                f"{name} is published already, and is another",
                hint="Make the change again from the root that is published now.",
            )
        return {f"{METADATA}/{name}": root}

    def _write(self, files: Mapping[str, bytes], targets: Iterable[str], now: datetime) -> None:
        """Verify, then write in the order given: what points at a file comes after it."""
        self._verify(self.root, files, targets, now)
        for name, data in files.items():
            write_durably(self._directory / name.removeprefix("tuf/"), data)

    def _verify(
        self, root: bytes, files: Mapping[str, bytes], targets: Iterable[str], now: datetime
    ) -> None:
        """Do as a client would that sees `files` on top of what is on disk."""
        with tempfile.TemporaryDirectory(prefix="wildflower-verify-") as cache:
            view = TrustedView(Path(cache), root, _Overlay(self._directory, files), now)
            try:
                view.refresh()
                unsigned = [p for p in targets if view.target(p) is None and not _is_probe(p)]
            except FetchError as error:
                raise RefusedError(f"a client would not find what is signed: {error}") from error
        if unsigned:
            raise RefusedError(f"{unsigned[0]}: nobody who may has signed such a target")

    def _newest_root(self) -> bytes:
        version = 1
        while (self._directory / METADATA_DIR / f"{version + 1}.root.json").exists():
            version += 1
        return self._metadata(f"{version}.root.json")

    def _metadata(self, name: str) -> bytes:
        path = self._directory / METADATA_DIR / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise SigningError(
                f"no TUF metadata at {path}", hint="`wildflower server init` makes the repository."
            ) from error


METADATA_DIR: Final = METADATA.removeprefix("tuf/")
TARGETS_DIR: Final = TARGETS.removeprefix("tuf/")
"""Below the repository's own directory, which servers show as `/tuf`."""


class _Overlay:
    """The repository as it would be: new files over those on disk."""

    def __init__(self, directory: Path, files: Mapping[str, bytes]) -> None:
        self._directory = directory
        self._files = files

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's content."""
        name = unquote(path)
        if name in self._files:
            yield self._files[name]
            return
        try:
            yield (self._directory / name.removeprefix("tuf/")).read_bytes()
        except OSError as error:
            raise NotThereError(f"{name}: {error.strerror}") from error


def _touched(changes: Changes) -> Iterable[str]:
    """Return the delegated roles whose metadata a client must still accept afterwards."""
    if "targets" not in changes.roles:
        return [role for role in changes.roles if role in signing.PATHS]
    delegations = signing.read_targets(changes.roles["targets"]).signed.delegations
    named = delegations.roles or {} if delegations else {}
    return [role for role in signing.PATHS if role in named]  # their keys may have changed


def _some_path(role: str) -> str:
    """Return a path that nobody signs but this role may: asking for it verifies the role."""
    return signing.PATHS[role].replace("*", "-")


def _is_probe(path: str) -> bool:
    return path in {_some_path(role) for role in signing.PATHS}


def _hashed(path: str, digest: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{digest}.{name}"
