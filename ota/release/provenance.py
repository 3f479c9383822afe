"""The round record: what the release signer is told about the round that made a model.

It holds counts, never ids of devices. The signer checks that it names the very model, training and
round that a release's lineage names; `wildflower trace` shows it.

    RoundRecord.from_bytes(record.to_bytes()) == record

A record without a method says nothing of it, so that those made before there were methods keep
their digest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.method import Method

KIND: Final = "wildflower.round-record"
EPSILON: Final = "dp_epsilon"
"""Metric of a round: what its training has spent so far, at the round's delta."""
DELTA: Final = "dp_delta"
MOST: Final = 1_000_000_000
"""Devices of a round, and rounds of a training: far more than there are."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One finished round.

    Attributes:
        training: Id of the training.
        number: Number of the round in it, from 1.
        model: Digest of the global model it made.
        cohort: Devices that were invited.
        survivors: Devices whose updates are in the sum, in [1, cohort].
        secure: Whether the sum was a secure aggregation.
        metrics: What the round measured, finite numbers by name.
        at: When it was recorded.
        method: How it made the model; None where the record does not tell.
    """

    training: str
    number: int
    model: str
    cohort: int
    survivors: int
    secure: bool
    metrics: Mapping[str, float]
    at: datetime
    method: Method | None = None

    @property
    def digest(self) -> str:
        """The record's name: the SHA-256 of its bytes."""
        return canonical.digest(self.to_bytes())

    @property
    def privacy(self) -> dict[str, float]:
        """What the training has spent: "epsilon" and "delta"; empty without a guarantee."""
        told = {"epsilon": EPSILON, "delta": DELTA}
        return {name: self.metrics[key] for name, key in told.items() if key in self.metrics}

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        document: dict[str, Any] = {
            "kind": KIND,
            "format": 1,
            "training": self.training,
            "round": self.number,
            "model": self.model,
            "cohort": self.cohort,
            "survivors": self.survivors,
            "secure": self.secure,
            "metrics": dict(self.metrics),
            "at": canonical.to_time(self.at),
        }
        if self.method is not None:
            document["method"] = self.method.to_document()
        return canonical.to_bytes(document)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a record from outside.

        Raises:
            FormatError: Not a round record, or a value lies outside its range.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            record = cls(
                training=str(document["training"]),
                number=int(document["round"]),
                model=str(document["model"]),
                cohort=int(document["cohort"]),
                survivors=int(document["survivors"]),
                secure=bool(document["secure"]),
                metrics={str(k): _number(v) for k, v in document["metrics"].items()},
                at=canonical.from_time(document["at"]),
                method=(Method.from_document(document["method"]) if "method" in document else None),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise FormatError(f"round record: {error!r}") from error
        counts = 1 <= record.survivors <= record.cohort <= MOST
        if not (counts and 1 <= record.number <= MOST):
            raise FormatError(
                f"round record: round {record.number}, {record.survivors} of {record.cohort}"
            )
        if record.to_bytes() != data:
            raise FormatError("round record: fields it should not have, or of another type")
        return record


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError(f"not a number: {value!r}")
    return number
