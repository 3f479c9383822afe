"""What the person at the device decided: no new release for now, or none but this one.

    wildflower agent pause --reason "trade fair"      nothing new is installed until `resume`
    wildflower agent pin DIGEST                       nothing but this release until `unpin`

Kept in `owner.json`, durable when the command returns, read at every look. It narrows what a
device does, never widens: neither lets in what policy or signatures refuse, and a pin is no
downgrade. Repairing the release that runs is not new. A signed order to leave a release overrides
a pin, unless `policy.toml` says `pinned_recall = "keep"`; both ways are reported.

A file that cannot be read means paused: what somebody decided must not be lost silently.

    Owner.from_bytes(owner.to_bytes()) == owner
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.files import write_durably

FILE: Final = "owner.json"
KIND: Final = "wildflower.owner"
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
MAX_REASON: Final = 200  # characters
MAX_FILE: Final = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Owner:
    """The decisions in force.

    Attributes:
        paused: Why nothing new is installed; "" while it is.
        pinned: Digest of the only release that may be installed; "" for any.
    """

    paused: str = ""
    pinned: str = ""

    def obstacle(self, release: str, running: str) -> str:
        """Return why a release may not be installed; "" if it may.

        Args:
            release: Digest of what is offered or under way.
            running: Digest of what runs: putting it right again is not new.
        """
        if release == running:
            return ""
        if self.paused:
            return f"paused on this device: {self.paused}"
        if self.pinned not in ("", release):
            return f"release {self.pinned[:12]} is pinned on this device"
        return ""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is stored."""
        body = {"paused": self.paused, "pinned": self.pinned}
        return canonical.to_bytes({"kind": KIND, "format": 1} | body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            FormatError: Not an owner's decisions.
        """
        document = canonical.from_bytes(data, kind=KIND, limit=MAX_FILE)
        paused, pinned = document.get("paused"), document.get("pinned")
        if not (isinstance(paused, str) and isinstance(pinned, str)):
            raise FormatError("owner: expected the texts paused and pinned")
        if len(paused) > MAX_REASON or (pinned and not DIGEST.fullmatch(pinned)):
            raise FormatError(
                f"owner: a reason of {len(paused)} characters, pinned {pinned[:70]!r}"
            )
        return cls(paused, pinned)


def load_owner(directory: Path) -> Owner:
    """Return the decisions in force on a device; paused if they cannot be read."""
    path = directory / FILE
    try:
        with path.open("rb") as file:
            return Owner.from_bytes(file.read(MAX_FILE + 1))
    except FileNotFoundError:
        return Owner()
    except (OSError, FormatError) as error:
        return Owner(paused=f"{path} cannot be read ({str(error)[:100]})"[:MAX_REASON])


def save_owner(owner: Owner, directory: Path) -> None:
    """Put decisions in force: when this returns they outlast a power cut.

    Raises:
        OSError: The disk is full or read-only; what was in force still is.
    """
    write_durably(directory / FILE, owner.to_bytes())
