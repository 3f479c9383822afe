"""The example projects do what their pages say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wildflower.strategies.task import Examples, Task, find_task

EXAMPLES = Path(__file__).parents[1] / "examples"
OWN_TASK = EXAMPLES / "own-task" / "task.py"


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
