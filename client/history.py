"""What happened on a device, in the order in which it did, read from its journal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from wildflower.ota.device.journal import Entry
from wildflower.ota.device.machine import Phase, State
from wildflower.ota.device.report import Outcome
from wildflower.ota.release.manifest import Release

OUTCOMES: Final[Mapping[Outcome, str]] = {
    Outcome.COMMITTED: "installed",
    Outcome.ROLLED_BACK: "did not keep",
    Outcome.REFUSED: "refused",
    Outcome.INCOMPATIBLE: "cannot take",
    Outcome.FAILED: "could not install",
}
AFTERWARDS: Final[Mapping[Outcome, str]] = {
    Outcome.COMMITTED: "",
    Outcome.ROLLED_BACK: "what ran before it runs; a better release is what helps",
    Outcome.REFUSED: "what runs goes on; a release and a source that keep this rule are what helps",
    Outcome.INCOMPATIBLE: "what runs goes on; a release for what this device is and asks for helps",
    Outcome.FAILED: "what runs goes on; it is tried again by itself",
}
"""What stays, and what is to be done."""
OTHERWISE: Final[Mapping[str, tuple[str, str]]] = {
    "stuck": (
        "was ordered back from",
        "what runs goes on; a better release is what helps",
    ),
    "kept": (
        "was ordered back from",
        "what runs goes on; `wildflower agent unpin` or `pinned_recall` lets it go",
    ),
    "damage": (
        "found damage in",
        "what is whole goes on; it is mended by itself, so look at the disk",
    ),
}
"""What happened and what then, where it is no outcome of an update: by the beginning of its key."""
PHASES: Final[Mapping[str, str]] = {
    "idle": "nothing is under way",
    "checked": "looks whether it can run",
    "fetching": "is fetching",
    "patching": "is putting together from what runs and what came",
    "fetched": "is checking what came of",
    "verified": "is storing",
    "staged": "asks once more whether it shall install",
    "trial": "is trying",
    "passed": "is about to switch to",
    "probation": "watches how it does with",
    "committed": "is settling on",
    "quarantined": "gives up",
    "rolled-back": "is going back from",
    "reported": "notes how it went with",
    "paused": "was told by the rollout to wait with",
    "cancelled": "drops what it had of",
}
"""What a device does in each `Phase`, in words for people."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of a device's history.

    Attributes:
        at: When, by the device's clock; None for what is under way.
        what: What happened, in a few words.
        release: Digest of the release; "" where none could be verified.
        rollout: Id of the rollout; "" outside one.
        why: The reason, and by which rule; "" for success.
        then: What stays and what is to be done; "" for success.
        is_told: Whether the server knows.
    """

    at: datetime | None
    what: str
    release: str
    rollout: str
    why: str
    then: str
    is_told: bool


def timeline(
    entries: Iterable[Entry], state: State, known: Mapping[str, Release]
) -> list[Happening]:
    """Return what happened, the oldest first, and at last what is under way.

    Args:
        entries: The journal's reports, in order.
        state: Its state.
        known: Releases whose manifests are on the device, by digest.
    """
    told = [_past(entry, known) for entry in entries]
    if state.phase is Phase.IDLE:
        return told
    what = f"{PHASES[state.phase]} {_name(state.digest, known, state.release)}"
    why = state.reason or (f"restarted {state.wakes} times in this phase" if state.wakes else "")
    return [*told, Happening(None, what, state.digest, state.rollout, why, "", is_told=False)]


def _past(entry: Entry, known: Mapping[str, Release]) -> Happening:
    usual = OUTCOMES[entry.outcome], AFTERWARDS[entry.outcome]
    kind = entry.key.partition("/")[0]
    verb, then = OTHERWISE.get(kind, usual)
    about = "the slots" if kind == "damage" and not entry.release else _name(entry.release, known)
    what = f"{verb} {about}"
    return Happening(entry.at, what, entry.release, entry.rollout, entry.reason, then, entry.sent)


def _name(digest: str, known: Mapping[str, Release], release: Release | None = None) -> str:
    """Return what people call a release: its model and order where the manifest is here."""
    found = release or known.get(digest)
    if found is not None:
        return f"{found.model_name} {found.order}"
    return f"release {digest[:12]}" if digest else "what a source served"
