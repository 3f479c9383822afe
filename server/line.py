"""The release line: from a training's last model to published releases, by itself.

The thin shell of `ota.build.line`: it stores each state before it does what that state owes.
Building twice answers from the cache, and a release that is stored is not signed again, so that
every effect may be repeated.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol, assert_never

from wildflower.ota.build import line as machine
from wildflower.ota.build.gates import GateReport
from wildflower.ota.errors import OtaError
from wildflower.ota.release.manifest import Lineage, Release
from wildflower.ota.release.provenance import DELTA, EPSILON, RoundRecord
from wildflower.server.building import Build, Built, Earlier
from wildflower.server.errors import BlobError, NotFoundError, SignerError
from wildflower.server.events import EventBus, Kind
from wildflower.server.records import (
    Artifact,
    Line,
    Model,
    Record,
    ReleaseRecord,
    Round,
    Training,
)
from wildflower.server.store import Store
from wildflower.server.training_settings import method_of

log = logging.getLogger(__name__)

WAKE_S: Final = 30.0  # a line that was not woken looks after this long
PAUSE_S: Final = 1.0  # after an unexpected error
ROLE: Final = "auto"
MOST_EARLIER: Final = 8
"""Releases whose files the build is given: several may share a file, and it takes the last three
that differ."""
KINDS: Final[Mapping[machine.Phase, Kind]] = {
    machine.Phase.BUILT: Kind.LINE_BUILT,
    machine.Phase.GATED: Kind.LINE_GATED,
    machine.Phase.SIGNED: Kind.LINE_SIGNED,
    machine.Phase.PUBLISHED: Kind.LINE_PUBLISHED,
    machine.Phase.FAILED: Kind.LINE_FAILED,
}


class Blobs(Protocol):
    """Files named by their digest; `server.blobs.BlobStore`."""

    def put(self, data: bytes) -> str:
        """Store bytes durably; return their digest."""
        ...

    def read(self, digest: str) -> bytes:
        """Return a blob's bytes."""
        ...


class Signs(Protocol):
    """Has releases signed and published; `server.publish.Publisher`."""

    def release(self, manifest: Release, *, gate_report: bytes, round_record: bytes) -> str:
        """Have a release signed by the release signer and publish it; return its target path."""
        ...


@dataclass(frozen=True, slots=True)
class _Done:
    """What an effect came to: the event, and the records stored with the next state."""

    event: machine.Event
    records: tuple[Record, ...] = ()


