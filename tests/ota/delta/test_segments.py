import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.delta.segments import Kind, Region, Segment, align

FLOAT, BYTES, LITERAL = Kind.FLOAT32, Kind.BYTES, Kind.LITERAL


def view(size: int, seed: int = 0) -> memoryview:
    return memoryview(np.random.default_rng(seed).bytes(size))


def test_tensors_of_one_name_are_compared_as_what_they_are() -> None:
    old, new = view(100), view(100, 1)
    there = [Region("w", 20, 40, FLOAT)]
    assert align(old, new, there, there) == (
        Segment(BYTES, 0, 20),
        Segment(FLOAT, 20, 40),
        Segment(BYTES, 60, 40),
    )


def test_tensors_that_moved_are_found_where_they_are() -> None:
    old, new = view(100), view(100, 1)
    before = [Region("v", 0, 40, FLOAT), Region("w", 40, 60, BYTES)]
    after = [Region("w", 0, 60, BYTES), Region("v", 60, 40, FLOAT)]
    assert align(old, new, before, after) == (Segment(BYTES, 40, 60), Segment(FLOAT, 0, 40))


@pytest.mark.parametrize(
    "after",
    [Region("x", 0, 40, FLOAT), Region("w", 0, 36, FLOAT), Region("w", 0, 40, Kind.INT32)],
    ids=["another name", "another size", "another type"],
)
def test_a_tensor_that_is_another_is_not_compared_as_one(after: Region) -> None:
    found = align(view(40), view(40, 1), [Region("w", 0, 40, FLOAT)], [after])
    assert found == (Segment(BYTES, 0, 40),)


def test_a_tiny_tensor_counts_as_what_lies_between() -> None:
    there = [Region("w", 0, 12, FLOAT)]
    assert align(view(40), view(40, 1), there, there) == (Segment(BYTES, 0, 40),)


def test_tensors_that_overlap_in_a_strange_file_are_taken_once() -> None:
    there = [Region("v", 0, 40, FLOAT), Region("w", 20, 40, FLOAT)]
    found = align(view(60), view(60, 1), there, there)
    assert found == (Segment(FLOAT, 0, 40), Segment(BYTES, 40, 20))


def test_what_lies_between_keeps_its_equal_ends() -> None:
    old, new = memoryview(b"begin, end"), memoryview(b"begin, middle, end")
    assert align(old, new, (), ()) == (
        Segment(BYTES, 0, 7),
        Segment(LITERAL, 0, 8),
        Segment(BYTES, 7, 3),
    )


def test_what_went_away_leaves_its_ends() -> None:
    old, new = memoryview(b"begin, middle, end"), memoryview(b"begin, end")
    assert align(old, new, (), ()) == (Segment(BYTES, 0, 7), Segment(BYTES, 15, 3))


def test_tensors_with_a_known_step_are_compared_by_it() -> None:
    there = [Region("v", 0, 40, FLOAT), Region("w", 40, 40, FLOAT), Region("q", 80, 20, BYTES)]
    found = align(view(100), view(100, 1), there, there, {"w": 0.5, "q": 0.5})
    assert [(one.kind, one.step) for one in found] == [
        (FLOAT, 0.0),
        (Kind.STEP, 0.5),
        (BYTES, 0.0),
    ]


def test_an_empty_new_file_has_no_segments() -> None:
    assert align(view(10), view(0), (), ()) == ()


REGIONS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 60), st.integers(0, 10)), max_size=4
)


@given(st.integers(0, 100), st.integers(0, 100), REGIONS, REGIONS)
def test_segments_cover_the_new_file_and_lie_in_the_old_one(
    old: int, new: int, before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    def regions(found: list[tuple[str, int, int]], size: int) -> list[Region]:
        some = [Region(name, offset, 4 * length, FLOAT) for name, offset, length in found]
        return [one for one in some if one.end <= size]

    found = align(view(old), view(new, 1), regions(before, old), regions(after, new))
    assert sum(one.length for one in found) == new
    for one in found:
        assert one.length > 0
        assert one.length % one.kind.width == 0
        assert one.kind is LITERAL or one.source + one.length <= old
