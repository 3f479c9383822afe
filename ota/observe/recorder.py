"""Counts inferences on the device: a ring of raw values, folded into histograms when it is full.

Recording one inference costs about a microsecond because nothing is looked up until the ring is
full; then numpy bins a thousand rows at once. Values are copied into the ring: keeping references
would see what the caller writes into its buffers later.
"""

from datetime import datetime
from typing import Final

import numpy as np

from wildflower.ota.observe.baseline import (
    Array,
    Baseline,
    count,
    count_confidence,
    count_latency,
)
from wildflower.ota.observe.summary import Summary

RING: Final = 1024  # rows; folding them pauses the caller for about half a millisecond


class Recorder:
    """Counts the inferences of one artifact. Not for two threads at once."""

    def __init__(self, artifact: str, baseline: Baseline, *, ring: int = RING) -> None:
        self._baseline = baseline
        self._ring = ring
        self._features = np.empty((ring, len(baseline.features)), np.float32)
        self._latency = np.empty(ring, np.float64)
        self._predicted = np.empty(ring, np.int64)
        self._confidence = np.empty(ring, np.float32)
        self._filled = 0
        self._zero = Summary.zero(artifact, baseline.digest, baseline.shape)
        self._clear()

    @property
    def recorded(self) -> int:
        """Inferences since the last cut, with or without an answer."""
        return self._folded + self._filled + self._errors

    def record(self, features: Array, latency_ms: float, predicted: int, confidence: float) -> None:
        """Count one answer.

        Args:
            features: Shape (k,), as `baseline.features` computes them.
            latency_ms: How long the caller waited for the answer, in milliseconds.
            predicted: Index of the predicted class, below the number of labels.
            confidence: Its probability, in [0, 1].
        """
        at = self._filled
        self._features[at] = features
        self._latency[at] = latency_ms
        self._predicted[at] = predicted
        self._confidence[at] = confidence
        self._filled = at + 1
        if self._filled == self._ring:
            self._fold()

    def label(self, is_correct: bool) -> None:
        """Count the label of an answer that was recorded."""
        self._labelled += 1
        self._correct += is_correct

    def fail(self, inferences: int = 1) -> None:
        """Count inferences that gave no answer."""
        self._errors += inferences

    def cut(self, *, start: datetime, end: datetime, dropped: int = 0) -> Summary:
        """Return the summary of everything since the last cut, and begin anew.

        Args:
            start: Begin of the window.
            end: End of the window.
            dropped: Summaries that had to be dropped since the last cut.
        """
        self._fold()
        summary = Summary(
            self._zero.artifact,
            self._zero.baseline,
            self._zero.shape,
            self._counts,
            self._errors,
            self._labelled,
            self._correct,
            dropped,
            start,
            end,
        )
        self._clear()
        return summary

    def _fold(self) -> None:
        filled = slice(self._filled)
        blocks = [
            count_latency(self._latency[filled]),
            count_confidence(self._confidence[filled]),
            np.bincount(self._predicted[filled], minlength=self._zero.shape.classes),
        ]
        columns = self._features[filled].T
        blocks += [
            count(feature, column)
            for feature, column in zip(self._baseline.features, columns, strict=True)
        ]
        self._counts += np.concatenate(blocks)
        self._folded += self._filled
        self._filled = 0

    def _clear(self) -> None:
        self._counts = self._zero.counts.copy()
        self._folded = self._errors = self._labelled = self._correct = 0
