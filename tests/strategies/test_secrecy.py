"""Under secure aggregation nothing of a single device reaches the server but masked residues."""

import struct
from collections.abc import Iterator

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from tests.round_fakes import LAYOUT, MODEL, Fleet, request

from wildflower.simulation.grid import App
from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Update
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg.messages import Masked, SessionParams
from wildflower.strategies.trips import plain_round, secure_round

WINDOW = 8  # bytes: two floats in a row do not happen by chance
EXAMPLES = [1237.0, 2339.0, 3391.0, 4447.0]
LOSSES = [17.0625, 19.1875, 23.3125, 29.4375]


def changes(index: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(index)
    return {name: rng.normal(size=a.shape).astype(np.float32) for name, a in MODEL.items()}


def app(index: int) -> App:
    def train(message: Message, context: Context) -> Message:
        arrays = {name: Array(MODEL[name] + change) for name, change in changes(index).items()}
        metrics = MetricRecord({"num-examples": EXAMPLES[index], "loss": LOSSES[index]})
        return Message(RecordDict({"a": ArrayRecord(arrays), "m": metrics}), reply_to=message)

    return train


def carried(message: Message) -> bytes:
    """Return everything a message carries to the server, numbers as text and as bytes."""
    if message.has_error():
        return repr(message.error).encode()
    return b"|".join(_parts(message.content))


def _parts(content: RecordDict) -> Iterator[bytes]:
    for name, record in content.items():
        yield name.encode()
        if isinstance(record, ArrayRecord):
            yield from (array.data for array in record.values())
            continue
        for key, value in record.items():
            yield key.encode()
            for item in value if isinstance(value, list) else [value]:
                yield item if isinstance(item, bytes) else repr(item).encode()


def encoded(index: int, params: SessionParams) -> Residues:
    change = LAYOUT.pack(changes(index))
    statistics = {"examples": EXAMPLES[index], "loss": LOSSES[index]}
    update = Update(change, EXAMPLES[index], statistics)
    return params.encoding.encode(update, bytes([0]))


def secrets_of(index: int) -> dict[str, list[bytes]]:
    """Return what must not be seen of a device, as windows of bytes."""
    change = LAYOUT.pack(changes(index))
    found = {"update": change.tobytes(), "model": (LAYOUT.pack(MODEL) + change).tobytes()}
    windows = {
        name: [data[i : i + WINDOW] for i in range(0, len(data) - WINDOW + 1, 4)]
        for name, data in found.items()
    }
    for name, number in (("examples", EXAMPLES[index]), ("loss", LOSSES[index])):
        packed = [struct.pack("<d", number), struct.pack("<f", number)]
        windows[name] = [repr(number).encode(), *packed]
    return windows


def seen_by_server(fleet: Fleet) -> list[Message]:
    return [m for m in fleet.seen if m.metadata.src_node_id in fleet.nodes]


def leaks(fleet: Fleet) -> set[str]:
    wanted = [secrets_of(index) for index in range(len(fleet.nodes))]
    return {
        name
        for message in seen_by_server(fleet)
        for windows in wanted
        for name, parts in windows.items()
        if any(part in carried(message) for part in parts)
    }


ASKED = request(statistics=("examples", "loss"), max_weight=5000.0)


def test_a_plain_round_shows_what_this_scan_can_find() -> None:
    fleet = Fleet([app(index) for index in range(4)])
    plain_round(fleet.grid, fleet.nodes, ASKED, is_gone=fleet.grid.is_gone, algorithm=FedAvg())
    assert leaks(fleet) >= {"update", "examples", "loss"}


def test_a_secure_round_shows_nothing_of_a_single_device() -> None:
    fleet = Fleet([app(index) for index in range(4)], secagg="required")
    result = secure_round(
        fleet.grid,
        fleet.nodes,
        ASKED,
        is_gone=fleet.grid.is_gone,
        entropy=bytes(32),
        ca_pem=fleet.ca.pem,
    )
    assert result.total.weight == sum(EXAMPLES)
    proposal = next(m for m in fleet.seen if m.metadata.message_type == wire.ADVERTISE)
    params = SessionParams.from_fields(wire.secagg_fields(proposal.content))
    assert leaks(fleet) == set()
    assert len(seen_by_server(fleet)) == 16
    for message in seen_by_server(fleet):
        assert list(message.content) == [wire.SECAGG]
        assert isinstance(message.content[wire.SECAGG], ConfigRecord)
        if message.metadata.message_type == wire.TRAIN:
            sent = Masked.from_fields(wire.secagg_fields(message.content)).vector(
                np.dtype(np.uint32)
            )
            for index in range(4):  # rounding differs by 1; a mask by anything
                apart = (sent - encoded(index, params)).view(np.int32).astype(np.int64)
                assert np.abs(apart).min() > 1
