"""Flower's strategies inside secure aggregation: equal to plain ones, or refused by name."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, Result, Strategy
from tests.round_fakes import MODEL, Fleet, FlowerApp

from wildflower.simulation.grid import Death, InProcessGrid
from wildflower.strategies import round_messages as wire
from wildflower.strategies.combine import require
from wildflower.strategies.errors import CombinationError, RoundAbortedError
from wildflower.strategies.flower_grid import LOOK_S, Presence, SecureGrid, Terms
from wildflower.strategies.flower_inner import COUNTS_REPLIES, OPTION_OF, check_inner
from wildflower.strategies.flower_strategy import SecAggPlus
from wildflower.strategies.round_request import RoundResult

STEPS = [0.25, -0.5, 1.0, 0.125, -0.25]
WEIGHTS = [10, 20, 30, 5, 1]
LOSSES = [0.5, 0.25, 2.0, 1.0, 4.0]
SHIPPED = {
    name: kind
    for name, kind in vars(flower).items()
    if inspect.isclass(kind) and issubclass(kind, Strategy) and kind is not Strategy
}
AVERAGING = [
    name
    for name, option in OPTION_OF.items()
    if option.startswith("fed") and option not in {"fedmedian", "fedxgb-bagging", "fedxgb-cyclic"}
]
REFUSED = [name for name in SHIPPED if name not in AVERAGING]
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "QFedAvg": {"client_learning_rate": 0.1},
    "FedProx": {"proximal_mu": 0.1},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.9},
}


@pytest.fixture(autouse=True)
def _quiet_flower() -> Iterable[None]:
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def apps() -> list[FlowerApp]:
    rows = zip(STEPS, WEIGHTS, LOSSES, strict=True)
    return [FlowerApp(step, weight, {"train_loss": loss}) for step, weight, loss in rows]


def make(name: str) -> Strategy:
    kind = SHIPPED[name]
    if name in COUNTS_REPLIES:
        noise = {"noise_multiplier": 0.1, "num_sampled_clients": 5}
        if "Fixed" in name:
            return kind(FedAvg(), clipping_norm=1.0, **noise)  # type: ignore[call-arg]
        return kind(FedAvg(), **noise)  # type: ignore[call-arg]
    return kind(**ARGUMENTS.get(name, {}))


def model() -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in reversed(MODEL.items())})


def plain(inner: Strategy, rounds: int = 2) -> Result:
    nodes = {11 + index: each.app for index, each in enumerate(apps())}
    return inner.start(InProcessGrid(nodes), model(), rounds)


def secure(
    inner: Strategy, fleet: Fleet | None = None, rounds: int = 2, **options: Any
) -> tuple[Result, Fleet]:
    fleet = fleet or Fleet([each.app for each in apps()], secagg="required")
    terms: dict[str, Any] = {
        "clip": 1.0,
        "max_weight": 30.0,
        "train_metrics": ("train_loss",),
        "evaluate_metrics": ("train_loss",),
        "is_gone": fleet.grid.is_gone,
        "poll_s": 0.0,
    }
    strategy = SecAggPlus(inner, ca_pem=fleet.ca.pem, terms=Terms(**{**terms, **options}))
    return strategy.start(fleet.grid, model(), rounds), fleet


def test_every_strategy_that_flower_ships_is_classified() -> None:
    assert {*OPTION_OF, *COUNTS_REPLIES} == set(SHIPPED)
    assert sorted(AVERAGING) == [
        "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "bits"), [*((name, 32) for name in AVERAGING), ("FedAvg", 16), ("FedAdam", 16)]
)
def test_an_averaging_strategy_trains_as_it_does_in_plain(name: str, bits: int) -> None:
    expected, (found, _) = plain(make(name)), secure(make(name), bits=bits)
    # float32, and a quantum a device over the weight, of which a step may make ten times as much
    quantum = 1.0 * 30.0 / ((2 ** (bits - 1) - 1) // 5 - 1)
    bound = 1e-6 + 20 * 5 * quantum / sum(WEIGHTS)
    assert list(found.arrays) == list(expected.arrays) == list(reversed(MODEL))
    for key in MODEL:
        one, two = found.arrays[key].numpy(), expected.arrays[key].numpy()
        assert one.dtype == two.dtype
        assert np.abs(one - two).max() < bound
        assert np.abs(one - MODEL[key]).max() > bound  # it did train
    for number in (1, 2):
        for metrics in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
            one, two = getattr(found, metrics)[number], getattr(expected, metrics)[number]
            assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_a_strategy_that_looks_at_single_replies_is_refused_before_a_round(name: str) -> None:
    with pytest.raises(CombinationError, match="is refused: ") as found:
        SecAggPlus(make(name), ca_pem=b"")
    assert found.value.hint.startswith("Use ")


@pytest.mark.parametrize("name", set(OPTION_OF) & set(REFUSED))
def test_what_is_refused_for_a_class_is_what_the_checker_says_of_its_option(name: str) -> None:
    with pytest.raises(CombinationError) as wrapped:
        check_inner(make(name))
    with pytest.raises(CombinationError) as asked:
        require("secagg", OPTION_OF[name])
    assert str(wrapped.value) == str(asked.value)


def test_nothing_but_secure_aggregation_leaves_a_device() -> None:
    _, fleet = secure(FedAvg())
    replies = [message for message in fleet.seen if message.metadata.src_node_id != 1]
    assert len(replies) == 5 * 4 * 2 * 2  # devices, trips, train and evaluate, rounds
    assert {tuple(message.content) for message in replies} == {("secagg",)}


def test_the_strategys_config_reaches_the_app() -> None:
    seen: list[Mapping[str, object]] = []

    def spy(app: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
        def called(message: Message, context: Context) -> Message:
            seen.append(dict(message.content.config_records["config"]))
            return app(message, context)

        return called

    fleet = Fleet([spy(each.app) for each in apps()])
    terms = Terms(clip=2.0, poll_s=0.0)
    SecAggPlus(FedProx(proximal_mu=0.25), ca_pem=fleet.ca.pem, terms=terms).start(
        fleet.grid, model(), 1, train_config=ConfigRecord({"epochs": 3})
    )
    assert {config["proximal-mu"] for config in seen[:5]} == {0.25}
    assert {(config["epochs"], config["server-round"]) for config in seen[:5]} == {(3, 1)}


def test_a_lost_device_is_left_out_and_told() -> None:
    told: list[tuple[int, str, RoundResult]] = []
    fleet = Fleet([each.app for each in apps()], dies={(12, wire.SHARE): Death.BEFORE})
    secure(FedAvg(), fleet, 1, on_round=lambda *args: told.append(args))
    number, kind, result = told[0]
    assert (number, kind, result.survivors) == (1, "train", (11, 13, 14, 15))
    assert "lost its connection" in result.refusals[12]
    assert told[1][2].survivors == (11, 13, 14, 15)


def test_an_aborted_round_leaves_the_model_and_the_next_goes_on() -> None:
    fleet = Fleet(
        [each.app for each in apps()],
        dies={(node, wire.UNMASK): Death.BEFORE for node in (11, 12, 13)},
    )
    told: list[int] = []

    def look(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 1:
            fleet.grid.dies.clear()
            for node in (11, 12, 13):
                fleet.grid.revive(node)
        return MetricRecord({"bias": float(arrays["bias"].numpy()[0])})

    terms = Terms(
        clip=2.0,
        is_gone=fleet.grid.is_gone,
        poll_s=0.0,
        on_round=lambda number, *_: told.append(number),
    )
    strategy = SecAggPlus(FedAvg(), ca_pem=fleet.ca.pem, terms=terms)
    result = strategy.start(fleet.grid, model(), 2, evaluate_fn=look)
    seen = [result.evaluate_metrics_serverapp[number]["bias"] for number in (0, 1, 2)]
    assert seen[0] == seen[1] != seen[2]
    assert told == [2, 2]


def test_a_cohort_of_two_trains_nothing(caplog: pytest.LogCaptureFixture) -> None:
    result, _ = secure(FedAvg(), Fleet([each.app for each in apps()[:2]]), 1)
    assert result.train_metrics_clientapp == {}
    assert "round aborted" in caplog.text


def test_terms_that_never_fit_end_the_training_at_once() -> None:
    with pytest.raises(RoundAbortedError, match="may weigh at most"):
        secure(FedAvg(), max_weight=1e10)


class Clever(FedAvg):
    """Looks at single replies, in a place where nobody looks for it."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return super().aggregate_train(server_round, list(replies)[:1])


