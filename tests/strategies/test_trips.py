"""Rounds over a grid: sums, losses at every stage, refusals, quorum and deadline."""

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.round_fakes import LAYOUT, Fleet, FlowerApp, request

from wildflower.simulation.grid import App, Death, InProcessGrid
from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.errors import CombinationError, RoundAbortedError
from wildflower.strategies.grouped_round import grouped_round
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg.grouped import Grouping
from wildflower.strategies.trips import plain_round, secure_round

ENTROPY = bytes(range(32))
STEPS = [0.25, -0.5, 1.0, 0.125, -0.25, 0.75]
WEIGHTS = [10, 20, 30, 5, 1, 100]


def ordinary() -> list[FlowerApp]:
    pairs = zip(STEPS, WEIGHTS, strict=True)
    return [FlowerApp(step, weight, {"loss": 0.5, "seen": 2.0}) for step, weight in pairs]


def plain(fleet: Fleet, asked: RoundRequest, *, evaluate_only: bool = False) -> RoundResult:
    return plain_round(
        fleet.grid,
        fleet.nodes,
        asked,
        is_gone=fleet.grid.is_gone,
        algorithm=FedAvg(),
        evaluate_only=evaluate_only,
    )


def secure(fleet: Fleet, asked: RoundRequest, *, evaluate_only: bool = False) -> RoundResult:
    return secure_round(
        fleet.grid,
        fleet.nodes,
        asked,
        is_gone=fleet.grid.is_gone,
        entropy=ENTROPY,
        ca_pem=fleet.ca.pem,
        evaluate_only=evaluate_only,
    )


def expected(members: Iterable[int]) -> tuple[float, float]:
    """Return what each element of the weighted sum, and the weight, must be."""
    chosen = list(members)
    return sum(STEPS[i] * WEIGHTS[i] for i in chosen), float(sum(WEIGHTS[i] for i in chosen))


@pytest.mark.parametrize("go", [plain, secure])
def test_a_round_adds_up_what_unchanged_apps_trained(go: object) -> None:
    fleet = Fleet([each.app for each in ordinary()])
    result = go(fleet, request())  # type: ignore[operator]  # one of the two above
    element, weight = expected(range(6))
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, element), abs=1e-4)
    assert (result.total.weight, result.total.clients) == (weight, 6)
    assert result.total.statistics["examples"] == weight
    assert result.total.statistics["mean.loss"] == pytest.approx(0.5 * weight, abs=1e-3)
    assert result.total.statistics["seen"] == pytest.approx(12.0, abs=1e-3)
    assert result.survivors == tuple(fleet.nodes)
    assert result.refusals == {}


def test_secure_and_plain_sums_differ_by_less_than_a_quantum_a_device() -> None:
    apps = [each.app for each in ordinary()]
    one, two = plain(Fleet(apps), request()).total, secure(Fleet(apps), request()).total
    assert np.abs(one.vector - two.vector).max() < 6 * 100.0 * 4.0 / (2**31 / 6 - 2)
    assert one.weight == two.weight
    assert one.statistics == pytest.approx(two.statistics, abs=1e-3)


@pytest.mark.parametrize("go", [plain, secure])
def test_an_evaluation_adds_up_statistics_and_nothing_else(go: object) -> None:
    apps = ordinary()
    fleet = Fleet([each.app for each in apps])
    result = go(fleet, request(), evaluate_only=True)  # type: ignore[operator]  # see above
    assert result.total.vector.size == 0
    assert result.total.weight == 0.0
    assert result.total.statistics["mean.loss"] == pytest.approx(0.5 * sum(WEIGHTS), abs=1e-3)
    assert [each.calls for each in apps] == [["evaluate"]] * 6


LOSSES = [
    *((kind, death) for kind in (wire.ADVERTISE, wire.SHARE, wire.TRAIN) for death in Death),
    *((wire.UNMASK, death) for death in Death),
]


@pytest.mark.parametrize(("kind", "death"), LOSSES)
def test_a_device_may_be_lost_at_any_stage(kind: str, death: Death) -> None:
    fleet = Fleet([each.app for each in ordinary()], dies={(12, kind): death})
    result = secure(fleet, request())
    members = set(range(6)) - ({1} if kind != wire.UNMASK else set())
    element, weight = expected(members)
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, element), abs=1e-4)
    assert result.total.weight == weight
    assert result.survivors == tuple(fleet.nodes[index] for index in sorted(members))
    assert set(result.refusals) == set(fleet.nodes) - set(result.survivors)
    assert all("lost its connection" in reason for reason in result.refusals.values())


