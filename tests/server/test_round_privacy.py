"""Rounds with differential privacy: what is written down, what noise there is, what is refused."""

import random
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from tests.round_fakes import LAYOUT, MODEL
from tests.server.test_rounds import STEP, Cut, CutStore, World, world_of

from wildflower.ota.release.provenance import DELTA, EPSILON
from wildflower.server.cohort import Drawing
from wildflower.server.errors import SettingsError
from wildflower.server.ledger import StoredLedger
from wildflower.server.records import PrivacyEntry, Round, Training
from wildflower.server.round_privacy import NORM, RoundPrivacy
from wildflower.server.training_settings import complete
from wildflower.strategies.arrays import from_safetensors
from wildflower.strategies.dp.events import Gaussian, Relation, Sampling, Scheme, Skellam, Tree
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.ledger import Total, Unit

Settings = dict[str, float | str]
NORMS = 8.0  # beyond any update of these devices: what is left of the model is noise
QUIET: Settings = {"dp_norm": NORMS, "dp_noise": 0.05}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_of(tmp_path, loss=0.5)


def train(world: World, rounds: int, settings: Settings) -> list[Round]:
    """Run a training to its end; return its rounds in order."""
    runner, _ = world.runner()
    training = runner.plan(rounds, settings)
    runner.run_pending()
    return world.store.all(Round, training_id=training.training_id)


def deviation(world: World, one: Round) -> float:
    """Return how far a round's model is from that of exact means, root mean square."""
    model = from_safetensors(world.blobs.read(one.model))
    exact = LAYOUT.pack(MODEL) + one.number * STEP
    return float(np.sqrt(np.mean((LAYOUT.pack(model) - exact) ** 2)))


