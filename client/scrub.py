"""Reads what is installed and compares it with what was signed: disks forget.

A slot is named by the digest of its manifest, and the manifest names its files by theirs, so a slot
vouches for itself and needs nothing from the network to be examined.

It happens at times, and when an application has found a slot that it will not load (`doubt`).

What runs and is damaged gives way to the release before it at once; the rollout then offers it
again, and it is installed as any other. The release to go back to is mended in its place, file by
file, from wherever its digests can be had: no rollout speaks of it any more. That costs bytes, so
it waits for the same conditions as an update and has the same budget, a day.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from wildflower.client.fetcher import Releases
from wildflower.client.spending import counted
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Phase
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import FetchError, PostponedError, RefusedError
from wildflower.ota.release.budget import ByteBudget
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
        journal: The device's memory, of what mending has cost among others.
        releases: Where files may be had again.
        downloads: Where they lie until they are whole.
        now: Its clock.
        should_stop: Whether the agent is told to end.
        why_wait: Tells why a whole model file, or anything else, is not fetched now; "" if it may.
    """

    slots: Slots
    journal: Journal
    releases: Releases
    downloads: Path
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]
    why_wait: Callable[[bool], str] = lambda _: ""

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
        about = f"{before[:16]}/{self.now():%F}"
        lengths = sum(entry.length for entry in manifest.files)
        try:
            with counted(self.journal, "mending", about, lengths) as budget:
                mended = [self._mend(manifest, entry, budget) for entry in manifest.files]
        except (FetchError, RefusedError, PostponedError) as error:
            return (
                f"the release to go back to is damaged and cannot be had again now: {error}; "
                "what runs goes on, and it is tried again"
            )
        names = ", ".join(filter(None, mended))
        return f"the release to go back to was damaged; fetched again: {names}"

    def _mend(self, release: Release, entry: FileEntry, budget: ByteBudget) -> str:
        """Fetch one file again unless it is whole; return its name if it was not."""
        if self.slots.holds(release, entry):
            return ""
        is_model = entry.role == "model"
        if why := self.why_wait(is_model):
            raise PostponedError(why)
        make_directory(self.downloads)
        fresh = self.downloads / entry.digest
        self.releases.fetch(
            entry,
            fresh,
            should_stop=lambda: self.should_stop() or bool(self.why_wait(is_model)),
            budget=budget,
        )
        self.slots.mend(release, entry, fresh)
        fresh.unlink(missing_ok=True)
        log.warning("mended", extra={"release": release.digest[:12], "file": entry.name})
        return entry.name
