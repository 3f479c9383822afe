import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp import Grid
from tests.record_fakes import SetClock, device
from tests.round_fakes import MODEL, STATISTICS, Fleet, FlowerApp
from tests.server_base_fakes import until

from wildflower.server.blobs import BlobStore
from wildflower.server.cohort import Gathering
from wildflower.server.errors import SettingsError
from wildflower.server.events import ObservedStore
from wildflower.server.initial_model import Origin
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Hint, HintKind, Presence, Watcher
from wildflower.server.records import Device, Model, Record, Round, Training
from wildflower.server.round_trip import Parties
from wildflower.server.round_work import RoundTools
from wildflower.server.rounds import Learning, RoundRunner
from wildflower.simulation.grid import Death
from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import GlobalModel, from_safetensors, to_safetensors
from wildflower.strategies.errors import LinkError, TaskError
from wildflower.strategies.round import MAX_WAKES

STEP = 0.25
PLAIN = {"protection": "plain"}
FAST = {"quorum": 3.0, "join_s": 0.1, "deadline_s": 5.0}


class Cut(BaseException):
    """The server's process ends here."""


@dataclass
class CutStore(MemoryStore):
    """A store at one of whose writes the process ends, after or before it is written."""

    cut_at: int = 0
    after: bool = True
    writes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def put(self, *records: Record, events: object = ()) -> None:
        self.writes += 1
        if self.writes == self.cut_at and not self.after:
            raise Cut
        super().put(*records, events=events)  # type: ignore[arg-type]  # passed on as it came
        if self.writes == self.cut_at:
            raise Cut


@dataclass
class FakeLink:
    """Lends an in-process grid; loses it as often as asked.

    Attributes:
        grid: What it lends.
        losses: How many runs are lost before one begins.
        runs: Names of the runs that were asked for.
    """

    grid: Grid
    losses: int = 0
    runs: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def run(self, name: str) -> Iterator[Grid]:
        self.runs.append(name)
        if len(self.runs) <= self.losses:
            raise LinkError("the SuperLink is lost")
        yield self.grid


def initial(app: str, seed: int, out: Path) -> Origin:
    out.write_bytes(to_safetensors(MODEL))
    return Origin(4.0, STATISTICS, is_task=True)


@dataclass
class World:
    """A server with a fleet of five that is connected, and the parts of a round runner."""

    store: ObservedStore
    presence: Presence
    watchers: list[Watcher]
    fleet: Fleet
    link: FakeLink
    blobs: BlobStore
    clock: SetClock = field(default_factory=SetClock)
    learning: Learning = field(default_factory=lambda: Learning("task:tiny", "tiny", FAST))

    def runner(
        self, make: Callable[[str, int, Path], Origin] = initial
    ) -> tuple[RoundRunner, threading.Event]:
        """Return a runner, as a server's start makes it, and what stops it."""
        stopping = threading.Event()
        gathering = Gathering(self.store, self.presence, self.store.bus, stopping)
        tools = RoundTools(
            self.store,
            self.store.bus,
            self.blobs,
            gathering,
            Parties(self.fleet.ca.pem),
            self.clock,
            os.urandom,
        )
        return RoundRunner(tools, self.link, self.learning, make), stopping

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events()]


def world_of(
    tmp_path: Path,
    memory: MemoryStore | None = None,
    dies: dict[tuple[int, str], Death] | None = None,
    **metrics: float,
) -> World:
    apps = [FlowerApp(STEP, metrics=metrics).app for _ in range(5)]
    fleet = Fleet(apps, dies=dies)
    store = ObservedStore(MemoryStore() if memory is None else memory, SetClock())
    presence = Presence()
    names = [f"device-{number}" for number in range(5)]
    devices = [device(name, node_id=node) for name, node in zip(names, fleet.nodes, strict=True)]
    store.add(*devices)
    watchers = [presence.attach(one.device_id, lambda: None) for one in devices]
    blobs = BlobStore(tmp_path / "blobs")
    return World(store, presence, watchers, fleet, FakeLink(fleet.grid), blobs)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_of(tmp_path, loss=0.5)


def require_trained(world: World, rounds: int) -> None:
    """Check that a training's models are those that its devices trained, whatever happened."""
    [training] = world.store.all(Training)
    assert (training.phase, training.reason) == ("finished", "")
    found = world.store.all(Round, training_id=training.training_id)
    assert [(one.number, one.phase) for one in found] == [
        (number, "recorded") for number in range(1, rounds + 1)
    ]
    for one in found:
        model = from_safetensors(world.blobs.read(one.model))
        for name, array in MODEL.items():
            np.testing.assert_allclose(model[name], array + one.number * STEP, atol=1e-3)
        assert world.store.get(Model, one.model) is not None
        assert one.finished_at is not None


