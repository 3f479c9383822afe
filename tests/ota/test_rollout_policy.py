from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.errors import RolloutError
from wildflower.ota.rollout.policy import (
    Plan,
    Stage,
    Tally,
    Verdict,
    count,
    staged,
    verdict,
    why_halted,
)

TALLIES = st.builds(Tally, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))

VERDICTS: dict[str, tuple[Stage, dict[str, int], dict[str, Tally], Verdict]] = {
    "nobody has reported": (Stage(100, 2, 0, 0), {"a": 5}, {}, Verdict.WAIT),
    "one of two has": (Stage(100, 2, 0, 0), {"a": 5}, {"a": Tally(1)}, Verdict.WAIT),
    "both have": (Stage(100, 2, 0, 0), {"a": 5}, {"a": Tally(2)}, Verdict.ADVANCE),
    "the first failure": (Stage(100, 9, 0, 0), {"a": 5}, {"a": Tally(0, 1)}, Verdict.HALT),
    "a tolerated failure": (Stage(100, 1, 1, 0), {"a": 5}, {"a": Tally(0, 1)}, Verdict.ADVANCE),
    "one more than tolerated": (Stage(100, 1, 1, 0), {"a": 5}, {"a": Tally(9, 2)}, Verdict.HALT),
    "failures add up": (
        Stage(100, 1, 1, 0),
        {"a": 1, "b": 1},
        {"a": Tally(0, 1), "b": Tally(0, 1)},
        Verdict.HALT,
    ),
    "a silent group": (Stage(100, 1, 0, 0), {"a": 3, "b": 3}, {"a": Tally(3)}, Verdict.WAIT),
    "an empty group": (Stage(100, 1, 0, 0), {"a": 3, "b": 0}, {"a": Tally(3)}, Verdict.ADVANCE),
    "more wanted than reached": (Stage(9, 99, 0, 0), {"a": 1}, {"a": Tally(1)}, Verdict.ADVANCE),
    "incompatible ones cannot report": (
        Stage(100, 3, 0, 0),
        {"a": 3},
        {"a": Tally(1, 0, 2)},
        Verdict.ADVANCE,
    ),
    "all are incompatible": (Stage(100, 1, 0, 0), {"a": 2}, {"a": Tally(0, 0, 2)}, Verdict.WAIT),
    "nobody is waited for": (Stage(100, 0, 0, 0), {"a": 5}, {}, Verdict.ADVANCE),
    "another rollout's group": (Stage(100, 1, 0, 0), {"a": 1}, {"b": Tally(0, 9)}, Verdict.WAIT),
}


@pytest.mark.parametrize(("stage", "reach", "tallies", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_a_stage_is_judged_as_told(
    stage: Stage, reach: dict[str, int], tallies: dict[str, Tally], expected: Verdict
) -> None:
    assert verdict(stage, reach, tallies) is expected


@given(TALLIES, TALLIES, TALLIES)
def test_tallies_merge_in_any_order(a: Tally, b: Tally, c: Tally) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(a).merge(b)
    assert a.merge(Tally()) == a


@given(TALLIES, st.integers(0, 5), st.integers(0, 5))
def test_one_more_failure_never_advances_what_waited(tally: Tally, wanted: int, most: int) -> None:
    stage, reach = Stage(500, wanted, most, 0), {"a": 8}
    worse = Tally(tally.committed, tally.failed + 1, tally.incompatible)
    if verdict(stage, reach, {"a": tally}) is Verdict.HALT:
        assert verdict(stage, reach, {"a": worse}) is Verdict.HALT


def test_a_release_that_no_source_has_as_signed_has_failed() -> None:
    outcomes = ["refused", "committed", "rolled-back", "failed", "incompatible", "unheard of"]
    assert count(outcomes) == Tally(1, 3, 1)


def test_a_halt_says_where_and_how_many() -> None:
    told = why_halted(Stage(1, 1, 1, 0), {"b": Tally(1, 2), "a": Tally(0, 1), "c": Tally(3)})
    assert told == "3 failures, 1 tolerated: 1 in a, 2 in b"


BAD: dict[str, dict[str, Any]] = {
    "no stage": {"stages": ()},
    "a stage that does not widen": {"stages": (Stage(500, 1, 0, 0), Stage(500, 1, 0, 0))},
    "a stage that narrows": {"stages": (Stage(500, 1, 0, 0), Stage(100, 1, 0, 0))},
    "a stage of nobody": {"stages": (Stage(0, 1, 0, 0),)},
    "a stage beyond all": {"stages": (Stage(1001, 1, 0, 0),)},
    "a window before it begins": {"stages": (Stage(9, 1, 0, 0),), "window_s": -1},
    "fewer than no reports": {"stages": (Stage(9, -1, 0, 0),)},
    "fewer than no failures": {"stages": (Stage(9, 1, -1, 0),)},
    "a soak before it begins": {"stages": (Stage(9, 1, 0, -1),)},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_a_plan_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RolloutError):
        Plan(**fields).check()


def test_equal_stages_are_written_once() -> None:
    plan = staged([250, 1000], min_reports=2, max_failures=1, soak_s=3)
    assert plan.stages == (Stage(250, 2, 1, 3), Stage(1000, 2, 1, 3))
    with pytest.raises(RolloutError):
        staged([1000, 250], min_reports=1, max_failures=0, soak_s=0)
