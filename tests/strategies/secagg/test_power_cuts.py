"""Cut a device's power at every point of a session, and look at all the bytes it ever sent.

The server is of the worst kind that the protocol allows: it asks everything again after each cut,
and once more although it has its answer, in the hope of two answers that it could subtract.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum, unique
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.secagg_cases import BITS
from tests.secagg_fakes import NOW, Play, entropy_of, make_params

from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Update
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Encoding
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.messages import (
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)
from wildflower.strategies.secagg.protection import SecAgg
from wildflower.strategies.secagg.sessions import KEEP_S, DirectorySessions

SAVES = 5  # of a session without cuts: keys, shares, opened shares, mask, reveal
SIZE = 6


class PowerCutError(Exception):
    """The power went."""


@unique
class When(StrEnum):
    """Where in a save the power goes."""

    BEFORE = "before"
    DRAFT = "draft"
    AFTER = "after"


Cuts = dict[int, When]


@dataclass
class Disk:
    """A device's directory of sessions; the power goes at the saves that `cuts` names, from 1."""

    directory: Path
    cuts: Cuts
    saves: int = 0

    def __post_init__(self) -> None:
        self._sessions = DirectorySessions(self.directory)
        self.load, self.erase = self._sessions.load, self._sessions.erase
        self.sessions: Callable[[], Iterator[tuple[bytes, datetime]]] = self._sessions.sessions

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        self.saves += 1
        match self.cuts.get(self.saves):
            case None:
                self._sessions.save(session, state, now=now)
                return
            case When.DRAFT:
                (self.directory / f"{session.hex()}.draft").write_bytes(state[:-1])
            case When.AFTER:
                self._sessions.save(session, state, now=now)
            case When.BEFORE:
                pass
        raise PowerCutError


@dataclass
class Seat:
    """One client of a play whose device loses power.

    Attributes:
        directory: Where the device keeps its sessions.
        cuts: At which saves the power goes.
        dark_trainings: How many trainings the power goes in.
        sent: Everything that ever left the device.
        updates: What it trained; each training gives another update.
        starts: How often the device was started.
        stays_dark: Whether it stays off after a cut.
    """

    play: Play
    directory: Path
    cuts: Cuts
    dark_trainings: int = 0
    sent: list[Any] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    starts: int = 0
    stays_dark: bool = False

    def __post_init__(self) -> None:
        self.device = min(self.play.devices)
        self.disk = Disk(self.directory, self.cuts)
        self.start()

    def start(self) -> None:
        """Start the device, with entropy that was never used before."""
        self.starts += 1
        draws = itertools.count()
        self.protection = SecAgg(
            self.play.devices[self.device],
            self.play.authority.certificate,
            self.disk,
            now=lambda: NOW,
            entropy=lambda _, start=self.starts: entropy_of("device", start, next(draws)),  # type: ignore[misc]  # a default argument
        )

    def train(self, encoding: SumEncoding) -> Update:
        number = len(self.updates) + 1
        vector = np.full(encoding.size, number / 16, np.float32)
        self.updates.append(Update(vector, 8.0, {"loss": float(number)}))
        if self.dark_trainings > 0:
            self.dark_trainings -= 1
            raise PowerCutError
        return self.updates[-1]

    def ask(self, kind: str, request: Any) -> Any:
        """Ask until there is an answer; then once more, which changes nothing."""
        first: Any = self._ask(kind, request)
        assert self._ask(kind, request).to_fields() == first.to_fields()
        return first

    def _ask(self, kind: str, request: Any) -> Any:
        while True:
            try:
                answer: Any = self.protection.answer(kind, request.to_fields(), self.train)
            except PowerCutError:
                if self.stays_dark:
                    raise
                self.start()
                continue
            self.sent.append(answer)
            return answer

    def bytes_of(self, kind: type) -> set[bytes]:
        """Return the different messages of a kind that ever left the device."""
        found: list[Any] = [each for each in self.sent if type(each) is kind]
        return {flat.to_bytes(each.to_fields()) for each in found}


def play_through(play: Play, seat: Seat) -> np.ndarray[Any, Any]:
    """Go through the session, the seat's device answering for itself."""
    device = seat.device
    play.silent = {device}
    play.reply(device, seat.ask(wire.ADVERTISE, play.params))
    rosters = play.advertise()
    play.reply(device, seat.ask(wire.SHARE, rosters[device]))
    deliveries = play.share(rosters)
    play.reply(device, seat.ask(wire.TRAIN, deliveries[device]))
    requests = play.mask(deliveries)
    play.reply(device, seat.ask(wire.UNMASK, requests[device]))
    return play.unmask(requests)


def seated(directory: Path, cuts: Cuts, *, bits: int = 32, dark_trainings: int = 0) -> Seat:
    play = Play(make_params(4, size=SIZE, bits=bits))
    return Seat(play, directory, cuts, dark_trainings)


