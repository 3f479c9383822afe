import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota.delta.rans import MAX_LANES, SCALE, Decoder, Table, encode
from wildflower.ota.delta.tables import counts_of, entropy, fit
from wildflower.ota.errors import DeltaError

RUNS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 1 << 20)), min_size=1, max_size=12)


def skewed(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).geometric(0.4, count).clip(1, 200).astype(np.uint8)


@pytest.mark.parametrize("lanes", [1, 2, 64, 1024, MAX_LANES])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 5000])
def test_blocks_come_back_for_any_number_of_lanes(lanes: int, count: int) -> None:
    blocks = [skewed(seed, count + 7 * seed) for seed in (1, 2, 3)]
    tables = [fit(counts_of(block) + 1) for block in blocks]
    stream = encode(list(zip(blocks, tables, strict=True)), lanes)
    decoder = Decoder(memoryview(stream), lanes)
    for block, table in zip(blocks, tables, strict=True):
        assert np.array_equal(decoder.take(len(block), table), block)
    decoder.finish()


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=400), st.integers(0, 5))
def test_any_bytes_come_back(data: bytes, lanes: int) -> None:
    block = np.frombuffer(data, np.uint8)
    table = fit(counts_of(block) + (0 if len(block) else 1))
    stream = encode([(block, table)], 1 << lanes)
    decoder = Decoder(memoryview(stream), 1 << lanes)
    assert decoder.take(len(block), table).tobytes() == data
    decoder.finish()


def test_a_stream_is_within_two_per_cent_of_the_entropy() -> None:
    block = skewed(5, 200_000)
    stream = encode([(block, fit(counts_of(block)))], 64)
    assert len(stream) < 1.02 * float(entropy(counts_of(block))) / 8


@given(RUNS)
def test_the_slots_of_every_table_add_up_and_no_symbol_is_lost(runs: list[tuple[int, int]]) -> None:
    table = Table(tuple(runs))
    if not any(weight for _, weight in runs):
        return
    table.check()
    assert table.frequencies.sum() == SCALE
    assert np.array_equal(table.frequencies > 0, table.weights > 0)
    assert table.frequencies.min() >= 0


def test_symbols_that_hardly_occur_are_paid_for_by_the_likely_ones() -> None:
    found = Table(((20, 1 << 20), (236, 1))).frequencies
    assert found.sum() == SCALE
    assert (found[20:] == 1).all()
    assert found[:20].min() >= 1


@pytest.mark.parametrize(
    "runs",
    [(), ((256, 0),), ((257, 1),), ((200, 1), (57, 2)), ((0, 1), (1, 1)), ((1, (1 << 20) + 1),)],
)
def test_what_is_no_table_is_refused(runs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(DeltaError, match="table"):
        Table(runs).check()


TABLE = Table(((4, 1),))


@pytest.mark.parametrize(
    ("stream", "lanes", "what"),
    [
        (b"", 1, "no coded stream"),
        (b"\0\0\1\0\0", 1, "no coded stream"),
        (b"\0\0\1\0", 2, "no coded stream"),
        (b"\0\0\1\0", MAX_LANES + 1, "no coded stream"),
        (b"\xff\xff\0\0", 1, "does not begin"),
    ],
)
def test_what_is_no_stream_is_refused(stream: bytes, lanes: int, what: str) -> None:
    with pytest.raises(DeltaError, match=what):
        Decoder(memoryview(stream), lanes)


def test_a_stream_that_ends_early_is_refused() -> None:
    block = np.arange(100, dtype=np.uint8) % 4
    stream = encode([(block, TABLE)], 2)
    with pytest.raises(DeltaError, match="too early"):
        Decoder(memoryview(stream[:-2]), 2).take(100, TABLE)


def test_a_stream_that_goes_on_is_refused() -> None:
    block = np.arange(100, dtype=np.uint8) % 4
    decoder = Decoder(memoryview(encode([(block, TABLE)], 2) + b"\0\0"), 2)
    decoder.take(100, TABLE)
    with pytest.raises(DeltaError, match="does not end"):
        decoder.finish()