@pytest.mark.parametrize("secure", [True, False])
def test_a_training_ends_with_models_metrics_and_events(world: World, secure: bool) -> None:
    runner, _ = world.runner()
    planned = runner.plan(2, {**({} if secure else PLAIN), "epochs": 2})
    runner.run_pending()
    require_trained(world, 2)
    rounds = world.store.all(Round)
    assert all(len(one.cohort) == len(one.survivors) == 5 for one in rounds)
    assert rounds[1].metrics["loss"] == pytest.approx(0.5, abs=1e-3)
    models = world.store.all(Model)
    assert [one.round_number for one in models] == [0, 1, 2]
    assert models[0].digest == GlobalModel.of(MODEL).digest
    kinds = world.kinds()
    assert kinds[0] == "training.started"
    assert kinds[-1] == "training.finished"
    assert (kinds.count("round.started"), kinds.count("round.recorded")) == (2, 2)
    assert world.store.events()[-1].fields == {"model": rounds[-1].model}
    assert world.store.get(Training, planned.training_id).run_id == 1  # type: ignore[union-attr]  # it was stored
    assert runner.active() is None


def test_devices_are_invited_to_the_training(world: World) -> None:
    runner, _ = world.runner()
    planned = runner.plan(1, PLAIN)
    runner.run_pending()
    hint = Hint(HintKind.TRAINING, planned.training_id)
    assert [world.presence.take(one) for one in world.watchers] == [[hint]] * 5


def test_only_the_cohort_of_the_running_round_is_invited(world: World) -> None:
    runner, _ = world.runner()
    planned = runner.plan(1, PLAIN)
    drawn, other = (one.device_id for one in world.store.all(Device)[:2])
    assert runner.invited(drawn) == ""
    world.store.change(Training, planned.training_id, phase="running")
    assert runner.invited(drawn) == "", "no round has begun"
    key = planned.training_id
    world.store.put(
        Round(f"{key}/1", key, 1, "sampling", "", (drawn,), (), "", {}, b"", world.clock())
    )
    assert (runner.invited(drawn), runner.invited(other)) == (key, "")


def test_a_cohort_is_as_large_as_asked_for(world: World) -> None:
    runner, _ = world.runner()
    runner.plan(1, {**PLAIN, "cohort": 4})
    runner.run_pending()
    require_trained(world, 1)
    assert len(world.store.all(Round)[0].cohort) == 4


def test_fewer_devices_than_the_quorum_end_the_training_with_a_sentence(world: World) -> None:
    for watcher in world.watchers[:3]:
        world.presence.detach(watcher)
    runner, _ = world.runner()
    runner.plan(2, {})
    runner.run_pending()
    [training] = world.store.all(Training)
    reason = "Only 2 devices could be drawn; the quorum is 3."
    assert (training.phase, training.reason) == ("aborted", f"Round 1: {reason}")
    [one] = world.store.all(Round)
    assert (one.phase, one.reason, one.model) == ("aborted", reason, "")
    assert world.kinds()[-2:] == ["round.aborted", "training.aborted"]


def test_revoked_and_unregistered_devices_are_not_drawn(world: World) -> None:
    first, second, third = world.store.all(Device)[:3]
    world.store.change(Device, first.device_id, revoked=True)
    world.store.change(Device, second.device_id, node_id=0)
    runner, _ = world.runner()
    runner.plan(1, PLAIN)
    runner.run_pending()
    cohort = world.store.all(Round)[0].cohort
    assert len(cohort) == 3
    assert third.device_id in cohort


@pytest.mark.parametrize("secure", [True, False])
def test_a_device_that_dies_costs_its_update_and_not_the_round(
    tmp_path: Path, secure: bool
) -> None:
    kind = wire.TRAIN if secure else "train"
    world = world_of(tmp_path, dies={(11, kind): Death.BEFORE})
    runner, _ = world.runner()
    runner.plan(1, {**({} if secure else PLAIN), "deadline_s": 1.0})
    runner.run_pending()
    require_trained(world, 1)
    [one] = world.store.all(Round)
    assert (len(one.cohort), len(one.survivors)) == (5, 4)
    assert world.store.all(Device)[0].device_id not in one.survivors


def test_a_lost_superlink_costs_a_run_and_not_the_training(world: World) -> None:
    world.link.losses = 1
    runner, _ = world.runner()
    planned = runner.plan(1, PLAIN)
    runner.run_pending()
    require_trained(world, 1)
    assert world.link.runs == [planned.training_id] * 2


def test_an_app_that_cannot_be_read_ends_the_training_with_its_sentence(world: World) -> None:
    def broken(app: str, seed: int, out: Path) -> Origin:
        raise TaskError(f"{app} is no task")

    runner, _ = world.runner(broken)
    runner.plan(1, {})
    runner.run_pending()
    [training] = world.store.all(Training)
    assert (training.phase, training.reason) == ("aborted", "task:tiny is no task")
    assert world.link.runs == []


