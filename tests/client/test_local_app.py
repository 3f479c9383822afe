"""Which app a device trains: a task of ours, or a user's Flower app as it stands."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from tests.round_fakes import Fleet, request
from tests.tiny_task import points, task

from wildflower.client.errors import TrainingError
from wildflower.client.local_app import (
    Local,
    find_app,
    flower_app_config,
    load_flower_app,
    local_app,
)
from wildflower.simulation.fleet import STATISTICS
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Layout
from wildflower.strategies.errors import TaskError
from wildflower.strategies.flower_compat.messages import assume_identity
from wildflower.strategies.initial import initial_model
from wildflower.strategies.trips import plain_round

PYPROJECT = """
[tool.flwr.app.components]
clientapp = "{clientapp}"
[tool.flwr.app.config]
rate = 0.5
[tool.flwr.app.config.model]
layers = 3
names = ["not", "a", "scalar"]
"""
MODULE = """
from flwr.app import Message
from flwr.clientapp import ClientApp
app = ClientApp()
number = 3

@app.train()
def train(message, context):
    return Message(message.content, reply_to=message)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT.format(clientapp="some_app.client:app"))
    (tmp_path / "some_app").mkdir()
    (tmp_path / "some_app" / "client.py").write_text(MODULE)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("some_app")]:
        del sys.modules[name]


def test_a_task_of_ours_trains_and_measures_in_a_round() -> None:
    parts = [points(40, seed=seed) for seed in range(3)]
    locals_ = [Local(task, part) for part in parts]
    fleet = Fleet([local_app(lambda _, local=local: local) for local in locals_])  # type: ignore[misc]  # bound early
    model = initial_model(task, 0)
    layout = Layout.of(model)
    asked = request(
        layout=layout, vector=layout.pack(model), statistics=STATISTICS, config={"seed": 1}
    )
    result = plain_round(
        fleet.grid, fleet.nodes, asked, is_gone=fleet.grid.is_gone, algorithm=FedAvg()
    )
    sums = result.total.statistics
    assert result.refusals == {}
    assert result.total.weight == sums["examples"] == 3 * 36
    assert sums["eval-examples"] == 12
    assert 0 <= sums["eval-correct"] <= 12
    again = plain_round(
        fleet.grid,
        fleet.nodes,
        asked,
        is_gone=fleet.grid.is_gone,
        algorithm=FedAvg(),
        evaluate_only=True,
    )
    assert again.total.statistics["eval-correct"] == sums["eval-correct"]


def test_under_dp_sgd_nothing_measured_is_told_and_nothing_evaluated() -> None:
    local = Local(task, points(40))
    app = local_app(lambda _: local)
    arrays = {name: Array(array) for name, array in initial_model(task, 0).items()}
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "config": ConfigRecord({"dp-sgd-noise": 2.0, "seed": 1})}
    )
    assume_identity()
    context = Context(1, 11, {}, RecordDict(), {})
    reply = app(Message(content, 11, "train"), context)
    told = {"examples": 36.0, "dp-sgd-replaced": 0.0, "num-examples": 36}
    assert dict(reply.content.metric_records["metrics"]) == told
    assert list(reply.content.array_records["arrays"]) == list(arrays)
    fewest = RecordDict(
        {**content, "config": ConfigRecord({"dp-sgd-noise": 2.0, "dp-sgd-examples": 37})}
    )
    with pytest.raises(TrainingError, match="accounted for 37 examples, this device has 36"):
        app(Message(fewest, 11, "train"), context)
    with pytest.raises(TrainingError, match="under DP-SGD there is none"):
        app(Message(content, 11, "evaluate"), context)


def test_a_users_flower_app_is_loaded_as_it_stands(directory: Path) -> None:
    assume_identity()
    loaded = find_app(str(directory), "")
    content, context = RecordDict(), Context(1, 11, {}, RecordDict(), {})
    assert loaded(Message(content, 11, "train"), context).content is content
    assert load_flower_app(directory) is loaded


def test_a_flower_apps_run_config_has_flowers_dotted_names(directory: Path) -> None:
    assert flower_app_config(directory) == {"rate": 0.5, "model.layers": 3}


@pytest.mark.parametrize(
    ("clientapp", "why"),
    [
        ("some_app.client:number", "is a int, no ClientApp"),
        ("some_app.client:missing", "cannot be imported"),
        ("no_such_package:app", "cannot be imported"),
    ],
)
def test_a_flower_app_that_does_not_load_is_told(directory: Path, clientapp: str, why: str) -> None:
    (directory / "pyproject.toml").write_text(PYPROJECT.format(clientapp=clientapp))
    with pytest.raises(TrainingError, match=why):
        load_flower_app(directory)


@pytest.mark.parametrize("text", ["", "[tool", "tool = 1"])
def test_a_directory_without_a_flower_app_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(TrainingError, match=r"no Flower app|names no ClientApp"):
        load_flower_app(tmp_path)
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(TrainingError, match=r"no Flower app|names no ClientApp"):
        load_flower_app(tmp_path)


def test_a_task_needs_its_data(tmp_path: Path) -> None:
    points(20).save(tmp_path / "data.npz")
    assert callable(find_app("tests.tiny_task:task", str(tmp_path / "data.npz")))
    with pytest.raises(TaskError, match=r"missing\.npz"):
        find_app("tests.tiny_task:task", str(tmp_path / "missing.npz"))


def test_a_device_without_an_app_trains_nothing() -> None:
    with pytest.raises(TrainingError, match="app"):
        find_app("", "")
