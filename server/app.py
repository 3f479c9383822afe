"""A ServerApp for Flower's own programs: federated averaging over the devices of a SuperLink.

For who runs `flwr run` with a `flower-superlink` and its superexec; the server's daemon does not
need it, it has rounds of its own (`wildflower.server.rounds`). The run config says what to do:

    task               reference of the task; the devices must be configured with the same
    rounds             how many rounds, 3
    min-clients        fewest devices in a sum, 3
    timeout            seconds that a round may take, 600
    max-weight         largest weight of one device, 10000
    seed               of the initial model and of local training, 0
    secagg-ca          PEM file of the enrolment CA; updates are then aggregated securely
    model              where the model is written, as safetensors; "" nowhere
"""

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from wildflower.server.errors import SettingsError
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Layout, Vector, to_safetensors
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.initial import initial_model
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.task import Task, find_task
from wildflower.strategies.trips import plain_round, secure_round

log = logging.getLogger(__name__)

DEFAULTS: Final[Mapping[str, str | int | float]] = {
    "task": "",
    "rounds": 3,
    "min-clients": 3,
    "timeout": 600.0,
    "max-weight": 10_000.0,
    "seed": 0,
    "secagg-ca": "",
    "model": "",
}
"""The run config with its defaults; a bundle must name the keys that a run may set."""

STATISTICS: Final = ("examples", "loss", "eval-examples", "eval-correct", "eval-loss")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is to do; see the module."""

    task: str
    rounds: int
    min_clients: int
    timeout_s: float
    max_weight: float
    seed: int
    secagg_ca: str
    model: str

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Self:
        """Read a run config.

        Raises:
            SettingsError: A value has the wrong type, or `task` is missing.
        """
        values = {**DEFAULTS, **{key: config[key] for key in DEFAULTS if key in config}}
        for key, default in DEFAULTS.items():
            kinds = (int, float) if isinstance(default, float) else (type(default),)
            if type(values[key]) not in kinds:
                raise SettingsError(
                    f"{key} is {values[key]!r}, expected {kinds[-1].__name__}",
                    hint="Set it with `flwr run --run-config`.",
                )
        if not values["task"]:
            raise SettingsError(
                "task is empty", hint="flwr run --run-config 'task=\"module:task\"'"
            )
        return cls(*values.values())  # type: ignore[arg-type]  # the types were compared above


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train as the run config says.

    Raises:
        SettingsError: The run config is wrong.
        TaskError: The task cannot be found.
        RoundAbortedError: A round fell below its quorum.
    """
    settings = RunSettings.of(context.run_config)
    task = find_task(settings.task)
    parameters = initial_model(task, settings.seed)
    layout, rule = Layout.of(parameters), FedAvg()
    state = rule.init(layout.pack(parameters))
    for number in range(1, settings.rounds + 1):
        result = _round(grid, settings, task, layout, rule.model(state), number)
        _tell(number - 1, result)
        state, _ = rule.apply(state, result.total)
    last = settings.rounds + 1
    result = _round(grid, settings, task, layout, rule.model(state), last, evaluate_only=True)
    _tell(settings.rounds, result)
    if settings.model:
        Path(settings.model).write_bytes(to_safetensors(layout.unpack(rule.model(state))))


def _round(
    grid: Grid,
    settings: RunSettings,
    task: Task,
    layout: Layout,
    vector: Vector,
    number: int,
    *,
    evaluate_only: bool = False,
) -> RoundResult:
    request = RoundRequest(
        training=task.name,
        number=number,
        layout=layout,
        vector=vector,
        config={"seed": settings.seed},
        statistics=STATISTICS,
        clip=task.recipe.clip,
        max_weight=settings.max_weight,
        timeout_s=settings.timeout_s,
        min_clients=settings.min_clients,
    )
    nodes = _connected(grid, settings)
    if not settings.secagg_ca:
        return plain_round(
            grid,
            nodes,
            request,
            is_gone=_never,
            algorithm=FedAvg(),
            evaluate_only=evaluate_only,
        )
    return secure_round(
        grid,
        nodes,
        request,
        is_gone=_never,
        entropy=secrets.token_bytes(32),
        ca_pem=Path(settings.secagg_ca).read_bytes(),
        evaluate_only=evaluate_only,
    )


def _never(_: int) -> bool:
    """Flower's SuperLink tells of a lost node by an error in its place."""
    return False


def _connected(grid: Grid, settings: RunSettings) -> list[int]:
    """Wait for enough nodes; return those that are online.

    Raises:
        RoundAbortedError: They did not come in time.
    """
    end = time.monotonic() + settings.timeout_s
    while len(nodes := list(grid.get_node_ids())) < settings.min_clients:
        if time.monotonic() > end:
            raise RoundAbortedError(
                f"{len(nodes)} nodes are online, {settings.min_clients} are needed",
                hint="Start more SuperNodes, or lower min-clients.",
            )
        threading.Event().wait(0.5)
    return nodes


def _tell(number: int, result: RoundResult) -> None:
    """Log what a round measured: the model that the one before made."""
    sums = result.total.statistics
    examples = sums["eval-examples"]
    log.info(
        "model measured",
        extra={
            "round": number,
            "devices": len(result.survivors),
            "accuracy": sums["eval-correct"] / examples if examples else None,
        },
    )