MECHANISMS: dict[str, tuple[Settings, type]] = {
    "central in secure rounds": ({"dp": "central"}, Gaussian),
    "central in plain rounds": ({"dp": "central", "protection": "plain"}, Gaussian),
    "adaptive": ({"dp": "central-adaptive"}, Gaussian),
    "distributed": ({"dp": "distributed"}, Skellam),
    "distributed in 16 bits": ({"dp": "distributed", "bits": 16}, Skellam),
    "local": ({"dp": "local"}, Gaussian),
    "a tree": ({"dp": "ftrl", "cohort": 3, "selection": "fixed"}, Tree),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_round_is_written_down_and_its_model_is_noisy(world: World, name: str) -> None:
    settings, kind = MECHANISMS[name]
    (one,) = train(world, 1, {**QUIET, **settings})
    assert (one.phase, one.reason) == ("recorded", "")
    (entry,) = StoredLedger(world.store).read().entries
    assert isinstance(entry.event, kind)
    assert (entry.total.unit, entry.population) == (Unit.DEVICE, 5)
    spent = StoredLedger(world.store).read().spent(entry.total)
    assert (one.metrics[EPSILON], one.metrics[DELTA]) == (spent, 1e-5)
    # On the mean of n: z S / n, or z S / sqrt(n) of local noise; statistics take a little more.
    per_device = 0.05 * NORMS / len(one.survivors)
    largest = 1.5 * per_device * (np.sqrt(5) if name == "local" else 1)
    assert 0.3 * per_device < deviation(world, one) < 2 * largest


def test_every_round_pays_until_the_budget_is_spent(world: World) -> None:
    settings: Settings = {"dp": "central", "dp_noise": 4.0, "dp_norm": 4.0, "dp_epsilon": 1.6}
    rounds = train(world, 5, settings)
    ledger = StoredLedger(world.store).read()
    done = [one for one in rounds if one.phase == "recorded"]
    assert 1 <= len(done) < 5
    assert len(ledger.entries) == len(done)
    total = Total(Unit.DEVICE, Relation.ADD_REMOVE, 1e-5)
    assert ledger.spent(total) <= 1.6
    refused = rounds[-1]
    assert "would bring epsilon per device" in refused.reason
    assert (refused.cohort, refused.model) == ((), "")
    [training] = world.store.all(Training)
    assert training.phase == "aborted"


@pytest.mark.parametrize("after", [True, False])
def test_a_crash_after_the_entry_costs_the_entry_and_never_hides_one(
    tmp_path: Path, after: bool
) -> None:
    for cut_at in range(1, 40):
        memory = CutStore(cut_at, after)
        world = world_of(tmp_path / f"{cut_at}", memory, loss=0.5)
        runner, _ = world.runner()
        try:
            runner.plan(1, {**QUIET, "dp": "central"})
            runner.run_pending()
        except Cut:
            memory.cut_at = 0
            again, _ = world.runner()
            again.run_pending()
        rounds = world.store.all(Round)
        if not rounds:
            continue  # the plan itself was lost
        assert rounds[0].phase == "recorded"
        entries = world.store.all(PrivacyEntry)
        assert 1 <= len(entries) <= 2
        if memory.writes < cut_at:
            return
    raise AssertionError("a training of one round writes less often than that")


def test_the_norm_of_the_next_round_follows_the_quantile(world: World) -> None:
    settings: Settings = {"dp": "central-adaptive", "dp_norm": 100.0, "dp_noise": 0.01}
    one, two = train(world, 2, settings)
    assert one.metrics[NORM] < 100.0  # everyone was within it
    assert two.metrics[NORM] < one.metrics[NORM]


def test_a_device_is_in_one_round_of_a_tree(world: World) -> None:
    settings: Settings = {**QUIET, "dp": "ftrl", "cohort": 2, "quorum": 1, "protection": "plain"}
    one, two, three = train(world, 3, settings)
    assert not {*one.survivors} & {*two.survivors}
    assert len({*one.survivors, *two.survivors}) == 4
    entries = StoredLedger(world.store).read().entries
    assert [each.event for each in entries] == [Tree(0.05, 2), Tree(0.05, 1)]
    assert three.phase == "recorded"
    # The noise of the tree's first node is gone from the second prefix, whose node is another.
    assert deviation(world, two) < 3 * 0.05 * NORMS / 2


def test_under_privacy_no_loss_and_no_number_of_examples_is_stored(world: World) -> None:
    (one,) = train(world, 1, {**QUIET, "dp": "central"})
    assert "train_loss" not in one.metrics
    assert one.metrics["examples"] == 0


REFUSED: dict[str, tuple[Settings, str]] = {
    "noise in ciphertexts": ({"protection": "he", "dp": "distributed"}, "refused"),
    "parts of noise in plain": ({"protection": "plain", "dp": "distributed"}, "refused"),
    "a tree with everybody": ({"dp": "ftrl"}, "refused"),
    "a cohort of nobody": ({"selection": "poisson"}, "selection = 'poisson' draws a cohort"),
    "an unknown mechanism": ({"dp": "centrl"}, "dp = 'centrl'"),
    "noise below zero": ({"dp_noise": -1.0}, "dp_noise = -1.0: allowed is 0.001 to 10000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_stored(
    world: World, name: str
) -> None:
    settings, why = REFUSED[name]
    with pytest.raises(SettingsError, match=why) as caught:
        world.runner()[0].plan(1, settings)
    assert caught.value.hint or name == "noise below zero"
    assert world.store.all(Training) == []


def test_coins_are_thrown_for_everybody_who_is_eligible() -> None:
    eligible = [f"{number:03}" for number in range(1000)]
    drawing = Drawing(100, random.Random(1), by_coins=True)
    sizes = [len(drawing.of(eligible, eligible[:10])) for _ in range(50)]
    assert 90 < np.mean(sizes) < 110
    assert len(set(sizes)) > 10
    fixed = Drawing(100, random.Random(1))
    assert len(fixed.of(eligible, eligible)) == 100
    assert fixed.of(eligible, eligible[:10]) == eligible[:10]


def privacy(**changes: float | str) -> RoundPrivacy:
    settings = complete({}, {"dp": "central", **changes})
    stored = {**settings, "population": 1000.0, "statistics": "loss;eval-loss;eval-correct"}
    found = RoundPrivacy.of(stored, training="t", number=1, rounds=10, before={})
    assert found is not None
    return found


def statistics(one: RoundPrivacy) -> list[str]:
    return [name for name, _ in one.rule.statistics] if one.rule is not None else []


def test_how_a_cohort_is_drawn_decides_how_it_is_accounted() -> None:
    poisson = privacy(selection="poisson", cohort=100)
    assert poisson.sampling == Sampling(Scheme.POISSON, 100, 1000)
    assert poisson.total.relation is Relation.ADD_REMOVE
    fixed = privacy(cohort=100)
    assert fixed.sampling == Sampling(Scheme.WITHOUT_REPLACEMENT, 100, 1000)
    assert fixed.total.relation is Relation.REPLACE
    assert privacy().sampling == Sampling()
    assert privacy(dp="local").total.relation is Relation.REPLACE


def test_dp_sgd_hides_examples_and_is_accounted_by_its_steps() -> None:
    asked: Settings = {"dp": "dpsgd", "epochs": 2.0, "batch_size": 16.0, "dp_examples": 64.0}
    one = privacy(**asked)
    assert (one.rule, one.total.unit) == (None, Unit.EXAMPLE)
    assert one.config == {
        "dp-sgd-noise": 1.0,
        "dp-sgd-norm": 1.0,
        "dp-sgd-examples": 64.0,
    }
    entry = one.entry(0, 5, None, datetime(2026, 1, 1, tzinfo=UTC))
    assert entry.event == Gaussian(1.0, 8, Sampling(Scheme.POISSON, 1, 4))
    with pytest.raises(SettingsError, match="epochs and batch_size are not set"):
        complete({}, {"dp": "dpsgd"})


def test_a_round_is_planned_as_it_will_be_accounted(world: World) -> None:
    settings: Settings = {"dp": "distributed", "dp_noise": 1.0, "dp_epsilon": 4.6}
    (one,) = train(world, 1, settings)
    assert one.phase == "aborted"  # by the Skellam bound 4.73; a Gaussian of that noise costs 4.38
    assert "would bring epsilon per device to 4." in one.reason
    assert one.cohort == ()


def test_only_counts_of_the_evaluation_leave_a_device() -> None:
    assert statistics(privacy()) == ["eval-correct"]
    assert statistics(privacy(dp="central-adaptive")) == ["dp-within", "eval-correct"]


def test_rounding_is_part_of_what_noise_must_hide() -> None:
    one = privacy(dp_norm=1.0, dp_noise=1.0)
    coarse = Encoding.for_cohort(
        size=100, clip=1.0, max_weight=1.0, clients=100, statistics=("eval-correct",), bits=16
    )
    assert one.rule is not None
    contribution = one.rule.contribution(100)
    assert contribution.sensitivity(coarse.quantum, 0.0) > 1.01 * contribution.sensitivity()


def test_a_training_without_privacy_has_none() -> None:
    settings = complete({}, {})
    assert RoundPrivacy.of(settings, training="t", number=1, rounds=1, before={}) is None
