"""The recorder: what goes in is what is counted, whenever the ring is folded."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from wildflower.ota.observe import baseline
from wildflower.ota.observe.recorder import Recorder
from wildflower.ota.observe.summary import Summary, merge

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ARTIFACT = "ab" * 32
LABELS = ("cat", "dog")


def inputs(rows: int, seed: int = 0) -> baseline.Array:
    return np.random.default_rng(seed).random((rows, 6), np.float32)


REFERENCE = baseline.of(LABELS, inputs(100), np.zeros((100, 2), np.float32))


def recorded(rows: int, *, ring: int) -> Summary:
    recorder = Recorder(ARTIFACT, REFERENCE, ring=ring)
    for at, row in enumerate(baseline.features(inputs(rows, seed=1))):
        recorder.record(row, 1.5 + at, at % 2, 0.9)
    return recorder.cut(start=NOON, end=NOON + timedelta(hours=1))


def test_every_histogram_counts_every_answer() -> None:
    summary = recorded(100, ring=32)
    assert summary.n == 100
    assert {int(block.sum()) for block in summary.shape.split(summary.counts)} == {100}
    assert summary.classes.tolist() == [50, 50]
    assert (summary.artifact, summary.baseline) == (ARTIFACT, REFERENCE.digest)
    assert (summary.start, summary.end) == (NOON, NOON + timedelta(hours=1))


@pytest.mark.parametrize("ring", [1, 7, 100, 1024])
def test_the_size_of_the_ring_changes_no_count(ring: int) -> None:
    assert recorded(100, ring=ring) == recorded(100, ring=64)


def test_a_value_is_copied_when_it_is_recorded() -> None:
    recorder = Recorder(ARTIFACT, REFERENCE)
    row = baseline.features(inputs(1))[0]
    recorder.record(row, 1.0, 0, 0.5)
    row[:] = np.nan
    summary = recorder.cut(start=NOON, end=NOON)
    assert all(block[-1] == 0 for block in summary.features)


def test_labels_and_failures_are_counted_beside_the_answers() -> None:
    recorder = Recorder(ARTIFACT, REFERENCE)
    recorder.record(baseline.features(inputs(1))[0], 1.0, 1, 0.5)
    recorder.label(True)
    recorder.label(False)
    recorder.fail()
    recorder.fail(3)
    assert recorder.recorded == 5
    summary = recorder.cut(start=NOON, end=NOON, dropped=2)
    found = (summary.n, summary.errors, summary.labelled, summary.correct, summary.dropped)
    assert found == (1, 4, 2, 1, 2)


def test_a_cut_begins_anew_and_nothing_is_counted_twice() -> None:
    recorder = Recorder(ARTIFACT, REFERENCE, ring=8)
    rows = baseline.features(inputs(30))
    parts = []
    for at, row in enumerate(rows):
        recorder.record(row, 2.0, 0, 0.7)
        if at % 11 == 0:
            parts.append(recorder.cut(start=NOON, end=NOON))
    parts.append(recorder.cut(start=NOON, end=NOON))
    assert merge(*parts).n == 30
    assert recorder.recorded == 0
    assert recorder.cut(start=NOON, end=NOON).n == 0


def test_a_summary_does_not_change_when_recording_goes_on() -> None:
    recorder = Recorder(ARTIFACT, REFERENCE, ring=1)
    row = baseline.features(inputs(1))[0]
    recorder.record(row, 1.0, 0, 0.5)
    summary = recorder.cut(start=NOON, end=NOON)
    recorder.record(row, 1.0, 0, 0.5)
    assert summary.n == 1
