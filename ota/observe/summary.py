"""What a device tells about a window of inferences: histograms of integers, never a row.

A summary is a monoid: `merge` is associative and commutative, and a summary without inferences is
its identity. So hours become days, devices become a fleet, and a lost order changes nothing.
Summaries merge only if they were counted into the same edges and come from the same artifact.

    merge(a, b) == merge(b, a)      merge(a, merge(b, c)) == merge(merge(a, b), c)
    merge(zero, a) == a             Summary.from_bytes(a.to_bytes()) == a

On the wire: one byte of version, then zlib over a fixed header, the sizes of the blocks and the
counters as little-endian u64. Signing is the channel's matter (mutual TLS).
"""

import struct
import zlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Final, Self

import numpy as np

from wildflower.ota.errors import FormatError, SummaryMismatchError
from wildflower.ota.observe.baseline import (
    MAX_CLASSES,
    MAX_FEATURES,
    Counts,
    Shape,
    confidence_middles,
    latency_of,
)

VERSION: Final = 1
MAX_WIRE: Final = 64 * 1024  # bytes; a summary of 5 features and 10 classes takes about 600
MAX_BODY: Final = 1024 * 1024  # bytes after decompression: 64 features, 10,000 classes fit
MAX_COUNT: Final = 2**40  # 8 million summaries of this size still add up in 64 bits
MAX_BINS: Final = 1024
HEADER: Final = struct.Struct("<32s32sqqQQQQQIH")
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
END_OF_TIME: Final = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """Counts over the inferences of one window.

    Attributes:
        artifact: Digest of the model file that answered.
        baseline: Digest of the edges that were counted into.
        shape: Which counter is what.
        counts: All histograms, shape (shape.size,), int64: latency, confidence, predicted class,
            then one per feature. Each of them sums to `n`.
        errors: Inferences that gave no answer; they are in no histogram.
        labelled: Answers whose label came.
        correct: Of these, the right ones.
        dropped: Summaries that the device had to drop since the one before.
        start: Begin of the window, by the device's clock; None for no window.
        end: End of the window.
    """

    artifact: str
    baseline: str
    shape: Shape
    counts: Counts = field(repr=False)
    errors: int = 0
    labelled: int = 0
    correct: int = 0
    dropped: int = 0
    start: datetime | None = None
    end: datetime | None = None

    @classmethod
    def zero(cls, artifact: str, baseline: str, shape: Shape) -> Self:
        """Return the summary of no inferences: the identity of `merge`."""
        return cls(artifact, baseline, shape, np.zeros(shape.size, np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Summary):
            return NotImplemented
        return self._facts() == other._facts() and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # holds an array, so it is no key

    @property
    def n(self) -> int:
        """Number of answers."""
        return int(self.latency.sum())

    @property
    def latency(self) -> Counts:
        """Answers per latency bucket, shape (LATENCY_BUCKETS,)."""
        return self.shape.split(self.counts)[0]

    @property
    def confidences(self) -> Counts:
        """Answers per confidence bin, shape (CONFIDENCE_BINS,)."""
        return self.shape.split(self.counts)[1]

    @property
    def classes(self) -> Counts:
        """Answers per predicted class, shape (shape.classes,)."""
        return self.shape.split(self.counts)[2]

    @property
    def features(self) -> tuple[Counts, ...]:
        """Answers per bin, for each feature."""
        return self.shape.split(self.counts)[3:]

    @property
    def error_rate(self) -> float | None:
        """Share of inferences without an answer, in [0, 1]; None if there were none."""
        asked = self.n + self.errors
        return self.errors / asked if asked else None

    @property
    def accuracy(self) -> float | None:
        """Share of right answers among the labelled, in [0, 1]; None if no label came."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def confidence_mean(self) -> float | None:
        """Mean confidence from the bins' middles, in [0, 1]; None without answers."""
        n = self.n
        return float(self.confidences @ confidence_middles()) / n if n else None

    def latency_quantile(self, p: float) -> float | None:
        """Return the latency below which a share `p` of answers lies.

        Args:
            p: In (0, 1].

        Returns:
            Milliseconds, within 6 % of the exact value; None without answers.

        Raises:
            ValueError: `p` lies outside its range.
        """
        if not 0 < p <= 1:
            raise ValueError(f"p lies in (0, 1], found {p}")
        if not (n := self.n):
            return None
        rank = max(1, int(np.ceil(p * n)))
        return latency_of(int(np.searchsorted(np.cumsum(self.latency), rank)))

    def merge(self, other: "Summary") -> "Summary":
        """Return the summary of both windows together.

        Raises:
            SummaryMismatchError: They are of different baselines, shapes or artifacts.
        """
        mine = (self.baseline, self.shape, self.artifact)
        theirs = (other.baseline, other.shape, other.artifact)
        if mine != theirs:
            raise SummaryMismatchError(
                f"baseline {self.baseline[:12]} of artifact {self.artifact[:12]} cannot be merged "
                f"with baseline {other.baseline[:12]} of artifact {other.artifact[:12]}",
                hint="Merge per artifact: a new model is a new series.",
            )
        return replace(
            self,
            counts=self.counts + other.counts,
            errors=self.errors + other.errors,
            labelled=self.labelled + other.labelled,
            correct=self.correct + other.correct,
            dropped=self.dropped + other.dropped,
            start=min((m for m in (self.start, other.start) if m), default=None),
            end=max((m for m in (self.end, other.end) if m), default=None),
        )

    def to_bytes(self) -> bytes:
        """Return the wire form.

        Raises:
            ValueError: A digest is no digest, or the counts are not of the shape.
        """
        if self.counts.shape != (self.shape.size,):
            raise ValueError(f"expected {self.shape.size} counters, found {self.counts.shape}")
        header = HEADER.pack(
            _digest_bytes(self.artifact),
            _digest_bytes(self.baseline),
            _microseconds(self.start),
            _microseconds(self.end),
            self.n,
            self.errors,
            self.labelled,
            self.correct,
            self.dropped,
            self.shape.classes,
            len(self.shape.bins),
        )
        sizes = np.asarray(self.shape.bins, "<u2").tobytes()
        body = header + sizes + self.counts.astype("<u8").tobytes()
        return bytes([VERSION]) + zlib.compress(body, 6)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a summary from outside.

        Raises:
            FormatError: Not a summary, too large, or its histograms contradict each other.
        """
        body = _decompress(data)
        if len(body) < HEADER.size:
            raise FormatError(f"summary: {len(body)} bytes are no header")
        artifact, baseline, start, end, n, *rest, classes, features = HEADER.unpack_from(body)
        if not 1 <= classes <= MAX_CLASSES or features > MAX_FEATURES:
            raise FormatError(f"summary: {classes} classes, {features} features")
        bins = np.frombuffer(body[HEADER.size : HEADER.size + 2 * features], "<u2")
        shape = Shape(classes, tuple(int(size) for size in bins))
        if len(bins) != features or any(not 1 <= size <= MAX_BINS for size in shape.bins):
            raise FormatError(f"summary: {features} features with {shape.bins} bins")
        counters = body[HEADER.size + 2 * features :]
        if len(counters) != 8 * shape.size:
            raise FormatError(f"summary: expected {shape.size} counters, found {len(counters) / 8}")
        counts = np.frombuffer(counters, "<u8")
        if max(n, *rest) > MAX_COUNT or counts.max() > MAX_COUNT:
            raise FormatError(f"summary: a count exceeds {MAX_COUNT}")
        errors, labelled, correct, dropped = rest
        counts = counts.astype(np.int64)
        counts.flags.writeable = False
        sums = {int(block.sum()) for block in shape.split(counts)}
        if sums != {n} or not correct <= labelled <= n:
            raise FormatError(f"summary: histograms sum to {sorted(sums)}, expected {n} in each")
        return cls(
            artifact.hex(),
            baseline.hex(),
            shape,
            counts,
            errors,
            labelled,
            correct,
            dropped,
            _moment(start),
            _moment(end),
        )

    def _facts(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in Summary.__slots__ if name != "counts")


def merge(first: Summary, *others: Summary) -> Summary:
    """Return the summary of all of them together.

    Raises:
        SummaryMismatchError: They are of different baselines, shapes or artifacts.
    """
    return reduce(Summary.merge, others, first)


def _decompress(data: bytes) -> bytes:
    """Return the body, never more than MAX_BODY of it: a bomb costs its sender, not us."""
    if not 1 <= len(data) <= MAX_WIRE or data[0] != VERSION:
        raise FormatError(f"summary: {len(data)} bytes of version {data[:1].hex() or 'none'}")
    inflate = zlib.decompressobj()
    try:
        body = inflate.decompress(data[1:], MAX_BODY)
    except zlib.error as error:
        raise FormatError(f"summary: {error}") from error
    if not inflate.eof or inflate.unused_data:
        raise FormatError(f"summary: truncated, trailing, or larger than {MAX_BODY} bytes")
    return body


def _digest_bytes(digest: str) -> bytes:
    data = bytes.fromhex(digest)
    if len(data) != 32:
        raise ValueError(f"not a SHA-256: {digest!r}")
    return data


def _microseconds(moment: datetime | None) -> int:
    """Return microseconds since 1970; the first of them stands for no moment."""
    return 0 if moment is None else (moment - EPOCH) // timedelta(microseconds=1)


def _moment(microseconds: int) -> datetime | None:
    if microseconds == 0:
        return None
    if not 0 < microseconds < (END_OF_TIME - EPOCH) // timedelta(microseconds=1):
        raise FormatError(f"summary: no moment: {microseconds} microseconds since 1970")
    return EPOCH + timedelta(microseconds=microseconds)
