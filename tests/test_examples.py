"""The example projects do what their pages say."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wildflower.strategies.task import Examples, Task, find_task

EXAMPLES = Path(__file__).parents[1] / "examples"
OWN_TASK = EXAMPLES / "own-task" / "task.py"
FLOWER_APP = EXAMPLES / "flower-app"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a busy machine two are many times slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("digits") / "digits.npz"
    subprocess.run([sys.executable, str(OWN_TASK), str(target)], check=True)
    return target


def test_the_own_task_is_a_task() -> None:
    task = find_task(str(OWN_TASK))
    assert isinstance(task, Task)
    outputs = task.build_model()(__import__("torch").from_numpy(task.example()))
    assert outputs.shape == (1, len(task.labels))


def test_naming_the_own_task_imports_no_torch() -> None:
    named = f"from wildflower.strategies.task import find_task; find_task({str(OWN_TASK)!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {named}; sys.exit('torch' in sys.modules)"],
        check=False,
    )
    assert done.returncode == 0


def test_its_data_file_is_the_same_each_time(digits: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.npz"
    subprocess.run([sys.executable, str(OWN_TASK), str(again)], check=True)
    first, second = Examples.open(digits), Examples.open(again)
    assert len(first) == 1797
    assert np.array_equal(first.inputs, second.inputs)
    assert first.inputs.min() == 0
    assert first.inputs.max() == 1


def test_its_network_learns(digits: Path) -> None:
    import torch

    task = find_task(str(OWN_TASK))
    examples = task.load(digits)
    torch.manual_seed(0)
    model = task.build_model()
    optimiser = torch.optim.SGD(model.parameters(), task.recipe.learning_rate, momentum=0.9)
    inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
    for _ in range(task.recipe.epochs):
        for start in range(0, 1400, task.recipe.batch_size):
            batch = slice(start, min(start + task.recipe.batch_size, 1400))
            optimiser.zero_grad()
            task.loss(model(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
    with torch.no_grad():
        outputs = model(inputs[1400:]).numpy()
    assert task.metrics(outputs, examples.targets[1400:])["correct"] / 397 > 0.9


@pytest.fixture
def flower_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Load the Flower app as a device does, with its own run config; forget it afterwards."""
    from flwr.app import Context, Message

    from wildflower.client.local_app import flower_app_config, load_flower_app

    monkeypatch.syspath_prepend(str(FLOWER_APP))
    client = load_flower_app(FLOWER_APP)
    config = flower_app_config(FLOWER_APP)

    def answer(message: Message, context: Context) -> Message:
        context.run_config = {**config}
        return client(message, context)

    yield answer
    for name in [name for name in sys.modules if name.partition(".")[0] == "digits_app"]:
        del sys.modules[name]


def test_the_flower_app_learns_over_a_grid_as_it_stands(flower_app: Callable[..., Any]) -> None:
    import torch
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import FedAvg

    from wildflower.simulation.grid import InProcessGrid

    torch.manual_seed(0)
    found = FedAvg().start(
        grid=InProcessGrid(dict.fromkeys(range(100, 104), flower_app)),
        initial_arrays=ArrayRecord(
            importlib.import_module("digits_app.task").build_model().state_dict()
        ),
        num_rounds=3,
    )
    measured = found.evaluate_metrics_clientapp
    accuracies = [float(str(measured[number]["accuracy"])) for number in (1, 2, 3)]
    assert accuracies[-1] > max(0.8, accuracies[0])


def test_flower_itself_takes_the_app(tmp_path: Path) -> None:
    app = tmp_path / "app"
    shutil.copytree(FLOWER_APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    flwr = Path(sys.executable).with_name("flwr")
    done = subprocess.run(
        [str(flwr), "build", "--app", "."],
        cwd=app,
        env=os.environ | {"FLWR_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.suffix for path in app.glob("*.fab")] == [".fab"]
