"""What a device makes of a rollout: does it reach this device, and is the release for it?

Pure rules over signed values, so that a device decides alone and offline, and a server can say
beforehand what a device will do. Nothing here trusts the order in which things were served.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from wildflower.ota.device.machine import (
    Event,
    Failed,
    Offered,
    Paused,
    Phase,
    Recalled,
    Resumed,
    State,
    Withdrawn,
)
from wildflower.ota.device.opsets import highest_opset
from wildflower.ota.device.profile import SelfReport
from wildflower.ota.device.report import Outcome
from wildflower.ota.release.manifest import FILE_ROLES, PLAIN_NAME, SIGNERS, Release, Requirement
from wildflower.ota.rollout.admission import is_admitted
from wildflower.ota.rollout.document import Order, RolloutDocument

MANIFEST: Final = "manifest.json"
"""The name that a slot keeps for the manifest itself."""
CLOCKS_DIFFER: Final = timedelta(days=1)
FIRST_RETRY: Final = timedelta(minutes=5)
LAST_RETRY: Final = timedelta(days=1)
UNDECIDED: Final = frozenset(
    {Phase.CHECKED, Phase.FETCHING, Phase.FETCHED, Phase.VERIFIED, Phase.STAGED}
)
"""Where a rollout can still pause or withdraw what it asked for."""


@dataclass(frozen=True, slots=True)
class Setback:
    """What a device remembers of a release that it could not install.

    Attributes:
        count: How often in a row it failed, at least 1.
        at: When it last did.
    """

    count: int
    at: datetime

    def retry_at(self) -> datetime:
        """Return when the device may try again: five minutes later, doubling up to a day."""
        wait: timedelta = min(FIRST_RETRY * (1 << min(self.count - 1, 16)), LAST_RETRY)
        return self.at + wait


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a device stands when it looks at a rollout.

    Attributes:
        device_id: Its id.
        device_class: The class it was enrolled in.
        running: The release that it runs; None for none.
        has_previous: Whether there is a committed slot to go back to.
        highest_order: Highest order it ever committed in this target group; 0 for none.
        quarantined: Digests of releases that failed their trial here.
        setbacks: Releases that could not be installed, by digest.
        roles: Roles whose releases the device's owner accepts, out of "auto" and "approved".
    """

    device_id: str
    device_class: str
    running: Release | None = None
    has_previous: bool = False
    highest_order: int = 0
    quarantined: frozenset[str] = frozenset()
    setbacks: Mapping[str, Setback] = field(default_factory=lambda: MappingProxyType({}))
    roles: tuple[str, ...] = ("auto",)


@dataclass(frozen=True, slots=True)
class Shortcoming:
    """One thing that a release requires and the device has not."""

    what: str
    found: str
    expected: str

    def __str__(self) -> str:
        """Return the sentence that goes into the report."""
        return f"{self.what}: found {self.found}, expected {self.expected}"


def shortcomings(
    requires: Requirement, report: SelfReport, device_class: str
) -> tuple[Shortcoming, ...]:
    """Compare what a release requires with what a device is; nothing is fetched for it.

    Memory is the device's total; what the model really takes is measured in its trial. So is the
    operator set where the device's runtime is one that nobody has measured (`ota.device.opsets`).

    Args:
        requires: The demands, from the signed manifest.
        report: What the device measured of itself just now.
        device_class: The class it was enrolled in.

    Returns:
        Everything that is missing; empty if the release can be installed.
    """
    runtime = report.runtimes.get(requires.runtime, "none")
    has_runtime = runtime != "none" and (
        version_key(requires.runtime_min)
        <= version_key(runtime)
        < version_key(requires.runtime_below)
    )
    span = f">= {requires.runtime_min}, < {requires.runtime_below}"
    opset = highest_opset(requires.runtime, version_key(runtime)) if has_runtime else None
    has_agent = version_key(report.agent) >= version_key(requires.agent_min)
    checks = (
        (
            device_class == requires.device_class,
            "device class",
            device_class,
            requires.device_class,
        ),
        (has_runtime, requires.runtime, runtime, span),
        (
            opset is None or opset >= requires.opset,
            f"operator set of {requires.runtime} {runtime}",
            f"at most {opset}",
            str(requires.opset),
        ),
        (has_agent, "agent", report.agent, f">= {requires.agent_min}"),
        (
            report.ram_bytes >= requires.ram_bytes,
            "memory",
            *_bytes(report.ram_bytes, requires.ram_bytes),
        ),
        (
            report.disk_bytes >= requires.disk_bytes,
            "free disk",
            *_bytes(report.disk_bytes, requires.disk_bytes),
        ),
    )
    return tuple(Shortcoming(*told) for is_met, *told in checks if not is_met)


