"""Baselines: what the edges promise, which features there are, and what is no baseline."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.observe.baseline import (
    BINS,
    CONFIDENCE_BINS,
    CONFIDENCE_EDGES,
    FEATURES,
    KIND,
    LATENCY_BUCKETS,
    Array,
    Baseline,
    Feature,
    Outputs,
    Shape,
    confidence,
    confidence_middles,
    count,
    count_confidence,
    count_latency,
    features,
    kind_of,
    latency_of,
    of,
)

LABELS = ("cat", "dog", "owl")


def reference(rows: int = 200) -> Baseline:
    rng = np.random.default_rng(0)
    inputs = rng.random((rows, 1, 8, 8), np.float32)
    return of(LABELS, inputs, rng.normal(size=(rows, 3)).astype(np.float32))


def test_features_are_what_they_are_called() -> None:
    inputs = np.array([[[0, 0.5], [0.5, 1]], [[2, 2], [2, 2]]], np.float32)
    found = features(inputs)
    assert FEATURES == ("mean", "deviation", "near-zero", "peak", "roughness")
    assert found[0] == pytest.approx([0.5, np.sqrt(0.125), 0.25, 1.0, 0.25])
    assert found[1] == pytest.approx([2, 0, 0, 2, 0])
    assert found.dtype == np.float32


def test_an_input_that_is_not_finite_has_features_that_are_not() -> None:
    found = features(np.array([[np.nan, 1], [np.inf, 1]], np.float32))
    assert not np.isfinite(found[:, 0]).any()


def test_reference_values_lie_inside_of_their_own_edges() -> None:
    for feature in reference().features:
        assert sum(feature.counts) == 200
        assert (feature.counts[0], feature.counts[-2], feature.counts[-1]) == (0, 0, 0)


def test_edges_are_quantiles_so_that_bins_hold_equal_shares() -> None:
    mean = reference(3100).features[0]
    assert len(mean.edges) == BINS + 1
    assert max(abs(n - 100) for n in mean.counts[1:-3]) <= 2


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)),
)
@settings(max_examples=60)
def test_any_reference_column_gives_ascending_edges_that_hold_it(column: Array) -> None:
    inputs = np.repeat(column[:, None], 2, axis=1)
    found = of(("only",), inputs, np.zeros((len(column), 1), np.float32))
    assert Baseline.from_bytes(found.to_bytes()) == found
    peak = found.features[3]
    assert (peak.counts[0], sum(peak.counts[-2:])) == (0, 0)


def test_a_constant_has_bins_for_below_equal_and_above() -> None:
    found = of(("only",), np.full((5, 2), 3, np.float32), np.zeros((5, 1), np.float32))
    peak = found.features[3]
    column = np.array([2.999, 3, 3, 3.001, np.nan, np.inf], np.float32)
    assert count(peak, column).tolist() == [1, 2, 1, 2]


def test_a_reference_without_a_finite_value_still_has_edges() -> None:
    found = of(("only",), np.full((3, 2), np.nan, np.float32), np.zeros((3, 1), np.float32))
    assert found.features[0].counts[-1] == 3
    assert Baseline.from_bytes(found.to_bytes()) == found


def test_values_outside_of_the_reference_are_counted_apart() -> None:
    feature = Feature("peak", (0.0, 1.0, 2.0), (0, 0, 0, 0, 0))
    column = np.array([-5, 0, 0.5, 1, 1.99, 2, 99, np.nan, -np.inf], np.float32)
    assert count(feature, column).tolist() == [1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], Outputs.PROBABILITIES),
        ([[0.2, 0.8], [3.0, -1.0]], Outputs.LOGITS),
        ([[0.2, 0.8], [0.4, 0.4]], Outputs.LOGITS),
    ],
)
def test_probabilities_are_told_from_logits(rows: list[list[float]], expected: Outputs) -> None:
    assert kind_of(np.array(rows, np.float32)) is expected


def test_confidence_is_the_probability_of_the_most_likely_class() -> None:
    logits = np.log(np.array([[1, 3], [9, 1]], np.float32))
    assert confidence(logits, Outputs.LOGITS) == pytest.approx([0.75, 0.9])
    shares = np.array([[0.25, 0.75], [1.0001, 0]], np.float32)
    assert confidence(shares, Outputs.PROBABILITIES) == pytest.approx([0.75, 1.0])


def test_huge_logits_do_not_overflow() -> None:
    assert confidence(np.array([[1e30, -1e30]], np.float32), Outputs.LOGITS) == pytest.approx([1])


def test_a_latency_comes_back_from_its_bucket_within_six_percent() -> None:
    for milliseconds in (0.005, 0.05, 1.0, 7.3, 250.0, 60_000.0):
        (bucket,) = np.flatnonzero(count_latency(np.array([milliseconds])))
        assert latency_of(int(bucket)) == pytest.approx(milliseconds, rel=0.06)


def test_latencies_beyond_the_buckets_fall_into_the_outer_ones() -> None:
    found = count_latency(np.array([0.0, 1e-9, 1e9]))
    assert (found[0], found[LATENCY_BUCKETS - 1]) == (2, 1)


def test_confidence_bins_cover_zero_to_one() -> None:
    found = count_confidence(np.array([0.0, CONFIDENCE_EDGES[0], 0.5, 1.0]))
    assert (found.sum(), found[0], found[1], found[-1]) == (4, 1, 1, 1)
    middles = confidence_middles()
    assert len(middles) == CONFIDENCE_BINS
    assert middles[0] == CONFIDENCE_EDGES[0] / 2
    assert (np.diff(middles) > 0).all()


def test_blocks_of_a_vector_have_the_sizes_of_its_shape() -> None:
    shape = Shape(3, (4, 5))
    blocks = shape.split(np.arange(shape.size))
    assert tuple(len(block) for block in blocks) == shape.sizes
    assert shape.sizes == (LATENCY_BUCKETS, CONFIDENCE_BINS, 3, 4, 5)


def test_a_baseline_comes_back_and_keeps_its_digest() -> None:
    found = reference()
    assert Baseline.from_bytes(found.to_bytes()) == found
    assert found.digest == canonical.digest(found.to_bytes())
    assert found.shape == Shape(3, tuple(feature.bins for feature in found.features))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(np.zeros((0, 4)), np.zeros((0, 3))), (np.zeros((2, 4)), np.zeros((2, 2)))],
    ids=["no rows", "another number of classes"],
)
def test_a_baseline_needs_rows_and_an_output_per_label(inputs: Array, outputs: Array) -> None:
    with pytest.raises(ValueError, match="expected outputs"):
        of(LABELS, inputs, outputs)


FEATURE = {"name": "mean", "edges": [0, 1], "counts": [0, 1, 0, 0]}


@pytest.mark.parametrize(
    "change",
    [
        {"labels": []},
        {"labels": [""]},
        {"labels": [3]},
        {"labels": ["x"] * 10_001},
        {"labels": None},
        {"outputs": "guesses"},
        {"rows": "many"},
        {"features": [FEATURE] * 65},
        {"features": [FEATURE | {"edges": [1, 1]}]},
        {"features": [FEATURE | {"edges": [0]}]},
        {"features": [FEATURE | {"edges": [0, 1e300]}]},
        {"features": [FEATURE | {"edges": list(range(40))}]},
        {"features": [FEATURE | {"counts": [1, 2]}]},
        {"features": [FEATURE | {"counts": [0, 0, 0, -1]}]},
        {"features": [{"name": "mean"}]},
        {"features": 7},
    ],
    ids=lambda change: str(change)[:50],
)
def test_documents_that_are_no_baseline_are_refused(change: dict[str, object]) -> None:
    document = canonical.from_bytes(reference().to_bytes(), kind=KIND) | change
    with pytest.raises(FormatError):
        Baseline.from_bytes(canonical.to_bytes(document))


def test_limits_are_inclusive() -> None:
    change = {"features": [FEATURE] * 64, "labels": ["x"]}
    document = canonical.from_bytes(reference().to_bytes(), kind=KIND) | change
    found = Baseline.from_bytes(canonical.to_bytes(document))
    assert found.shape == Shape(1, (4,) * 64)


def test_near_zero_means_closer_than_its_bound() -> None:
    found = features(np.array([[0.01, 0.0099]], np.float32))
    assert found[0, 2] == 0.5


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=20))
@settings(max_examples=60)
def test_damaged_baselines_are_refused_as_such(at: int, noise: bytes) -> None:
    data = SAMPLE
    at %= len(data)
    for damaged in (noise, data[:at], data[:at] + noise + data[at + len(noise) :]):
        try:
            Baseline.from_bytes(damaged)
        except FormatError:
            continue
        else:
            assert Baseline.from_bytes(damaged).to_bytes() == damaged


SAMPLE = reference().to_bytes()
