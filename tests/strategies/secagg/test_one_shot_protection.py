"""The device's side of one-shot sessions: stored before sent, once a session, only as it likes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.one_shot_fakes import make_helpers, make_one_shot_params
from tests.secagg_fakes import NOW, fleet, make_update

from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Update
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import AppFailedError, ProtocolError, StoredStateError
from wildflower.strategies.protection import Protection
from wildflower.strategies.secagg.one_shot_messages import OneShotParams
from wildflower.strategies.secagg.one_shot_protection import OneShot
from wildflower.strategies.secagg.sessions import (
    KEEP_S,
    DirectorySessions,
    MemorySessions,
    SessionStore,
)

HELPERS = make_helpers(2)
PARAMS = make_one_shot_params(HELPERS)
PINS = tuple(helper.card.digest for helper in HELPERS)


@dataclass
class Desk:
    """A device, its clock and its app."""

    store: SessionStore = field(default_factory=MemorySessions)
    helpers: tuple[str, ...] = PINS
    min_cohort: int = 3
    now: datetime = NOW
    trained: list[SumEncoding] = field(default_factory=list)

    @property
    def device(self) -> OneShot:
        return OneShot(
            fleet()[1][0], self.store, self.helpers, self.min_cohort, now=lambda: self.now
        )

    def train(self, encoding: SumEncoding) -> Update:
        self.trained.append(encoding)
        return make_update(len(self.trained), encoding.size)

    def ask(self, params: OneShotParams = PARAMS, kind: str = wire.TRAIN) -> dict[str, object]:
        return self.device.answer(kind, params.to_fields(), self.train).to_fields()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_it_is_a_protection(desk: Desk) -> None:
    protection: Protection = desk.device
    assert protection.record == "one-shot"


@pytest.mark.parametrize("kind", [wire.TRAIN, wire.EVALUATE])
def test_a_session_is_answered_once_and_told_again(desk: Desk, kind: str) -> None:
    first = desk.ask(kind=kind)
    assert desk.ask(kind=kind) == first
    assert desk.trained == [PARAMS.encoding]


def test_a_restarted_device_gives_the_same_answer(tmp_path: Path) -> None:
    first = Desk(DirectorySessions(tmp_path)).ask()
    after = Desk(DirectorySessions(tmp_path))
    assert after.ask() == first
    assert after.trained == []


class Failing(MemorySessions):
    """A disk that is full, before or after it wrote."""

    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self.after, self.fails = after, True

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        if self.after or not self.fails:
            super().save(session, state, now=now)
        if self.fails:
            raise OSError("no space left on device")


@pytest.mark.parametrize("after", [False, True])
def test_nothing_is_sent_that_was_not_stored(after: bool) -> None:
    """Killed around the store: no two masked updates of a session ever leave."""
    desk = Desk(store := Failing(after=after))
    with pytest.raises(OSError, match="no space"):
        desk.ask()
    store.fails = False
    sent = [desk.ask(), desk.ask()]
    assert sent[0] == sent[1]
    assert len(desk.trained) == (1 if after else 2)


def test_changed_parameters_are_refused_and_nothing_is_trained(desk: Desk) -> None:
    desk.ask()
    for changed in (replace(PARAMS, round=2), make_one_shot_params(HELPERS, 7)):
        with pytest.raises(ProtocolError, match="parameters of the session changed"):
            desk.ask(changed)
    assert len(desk.trained) == 1


def refusals() -> Iterator[tuple[Desk, OneShotParams, str, str]]:
    yield Desk(helpers=()), PARAMS, wire.TRAIN, "trusts no helper"
    yield Desk(helpers=PINS[:1]), PARAMS, wire.TRAIN, "the session's helpers are"
    yield Desk(min_cohort=9), PARAMS, wire.TRAIN, "this device joins 9 or more"
    yield Desk(), PARAMS, wire.ADVERTISE, "has no message"


@pytest.mark.parametrize(("desk", "params", "kind", "why"), list(refusals()))
def test_what_is_refused_costs_no_training(
    desk: Desk, params: OneShotParams, kind: str, why: str
) -> None:
    with pytest.raises(ProtocolError, match=why):
        desk.ask(params, kind)
    assert desk.trained == []
    assert list(desk.store.sessions()) == []


def test_an_app_that_fails_leaves_the_session_open(desk: Desk) -> None:
    def fails(encoding: SumEncoding) -> Update:
        raise AppFailedError("the app failed: ValueError")

    with pytest.raises(AppFailedError):
        desk.device.answer(wire.TRAIN, PARAMS.to_fields(), fails)
    assert desk.ask()["device"]


def test_only_what_was_made_here_is_said_to_be(desk: Desk) -> None:
    answer = desk.ask()
    assert desk.device.made(dict(answer))
    assert not desk.device.made({**answer, "residues": bytes(len(bytes(answer["residues"])))})  # type: ignore[call-overload]  # they are bytes
    assert not desk.device.made({**answer, "session": b"o" * 32})
    assert not desk.device.made({**answer, "session": "none"})
    desk.store.save(PARAMS.session, b"damaged", now=NOW)
    assert not desk.device.made(dict(answer))
    with pytest.raises(StoredStateError):
        desk.ask()


def named(number: int, training: str = "t1") -> OneShotParams:
    return replace(PARAMS, session=bytes([number]) * 32, training=training)


def test_a_new_session_of_a_training_replaces_its_last_one(desk: Desk) -> None:
    for params in (named(1), named(2, "t2"), named(3)):
        desk.ask(params)
    kept = {session for session, _ in desk.store.sessions()}
    assert kept == {named(2).session, named(3).session}


def test_old_and_unreadable_sessions_are_forgotten(desk: Desk) -> None:
    desk.ask(named(1, "t2"))
    desk.now += timedelta(seconds=KEEP_S + 1)
    desk.store.save(named(2).session, b"damaged", now=desk.now)
    desk.ask(named(3))
    assert [session for session, _ in desk.store.sessions()] == [named(3).session]


def test_at_the_end_everything_is_forgotten(desk: Desk) -> None:
    desk.ask(named(1, "t2"))
    desk.ask(named(2))
    desk.device.end_all()
    assert list(desk.store.sessions()) == []


def test_a_forgotten_session_that_is_replayed_gets_other_masks(desk: Desk) -> None:
    """Which gives nothing away: a helper tells one sum of one session, with one of the two."""
    first = desk.ask()
    desk.device.end_all()
    second = desk.ask()
    assert first["ephemeral"] != second["ephemeral"]
    masks = [
        np.frombuffer(bytes(each["residues"]), "<u4")  # type: ignore[call-overload]  # they are bytes
        - PARAMS.encoding.encode(make_update(number, PARAMS.encoding.size), bytes(32))
        for number, each in ((1, first), (2, second))
    ]
    assert not np.any(np.abs((masks[0] - masks[1]).view(np.int32)) < 2)
