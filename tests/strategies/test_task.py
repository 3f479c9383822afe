"""Tasks are found by name, and say what is wrong with them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wildflower.strategies.errors import TaskError
from wildflower.strategies.task import Examples, Task, find_task

SOURCE = """
from wildflower.strategies.task import Examples, Recipe

class Toy:
    name, labels, recipe = "toy", ("no", "yes"), Recipe(epochs=2)
    def build_model(self): ...
    def loss(self, outputs, targets): ...
    def metrics(self, outputs, targets): ...
    def example(self): ...
    def load(self, path): return Examples.open(path)

task = Toy()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module `toy_module`, a task file, and nothing left behind."""
    before = set(sys.modules)
    (tmp_path / "toy_module.py").write_text(SOURCE)
    (tmp_path / "toy.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "toy" in name:
            del sys.modules[name]


def test_a_task_is_found_in_a_module_a_file_or_an_entry_point(folder: Path) -> None:
    info = folder / "toys-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[wildflower.tasks]\ntoys = toy_module:task\n")
    for reference in ("toy_module:task", str(folder / "toy.py"), "toys"):
        found = find_task(reference)
        assert isinstance(found, Task)
        assert (found.name, found.recipe.epochs) == ("toy", 2)


def test_naming_a_task_needs_no_torch() -> None:
    code = "import wildflower.strategies.task, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("no_such_module:task", "cannot be imported: ModuleNotFoundError"),
        ("toy_module:nothing", "cannot be imported: AttributeError"),
        (":task", "cannot be imported: ValueError"),
        ("no_such_task", "there is no task 'no_such_task'"),
        ("no/such/file.py", "there is no file no/such/file.py"),
        ("toy_module:Examples", "is no task: it lacks name, labels, recipe, build_model"),
    ],
)
def test_a_task_that_cannot_be_had_says_why(folder: Path, reference: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        find_task(reference)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("task = (", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("task = 1 / 0", "ZeroDivisionError"),
        ("", "AttributeError"),
    ],
)
def test_whatever_a_users_file_raises_is_told(folder: Path, source: str, reason: str) -> None:
    (folder / "toy.py").write_text(source)
    with pytest.raises(TaskError, match=reason):
        find_task(str(folder / "toy.py"))


def test_a_folder_that_is_called_like_a_file_is_no_task(folder: Path) -> None:
    (folder / "toys.py").mkdir()
    with pytest.raises(TaskError, match="there is no file"):
        find_task(str(folder / "toys.py"))


EXAMPLES = Examples(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0]))


def test_examples_come_back_from_their_file(tmp_path: Path) -> None:
    EXAMPLES.save(tmp_path / "data.npz")
    found = Examples.open(tmp_path / "data.npz")
    assert np.array_equal(found.inputs, EXAMPLES.inputs)
    assert np.array_equal(found.targets, EXAMPLES.targets)
    assert len(found) == 3


def test_examples_are_cut_and_picked_together() -> None:
    assert EXAMPLES[1:].targets.tolist() == [1, 0]
    assert EXAMPLES[np.array([2, 0])].inputs.tolist() == [[4, 5], [0, 1]]


def test_wide_numbers_are_read_as_float32(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=np.zeros((2, 1)), targets=np.zeros(2))
    assert Examples.open(tmp_path / "data.npz").inputs.dtype == np.float32


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(TaskError, match="No such file"):
        Examples.open(path)
    np.savez(path, inputs=np.zeros(2))
    with pytest.raises(TaskError, match="targets"):
        Examples.open(path)
    np.savez(path, inputs=np.zeros(2), targets=np.zeros(3))
    with pytest.raises(TaskError, match="2 inputs, but 3 targets"):
        Examples.open(path)
    np.savez(path, inputs=np.array(["a"]), targets=np.zeros(1))
    with pytest.raises(TaskError, match="could not convert"):
        Examples.open(path)
    np.savez(path, inputs=np.zeros(()), targets=np.zeros(()))
    with pytest.raises(TaskError, match="unsized"):
        Examples.open(path)
    np.savez(path, inputs=np.array([{}]), targets=np.zeros(1))
    with pytest.raises(TaskError, match="allow_pickle"):
        Examples.open(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(TaskError, match=r"not an \.npz file"):
        Examples.open(path)


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_refused_or_other_examples(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "data.npz"
    EXAMPLES.save(path)
    stored = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    else:
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(stored)
    try:
        found = Examples.open(path)
    except TaskError:
        return
    assert len(found) == len(found.targets)
