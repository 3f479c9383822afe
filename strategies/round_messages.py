"""What the Flower messages of a round hold: written by one side, read by the other.

    to a device     "train" or "evaluate"        arrays {flat}, layout, config [, secagg]
    from a device   plain round                  arrays {flat}, metrics
                    secure round                 secagg, and nothing else
    key trips       "query.secagg_..."           secagg, both ways

A model is ONE flat float32 array and its layout: Flower moves every array as an object of its own.
What comes from a device is an update (its model minus the one it received), never a model.

Statistics are sums over the cohort. A name such as "eval-correct" is taken as the app reports it:
a sum. A name "mean.accuracy" is the app's own mean "accuracy" times its "num-examples", so that the
sum over the cohort divided by the sum of "examples" is the mean. What an app does not report counts
as 0, the identity of a sum; "examples" that it does not report are its "num-examples".
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from wildflower.strategies.arrays import Layout, Update, Vector
from wildflower.strategies.errors import LayoutError, ProtocolError, UpdateRefusedError

ADVERTISE: Final = "query.secagg_advertise"
SHARE: Final = "query.secagg_share"
UNMASK: Final = "query.secagg_unmask"
TRAIN: Final = "train"
EVALUATE: Final = "evaluate"

ARRAYS: Final = "arrays"
FLAT: Final = "flat"
LAYOUT: Final = "layout"
CONFIG: Final = "config"
METRICS: Final = "metrics"
SECAGG: Final = "secagg"

WEIGHT: Final = "num-examples"
"""Flower's name of the metric that weighs an update."""
EXAMPLES: Final = "examples"
"""Our name of the statistic that counts the examples."""
MEAN: Final = "mean."
"""Begins the name of a statistic that an app reports as a mean."""

MAX_LAYOUT: Final = 4_000_000  # characters: ten thousand arrays with long names

Scalar = float | int | str


class Fielded(Protocol):
    """A message of a secure-aggregation session."""

    def to_fields(self) -> dict[str, Any]:
        """Return the flat form."""
        ...


def model_content(
    vector: Vector, layout: Layout, config: Mapping[str, Scalar], statistics: Sequence[str]
) -> RecordDict:
    """Return what a device gets to train or to evaluate."""
    return RecordDict(
        {
            ARRAYS: ArrayRecord({FLAT: Array(np.ascontiguousarray(vector, np.float32))}),
            LAYOUT: ConfigRecord(
                {LAYOUT: json.dumps(layout.to_list()), "statistics": ";".join(statistics)}
            ),
            CONFIG: ConfigRecord(dict(config)),
        }
    )


def is_model(content: RecordDict) -> bool:
    """Tell whether a message holds a flat model of ours; other servers' messages do not."""
    return LAYOUT in content.config_records and ARRAYS in content.array_records


def read_model(content: RecordDict) -> tuple[Vector, Layout, tuple[str, ...]]:
    """Return the model, its layout and the names of the statistics that are asked for.

    Raises:
        LayoutError: Not what `model_content` wrote.
    """
    try:
        record = content.config_records[LAYOUT]
        text, names = record[LAYOUT], record["statistics"]
        if not isinstance(text, str) or not isinstance(names, str) or len(text) > MAX_LAYOUT:
            raise LayoutError("the message's layout is no text")
        layout = Layout.from_list(json.loads(text))
    except (KeyError, ValueError, RecursionError) as error:
        raise LayoutError(f"the message has no layout: {error}") from error
    vector = _read_flat(content)
    if vector.shape != (layout.size,):
        raise LayoutError(f"the layout has {layout.size} elements, the model {vector.shape}")
    return vector, layout, tuple(name for name in names.split(";") if name)


def update_content(update: Update, *, evaluate_only: bool = False) -> RecordDict:
    """Return a device's answer in a plain round."""
    metrics = MetricRecord({**update.statistics, WEIGHT: float(update.weight)})
    if evaluate_only:
        return RecordDict({METRICS: metrics})
    vector = np.ascontiguousarray(update.vector, np.float32)
    return RecordDict({ARRAYS: ArrayRecord({FLAT: Array(vector)}), METRICS: metrics})


def read_update(
    content: RecordDict, size: int, names: Sequence[str], *, evaluate_only: bool = False
) -> Update:
    """Return the update in a device's answer; whether it may enter the sum is not judged.

    Raises:
        UpdateRefusedError: Not what `update_content` wrote.
    """
    try:
        metrics = content.metric_records[METRICS]
        vector = np.zeros(size, np.float32) if evaluate_only else _read_flat(content)
    except (KeyError, LayoutError) as error:
        raise UpdateRefusedError(f"the answer holds no update: {error}") from error
    found = scalars(metrics)
    if WEIGHT not in found:
        raise UpdateRefusedError(f"the answer lacks {WEIGHT!r}")
    return Update(vector, found[WEIGHT], {name: found.get(name, 0.0) for name in names})


def scalars(metrics: MetricRecord) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    return {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}


def statistics_of(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return the sums that are asked for, from what an app reports."""
    weight = metrics.get(WEIGHT, 0.0)
    reported = {EXAMPLES: weight, **metrics}
    return {
        name: weight * reported.get(name.removeprefix(MEAN), 0.0)
        if name.startswith(MEAN)
        else reported.get(name, 0.0)
        for name in names
    }


def protected_content(record: str, message: Fielded) -> RecordDict:
    """Return a message of a protection as Flower carries it: in its record, and nothing else."""
    return RecordDict({record: ConfigRecord(message.to_fields())})


def protected_fields(content: RecordDict, record: str) -> dict[str, Any]:
    """Return the flat form of a protection's message.

    Raises:
        ProtocolError: The Flower message holds none.
    """
    found = content.config_records.get(record)
    if found is None:
        raise ProtocolError(f"the message lacks the record {record!r}")
    return dict(found)


def secagg_content(message: Fielded) -> RecordDict:
    """Return a message of a secure-aggregation session as Flower carries it."""
    return protected_content(SECAGG, message)


def secagg_fields(content: RecordDict) -> dict[str, Any]:
    """Return the flat form of a session's message.

    Raises:
        ProtocolError: The Flower message holds none.
    """
    return protected_fields(content, SECAGG)


def _read_flat(content: RecordDict) -> Vector:
    record = content.array_records.get(ARRAYS)
    if record is None or list(record) != [FLAT]:
        raise LayoutError(f"expected one array {FLAT!r}, found {list(record or ())[:4]}")
    try:
        vector = record[FLAT].numpy()
    except (TypeError, ValueError, OSError, EOFError) as error:
        raise LayoutError(f"the array {FLAT!r} cannot be read: {error}") from error
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise LayoutError(f"expected a float32 vector, found {vector.dtype} of {vector.shape}")
    return vector
