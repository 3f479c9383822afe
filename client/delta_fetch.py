"""Makes a release's model file out of the one that runs and a delta: fewer bytes, the same file.

A part of fetching and not a phase of its own. What it makes lies where the whole file would lie, by
the same digest, and is examined by the same eyes; where it cannot, it leaves the place empty and
the whole file is fetched. So it may be cut off anywhere and done again.

| what happens | what follows |
|---|---|
| what runs is another file than the deltas start from, or damaged | the whole file |
| no source has the delta now | the whole file; the delta again, if there is no network at all |
| a source serves something else | told as any refusal; the whole file |
| it does not give what was signed: wrong, hostile, a bomb | told once, given up; the whole file |
| the process ends while the delta is applied, again and again | given up; the whole file |
| the whole file would then cost more than an update may | the attempt fails; the next is whole |

A delta that was given up is not tried again for that release.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from wildflower.ota.delta import plan
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import (
    BudgetError,
    DeltaError,
    FetchError,
    RefusedError,
    StoppedError,
    StorageError,
)
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.manifest import Delta, FileEntry, Release

log = logging.getLogger(__name__)

FACT: Final = "delta-tries"
TRIES: Final = 3
"""Times that applying a delta may begin: a process that dies of one three times is not cut off by
chance."""


class Files(Protocol):
    """The part of `client.fetcher.Releases` that is needed here."""

    def fetch(
        self,
        entry: FileEntry,
        destination: Path,
        *,
        should_stop: Callable[[], bool],
        budget: ByteBudget | None,
    ) -> None:
        """Fetch a file by its digest; go on where an earlier try stopped."""
        ...


@dataclass(frozen=True, slots=True)
class DeltaFetch:
    """The shorter way to a release's model file.

    Attributes:
        journal: The device's memory.
        slots: Its slots.
        files: Its way to files.
        downloads: Where they lie by digest until they are staged; a directory that is there.
        now: Its clock.
        should_stop: Whether the agent is told to end.
    """

    journal: Journal
    slots: Slots
    files: Files
    downloads: Path
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]

    def run(self, release: Release, budget: ByteBudget) -> None:
        """Put the release's model file into downloads, or leave it to be fetched whole.

        Raises:
            FetchError: StoppedError if `should_stop` said so, BudgetError if the update has cost
                too much, or would by fetching the whole file now.
            StorageError: The disk is full, read-only or broken.
        """
        if not release.deltas or (self.downloads / release.artifact.digest).exists():
            return
        running = self.slots.manifest(self.slots.running())
        if running is None:
            return
        delta = self._chosen(release, running.artifact.digest)
        if delta is None or not self._is_ready(release, delta, running):
            return
        try:
            self._make(release, delta, running, budget)
        except (StoppedError, BudgetError):
            raise
        except FetchError as error:
            log.info("no delta now: %s", error)
        except RefusedError as error:  # which the sources' refusals tell already
            log.warning("the delta is given up: %s", error)
            self._give_up(release, delta)
        except DeltaError as error:
            log.warning("the delta is given up: %s", error)
            self._give_up(release, delta)
            self._tell(release, delta, running, str(error))
        else:
            return
        self._require_budget(release, budget)

    def _chosen(self, release: Release, has: str) -> Delta | None:
        """Return the delta that leaves the least to fetch; None if that is the whole file."""
        offers = [
            plan.Offer(one.base, one.digest, self._missing(one.digest, one.length))
            for one in release.deltas
        ]
        chosen = plan.choose([self._whole(release), *offers], has=has, failed=self._failed(release))
        return next((one for one in release.deltas if chosen and one.digest == chosen.digest), None)

    def _whole(self, release: Release) -> plan.Offer:
        artifact = release.artifact
        return plan.Offer("", artifact.digest, self._missing(artifact.digest, artifact.length))

    def _missing(self, digest: str, length: int) -> int:
        """Return how many bytes of a file are still to come, in [0, length]."""
        for name in (digest, f"{digest}.part"):
            with suppress(OSError):
                return max(0, length - (self.downloads / name).stat().st_size)
        return length

    def _is_ready(self, release: Release, delta: Delta, running: Release) -> bool:
        """Whether what runs is what was signed, and the delta fits on the disk beside all else."""
        if not self.slots.holds(running, running.artifact):
            log.warning("no delta: the running model file is damaged")
            return False
        files = sum(entry.length for entry in release.files)
        try:
            self.slots.require_space(2 * files + self._missing(delta.digest, delta.length))
        except StorageError as error:
            log.info("no delta: %s", error)
            return False
        return True

    def _make(self, release: Release, delta: Delta, running: Release, budget: ByteBudget) -> None:
        from wildflower.ota.device.patching import patch  # an idle agent goes without numpy

        artifact = release.artifact
        entry = FileEntry(artifact.role, f"{artifact.name}.delta", delta.digest, delta.length)
        fetched = self.downloads / delta.digest
        self.files.fetch(entry, fetched, should_stop=self.should_stop, budget=budget)
        self._remember(release, delta.digest)
        base = self.slots.path(running.digest) / running.artifact.name
        patch(base, fetched, self.downloads / artifact.digest, artifact)
        self._drop(delta)
        log.info(
            "model file made from a delta",
            extra={"release": release.digest, "fetched": delta.length, "made": artifact.length},
        )

    def _failed(self, release: Release) -> set[str]:
        return {digest for digest, tries in self._tries(release).items() if tries >= TRIES}

    def _tries(self, release: Release) -> Counter[str]:
        known, *digests = self.journal.fact(FACT).split() or [""]
        return Counter(digests if known == release.digest else [])

    def _remember(self, release: Release, digest: str, times: int = 1) -> None:
        tries = [*self._tries(release).elements(), *[digest] * times]
        self.journal.set_fact(FACT, " ".join([release.digest, *tries]))

    def _give_up(self, release: Release, delta: Delta) -> None:
        self._remember(release, delta.digest, TRIES)
        self._drop(delta)

    def _drop(self, delta: Delta) -> None:
        for name in (delta.digest, f"{delta.digest}.part"):
            with suppress(OSError):  # it goes with the other downloads
                (self.downloads / name).unlink(missing_ok=True)

    def _tell(self, release: Release, delta: Delta, running: Release, reason: str) -> None:
        self.journal.queue(
            f"delta/{release.digest[:16]}/{delta.digest[:16]}",
            Outcome.REFUSED,
            rollout="",
            release=release.digest,
            running=running.artifact.digest,
            reason=f"delta {delta.digest[:12]} of {release.artifact.name}: {reason}",
            at=self.now(),
        )

    def _require_budget(self, release: Release, budget: ByteBudget) -> None:
        whole = self._whole(release)
        if not plan.may_fall_back(whole, spent=budget.spent, budget=budget.limit):
            raise BudgetError(
                f"{budget.spent} bytes have come for this update and the whole file needs "
                f"{whole.size} more, allowed are {budget.limit}",
                hint="The next attempt fetches the whole file at once.",
            )
