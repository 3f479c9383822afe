"""What a training starts from, made in a child process."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from wildflower.server.errors import SettingsError
from wildflower.server.initial_model import STATISTICS, Origin, answer, captured_model, make_initial
from wildflower.strategies.arrays import from_safetensors
from wildflower.strategies.errors import TaskError

ROOT = Path(__file__).parents[2]
TASK = str(ROOT / "examples" / "own-task" / "task.py")
FLOWER_APP = str(ROOT / "examples" / "flower-app")


def test_a_task_gives_its_fresh_model_and_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert make_initial(TASK, 7, one) == Origin(1.0, STATISTICS, is_task=True)
    make_initial(TASK, 7, other)
    assert one.read_bytes() == other.read_bytes()
    found = from_safetensors(one.read_bytes())
    assert list(found) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert found["0.weight"].shape[1] == 64


def test_an_unchanged_flower_app_gives_the_first_model_that_it_would_send(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    origin = make_initial(FLOWER_APP, 7, one)
    assert not origin.is_task
    assert "mean.accuracy" in origin.statistics
    make_initial(FLOWER_APP, 8, other)
    first, second = from_safetensors(one.read_bytes()), from_safetensors(other.read_bytes())
    assert first.keys() == second.keys()
    assert not np.array_equal(first["0.weight"], second["0.weight"]), "the seed decides"


APP = """
[project]
name = "strange"
[tool.flwr.app.components]
serverapp = "{module}:app"
[tool.flwr.app.config]
rounds = 3
nested.name = "x"
"""
SERVER = """
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    assert context.run_config == {"rounds": 3, "nested.name": "x"}
"""
IMPORTS = """
    import numpy as np
    from flwr.app import Array, ArrayRecord, Message, RecordDict
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a Flower app's module that no other test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"strange_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "pyproject.toml").write_text(APP.format(module=name))
    return name


def write_server(directory: Path, module: str, body: str) -> None:
    (directory / f"{module}.py").write_text(SERVER + IMPORTS + textwrap.indent(body, "    "))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("pass", "sends no model to train"),
        ("grid.push_messages([Message(RecordDict(), 1, 'train')])", "hold no model"),
    ],
)
def test_an_app_that_sends_no_model_is_told_so(
    tmp_path: Path, module: str, body: str, sentence: str
) -> None:
    write_server(tmp_path, module, body)
    with pytest.raises(SettingsError, match=sentence):
        captured_model(tmp_path, 0)


@pytest.mark.parametrize("way", ["push_messages", "send_and_receive"])
def test_an_app_may_make_and_send_its_messages_itself(
    tmp_path: Path, module: str, way: str
) -> None:
    body = f"""
node = list(grid.get_node_ids())[0]
assert list(grid.pull_messages([])) == []
record = ArrayRecord({{"w": Array(np.ones(3, np.float32))}})
grid.{way}([grid.create_message(RecordDict({{"arrays": record}}), "train", node, "a group")])
raise AssertionError("it goes on")
"""
    write_server(tmp_path, module, body)
    np.testing.assert_array_equal(captured_model(tmp_path, 0)["w"], np.ones(3))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no Flower app"),
        ("[project]", "holds no Flower app"),
        (APP.format(module="nowhere_at_all"), "cannot be imported"),
        (APP.format(module="json"), "cannot be imported"),
    ],
)
def test_what_is_no_flower_app_is_named(
    tmp_path: Path, module: str, text: str, sentence: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        captured_model(tmp_path, 0)


def test_what_an_app_raises_is_told(tmp_path: Path, module: str) -> None:
    write_server(tmp_path, module, "raise RuntimeError('no luck today')")
    told = answer(str(tmp_path), 0, tmp_path / "out")
    assert told == {"error": {"message": "RuntimeError: no luck today", "hint": ""}}


def test_errors_of_ours_are_told_with_their_hint(tmp_path: Path) -> None:
    told = answer("json:loads", 0, tmp_path / "out")["error"]
    assert told["message"].startswith("json:loads is no task")
    assert "Task" in told["hint"]


def test_what_a_task_gives_is_told(tmp_path: Path) -> None:
    told = answer(TASK, 0, tmp_path / "out")
    assert told == {"clip": 1.0, "statistics": STATISTICS, "is_task": True}


def test_a_model_that_is_not_made_in_time_is_given_up(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(TaskError, match="was not made"):
        make_initial(TASK, 0, tmp_path / "out", stopping=stopping)


@pytest.mark.parametrize("reference", ["nosuch:task", "json:loads", "nosuch.py"])
def test_what_is_no_task_is_named(tmp_path: Path, reference: str) -> None:
    with pytest.raises(TaskError, match=reference.partition(":")[0]):
        make_initial(reference, 0, tmp_path / "out")


def test_a_child_that_crashes_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(
        "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(3)\n"
    )
    with pytest.raises(TaskError, match="last words"):
        make_initial(str(tmp_path / "crashing.py"), 0, tmp_path / "out")


def test_the_server_itself_imports_no_torch() -> None:
    code = "import sys, wildflower.server.daemon; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
