"""The ServerApp for Flower's own programs: it trains over a grid as its run config says."""

import logging
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from tests.round_fakes import Fleet
from tests.tiny_task import points, task

from wildflower.client.local_app import Local, local_app
from wildflower.client.training import evaluate
from wildflower.server.app import DEFAULTS, RunSettings, app
from wildflower.server.errors import SettingsError
from wildflower.simulation.grid import InProcessGrid
from wildflower.strategies.arrays import from_safetensors
from wildflower.strategies.errors import RoundAbortedError, TaskError
from wildflower.strategies.initial import initial_model

TASK = "tests.tiny_task:task"


def context(**config: str | int | float) -> Context:
    run_config = {key.replace("_", "-"): value for key, value in config.items()}
    return Context(1, 1, {}, RecordDict(), {"task": TASK, **run_config})


def fleet(*, secagg: str = "allowed") -> Fleet:
    locals_ = [Local(task, points(60, seed=seed)) for seed in range(4)]
    apps = [local_app(lambda _, mine=mine: mine) for mine in locals_]  # type: ignore[misc]  # bound early
    return Fleet(apps, secagg=secagg)


@pytest.mark.parametrize("secure", [True, False])
def test_it_trains_measures_and_writes_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, secure: bool
) -> None:
    devices = fleet(secagg="required" if secure else "allowed")
    (tmp_path / "ca.pem").write_bytes(devices.ca.pem)
    model = tmp_path / "model.safetensors"
    config = {"secagg_ca": str(tmp_path / "ca.pem")} if secure else {}
    with caplog.at_level(logging.INFO, "wildflower.server.app"):
        app(devices.grid, context(rounds=2, model=str(model), **config))
    told = [vars(record) for record in caplog.records if record.msg == "model measured"]
    assert [(each["round"], each["devices"]) for each in told] == [(0, 4), (1, 4), (2, 4)]
    assert told[-1]["accuracy"] > 0.7
    trained, fresh = from_safetensors(model.read_bytes()), initial_model(task, 0)
    better, worse = (evaluate(task, each, points(100, seed=9)) for each in (trained, fresh))
    assert better["eval-loss"] < worse["eval-loss"]


def test_too_few_devices_are_told_when_the_time_is_over() -> None:
    with pytest.raises(RoundAbortedError, match="4 nodes are online, 9 are needed"):
        app(fleet().grid, context(min_clients=9, timeout=0.0))


def test_an_unknown_task_is_told() -> None:
    with pytest.raises(TaskError):
        app(InProcessGrid({}), context(task="no.such:task"))


@pytest.mark.parametrize(
    ("key", "value"), [("task", ""), ("rounds", 2.5), ("rounds", True), ("timeout", "soon")]
)
def test_a_wrong_run_config_names_its_key(key: str, value: str | float) -> None:
    with pytest.raises(SettingsError, match=key):
        RunSettings.of({"task": TASK, key: value})


def test_a_whole_number_may_stand_for_a_fraction_and_other_keys_are_others() -> None:
    settings = RunSettings.of({"task": TASK, "timeout": 5, "somebody-elses": 1})
    assert settings.timeout_s == 5
    assert len(DEFAULTS) == len(RunSettings.__dataclass_fields__)