class Logging(FedAdam):
    """Adds nothing to how Flower aggregates."""

    def summary(self) -> None:
        return


def spread(records: list[RecordDict], key: str) -> MetricRecord:
    return MetricRecord({"spread": float(len(records))})


@pytest.mark.parametrize("inner", [Clever(), FedAvg(train_metrics_aggr_fn=spread)])
def test_an_aggregation_of_ones_own_needs_a_word(inner: Strategy) -> None:
    with pytest.raises(CombinationError, match="has a way of its own to aggregate") as found:
        check_inner(inner)
    assert "averages=True" in found.value.hint
    check_inner(inner, averages=True)


def test_a_subclass_that_aggregates_as_flower_does_is_known_by_its_base() -> None:
    check_inner(Logging())

    class Robust(FedMedian):
        """A median, by another name."""

    with pytest.raises(CombinationError, match="fedmedian"):
        check_inner(Robust())


def test_another_weight_is_refused() -> None:
    with pytest.raises(CombinationError, match="weighs by 'seconds'"):
        check_inner(FedAvg(weighted_by_key="seconds"))


def test_a_cohort_smaller_than_three_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="min_cohort is 2"):
        Terms(min_cohort=2)


def test_inside_of_another_strategy_it_refuses_to_send_in_plain() -> None:
    fleet = Fleet([each.app for each in apps()])
    inside = SecAggPlus(FedAvg(), ca_pem=fleet.ca.pem)
    outside = flower.DifferentialPrivacyClientSideFixedClipping(inside, 1.0, 1.0, 5)
    with pytest.raises(CombinationError, match="would send in plain"):
        outside.start(fleet.grid, model(), 1)
    with pytest.raises(CombinationError, match="would send in plain"):
        inside.configure_evaluate(1, model(), ConfigRecord(), fleet.grid)
    assert fleet.seen == []


