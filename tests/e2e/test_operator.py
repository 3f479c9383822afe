"""A user's own task on a local fleet, through the operator's commands; each keeps its schema."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.commands import ROOT, processes_of, run, wildflower

pytestmark = pytest.mark.timeout(300)
TASK = ROOT / "examples" / "own-task" / "task.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fleet of four devices that has trained two rounds."""
    folder = tmp_path_factory.mktemp("operator")
    data, place = folder / "digits.npz", folder / "fleet"
    subprocess.run([sys.executable, str(TASK), str(data)], check=True)
    own = ("--devices", "4", "--model", str(TASK), "--data", str(data))
    try:
        run("local up", "--dir", str(place), *own)
        run("round start", "--rounds", "2", "--wait", "--dir", str(place / "server"))
        yield place
    finally:
        run("local down", "--dir", str(place))
        assert processes_of(place) == []


def ask(place: Path, words: str, *arguments: str) -> dict[str, Any]:
    return run(words, *arguments, "--dir", str(place / "server"))


def test_the_server_says_how_it_is(place: Path) -> None:
    status = ask(place, "server status")
    assert (status["ready"], status["devices"]) == (True, 4)
    assert {row["name"] for row in status["processes"]} == {"superlink", "signer"}


def test_rounds_are_listed_and_shown(place: Path) -> None:
    [training, *_] = ask(place, "round ls")["trainings"]
    assert (training["phase"], training["recorded"], training["secure"]) == ("finished", 2, True)
    shown = ask(place, "round show", training["training_id"])
    assert [row["number"] for row in shown["rounds"]] == [1, 2]
    assert all(len(row["survivors"]) == 4 for row in shown["rounds"])


def test_a_model_becomes_gated_artifacts_and_reaches_every_device(place: Path) -> None:
    line = ask(place, "build", "--wait")
    assert line["phase"] == "published", line["reason"]
    artifact = line["artifacts"][0]
    gates = ask(place, "gate", artifact["digest"])
    assert gates["passed"] is True
    assert {row["gate"] for row in gates["results"]} >= {"parity", "size", "accuracy"}
    done = ask(place, "rollout create", "--min-reports", "4", "--wait")
    rollout = done.get("rollout", done)
    assert rollout["phase"] == "done", rollout
    assert sum(group["committed"] for group in rollout["groups"]) == 4
    assert ask(place, "rollout show", rollout["rollout_id"])
    assert ask(place, "rollout ls")["rollouts"]
    fleet = ask(place, "fleet ls")
    built = {one["digest"] for one in line["artifacts"]}
    assert {row["running"] for row in fleet["devices"]} <= built
    chain = ask(place, "trace", "device-02")["chains"][0]
    assert (chain["model"], chain["round_number"], chain["secure"]) == (line["model"], 2, True)
    status = run("agent status", "--dir", str(place / "devices" / "device-02"))
    assert status["artifact"] == chain["artifact"]
    assert ask(place, "rollout abort", rollout["rollout_id"], "--reason", "no longer wanted")


def test_a_process_is_killed_and_started_again(place: Path) -> None:
    before = run("local status", "--dir", str(place))["processes"]
    after = run("local kill", "device-04", "--restart", "--dir", str(place))["processes"]
    pids = {row["name"]: row["pid"] for row in before}
    assert {row["name"] for row in after if row["pid"] != pids[row["name"]]} == {"device-04"}
    assert all(row["alive"] for row in after)
    assert run("local logs", "server", "--lines", "3", "--dir", str(place))["process"] == "server"


def test_an_invitation_is_a_token(place: Path) -> None:
    assert ask(place, "device invite")["token"].startswith("wf1.")


def test_what_the_server_does_not_know_is_told_with_what_to_do(place: Path) -> None:
    code, answer, _ = wildflower("trace", "no-such-thing", "--dir", str(place / "server"))
    assert (code, answer["success"]) == (1, False)
    assert answer["error"]["message"]
