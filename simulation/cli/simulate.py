"""`wildflower simulate`: a training with a simulated fleet, in this process."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from wildflower.simulation.errors import SimulationError

if TYPE_CHECKING:
    from wildflower.simulation.data import Split
    from wildflower.strategies.task import Task

app = typer.Typer()

DIGITS: Final = "wildflower.simulation.local.demo_task:task"


@dataclass(frozen=True, slots=True)
class RoundLine:
    """One round: how many devices are in the sum, and how good its model is on their own data."""

    round: int
    devices: int
    accuracy: float
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulated training came to.

    Attributes:
        task: Its name.
        devices: How many were simulated.
        secure: Whether updates were aggregated securely.
        parameters: Elements of the model.
        rounds: What each round came to.
        final_accuracy: Of the last model, on examples that no device had.
        seconds: How long it took.
    """

    task: str
    devices: int
    secure: bool
    parameters: int
    rounds: list[RoundLine]
    final_accuracy: float
    seconds: float


@app.command("simulate", epilog="Example: wildflower simulate --devices 100 --rounds 3")
def simulate(
    *,
    devices: Annotated[int, typer.Option(min=3, max=10_000, help="Devices to simulate.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, max=1_000, help="Training rounds.")] = 3,
    task: Annotated[
        str, typer.Option(help="module:object, a .py file, or an entry point's name.")
    ] = DIGITS,
    data: Annotated[
        Path | None, typer.Option(help="The task's examples; the demo's digits if left out.")
    ] = None,
    secure: Annotated[
        bool, typer.Option("--secure/--plain", help="Aggregate updates securely.")
    ] = True,
    dirichlet: Annotated[
        float, typer.Option(min=0.01, help="Small: devices differ much; large: they are alike.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal results.")] = 0,
) -> SimulationResult:
    """Train a task on a fleet in this process: real training, real rounds, real masks.

    What devices and server run is what they run in the field; only the network is left out.
    """
    from wildflower.client.training import evaluate
    from wildflower.simulation import fleet
    from wildflower.strategies.task import find_task

    learned = find_task(task)
    split = _split(learned, data, seed)
    scenario = fleet.Scenario(devices, rounds, secure=secure, concentration=dirichlet, seed=seed)
    done = fleet.simulate(learned, split.train, scenario)
    sums = evaluate(learned, done.model, split.final)
    return SimulationResult(
        learned.name,
        devices,
        secure,
        sum(array.size for array in done.model.values()),
        [
            RoundLine(each.number, each.devices, each.accuracy, each.loss, each.seconds)
            for each in done.rounds
        ],
        sums["eval-correct"] / sums["eval-examples"],
        done.seconds,
    )


def _split(task: "Task", data: Path | None, seed: int) -> "Split":
    from wildflower.simulation.data import digits, split_examples

    if data is not None:
        return split_examples(task.load(data), seed=seed)
    if task.name != "digits":
        raise SimulationError(
            f"the task {task.name!r} needs examples", hint="Name them with --data FILE."
        )
    return digits(seed=seed)
