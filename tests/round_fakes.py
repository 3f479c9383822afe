"""A fleet for tests of rounds: ordinary Flower apps, real identities, an in-process grid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from wildflower.client.outgoing import Guard, Outgoing
from wildflower.client.privacy_guard import PrivacyGuard
from wildflower.simulation.fleet import seeded_entropy
from wildflower.simulation.grid import App, Death, InProcessGrid
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.arrays import Layout, Update
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.round_request import RoundRequest
from wildflower.strategies.secagg.protection import SecAgg
from wildflower.strategies.secagg.sessions import MemorySessions, SessionStore

MODEL = {
    "bias": np.array([0.5, -0.5], np.float32),
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
}
LAYOUT = Layout.of(MODEL)
STATISTICS = ("examples", "mean.loss", "seen")


@dataclass
class FlowerApp:
    """An ordinary Flower app: it knows nothing of us; adds `step` to every weight it is sent.

    Attributes:
        step: What it adds.
        examples: What it reports as "num-examples".
        metrics: What it reports besides.
        calls: Message types it was called with.
    """

    step: float
    examples: float = 10
    metrics: Mapping[str, float] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    @property
    def app(self) -> ClientApp:
        client = ClientApp()

        @client.train()
        def train(message: Message, context: Context) -> Message:
            self.calls.append("train")
            arrays = {
                name: array.numpy() + np.float32(self.step)
                for name, array in message.content.array_records["arrays"].items()
            }
            record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
            metrics = MetricRecord({"num-examples": self.examples, **self.metrics})
            return Message(RecordDict({"model": record, "told": metrics}), reply_to=message)

        @client.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            self.calls.append("evaluate")
            metrics = MetricRecord({"num-examples": self.examples, **self.metrics})
            return Message(RecordDict({"told": metrics}), reply_to=message)

        return client

    @property
    def update(self) -> Update:
        """What a round makes of its training."""
        return Update(np.full(LAYOUT.size, self.step, np.float32), self.examples, {})


class Fleet:
    """Nodes 11, 12, ... with one app each, behind a device's policy and the mod."""

    def __init__(
        self,
        apps: Sequence[App],
        *,
        secagg: str = "allowed",
        dies: Mapping[tuple[int, str], Death] | None = None,
        sessions: Callable[[], SessionStore] = MemorySessions,
        budgets: Sequence[PrivacyGuard] = (),
    ) -> None:
        self.ca = SimulatedCa()
        self.seen: list[Message] = []
        self.sessions = [sessions() for _ in apps]
        self.secagg = [self._secagg(index) for index in range(len(apps))]
        self.guards = [Guard(Outgoing(secagg, (each,)), UpdateMod((each,))) for each in self.secagg]
        for index, budget in enumerate(budgets):
            own = replace(budget, protections=(self.secagg[index],))
            self.guards[index] = replace(self.guards[index], privacy=own)
        self.nodes = [11 + index for index in range(len(apps))]
        guarded = [guard.around(app) for guard, app in zip(self.guards, apps, strict=True)]
        self.grid = InProcessGrid(
            dict(zip(self.nodes, guarded, strict=True)), dies=dies, watch=self.seen.append
        )

    def _secagg(self, index: int) -> SecAgg:
        entropy = seeded_entropy(f"test/{index}")
        return SecAgg(self.ca.enrol(), self.ca.certificate, self.sessions[index], entropy=entropy)


def request(**changes: object) -> RoundRequest:
    """Return a round's request, with changes."""
    values: dict[str, object] = {
        "training": "training-1",
        "number": 1,
        "layout": LAYOUT,
        "vector": LAYOUT.pack(MODEL),
        "config": {"epochs": 1},
        "statistics": STATISTICS,
        "clip": 4.0,
        "max_weight": 100.0,
        "timeout_s": 60.0,
        "min_clients": 3,
        "poll_s": 0.0,
    }
    return RoundRequest(**{**values, **changes})  # type: ignore[arg-type]  # a test's own values
