"""What normal looks like: the fixed edges into which a device counts, shipped with the model.

Fixed edges make a summary a vector of integers, and integers add up: exactly, in any order, under
a secure sum too. The price is that edges must be known beforehand; they are quantiles of reference
data, so each bin holds about the same share and drift statistics lose no power against raw rows.

For one feature, with edges e0 < ... < em:

    bin 0: x < e0 (never seen) | bin i: e(i-1) <= x < ei | bin m+1: x >= em (never seen) | NaN, inf

A constant c gets the edges (c, next float after c), that is the bins below, equal, above; quantiles
of a feature with few levels collapse to the levels themselves. Comparison is in float32, the
inputs' own type: a float64 edge would move values that lie on it.

    Baseline.from_bytes(baseline.to_bytes()) == baseline
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError

KIND: Final = "wildflower.baseline"

Array = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

FEATURES: Final = ("mean", "deviation", "near-zero", "peak", "roughness")
"""What `features` computes of one input, in its order."""

NEAR_ZERO: Final = 0.01  # absolute; background of images scaled to [0, 1] lies below, ink above

LARGEST: Final = 1e37  # what lies beyond has no next float32 to end its bin
BINS: Final = 32  # at most, per feature: KS from 32 bins lies within .015 of raw at n >= 1000
MAX_FEATURES: Final = 64
MAX_CLASSES: Final = 10_000

LATENCY_PER_OCTAVE: Final = 6  # buckets 12 % wide
LATENCY_FIRST_MS: Final = 2.0**-8  # 4 us; a tiny model on a fast CPU
LATENCY_BUCKETS: Final = 144  # 24 octaves: up to 65 s

CONFIDENCE_EDGES: Final[tuple[float, ...]] = tuple(
    float(1 / (1 + np.exp(-(-3 + 0.4 * i)))) for i in range(31)
)
"""Equal steps of log-odds from 0.047 to 0.9999: most answers of a good model lie close to 1."""

CONFIDENCE_BINS: Final = len(CONFIDENCE_EDGES) + 1


@unique
class Outputs(StrEnum):
    """What a model's outputs are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature's edges.

    Attributes:
        name: What it measures.
        edges: Ascending float32 values.
        counts: Of the reference data, one per bin, as the module docstring numbers them.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def bins(self) -> int:
        """Number of bins, the ones for the never seen and the not finite included."""
        return len(self.edges) + 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Which part of a summary's vector is which histogram.

    Attributes:
        classes: Number of classes of the model.
        bins: Number of bins of each feature.
    """

    classes: int
    bins: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of each block: latency, confidence, classes, then one per feature."""
        return (LATENCY_BUCKETS, CONFIDENCE_BINS, self.classes, *self.bins)

    @property
    def size(self) -> int:
        """Number of counters."""
        return sum(self.sizes)

    def split(self, counts: Counts) -> tuple[Counts, ...]:
        """Return the blocks of a vector of shape (size,), in the order of `sizes`."""
        return tuple(np.split(counts, np.cumsum(self.sizes)[:-1]))


