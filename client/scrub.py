"""Reads what is installed and compares it with what was signed: disks forget.

A slot is named by the digest of its manifest, and the manifest names its files by theirs, so a slot
vouches for itself and needs nothing from the network to be examined.

What runs and is damaged gives way to the release before it at once; the rollout then offers it
again, and it is installed as any other. The release to go back to is mended in its place, file by
file, from wherever its digests can be had: no rollout speaks of it any more.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.client.fetcher import Releases
from wildflower.ota.device.machine import Phase
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, RefusedError
from wildflower.ota.release.files import make_directory
from wildflower.ota.release.manifest import FileEntry, Release

log = logging.getLogger(__name__)

SETTLED: Final = frozenset(
    {
        Phase.IDLE,
        Phase.CHECKED,
        Phase.FETCHING,
        Phase.FETCHED,
        Phase.VERIFIED,
        Phase.STAGED,
        Phase.PAUSED,
    }
)
"""Where no update is about to move a pointer itself."""


@dataclass(frozen=True, slots=True)
class Scrub:
    """Examines and mends one device's slots.

    Attributes:
        slots: The slots.
        releases: Where files may be had again.
        downloads: Where they lie until they are whole.
        should_stop: Whether the agent is told to end.
    """

    slots: Slots
    releases: Releases
    downloads: Path
    should_stop: Callable[[], bool]

    def running_damage(self) -> str:
        """Return the digest of the running release if it is not what was signed; else ""."""
        running = self.slots.running()
        return "" if not running or self.is_whole(running) else running

    def is_whole(self, digest: str) -> bool:
        """Whether a slot holds what was signed, every byte of it."""
        manifest = self.slots.manifest(digest)
        return manifest is not None and self.slots.is_complete(manifest)

    def step_back(self, damaged: str) -> bool:
        """Let the release before a damaged one run; return whether there is one that can.

        Raises:
            StorageError: The pointer cannot be moved.
        """
        before = self.slots.before()
        return bool(before) and self.is_whole(before) and self.slots.go_back(damaged) == before

    def mend_previous(self) -> str:
        """Fetch again what is damaged of the release to go back to.

        Returns:
            What was wrong and what came of it, in a sentence; "" if nothing was wrong.

        Raises:
            StorageError: The disk is full, read-only or broken.
        """
        before = self.slots.before()
        manifest = self.slots.manifest(before)
        if not before or (manifest is not None and self.slots.is_complete(manifest)):
            return ""
        if manifest is None:
            return "the release to go back to is damaged, and so is its manifest: it is lost"
        try:
            mended = [self._mend(manifest, entry) for entry in manifest.files]
        except (FetchError, RefusedError) as error:
            return f"the release to go back to is damaged and cannot be had again now: {error}"
        names = ", ".join(filter(None, mended))
        return f"the release to go back to was damaged; fetched again: {names}"

    def _mend(self, release: Release, entry: FileEntry) -> str:
        """Fetch one file again unless it is whole; return its name if it was not."""
        if self.slots.holds(release, entry):
            return ""
        make_directory(self.downloads)
        fresh = self.downloads / entry.digest
        self.releases.fetch(entry, fresh, should_stop=self.should_stop, budget=None)
        self.slots.mend(release, entry, fresh)
        fresh.unlink(missing_ok=True)
        log.warning("mended", extra={"release": release.digest[:12], "file": entry.name})
        return entry.name
