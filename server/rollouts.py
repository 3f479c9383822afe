"""Rollouts: releases brought to devices, stage by stage, judged by what devices signed.

The thin shell of `ota.rollout.machine`: it stores each state before it does what that state owes.
To publish a stage twice writes the same orders twice. What counts is a device's own signed report,
or that it has signed to run the very release already; devices outside the stage count for nothing.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, assert_never

from wildflower.ota.device.report import Outcome
from wildflower.ota.errors import OtaError
from wildflower.ota.rollout import machine
from wildflower.ota.rollout.admission import is_admitted
from wildflower.ota.rollout.document import Order, RolloutDocument
from wildflower.ota.rollout.policy import Plan, Tally, count
from wildflower.ota.rollout.state import Group, Phase, State, from_bytes, to_bytes
from wildflower.server.errors import ConflictError, NotFoundError, ServerError
from wildflower.server.events import EventBus, Kind
from wildflower.server.presence import HintKind
from wildflower.server.records import Device, Event, ReleaseRecord, Report, Rollout
from wildflower.server.store import Store

log = logging.getLogger(__name__)

LATEST: Final = "latest"
WAKE_S: Final = 30.0  # a runner that was not woken looks after this long
PAUSE_S: Final = 1.0  # after a publication that failed
SHOWN: Final[Mapping[Phase, Kind]] = {
    Phase.RUNNING: Kind.ROLLOUT_STAGE,
    Phase.DONE: Kind.ROLLOUT_DONE,
    Phase.ABORTED: Kind.ROLLOUT_ABORTED,
    Phase.PAUSED: Kind.ROLLOUT_STAGE,
}


class Publishes(Protocol):
    """Writes rollout documents; `server.publish.Publisher`."""

    def rollout(self, document: RolloutDocument) -> None:
        """Sign a document with the online key and publish it."""
        ...


class Whispers(Protocol):
    """Passes hints to connected devices; `server.presence.Presence`."""

    def hint(self, device_ids: Iterable[str], kind: HintKind | str, training: str = "") -> int:
        """Leave a hint for devices."""
        ...


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How far one target group is; see `server.api.views.GroupView`."""

    target_group: str
    release: str
    reach: int
    tally: Tally


