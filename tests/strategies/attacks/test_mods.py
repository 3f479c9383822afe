"""Attacks in a round over the grid: liars among the devices, a server that asks too much."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hypothesis import given
from hypothesis import strategies as st
from tests.round_fakes import LAYOUT, MODEL, Fleet, FlowerApp, request

from wildflower.simulation.grid import App, InProcessGrid
from wildflower.strategies import round_messages as wire
from wildflower.strategies.attacks.byzantine import Attack, poison, scale, sign_flip, zero
from wildflower.strategies.attacks.curious import Transcript, reused_masks, unmask
from wildflower.strategies.attacks.mods import ByzantineMod, listening, tampered
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.flower_compat.messages import assume_identity
from wildflower.strategies.round_request import RoundResult
from wildflower.strategies.trips import secure_round

STEPS = [0.25, -0.5, 1.0, 0.125, -0.25]
WEIGHTS = [10, 20, 30, 5, 1]


def lying(app: App, attack: Attack) -> App:
    mod = ByzantineMod(attack)
    return lambda message, context: mod(message, context, app)


def fleet_with(attack: Attack, **options: Any) -> Fleet:
    """Return a fleet whose last device lies."""
    rows = [FlowerApp(step, weight).app for step, weight in zip(STEPS, WEIGHTS, strict=True)]
    return Fleet([*rows[:-1], lying(rows[-1], attack)], **options)


def go(fleet: Fleet, grid: InProcessGrid | None = None) -> RoundResult:
    return secure_round(
        grid or fleet.grid,
        fleet.nodes,
        request(),
        is_gone=(grid or fleet.grid).is_gone,
        entropy=bytes(range(32)),
        ca_pem=fleet.ca.pem,
    )


HONEST = sum(step * weight for step, weight in zip(STEPS[:-1], WEIGHTS[:-1], strict=True))


@pytest.mark.parametrize(
    ("attack", "adds"),
    [(sign_flip, 0.25), (lambda u: scale(u, 8.0), -2.0), (lambda u: replace(u, weight=2.0), -0.5)],
)
def test_a_liar_behind_secure_aggregation_moves_the_sum_by_its_lie(
    attack: Attack, adds: float
) -> None:
    result = go(fleet_with(attack))
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, HONEST + adds), abs=1e-4)


def test_no_lie_moves_an_element_further_than_clip_times_the_largest_weight() -> None:
    result = go(fleet_with(lambda u: replace(scale(u, 1e9), weight=1000.0)))
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, HONEST - 4.0 * 100.0))
    assert result.total.statistics["clipped"] == LAYOUT.size


@pytest.mark.parametrize(
    "attack",
    [poison, zero, lambda u: poison(u, float("-inf")), lambda u: replace(u, weight=1e9)],
)
def test_an_update_that_would_spoil_the_sum_does_not_leave_the_device(attack: Attack) -> None:
    result = go(fleet_with(attack))
    assert result.survivors == (11, 12, 13, 14)
    assert result.total.vector == pytest.approx(np.full(LAYOUT.size, HONEST), abs=1e-4)


def test_in_plain_flower_the_same_mod_spoils_the_mean() -> None:
    rows = [FlowerApp(step).app for step in STEPS]
    apps: list[App] = [*rows[:-1], lying(rows[-1], poison)]
    nodes = dict(enumerate(apps, start=11))
    arrays = FlowerFedAvg(fraction_evaluate=0.0).start(InProcessGrid(nodes), _model(), 1).arrays
    assert np.isnan(arrays["bias"].numpy()).any()


def _model() -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in MODEL.items()})


def test_what_is_no_training_passes_the_mod() -> None:
    calls: list[str] = []
    fleet = fleet_with(lambda update: pytest.fail("no update"))
    result = secure_round(
        fleet.grid,
        fleet.nodes,
        request(),
        is_gone=fleet.grid.is_gone,
        entropy=bytes(32),
        ca_pem=fleet.ca.pem,
        evaluate_only=True,
        on_stage=calls.append,
    )
    assert len(result.survivors) == 5


def test_an_apps_error_passes_the_mod() -> None:
    def fails(message: Message, context: Context) -> Message:
        return Message(Error(5), reply_to=message)

    grid = InProcessGrid({11: lying(fails, sign_flip)})
    [reply] = grid.send_and_receive([Message(_content(), 11, "train")])
    assert reply.error.code == 5


def _content() -> RecordDict:
    return wire.model_content(LAYOUT.pack(MODEL), LAYOUT, {}, ())


def heard(fleet: Fleet, around: Callable[[App], App]) -> tuple[InProcessGrid, dict[bytes, Any]]:
    """Return the fleet behind a server that remembers, and may ask for something else."""
    transcripts: dict[bytes, Transcript] = {}
    apps = {node: around(app) for node, app in fleet.grid._apps.items()}
    return InProcessGrid(apps, watch=listening(transcripts)), transcripts


def test_a_server_that_hears_an_honest_round_can_unmask_nobody() -> None:
    fleet = fleet_with(lambda update: update)
    grid, transcripts = heard(fleet, lambda app: app)
    go(fleet, grid)
    [transcript] = transcripts.values()
    assert len(transcript.masked) == len(transcript.reveals) == 5
    attempts = [unmask(transcript, device) for device in transcript.masked]
    assert [attempt.residues for attempt in attempts] == [None] * 5
    assert reused_masks(transcript) == {}


def both_lists(fields: dict[str, Any]) -> dict[str, Any]:
    """Ask for the first of the alive as if it were dead too, as Flower's clients would answer."""
    return {**fields, "dead": fields["alive"][:32]}


