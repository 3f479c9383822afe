"""What becomes known of a model: in the round after it, or in a session of its own."""

import os
import threading
from pathlib import Path

import pytest
from tests.operator_fakes import FleetLink
from tests.record_fakes import SetClock, device
from tests.round_fakes import MODEL, Fleet, FlowerApp

from wildflower.server.blobs import BlobStore
from wildflower.server.cohort import Gathering
from wildflower.server.events import ObservedStore
from wildflower.server.initial_model import STATISTICS, Origin
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Presence
from wildflower.server.records import Model, Round, Training
from wildflower.server.round_trip import Parties
from wildflower.server.round_work import RoundTools
from wildflower.server.rounds import Learning, RoundRunner
from wildflower.simulation.grid import Death
from wildflower.strategies.arrays import to_safetensors

MEASURED = {"eval-examples": 8.0, "eval-correct": 6.0, "eval-loss": 4.0}


def initial(_: str, seed: int, out: Path) -> Origin:
    out.write_bytes(to_safetensors(MODEL))
    return Origin(4.0, STATISTICS, is_task=True)


def trained(tmp_path: Path, rounds: int, *, dies: bool = False) -> ObservedStore:
    """Run a training in plain; the devices may die at the last model's evaluation."""
    fleet = Fleet([FlowerApp(0.25, metrics=MEASURED).app for _ in range(3)])
    if dies:
        fleet.grid.dies = {(node, "evaluate"): Death.BEFORE for node in fleet.nodes}
    store, presence = ObservedStore(MemoryStore(), SetClock()), Presence()
    for number, node in enumerate(fleet.nodes):
        one = device(f"device-{number}", node_id=node)
        store.put(one)
        presence.attach(one.device_id, lambda: None)
    gathering = Gathering(store, presence, store.bus, threading.Event())
    blobs = BlobStore(tmp_path / "blobs")
    tools = RoundTools(store, store.bus, blobs, gathering, Parties(b""), SetClock(), os.urandom)
    settings = {"quorum": 3.0, "join_s": 0.1, "deadline_s": 1.0}
    runner = RoundRunner(tools, FleetLink(fleet.grid), Learning("t", "tiny", settings), initial)
    runner.plan(rounds, {"protection": "plain"})
    runner.run_pending()
    return store


def test_a_round_measures_the_model_before_and_the_last_has_a_session_of_its_own(
    tmp_path: Path,
) -> None:
    store = trained(tmp_path, 2)
    for model in store.all(Model):
        assert model.metrics["accuracy"] == pytest.approx(0.75), model.round_number
        assert model.metrics["eval_examples"] == 24.0
    for one in store.all(Round):
        assert one.metrics["accuracy"] == pytest.approx(0.75)
        assert one.metrics["examples"] == 30.0
    told = [e for e in store.events() if e.fields.get("stage") == "measured"]
    assert [event.fields["number"] for event in told] == [0, 1, 2]


def test_a_model_that_nobody_can_measure_is_kept(tmp_path: Path) -> None:
    store = trained(tmp_path, 1, dies=True)
    [training], [one] = store.all(Training), store.all(Round)
    assert (training.phase, one.phase) == ("finished", "recorded")
    assert "accuracy" not in one.metrics
    assert store.all(Model)[-1].metrics == {}
