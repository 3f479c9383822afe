"""The signed document that says how far a release may go: `rollout/<target group>.json`.

It is the only thing an online key can write. It can choose among releases, widen up to the signed
ceiling, pause, or send a device back to its own last committed slot; it cannot make a release.

    RolloutDocument.from_bytes(document.to_bytes()) == document
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, unique
from typing import Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError

KIND: Final = "wildflower.rollout"


@unique
class Order(StrEnum):
    """What the devices that admit themselves shall do."""

    INSTALL = "install"
    PAUSE = "pause"
    ROLL_BACK = "roll-back"


@dataclass(frozen=True, slots=True)
class RolloutDocument:
    """The state of one target group's rollout, as devices see it.

    Attributes:
        rollout: Id of the rollout.
        target_group: The devices it is for.
        order: What they shall do.
        release_path: TUF target path of the release's manifest.
        release: Digest of that manifest.
        salt: Hex of the bytes that decide who comes first.
        permille: Share of the group that may hold the release, in [0, 1000].
        not_before: No device acts on it earlier.
        window_s: Devices spread their downloads over this many seconds.
    """

    rollout: str
    target_group: str
    order: Order
    release_path: str
    release: str
    salt: str
    permille: int
    not_before: datetime
    window_s: int

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is signed."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "rollout": self.rollout,
                "target_group": self.target_group,
                "order": self.order.value,
                "release_path": self.release_path,
                "release": self.release,
                "salt": self.salt,
                "permille": self.permille,
                "not_before": canonical.to_time(self.not_before),
                "window_s": self.window_s,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a document from outside.

        Raises:
            FormatError: Not a rollout document, or a value lies outside its range.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            rollout = cls(
                rollout=str(document["rollout"]),
                target_group=str(document["target_group"]),
                order=Order(document["order"]),
                release_path=str(document["release_path"]),
                release=str(document["release"]),
                salt=str(document["salt"]),
                permille=int(document["permille"]),
                not_before=canonical.from_time(document["not_before"]),
                window_s=int(document["window_s"]),
            )
            bytes.fromhex(rollout.salt)
            if rollout.to_bytes() != data:
                raise ValueError("a field is unknown or of another type")
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"rollout document: {error!r}") from error
        if not 0 <= rollout.permille <= 1000 or rollout.window_s < 0:
            raise FormatError(
                "rollout document: permille lies in [0, 1000], window_s is not below 0"
            )
        return rollout


def document_path(target_group: str) -> str:
    """Return where a group's rollout document lies among the TUF targets."""
    return f"rollout/{target_group}.json"