class LineRunner:
    """Brings models through the release line, in a thread of its own.

    Args:
        store: The records.
        bus: Makes events and wakes the thread.
        blobs: Where reports and manifests go.
        build: Builds models.
        publisher: Has releases signed and published.
        now: The clock.
        stopping: Ends the thread and its child when set.
        probation_s: For how long each release runs, healthy, before a device commits it.
    """

    def __init__(
        self,
        *,
        store: Store,
        bus: EventBus,
        blobs: Blobs,
        build: Build,
        publisher: Signs,
        now: Callable[[], datetime],
        stopping: threading.Event,
        probation_s: int = 0,
    ) -> None:
        self._store, self._bus, self._blobs = store, bus, blobs
        self._probation_s = probation_s
        self._build, self._publisher, self._now = build, publisher, now
        self._stopping = stopping
        self._submitting = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="line", daemon=True)

    def __enter__(self) -> "LineRunner":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._bus.ring()
        self._thread.join()

    def submit(self, digest: str) -> Line:
        """Send a model into the line; one that is on its way or published is left alone.

        Raises:
            NotFoundError: There is no such model.
        """
        model = self._model(digest)
        with self._submitting:
            known = self._store.get(Line, digest)
            if known is not None and known.phase != machine.Phase.FAILED:
                return known
            return self._put(self._begun(model), ())

    def run_pending(self) -> None:
        """Take in finished trainings and run every line as far as it goes, in this thread."""
        self._take_in_trainings()
        for state, event in machine.superseded(self._states()):
            self._put(machine.step(state, event), ())
        for state in machine.candidates(self._states()):
            self._run(state)

    def _work(self) -> None:
        self._wake_all()
        while not self._stopping.is_set():
            seen = self._bus.changes
            try:
                self.run_pending()
            except Exception:
                log.exception("the release line met an unexpected error; it tries again")
                self._stopping.wait(PAUSE_S)
            if not self._stopping.is_set():
                self._bus.wait(seen, WAKE_S)

    def _wake_all(self) -> None:
        """Count this start in the lines that were cut off."""
        for state in self._states():
            if machine.owed(state) is not None:
                self._put(machine.step(state, machine.Woke()), ())

    def _take_in_trainings(self) -> None:
        """Send the last model of every finished training into the line, once."""
        for training in self._store.all(Training, phase="finished"):
            last = self._store.get(Round, f"{training.training_id}/{training.rounds}")
            is_task = bool(training.settings.get("is_task", 0.0))
            if last is None or not last.model or not is_task:
                continue
            if self._store.get(Line, last.model) is None:
                self._admit(last.model)

    def _admit(self, digest: str) -> None:
        """Let a model in, or store why it stays out."""
        model = self._model(digest)
        accuracy, incumbent = model.metrics.get("accuracy"), self._incumbent(model.name)
        with self._submitting:
            state = self._begun(model)
            if not machine.is_candidate(accuracy, incumbent):
                found = "unknown" if accuracy is None else f"{accuracy:.4f}"
                reason = f"accuracy is {found}, that of the last release {incumbent:.4f}"
                state = machine.step(state, machine.Failed(reason))
            self._put(state, ())

    def _begun(self, model: Model) -> machine.State:
        return machine.State(model.name, model.digest, self._next_order(model.name))

    def _incumbent(self, name: str) -> float | None:
        """Return the accuracy of the model that was published last."""
        published = self._store.all(ReleaseRecord, model_name=name, role=ROLE)
        model = self._store.get(Model, published[-1].model) if published else None
        return model.metrics.get("accuracy") if model else None

    def _next_order(self, name: str) -> int:
        published = [one.order for one in self._store.all(ReleaseRecord, model_name=name)]
        queued = [state.order for state in self._states() if state.name == name]
        return max([0, *published, *queued]) + 1

    def _states(self) -> list[machine.State]:
        return [machine.State.from_bytes(line.state) for line in self._store.all(Line)]

    def _run(self, state: machine.State) -> None:
        while not self._stopping.is_set() and (effect := machine.owed(state)) is not None:
            try:
                done = self._act(effect, state)
            except (OtaError, SignerError, BlobError, NotFoundError) as error:
                done = _Done(machine.Failed(str(error)))
            if self._stopping.is_set() and isinstance(done.event, machine.Failed):
                return  # a build cut short by us has not failed
            state = machine.step(state, done.event)
            self._put(state, done.records)

    def _act(self, effect: machine.Effect, state: machine.State) -> _Done:
        """Do what a line owes.

        Raises:
            OtaError: It cannot be built.
            ServerError: The signer refused, or something stored is missing or damaged.
        """
        match effect:
            case machine.Build(model):
                built = self._build.make(model, self._app_of(model), self._earlier(model))
                candidates = tuple(
                    machine.Candidate(one.device_class, one.artifact.digest, one.gate_report)
                    for one in built
                )
                records = tuple(self._artifact(one, model) for one in built)
                return _Done(machine.Built(candidates), records)
            case machine.Gate(artifacts):
                failures = [text for one in artifacts for text in self._failures(one)]
                return _Done(machine.Failed("; ".join(failures)) if failures else machine.Passed())
            case machine.Sign(_, order):
                signed = self._sign(state, order)
                return _Done(machine.Signed(tuple(one.digest for one in signed)), signed)
            case machine.Publish():
                return _Done(machine.Published())  # the publisher did both at once
            case _:
                assert_never(effect)

    def _failures(self, one: machine.Candidate) -> list[str]:
        report = GateReport.from_bytes(self._blobs.read(one.gate_report))
        return [f"{one.device_class}: {failure}" for failure in report.failures]

    def _sign(self, state: machine.State, order: int) -> tuple[ReleaseRecord, ...]:
        model = state.model
        built = self._build.made(model, self._app_of(model), self._earlier(model))
        return tuple(self._signed(one, state, order) for one in built)

    def _signed(self, one: Built, state: machine.State, order: int) -> ReleaseRecord:
        """Have one artifact's release signed, unless it is."""
        model = self._model(state.model)
        known = self._store.all(
            ReleaseRecord, artifact=one.artifact.digest, model=state.model, role=ROLE
        )
        if known:
            return known[0]
        group = f"{model.name}.{one.device_class}"
        others = [other.order for other in self._store.all(ReleaseRecord, target_group=group)]
        manifest = Release(
            model_name=model.name,
            target_group=group,
            order=max([order, *(other + 1 for other in others)]),
            files=one.files,
            requires=one.requires,
            trial=replace(one.trial, probation_s=self._probation_s),
            lineage=Lineage(state.model, model.training_id, model.round_number, one.gate_report),
            not_before=model.created_at,
            deltas=one.deltas,
        )
        path = self._publisher.release(
            manifest,
            gate_report=self._blobs.read(one.gate_report),
            round_record=self._round_record(model).to_bytes(),
        )
        self._blobs.put(manifest.to_bytes())
        record = release_record(manifest, path, ROLE, self._now())
        self._store.put(record)
        return record

    def _round_record(self, model: Model) -> RoundRecord:
        made = self._store.get(Round, f"{model.training_id}/{model.round_number}")
        training = self._store.get(Training, model.training_id)
        if made is None or training is None:
            raise SignerError(
                f"model {model.digest} comes from no round of this server",
                hint="Only models of recorded rounds are signed automatically.",
            )
        return RoundRecord(
            training=model.training_id,
            number=model.round_number,
            model=model.digest,
            cohort=len(made.cohort),
            survivors=len(made.survivors),
            secure=training.secure,
            metrics={**model.metrics, **_spent(made)},
            at=made.finished_at or made.started_at,
            method=method_of(training.settings),
        )

    def _artifact(self, one: Built, model: str) -> Artifact:
        return Artifact(
            digest=one.artifact.digest,
            model=model,
            device_class=one.device_class,
            recipe=one.recipe,
            file_name=one.artifact.name,
            length=one.artifact.length,
            gate_report=one.gate_report,
            passed=one.passed,
            created_at=self._now(),
        )

    def _earlier(self, digest: str) -> Earlier:
        """Return what devices may have: by class, the artifacts of the last releases but this."""
        released = self._store.all(ReleaseRecord, model_name=self._model(digest).name)
        found: dict[str, list[str]] = {}
        for one in sorted(released, key=lambda one: one.order):
            if one.model != digest:
                found.setdefault(one.device_class, []).append(one.artifact)
        return {name: bases[-MOST_EARLIER:] for name, bases in found.items()}

    def _app_of(self, digest: str) -> str:
        return self._model(digest).app

    def _model(self, digest: str) -> Model:
        model = self._store.get(Model, digest)
        if model is None:
            raise NotFoundError(f"there is no model {digest}")
        return model

    def _put(self, state: machine.State, records: tuple[Record, ...]) -> Line:
        """Store a state, what belongs to it, and the event of its phase."""
        known = self._store.get(Line, state.model)
        line = Line(
            model=state.model,
            phase=state.phase.value,
            reason=state.reason,
            state=state.to_bytes(),
            created_at=known.created_at if known else self._now(),
        )
        kind = KINDS.get(state.phase)
        is_new_phase = known is None or known.phase != state.phase
        fields: dict[str, Any] = {"name": state.name, "order": state.order}
        fields |= {"reason": state.reason} if state.reason else {}
        fields["artifacts"] = len(state.artifacts)
        told = [self._bus.make(kind, state.model, **fields)] if kind and is_new_phase else []
        self._store.put(line, *records, events=told)
        self._bus.ring()
        log.info("line %s", state.phase, extra={"model": state.model, "reason": state.reason})
        return line


def release_record(manifest: Release, path: str, role: str, now: datetime) -> ReleaseRecord:
    """Return the record of a published release."""
    return ReleaseRecord(
        digest=manifest.digest,
        path=path,
        role=role,
        model_name=manifest.model_name,
        target_group=manifest.target_group,
        device_class=manifest.requires.device_class,
        order=manifest.order,
        artifact=manifest.artifact.digest,
        model=manifest.lineage.model,
        created_at=now,
    )


def _spent(made: Round) -> dict[str, float]:
    """Return the figures of a round that say what its training has spent of privacy."""
    return {name: made.metrics[name] for name in (EPSILON, DELTA) if name in made.metrics}