@pytest.mark.parametrize("after", [True, False], ids=["written", "not-written"])
def test_a_restart_anywhere_goes_on_from_the_stored_point(tmp_path: Path, after: bool) -> None:
    whole = CutStore()
    probe = world_of(tmp_path / "whole", whole)
    runner, _ = probe.runner()
    runner.plan(2, PLAIN)
    planned = whole.writes
    runner.run_pending()
    assert whole.writes > planned + 10
    for cut_at in range(planned + 1, whole.writes + 1):
        memory = CutStore(cut_at=cut_at, after=after)
        world = world_of(tmp_path / str(cut_at), memory)
        runner, _ = world.runner()
        runner.plan(2, PLAIN)
        with pytest.raises(Cut):
            runner.run_pending()
        world.runner()[0].run_pending()
        require_trained(world, 2)
        kinds = world.kinds()
        told = [kinds.count(f"round.{what}") for what in ("started", "recorded")]
        assert (told, kinds.count("training.finished")) == ([2, 2], 1), cut_at


def test_a_secure_round_that_was_cut_off_begins_again_with_its_cohort(tmp_path: Path) -> None:
    memory = CutStore()
    world = world_of(tmp_path, memory)
    runner, _ = world.runner()
    runner.plan(1, {"cohort": 4})
    memory.cut_at = memory.writes + 6  # in the middle of the training's stages
    with pytest.raises(Cut):
        runner.run_pending()
    [cut] = world.store.all(Round)
    assert cut.phase == "training"
    world.runner()[0].run_pending()
    require_trained(world, 1)
    assert world.store.all(Round)[0].cohort == cut.cohort


def test_a_round_that_stops_the_server_again_and_again_is_given_up(tmp_path: Path) -> None:
    memory = CutStore()
    world = world_of(tmp_path, memory)
    runner, _ = world.runner()
    runner.plan(1, PLAIN)
    memory.cut_at = memory.writes + 3  # the training, the round, the drawn cohort
    with pytest.raises(Cut):
        runner.run_pending()
    for _ in range(MAX_WAKES):
        memory.cut_at = memory.writes + 3  # the run, the wake, who is connected
        with pytest.raises(Cut):
            world.runner()[0].run_pending()
    world.runner()[0].run_pending()
    [training] = world.store.all(Training)
    reason = f"Round 1: The server stopped {MAX_WAKES + 1} times during this round."
    assert (training.phase, training.reason) == ("aborted", reason)


def test_a_server_that_stops_begins_no_training(world: World) -> None:
    runner, stopping = world.runner()
    runner.plan(1, PLAIN)
    stopping.set()
    runner.run_pending()
    assert world.store.all(Training)[0].phase == "planned"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quorum": 0}, "quorum"),
        ({"cohort": -1}, "cohort"),
        ({"deadline_s": 0.5}, "deadline_s"),
        ({"clip": 0}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"momentum": 1}, "momentum"),
        ({"epochs": "three"}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"epoch": 3}, "no setting 'epoch'"),
        ({"protection": "secag"}, "protection = 'secag': allowed is one of secagg"),
        ({"bits": 24}, "bits = 24: allowed is one of 16, 32"),
        ({"adversary": 1}, "adversary"),
    ],
)
def test_a_setting_out_of_range_is_named(
    world: World, settings: dict[str, float | str], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        world.runner()[0].plan(1, settings)
    assert world.store.all(Training) == []


@pytest.mark.parametrize("rounds", [0, -1, 100_001])
def test_a_number_of_rounds_out_of_range_is_named(world: World, rounds: int) -> None:
    with pytest.raises(SettingsError, match=f"rounds = {rounds}"):
        world.runner()[0].plan(rounds, {})


def test_a_server_that_learns_nothing_says_so(world: World) -> None:
    world.learning = Learning("", "none", {})
    with pytest.raises(SettingsError, match="nothing to learn"):
        world.runner()[0].plan(1, {})


def test_what_is_asked_for_outweighs_the_servers_settings(world: World) -> None:
    planned = world.runner()[0].plan(1, {"quorum": 4})
    assert (planned.settings["quorum"], planned.settings["join_s"]) == (4, 0.1)
    assert planned.settings["max_weight"] == 10_000


def test_the_thread_runs_trainings_in_the_order_asked_for(world: World) -> None:
    runner, _ = world.runner()
    with runner:
        keys = [runner.plan(1, PLAIN).training_id for _ in range(2)]
        until(lambda: all(one.phase == "finished" for one in world.store.all(Training)))
    started = [e.subject for e in world.store.events() if e.kind == "training.started"]
    assert started == keys


def test_a_server_that_stops_in_a_round_leaves_it_to_its_next_start(world: World) -> None:
    for watcher in world.watchers:
        world.presence.detach(watcher)
    runner, _ = world.runner()
    with runner:
        runner.plan(1, {**PLAIN, "join_s": 600})
        until(lambda: bool(world.store.all(Round)))
    [training] = world.store.all(Training)
    assert (training.phase, world.store.all(Round)[0].phase) == ("running", "planned")
    for one in world.store.all(Device):
        world.presence.attach(one.device_id, lambda: None)
    world.runner()[0].run_pending()
    require_trained(world, 1)