def test_two_devices_lost_at_different_stages_are_both_left_out() -> None:
    dies = {(11, wire.SHARE): Death.AFTER, (13, wire.TRAIN): Death.BEFORE}
    result = secure(Fleet([each.app for each in ordinary()], dies=dies), request())
    assert result.survivors == (12, 14, 15, 16)
    assert result.total.weight == expected([1, 3, 4, 5])[1]


BAD = {
    "NaN": FlowerApp(float("nan")),
    "infinite": FlowerApp(float("inf")),
    "weight is 0": FlowerApp(0.5, examples=0),
    "weight is -1": FlowerApp(0.5, examples=-1),
    "all zeros": FlowerApp(0.0),
    "no finite numbers": FlowerApp(0.5, metrics={"loss": float("nan")}),
}


@pytest.mark.parametrize("go", [plain, secure])
@pytest.mark.parametrize("why", BAD)
def test_a_bad_update_is_left_out_and_the_round_goes_on(go: object, why: str) -> None:
    fleet = Fleet([*(each.app for each in ordinary()), BAD[why].app])
    result = go(fleet, request())  # type: ignore[operator]  # see above
    element, weight = expected(range(6))
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, element), abs=1e-4)
    assert result.total.weight == weight
    assert set(result.refusals) == {17}
    assert why.split(maxsplit=1)[0] in result.refusals[17]


def wrong_shape(message: Message, context: Context) -> Message:
    arrays = ArrayRecord({"bias": message.content.array_records["arrays"]["bias"]})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@pytest.mark.parametrize("go", [plain, secure])
def test_an_update_of_another_model_is_left_out_and_told_why(go: object) -> None:
    fleet = Fleet([*(each.app for each in ordinary()), wrong_shape])
    result = go(fleet, request())  # type: ignore[operator]  # see above
    assert "arrays differ from the model's" in result.refusals[17]
    assert len(result.survivors) == 6


@pytest.mark.parametrize("go", [plain, secure])
def test_weights_and_changes_are_bounded_alike(go: object) -> None:
    apps = [FlowerApp(9.0, 1000), FlowerApp(1.0, 10), FlowerApp(1.0, 10)]
    result = go(Fleet([each.app for each in apps]), request())  # type: ignore[operator]  # see above
    assert result.total.weight == 120.0
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, 4.0 * 100 + 20), abs=1e-3)
    assert result.total.statistics["clipped"] == LAYOUT.size


@pytest.mark.parametrize("go", [plain, secure])
def test_a_round_below_its_quorum_aborts_and_says_why(go: object) -> None:
    dies = {(node, kind): Death.BEFORE for node in (11, 12) for kind in ("train", wire.ADVERTISE)}
    fleet = Fleet([each.app for each in ordinary()], dies=dies)
    with pytest.raises(RoundAbortedError, match=r"4 devices .*at least 5 are needed .*lost its"):
        go(fleet, request(min_clients=5))  # type: ignore[operator]  # see above


def test_a_session_that_cannot_be_unmasked_aborts_the_round() -> None:
    dies = {(node, wire.UNMASK): Death.BEFORE for node in (11, 12, 13)}
    fleet = Fleet([each.app for each in ordinary()], dies=dies)
    with pytest.raises(RoundAbortedError, match="masks of"):
        secure(fleet, request())


def test_two_devices_are_too_few_for_a_secure_round() -> None:
    fleet = Fleet([each.app for each in ordinary()[:2]])
    with pytest.raises(RoundAbortedError, match="at least 3"):
        secure(fleet, request(min_clients=1))


@pytest.mark.parametrize("go", [plain, secure])
def test_a_silent_device_costs_the_deadline_and_no_more(go: object) -> None:
    fleet = Fleet(
        [each.app for each in ordinary()],
        dies={(12, kind): Death.BEFORE for kind in ("train", wire.ADVERTISE)},
    )
    fleet.grid.is_gone = lambda node: False  # type: ignore[method-assign]  # it only says nothing
    result = go(fleet, request(timeout_s=0.5, poll_s=0.01))  # type: ignore[operator]  # see above
    assert "did not answer in time" in result.refusals[12]
    assert len(result.survivors) == 5


def test_the_stages_are_told_as_they_begin() -> None:
    fleet, told = Fleet([each.app for each in ordinary()]), list[str]()
    result = secure_round(
        fleet.grid,
        fleet.nodes,
        request(),
        is_gone=fleet.grid.is_gone,
        entropy=ENTROPY,
        ca_pem=fleet.ca.pem,
        on_stage=told.append,
    )
    assert told == ["advertise", "share", "train", "unmask"] == list(result.stages)
    assert all(seconds >= 0 for seconds in result.stages.values())