@dataclass(frozen=True, slots=True)
class Baseline:
    """The edges of a model's summaries.

    Attributes:
        labels: Names of the classes, in the order of the model's outputs.
        outputs: Whether the model gives logits or probabilities.
        rows: Number of reference examples.
        features: Edges of each feature.
    """

    labels: tuple[str, ...]
    outputs: Outputs
    rows: int
    features: tuple[Feature, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of its bytes; only summaries of one digest can be merged."""
        return canonical.digest(self.to_bytes())

    @property
    def shape(self) -> Shape:
        """The shape of its summaries."""
        return Shape(len(self.labels), tuple(feature.bins for feature in self.features))

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is shipped."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "labels": list(self.labels),
                "outputs": self.outputs.value,
                "rows": self.rows,
                "features": [
                    {"name": one.name, "edges": list(one.edges), "counts": list(one.counts)}
                    for one in self.features
                ],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a baseline from outside.

        Raises:
            FormatError: Not a baseline, or a value lies outside its range.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            baseline = cls(
                labels=tuple(_text(label) for label in document["labels"]),
                outputs=Outputs(document["outputs"]),
                rows=int(document["rows"]),
                features=tuple(_feature(entry) for entry in document["features"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"baseline: {error!r}") from error
        if len(baseline.features) > MAX_FEATURES or not 1 <= len(baseline.labels) <= MAX_CLASSES:
            raise FormatError(
                f"baseline: {len(baseline.features)} features (at most {MAX_FEATURES}), "
                f"{len(baseline.labels)} classes (1 to {MAX_CLASSES})"
            )
        return baseline


def of(labels: Sequence[str], inputs: Array, outputs: Array) -> Baseline:
    """Return the baseline of reference data.

    Args:
        labels: Names of the classes, in the order of the outputs.
        inputs: Reference inputs, shape (n, ...), n >= 1.
        outputs: What the model answers to them, shape (n, classes).

    Raises:
        ValueError: No rows, or another number of classes than labels.
    """
    if len(inputs) == 0 or outputs.shape != (len(inputs), len(labels)):
        raise ValueError(f"expected outputs ({len(inputs)}, {len(labels)}), found {outputs.shape}")
    columns = features(inputs)
    measured = tuple(
        _measure(name, column) for name, column in zip(FEATURES, columns.T, strict=True)
    )
    return Baseline(tuple(labels), kind_of(outputs), len(inputs), measured)


def features(inputs: Array) -> Array:
    """Return the named features of each input.

    Args:
        inputs: Shape (n, ...).

    Returns:
        Shape (n, len(FEATURES)), float32. A feature of an input that holds NaN or infinity is
        itself not finite, and is counted as such.
    """
    flat = np.asarray(inputs, np.float32).reshape(len(inputs), -1)
    found = np.empty((len(flat), len(FEATURES)), np.float32)
    with np.errstate(all="ignore"):
        found[:, 0] = flat.mean(1)
        found[:, 1] = flat.std(1)
        found[:, 2] = (np.abs(flat) < NEAR_ZERO).mean(1)
        found[:, 3] = flat.max(1)
        found[:, 4] = np.abs(np.diff(flat, axis=1, prepend=flat[:, :1])).mean(1)
    return found


def kind_of(outputs: Array) -> Outputs:
    """Return what a model's outputs are, judged by rows of shape (n, classes).

    Probabilities are never negative and sum to 1; logits that do so in every row by accident do
    not occur with more than a handful of rows.
    """
    is_simplex = bool((outputs >= 0).all() and np.allclose(outputs.sum(1), 1, atol=1e-3))
    return Outputs.PROBABILITIES if is_simplex else Outputs.LOGITS


def confidence(outputs: Array, kind: Outputs) -> Array:
    """Return the probability of each row's most likely class, shape (n,), in [0, 1]."""
    top: Array = outputs.max(1)
    if kind is Outputs.LOGITS:
        top = 1 / np.exp(outputs - top[:, None]).sum(1)
    return top.clip(0, 1)


def count(feature: Feature, column: Array) -> Counts:
    """Return the histogram of one feature's values, shape (bins,)."""
    is_finite = np.isfinite(column)
    places = np.searchsorted(np.asarray(feature.edges, np.float32), column, side="right")
    # Without the mask NaN would sort into the last bin and look like a huge value.
    return np.bincount(np.where(is_finite, places, feature.bins - 1), minlength=feature.bins)


def count_latency(milliseconds: npt.NDArray[np.float64]) -> Counts:
    """Return the histogram of latencies, shape (LATENCY_BUCKETS,)."""
    octaves = np.log2(np.maximum(milliseconds, LATENCY_FIRST_MS) / LATENCY_FIRST_MS)
    places = np.clip(octaves * LATENCY_PER_OCTAVE, 0, LATENCY_BUCKETS - 1).astype(np.int64)
    return np.bincount(places, minlength=LATENCY_BUCKETS)


def latency_of(bucket: int) -> float:
    """Return the geometric middle of a latency bucket, in milliseconds."""
    return float(LATENCY_FIRST_MS * 2 ** ((bucket + 0.5) / LATENCY_PER_OCTAVE))


def count_confidence(values: npt.NDArray[np.floating[Any]]) -> Counts:
    """Return the histogram of confidences, shape (CONFIDENCE_BINS,)."""
    places = np.searchsorted(CONFIDENCE_EDGES, values, side="right")
    return np.bincount(places, minlength=CONFIDENCE_BINS)


def confidence_middles() -> npt.NDArray[np.float64]:
    """Return the middle of each confidence bin, shape (CONFIDENCE_BINS,)."""
    borders = np.array([0.0, *CONFIDENCE_EDGES, 1.0])
    middles: npt.NDArray[np.float64] = (borders[:-1] + borders[1:]) / 2
    return middles


def _measure(name: str, column: Array) -> Feature:
    finite = column[np.abs(column) < LARGEST]
    if len(finite) == 0:
        finite = np.zeros(1, np.float32)
    cuts = np.quantile(finite, np.linspace(0, 1, BINS)).astype(np.float32)
    last = np.nextafter(finite.max(), np.float32(np.inf), dtype=np.float32)
    # The quantiles' own rounding must not put the extremes of the reference outside of it.
    edges = np.unique(np.concatenate([cuts.clip(finite.min(), finite.max()), [last]]))
    feature = Feature(name, tuple(float(edge) for edge in edges), ())
    return Feature(name, feature.edges, tuple(int(n) for n in count(feature, column)))


def _feature(entry: Any) -> Feature:
    feature = Feature(
        _text(entry["name"]),
        tuple(float(edge) for edge in entry["edges"]),
        tuple(int(n) for n in entry["counts"]),
    )
    with np.errstate(over="ignore"):  # becomes infinity, which is refused below
        edges = np.asarray(feature.edges, np.float32)
    is_ascending = bool((np.diff(edges) > 0).all() and np.isfinite(edges).all())
    if not 2 <= len(edges) <= BINS + 1 or not is_ascending:
        raise ValueError(f"{feature.name}: 2 to {BINS + 1} ascending edges")
    if len(feature.counts) != feature.bins or min(feature.counts) < 0:
        raise ValueError(f"{feature.name}: {feature.bins} counts of at least 0")
    return feature


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise ValueError(f"expected a name of 1 to 200 characters, found {value!r}")
    return value
