"""Store first, act second: a real process is killed (SIGKILL) between the two, everywhere.

Where the power goes out inside a write is SQLite's and the file system's business; what is ours is
that the state on disk always says enough to go on. `tests/device_child.py` is the process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.device_fakes import Bundle, bundle, document, golden_of
from tests.slots_fakes import scaling_model

from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import State
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots

CHILD = Path(__file__).parents[1] / "device_child.py"
FIRST, GOOD = bundle(1), bundle(2, scale=2.0)
EVIL = bundle(2, scale=2.0, golden=golden_of(scaling_model(2.0), off=1.0))
EFFECTS = {"good": 8, "evil": 9}
"""How many effects the two take, a state being stored before each and after the last."""


def put(directory: Path, one: Bundle) -> None:
    """Put a release on the shelf that the device takes it from."""
    shelf = directory / "shelf"
    one.lay_out(shelf)
    (shelf / "manifest.json").write_bytes(one.release.to_bytes())
    (shelf / "rollout.json").write_bytes(document(one.release).to_bytes())


def switch_on(directory: Path, place: str = "never", number: int = 0) -> int:
    command = [sys.executable, str(CHILD), str(directory), place, str(number)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def reports(directory: Path) -> list[Outcome]:
    journal = Journal.peek(directory / "journal.db")
    try:
        assert journal.load() == State(attempt=2)
        return [entry.outcome for entry in journal.reports()]
    finally:
        journal.close()


POINTS = [
    (kind, place, number)
    for kind, count in EFFECTS.items()
    for place in ("store", "stored", "act", "acted")
    for number in range(1, count + 1 + place.startswith("store"))
]
SAMPLE = {
    ("good", "stored", 5),
    ("good", "act", 7),
    ("good", "acted", 8),
    ("evil", "store", 8),
    ("evil", "acted", 7),
}


@pytest.mark.parametrize(
    ("kind", "place", "number"),
    [pytest.param(*point, marks=() if point in SAMPLE else pytest.mark.slow) for point in POINTS],
)
def test_a_kill_between_store_and_act_loses_nothing_and_reports_once(
    tmp_path: Path, kind: str, place: str, number: int
) -> None:
    put(tmp_path, FIRST)
    assert switch_on(tmp_path) == 0
    one = GOOD if kind == "good" else EVIL
    put(tmp_path, one)
    assert switch_on(tmp_path, place, number) == -9
    slots = Slots(tmp_path / "slots")
    running = slots.manifest(slots.running())
    assert running is not None
    assert slots.is_complete(running)
    assert switch_on(tmp_path) == 0
    ending = Outcome.COMMITTED if kind == "good" else Outcome.ROLLED_BACK
    assert slots.running() == (GOOD if kind == "good" else FIRST).digest
    assert reports(tmp_path) == [Outcome.COMMITTED, ending]