def test_devices_of_another_ca_are_left_out() -> None:
    fleet, foreign = (Fleet([each.app for each in ordinary()]) for _ in range(2))
    apps = {node: fleet.grid._apps[node] for node in fleet.nodes[:5]}
    grid = InProcessGrid({**apps, 16: foreign.grid._apps[16]})
    result = secure_round(
        grid,
        fleet.nodes,
        request(),
        is_gone=grid.is_gone,
        entropy=ENTROPY,
        ca_pem=fleet.ca.pem,
    )
    assert set(result.refusals) == {16}
    assert result.survivors == (11, 12, 13, 14, 15)


def test_one_device_at_two_nodes_counts_once() -> None:
    fleet = Fleet([each.app for each in ordinary()])
    twin = fleet.grid._apps[11]
    grid = InProcessGrid({**fleet.grid._apps, 17: twin})
    result = secure_round(
        grid,
        [*fleet.nodes, 17],
        request(),
        is_gone=grid.is_gone,
        entropy=ENTROPY,
        ca_pem=fleet.ca.pem,
    )
    assert "is at another node already" in result.refusals[17]
    assert result.survivors == tuple(fleet.nodes)


class ForgetfulGrid(InProcessGrid):
    """A SuperLink that does not know node 12, and repeats what it was asked."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        known = list(super().push_messages(messages))
        return ["" if self._waiting[key].metadata.dst_node_id == 12 else key for key in known]


def test_a_node_that_the_superlink_does_not_know_is_left_out() -> None:
    fleet = Fleet([each.app for each in ordinary()])
    grid = ForgetfulGrid(fleet.grid._apps)
    result = plain_round(grid, fleet.nodes, request(), is_gone=grid.is_gone, algorithm=FedAvg())
    assert result.refusals == {12: "is not known to the SuperLink"}


def test_an_error_without_a_reason_is_told_by_its_code() -> None:
    def fails(message: Message, context: Context) -> Message:
        return Message(Error(77), reply_to=message)

    grid = InProcessGrid({11: FlowerApp(1.0).app, 12: fails})
    with pytest.raises(RoundAbortedError, match="error 77"):
        plain_round(grid, [12], request(min_clients=1), is_gone=grid.is_gone, algorithm=FedAvg())


SCALARS = st.one_of(
    st.integers(-3, 3), st.floats(width=32), st.binary(max_size=8), st.text(max_size=4)
)
NAMES = st.sampled_from(["secagg", "arrays", "metrics", "layout", "kind", "session", "version"])
RECORDS = st.one_of(
    st.dictionaries(NAMES, SCALARS, max_size=4).map(lambda fields: ConfigRecord(dict(fields))),
    st.dictionaries(NAMES, st.floats(width=32), max_size=3).map(
        lambda fields: MetricRecord(dict(fields))
    ),
    st.lists(st.integers(0, 3), max_size=2).map(
        lambda sizes: ArrayRecord([np.zeros(size, np.float64) for size in sizes])
    ),
)


def answering(content: RecordDict) -> App:
    return lambda message, context: Message(content, reply_to=message)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, RECORDS, max_size=3))
def test_no_answer_of_one_device_can_fail_the_round_of_the_others(
    records: dict[str, ConfigRecord | MetricRecord | ArrayRecord],
) -> None:
    fleet = Fleet([each.app for each in ordinary()[:4]])
    grid = InProcessGrid({**fleet.grid._apps, 99: answering(RecordDict(records))})
    nodes = [*fleet.nodes, 99]
    one = plain_round(grid, nodes, request(), is_gone=grid.is_gone, algorithm=FedAvg())
    two = secure_round(
        grid, nodes, request(), is_gone=grid.is_gone, entropy=ENTROPY, ca_pem=fleet.ca.pem
    )
    assert one.survivors == two.survivors == tuple(fleet.nodes)
    assert set(one.refusals) == set(two.refusals) == {99}


def test_noise_that_devices_make_together_is_refused_where_updates_stand_alone() -> None:
    fleet = Fleet([FlowerApp(0.5).app for _ in range(9)])
    noisy = request(noise=1.0, rule=ClientRule(1.0))
    with pytest.raises(CombinationError, match="holds a part of it only"):
        plain_round(fleet.grid, fleet.nodes, noisy, is_gone=fleet.grid.is_gone, algorithm=FedAvg())
    with pytest.raises(CombinationError, match="holds a part of it only"):
        grouped_round(
            fleet.grid,
            fleet.nodes,
            noisy,
            is_gone=fleet.grid.is_gone,
            entropy=bytes(32),
            ca_pem=fleet.ca.pem,
            grouping=Grouping(3),
        )
    assert fleet.seen == []
