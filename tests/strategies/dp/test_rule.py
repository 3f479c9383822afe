"""The device's rule: what leaves is bounded, whatever the app answers and the server asks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies.arrays import Update
from wildflower.strategies.dp.contribution import WITHIN, Bounds
from wildflower.strategies.dp.rule import NOISE, NORM, SHARE_KEY, STATISTICS, ClientRule
from wildflower.strategies.errors import ProtocolError, UpdateRefusedError

ENTROPY = bytes(range(32))
RULE = ClientRule(1.0, (("loss", Bounds(0.0, 4.0)), (WITHIN, Bounds(0.0, 1.0))))
rules = st.builds(
    ClientRule,
    st.floats(1e-6, 1e6),
    st.sampled_from([(), RULE.statistics]),
    st.floats(1e-4, 0.5),
    st.sampled_from([0.0, 0.5, 8.0]),
)


def answer(scale: float) -> Update:
    return Update(np.array([3.0, 4.0], np.float32) * np.float32(scale), 250.0, {"loss": 9.0})


def test_a_long_update_is_clipped_and_says_so() -> None:
    found = RULE.bound(answer(1.0), ENTROPY)
    assert np.allclose(found.vector, [0.6, 0.8], rtol=1e-6)
    assert found.weight == 1.0
    assert found.statistics == {"loss": 4.0, WITHIN: 0.0}


def test_a_short_update_is_kept_and_says_so() -> None:
    found = RULE.bound(answer(0.1), ENTROPY)
    assert np.allclose(found.vector, [0.3, 0.4], rtol=1e-6)
    assert found.statistics[WITHIN] == 1.0


def test_an_app_cannot_say_that_it_was_within() -> None:
    lying = Update(np.ones(2, np.float32) * 9, 1.0, {"loss": 1.0, WITHIN: 1.0})
    assert RULE.bound(lying, ENTROPY).statistics[WITHIN] == 0.0


def test_an_evaluation_sends_statistics_alone() -> None:
    found = RULE.bound(answer(0.1), ENTROPY, evaluate_only=True)
    assert found.vector.tolist() == [0.0, 0.0]
    assert found.weight == 0.0
    assert found.statistics["loss"] == 4.0


def test_local_noise_is_on_all_that_leaves() -> None:
    rule = ClientRule(1.0, RULE.statistics, local_noise=1.0)
    one, two = (rule.bound(answer(0.1), bytes([i]) * 32) for i in range(2))
    assert not np.any(one.vector == two.vector)
    assert not set(one.statistics.values()) & set(two.statistics.values())
    alone = rule.bound(answer(0.1), ENTROPY, evaluate_only=True)
    assert alone.vector.tolist() == [0.0, 0.0]
    assert alone.statistics["loss"] not in {4.0, one.statistics["loss"]}


def test_a_missing_statistic_is_refused() -> None:
    with pytest.raises(UpdateRefusedError, match="missing"):
        RULE.bound(Update(np.ones(2, np.float32), 1.0, {}), ENTROPY)


@given(rules)
def test_the_config_carries_the_rule(rule: ClientRule) -> None:
    assert ClientRule.from_config({"epochs": 2, **rule.to_config()}) == rule


def test_a_config_without_the_keys_asks_for_no_rule() -> None:
    assert ClientRule.from_config({"epochs": 2, "dp-sgd-noise": 1.0}) is None


@given(
    st.dictionaries(
        st.sampled_from([NORM, STATISTICS, SHARE_KEY, NOISE]),
        st.one_of(st.floats(), st.text(max_size=40), st.integers(), st.booleans(), st.none()),
        min_size=1,
    )
)
def test_other_configs_are_refused_or_a_rule(config: dict[str, Any]) -> None:
    try:
        found = ClientRule.from_config({**RULE.to_config(), **config})
    except ProtocolError:
        return
    assert found is not None
    assert ClientRule.from_config(found.to_config()) == found


@pytest.mark.parametrize("key", list(RULE.to_config()))
def test_half_a_rule_is_refused(key: str) -> None:
    config = RULE.to_config()
    del config[key]
    with pytest.raises(ProtocolError, match=f"lacks \\['{key}'\\]"):
        ClientRule.from_config(config)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({NORM: -1.0}, "norm is -1, allowed is"),
        ({NORM: float("nan")}, "norm is nan"),
        ({NOISE: -0.5}, "dp-noise is -0.5, allowed is"),
        ({SHARE_KEY: 2.0}, "share is 2, allowed is"),
        ({STATISTICS: "loss=1:0"}, "high - low is -1"),
    ],
)
def test_an_absurd_rule_is_refused_by_key_and_range(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        ClientRule.from_config({**RULE.to_config(), **changes})
