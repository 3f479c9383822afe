"""The only place that knows private names of python-tuf; its contract test fails when they move.

Two things python-tuf's client does not offer are added here:

* Durability: stock code never syncs and removes `root.json` before it makes it anew, so that a
  power cut can leave a device without any metadata. `_persist_file` and `_update_root_symlink`
  are replaced.
* Time: the moment against which expiry is checked comes from the caller.

A root of trust is always handed in; what lies in the cache directory is never the anchor.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from wildflower.ota.release.files import make_directory, sync_directory, write_durably

PRIVATE_NAMES: Final = ("_dir", "_persist_file", "_trusted_set", "_update_root_symlink")
"""What is used of `Updater` beside its public names."""


class DurableUpdater(Updater):
    """A TUF client whose cache survives power cuts and whose clock is the caller's.

    Args:
        cache: Directory of its metadata; made if missing. One process at a time.
        metadata_url: Base URL of the metadata.
        targets_url: Base URL of the targets.
        fetcher: How bytes are fetched.
        root: The pinned root metadata.
        now: The moment against which expiry is checked.

    Raises:
        OSError: The cache cannot be written.
        tuf.api.exceptions.RepositoryError: `root` is no valid root metadata.
    """

    def __init__(
        self,
        cache: Path,
        *,
        metadata_url: str,
        targets_url: str,
        fetcher: FetcherInterface,
        root: bytes,
        now: datetime,
    ) -> None:
        make_directory(cache)
        super().__init__(
            str(cache),
            metadata_url,
            target_base_url=targets_url,
            fetcher=fetcher,
            config=UpdaterConfig(),
            bootstrap=root,
        )
        self._trusted_set.reference_time = now

    def place_of(self, target: TargetFile) -> str:
        """Return where a target's content lies below the base URL of the targets.

        In consistent snapshots a digest is part of the name (TUF specification, 5.7.3); any that is
        signed will do.
        """
        if not self._trusted_set.root.consistent_snapshot:
            return target.path
        folder, slash, name = target.path.rpartition("/")
        return f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.is_symlink() and path.is_file() and path.read_bytes() == data:
            return  # every start persists the pinned root anew; flash wears out
        write_durably(path, data)

    def _update_root_symlink(self) -> None:
        link = Path(self._dir, "root.json")
        current = Path("root_history", f"{self._trusted_set.root.version}.root.json")
        if link.is_symlink() and link.readlink() == current:
            return
        beside = link.with_name(".root.json.new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(current)
        os.replace(beside, link)  # noqa: PTH105  Path.replace reads as if the link were followed
        sync_directory(link.parent)
