import bz2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota.delta.codec import Codec, Coding, Source, pack, sparse, unpack
from wildflower.ota.delta.rans import Decoder, Symbols, encode
from wildflower.ota.delta.tables import counts_of, fit
from wildflower.ota.errors import DeltaError


def source(*blocks: Symbols, chunks: bytes = b"") -> Source:
    """A source whose tables are the blocks' own, in order."""
    tables = [fit(counts_of(block) + (0 if len(block) else 1)) for block in blocks]
    stream = encode(list(zip(blocks, tables, strict=True)), 4)
    return Source(tables, Decoder(memoryview(stream), 4), memoryview(chunks))


def array(*values: int) -> Symbols:
    return np.array(values, np.uint8)


@pytest.mark.parametrize(
    "plane",
    [
        np.zeros(2000, np.uint8),
        np.where(np.arange(2000) % 700 == 699, 3, 0).astype(np.uint8),  # gaps beyond the escape
        np.where(np.arange(2000) == 255, 1, 0).astype(np.uint8),
        np.where(np.arange(2000) == 254, 1, 0).astype(np.uint8),
        np.arange(2000).astype(np.uint8),
        np.ones(2000, np.uint8),
        array(),
    ],
    ids=["none", "far apart", "255 before", "254 before", "nearly all", "all", "empty"],
)
def test_a_sparse_plane_comes_back(plane: Symbols) -> None:
    gaps, changes = sparse(plane)
    found = source(gaps, changes)
    coding = Coding(Codec.SPARSE, len(gaps), (0, 1))
    assert np.array_equal(found.plane(coding, len(plane)), plane)
    found.finish()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), max_size=300), st.integers(0, 600))
def test_any_sparse_plane_comes_back(values: list[int], zeros: int) -> None:
    plane = np.array([0] * zeros + values, np.uint8)
    gaps, changes = sparse(plane)
    coding = Coding(Codec.SPARSE, len(gaps), (0, 1))
    assert np.array_equal(source(gaps, changes).plane(coding, len(plane)), plane)


def test_planes_follow_each_other() -> None:
    packed = pack(Codec.BZ2, b"a" * 50), pack(Codec.LZMA, b"b" * 50)
    found = source(array(1, 2, 2), chunks=b"raw" + packed[0] + packed[1])
    assert found.plane(Coding(Codec.RAW), 3).tobytes() == b"raw"
    assert found.plane(Coding(Codec.BZ2, len(packed[0])), 50).tobytes() == b"a" * 50
    assert found.plane(Coding(Codec.DENSE, 0, (0,)), 3).tolist() == [1, 2, 2]
    assert found.plane(Coding(Codec.ZERO), 2).tolist() == [0, 0]
    assert found.plane(Coding(Codec.LZMA, len(packed[1])), 50).tobytes() == b"b" * 50
    found.finish()


def test_what_is_left_over_is_refused() -> None:
    with pytest.raises(DeltaError, match="3 bytes of the delta are left over"):
        source(chunks=b"raw").finish()


@pytest.mark.parametrize(
    ("coding", "count", "what"),
    [
        (Coding(Codec.RAW), 10, "10 bytes are announced, 3 are left"),
        (Coding(Codec.BZ2, 4), 10, "4 bytes are announced"),
        (Coding(Codec.DENSE, 0, (9,)), 3, "table 9 of 2"),
        (Coding(Codec.SPARSE, 5, (0, 1)), 4, "5 gaps between 4 elements"),
        (Coding(Codec.SPARSE, 2, (0, 1)), 5, "outside of its piece"),
    ],
)
def test_a_coding_that_cannot_be_is_refused(coding: Coding, count: int, what: str) -> None:
    with pytest.raises(DeltaError, match=what):
        source(array(3, 3), array(1, 1), chunks=b"raw").plane(coding, count)


@pytest.mark.parametrize("codec", [Codec.BZ2, Codec.LZMA])
@given(st.binary(max_size=300))
def test_a_chunk_comes_back(codec: Codec, data: bytes) -> None:
    assert unpack(codec, memoryview(pack(codec, data)), len(data)) == data


@pytest.mark.parametrize("codec", [Codec.BZ2, Codec.LZMA])
@pytest.mark.parametrize("size", [99, 101, 0])
def test_a_chunk_of_another_size_is_refused(codec: Codec, size: int) -> None:
    with pytest.raises(DeltaError, match="does not hold"):
        unpack(codec, memoryview(pack(codec, b"x" * 100)), size)


def test_a_bomb_unpacks_no_further_than_it_may() -> None:
    bomb = bz2.compress(bytes(50_000_000))
    with pytest.raises(DeltaError, match="does not hold the 10 bytes"):
        unpack(Codec.BZ2, memoryview(bomb), 10)


@pytest.mark.parametrize("codec", [Codec.BZ2, Codec.LZMA])
@given(st.binary(max_size=100), st.integers(0, 200))
def test_a_damaged_chunk_is_refused_or_gives_its_size(codec: Codec, data: bytes, size: int) -> None:
    try:
        found = unpack(codec, memoryview(data), size)
    except DeltaError:
        return
    assert len(found) == size


def test_something_behind_a_chunk_is_refused() -> None:
    with pytest.raises(DeltaError, match="does not hold"):
        unpack(Codec.BZ2, memoryview(pack(Codec.BZ2, b"x") + b"y"), 1)
