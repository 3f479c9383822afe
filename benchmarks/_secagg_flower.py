"""One round of Flower's own SecAgg+, timed: its mod and its workflow, unchanged.

Time in the mod is the clients', all other time of the workflow is the server's. The app behind the
mod answers at once with parameters that are ready, and the strategy behind the workflow makes
nothing of the result: neither costs Flower anything.
"""

import logging
import random
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Parameters, Scalar, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    Stage,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key as Asked
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

from benchmarks._secagg_ours import Clock, Cost, Load, updates_of
from wildflower.simulation.grid import InProcessGrid
from wildflower.strategies.flower_compat.messages import name, stamp, with_content


class _Unheard(FedAvg):
    """A strategy that is not interested in the result."""

    def aggregate_fit(
        self,
        server_round: int,  # noqa: ARG002  # the signature is Flower's
        results: list[tuple[ClientProxy, FitRes]],  # noqa: ARG002  # likewise
        failures: list[tuple[ClientProxy, FitRes] | BaseException],  # noqa: ARG002  # likewise
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Return nothing."""
        return None, {}


class _TimedGrid(InProcessGrid):
    """Calls the mod of each node and times it."""

    def __init__(self, load: Load) -> None:
        super().__init__({})
        self.clients, self.away = Clock(), Clock()
        self.upload = 0
        self._load = load
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in range(2, load.clients + 2)
        }
        self._ready = [ndarrays_to_parameters([update.vector]) for update in updates_of(load.size)]

    @property
    def nodes(self) -> list[int]:
        """The ids of the nodes."""
        return list(self._contexts)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002  # nobody is waited for
    ) -> Iterable[Message]:
        """Return what each node's mod answers."""
        with self.away:
            return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        stamp(message, run_id=1)
        name(message, f"m{node}")
        asked = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
        if asked[Asked.STAGE] == Stage.COLLECT_MASKED_VECTORS and node < self._load.dropped + 2:
            return Message(Error(0, "lost"), reply_to=message)
        own = with_content(message, RecordDict({**message.content, RECORD_KEY_CONFIGS: asked}))
        with self.clients:
            reply = secaggplus_mod(own, self._contexts[node], self._app)
        if node == self.nodes[-1]:
            self.upload += _payload(reply.content)
        return reply

    def _app(self, message: Message, context: Context) -> Message:
        ready = self._ready[context.node_id % len(self._ready)]
        result = FitRes(Status(Code.OK, ""), ready, 1000, {})
        return Message(compat.fitres_to_recorddict(result, True), reply_to=message)


def flower_round(load: Load) -> Cost:
    """Go through one round of Flower's SecAgg+; shares and threshold count the client itself.

    Raises:
        RuntimeError: The workflow gave up.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    random.seed(0)
    grid = _TimedGrid(load)
    context = _context(grid)
    workflow = SecAggPlusWorkflow(load.degree + 1, load.threshold, clipping_range=1.0)
    began = time.process_time()
    workflow(grid, context)
    spent = time.process_time() - began
    if grid.upload < 4 * load.size:
        raise RuntimeError("Flower's workflow gave up before the upload")
    return Cost(1000 * grid.clients.seconds / load.clients, spent - grid.away.seconds, grid.upload)


def _context(grid: _TimedGrid) -> LegacyContext:
    manager = SimpleClientManager()
    for node in grid.nodes:
        manager.register(GridClientProxy(node, grid, 1))
    plain = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    strategy = _Unheard(min_available_clients=len(grid.nodes), min_fit_clients=len(grid.nodes))
    context = LegacyContext(plain, strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    small = ndarrays_to_parameters([np.zeros(1, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(small, True)
    return context


def _payload(content: RecordDict) -> int:
    values: list[Any] = [v for r in content.config_records.values() for v in r.values()]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return sum(len(item) if isinstance(item, bytes | str) else 8 for item in items)
