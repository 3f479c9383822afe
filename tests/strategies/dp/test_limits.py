"""Numbers within their range: the error names the key, the value and the range."""

import math

import pytest

from wildflower.strategies.dp import limits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 3.5, True, "2", None])
def test_what_is_no_number_of_the_range_is_refused_by_key_and_range(value: object) -> None:
    with pytest.raises(ValueError, match=r"share is .*allowed .*0 to 3"):
        limits.number("share", value, 0.0, 3.0)


@pytest.mark.parametrize("value", [math.nan, 1.0, 0, 4, True, "2", None])
def test_what_is_no_whole_number_of_the_range_is_refused_by_key_and_range(value: object) -> None:
    with pytest.raises(ValueError, match=r"rounds is .*from 1 to 3"):
        limits.whole("rounds", value, 1, 3)


def test_the_ends_of_a_range_are_in_it() -> None:
    assert [limits.number("x", x, 0.0, 3.0) for x in (0, 3.0)] == [0.0, 3.0]
    assert [limits.whole("x", x, 1, 3) for x in (1, 3)] == [1, 3]


def test_noise_and_norm_have_ranges_of_their_own() -> None:
    assert limits.noise_multiplier(1.0) == limits.norm(1.0) == 1.0
    with pytest.raises(ValueError, match="noise_multiplier is 0"):
        limits.noise_multiplier(0.0)
    with pytest.raises(ValueError, match="dp-norm is 0"):
        limits.norm(0.0, "dp-norm")
