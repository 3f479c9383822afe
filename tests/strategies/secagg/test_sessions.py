"""What every store of session states promises."""

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wildflower.strategies.secagg.sessions import (
    DirectorySessions,
    MemorySessions,
    SessionStore,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture(params=["memory", "directory"])
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> SessionStore:
    stores: dict[str, Callable[[], SessionStore]] = {
        "memory": MemorySessions,
        "directory": lambda: DirectorySessions(tmp_path / "training"),
    }
    return stores[request.param]()


def test_what_was_saved_last_is_loaded(sessions: SessionStore) -> None:
    assert sessions.load(ONE) is None
    sessions.save(ONE, b"a", now=NOW)
    sessions.save(ONE, b"b", now=NOW + timedelta(seconds=5))
    sessions.save(TWO, b"c", now=NOW)
    assert (sessions.load(ONE), sessions.load(TWO)) == (b"b", b"c")
    assert dict(sessions.sessions()) == {ONE: NOW + timedelta(seconds=5), TWO: NOW}


def test_what_was_erased_is_gone(sessions: SessionStore) -> None:
    sessions.save(ONE, b"a", now=NOW)
    sessions.erase(ONE)
    sessions.erase(ONE)
    assert sessions.load(ONE) is None
    assert list(sessions.sessions()) == []


def test_files_are_for_their_owner_alone_and_outlive_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    DirectorySessions(folder).save(ONE, b"secret", now=NOW)
    assert DirectorySessions(folder).load(ONE) == b"secret"
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_power_cut_while_saving_leaves_the_old_state(tmp_path: Path) -> None:
    sessions = DirectorySessions(tmp_path)
    sessions.save(ONE, b"old", now=NOW)
    (tmp_path / f"{ONE.hex()}.draft").write_bytes(b"ne")  # as if the power had gone here
    assert sessions.load(ONE) == b"old"
    assert [session for session, _ in sessions.sessions()] == [ONE]
    sessions.erase(ONE)
    assert list(tmp_path.iterdir()) == []


def test_a_draft_without_a_state_can_be_found_and_erased(tmp_path: Path) -> None:
    sessions = DirectorySessions(tmp_path)
    (tmp_path / f"{TWO.hex()}.draft").write_bytes(b"se")
    (found,) = [session for session, _ in sessions.sessions()]
    assert (found, sessions.load(found)) == (TWO, None)
    sessions.erase(found)
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_directory_are_no_sessions(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("7")
    (tmp_path / "zz.session").write_text("7")
    assert list(DirectorySessions(tmp_path).sessions()) == []
