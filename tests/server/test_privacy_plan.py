"""Plans: the noise is enough and not more, the rows agree with the ledger, nothing is made up."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from wildflower.server.errors import SettingsError
from wildflower.server.privacy_plan import (
    FACTORS,
    Asked,
    Mechanism,
    Plan,
    accuracy,
    measured,
    plan,
)
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.contribution import Contribution
from wildflower.strategies.dp.distributed import SkellamEncoding
from wildflower.strategies.dp.events import Gaussian, Relation, Sampling, Scheme, Tree

ASKED = {each: Asked(each, 4.0, 50, cohort=100, population=100, delta=1e-4) for each in Mechanism}
TABLE: Mapping[str, Any] = {
    "mechanisms": {
        "central": {
            "setting": "somewhere",
            "without_noise": 90.0,
            "accuracy": {"1": 70.0, "10": 85.0, "4": 80.0},
        }
    }
}


@pytest.fixture(scope="module")
def plans() -> dict[Mechanism, Plan]:
    return {each: plan(asked) for each, asked in ASKED.items()}


def spent(asked: Asked, noise: float, rounds: int) -> float:
    return epsilon_of(asked.events(noise, rounds), delta=1e-4, relation=asked.relation)


@pytest.mark.parametrize("mechanism", Mechanism)
def test_the_noise_is_enough_and_no_more(
    plans: dict[Mechanism, Plan], mechanism: Mechanism
) -> None:
    made, asked = plans[mechanism], ASKED[mechanism]
    assert spent(asked, made.noise_multiplier, made.rounds) <= 4.0
    assert spent(asked, made.noise_multiplier * 0.99, made.rounds) > 4.0


@pytest.mark.parametrize("mechanism", Mechanism)
def test_each_row_tells_nearly_the_most_rounds_of_its_noise(
    plans: dict[Mechanism, Plan], mechanism: Mechanism
) -> None:
    asked, rows = ASKED[mechanism], plans[mechanism].noise_and_rounds
    assert len(rows) == len(FACTORS)
    for row in rows:
        assert spent(asked, row.noise_multiplier, row.rounds) <= 4.0
        assert spent(asked, row.noise_multiplier, math.ceil(row.rounds * 1.15) + 1) > 4.0
    assert [row.rounds for row in rows] == sorted(row.rounds for row in rows)
    assert rows[FACTORS.index(1.0)].rounds >= 48


def test_sampling_is_counted_where_it_counts() -> None:
    everyone = ASKED[Mechanism.CENTRAL]
    sampled = replace(everyone, population=1000)
    assert sampled.events(1.0, 3) == [Gaussian(1.0, 3, Sampling(Scheme.POISSON, 100, 1000))]
    assert everyone.events(1.0, 3) == [Gaussian(1.0, 3)]
    assert (sampled.curve, everyone.curve) == ("sampled", "central")
    distributed = replace(sampled, mechanism=Mechanism.DISTRIBUTED)
    assert distributed.events(1.0, 3) == replace(distributed, population=10**6).events(1.0, 3)


def test_a_device_takes_part_once_in_a_tree() -> None:
    asked = Asked(Mechanism.FTRL, 4.0, 25, cohort=100, population=1000)
    assert asked.events(2.0, 25) == [Tree(2.0, 10, 2), Tree(2.0, 5)]
    assert asked.events(2.0, 20) == [Tree(2.0, 10, 2)]
    assert asked.events(2.0, 3) == [Tree(2.0, 3)]


def test_local_noise_is_of_each_device_by_itself() -> None:
    asked = Asked(Mechanism.LOCAL, 4.0, 25, cohort=100, population=1000)
    assert asked.events(2.0, 25) == [Gaussian(2.0, 3)]
    assert (asked.relation, asked.failure) == (Relation.REPLACE, 1e-4)


def test_errors_per_parameter_are_those_of_the_mechanisms(plans: dict[Mechanism, Plan]) -> None:
    for each, made in plans.items():
        devices = 10.0 if each is Mechanism.LOCAL else 100.0
        assert made.round_error == pytest.approx(made.noise_multiplier / devices)
        # For FTRL too: where all devices take part, a tree has one round.
        assert made.model_error == pytest.approx(made.round_error * math.sqrt(50))
    tree = Asked(Mechanism.FTRL, 4.0, 25, cohort=100, population=1000)
    assert tree.model_error(1.0) == pytest.approx(math.sqrt(2 * 2 + 2) / 100)  # 10 = 8+2, 5 = 4+1


def test_planned_distributed_noise_is_what_16_bit_residues_need() -> None:
    made = plan(Asked(Mechanism.DISTRIBUTED, 8.0, 20, cohort=100, population=100, delta=1e-5))
    encoding = SkellamEncoding.for_cohort(
        Contribution(10_000, 1.0),
        noise_multiplier=made.noise_multiplier,
        clients=100,
        min_cohort=100,
        rotation=bytes(16),
    )
    real = replace(encoding.event(100), rounds=20)
    assert epsilon_of([real], delta=1e-5) == pytest.approx(8.0, rel=0.005)


def test_accuracy_is_read_off_between_what_was_measured() -> None:
    found = accuracy("central", 2.0, TABLE)
    assert (found.expected, found.cost_pt, found.is_beyond) == (75.0, 15.0, False)
    assert (found.without_privacy, found.setting) == (90.0, "somewhere")
    assert accuracy("central", 10.0, TABLE).expected == 85.0


@pytest.mark.parametrize(("epsilon", "nearest"), [(0.01, 70.0), (100.0, 85.0)])
def test_accuracy_is_never_guessed_beyond_what_was_measured(epsilon: float, nearest: float) -> None:
    found = accuracy("central", epsilon, TABLE)
    assert (found.expected, found.is_beyond) == (nearest, True)


def test_the_committed_table_says_how_it_was_measured() -> None:
    table = measured()
    assert table["measured_by"] == "python -m benchmarks.dp_utility --write"
    assert len(table["seeds"]) == 3
    for curve in ("sampled", *Mechanism):
        line = table["mechanisms"][curve]
        assert line["setting"]
        assert all(
            0 <= value <= 100 for value in (line["without_noise"], *line["accuracy"].values())
        )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"epsilon": 0.0}, "epsilon = 0"),
        ({"epsilon": -1.0}, "epsilon = -1"),
        ({"epsilon": float("nan")}, "epsilon = nan"),
        ({"rounds": 0}, "rounds"),
        ({"cohort": 101}, "cohort = 101: allowed is 1 to 100"),
        ({"cohort": 0}, "cohort"),
        ({"population": 0}, "population"),
        ({"delta": 0.9}, "delta"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(changes: dict[str, float], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        replace(ASKED[Mechanism.CENTRAL], **changes)  # type: ignore[arg-type]  # a test's own values


def test_where_no_noise_is_enough_that_is_said() -> None:
    with pytest.raises(SettingsError, match="cannot be had for epsilon"):
        plan(Asked(Mechanism.LOCAL, 0.001, 100_000, 10, 10, 1e-15))
