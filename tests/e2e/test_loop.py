"""The demo's steps, smaller: four agents, one round, as a user would call it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from wildflower.console import schema_of
from wildflower.simulation.cli.demo import demo
from wildflower.simulation.local import processes
from wildflower.simulation.local.fleet import Fleet


def wildflower(*arguments: str, timeout_s: float = 240.0) -> tuple[int, dict[str, Any], str]:
    """Run the command; return its exit code, its JSON line, and what it told people."""
    ended = subprocess.run(
        [sys.executable, "-m", "wildflower.cli", *arguments, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    lines = ended.stdout.splitlines()
    return ended.returncode, json.loads(lines[-1]) if lines else {}, ended.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop") / "demo"


@pytest.fixture(scope="module")
def result(place: Path) -> dict[str, Any]:
    code, answer, told = wildflower("demo", "--dir", str(place), "--devices", "4", "--rounds", "1")
    assert code == 0, f"{answer}\n{told}"
    return answer


@pytest.mark.timeout(300)
def test_every_arrow_of_the_loop_holds(result: dict[str, Any]) -> None:
    figures = result["figures"]
    assert result["success"] is True
    assert figures["rounds"] == 1
    assert figures["artifacts"] == 3
    assert figures["devices_committed"] == 4
    assert figures["bad_release_refused"] == 3
    assert figures["rolled_back"] >= 1
    assert figures["orphan_processes"] == 0
    assert figures["int8_answers_worse"] <= 5
    assert 0.3 < figures["accuracy"] <= 1.0  # one round only: well above guessing


@pytest.mark.timeout(300)
def test_the_output_keeps_its_own_schema(result: dict[str, Any]) -> None:
    jsonschema.validate(result, schema_of(demo))


@pytest.mark.timeout(300)
def test_the_report_is_whole_and_asks_for_nothing(result: dict[str, Any]) -> None:
    page = Path(result["report"]).read_text()
    assert page.count("<svg") == 3
    assert 'src="' not in page


@pytest.mark.timeout(300)
def test_no_process_is_left(result: dict[str, Any], place: Path) -> None:
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(place) in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
    ]
    assert left == []
    assert processes.orphans(Fleet(place).processes()) == []


def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    code, answer, _ = wildflower("demo", "--dir", str(tmp_path), timeout_s=60)
    assert code == 1
    assert answer["error"]["type"] == "DirectoryError"
    assert (tmp_path / "thesis.tex").read_text() == "precious"
