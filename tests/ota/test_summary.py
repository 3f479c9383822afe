"""Summaries: a monoid, readable by hand, and a wire form that believes nobody."""

import struct
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.ota.errors import FormatError, SummaryMismatchError
from wildflower.ota.observe.baseline import CONFIDENCE_BINS, LATENCY_BUCKETS, Shape, latency_of
from wildflower.ota.observe.summary import HEADER, MAX_BODY, MAX_COUNT, VERSION, Summary, merge

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SHAPE = Shape(3, (4, 5))
ARTIFACT, BASELINE = "ab" * 32, "cd" * 32
ZERO = Summary.zero(ARTIFACT, BASELINE, SHAPE)
GOLDEN = Path(__file__).parents[1] / "goldens" / "summary.hex"


def spread(rng: np.random.Generator, n: int) -> Summary:
    """Return a summary of n answers that fell anywhere."""
    blocks = [rng.multinomial(n, np.full(size, 1 / size)) for size in SHAPE.sizes]
    labelled = int(rng.integers(0, n + 1))
    minutes = int(rng.integers(0, 600))
    return replace(
        ZERO,
        counts=np.concatenate(blocks),
        errors=int(rng.integers(0, 5)),
        labelled=labelled,
        correct=int(rng.integers(0, labelled + 1)),
        dropped=int(rng.integers(0, 3)),
        start=NOON + timedelta(minutes=minutes),
        end=NOON + timedelta(minutes=minutes + 60),
    )


summaries = st.builds(
    lambda seed, n: spread(np.random.default_rng(seed), n),
    st.integers(0, 2**32),
    st.integers(0, 500),
)


@given(summaries, summaries, summaries)
@settings(max_examples=40)
def test_merging_is_associative_and_commutative_with_an_identity(
    a: Summary, b: Summary, c: Summary
) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b.merge(c)) == a.merge(b).merge(c) == merge(a, b, c)
    assert ZERO.merge(a) == a == a.merge(ZERO)


@given(summaries)
@settings(max_examples=40)
def test_a_summary_comes_back_from_the_wire(summary: Summary) -> None:
    assert Summary.from_bytes(summary.to_bytes()) == summary


def test_the_identity_comes_back_from_the_wire() -> None:
    assert Summary.from_bytes(ZERO.to_bytes()) == ZERO


@pytest.mark.parametrize(
    "other",
    [
        Summary.zero(ARTIFACT, "ce" * 32, SHAPE),
        Summary.zero("ac" * 32, BASELINE, SHAPE),
        Summary.zero(ARTIFACT, BASELINE, Shape(3, (4, 6))),
    ],
    ids=["baseline", "artifact", "shape"],
)
def test_summaries_of_another_kind_are_never_merged(other: Summary) -> None:
    with pytest.raises(SummaryMismatchError, match="cannot be merged") as caught:
        ZERO.merge(other)
    assert "per artifact" in caught.value.hint


def filled(
    latency: dict[int, int], confidences: dict[int, int], classes: tuple[int, int, int]
) -> Summary:
    n = sum(classes)
    blocks = [np.zeros(size, np.int64) for size in SHAPE.sizes]
    for block, places in zip(blocks, (latency, confidences), strict=False):
        for place, times in places.items():
            block[place] = times
    blocks[2][:] = classes
    blocks[3][0] = blocks[4][1] = n
    return replace(ZERO, counts=np.concatenate(blocks))


def test_quantiles_are_read_off_the_latency_buckets() -> None:
    summary = filled({10: 90, 50: 9, 100: 1}, {0: 100}, (100, 0, 0))
    assert summary.n == 100
    assert summary.latency_quantile(0.5) == latency_of(10)
    assert summary.latency_quantile(0.9) == latency_of(10)
    assert summary.latency_quantile(0.95) == latency_of(50)
    assert summary.latency_quantile(1.0) == latency_of(100)


@pytest.mark.parametrize("p", [0.0, -1.0, 1.1])
def test_a_quantile_outside_of_its_range_is_a_misuse(p: float) -> None:
    with pytest.raises(ValueError, match="p lies in"):
        ZERO.latency_quantile(p)


def test_the_mean_confidence_is_that_of_the_bins_middles() -> None:
    last = CONFIDENCE_BINS - 1
    summary = filled({0: 4}, {0: 2, last: 2}, (4, 0, 0))
    assert summary.confidence_mean == pytest.approx((0.0237 + 0.99994) / 2, abs=1e-3)


def test_rates_are_shares_of_what_was_asked_and_of_what_was_labelled() -> None:
    summary = replace(filled({0: 8}, {0: 8}, (5, 2, 1)), errors=2, labelled=4, correct=3)
    assert (summary.error_rate, summary.accuracy) == (0.2, 0.75)
    assert summary.classes.tolist() == [5, 2, 1]
    assert [block.tolist() for block in summary.features] == [[8, 0, 0, 0], [0, 8, 0, 0, 0]]