def test_it_is_a_strategy_whose_hooks_are_the_inner_ones() -> None:
    strategy = SecAggPlus(FedAvg(), ca_pem=b"")
    content = RecordDict(
        {"arrays": model(), "metrics": MetricRecord({"num-examples": 2, "a": 1.5})}
    )
    reply = Message(content, 11, "train")
    arrays, metrics = strategy.aggregate_train(1, [reply])
    assert arrays is not None
    assert np.array_equal(arrays["bias"].numpy(), MODEL["bias"])
    assert metrics == strategy.aggregate_evaluate(1, [reply]) == MetricRecord({"a": 1.5})


def test_inside_of_a_secure_round_its_hooks_configure_as_the_inner_ones_do() -> None:
    fleet = Fleet([each.app for each in apps()])
    strategy = SecAggPlus(FedAvg(), ca_pem=fleet.ca.pem)
    grid = SecureGrid(fleet.grid, "t1", strategy.terms, lambda *_, **__: pytest.fail("no round"))
    for configure in (strategy.configure_train, strategy.configure_evaluate):
        asked = configure(1, model(), ConfigRecord(), grid)
        assert {message.metadata.dst_node_id for message in asked} == set(fleet.nodes)


class Odd(FedAvg):
    """Sends what `change` makes of the messages, or pushes them."""

    def __init__(self, change: Callable[[list[Message], Grid], Iterable[Message]]) -> None:
        super().__init__(fraction_evaluate=1.0)
        self.change = change

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        asked = list(super().configure_train(server_round, arrays, config, grid))
        return self.change(asked, grid)


