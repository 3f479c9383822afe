"""The demo's steps, smaller: four agents, two rounds, as a user would call it."""

from pathlib import Path
from typing import Any

import pytest
from tests.e2e.commands import processes_of, run, wildflower

from wildflower.simulation.local import processes
from wildflower.simulation.local.fleet import Fleet

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop") / "demo"


@pytest.fixture(scope="module")
def result(place: Path) -> dict[str, Any]:
    return run("demo", "--dir", str(place), "--devices", "4", "--rounds", "2")


def test_every_arrow_of_the_loop_holds(result: dict[str, Any]) -> None:
    figures = result["figures"]
    assert result["success"] is True
    assert figures["rounds"] == 2
    assert figures["artifacts"] == 3
    assert figures["devices_committed"] == 4
    assert figures["bad_release_refused"] == 3
    assert figures["rolled_back"] >= 1
    assert figures["orphan_processes"] == 0
    assert figures["int8_answers_worse"] <= 5
    assert 0.4 < figures["accuracy"] <= 1.0  # after two rounds only: well above guessing


def test_the_report_is_whole_and_asks_for_nothing(result: dict[str, Any]) -> None:
    page = Path(result["report"]).read_text()
    assert page.count("<svg") == 3
    assert 'src="' not in page


def test_no_process_is_left(result: dict[str, Any], place: Path) -> None:
    assert result["figures"]["orphan_processes"] == 0
    assert processes_of(place) == []
    assert processes.orphans(Fleet(place).processes()) == []


def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    code, answer, _ = wildflower("demo", "--dir", str(tmp_path), timeout_s=60)
    assert code == 1
    assert answer["error"]["type"] == "DirectoryError"
    assert (tmp_path / "thesis.tex").read_text() == "precious"
