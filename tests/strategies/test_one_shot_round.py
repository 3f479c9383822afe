"""One-shot rounds over a grid: one trip, exact sums, helpers that are gone or refuse."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.round_fakes import LAYOUT, FlowerApp, request
from tests.secagg_fakes import entropy_of

from wildflower.client.outgoing import Guard, Outgoing
from wildflower.simulation.grid import App, Death, InProcessGrid
from wildflower.simulation.helpers import SimulatedHelper
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.errors import HelperError, ProtocolError, RoundAbortedError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.one_shot_round import HelperLink, one_shot_round
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg.one_shot_messages import HelperCard, SumRequest
from wildflower.strategies.secagg.one_shot_protection import RECORD, OneShot
from wildflower.strategies.secagg.sessions import MemorySessions

STEPS = [0.25, -0.5, 1.0, 0.125, -0.25, 0.75]
WEIGHTS = [10, 20, 30, 5, 1, 100]


def ordinary() -> list[FlowerApp]:
    pairs = zip(STEPS, WEIGHTS, strict=True)
    return [FlowerApp(step, weight, {"loss": 0.5, "seen": 2.0}) for step, weight in pairs]


class OneShotFleet:
    """Nodes 11, 12, ... whose policy demands protection, and two helpers."""

    def __init__(
        self,
        apps: Sequence[App],
        *,
        dies: dict[tuple[int, str], Death] | None = None,
        min_cohort: int = 3,
        smallest: int = 3,
    ) -> None:
        self.ca = SimulatedCa()
        self.seen: list[Message] = []
        self.helpers: list[HelperLink] = [
            SimulatedHelper(
                self.ca.certificate, entropy_of("round/helper", number), min_cohort=min_cohort
            )
            for number in range(2)
        ]
        pins = tuple(helper.card.digest for helper in self.helpers)
        self.nodes = [11 + index for index in range(len(apps))]
        guarded = {
            node: self._guard(pins, smallest).around(app)
            for node, app in zip(self.nodes, apps, strict=True)
        }
        self.grid = InProcessGrid(guarded, dies=dies, watch=self.seen.append)

    def _guard(self, pins: tuple[str, ...], smallest: int) -> Guard:
        protection = OneShot(self.ca.enrol(), MemorySessions(), pins, smallest)
        return Guard(Outgoing("required", (protection,)), UpdateMod((protection,)))

    def run(
        self,
        asked: RoundRequest | None = None,
        *,
        helpers: Sequence[HelperLink] | None = None,
        evaluate_only: bool = False,
        told: list[str] | None = None,
    ) -> RoundResult:
        stages = [] if told is None else told
        return one_shot_round(
            self.grid,
            self.nodes,
            asked or request(),
            is_gone=self.grid.is_gone,
            entropy=bytes(range(32)),
            ca_pem=self.ca.pem,
            helpers=self.helpers if helpers is None else helpers,
            evaluate_only=evaluate_only,
            on_stage=stages.append,
        )


@pytest.mark.parametrize("bits", [16, 32])
def test_one_trip_adds_up_what_unchanged_apps_trained(bits: int) -> None:
    fleet, told = OneShotFleet([each.app for each in ordinary()]), list[str]()
    result = fleet.run(request(bits=bits), told=told)
    element = sum(s * w for s, w in zip(STEPS, WEIGHTS, strict=True))
    quantum = 100.0 * 4.0 / (2 ** (bits - 1) / 6 - 2)
    assert np.abs(result.total.vector - element).max() <= 6 * quantum
    assert (result.total.weight, result.total.clients) == (166.0, 6)
    assert result.total.statistics["examples"] == 166.0
    assert result.total.statistics["mean.loss"] == pytest.approx(83.0, abs=1e-3)
    assert (result.survivors, dict(result.refusals)) == (tuple(fleet.nodes), {})
    assert told == ["train", "sum"] == list(result.stages)
    assert len(fleet.seen) == 12  # one message and one answer a device


def test_an_evaluation_adds_up_statistics_and_nothing_else() -> None:
    apps = ordinary()
    result = OneShotFleet([each.app for each in apps]).run(evaluate_only=True)
    assert (result.total.vector.size, result.total.weight) == (0, 0.0)
    assert result.total.statistics["mean.loss"] == pytest.approx(83.0, abs=1e-3)
    assert [each.calls for each in apps] == [["evaluate"]] * 6


@given(st.dictionaries(st.integers(0, 5), st.sampled_from(list(Death)), max_size=5))
@settings(max_examples=25, deadline=None)
def test_whichever_devices_are_lost_the_sum_is_exact_or_there_is_none(
    lost: dict[int, Death],
) -> None:
    dies = {(11 + index, "train"): death for index, death in lost.items()}
    fleet = OneShotFleet([each.app for each in ordinary()], dies=dies)
    left = sorted(set(range(6)) - set(lost))
    if len(left) < 3:
        with pytest.raises(RoundAbortedError, match=r"at least 3 are needed .*lost its connection"):
            fleet.run()
        return
    result = fleet.run()
    assert result.survivors == tuple(11 + index for index in left)
    assert result.total.weight == sum(WEIGHTS[index] for index in left)
    element = sum(STEPS[index] * WEIGHTS[index] for index in left)
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, element), abs=1e-4)
    assert set(result.refusals) == {11 + index for index in lost}


class Wrapped:
    """A helper with something between it and the server."""

    def __init__(self, helper: HelperLink) -> None:
        self.helper = helper

    @property
    def card(self) -> HelperCard:
        return self.helper.card

    def check(self, asked: SumRequest) -> None:
        self.helper.check(asked)

    def sum(self, asked: SumRequest) -> Residues:
        return self.helper.sum(asked)


class Gone(Wrapped):
    def sum(self, asked: SumRequest) -> Residues:
        raise HelperError(f"helper {self.card.digest[:12]} does not answer", hint="Start it.")


class GoneBefore(Gone):
    def check(self, asked: SumRequest) -> None:
        self.sum(asked)


class Answered(Wrapped):
    """It has answered the session already, with another cohort."""

    def sum(self, asked: SumRequest) -> Residues:
        self.helper.sum(replace(asked, seeds=asked.seeds[1:]))
        return self.helper.sum(asked)


@pytest.mark.parametrize("kind", [Gone, GoneBefore])
def test_a_helper_that_is_gone_ends_the_round_by_name(kind: type[Gone]) -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    gone = kind(fleet.helpers[1])
    with pytest.raises(RoundAbortedError, match=f"helper {gone.card.digest[:12]} does not answer"):
        fleet.run(helpers=[fleet.helpers[0], gone])


def test_a_session_that_was_answered_for_others_ends_the_round() -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    with pytest.raises(RoundAbortedError, match="answered already, to another request"):
        fleet.run(helpers=[Answered(fleet.helpers[0]), fleet.helpers[1]])


def test_a_cohort_below_the_helpers_minimum_does_not_begin() -> None:
    apps = ordinary()
    fleet = OneShotFleet([each.app for each in apps], min_cohort=7)
    with pytest.raises(RoundAbortedError, match=r"cohort of 6 devices, helper .* adds up 7"):
        fleet.run()
    assert [each.calls for each in apps] == [[]] * 6


def test_what_is_left_below_the_helpers_minimum_is_not_unmasked() -> None:
    fleet = OneShotFleet(
        [each.app for each in ordinary()], dies={(11, "train"): Death.AFTER}, min_cohort=6
    )
    with pytest.raises(RoundAbortedError, match="5 devices are in the sum, 6 are needed"):
        fleet.run()


def test_what_is_left_below_the_devices_own_minimum_is_not_unmasked() -> None:
    fleet = OneShotFleet(
        [each.app for each in ordinary()], dies={(11, "train"): Death.AFTER}, smallest=6
    )
    with pytest.raises(RoundAbortedError, match="5 devices are in the sum, 6 are needed"):
        fleet.run()


def test_devices_answer_only_to_all_of_their_own_helpers() -> None:
    apps = ordinary()
    fleet = OneShotFleet([each.app for each in apps])
    with pytest.raises(RoundAbortedError, match="the session's helpers are"):
        fleet.run(helpers=fleet.helpers[:1])
    stranger = SimulatedHelper(fleet.ca.certificate, entropy_of("stranger"))
    with pytest.raises(RoundAbortedError, match="the session's helpers are"):
        fleet.run(helpers=[*fleet.helpers, stranger])
    assert [each.calls for each in apps] == [[]] * 6


def test_without_a_helper_or_with_two_devices_there_is_no_session() -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    with pytest.raises(RoundAbortedError, match="1 to 8 helpers"):
        fleet.run(helpers=[])
    with pytest.raises(RoundAbortedError, match="adds up 3 or more"):
        OneShotFleet([each.app for each in ordinary()[:2]]).run(request(min_clients=1))


def test_one_device_at_two_nodes_counts_once() -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    fleet.grid = InProcessGrid({**fleet.grid._apps, 17: fleet.grid._apps[11]})
    fleet.nodes.append(17)
    result = fleet.run()
    assert "is at another node already" in result.refusals[17]
    assert result.survivors == tuple(range(11, 17))


def test_devices_of_another_ca_are_left_out() -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    stranger = OneShot(
        SimulatedCa().enrol(),
        MemorySessions(),
        tuple(helper.card.digest for helper in fleet.helpers),
    )
    guard = Guard(Outgoing("required", (stranger,)), UpdateMod((stranger,)))
    fleet.grid = InProcessGrid({**fleet.grid._apps, 17: guard.around(FlowerApp(1.0).app)})
    fleet.nodes.append(17)
    result = fleet.run()
    assert set(result.refusals) == {17}
    assert "not signed by the pinned CA" in result.refusals[17]


def altering(app: App, change: dict[str, object]) -> App:
    """Return an app whose one-shot answers are changed on their way."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        fields = dict(reply.content.config_records[RECORD])
        altered = {name: change.get(name, value) for name, value in fields.items()}
        content = RecordDict({RECORD: ConfigRecord(altered)})  # type: ignore[arg-type]  # a test's own values
        return Message(content, reply_to=message)

    return answer