def all_dead(fields: dict[str, Any]) -> dict[str, Any]:
    """Say that all but the first are dead."""
    return {**fields, "alive": fields["alive"][:32], "dead": fields["alive"][32:]}


def weaker(fields: dict[str, Any]) -> dict[str, Any]:
    """Propose other parameters to this device than to the others."""
    return {**fields, "training": f"{fields['training']}/other"}


@pytest.mark.parametrize("change", [both_lists, all_dead])
def test_a_server_that_asks_for_more_shares_gets_none(
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    fleet = fleet_with(lambda update: update)
    grid, transcripts = heard(fleet, lambda app: tampered(app, wire.UNMASK, change))
    with pytest.raises(RoundAbortedError):
        go(fleet, grid)
    [transcript] = transcripts.values()
    assert transcript.reveals == {}
    assert len(transcript.masked) == 5


def test_a_device_that_is_told_other_parameters_is_left_out() -> None:
    fleet = fleet_with(lambda update: update)
    grid, _ = heard(fleet, lambda app: app)
    grid._apps[12] = tampered(grid._apps[12], wire.ADVERTISE, weaker)
    assert go(fleet, grid).survivors == (11, 13, 14, 15)


def test_other_messages_are_not_tampered_with_nor_heard() -> None:
    transcripts: dict[bytes, Transcript] = {}
    app = tampered(lambda m, _: Message(m.content, reply_to=m), "query", lambda f: {"kind": "x"})
    grid = InProcessGrid({11: app}, watch=listening(transcripts))
    for kind, fields in [("query", None), ("train", {"kind": "params"}), ("query", {"kind": "y"})]:
        content = _content()
        if fields is not None:
            content["secagg"] = ConfigRecord(dict(fields))
        [reply] = grid.send_and_receive([Message(content, 11, kind)])
        found = reply.content.config_records.get("secagg")
        assert (found and dict(found)) == ({"kind": "x"} if fields and kind == "query" else fields)
    assert transcripts == {}


VALUES = st.one_of(st.integers(-3, 3), st.binary(max_size=40), st.text(max_size=4))
NAMES = st.sampled_from(["version", "kind", "session", "device", "keys", "residues", "alive"])
KINDS = st.sampled_from(["params", "advertisement", "roster", "delivery", "masked", "reveal"])


@given(st.dictionaries(NAMES, VALUES, max_size=7), KINDS, st.booleans())
def test_a_listener_hears_any_message_without_harm(
    fields: dict[str, Any], kind: str, is_kind: bool
) -> None:
    transcripts: dict[bytes, Transcript] = {}
    assume_identity()
    own: dict[str, Any] = {"version": 1, "kind": kind, "session": bytes(32)} if is_kind else {}
    content = RecordDict({"secagg": ConfigRecord({**fields, **own})})
    listening(transcripts)(Message(content, 11, "train"))
    assert transcripts == {}
