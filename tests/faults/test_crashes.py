"""Killed and cut off anywhere in what a device does: updates, ways back, software, recoveries.

The ordinary suite takes one point in many; the slow one takes every one.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.faults.bench import complaints
from tests.faults.benches import ERRORS, FAILING, MATRICES
from tests.faults.crashes import Verdict

pytestmark = pytest.mark.timeout(3600)


def all_survive(verdicts: Iterable[Verdict]) -> int:
    """Check that all were survived; return how many there were."""
    found = list(verdicts)
    assert [one for one in found if not one.is_survived] == []
    return len(found)


def test_a_sample_of_crashes_is_survived(tmp_path: Path) -> None:
    with MATRICES["update"](tmp_path, 80) as matrix:
        assert all_survive(matrix.kills()) >= 2
        assert all_survive(matrix.power_cuts()) >= 4


def test_the_judges_see_a_device_that_is_torn_or_lost_something(tmp_path: Path) -> None:
    """A matrix that cannot fail says nothing: here the disk loses a file behind the device."""
    with MATRICES["order back"](tmp_path, 50) as matrix:
        bench = matrix.bench
        device = bench.copy(matrix.base)
        name = bench.second.release.artifact.name
        (device / "slots" / bench.second.digest / name).unlink()
        assert complaints(device, bench.known) != []
        assert matrix.ends[0].losses(device) != []


def test_a_sample_of_crashes_is_survived_where_a_handler_is_at_work(tmp_path: Path) -> None:
    with MATRICES["handlers, judged"](tmp_path, 60) as matrix:
        assert all_survive(matrix.kills()) >= 2
        assert all_survive(matrix.power_cuts()) >= 4


def test_the_judges_see_software_that_is_torn_or_told_wrong(tmp_path: Path) -> None:
    with MATRICES["self-update, judged"](tmp_path, 50) as matrix:
        bench, device = matrix.bench, matrix.bench.copy(matrix.base)
        assert bench.complaints(device) == []
        assert matrix.ends[0].losses(device) != []
        (version,) = (device / "agent" / "current").resolve().glob("lib/*/site-packages/wildflower")
        (version / "client" / "daemon.py").write_text("")
        assert bench.complaints(device) != []


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_being_killed_before_any_call_that_changes_the_disk_is_survived(
    tmp_path: Path, name: str
) -> None:
    with MATRICES[name](tmp_path, 1) as matrix:
        assert all_survive(matrix.kills()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_a_power_cut_at_any_such_call_is_survived(tmp_path: Path, name: str) -> None:
    with MATRICES[name](tmp_path, 1) as matrix:
        assert all_survive(matrix.power_cuts()) > 40


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", FAILING)
def test_an_error_at_any_write_is_survived(tmp_path: Path, name: str, error: str) -> None:
    with MATRICES[name](tmp_path, 1) as matrix:
        assert all_survive(matrix.errors(error)) > 20