ALTERED: dict[str, tuple[dict[str, object], str]] = {
    "seal": ({"sealed": bytes(120)}, "not signed by it"),
    "session": ({"session": b"o" * 32}, "answers another session"),
    "residues": ({"residues": bytes(8)}, "sends 8 bytes of residues"),
    "kind": ({"kind": "other"}, "expected one-shot"),
}


@pytest.mark.parametrize(("change", "why"), ALTERED.values(), ids=ALTERED)
def test_an_answer_that_was_altered_is_left_out(change: dict[str, object], why: str) -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    apps = {**fleet.grid._apps, 13: altering(fleet.grid._apps[13], change)}
    fleet.grid = InProcessGrid(apps)
    result = fleet.run()
    assert set(result.refusals) == {13}
    assert why in result.refusals[13]
    assert result.total.weight == sum(WEIGHTS) - WEIGHTS[2]


class Lenient(Wrapped):
    """It looks at nothing before the end."""

    def check(self, asked: SumRequest) -> None:
        pass


def test_the_server_itself_leaves_out_what_no_helper_would_accept() -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    change: dict[str, object] = {"sealed": bytes(120)}
    apps = {**fleet.grid._apps, 13: altering(fleet.grid._apps[13], change)}
    fleet.grid = InProcessGrid(apps)
    result = fleet.run(helpers=[Lenient(helper) for helper in fleet.helpers])
    assert set(result.refusals) == {13}
    assert len(result.survivors) == 5