def check(seat: Seat) -> None:
    """Play a session and look at what left the device."""
    total = play_through(seat.play, seat)
    for kind in (Shares, Masked, Reveal):
        assert len(seat.bytes_of(kind)) == 1
    encoding = seat.play.params.encoding
    assert isinstance(encoding, Encoding)
    without = sum(
        (row for device, row in seat.play.updates.items() if device != seat.device),
        np.zeros(encoding.length, encoding.dtype),
    )
    own = encoding.decode((total - without).astype(encoding.dtype), 1)
    # one update is in the sum, whole: the last one that was trained
    assert own.statistics["loss"] == seat.updates[-1].statistics["loss"]
    assert own.weight == 8.0
    expected = 8.0 * seat.updates[-1].vector[0]
    assert own.vector == pytest.approx(np.full(SIZE, expected), abs=encoding.quantum)


@pytest.mark.parametrize("bits", BITS)
def test_without_a_cut_there_is_one_training_and_one_answer_to_each_request(
    tmp_path: Path, bits: int
) -> None:
    seat = seated(tmp_path, {}, bits=bits)
    check(seat)
    assert (seat.disk.saves, seat.starts, len(seat.updates)) == (SAVES, 1, 1)


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("save", range(1, SAVES + 1))
def test_a_cut_at_any_save_lets_no_second_answer_out(tmp_path: Path, save: int, when: When) -> None:
    seat = seated(tmp_path, {save: when})
    check(seat)
    assert seat.starts == 2


@pytest.mark.parametrize("bits", BITS)
def test_a_cut_while_training_lets_no_second_answer_out(tmp_path: Path, bits: int) -> None:
    seat = seated(tmp_path, {}, bits=bits, dark_trainings=2)
    check(seat)
    assert (seat.starts, len(seat.updates)) == (3, 3)


PAIRS = [
    dict(zip(saves, whens, strict=True))
    for saves in itertools.combinations(range(1, SAVES + 1), 2)
    for whens in itertools.product(When, repeat=2)
]


@pytest.mark.slow
@pytest.mark.parametrize("cuts", PAIRS, ids=str)
def test_two_cuts_let_no_second_answer_out(tmp_path: Path, cuts: Cuts) -> None:
    check(seated(tmp_path, cuts, dark_trainings=1))


def test_a_cut_at_every_single_save_lets_no_second_answer_out(tmp_path: Path) -> None:
    # the second of each pair takes effect, so that the session goes on at all
    cuts = {save: (When.DRAFT, When.AFTER)[save % 2 == 0] for save in range(1, 40)}
    seat = seated(tmp_path, cuts, dark_trainings=1)
    check(seat)
    assert seat.starts > SAVES


def asked_differently(seat: Seat) -> dict[str, tuple[str, Any]]:
    """Return, for each request of a finished session, one that differs a little."""
    play, device = seat.play, seat.device
    params = play.params
    session = play.session
    requests = session._requests[device]
    others = [each for each in play.devices if each != device]
    return {
        "a lower threshold": (
            wire.ADVERTISE,
            SessionParams(params.session, "t1", 2, 3, 3, params.encoding),
        ),
        "another roster": (
            wire.SHARE,
            Roster(params.session, tuple(session._advertised[each] for each in sorted(others)[:2])),
        ),
        "another delivery": (
            wire.TRAIN,
            Delivery(params.session, {each: bytes(94) for each in others[:2]}),
        ),
        "another list of the dead": (
            wire.UNMASK,
            UnmaskRequest(
                params.session,
                tuple(sorted({device, *requests.alive[:2]})),
                tuple(sorted(set(others) - set(requests.alive[:2]))),
            ),
        ),
    }


@pytest.mark.parametrize(
    "how", ["a lower threshold", "another roster", "another delivery", "another list of the dead"]
)
def test_what_is_asked_differently_after_a_restart_is_refused(tmp_path: Path, how: str) -> None:
    seat = seated(tmp_path, {})
    play_through(seat.play, seat)
    seat.start()
    kind, request = asked_differently(seat)[how]
    before = len(seat.sent)
    with pytest.raises(ProtocolError, match=r"a second, different|parameters of the session"):
        seat.ask(kind, request)
    assert len(seat.sent) == before


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("save", range(1, SAVES + 1))
def test_nothing_of_a_session_is_left_when_the_training_ends(
    tmp_path: Path, save: int, when: When
) -> None:
    seat = seated(tmp_path, {save: when})
    seat.stays_dark = True
    with pytest.raises(PowerCutError):
        play_through(seat.play, seat)
    seat.protection.end_all()
    assert files(tmp_path) == []


@pytest.mark.parametrize("when", list(When))
def test_a_session_that_nobody_ended_is_erased_by_the_next_one_after_an_hour(
    tmp_path: Path, when: When
) -> None:
    seat = seated(tmp_path, {2: when})
    play_through(seat.play, seat)
    (tmp_path / f"{bytes(31).hex()}77.draft").write_bytes(b"a draft of a session that was cut off")
    late = NOW + timedelta(seconds=KEEP_S + 1)
    protection = SecAgg(
        seat.play.devices[seat.device],
        seat.play.authority.certificate,
        DirectorySessions(tmp_path),
        now=lambda: late,
    )
    session = b"n" * 32
    params = make_params(4, session=session)
    other = SessionParams(
        session, "another training", 1, params.threshold, params.degree, params.encoding
    )
    protection.answer(wire.ADVERTISE, other.to_fields(), seat.train)
    assert files(tmp_path) == [f"{session.hex()}.session"]
