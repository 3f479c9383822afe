"""Local training: it learns, repeats itself, keeps validation apart, refuses what it cannot use."""

import numpy as np
import pytest
import torch
from tests.tiny_task import points, task

from wildflower.client.errors import TrainingError
from wildflower.client.training import Plan, evaluate, split_validation, train
from wildflower.strategies.initial import initial_model
from wildflower.strategies.task import Recipe

PLAN = Plan.of(task.recipe, {}, seed=7)


def test_training_learns() -> None:
    fit, validation = split_validation(points(200))
    before = initial_model(task, 1)
    after, sums = train(task, before, fit, PLAN)
    worse, better = (evaluate(task, model, validation) for model in (before, after))
    assert better["eval-loss"] < worse["eval-loss"]
    assert better["eval-correct"] / better["eval-examples"] > 0.85
    assert sums["examples"] == len(fit) == 180
    assert 0 < sums["loss"] < 180


def test_equal_seeds_give_equal_models_and_others_do_not() -> None:
    before = initial_model(task, 1)
    one, again = (train(task, before, points(50), PLAN)[0] for _ in range(2))
    other, _ = train(task, before, points(50), Plan.of(task.recipe, {}, seed=8))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["weight"], other["weight"])


def test_training_leaves_the_received_model_and_the_process_as_they_were() -> None:
    before = initial_model(task, 1)
    copy = {name: array.copy() for name, array in before.items()}
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    train(task, before, points(50), PLAN)
    assert all(np.array_equal(before[name], copy[name]) for name in before)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), drawn)


def test_equal_seeds_give_equal_initial_models() -> None:
    one, again, other = (initial_model(task, seed) for seed in (1, 1, 2))
    assert np.array_equal(one["weight"], again["weight"])
    assert not np.array_equal(one["weight"], other["weight"])


def test_the_validation_examples_are_the_same_in_every_round() -> None:
    examples = points(40)
    (fit, held), (_, again) = split_validation(examples), split_validation(examples)
    assert np.array_equal(held.inputs, again.inputs)
    assert (len(fit), len(held)) == (36, 4)
    together = np.concatenate([fit.inputs, held.inputs])
    assert np.array_equal(np.sort(together, axis=0), np.sort(examples.inputs, axis=0))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_examples_are_told(count: int) -> None:
    with pytest.raises(TrainingError, match=f"{count} examples"):
        split_validation(points(count))


def test_a_model_of_another_task_is_told() -> None:
    wrong = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
    with pytest.raises(TrainingError, match="not that of the task 'tiny'"):
        evaluate(task, wrong, points(4))


def test_a_round_can_change_the_recipe() -> None:
    plan = Plan.of(Recipe(), {"epochs": 4, "learning-rate": 0.5, "batch-size": 2}, seed=1)
    assert plan == Plan(4, 2, 0.5, Recipe().momentum, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("epochs", "many"), ("learning-rate", float("nan")), ("momentum", 1.0)],
)
def test_a_round_cannot_ask_for_nonsense(key: str, value: object) -> None:
    with pytest.raises(TrainingError, match=key):
        Plan.of(Recipe(), {key: value}, seed=1)