class Blind(Wrapped):
    """It cannot open the seeds of one device."""

    victim = ""

    def check(self, asked: SumRequest) -> None:
        self.victim = self.victim or asked.seeds[0].device
        if asked.seeds[0].device == self.victim:
            raise ProtocolError(f"the seed of {self.victim} cannot be opened")
        super().check(asked)


def test_a_device_whose_seed_a_helper_cannot_open_is_left_out_and_the_round_goes_on() -> None:
    fleet = OneShotFleet([each.app for each in ordinary()])
    result = fleet.run(helpers=[fleet.helpers[0], Blind(fleet.helpers[1])])
    assert len(result.survivors) == 5
    assert "cannot be opened" in next(iter(result.refusals.values()))
    left = [WEIGHTS[node - 11] for node in result.survivors]
    assert result.total.weight == sum(left)


def test_no_update_travels_in_plain() -> None:
    fleet = OneShotFleet([FlowerApp(0.25, 10).app for _ in range(4)])
    fleet.run()
    replies = [message for message in fleet.seen if message.metadata.reply_to_message_id]
    for reply in replies:
        assert list(reply.content) == [RECORD]
        assert np.float32(0.25).tobytes() * 2 not in bytes(
            reply.content.config_records[RECORD]["residues"]  # type: ignore[arg-type]  # they are bytes
        )
