"""A simulated training: it learns, loses devices, repeats itself; the command shows it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_task import points, task

from wildflower.cli import main
from wildflower.client.training import evaluate
from wildflower.simulation.cli import simulate as command
from wildflower.simulation.data import digits
from wildflower.simulation.errors import SimulationError
from wildflower.simulation.fleet import Scenario, simulate
from wildflower.simulation.grid import Death
from wildflower.simulation.local.demo_task import task as demo_task
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.task import find_task

EXAMPLES = points(400)


@pytest.mark.parametrize("secure", [True, False])
def test_a_fleet_learns(secure: bool) -> None:
    done = simulate(task, EXAMPLES, Scenario(5, 3, secure=secure))
    assert [each.number for each in done.rounds] == [1, 2, 3]
    assert done.rounds[-1].accuracy > 0.85
    assert done.rounds[-1].loss < done.rounds[0].loss
    assert all(each.devices == 5 for each in done.rounds)
    assert 0 < sum(each.seconds for each in done.rounds) < done.seconds


def test_secure_and_plain_trainings_come_to_nearly_the_same_model() -> None:
    one, two = (simulate(task, EXAMPLES, Scenario(5, 2, secure=s)) for s in (True, False))
    for name, array in one.model.items():
        assert array == pytest.approx(two.model[name], abs=1e-5)


def test_equal_seeds_give_equal_models() -> None:
    one, again = (simulate(task, EXAMPLES, Scenario(4, 1, seed=3)) for _ in range(2))
    assert all(np.array_equal(one.model[name], again.model[name]) for name in one.model)


def test_a_device_that_dies_is_missing_from_its_round_on() -> None:
    deaths = {(2, 0, "train"): Death.BEFORE}
    done = simulate(task, EXAMPLES, Scenario(6, 3, deaths=deaths))
    assert [each.devices for each in done.rounds] == [6, 5, 5]


def test_a_fleet_below_its_quorum_stops() -> None:
    deaths = {(1, device, "train"): Death.BEFORE for device in range(3)}
    with pytest.raises(RoundAbortedError, match="at least 3"):
        simulate(task, EXAMPLES, Scenario(5, 1, secure=False, deaths=deaths))


def test_the_command_shows_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points(300).save(tmp_path / "data.npz")
    arguments = ["simulate", "--devices", "4", "--rounds", "2", "--task", "tests.tiny_task:task"]
    arguments += ["--data", str(tmp_path / "data.npz"), "--format", "json"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["success"]
    assert (shown["task"], shown["devices"], shown["secure"]) == ("tiny", 4, True)
    assert [line["round"] for line in shown["rounds"]] == [1, 2]
    assert shown["final_accuracy"] > 0.7


def test_a_task_without_examples_is_told() -> None:
    with pytest.raises(SimulationError, match="'tiny' needs examples"):
        command.simulate(task="tests.tiny_task:task")


def test_the_demo_task_keeps_the_contract_of_a_task() -> None:
    found = find_task(command.DIGITS)
    outputs = found.build_model()(torch.from_numpy(found.example()))
    assert tuple(outputs.shape) == (1, len(found.labels))
    assert found.metrics(outputs.detach().numpy(), outputs.detach().numpy().argmax(1)) == {
        "correct": 1.0
    }


def test_the_demo_task_is_named_without_torch() -> None:
    code = "import sys, wildflower.simulation.local.demo_task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_demo_task_reaches_90_percent_with_a_device_lost() -> None:
    split = digits()
    deaths = {(2, 3, "train"): Death.BEFORE}
    done = simulate(demo_task, split.train, Scenario(8, 3, deaths=deaths))
    sums = evaluate(demo_task, done.model, split.final)
    assert sums["eval-correct"] / sums["eval-examples"] >= 0.90
