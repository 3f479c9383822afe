"""A fleet that trains, in one process: devices with real identities, real rounds, real masks.

What a device runs and what the server runs is the product's own code; only the network between
them is a function call. One process, one thread: equal arguments give equal results.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Message

from wildflower.client.local_app import Local, local_app
from wildflower.client.outgoing import Guard, Outgoing
from wildflower.simulation.grid import App, Death, InProcessGrid
from wildflower.simulation.identities import SimulatedCa
from wildflower.simulation.partition import partition
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Layout, Parameters, Vector
from wildflower.strategies.initial import initial_model
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg.protection import SecAgg
from wildflower.strategies.secagg.sessions import MemorySessions
from wildflower.strategies.task import Examples, Task
from wildflower.strategies.trips import plain_round, secure_round

STATISTICS: Final = ("examples", "loss", "eval-examples", "eval-correct", "eval-loss")
"""What is asked of the devices of a task of ours."""

FIRST_NODE: Final = 100


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to simulate.

    Attributes:
        devices: How many.
        rounds: How many rounds of training.
        secure: Whether updates are aggregated securely.
        concentration: Of the Dirichlet distribution by which labels are dealt out.
        seed: Of the initial model, of the data's distribution and of the local training.
        quorum: Fewest devices in a sum.
        deaths: In which round at which message type which device (from 0) dies.
    """

    devices: int
    rounds: int
    secure: bool = True
    concentration: float = 0.5
    seed: int = 0
    quorum: int = 3
    deaths: Mapping[tuple[int, int, str], Death] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SimulatedRound:
    """What a round came to.

    Attributes:
        number: From 1.
        devices: How many updates are in the sum.
        accuracy: Of the model after the round, on the devices' validation examples.
        loss: Likewise, the mean loss.
        seconds: How long it took.
    """

    number: int
    devices: int
    accuracy: float
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulated training came to.

    Attributes:
        rounds: What each round came to.
        model: The global model's arrays.
        seconds: How long the whole took, the fleet's making included.
    """

    rounds: tuple[SimulatedRound, ...]
    model: Parameters = field(repr=False)
    seconds: float


def simulate(
    task: Task,
    examples: Examples,
    scenario: Scenario,
    *,
    watch: Callable[[Message], None] = lambda _: None,
) -> Simulation:
    """Train a task on a simulated fleet.

    Args:
        task: What is learned.
        examples: Dealt out to the devices.
        scenario: How many devices and rounds, and what goes wrong.
        watch: Is shown every message between the server and a device.

    Raises:
        SimulationError: There are too few examples.
        RoundAbortedError: A round fell below its quorum.
    """
    start = time.monotonic()
    fleet = _Fleet(task, examples, scenario, watch)
    rule = FedAvg()
    state = rule.init(fleet.layout.pack(initial_model(task, scenario.seed)))
    results, rounds = [], []
    for number in range(1, scenario.rounds + 1):
        began = time.monotonic()
        result = fleet.round(number, rule.model(state), evaluate_only=False)
        state, _ = rule.apply(state, result.total)
        results.append(result)
        rounds.append(time.monotonic() - began)
    results.append(fleet.round(scenario.rounds + 1, rule.model(state), evaluate_only=True))
    return Simulation(
        tuple(
            _told(number, made, measured, seconds)
            for number, (made, measured, seconds) in enumerate(
                zip(results[:-1], results[1:], rounds, strict=True), start=1
            )
        ),
        fleet.layout.unpack(rule.model(state)),
        time.monotonic() - start,
    )


def _told(number: int, made: RoundResult, measured: RoundResult, seconds: float) -> SimulatedRound:
    """Return a round's figures: what it made is measured by the next."""
    sums = measured.total.statistics
    examples = sums["eval-examples"]
    return SimulatedRound(
        number,
        len(made.survivors),
        sums["eval-correct"] / examples,
        sums["eval-loss"] / examples,
        seconds,
    )


class _Fleet:
    """The devices, their grid, and the way a round goes."""

    def __init__(
        self, task: Task, examples: Examples, scenario: Scenario, watch: Callable[[Message], None]
    ) -> None:
        self._task, self._scenario = task, scenario
        self._ca = SimulatedCa()
        self.layout = Layout.of(initial_model(task, scenario.seed))
        parts = partition(
            examples,
            scenario.devices,
            concentration=scenario.concentration,
            seed=scenario.seed,
        )
        self.grid = InProcessGrid(
            {FIRST_NODE + index: self._device(index, part) for index, part in enumerate(parts)},
            watch=watch,
        )
        self._largest = max(len(part) for part in parts)

    def _device(self, index: int, examples: Examples) -> App:
        secagg = SecAgg(
            self._ca.enrol(),
            self._ca.certificate,
            MemorySessions(),
            entropy=seeded_entropy(f"{self._scenario.seed}/device/{index}"),
        )
        local = Local(self._task, examples)
        policy = Outgoing("required" if self._scenario.secure else "allowed", (secagg,))
        return Guard(policy, UpdateMod((secagg,))).around(local_app(lambda _: local))

    def round(self, number: int, vector: Vector, *, evaluate_only: bool) -> RoundResult:
        """Go through one round."""
        nodes = list(self.grid.get_node_ids())
        self.grid.dies = {
            (FIRST_NODE + device, kind): death
            for (when, device, kind), death in self._scenario.deaths.items()
            if when == number
        }
        request = RoundRequest(
            training="simulation",
            number=number,
            layout=self.layout,
            vector=vector,
            config={"seed": self._scenario.seed},
            statistics=STATISTICS,
            clip=self._task.recipe.clip,
            max_weight=float(self._largest),
            timeout_s=86_400.0,
            min_clients=self._scenario.quorum,
            poll_s=0.0,
        )
        if not self._scenario.secure:
            return plain_round(
                self.grid,
                nodes,
                request,
                is_gone=self.grid.is_gone,
                algorithm=FedAvg(),
                evaluate_only=evaluate_only,
            )
        return secure_round(
            self.grid,
            nodes,
            request,
            is_gone=self.grid.is_gone,
            entropy=seeded_entropy(f"{self._scenario.seed}/server/{number}")(32),
            ca_pem=self._ca.pem,
            evaluate_only=evaluate_only,
        )


def seeded_entropy(seed: str) -> Callable[[int], bytes]:
    """Return a source of bytes for a simulation: repeatable, and therefore no secret."""
    count = 0

    def draw(length: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}/{count}".encode()).digest(length)

    return draw
