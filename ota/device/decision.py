"""What a device does about a rollout: pure, from signed documents and what the device is.

A release is taken only if it is for this device's target group, signed by a role that the device
accepts, of a higher order than what runs, never quarantined here, within the signed ramp, and if
the device is admitted. What it requires is compared with what the device has before a byte of the
model is fetched.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from wildflower.ota.device.machine import Offered, Ordered
from wildflower.ota.device.profile import SelfReport
from wildflower.ota.release.manifest import Release, Requirement
from wildflower.ota.rollout.admission import is_admitted
from wildflower.ota.rollout.document import Order, RolloutDocument


@dataclass(frozen=True, slots=True)
class Standing:
    """What a device is and has, for a decision.

    Attributes:
        device_id: Its id.
        target_group: The devices that share its artifact.
        release: Digest of the release that runs; "" for none.
        order: Order of that release; 0 for none.
        quarantined: Digests of releases that failed here.
        roles: Roles whose releases it accepts, out of "auto" and "approved".
        last_rolled_back: Id of the rollout whose order to go back was carried out last.
    """

    device_id: str
    target_group: str
    release: str
    order: int
    quarantined: frozenset[str]
    roles: tuple[str, ...]
    last_rolled_back: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to do now, and why."""

    reason: str


def decide(
    document: RolloutDocument, release: Release, standing: Standing, now: datetime
) -> Offered | Ordered | Wait:
    """Return what the device does about a rollout.

    Args:
        document: The verified rollout document of the device's target group.
        release: The verified manifest that it points to.
        standing: What the device is.
        now: The device's idea of the time, never earlier than a signed time it has seen.
    """
    if {document.target_group, release.target_group} != {standing.target_group}:
        return Wait(f"for {release.target_group}, this device is in {standing.target_group}")
    if document.order is Order.PAUSE or now < document.not_before:
        return Wait("the rollout is paused or has not begun")
    if document.order is Order.ROLL_BACK:
        return _go_back(document, standing)
    permille = min(document.permille, release.ceiling(now))
    if not is_admitted(bytes.fromhex(document.salt), standing.device_id, permille):
        return Wait(f"this device is not among the first {permille} of 1000")
    if obstacle := _obstacle(document, release, standing):
        return Wait(obstacle)
    return Offered(document.rollout, document.release_path, document.release, release.order)


def _obstacle(document: RolloutDocument, release: Release, standing: Standing) -> str:
    parts = document.release_path.split("/")
    role = parts[1] if len(parts) == 4 else ""
    if role not in standing.roles:
        return f"signed by {role!r}, this device accepts {', '.join(standing.roles)}"
    if document.release == standing.release:
        return "it runs already"
    if document.release in standing.quarantined:
        return "it failed on this device before"
    if release.order <= standing.order:
        return f"order {release.order} is not above {standing.order}, which runs"
    return ""


def _go_back(document: RolloutDocument, standing: Standing) -> Ordered | Wait:
    if document.release != standing.release or document.rollout == standing.last_rolled_back:
        return Wait("what it takes back does not run here")
    reason = f"rollout {document.rollout} was taken back"
    return Ordered(document.rollout, document.release_path, document.release, reason)


def missing(requires: Requirement, report: SelfReport, device_class: str) -> str:
    """Return what the device lacks, found and expected in one sentence; "" if it lacks nothing."""
    runtime = report.runtimes.get(requires.runtime, "")
    for found, expected, holds in (
        (
            device_class,
            f"device class {requires.device_class}",
            device_class == requires.device_class,
        ),
        (
            f"{requires.runtime} {runtime or 'not installed'}",
            f"{requires.runtime} >= {requires.runtime_min}, < {requires.runtime_below}",
            bool(runtime)
            and version(requires.runtime_min) <= version(runtime) < version(requires.runtime_below),
        ),
        (
            f"agent {report.agent}",
            f"agent >= {requires.agent_min}",
            version(report.agent) >= version(requires.agent_min),
        ),
        (
            f"{report.ram_bytes} bytes of memory",
            f"{requires.ram_bytes} bytes of memory",
            report.ram_bytes >= requires.ram_bytes,
        ),
        (
            f"{report.disk_bytes} bytes free on disk",
            f"{requires.disk_bytes} bytes free on disk",
            report.disk_bytes >= requires.disk_bytes,
        ),
    ):
        if not holds:
            return f"found {found}, the release requires {expected}"
    return ""


def version(text: str) -> tuple[int, ...]:
    """Return the numbers of a release version, for comparing; what follows them is ignored.

    Example:
        >>> version("1.32.0+cpu") < version("1.100")
        True
    """
    head = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in head.group().split(".")] if head else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
