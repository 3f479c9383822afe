"""What a device can owe: one effect for each phase of `ota.device.machine`.

Effects are values. `client.fetcher` carries them out; each may be repeated after a power cut and
then changes nothing.
"""

from dataclasses import dataclass
from datetime import datetime

from wildflower.ota.device.report import Outcome
from wildflower.ota.release.manifest import Release


@dataclass(frozen=True, slots=True)
class Qualify:
    """Compare what the release requires with what the device is, before a byte is fetched."""

    release: Release


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the release's files; what is on disk already is found by its digest."""

    release: Release


@dataclass(frozen=True, slots=True)
class Verify:
    """Check the digest and length of every file on disk."""

    release: Release


@dataclass(frozen=True, slots=True)
class Stage:
    """Put the release into a slot of its own, durably."""

    release: Release


@dataclass(frozen=True, slots=True)
class Confirm:
    """Ask once more whether the rollout still stands: fetching may have taken days."""

    release: Release
    rollout: str


@dataclass(frozen=True, slots=True)
class Try:
    """Run the staged release in a child process and judge its answers, speed and memory."""

    release: Release


@dataclass(frozen=True, slots=True)
class Switch:
    """Make the slot the one that everybody runs; the one before it is kept."""

    release: Release


@dataclass(frozen=True, slots=True)
class Watch:
    """See whether the release has been healthy, where it runs, for as long as was signed.

    Attributes:
        release: The release that runs.
        attempt: Whose healthy seconds are counted.
        since: When it began to run.
    """

    release: Release
    attempt: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Commit:
    """Remember that the release stays: no lower order comes after it."""

    release: Release


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Remember that the release is never to be tried again."""

    release: Release
    reason: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """Leave the release: the slot before it is what everybody runs."""

    release: Release


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove what was fetched and staged of a release that is no longer wanted."""

    release: Release


@dataclass(frozen=True, slots=True)
class Report:
    """Queue the signed report of how it ended, once for each attempt."""

    release: Release
    rollout: str
    attempt: int
    outcome: Outcome
    reason: str


Preparation = Qualify | Fetch | Verify | Stage | Confirm | Discard
Conclusion = Try | Switch | Watch | Commit | Quarantine | RollBack | Report
Effect = Preparation | Conclusion
