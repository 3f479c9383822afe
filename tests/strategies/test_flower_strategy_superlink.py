"""A Flower strategy inside secure aggregation, over a real SuperLink and connected nodes."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.serverapp.strategy import FedAvg
from tests.flower_fakes import RunningSuperLink, public_pem, running_superlink
from tests.round_fakes import MODEL, Fleet, FlowerApp

from wildflower.server.flower_link import FlowerLink
from wildflower.simulation.grid import App
from wildflower.strategies.errors import LinkError
from wildflower.strategies.flower_compat.fleet import FleetConnection
from wildflower.strategies.flower_grid import Terms
from wildflower.strategies.flower_strategy import SecAggPlus
from wildflower.strategies.round_request import RoundResult

STEPS = [0.25, -0.5, 1.0]
WEIGHTS = [10, 20, 30]


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    with running_superlink(tmp_path_factory.mktemp("flower")) as running:
        yield running


def serve(devices: Sequence[tuple[FleetConnection, App]], over: threading.Event) -> None:
    """Answer the messages of all devices until the test is over."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    while not over.is_set():
        for device, app in devices:
            with contextlib.suppress(LinkError):  # the run may end while a node looks for messages
                message = device.receive()
                if message is not None:
                    device.reply(app(message, context))
        over.wait(0.02)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_rounds_over_a_superlink_are_those_of_plain_flower(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    link = FlowerLink(superlink.address, superlink.ca_pem, superlink.secret)
    apps = [FlowerApp(step, weight) for step, weight in zip(STEPS, WEIGHTS, strict=True)]
    fleet = Fleet([each.app for each in apps], secagg="required")
    guarded = list(fleet.grid._apps.values())
    told: list[tuple[int, str, RoundResult]] = []
    over, devices = threading.Event(), list[tuple[FleetConnection, App]]()
    logging.getLogger("flwr").disabled = True
    with contextlib.ExitStack() as stack:
        nodes = []
        for app in guarded:
            key = ec.generate_private_key(ec.SECP256R1())
            nodes.append(link.register(public_pem(key)))
            device = stack.enter_context(
                FleetConnection(f"https://{superlink.address}", tls=superlink.tls, key=key)
            )
            devices.append((device, app))
        grid = stack.enter_context(link.run("strategy"))
        thread = threading.Thread(target=serve, args=(devices, over))
        thread.start()
        try:
            terms = Terms(max_weight=30.0, on_round=lambda *args: told.append(args), poll_s=0.05)
            strategy = SecAggPlus(
                FedAvg(min_available_nodes=3, fraction_evaluate=0.0),
                ca_pem=fleet.ca.pem,
                terms=terms,
            )
            arrays = ArrayRecord({name: Array(array) for name, array in MODEL.items()})
            result = strategy.start(grid, arrays, 2, timeout=240)
        finally:
            over.set()
            thread.join()
            logging.getLogger("flwr").disabled = False
    moved = 2 * np.average(STEPS, weights=WEIGHTS)
    for name, array in MODEL.items():
        assert result.arrays[name].numpy() == pytest.approx(array + moved, abs=1e-5)
    assert [(number, kind) for number, kind, _ in told] == [(1, "train"), (2, "train")]
    assert [round_.survivors for _, _, round_ in told] == [tuple(sorted(nodes))] * 2