def qualify(release: Release, standing: Standing, report: SelfReport) -> Failed | None:
    """Return why the device must not fetch this release, or None if it may.

    A lower order than the highest committed one is a downgrade; it takes an order that is signed
    as such, which a rollout document that says "install" is not.
    """
    if release.order < standing.highest_order:
        reason = (
            f"order {release.order} is below {standing.highest_order}, which this device had; "
            "it goes back by a signed order alone"
        )
        return Failed(Outcome.REFUSED, reason)
    roles = {entry.role for entry in release.files}
    if roles != set(FILE_ROLES):
        found, expected = ", ".join(sorted(roles)), ", ".join(FILE_ROLES)
        return Failed(Outcome.REFUSED, f"found files for {found}, expected {expected}")
    names = {entry.name for entry in release.files} - {MANIFEST}
    if len(names) != len(release.files):
        return Failed(Outcome.REFUSED, f"two files of one name, or one called {MANIFEST}")
    missing = shortcomings(release.requires, report, standing.device_class)
    if missing:
        return Failed(Outcome.INCOMPATIBLE, "; ".join(map(str, missing)))
    return None


def is_open(document: RolloutDocument, device_id: str, now: datetime) -> bool:
    """Whether the rollout reaches this device now, going by the document alone.

    Devices spread over the document's window by a hash of their own, so that they do not all come
    in the same second.
    """
    salt = bytes.fromhex(document.salt)
    if not is_admitted(salt, device_id, document.permille):
        return False
    place = int.from_bytes(
        hashlib.sha256(b"window" + salt + device_id.encode()).digest()[:4], "big"
    )
    return (now - document.not_before).total_seconds() >= document.window_s * place / 2**32


def is_within_ceiling(
    document: RolloutDocument, release: Release, device_id: str, now: datetime
) -> bool:
    """Whether the ramp that the models' role signed lets this device have the release now."""
    permille = min(document.permille, release.ceiling(now))
    return is_admitted(bytes.fromhex(document.salt), device_id, permille)


