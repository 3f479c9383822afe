"""Monitoring summaries on their way in, and merged into what the fleet does.

A summary is stored as it came, under (device, stream, sequence): sending it again changes nothing.
What cannot be read, or is of a model that was never built here, is refused and acknowledged all
the same, or the device would send it for ever.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from wildflower.ota.errors import FormatError
from wildflower.ota.observe.summary import Summary, merge
from wildflower.server.records import Artifact, ReleaseRecord, StoredSummary
from wildflower.server.store import Store

MAX_BATCH: Final = 1000  # summaries of one upload
MAX_SEQUENCE: Final = 2**63 - 1  # what the database can hold
STREAM_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an upload.

    Attributes:
        through: Everything up to this sequence is stored or refused.
        refused: The sequences of those refused.
        stored: How many are new here.
    """

    through: int
    refused: tuple[int, ...]
    stored: int


@dataclass(frozen=True, slots=True)
class FleetMetrics:
    """How an artifact does, over all devices that told.

    Attributes:
        artifact: Its digest.
        devices: How many devices told.
        n: Answers.
        latency_p95_ms: 95 % of them took no longer, in milliseconds, within 6 %.
        error_rate: Share of inferences without an answer, in [0, 1].
        confidence: Mean confidence, in [0, 1].
        labelled: Answers whose label came.
        accuracy: Share of right ones among these, in [0, 1].
        dropped: Summaries that devices had to drop.
        ignored: Summaries that count into other edges than most devices', left out.
    """

    artifact: str
    devices: int
    n: int
    latency_p95_ms: float | None
    error_rate: float | None
    confidence: float | None
    labelled: int
    accuracy: float | None
    dropped: int
    ignored: int


def take(
    store: Store,
    device_id: str,
    stream: bytes,
    summaries: Sequence[tuple[int, bytes]],
    now: datetime,
) -> Taken:
    """Store an upload, once.

    Args:
        store: Where it goes.
        device_id: Who sends it, as the channel knows.
        stream: Names the device's spool, 16 bytes.
        summaries: Sequences and payloads, sequences strictly rising.
        now: When it came, UTC.

    Raises:
        FormatError: The upload breaks its own rules; nothing was stored.
    """
    sequences = [sequence for sequence, _ in summaries]
    if len(stream) != STREAM_BYTES:
        raise FormatError(f"a stream's name has {STREAM_BYTES} bytes, found {len(stream)}")
    if not 1 <= len(summaries) <= MAX_BATCH:
        raise FormatError(f"an upload holds 1 to {MAX_BATCH} summaries, found {len(summaries)}")
    if sequences != sorted(set(sequences)) or sequences[-1] > MAX_SEQUENCE:
        raise FormatError("the sequences of an upload rise strictly, below 2**63")
    readable: list[StoredSummary] = []
    known: dict[str, bool] = {}
    for sequence, payload in summaries:
        try:
            summary = Summary.from_bytes(payload)
        except FormatError:
            continue
        if not known.setdefault(summary.artifact, _is_ours(store, summary.artifact)):
            continue
        name = f"{device_id}/{stream.hex()}/{sequence}"
        readable.append(
            StoredSummary(
                name,
                device_id,
                stream.hex(),
                sequence,
                summary.artifact,
                summary.baseline,
                payload,
                now,
            )
        )
    new = store.add(*readable)
    refused = sorted({*sequences} - {summary.sequence for summary in readable})
    return Taken(sequences[-1], tuple(refused), len(new))


def fleet_metrics(store: Store) -> list[FleetMetrics]:
    """Return how each artifact does that devices told of, in the order the artifacts were built."""
    found = (_metrics(store, artifact) for artifact in _artifacts(store))
    return [metrics for metrics in found if metrics is not None]


def _is_ours(store: Store, artifact: str) -> bool:
    built = store.get(Artifact, artifact) is not None
    return built or bool(store.all(ReleaseRecord, artifact=artifact))


def _artifacts(store: Store) -> Iterator[str]:
    built = [artifact.digest for artifact in store.all(Artifact)]
    released = [release.artifact for release in store.all(ReleaseRecord)]
    yield from dict.fromkeys([*built, *released])


def _metrics(store: Store, artifact: str) -> FleetMetrics | None:
    """Merge what counts into the same edges; devices choose the edges by majority.

    The edges come with the release, so honest devices agree. One that counts into others can
    neither be merged nor spoil the rest.
    """
    alike: defaultdict[object, list[tuple[str, Summary]]] = defaultdict(list)
    stored = store.all(StoredSummary, artifact=artifact)
    for record in stored:
        summary = Summary.from_bytes(record.payload)  # was read when it came
        alike[summary.baseline, summary.shape].append((record.device_id, summary))
    if not alike:
        return None
    chosen = max(alike.values(), key=lambda group: len({device for device, _ in group}))
    merged = merge(*(summary for _, summary in chosen))
    return FleetMetrics(
        artifact=artifact,
        devices=len({device for device, _ in chosen}),
        n=merged.n,
        latency_p95_ms=merged.latency_quantile(0.95),
        error_rate=merged.error_rate,
        confidence=merged.confidence_mean,
        labelled=merged.labelled,
        accuracy=merged.accuracy,
        dropped=merged.dropped,
        ignored=len(stored) - len(chosen),
    )
