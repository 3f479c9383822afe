"""The privacy budget: what is not private, or cannot be paid, does not leave, whoever asks."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from tests.round_fakes import Fleet, request
from tests.tiny_task import points, task

from wildflower.client.errors import PolicyError
from wildflower.client.local_app import Local, local_app
from wildflower.client.privacy_book import PrivacyBook
from wildflower.client.privacy_guard import MAX_REASON, PrivacyGuard, digest_of
from wildflower.simulation.fleet import STATISTICS
from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Layout
from wildflower.strategies.dp import claim
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.events import Gaussian, Relation, Sampling, Scheme, Tree
from wildflower.strategies.dp.private_task import PrivateTask
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.errors import StoredStateError, StrategyError
from wildflower.strategies.flower_compat.messages import assume_identity
from wildflower.strategies.initial import initial_model
from wildflower.strategies.mod import App
from wildflower.strategies.round_request import RoundResult
from wildflower.strategies.trips import plain_round, secure_round

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CONTEXT = Context(run_id=1, node_id=11, node_config={}, state=RecordDict(), run_config={})
MODEL = initial_model(PrivateTask(task), 0)
LAYOUT = Layout.of(MODEL)
CENTRAL = Gaussian(10.0, 1, Sampling(Scheme.POISSON, 100, 1000))
RULED = {**ClientRule(1.0).to_config(), **claim.to_config(CENTRAL)}
SGD = {"dp-sgd-noise": 8.0, "dp-sgd-norm": 1.0}
ANSWER = RecordDict(
    {
        "arrays": ArrayRecord({"flat": Array(np.arange(3, dtype=np.float32))}),
        "metrics": MetricRecord({"num-examples": 3}),
    }
)


def guard(tmp_path: Path, limit: float, unit: str = "device") -> PrivacyGuard:
    return PrivacyGuard(PrivacyBook(tmp_path / "privacy.json", lambda: NOW), (), limit, unit)


def message(
    config: dict[str, str | float], kind: str = wire.TRAIN, *, is_model: bool = True
) -> Message:
    assume_identity()
    content = wire.model_content(LAYOUT.pack(MODEL), LAYOUT, config, ())
    return Message(content if is_model else RecordDict(), 11, kind)


def answers(content: RecordDict = ANSWER) -> App:
    return lambda received, context: Message(content, reply_to=received)


def numbered() -> App:
    """Return an app whose answers all differ, as noise makes them."""
    made: list[int] = []

    def answer(received: Message, context: Context) -> Message:
        made.append(len(made))
        content = RecordDict({**ANSWER, "metrics": MetricRecord({"num-examples": made[-1]})})
        return Message(content, reply_to=received)

    return answer


def test_without_a_budget_everything_leaves_and_nothing_is_written(tmp_path: Path) -> None:
    free = guard(tmp_path, 0.0)
    assert free(message({}), CONTEXT, answers()).content == ANSWER
    assert not free.book.path.exists()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "not differentially private"),
        (ClientRule(1.0).to_config(), "not differentially private"),
        (claim.to_config(CENTRAL), "not differentially private"),
        ({"dp-norm": 1.0}, "privacy rule lacks"),
        ({**RULED, "dp-event": "{"}, "not JSON"),
        ({**RULED, "dp-event": "[]"}, "no object"),
        ({**RULED, "dp-event": 3}, "no text"),
        ({**RULED, "dp-event": " " * 3000}, "no text"),
        ({**RULED, "dp-event": '{"mechanism": "magic"}'}, "not a privacy event"),
    ],
)
def test_what_is_not_private_does_not_even_reach_the_app(
    tmp_path: Path, config: dict[str, str | float], why: str
) -> None:
    def never(received: Message, context: Context) -> Message:
        raise AssertionError(received)

    reply = guard(tmp_path, 5.0)(message(config), CONTEXT, never)
    assert why in (reply.error.reason or "")


@pytest.mark.parametrize(
    ("kind", "is_model"), [("query.anything", True), ("query.anything", False), ("train", False)]
)
def test_other_messages_get_nothing_out(tmp_path: Path, kind: str, *, is_model: bool) -> None:
    asked = message(RULED, kind, is_model=is_model)
    assert guard(tmp_path, 5.0)(asked, CONTEXT, answers()).has_error()


def test_answers_leave_until_the_month_is_spent(tmp_path: Path) -> None:
    limit = epsilon_of([Gaussian(10.0, 4)], delta=1e-5) * 1.001
    app, replies = numbered(), []
    for _ in range(6):  # a new guard each time: the device restarts between the rounds
        replies.append(guard(tmp_path, limit)(message(RULED), CONTEXT, app))
    assert [reply.has_error() for reply in replies] == [False] * 4 + [True] * 2
    assert "epsilon per device" in (replies[-1].error.reason or "")
    assert guard(tmp_path, limit).book.read().events("device") == (Gaussian(10.0, 4),)


def test_the_same_bytes_again_cost_nothing(tmp_path: Path) -> None:
    budget = guard(tmp_path, 5.0)
    for _ in range(3):
        assert not budget(message(RULED), CONTEXT, answers()).has_error()
    assert budget.book.read().events("device") == (Gaussian(10.0),)


def test_the_answer_is_paid_before_it_leaves(tmp_path: Path) -> None:
    budget = guard(tmp_path, 5.0)
    budget.book.path.mkdir()  # nothing can be written there
    assert budget(message(RULED), CONTEXT, answers()).has_error()


def test_noise_of_the_devices_own_needs_no_claim(tmp_path: Path) -> None:
    budget = guard(tmp_path, 5.0)
    rule, app = ClientRule(1.0, local_noise=3.0).to_config(), numbered()
    for config in ({**rule, **claim.to_config(CENTRAL)}, rule):
        assert not budget(message(config), CONTEXT, app).has_error()
    replaced = epsilon_of([Gaussian(3.0, 2)], delta=1e-5, relation=Relation.REPLACE)
    assert epsilon_of(budget.book.read().events("device"), delta=1e-5) == replaced


def test_an_apps_error_costs_nothing_and_says_little(tmp_path: Path) -> None:
    def fails(received: Message, context: Context) -> Message:
        return Message(Error(7, "x" * 5000), reply_to=received)

    budget = guard(tmp_path, 5.0)
    reply = budget(message(RULED), CONTEXT, fails)
    assert (reply.error.code, len(reply.error.reason or "")) == (7, MAX_REASON)
    assert not budget.book.path.exists()


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        (wire.TRAIN, RULED, "asks for no DP-SGD"),
        (wire.TRAIN, {"dp-sgd-noise": -1.0}, "dp-sgd-noise"),
        (wire.EVALUATE, SGD, "adds them up exactly"),
        (wire.TRAIN, SGD, "not made by DP-SGD"),
    ],
)
def test_where_examples_are_protected_an_app_of_someone_else_gets_nothing_out(
    tmp_path: Path, kind: str, config: dict[str, str | float], why: str
) -> None:
    reply = guard(tmp_path, 5.0, "example")(message(config, kind), CONTEXT, answers())
    assert why in (reply.error.reason or "")


def budgeted(tmp_path: Path, limit: float, count: int = 3) -> Fleet:
    """Return devices that train the tiny task behind a budget per example."""
    tills = [guard(tmp_path / str(index), limit, "example") for index in range(count)]
    parts = [points(40, seed=index) for index in range(count)]
    apps = [
        local_app(lambda _, part=part: Local(task, part), till)  # type: ignore[misc]  # bound early
        for part, till in zip(parts, tills, strict=True)
    ]
    return Fleet(apps, budgets=tills)


def a_round(fleet: Fleet, number: int, *, is_secure: bool) -> RoundResult:
    asked = request(
        number=number,
        layout=LAYOUT,
        vector=LAYOUT.pack(MODEL),
        statistics=STATISTICS,
        config={"seed": 1, **SGD},
    )
    is_gone = fleet.grid.is_gone
    if not is_secure:
        return plain_round(fleet.grid, fleet.nodes, asked, is_gone=is_gone, algorithm=FedAvg())
    pem = fleet.ca.pem
    return secure_round(
        fleet.grid, fleet.nodes, asked, is_gone=is_gone, entropy=bytes(32), ca_pem=pem
    )


@pytest.mark.parametrize("is_secure", [True, False])
def test_private_training_pays_and_leaves_until_nothing_is_left(
    tmp_path: Path, *, is_secure: bool
) -> None:
    steps = Gaussian(8.0, 15, Sampling(Scheme.POISSON, 1, 5))
    limit = epsilon_of([replace(steps, rounds=30)], delta=1e-5, method="rdp") * 1.001
    for number in (1, 2):
        fleet = budgeted(tmp_path, limit)  # every device restarts between the rounds
        result = a_round(fleet, number, is_secure=is_secure)
        assert (result.total.clients, result.refusals) == (3, {})
        sums = result.total.statistics
        assert sums["examples"] == 3 * 36
        assert sums["loss"] == sums["eval-examples"] == 0  # nothing measured leaves
    with pytest.raises(StrategyError):
        a_round(budgeted(tmp_path, limit), 3, is_secure=is_secure)
    for index in range(3):
        book = guard(tmp_path / str(index), limit, "example").book.read()
        assert book.events("example") == (replace(steps, rounds=30),)


def test_without_a_budget_private_training_is_still_written_down(tmp_path: Path) -> None:
    till = guard(tmp_path, 0.0)
    spent = [till.charge(Gaussian(5.0)) for _ in range(2)]
    assert spent[0] < spent[1]
    with pytest.raises(PolicyError):
        guard(tmp_path, spent[1] / 2, "example").charge(Gaussian(5.0))


@pytest.mark.parametrize("event", [CENTRAL, Gaussian(2.0, 3), Tree(3.0, 16, 2)])
def test_a_claim_is_read_back_as_it_was_made(event: Gaussian | Tree) -> None:
    assert claim.from_config(claim.to_config(event)) == event


def test_one_answer_gains_nothing_by_sampling_and_is_one_of_each_tree() -> None:
    assert claim.of_one_answer(CENTRAL) == Gaussian(10.0)
    assert claim.of_one_answer(Tree(3.0, 16, 2)) == Tree(3.0, 16)
    with pytest.raises(StoredStateError):
        claim.from_config({"dp-event": "[" * 1999})


ALTERED: dict[str, Callable[[], RecordDict]] = {
    "another name": lambda: RecordDict({"array": ANSWER["arrays"], "metrics": ANSWER["metrics"]}),
    "another number": lambda: RecordDict({**ANSWER, "metrics": MetricRecord({"num-examples": 4})}),
    "another type": lambda: RecordDict({**ANSWER, "metrics": MetricRecord({"num-examples": 3.0})}),
    "bytes": lambda: RecordDict({**ANSWER, "metrics": ConfigRecord({"num-examples": b"3"})}),
    "another element": lambda: RecordDict(
        {**ANSWER, "arrays": ArrayRecord({"flat": Array(np.arange(1, 4, dtype=np.float32))})}
    ),
}


@pytest.mark.parametrize("name", ALTERED)
def test_every_part_of_an_answer_is_in_its_digest(name: str) -> None:
    assert digest_of(ALTERED[name]()) != digest_of(ANSWER) == digest_of(RecordDict({**ANSWER}))
