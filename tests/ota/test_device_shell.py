"""Store first, act second: a real process is killed (SIGKILL) between the two, everywhere.

Where the power goes out inside a write is SQLite's and the file system's business; what is ours is
that the state on disk always says enough to go on. `tests/device_child.py` is the process.
"""

import subprocess
import sys
from dataclasses import replace
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
WATCHED = bundle(2, scale=2.0, trial=replace(GOOD.release.trial, probation_s=25))
SICK = bundle(2, scale=2.0, trial=replace(GOOD.release.trial, probation_s=15))
ONES = {"good": GOOD, "evil": EVIL, "watched": WATCHED, "sick": SICK}
WATCHED, SICK = (
    bundle(2, scale=2.0, trial=replace(GOOD.release.trial, probation_s=seconds))
    for seconds in (25, 15)
)
ONES = {"good": GOOD, "evil": EVIL, "watched": WATCHED, "sick": SICK}
STATES = {"good": 11, "evil": 10, "watched": 11, "sick": 12}
EFFECTS = {"good": 10, "evil": 9, "watched": 13, "sick": 11}
POSTPONED = {"good": 0, "evil": 0, "watched": 3, "sick": 0}
"""How many states they store, how many effects they begin, how many of these end postponed: the
looks at a release on probation, one every ten seconds, until it was healthy for 25."""
CHECK = f"""#!/bin/sh
test "$WILDFLOWER_RELEASE" != {SICK.digest} || {{ echo it smokes; exit 1; }}
"""


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


def places(kind: str) -> dict[str, int]:
    """Return how often each place of a kill is reached."""
    states, effects = STATES[kind], EFFECTS[kind]
    acted = effects - POSTPONED[kind]
    return {"store": states, "stored": states, "act": effects, "acted": acted}


POINTS = [
    (kind, place, number)
    for kind in ONES
    for place, count in places(kind).items()
    for number in range(1, count + 1)
]
SAMPLE = {
    ("good", "act", 7),
    ("good", "acted", 9),
    ("evil", "store", 8),
    ("watched", "act", 10),
    ("sick", "stored", 9),
}


@pytest.mark.parametrize(
    ("kind", "place", "number"),
    [pytest.param(*point, marks=() if point in SAMPLE else pytest.mark.slow) for point in POINTS],
)
def test_a_kill_between_store_and_act_loses_nothing_and_reports_once(
    tmp_path: Path, kind: str, place: str, number: int
) -> None:
    check = tmp_path / "check"
    check.write_text(CHECK)
    check.chmod(0o755)
    put(tmp_path, FIRST)
    assert switch_on(tmp_path) == 0
    put(tmp_path, ONES[kind])
    assert switch_on(tmp_path, place, number) == -9
    slots = Slots(tmp_path / "slots")
    running = slots.manifest(slots.running())
    assert running is not None
    assert slots.is_complete(running)
    assert switch_on(tmp_path) == 0
    stays = kind in ("good", "watched")
    ending = Outcome.COMMITTED if stays else Outcome.ROLLED_BACK
    assert slots.running() == (ONES[kind] if stays else FIRST).digest
    assert reports(tmp_path) == [Outcome.COMMITTED, ending]
