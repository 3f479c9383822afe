import os
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from wildflower.ota.errors import FormatError
from wildflower.ota.observe.baseline import Shape
from wildflower.ota.observe.summary import MAX_COUNT, Summary
from wildflower.server.ingest import MAX_BATCH, Taken, fleet_metrics, take
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Artifact, ReleaseRecord, StoredSummary

NOW = datetime(2026, 11, 24, tzinfo=UTC)
STREAM = b"s" * 16
SHAPE = Shape(classes=2, bins=())
MODEL, BASELINE = "a1" * 32, "b1" * 32


def summary(
    n: int,
    *,
    artifact: str = MODEL,
    baseline: str = BASELINE,
    slow: int = 0,
    errors: int = 0,
    labelled: int = 0,
    correct: int = 0,
) -> Summary:
    """Return a summary of `n` answers, `slow` of them in a late latency bucket."""
    zero = Summary.zero(artifact, baseline, SHAPE)
    counts = np.zeros(SHAPE.size, np.int64)
    latency, confidence, classes = SHAPE.split(counts)[:3]
    latency[10], latency[60] = n - slow, slow
    confidence[-1] = n
    classes[0] = n
    return replace(zero, counts=counts, errors=errors, labelled=labelled, correct=correct)


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.put(Artifact(MODEL, "m", "linux-generic", "fp32", "m.ort", 1, "g", True, NOW))
    return made


def send(store: MemoryStore, device: str, *summaries: Summary, first: int = 1) -> Taken:
    numbered = [(first + n, one.to_bytes()) for n, one in enumerate(summaries)]
    return take(store, device, STREAM, numbered, NOW)


def test_an_upload_is_stored_as_it_came(store: MemoryStore) -> None:
    one = summary(3)
    assert take(store, "d1", STREAM, [(7, one.to_bytes())], NOW) == Taken(7, (), 1)
    [stored] = store.all(StoredSummary)
    assert stored == StoredSummary(
        f"d1/{STREAM.hex()}/7", "d1", STREAM.hex(), 7, MODEL, BASELINE, one.to_bytes(), NOW
    )


def test_an_upload_that_comes_again_changes_nothing(store: MemoryStore) -> None:
    send(store, "d1", summary(3), summary(4))
    assert send(store, "d1", summary(3), summary(4), summary(5)) == Taken(3, (), 1)
    assert fleet_metrics(store)[0].n == 12


def test_two_devices_and_two_streams_do_not_collide(store: MemoryStore) -> None:
    send(store, "d1", summary(1))
    send(store, "d2", summary(1))
    take(store, "d1", b"t" * 16, [(1, summary(1).to_bytes())], NOW)
    assert len(store.all(StoredSummary)) == 3


def test_what_cannot_be_read_is_refused_and_acknowledged(store: MemoryStore) -> None:
    whole = summary(3).to_bytes()
    batch = [(2, whole), (5, b"noise"), (9, whole[:-3]), (11, os.urandom(70_000)), (12, whole)]
    assert take(store, "d1", STREAM, batch, NOW) == Taken(12, (5, 9, 11), 2)


def test_a_model_that_was_never_built_here_is_refused(store: MemoryStore) -> None:
    assert send(store, "d1", summary(3, artifact="ff" * 32)) == Taken(1, (1,), 0)
    assert store.all(StoredSummary) == []


def test_a_model_that_was_signed_elsewhere_counts(store: MemoryStore) -> None:
    foreign = "ee" * 32
    store.put(ReleaseRecord("r", "p", "approved", "digits", "g", "c", 1, foreign, "m", NOW))
    assert send(store, "d1", summary(3, artifact=foreign)).stored == 1
    assert [metrics.artifact for metrics in fleet_metrics(store)] == [foreign]


BROKEN = {
    "no stream": (b"", [(1, b"")], "16 bytes"),
    "no summaries": (STREAM, [], "found 0"),
    "too many": (STREAM, [(n, b"") for n in range(MAX_BATCH + 1)], "1 to 1000"),
    "falling": (STREAM, [(2, b""), (1, b"")], "rise strictly"),
    "twice": (STREAM, [(1, b""), (1, b"")], "rise strictly"),
    "beyond the database": (STREAM, [(2**63, b"")], "below 2"),
}


@pytest.mark.parametrize(("stream", "batch", "reason"), BROKEN.values(), ids=BROKEN)
def test_an_upload_that_breaks_its_rules_is_refused_whole(
    store: MemoryStore, stream: bytes, batch: list[tuple[int, bytes]], reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        take(store, "d1", stream, batch, NOW)
    assert store.all(StoredSummary) == []


def test_the_fleet_is_the_sum_of_its_devices(store: MemoryStore) -> None:
    send(store, "d1", summary(90, errors=5, labelled=10, correct=9), summary(6))
    send(store, "d2", summary(4, slow=4, errors=5, labelled=4, correct=4))
    [metrics] = fleet_metrics(store)
    assert (metrics.artifact, metrics.devices, metrics.n) == (MODEL, 2, 100)
    assert metrics.error_rate == pytest.approx(10 / 110)
    assert (metrics.labelled, metrics.accuracy) == (14, 13 / 14)
    assert metrics.confidence is not None
    assert 0.9 < metrics.confidence <= 1
    assert metrics.latency_p95_ms == summary(1).latency_quantile(0.95)  # 4 % slow ones hide
    send(store, "d3", summary(4, slow=4))
    assert fleet_metrics(store)[0].latency_p95_ms == summary(1, slow=1).latency_quantile(0.95)


def test_a_fleet_that_told_nothing_has_no_metrics(store: MemoryStore) -> None:
    assert fleet_metrics(store) == []


def test_a_window_without_inferences_has_no_rates(store: MemoryStore) -> None:
    send(store, "d1", Summary.zero(MODEL, BASELINE, SHAPE))
    [metrics] = fleet_metrics(store)
    assert (metrics.n, metrics.latency_p95_ms, metrics.error_rate) == (0, None, None)
    assert (metrics.accuracy, metrics.confidence) == (None, None)


def test_artifacts_are_counted_apart(store: MemoryStore) -> None:
    other = "a2" * 32
    store.put(replace(store.all(Artifact)[0], digest=other))
    send(store, "d1", summary(1), summary(2, artifact=other))
    assert [(m.artifact, m.n) for m in fleet_metrics(store)] == [(MODEL, 1), (other, 2)]


def test_a_device_that_counts_into_other_edges_spoils_nothing(store: MemoryStore) -> None:
    send(store, "d1", summary(10))
    send(store, "d2", summary(10))
    lying = [summary(1, baseline="cc" * 32) for _ in range(5)]
    send(store, "liar", *lying)
    [metrics] = fleet_metrics(store)
    assert (metrics.devices, metrics.n, metrics.ignored) == (2, 20, 5)


def test_the_largest_counts_do_not_overflow(store: MemoryStore) -> None:
    for device in range(3):
        send(store, f"d{device}", summary(MAX_COUNT))
    assert fleet_metrics(store)[0].n == 3 * MAX_COUNT
