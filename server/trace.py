"""Where something came from and where it went: device -> artifact -> gate report -> model -> round.

Every arrow is a digest that a record holds, so a trace is a walk over records and cannot guess.
The answer is a list of chains, one for each device that runs what was asked for; where nothing
runs it (yet), a chain ends earlier and its first fields are empty.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from wildflower.ota.release.provenance import EPSILON
from wildflower.server.errors import ConflictError, NotFoundError
from wildflower.server.records import (
    Artifact,
    Device,
    Model,
    ReleaseRecord,
    Report,
    Round,
    Training,
)
from wildflower.server.store import Store
from wildflower.server.training_settings import method_of

MIN_PREFIX: Final = 6  # characters; fewer are typed by accident
COMMITTED: Final = "committed"


@dataclass(frozen=True, slots=True)
class Chain:
    """One way through the loop, from a device back to the round; "" and 0 where it has no link.

    Attributes:
        device: Id of a device that signed to run the artifact.
        device_name: What people call it.
        artifact: Digest of the artifact.
        device_class: The class it was built for.
        release: Digest of the release that brought it.
        order: The release's position in its target group.
        gate_report: Digest of the gates' report on it.
        passed: Whether the gates passed.
        model: Digest of the global model it was built from.
        training: Id of the training that made the model.
        round_number: Number of the round in it.
        survivors: Devices whose updates are in the model.
        secure: Whether their updates were aggregated securely.
        method: How they became the model, such as "secagg+central+fedavg". With `survivors` and
            `epsilon` it is what owners of devices may demand something of.
        epsilon: What the training had spent by then; 0 where it promised no privacy.
    """

    device: str = ""
    device_name: str = ""
    artifact: str = ""
    device_class: str = ""
    release: str = ""
    order: int = 0
    gate_report: str = ""
    passed: bool = False
    model: str = ""
    training: str = ""
    round_number: int = 0
    survivors: int = 0
    secure: bool = False
    method: str = ""
    epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class Trace:
    """What was found.

    Attributes:
        kind: What was asked for: "device", "artifact", "release", "model", "round", "training" or
            "gate report".
        subject: Its full id.
        chains: Every way through the loop that it lies on.
    """

    kind: str
    subject: str
    chains: list[Chain]


def trace(store: Store, asked: str) -> Trace:
    """Follow something through the loop.

    Args:
        store: The records.
        asked: A device's id or name, the digest of an artifact, release, model or gate report, the
            id of a training or of a round ("<training>/<number>"); or at least the first
            `MIN_PREFIX` characters of one.

    Raises:
        NotFoundError: There is nothing of that name.
        ConflictError: Several things begin like that.
    """
    kind, subject = _resolve(store, asked)
    return Trace(kind, subject, _Walk(store).chains(kind, subject))


def _resolve(store: Store, asked: str) -> tuple[str, str]:
    """Return the kind and the full id of what is asked for."""
    known = list(dict.fromkeys(_names(store)))
    exact = [(kind, subject) for kind, name, subject in known if name == asked]
    found = list(dict.fromkeys(exact))
    if not found and len(asked) >= MIN_PREFIX:
        found = list(dict.fromkeys((k, s) for k, name, s in known if name.startswith(asked)))
    if not found:
        raise NotFoundError(
            f"nothing is known under {asked[:80]!r}",
            hint=f"Give an id, a digest, or at least {MIN_PREFIX} characters of one.",
        )
    if len(found) > 1:
        told = ", ".join(f"{kind} {subject}" for kind, subject in found[:4])
        raise ConflictError(f"{asked!r} may be {told}", hint="Give more characters.")
    return found[0]


def _names(store: Store) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, name, id) of everything that can be asked for."""
    for device in store.all(Device):
        yield "device", device.device_id, device.device_id
        yield "device", device.name, device.device_id
    for artifact in store.all(Artifact):
        yield "artifact", artifact.digest, artifact.digest
        if artifact.gate_report:
            yield "gate report", artifact.gate_report, artifact.gate_report
    for release in store.all(ReleaseRecord):
        yield "release", release.digest, release.digest
    for model in store.all(Model):
        yield "model", model.digest, model.digest
    for training in store.all(Training):
        yield "training", training.training_id, training.training_id
    for round_ in store.all(Round):
        yield "round", round_.round_id, round_.round_id


