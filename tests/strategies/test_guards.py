"""What may not enter a sum."""

import math
from typing import Any

import numpy as np
import pytest

from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import UpdateRefusedError
from wildflower.strategies.guards import check_update


def update(**changes: Any) -> Update:
    given = {"vector": np.array([1, 0, -1], np.float32), "weight": 2.0, "statistics": {"loss": 1.0}}
    return Update(**{**given, **changes})


def array(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


BAD: dict[str, tuple[Update, str]] = {
    "NaN": (update(vector=array(1, math.nan, 0)), "1 of 3 elements are NaN or infinite"),
    "infinite": (update(vector=array(-math.inf, math.inf, 0)), "2 of 3 elements"),
    "too short": (update(vector=array(1, 2)), r"shape \(2,\), the model has 3 elements"),
    "a matrix": (update(vector=np.ones((3, 1), np.float32)), r"shape \(3, 1\)"),
    "negative weight": (update(weight=-1.0), "the weight is -1.0"),
    "NaN weight": (update(weight=math.nan), "the weight is nan"),
    "infinite weight": (update(weight=math.inf), "the weight is inf"),
    "NaN loss": (update(statistics={"loss": math.nan, "hits": 1.0}), r"\{'loss': nan\}"),
    "infinite loss": (update(statistics={"loss": -math.inf}), r"\{'loss': -inf\}"),
}
USELESS: dict[str, tuple[Update, str]] = {
    "no samples": (update(weight=0.0), "no samples"),
    "nothing learned": (update(vector=array(0, 0, 0)), "all zeros"),
}


@pytest.mark.parametrize(("bad", "reason"), [*BAD.values(), *USELESS.values()])
def test_a_refusal_says_what_was_found(bad: Update, reason: str) -> None:
    with pytest.raises(UpdateRefusedError, match=reason):
        check_update(bad, 3)


def test_a_good_update_passes() -> None:
    check_update(update(), 3)


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_an_evaluation_is_held_to_the_same_numbers(bad: Update, reason: str) -> None:
    with pytest.raises(UpdateRefusedError, match=reason):
        check_update(bad, 3, evaluate_only=True)


@pytest.mark.parametrize(("useless", "reason"), USELESS.values(), ids=USELESS)
def test_an_evaluation_needs_no_samples_and_no_change(useless: Update, reason: str) -> None:
    check_update(useless, 3, evaluate_only=True)
