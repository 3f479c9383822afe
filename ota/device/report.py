"""What a device tells the server about itself, signed with its own key.

The server counts only what devices signed: "installed" is what a device runs, not what a server
offered. A report has a key of its own, so that sending it again changes nothing.

    DeviceReport.from_bytes(report.to_bytes()) == report
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, unique
from typing import Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError

KIND: Final = "wildflower.device-report"
MAX_REASON: Final = 2000  # characters; a reason is a sentence, not a log file


@unique
class Outcome(StrEnum):
    """What became of a release on a device."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"
    INCOMPATIBLE = "incompatible"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One outcome on one device.

    Attributes:
        device_id: Who reports.
        sequence: Counts the device's reports from 1; with the device id, the report's key.
        outcome: What became of the release.
        rollout: Id of the rollout that asked for it; "" outside one.
        release: Digest of the release's manifest; "" where none could be verified.
        running: Digest of the artifact that the device runs now; "" for none.
        reason: Why it failed, in a sentence; "" for success.
        at: When, by the device's clock.
    """

    device_id: str
    sequence: int
    outcome: Outcome
    rollout: str
    release: str
    running: str
    reason: str
    at: datetime

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that the device signs."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "device_id": self.device_id,
                "sequence": self.sequence,
                "outcome": self.outcome.value,
                "rollout": self.rollout,
                "release": self.release,
                "running": self.running,
                "reason": self.reason[:MAX_REASON],
                "at": canonical.to_time(self.at),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a report from outside.

        Raises:
            FormatError: Not a device report.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            return cls(
                device_id=str(document["device_id"]),
                sequence=int(document["sequence"]),
                outcome=Outcome(document["outcome"]),
                rollout=str(document["rollout"]),
                release=str(document["release"]),
                running=str(document["running"]),
                reason=str(document["reason"])[:MAX_REASON],
                at=canonical.from_time(document["at"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"device report: {error!r}") from error