def test_nothing_is_said_of_no_inferences() -> None:
    assert (ZERO.error_rate, ZERO.accuracy, ZERO.confidence_mean) == (None, None, None)
    assert ZERO.latency_quantile(0.5) is None


def test_a_summary_equals_nothing_but_a_summary() -> None:
    assert ZERO != "summary"
    assert replace(ZERO, errors=1) != ZERO


@pytest.mark.parametrize(
    "wrong",
    [
        replace(ZERO, artifact="ab"),
        replace(ZERO, baseline="no digest"),
        replace(ZERO, counts=np.zeros(3, np.int64)),
    ],
    ids=["short digest", "no hex", "counts of another shape"],
)
def test_what_is_no_summary_is_not_sent(wrong: Summary) -> None:
    with pytest.raises(ValueError, match=r"SHA-256|hex|counters"):
        wrong.to_bytes()


def body_of(summary: Summary) -> bytes:
    return zlib.decompress(summary.to_bytes()[1:])


def wire(body: bytes) -> bytes:
    return bytes([VERSION]) + zlib.compress(body)


def with_header(**changes: int | bytes) -> bytes:
    """Return a summary of one answer with some of its header's fields changed."""
    sums = ["n", "errors", "labelled", "correct", "dropped"]
    names = ["artifact", "baseline", "start", "end", *sums, "classes", "features"]
    body = body_of(filled({0: 1}, {0: 1}, (1, 0, 0)))
    fields = dict(zip(names, HEADER.unpack_from(body), strict=True)) | changes
    return wire(HEADER.pack(*fields.values()) + body[HEADER.size :])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + zlib.compress(b"x"),
        bytes([VERSION]),
        bytes([VERSION]) + b"not zlib",
        wire(b"short"),
        wire(body_of(ZERO))[:-3],
        wire(body_of(ZERO)) + b"more",
        wire(body_of(ZERO)[:-8]),
        wire(body_of(ZERO) + b"\0" * 8),
        wire(body_of(ZERO)[: HEADER.size + 2]),
        wire(HEADER.pack(*HEADER.unpack_from(body_of(ZERO))[:-1], 2) + struct.pack("<HH", 0, 4)),
        wire(HEADER.pack(*HEADER.unpack_from(body_of(ZERO))[:-1], 1) + struct.pack("<H", 9999)),
        with_header(classes=0),
        with_header(classes=2**31),
        with_header(features=65),
        with_header(n=2),
        with_header(n=2**63),
        with_header(labelled=2),
        with_header(correct=1),
        with_header(errors=MAX_COUNT + 1),
        with_header(start=-5),
        with_header(end=2**62),
        b"\x01" + b"x" * 70_000,
    ],
)
def test_bytes_that_are_no_summary_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Summary.from_bytes(data)


def test_a_counter_beyond_all_measure_is_refused() -> None:
    body = bytearray(body_of(ZERO))
    struct.pack_into("<Q", body, len(body) - 8, 2**64 - 1)
    with pytest.raises(FormatError, match="exceeds"):
        Summary.from_bytes(wire(bytes(body)))


def test_limits_are_inclusive() -> None:
    shape = Shape(1, (1,))
    counts = np.zeros(shape.size, np.int64)
    for block in shape.split(counts):
        block[0] = MAX_COUNT
    largest = Summary(ARTIFACT, BASELINE, shape, counts, errors=MAX_COUNT)
    assert Summary.from_bytes(largest.to_bytes()) == largest


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    with pytest.raises(FormatError, match="larger than"):
        Summary.from_bytes(wire(bytes(MAX_BODY * 20)))


def test_a_summary_of_a_small_model_fits_in_a_kilobyte() -> None:
    busy = spread(np.random.default_rng(0), 100_000)
    assert len(busy.to_bytes()) < 1024
    assert SHAPE.size == LATENCY_BUCKETS + CONFIDENCE_BINS + 3 + 9


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255))
@settings(max_examples=150)
def test_damaged_bytes_are_refused_or_are_another_whole_summary(
    noise: bytes, at: int, flip: int
) -> None:
    data = spread(np.random.default_rng(1), 50).to_bytes()
    at %= len(data)
    flipped = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
    inner = bytearray(body_of(ZERO))
    inner[at % len(inner)] ^= flip
    for damaged in (noise, bytes([VERSION]) + noise, flipped, data[:at], wire(bytes(inner))):
        try:
            summary = Summary.from_bytes(damaged)
        except FormatError:
            continue
        assert Summary.from_bytes(summary.to_bytes()) == summary


def test_the_wire_form_stays_what_servers_have_stored(update_goldens: bool) -> None:
    summary = replace(
        filled({20: 2, 30: 1}, {5: 1, 31: 2}, (0, 1, 2)),
        errors=1,
        labelled=2,
        correct=1,
        dropped=4,
        start=NOON,
        end=NOON + timedelta(hours=1),
    )
    if update_goldens:
        GOLDEN.write_text(body_of(summary).hex() + "\n")
    body = bytes.fromhex(GOLDEN.read_text())
    assert body_of(summary) == body
    assert Summary.from_bytes(wire(body)) == summary
