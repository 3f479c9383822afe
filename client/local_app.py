"""Which app a device trains: a task of ours on its own examples, or a user's Flower app.

The app is named by the device's configuration, never by the server: no code comes with a round.
A round may ask for DP-SGD (`dp-sgd-noise`, `dp-sgd-norm`, ...); a task of ours does it.
"""

import hashlib
import importlib
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from wildflower.client.dp_training import (
    REPLACED,
    SPENT,
    PrivatePlan,
    train_privately,
)
from wildflower.client.errors import TrainingError
from wildflower.client.training import Plan, evaluate, split_validation, train
from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Parameters
from wildflower.strategies.dp.events import Gaussian
from wildflower.strategies.dp.private_task import PrivateTask
from wildflower.strategies.dp.sgd import event_of
from wildflower.strategies.mod import App
from wildflower.strategies.task import Examples, Task, find_task

Scalar = bool | float | int | str


@dataclass(frozen=True, slots=True)
class Local:
    """What a device trains: its task and its own examples."""

    task: Task
    examples: Examples


class Till(Protocol):
    """Where private training pays; `client.privacy_guard.PrivacyGuard`."""

    def charge(self, event: Gaussian) -> float:
        """Pay for an event, or refuse; return what the device has spent in its life."""
        ...


def local_app(
    find: Callable[[Context], Local],
    till: Till | None = None,
    *,
    entropy: Callable[[int], bytes] = os.urandom,
) -> ClientApp:
    """Return a ClientApp that trains a task of ours.

    Args:
        find: Returns what the node of a context trains.
        till: Where DP-SGD pays; None for a device that keeps no book, such as a simulated one.
        entropy: Returns so many secret random bytes, for DP-SGD.
    """
    client = ClientApp()

    @client.train()
    def _train(message: Message, context: Context) -> Message:
        local = find(context)
        fit, validation = split_validation(local.examples)
        received, config = _parameters(message), _config(message)
        plan = Plan.of(local.task.recipe, config, seed=_seed(config, context))
        private = PrivatePlan.of(config)
        if private is not None:
            task = PrivateTask.of(local.task)
            arrays, sums = _privately(task, received, fit, plan, private, till, entropy(32))
        else:
            measured = evaluate(local.task, received, validation)
            arrays, trained = train(local.task, received, fit, plan)
            sums = {**trained, **measured}
        metrics = MetricRecord({**sums, wire.WEIGHT: len(fit)})
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return Message(RecordDict({wire.ARRAYS: record, wire.METRICS: metrics}), reply_to=message)

    @client.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        if PrivatePlan.of(_config(message)) is not None:
            raise TrainingError(
                "an evaluation adds up examples exactly: under DP-SGD there is none"
            )
        local = find(context)
        _, validation = split_validation(local.examples)
        sums = evaluate(local.task, _parameters(message), validation)
        metrics = MetricRecord({**sums, wire.WEIGHT: len(validation)})
        return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)

    return client


def load_flower_app(directory: Path) -> ClientApp:
    """Return the ClientApp of a Flower app's directory, as it stands.

    Raises:
        TrainingError: The directory holds no Flower app, or its ClientApp cannot be imported.
    """
    settings = _pyproject(directory)
    try:
        reference = settings["tool"]["flwr"]["app"]["components"]["clientapp"]
        module, _, attribute = str(reference).partition(":")
    except (KeyError, TypeError) as error:
        raise TrainingError(
            f"{directory}/pyproject.toml names no ClientApp",
            hint="It needs [tool.flwr.app.components] clientapp = 'package.module:app'.",
        ) from error
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise TrainingError(f"the ClientApp {reference} cannot be imported: {error}") from error
    if not isinstance(found, ClientApp):
        raise TrainingError(f"{reference} is a {type(found).__name__}, no ClientApp")
    return found


def flower_app_config(directory: Path) -> dict[str, Scalar]:
    """Return the run config of a Flower app's directory, with dotted names as Flower has them.

    Raises:
        TrainingError: The directory holds no Flower app.
    """
    app = _pyproject(directory).get("tool", {}).get("flwr", {}).get("app", {})
    return dict(_flat(app.get("config", {}), ""))


def find_app(reference: str, data: str, till: Till | None = None) -> App:
    """Return the app that a device's configuration names.

    Args:
        reference: A Flower app's directory, or a task's reference.
        data: Path of the device's examples; a Flower app's directory brings its own.
        till: Where private training of a task pays.

    Raises:
        TrainingError: There is none, or it does not load.
        TaskError: The task cannot be found.
    """
    if not reference:
        raise TrainingError("this device trains nothing: `app` is empty in agent.toml")
    directory = Path(reference)
    if directory.is_dir():
        return load_flower_app(directory)
    task = find_task(reference)
    local = Local(task, task.load(Path(data)))
    return local_app(lambda _: local, till)


def _privately(
    task: PrivateTask,
    received: Parameters,
    examples: Examples,
    plan: Plan,
    private: PrivatePlan,
    till: Till | None,
    entropy: bytes,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float]]:
    """Pay for DP-SGD, then train; return the arrays, and what may be told of the training.

    A loss or a measurement is a sum over examples that nothing made private: none is told.
    """
    if len(examples) < private.fewest:
        raise TrainingError(
            f"DP-SGD is accounted for {private.fewest} examples, this device has {len(examples)}"
        )
    event = event_of(
        private.noise, examples=len(examples), batch_size=plan.batch_size, epochs=plan.epochs
    )
    told = {"examples": float(len(examples)), REPLACED: float(task.replaced())}
    if till is not None:
        told[SPENT] = till.charge(event)
    arrays = train_privately(
        task,
        received,
        examples,
        event,
        private=private,
        learning_rate=plan.learning_rate,
        momentum=plan.momentum,
        entropy=entropy,
    )
    return arrays, told


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records.get(wire.CONFIG, ConfigRecord())


def _parameters(message: Message) -> Parameters:
    arrays = message.content.array_records[wire.ARRAYS]
    return {name: array.numpy() for name, array in arrays.items()}


def _seed(config: ConfigRecord, context: Context) -> int:
    """Return a seed of this node's own for this round."""
    text = f"{config.get('seed', 0)!r}/{config.get('server-round', 0)!r}/{context.node_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _pyproject(directory: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((directory / "pyproject.toml").read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{directory} holds no Flower app: {error}") from error


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Scalar]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | float | int | str):
            yield f"{prefix}{name}", value
