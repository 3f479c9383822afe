"""The model that a training starts from, made in a child process: the daemon imports no torch.

    python -m wildflower.server.initial_model --app APP --seed 0 --out model.safetensors

writes the model and prints one JSON object about it. APP is a task's reference, or the directory
of a Flower app. Such an app says nowhere what it starts from; its ServerApp does, at run time. So
the ServerApp is run against a grid that keeps the first model it would send, and sends nothing.
"""

import argparse
import importlib
import json
import os
import sys
import threading
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wildflower.logs import LogFormat, configure_logging
from wildflower.server.errors import ServerError, SettingsError
from wildflower.server.supervise import run_once
from wildflower.strategies.errors import StrategyError, TaskError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

    from wildflower.strategies.arrays import Parameters

TIME_S: Final = 300.0  # importing torch takes seconds; a model's code may do anything
NODES: Final = 1000  # a strategy that waits for nodes must not wait
STATISTICS: Final = ("examples", "loss", "eval-examples", "eval-correct", "eval-loss")
"""What the devices' side of a task of ours reports; all are sums."""

FLOWER_STATISTICS: Final = (
    "examples",
    *(f"mean.{name}" for name in ("train_loss", "train-loss", "loss", "accuracy")),
    *(f"mean.{name}" for name in ("eval_loss", "eval-loss", "eval_acc", "eval_accuracy")),
)
"""What Flower apps usually call their means; what one does not report stays 0 and is not shown."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a training starts from.

    Attributes:
        clip: Largest absolute change of one parameter in one round.
        statistics: Names of the sums to ask devices for.
        is_task: Whether it is a task of ours, which can be built; a Flower app cannot.
    """

    clip: float
    statistics: tuple[str, ...]
    is_task: bool


def make_initial(
    app: str, seed: int, out: Path, *, stopping: threading.Event | None = None
) -> Origin:
    """Make the initial model of an app in a child process.

    Args:
        app: A task's reference, or a Flower app's directory.
        seed: Of the model's random weights.
        out: Where the model goes, as safetensors.
        stopping: Ends the child when set.

    Raises:
        TaskError: The child failed; its reason is told.
    """
    command = [sys.executable, "-m", "wildflower.server.initial_model", "--app", app]
    command += ["--seed", str(seed), "--out", str(out)]
    done = run_once(command, stopping=stopping or threading.Event(), time_s=TIME_S)
    if done.code is None:
        raise TaskError(f"the model of {app} was not made within {TIME_S:.0f} s")
    try:
        found = json.loads(done.output)
    except ValueError as error:
        told = done.errors.decode(errors="replace").strip().splitlines()[-1:]
        raise TaskError(f"the model of {app} cannot be made: {' '.join(told)}") from error
    if "error" in found:
        raise TaskError(found["error"]["message"], hint=found["error"]["hint"])
    return Origin(found["clip"], tuple(found["statistics"]), found["is_task"])


def main() -> int:
    """Be the child; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--app", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    configure_logging(LogFormat.TEXT)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the app's code prints is no answer
    with answers:
        told = answer(options.app, options.seed, options.out)
        json.dump(told, answers)
    return 1 if "error" in told else 0


def answer(app: str, seed: int, out: Path) -> dict[str, Any]:
    """Make a model and return what is told of it; every failure becomes an answer."""
    try:
        return asdict(_make(app, seed, out))
    except Exception as error:  # noqa: BLE001  whatever the app's code raises is told
        is_ours = isinstance(error, StrategyError | ServerError)
        message = str(error) if is_ours else f"{type(error).__name__}: {error}"
        return {"error": {"message": message, "hint": str(getattr(error, "hint", ""))}}


def _make(app: str, seed: int, out: Path) -> Origin:
    from wildflower.strategies.arrays import to_safetensors
    from wildflower.strategies.initial import initial_model
    from wildflower.strategies.task import find_task

    if Path(app).is_dir():
        parameters = captured_model(Path(app), seed)
        origin = Origin(1.0, FLOWER_STATISTICS, is_task=False)
    else:
        task = find_task(app)
        parameters = initial_model(task, seed)
        origin = Origin(task.recipe.clip, STATISTICS, is_task=True)
    out.write_bytes(to_safetensors(parameters))
    return origin


class _Captured(BaseException):
    """The first model that a ServerApp would send; no Exception, or an app might catch it."""

    def __init__(self, parameters: "Parameters") -> None:
        super().__init__()
        self.parameters = parameters


def captured_model(directory: Path, seed: int) -> "Parameters":
    """Return the first model that a Flower app's ServerApp sends.

    Raises:
        SettingsError: The directory holds no Flower app, or its ServerApp sends no model.
    """
    import torch
    from flwr.app import Context, RecordDict

    app, run_config = _read_app(directory)
    sys.path.insert(0, str(directory))
    reference = str(app.get("components", {}).get("serverapp", ""))
    module, _, attribute = reference.partition(":")
    try:
        server = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"the ServerApp {reference!r} cannot be imported: {error}") from error
    context = Context(
        run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    torch.manual_seed(seed)
    try:
        server(_keeping_grid(), context)
    except _Captured as captured:
        return captured.parameters
    raise SettingsError(
        f"the ServerApp {reference!r} sends no model to train",
        hint="It must send the model as the record `arrays` of a train message.",
    )


def _keeping_grid() -> "Grid":
    """Return a grid of many nodes that ends its user at the first model it is to send."""
    from flwr.app import Message

    from wildflower.strategies.flower_compat.messages import FlowerRun, OwnGrid, assume_identity

    class KeepingGrid(OwnGrid):
        def set_run(self, run: FlowerRun) -> None:
            pass

        @property
        def run(self) -> FlowerRun:
            raise NotImplementedError

        def get_node_ids(self) -> Iterable[int]:
            return range(1, NODES + 1)

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            raise _Captured(_first_model(messages))

        def pull_messages(self, _: Iterable[str]) -> Iterable[Message]:
            return []

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            del timeout  # nothing is waited for
            raise _Captured(_first_model(messages))

    assume_identity()
    return KeepingGrid()


def _first_model(messages: "Iterable[Message]") -> "Parameters":
    for message in messages:
        for record in message.content.array_records.values():
            return {name: array.numpy() for name, array in record.items()}
    raise SettingsError("the ServerApp's first messages hold no model")


def _read_app(directory: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return a Flower app's settings, and its run config with dotted names."""
    try:
        document = tomllib.loads((directory / "pyproject.toml").read_text())
        app = document["tool"]["flwr"]["app"]
        return app, dict(_flat(app.get("config", {}), ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{directory} holds no Flower app: {error}",
            hint="It needs a pyproject.toml with [tool.flwr.app].",
        ) from error


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


if __name__ == "__main__":
    sys.exit(main())
