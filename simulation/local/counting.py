"""What the demo counts: from the server's database, the devices' journals and their files.

Nothing is written down by hand. Each figure is counted where it happened: rounds, artifacts and
signed reports in the database (through the operator API), refusals and quarantine in the journals,
accuracy by running the very files that lie in the devices' slots.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.device.journal import Entry, Journal
from wildflower.ota.device.report import Outcome as DeviceOutcome
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.device.slots import Slots
from wildflower.server.api.views import ArtifactView, DeviceView, EventView
from wildflower.server.cli.remote import Remote
from wildflower.simulation.errors import StepError
from wildflower.simulation.local.report import (
    ArtifactLine,
    DeviceLine,
    MonitorLine,
    Outcome,
    RoundLine,
    StepLine,
    Story,
)
from wildflower.simulation.local.scenes import Stage
from wildflower.strategies.task import Examples

MAX_WORSE: Final = 5
"""Answers out of 500 that int8 may get wrong where fp32 is right."""
REFERENCE: Final = "linux-generic"
"""The class whose artifact is fp32."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one device remembers: its reports, what it quarantined, and what it runs."""

    entries: list[Entry]
    quarantined: dict[str, str]
    running: str


def memory_of(stage: Stage, name: str) -> Memory:
    """Return what a device's journal and slots say."""
    home = stage.fleet.device_directory(name)
    slots = Slots(home / "slots")
    manifest = slots.manifest(slots.running())
    with contextlib.closing(Journal.peek(home / "journal.db")) as journal:
        return Memory(
            journal.reports(),
            journal.quarantined(),
            manifest.artifact.digest if manifest else "",
        )


def figures_of(stage: Stage) -> dict[str, float]:
    """Count, while the server still runs.

    Raises:
        StepError: int8 changes too many answers for the worse.
    """
    devices = stage.remote.devices()
    memories = {device.name: memory_of(stage, device.name) for device in devices}
    lines = artifact_lines(stage, devices)
    worse = max(line.worse for line in lines)
    if worse > MAX_WORSE:
        raise StepError(f"int8 changes {worse} answers for the worse, allowed are {MAX_WORSE}")
    bad = {one.digest for one in stage.bad}
    rounds = stage.remote.rounds(stage.training)
    return {
        "rounds": sum(r.phase == "recorded" for r in rounds),
        "accuracy": next(line.accuracy for line in lines if line.device_class == REFERENCE),
        "int8_answers_worse": worse,
        "artifacts": len({line.digest for line in lines}),
        "devices_committed": sum(_committed(d, memories[d.name]) for d in devices),
        "bad_release_refused": _refusals(stage, memories, bad),
        "rolled_back": sum(bool(bad & set(m.quarantined)) for m in memories.values()),
    }


def _committed(device: DeviceView, memory: Memory) -> bool:
    """Whether the device says, signed and in its journal, that it runs what it committed."""
    told = [e for e in memory.entries if e.outcome == DeviceOutcome.COMMITTED.value and e.sent]
    return bool(told) and told[-1].running == device.running == memory.running != ""


def _refusals(stage: Stage, memories: dict[str, Memory], bad: set[str]) -> int:
    """Count the kinds of bad release that devices refused, each by what a journal says of it."""
    trial = any(bad & set(memory.quarantined) for memory in memories.values())
    served = 0
    for name, mirror in stage.mirrors.items():
        refused = [e for e in memories[name].entries if e.outcome == DeviceOutcome.REFUSED.value]
        served += any(mirror.url in entry.reason for entry in refused)
    return int(trial) + served


def artifact_lines(stage: Stage, devices: Sequence[DeviceView]) -> list[ArtifactLine]:
    """Run the artifact of each class, from a device's slot, on the unseen images."""
    unseen = Examples.open(stage.fleet.directory / "data" / "final.npz")
    known = {artifact.digest: artifact for artifact in stage.remote.artifacts()}
    running = {device.device_class: device for device in devices}
    answers = {name: _answers(stage, device, unseen) for name, device in running.items()}
    right = {name: found == unseen.targets for name, found in answers.items()}
    return [
        _line(known[device.running], right[name], right[REFERENCE])
        for name, device in sorted(running.items())
    ]


def _line(
    artifact: ArtifactView, right: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]
) -> ArtifactLine:
    return ArtifactLine(
        device_class=artifact.device_class,
        recipe=artifact.recipe,
        digest=artifact.digest,
        length=artifact.length,
        accuracy=float(right.mean()),
        worse=int((reference & ~right).sum()),
    )


def _answers(stage: Stage, device: DeviceView, unseen: Examples) -> npt.NDArray[np.intp]:
    slots = Slots(stage.fleet.device_directory(device.name) / "slots")
    manifest = slots.manifest(slots.running())
    if manifest is None or manifest.artifact.digest != device.running:
        raise StepError(f"{device.name} does not run what it signed to run")
    model = (slots.path(slots.running()) / manifest.artifact.name).read_bytes()
    return np.asarray(OrtRuntime().load(model).run(unseen.inputs).argmax(axis=1))


def _all_events(remote: Remote) -> Iterator[EventView]:
    seen = 0
    while page := remote.events(after=seen):
        yield from page
        seen = page[-1].number


def story_of(stage: Stage, steps: Sequence[StepLine]) -> Story:
    """Return what the report shows."""
    remote = stage.remote
    devices = sorted(remote.devices(), key=lambda device: device.name)
    names = {device.device_id: device.name for device in devices}
    chain = remote.trace(devices[-1].device_id).chains[0]
    return Story(
        steps=steps,
        figures={},
        rounds=[
            RoundLine(r.number, r.metrics.get("accuracy", 0.0), len(r.cohort), len(r.survivors))
            for r in remote.rounds(stage.training)
        ],
        artifacts=artifact_lines(stage, devices),
        devices=[DeviceLine(d.name, d.device_class, d.running, d.last_outcome) for d in devices],
        monitoring=[
            MonitorLine(
                artifact=s.artifact,
                inferences=s.n,
                latency_p95_ms=s.latency_p95_ms or 0.0,
                error_rate=s.error_rate or 0.0,
                confidence=s.confidence or 0.0,
                accuracy=s.accuracy or 0.0,
                devices=s.devices,
            )
            for s in remote.summaries()
        ],
        outcomes=[
            Outcome(
                (event.at - stage.began).total_seconds(),
                names.get(event.subject, event.subject[:8]),
                str(event.fields.get("outcome", "")),
            )
            for event in _all_events(remote)
            if event.kind == "device.report"
        ],
        chain=[
            f"device {chain.device_name} ({chain.device[:12]})",
            f"artifact {chain.artifact[:12]} for {chain.device_class}",
            f"release {chain.release[:12]}, order {chain.order}",
            f"gate report {chain.gate_report[:12]}: {'passed' if chain.passed else 'not passed'}",
            f"global model {chain.model[:12]}",
            f"round {chain.round_number} of training {chain.training}: {chain.survivors} devices, "
            f"{'aggregated securely' if chain.secure else 'in plain'}",
        ],
    )
