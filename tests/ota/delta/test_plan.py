import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota.delta.plan import Offer, bases, choose, is_worthwhile, may_fall_back

WHOLE = Offer("", "w", 1000)
NEAR, FAR = Offer("b", "n", 90), Offer("a", "f", 300)
OFFERS = (WHOLE, FAR, NEAR)


def test_deltas_are_made_from_the_last_releases_the_newest_first() -> None:
    assert bases(["a", "b", "c", "d"], "e") == ("d", "c", "b")
    assert bases(["a"], "b", last=1) == ("a",)


def test_no_delta_is_made_from_the_new_artifact_itself_or_twice() -> None:
    assert bases(["a", "b", "a", "c", "d"], "c", last=9) == ("d", "a", "b")


@pytest.mark.parametrize(("delta", "is_offered"), [(0, True), (700, True), (701, False)])
def test_a_delta_is_never_more_than_seven_tenths_of_the_whole(delta: int, is_offered: bool) -> None:
    assert is_worthwhile(delta, 1000) is is_offered


@pytest.mark.parametrize(
    ("has", "failed", "chosen"),
    [
        ("b", (), NEAR),
        ("a", (), FAR),
        ("c", (), WHOLE),
        ("", (), WHOLE),
        ("b", ("n",), WHOLE),
        ("b", ("f",), NEAR),
    ],
)
def test_a_device_takes_the_smallest_that_it_can_use(
    has: str, failed: tuple[str, ...], chosen: Offer
) -> None:
    assert choose(OFFERS, has=has, failed=failed) == chosen


def test_a_delta_no_smaller_than_the_whole_is_left_alone() -> None:
    assert choose((Offer("b", "n", 1000), WHOLE), has="b") == WHOLE


def test_without_an_offer_there_is_no_choice() -> None:
    assert choose((NEAR,), has="c") is None


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_a_fallback_stays_within_the_budget(spent: int, budget: int) -> None:
    assert may_fall_back(WHOLE, spent=spent, budget=budget) == (spent + 1000 <= budget)
    assert may_fall_back(WHOLE, spent=spent, budget=None)