class RolloutRunner:
    """Runs rollouts in a thread of its own; several at a time, one per target group.

    Args:
        store: The records.
        bus: Makes events and wakes the thread.
        publisher: Writes rollout documents.
        presence: Tells devices to look.
        now: The clock.
        entropy: Returns so many random bytes, for salts and ids.
    """

    def __init__(
        self,
        *,
        store: Store,
        bus: EventBus,
        publisher: Publishes,
        presence: Whispers,
        now: Callable[[], datetime],
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store, self._bus = store, bus
        self._publisher, self._presence = publisher, presence
        self._now, self._entropy = now, entropy
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True)

    def __enter__(self) -> "RolloutRunner":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._bus.ring()
        self._thread.join()

    def create(self, releases: Sequence[str], plan: Plan) -> Rollout:
        """Begin a rollout.

        Args:
            releases: Digests of releases, one per target group; or "latest" for the latest of
                every target group, "latest:approved" for the latest that offline keys signed.
            plan: How it spreads.

        Raises:
            NotFoundError: There is no such release.
            ConflictError: Another rollout reaches one of the target groups.
            RolloutError: The plan is out of range, or a target group is named twice.
        """
        found = [release for name in releases for release in self._find(name)]
        groups = tuple(Group(one.target_group, one.path, one.digest) for one in found)
        rollout_id = self._entropy(8).hex()
        state = machine.begin(rollout_id, plan, groups)
        with self._changing:
            self._require_free(state)
            told = self._bus.make(
                Kind.ROLLOUT_CREATED, rollout_id, groups=len(groups), stages=len(plan.stages)
            )
            record = self._put(state, told=[told])
        log.info("rollout created", extra={"rollout": rollout_id})
        return record

    def abort(self, rollout_id: str, reason: str, *, roll_back: bool = True) -> Rollout:
        """End a rollout; devices that hold the release go back if `roll_back`.

        Raises:
            NotFoundError: There is no such rollout.
            RolloutError: It is over.
        """
        with self._changing:
            state = from_bytes(self._record(rollout_id).state)
            aborted = machine.step(state, machine.Aborted(reason, roll_back))
            return self._put(aborted, before=state)

    def progress(self, rollout: Rollout) -> list[GroupProgress]:
        """Return how far each target group of a rollout is."""
        state = from_bytes(rollout.state)
        tallies = self._tallies(state)
        return [
            GroupProgress(
                group.target_group,
                group.release,
                state.reach.get(group.target_group, 0),
                tallies.get(group.target_group, Tally()),
            )
            for group in state.groups
        ]

    def run_pending(self) -> float:
        """Run every rollout as far as it goes now; return seconds until one needs a look."""
        waits = [WAKE_S]
        for record in self._store.all(Rollout):
            state = from_bytes(record.state)
            if machine.owed(state) is not None:
                waits.append(self._run(state.rollout))
        return max(0.0, min(waits))

    def _work(self) -> None:
        self._wake_all()
        while not self._stopping.is_set():
            seen = self._bus.changes
            try:
                wait_s = self.run_pending()
            except (ServerError, OtaError) as error:
                log.warning("rollout not published: %s; it is tried again", error)
                self._stopping.wait(PAUSE_S)
            except Exception:
                log.exception("the rollout runner met an unexpected error; it tries again")
                self._stopping.wait(PAUSE_S)
            else:
                self._bus.wait(seen, 0 if self._stopping.is_set() else wait_s)

    def _wake_all(self) -> None:
        for record in self._store.all(Rollout):
            with self._changing:
                state = from_bytes(record.state)
                woken = machine.step(state, machine.Woke())
                if woken != state:
                    self._put(woken, before=state)

    def _run(self, rollout_id: str) -> float:
        """Run one rollout until it waits; return seconds until it needs a look."""
        while not self._stopping.is_set():
            state = from_bytes(self._record(rollout_id).state)
            effect = machine.owed(state)
            if effect is None:
                break
            event = self._act(effect, state)
            with self._changing:  # an operator may have aborted it meanwhile
                if from_bytes(self._record(rollout_id).state) != state:
                    continue
                after = machine.step(state, event)
                if after != state:
                    self._put(after, before=state)
                    continue
            if isinstance(effect, machine.Soak):
                return (effect.until - self._now()).total_seconds()
            break
        return WAKE_S

    def _act(self, effect: machine.Effect, state: State) -> machine.Event:
        """Do what a rollout owes.

        Raises:
            ServerError: The documents cannot be published now.
        """
        match effect:
            case machine.Draw():
                members = {g.target_group: self._members(g) for g in state.groups}
                return machine.Drawn(self._entropy(machine.ENTROPY), members)
            case machine.Publish(order):
                self._publish(state, order)
                return machine.Published()
            case machine.Await() | machine.Soak():
                return machine.Counted(self._tallies(state), self._now())
            case _:
                assert_never(effect)

    def _publish(self, state: State, order: Order) -> None:
        for document in machine.documents(state, self._now()):
            self._publisher.rollout(document)
        devices = [device for group in state.groups for device in self._members(group)]
        self._presence.hint(devices, HintKind.RELEASE)
        log.info("rollout published", extra={"rollout": state.rollout, "order": order.value})

    def _members(self, group: Group) -> tuple[str, ...]:
        """Return the ids of the devices of a target group."""
        release = self._store.get(ReleaseRecord, group.release)
        device_class = release.device_class if release else ""
        devices = self._store.all(Device, device_class=device_class)
        return tuple(device.device_id for device in devices if not device.revoked)

    def _tallies(self, state: State) -> dict[str, Tally]:
        """Count the latest outcome of each admitted device, by target group."""
        outcomes: dict[str, str] = {}
        reports = self._store.all(Report, rollout=state.rollout)
        for report in sorted(reports, key=lambda one: one.sequence):
            outcomes[report.device_id] = report.outcome
        return {group.target_group: self._tally(group, state, outcomes) for group in state.groups}

    def _tally(self, group: Group, state: State, outcomes: Mapping[str, str]) -> Tally:
        release = self._store.get(ReleaseRecord, group.release)
        if release is None or not group.salt:
            return Tally()
        salt = bytes.fromhex(group.salt)
        devices = self._store.all(Device, device_class=release.device_class)
        admitted = [
            device
            for device in devices
            if not device.revoked and is_admitted(salt, device.device_id, state.demands.permille)
        ]
        # A device that committed the release before has nothing to install and reports nothing. The
        # artifact alone would not do: two releases may bring the same file with other trials.
        before = {
            report.device_id
            for report in self._store.all(Report, release=group.release)
            if report.outcome == Outcome.COMMITTED and report.running == release.artifact
        }
        unasked = {
            device.device_id: Outcome.COMMITTED.value
            for device in admitted
            if device.device_id in before and device.running == release.artifact
        }
        asked = {d.device_id: outcomes[d.device_id] for d in admitted if d.device_id in outcomes}
        return count((unasked | asked).values())

    def _find(self, name: str) -> list[ReleaseRecord]:
        """Return the releases that a name stands for."""
        releases = self._store.all(ReleaseRecord)
        latest, _, role = name.partition(":")
        if latest == LATEST:
            wanted = [one for one in releases if role in ("", one.role)]
            newest: dict[str, ReleaseRecord] = {}
            for one in sorted(wanted, key=lambda release: release.order):
                newest[one.target_group] = one
            found = list(newest.values())
        else:
            found = [one for one in releases if len(name) >= 6 and one.digest.startswith(name)]
        if not found or (latest != LATEST and len(found) > 1):
            raise NotFoundError(
                f"there is {'no' if not found else 'more than one'} release {name!r}",
                hint='Give digests, or "latest"; see: wildflower trace',
            )
        return found

    def _require_free(self, state: State) -> None:
        """Check that no other rollout reaches the same target groups."""
        wanted = {group.target_group for group in state.groups}
        for record in self._store.all(Rollout):
            other = from_bytes(record.state)
            shared = wanted & {group.target_group for group in other.groups}
            if shared and not other.is_over:
                raise ConflictError(
                    f"rollout {other.rollout} reaches {', '.join(sorted(shared))} already",
                    hint=f"Wait for it, or: wildflower rollout abort {other.rollout}",
                )

    def _record(self, rollout_id: str) -> Rollout:
        record = self._store.get(Rollout, rollout_id)
        if record is None:
            raise NotFoundError(f"there is no rollout {rollout_id}")
        return record

    def _put(
        self, state: State, *, before: State | None = None, told: Sequence[Event] = ()
    ) -> Rollout:
        """Store a state and the events of its step."""
        known = self._store.get(Rollout, state.rollout)
        now = self._now()
        record = Rollout(
            rollout_id=state.rollout,
            releases=tuple(group.release for group in state.groups),
            phase=state.phase.value,
            reason=state.reason,
            state=to_bytes(state),
            created_at=known.created_at if known else now,
            finished_at=now if state.is_over else None,
        )
        self._store.put(record, events=[*told, *self._told(before, state)])
        self._bus.ring()
        return record

    def _told(self, before: State | None, state: State) -> list[Event]:
        kind = SHOWN.get(state.phase)
        if before is None or kind is None or before.phase is state.phase:
            return []
        fields: dict[str, Any] = {
            "phase": state.phase.value,
            "stage": state.stage + 1,
            "permille": state.demands.permille,
        }
        fields |= {"reason": state.reason} if state.reason else {}
        return [self._bus.make(kind, state.rollout, **fields)]
