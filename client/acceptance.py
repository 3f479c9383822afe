"""Asks where a release comes from, where the device's owner demands anything of it.

It decides nothing: `ota.device.acceptance` does. Without demands nothing is fetched; with them one
small file for each new release. What was not accepted is remembered, so that the next look is as
cheap as one at a release that runs.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from wildflower.client.fetcher import running_artifact
from wildflower.ota import canonical
from wildflower.ota.device.acceptance import Demands, Rejection
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import ProvenanceError
from wildflower.ota.release.manifest import Release
from wildflower.ota.rollout.document import RolloutDocument

if TYPE_CHECKING:
    from wildflower.ota.release.statement import Provenance

log = logging.getLogger(__name__)

FACT: Final = "rejected"


class Statements(Protocol):
    """The way to statements; `ota.release.fetch.ReleaseClient`."""

    def statement(self, path: str, release: Release) -> "Provenance | None":
        """Return where a release comes from, as its role has signed it; None if it has not."""
        ...


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What one device accepts.

    Attributes:
        demands: Its owner's.
        journal: Its memory.
        slots: Its slots.
        releases: Its way to statements.
        now: Its clock.
    """

    demands: Demands
    journal: Journal
    slots: Slots
    releases: Statements
    now: Callable[[], datetime]

    def obstacle(self, document: RolloutDocument) -> str:
        """Return why a release is known not to be accepted; "" if it may be."""
        known = rejection_of(self.journal)
        if known is None or not known.stands(
            document.rollout, document.release, self.demands, self.now()
        ):
            return ""
        return known.reason

    def accepts(self, document: RolloutDocument, release: Release) -> bool:
        """Whether a release was made as the owner demands; if not, each rollout is told once.

        Raises:
            RefusedError: The statement is of another release, or no source has what was signed.
            FetchError: No source answered.
            StorageError: The disk is full, read-only or broken.
        """
        if not self.demands.are_any:
            return True
        statement = self.releases.statement(document.release_path, release)
        try:
            self.demands.check(statement)
        except ProvenanceError as error:
            self._refuse(document, error)
            return False
        self.journal.set_fact(FACT, "")
        return True

    def _refuse(self, document: RolloutDocument, error: ProvenanceError) -> None:
        """Report it, then remember it: a power cut in between repeats a report that is known."""
        log.warning("not accepted: %s. %s", error, error.hint)
        about = canonical.digest(f"{document.release} {error}".encode())[:32]
        self.journal.queue(
            f"provenance/{document.rollout}/{about}",
            Outcome.INCOMPATIBLE,  # with this owner: no failure of the release, others may want it
            rollout=document.rollout,
            release=document.release,
            running=running_artifact(self.slots),
            reason=f"{error}. {error.hint}",
            at=self.now(),
        )
        rejection = Rejection(
            document.rollout, document.release, self.demands.digest, self.now(), str(error)
        )
        self.journal.set_fact(FACT, rejection.to_text())


def rejection_of(journal: Journal) -> Rejection | None:
    """Return the last release that was not accepted; None if there was none."""
    return Rejection.from_text(journal.fact(FACT))
