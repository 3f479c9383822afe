"""The device's side: the pinned key holder only, one answer a session, stored before it leaves."""

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.he_fakes import IDENTITY, OTHER_IDENTITY, SESSION, invitation, make_holder

from wildflower.server.keyholder import KeyHolder
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.arrays import Update
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import (
    MissingPackageError,
    ProtocolError,
    StoredStateError,
    UpdateRefusedError,
)
from wildflower.strategies.he import trust
from wildflower.strategies.he.messages import Invitation, SumRequest, join
from wildflower.strategies.he.protection import RECORD, Homomorphic, Made
from wildflower.strategies.secagg.sessions import KEEP_S, DirectorySessions, MemorySessions

CA = SimulatedCa()
DEVICE = CA.enrol()
UPDATE = Update(np.array([0.5, -0.25, 0, 1, 0], np.float32), 10.0, {"loss": 2.0})


@pytest.fixture
def holder(tmp_path: Path) -> KeyHolder:
    return make_holder(tmp_path / "holder")


@pytest.fixture
def asked(holder: KeyHolder) -> Invitation:
    return invitation(holder.key("t1"))


class App:
    """Trains, and counts how often."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls, self._fails = 0, fails

    def __call__(self, encoding: SumEncoding) -> Update:
        self.calls += 1
        if self._fails:
            raise self._fails
        return UPDATE


def protection(sessions: object = None, **changes: object) -> Homomorphic:
    values: dict[str, object] = {
        "identity": DEVICE,
        "sessions": sessions or MemorySessions(),
        "key_holder": IDENTITY.digest,
        **changes,
    }
    return Homomorphic(**values)  # type: ignore[arg-type]  # a test's own values


def test_an_answer_is_signed_and_holds_the_update(holder: KeyHolder, asked: Invitation) -> None:
    answer = protection().answer("train", asked.to_fields(), App())
    trust.verify_update(asked, answer, ca=CA.certificate, now=datetime.now(UTC))
    encoding = asked.encoding
    request = SumRequest("t1", 1, asked.key.digest, 3, encoding.length, answer.ciphertexts)
    total = encoding.decode(holder.decrypt(request), 1)
    assert total.weight == 10.0
    assert total.statistics["loss"] == pytest.approx(2.0, abs=1e-4)
    assert total.vector == pytest.approx(UPDATE.vector.astype(np.float64) * 10, abs=0.02)


def test_a_session_is_answered_once_even_after_a_restart(asked: Invitation, tmp_path: Path) -> None:
    app, folder = App(), tmp_path / "sessions"
    first = protection(DirectorySessions(folder)).answer("train", asked.to_fields(), app)
    again = protection(DirectorySessions(folder)).answer("train", asked.to_fields(), app)
    assert again == first
    assert app.calls == 1


class PowerCut(Exception):  # noqa: N818  it is no error of ours
    """The power is cut."""


class Failing(MemorySessions):
    """A store whose power is cut before it has saved."""

    def save(self, session: bytes, state: bytes, *, now: datetime) -> None:
        raise PowerCut


def test_nothing_leaves_that_was_not_stored(asked: Invitation) -> None:
    with pytest.raises(PowerCut):
        protection(Failing()).answer("train", asked.to_fields(), App())


def test_a_session_that_asks_something_else_is_refused(asked: Invitation) -> None:
    device, app = protection(), App()
    device.answer("train", asked.to_fields(), app)
    with pytest.raises(ProtocolError, match="answered already, and asked something else"):
        device.answer("train", replace(asked, round=2).to_fields(), app)
    assert app.calls == 1


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another key holder": ({"key_holder": OTHER_IDENTITY.digest}, "pinned is"),
    "no key holder": ({"key_holder": ""}, "pinned is none"),
    "too small sums": ({"min_cohort": 4}, "this device wants 4 or more"),
    "expired": ({"now": lambda: datetime.now(UTC) + timedelta(days=31)}, "expired"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_key_that_is_not_good_enough_is_refused_before_training(
    asked: Invitation, why: str
) -> None:
    changes, told = REFUSED[why]
    app = App()
    with pytest.raises(ProtocolError, match=told):
        protection(**changes).answer("train", asked.to_fields(), app)
    assert app.calls == 0


def test_a_device_without_tenseal_refuses_before_training(
    asked: Invitation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)  # as if it was not installed
    app = App()
    with pytest.raises(MissingPackageError, match="tenseal, which is not installed"):
        protection().answer("train", asked.to_fields(), app)
    assert app.calls == 0


def test_a_cohort_that_is_too_small_is_refused(asked: Invitation) -> None:
    key = trust.make_key(
        "t1",
        asked.key.context,
        min_cohort=5,
        expires=asked.key.expires,
        identity=IDENTITY.public_der,
        sign=IDENTITY.sign,
    )
    with pytest.raises(ProtocolError, match="a cohort of 3, this device wants 5"):
        protection(min_cohort=5).answer("train", replace(asked, key=key).to_fields(), App())


def test_an_app_that_fails_leaves_no_answer_and_may_be_asked_again(asked: Invitation) -> None:
    sessions = MemorySessions()
    with pytest.raises(UpdateRefusedError):
        protection(sessions).answer("train", asked.to_fields(), App(UpdateRefusedError("NaN")))
    assert list(sessions.sessions()) == []
    assert protection(sessions).answer("train", asked.to_fields(), App()).session == SESSION


def test_only_what_was_stored_counts_as_made_here(asked: Invitation) -> None:
    device = protection()
    fields = device.answer("train", asked.to_fields(), App()).to_fields()
    assert device.record == RECORD
    assert device.made(fields)
    assert not device.made({**fields, "ciphertexts": [b"other"]})
    assert not device.made({**fields, "more": 1})
    assert not device.made({**fields, "session": bytes(32)})
    assert not device.made({})


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"noise",
        join({"run": "t1"}, ()),
        "no run",
        "no invitation",
    ],
)
def test_a_damaged_store_is_no_answer(asked: Invitation, stored: bytes | str) -> None:
    sessions = MemorySessions()
    fields = protection(sessions).answer("train", asked.to_fields(), App()).to_fields()
    if isinstance(stored, str):
        made = {"run": "t1", "invitation": bytes(32), **fields}
        parts = made.pop("ciphertexts")
        del made[stored.split()[1]]
        stored = join(made, parts)
    sessions.save(SESSION, stored, now=datetime.now(UTC))
    assert not protection(sessions).made(fields)
    with pytest.raises(StoredStateError):
        protection(sessions).answer("train", asked.to_fields(), App())


def test_a_stored_answer_is_read_as_it_was_written(asked: Invitation) -> None:
    sessions = MemorySessions()
    answer = protection(sessions).answer("train", asked.to_fields(), App())
    made = Made("t1", asked.digest, answer)
    assert sessions.load(SESSION) == made.to_bytes()
    assert Made.from_bytes(made.to_bytes()) == made


def test_a_new_session_forgets_those_of_its_run_and_old_and_damaged_ones(
    holder: KeyHolder, asked: Invitation
) -> None:
    sessions, now = MemorySessions(), datetime.now(UTC)
    other = invitation(holder.key("t2"), session=b"2" * 32)
    newer = invitation(asked.key, session=b"3" * 32, number=2)
    device = protection(sessions)
    device.answer("train", asked.to_fields(), App())
    device.answer("train", other.to_fields(), App())
    sessions.save(b"4" * 32, b"damaged", now=now)
    device.answer("train", newer.to_fields(), App())
    assert {session for session, _ in sessions.sessions()} == {b"2" * 32, b"3" * 32}
    later = protection(sessions, now=lambda: now + timedelta(seconds=KEEP_S + 60))
    later.answer("train", invitation(asked.key, session=b"5" * 32).to_fields(), App())
    assert {session for session, _ in sessions.sessions()} == {b"5" * 32}
    device.end_all()
    assert list(sessions.sessions()) == []