def obstacle(document: RolloutDocument, standing: Standing, now: datetime) -> str:
    """Return why an idle device does not even read the manifest; "" if it should.

    The manifest is not needed for most answers, and most devices, most of the time, get one here.
    A setback of the future is none: the clock was wrong then, or is now, and 2040 is far away.
    """
    running = standing.running.digest if standing.running is not None else ""
    setback = standing.setbacks.get(document.release)
    role = role_of(document.release_path)
    reasons = (
        (document.order is not Order.INSTALL, f"the rollout's order is {document.order.value}"),
        (document.release == running, "it runs already"),
        (document.release in standing.quarantined, "it failed its trial on this device"),
        (role not in standing.roles, f"role {role!r} may not sign for this device"),
        (setback is not None and setback.at <= now < setback.retry_at(), "it is tried again later"),
        (not is_open(document, standing.device_id, now), "the rollout is not here yet"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def role_of(path: str) -> str:
    """Return the role in a release's target path; "" if it has none.

    Example:
        >>> role_of("models/auto/digits.linux-generic/3.json")
        'auto'
    """
    parts = path.split("/")
    return parts[1] if len(parts) == 4 and parts[0] == "models" else ""


def forgery(document: RolloutDocument) -> str:
    """Return how a document names what is no release of its group; "" if it does not.

    The online key chooses among a group's releases; one that was stolen may try something else.
    """
    path = document.release_path
    is_ours = role_of(path) in SIGNERS and path.split("/")[2] == document.target_group
    if is_ours and PLAIN_NAME.fullmatch(path.rpartition("/")[2]):
        return ""
    return (
        f"rollout {document.rollout} names {path[:200]!r}, "
        f"expected a release of {document.target_group}"
    )


def overreach(document: RolloutDocument, release: Release, now: datetime) -> str:
    """Return how a document goes beyond the ramp that the models' role signed; "" if it does not.

    What would be within the ramp a day from now is let pass: it is a clock, here or there, that is
    wrong by some hours, and the device waits anyway.
    """
    allowed = release.ceiling(now + CLOCKS_DIFFER)
    if document.order is not Order.INSTALL or document.permille <= allowed:
        return ""
    return (
        f"rollout {document.rollout} asks {document.permille} of 1000 devices to install release "
        f"{release.order}; signed are {allowed} of 1000"
    )


def offer(
    document: RolloutDocument, release: Release, standing: Standing, now: datetime
) -> Offered | None:
    """Return the offer that an admitted, idle device takes; None if the ramp is not there yet."""
    if not is_within_ceiling(document, release, standing.device_id, now):
        return None
    return Offered(release, document.rollout)


def recall(document: RolloutDocument, standing: Standing, now: datetime) -> Recalled | None:
    """Return the order to leave the running release, if the document gives one to this device.

    Only back to the device's own previous slot: an online key may not switch a device off, so a
    device without one keeps what it has (`cannot_go_back` says so).
    """
    running = standing.running
    if document.order is not Order.ROLL_BACK or running is None or not standing.has_previous:
        return None
    if running.digest != document.release or not is_open(document, standing.device_id, now):
        return None
    return Recalled(running, document.rollout)


def cannot_go_back(document: RolloutDocument, standing: Standing, now: datetime) -> bool:
    """Whether the device is ordered back and has no earlier slot."""
    able = replace(standing, has_previous=True)
    return not standing.has_previous and recall(document, able, now) is not None


def reconsider(
    state: State, document: RolloutDocument | None, device_id: str, now: datetime
) -> Event | None:
    """Return what a fresh document means for an update that is under way.

    Past the trial's start nothing stops an update any more but an order to go back while it is on
    probation: it ends committed or rolled back, and is reported.
    """
    if state.phase is Phase.PROBATION and document is not None:
        return _recall_of(state, document, device_id, now)
    if state.release is None or state.phase not in UNDECIDED | {Phase.PAUSED}:
        return None
    is_same = document is not None and document.release == state.digest
    if document is None or not is_same or document.order is Order.ROLL_BACK:
        return Withdrawn()
    if document.order is Order.PAUSE:
        return None if state.phase is Phase.PAUSED else Paused()
    if not is_within_ceiling(document, state.release, device_id, now):
        return Withdrawn()
    return Resumed() if state.phase is Phase.PAUSED else None


def _recall_of(
    state: State, document: RolloutDocument, device_id: str, now: datetime
) -> Recalled | None:
    """Return the order to leave a release on probation, if the document gives one."""
    is_same = document.release == state.digest and document.order is Order.ROLL_BACK
    if state.release is None or not is_same or not is_open(document, device_id, now):
        return None
    return Recalled(state.release, document.rollout)


def version_key(version: str) -> tuple[int, ...]:
    """Return what versions are compared by: the numbers of the release part, without zeros behind.

    Example:
        >>> version_key("1.20.0rc1") < version_key("1.20.1") < version_key("1.100")
        True
        >>> version_key("2.0") == version_key("2")
        True
    """
    found = re.match(r"\d{1,18}(?:\.\d{1,18})*", version)  # int() refuses 4301 digits and more
    numbers = [int(part) for part in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _bytes(found: int, expected: int) -> tuple[str, str]:
    return f"{found} bytes", f">= {expected} bytes"
