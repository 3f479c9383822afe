"""Grouped rounds over a grid: exact group sums, one poisoned device, groups that are lost."""

from collections.abc import Sequence

import numpy as np
import pytest
from tests.round_fakes import LAYOUT, Fleet, FlowerApp, request

from wildflower.simulation.grid import Death
from wildflower.strategies import round_messages as wire
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.grouped_round import grouped_round
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.grouped import Grouping, Rule, divide
from wildflower.strategies.secagg.messages import SessionParams

ENTROPY = bytes(range(32))


def nine(bad: dict[int, FlowerApp] | None = None) -> list[FlowerApp]:
    """Return nine apps whose steps differ a little; some are replaced."""
    apps = [FlowerApp(0.5 + 0.01 * index, 10 + index, {"loss": 0.5}) for index in range(9)]
    for index, app in (bad or {}).items():
        apps[index] = app
    return apps


def run(
    fleet: Fleet,
    asked: RoundRequest | None = None,
    *,
    grouping: Grouping = Grouping(3),  # noqa: B008  frozen
    evaluate_only: bool = False,
    told: list[str] | None = None,
) -> RoundResult:
    stages = [] if told is None else told
    return grouped_round(
        fleet.grid,
        fleet.nodes,
        asked or request(),
        is_gone=fleet.grid.is_gone,
        entropy=ENTROPY,
        ca_pem=fleet.ca.pem,
        grouping=grouping,
        evaluate_only=evaluate_only,
        on_stage=stages.append,
    )


def groups_of(fleet: Fleet, grouping: Grouping = Grouping(3)) -> list[tuple[int, ...]]:  # noqa: B008  frozen
    """Return the groups that a round with our entropy draws."""
    return divide(fleet.nodes, grouping, entropy=keys.derive(ENTROPY, b"", b"grouped/division"))


def means(apps: Sequence[FlowerApp], groups: Sequence[Sequence[int]]) -> list[float]:
    """Return each group's mean, worked out in the open."""
    found = []
    for group in groups:
        members = [apps[node - 11] for node in group]
        weight = sum(app.examples for app in members)
        found.append(sum(app.step * app.examples for app in members) / weight)
    return found


def test_the_round_is_the_median_of_the_groups_exact_means() -> None:
    apps, told = nine(), list[str]()
    fleet = Fleet([each.app for each in apps])
    result = run(fleet, told=told)
    weight = sum(app.examples for app in apps)
    center = sorted(means(apps, groups_of(fleet)))[1]
    assert result.total.vector / weight == pytest.approx(np.full(LAYOUT.size, center), abs=1e-6)
    assert (result.total.weight, result.total.clients) == (weight, 9)
    assert result.total.statistics["examples"] == weight
    assert result.total.statistics["mean.loss"] == pytest.approx(0.5 * weight, abs=1e-3)
    assert (result.survivors, dict(result.refusals)) == (tuple(fleet.nodes), {})
    assert told == ["advertise", "share", "train", "unmask"] == list(result.stages)


def test_each_group_is_a_session_of_its_own_members_only() -> None:
    fleet = Fleet([each.app for each in nine()])
    run(fleet)
    asked = [m for m in fleet.seen if m.metadata.message_type == wire.ADVERTISE]
    sessions: dict[bytes, set[int]] = {}
    for message in asked:
        if not message.metadata.reply_to_message_id:
            params = SessionParams.from_fields(wire.secagg_fields(message.content))
            assert params.encoding.clients == 3
            sessions.setdefault(params.session, set()).add(message.metadata.dst_node_id)
    assert sorted(map(sorted, sessions.values())) == sorted(map(list, groups_of(fleet)))


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("step", [4.0, -4.0])
def test_one_poisoned_device_does_not_move_the_result_out_of_the_honest_range(
    rule: Rule, step: float
) -> None:
    apps = nine({4: FlowerApp(step, 100)})
    result = run(Fleet([each.app for each in apps]), grouping=Grouping(3, rule=rule))
    update = result.total.vector / result.total.weight
    assert np.all((update >= 0.5 - 1e-6) & (update <= 0.58 + 1e-6))


def test_a_plain_mean_would_have_been_moved() -> None:
    """So that the test above is one that can fail."""
    apps = nine({4: FlowerApp(4.0, 100)})
    weights = np.array([app.examples for app in apps])
    assert np.array([app.step for app in apps]) @ weights / weights.sum() > 1.0


def test_a_group_that_is_lost_is_left_out_and_the_others_go_on() -> None:
    apps = [*nine(), *nine()[:3]]
    grouping = Grouping(4)
    fleet = Fleet([each.app for each in apps])
    lost = groups_of(fleet, grouping)[2]
    fleet.grid.dies[lost[0], "train"] = Death.BEFORE
    result = run(fleet, grouping=grouping)
    assert set(result.refusals) == set(lost)
    assert "lost its connection" in result.refusals[lost[0]]
    assert "its group came to nothing" in result.refusals[lost[1]]
    assert set(result.survivors) == set(fleet.nodes) - set(lost)
    left = [group for group in groups_of(fleet, grouping) if group != lost]
    center = sorted(means(apps, left))[1]
    weight = result.total.weight
    assert result.total.vector / weight == pytest.approx(np.full(LAYOUT.size, center), abs=1e-6)


def test_a_device_that_is_lost_in_a_larger_group_costs_only_itself() -> None:
    apps = [*nine(), *nine()]
    fleet = Fleet([each.app for each in apps], dies={(13, wire.SHARE): Death.AFTER})
    result = run(fleet, grouping=Grouping(3, min_group=5))
    assert set(result.refusals) == {13}
    assert len(result.survivors) == 17


def test_too_few_groups_to_compare_end_the_round_and_say_why() -> None:
    fleet = Fleet([each.app for each in nine()])
    fleet.grid.dies[groups_of(fleet)[0][0], "train"] = Death.BEFORE
    with pytest.raises(RoundAbortedError, match=r"2 groups came through, median needs 3 \(.*lost"):
        run(fleet)


def test_too_few_devices_do_not_begin() -> None:
    apps = nine()[:8]
    fleet = Fleet([each.app for each in apps])
    with pytest.raises(RoundAbortedError, match="8 devices, 3 groups of 3 or more need 9"):
        run(fleet)
    assert [app.calls for app in apps] == [[]] * 8


def test_the_quorum_is_that_of_all_groups_together() -> None:
    fleet = Fleet([each.app for each in nine()])
    with pytest.raises(RoundAbortedError, match="9 devices are in the sums of 3 groups, at least"):
        run(fleet, request(min_clients=10))


def test_an_evaluation_adds_up_statistics_and_nothing_else() -> None:
    apps = nine()
    result = run(Fleet([each.app for each in apps]), evaluate_only=True)
    assert (result.total.vector.size, result.total.weight) == (0, 0.0)
    assert result.total.statistics["seen"] == 0.0
    assert result.total.statistics["mean.loss"] == pytest.approx(
        0.5 * sum(app.examples for app in apps), abs=1e-3
    )
    assert [each.calls for each in apps] == [["evaluate"]] * 9