class _Walk:
    """Walks from any record to the chains it lies on."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def chains(self, kind: str, subject: str) -> list[Chain]:
        """Return the chains of a subject."""
        walks: dict[str, Callable[[str], Iterable[Chain]]] = {
            "device": self._of_device,
            "artifact": self._of_artifact,
            "gate report": self._of_gate_report,
            "release": self._of_release,
            "model": self._of_model,
            "round": self._of_round,
            "training": self._of_training,
        }
        return list(walks[kind](subject))

    def _of_device(self, device_id: str) -> Iterator[Chain]:
        device = self._store.get(Device, device_id)
        assert device is not None, "it was found by this id"  # noqa: S101
        release = self._installed(device)
        artifact = self._store.get(Artifact, device.running)
        yield self._chain(device=device, artifact=artifact, release=release)

    def _of_artifact(self, digest: str) -> Iterator[Chain]:
        artifact = self._store.get(Artifact, digest)
        running = self._store.all(Device, running=digest)
        for device in running:
            yield self._chain(device=device, artifact=artifact, release=self._installed(device))
        if not running:
            released = self._store.all(ReleaseRecord, artifact=digest)
            yield self._chain(artifact=artifact, release=released[-1] if released else None)

    def _of_gate_report(self, digest: str) -> Iterator[Chain]:
        for artifact in self._store.all(Artifact, gate_report=digest):
            yield from self._of_artifact(artifact.digest)

    def _of_release(self, digest: str) -> Iterator[Chain]:
        release = self._store.get(ReleaseRecord, digest)
        assert release is not None, "it was found by this digest"  # noqa: S101
        artifact = self._store.get(Artifact, release.artifact)
        running = self._store.all(Device, running=release.artifact)
        installed = [device for device in running if self._installed(device) == release]
        for device in installed:
            yield self._chain(device=device, artifact=artifact, release=release)
        if not installed:
            yield self._chain(artifact=artifact, release=release)

    def _of_model(self, digest: str) -> Iterator[Chain]:
        artifacts = self._store.all(Artifact, model=digest)
        for artifact in artifacts:
            yield from self._of_artifact(artifact.digest)
        if not artifacts:
            yield self._chain(model=self._store.get(Model, digest))

    def _of_round(self, round_id: str) -> Iterator[Chain]:
        round_ = self._store.get(Round, round_id)
        assert round_ is not None, "it was found by this id"  # noqa: S101
        if round_.model:
            yield from self._of_model(round_.model)

    def _of_training(self, training_id: str) -> Iterator[Chain]:
        for round_ in self._store.all(Round, training_id=training_id):
            yield from self._of_round(round_.round_id)

    def _installed(self, device: Device) -> ReleaseRecord | None:
        """Return the release that brought what a device runs, as the device signed."""
        reports = self._store.all(Report, device_id=device.device_id, outcome=COMMITTED)
        for report in sorted(reports, key=lambda one: one.sequence, reverse=True):
            if report.running == device.running:
                return self._store.get(ReleaseRecord, report.release)
        return None

    def _chain(
        self,
        *,
        device: Device | None = None,
        artifact: Artifact | None = None,
        release: ReleaseRecord | None = None,
        model: Model | None = None,
    ) -> Chain:
        """Return a chain with every link that is known."""
        origin = artifact.model if artifact else release.model if release else ""
        model = model or self._store.get(Model, origin)
        made = self._round_of(model)
        training = self._store.get(Training, made.training_id) if made else None
        return Chain(
            device=device.device_id if device else "",
            device_name=device.name if device else "",
            artifact=artifact.digest if artifact else _running(device, release),
            device_class=_class_of(device, artifact, release),
            release=release.digest if release else "",
            order=release.order if release else 0,
            gate_report=artifact.gate_report if artifact else "",
            passed=artifact.passed if artifact else False,
            model=model.digest if model else origin,
            training=model.training_id if model else "",
            round_number=model.round_number if model else 0,
            survivors=len(made.survivors) if made else 0,
            secure=training.secure if training else False,
            method=str(method_of(training.settings)) if training else "",
            epsilon=made.metrics.get(EPSILON, 0.0) if made else 0.0,
        )

    def _round_of(self, model: Model | None) -> Round | None:
        return (
            self._store.get(Round, f"{model.training_id}/{model.round_number}") if model else None
        )


def _running(device: Device | None, release: ReleaseRecord | None) -> str:
    """Return the artifact's digest where its record is not ours: it was signed elsewhere."""
    return device.running if device else release.artifact if release else ""


def _class_of(
    device: Device | None, artifact: Artifact | None, release: ReleaseRecord | None
) -> str:
    known = artifact or release or device
    return known.device_class if known else ""