def personal(asked: list[Message], grid: Grid) -> list[Message]:
    content = RecordDict({**asked[0].content, "config": ConfigRecord({"only": "you"})})
    return [*asked[1:], Message(content, asked[0].metadata.dst_node_id, "train")]


def evaluating(asked: list[Message], grid: Grid) -> list[Message]:
    return [*asked[1:], Message(asked[0].content, asked[0].metadata.dst_node_id, "evaluate")]


def querying(asked: list[Message], grid: Grid) -> list[Message]:
    return [Message(each.content, each.metadata.dst_node_id, "query") for each in asked]


def with_more(asked: list[Message], grid: Grid) -> list[Message]:
    content = RecordDict({**asked[0].content, "more": ConfigRecord()})
    return [Message(content, each.metadata.dst_node_id, "train") for each in asked]


def twice(asked: list[Message], grid: Grid) -> list[Message]:
    return [asked[0], *asked]


def pushing(asked: list[Message], grid: Grid) -> list[Message]:
    grid.push_messages(asked)
    return []


def pulling(asked: list[Message], grid: Grid) -> list[Message]:
    grid.pull_messages(["m1"])
    return []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (personal, "1 of 5 nodes would get another model or config, such as node"),
        (evaluating, r"messages of the types \['evaluate', 'train'\]"),
        (querying, r"messages of the types \['query'\]"),
        (with_more, "hold the records .*'more'"),
        (twice, "6 messages go to 5 nodes"),
        (pushing, "5 messages would go to the devices outside of a protected round"),
        (pulling, "1 replies are asked for outside"),
    ],
)
def test_what_is_no_secure_round_is_refused_and_nothing_is_sent(
    change: Callable[[list[Message], Grid], list[Message]], why: str
) -> None:
    fleet = Fleet([each.app for each in apps()])
    with pytest.raises(CombinationError, match=why):
        secure(Odd(change), fleet, 1)
    assert fleet.seen == []


def test_equal_messages_need_not_be_one_object() -> None:
    def copied(asked: list[Message], grid: Grid) -> list[Message]:
        return [
            grid.create_message(
                RecordDict(dict(each.content)), "train", each.metadata.dst_node_id, ""
            )
            for each in asked
        ]

    assert secure(Odd(copied), rounds=1)[0].train_metrics_clientapp


def test_a_strategy_that_trains_nobody_runs_no_round() -> None:
    result, fleet = secure(FedAvg(fraction_train=0.0, fraction_evaluate=0.0))
    assert (dict(result.train_metrics_clientapp), fleet.seen) == ({}, [])


def test_the_run_is_that_of_the_grid() -> None:
    def looks(asked: list[Message], grid: Grid) -> list[Message]:
        grid.set_run(grid.run)
        return []

    _, fleet = secure(Odd(looks), rounds=1)
    assert fleet.grid.run.run_id == 1


def test_who_is_connected_is_asked_once_in_a_while() -> None:
    fleet, now = Fleet([each.app for each in apps()]), [0.0]
    presence = Presence(fleet.grid, lambda: now[0])
    assert not presence.is_gone(12)
    fleet.grid._dead.add(12)
    assert not presence.is_gone(12)
    now[0] += LOOK_S
    assert presence.is_gone(12)
    assert not presence.is_gone(11)


def test_without_being_told_who_is_gone_the_grid_is_asked() -> None:
    fleet = Fleet([each.app for each in apps()], dies={(12, wire.ADVERTISE): Death.BEFORE})
    told: list[RoundResult] = []
    secure(FedAvg(), fleet, 1, is_gone=None, on_round=lambda *args: told.append(args[2]))
    assert told[0].survivors == (11, 13, 14, 15)
