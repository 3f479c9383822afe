"""The journal: what a device must not forget, whatever the disk does."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.device_fakes import GROUP, NOON, manifest

from wildflower.ota.device.decision import Setback
from wildflower.ota.device.journal import KEPT, Journal
from wildflower.ota.device.machine import Phase, State
from wildflower.ota.device.report import Outcome
from wildflower.ota.errors import StorageError

STATE = State(Phase.FETCHING, manifest(2), "r2", attempt=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    found = Journal.open(path, now=NOON)
    yield found
    found.close()


def queue(journal: Journal, key: str, outcome: Outcome = Outcome.COMMITTED) -> bool:
    return journal.queue(
        key, outcome, rollout="r", release="ab", running="cd", reason="why", at=NOON
    )


def again(path: Path) -> Journal:
    return Journal.open(path, now=NOON, is_first=False)


def test_a_fresh_device_is_idle_and_knows_nothing(journal: Journal) -> None:
    assert journal.is_new
    assert (journal.load(), journal.reports(), journal.quarantined()) == (State(), [], {})
    assert (journal.highest_order(GROUP), journal.fact("seen-time")) == (0, "")


def test_what_is_saved_is_there_after_a_restart(journal: Journal, path: Path) -> None:
    journal.save(STATE)
    journal.quarantine("ab", "it failed")
    journal.raise_order(GROUP, 4)
    journal.set_fact("name", "value")
    journal.set_back("cd", 1, NOON)
    journal.close()
    later = again(path)
    assert not later.is_new
    assert later.load() == STATE
    assert later.quarantined() == {"ab": "it failed"}
    assert (later.highest_order(GROUP), later.fact("name")) == (4, "value")
    assert later.setbacks() == {"cd": Setback(1, NOON)}
    later.close()


def test_every_write_waits_for_the_disk(journal: Journal) -> None:
    found = journal._connection
    assert found.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert found.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_same_thing_is_reported_once_and_numbers_rise(journal: Journal) -> None:
    assert [queue(journal, key) for key in ("a", "b", "a")] == [True, True, False]
    first, second = journal.reports()
    assert (first.sequence, second.sequence) == (1, 2)
    assert (first.key, first.outcome, first.reason, first.at) == (
        "a",
        Outcome.COMMITTED,
        "why",
        NOON,
    )


def test_a_report_waits_until_it_is_acknowledged(journal: Journal) -> None:
    queue(journal, "a")
    queue(journal, "b")
    journal.mark_sent(1)
    assert [entry.key for entry in journal.reports(unsent=True)] == ["b"]
    assert [entry.sent for entry in journal.reports()] == [True, False]


def test_reports_that_were_sent_long_ago_are_forgotten(journal: Journal) -> None:
    queue(journal, "a")
    queue(journal, "never sent")
    journal.mark_sent(1)
    journal.mark_sent(KEPT + 1)
    assert [entry.key for entry in journal.reports()] == ["never sent"]


def test_a_setback_is_counted_once_for_each_attempt(journal: Journal) -> None:
    for attempt in (1, 1, 2):
        journal.set_back("ab", attempt, NOON + timedelta(hours=attempt))
    assert journal.setbacks() == {"ab": Setback(2, NOON + timedelta(hours=2))}
    journal.forget_setbacks("ab")
    assert journal.setbacks() == {}


def test_the_highest_order_never_falls(journal: Journal) -> None:
    for order in (3, 5, 4):
        journal.raise_order(GROUP, order)
    assert journal.highest_order(GROUP) == 5


def test_quarantine_keeps_the_first_reason(journal: Journal) -> None:
    journal.quarantine("ab", "first")
    journal.quarantine("ab", "second")
    assert journal.quarantined() == {"ab": "first"}


@pytest.mark.parametrize("damage", [b"not a database", b"", b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_torn_journal_is_set_aside_with_a_loud_log_and_begun_anew(
    path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = Journal.open(path, now=NOON)
    queue(first, "a")
    first.close()
    path.write_bytes(damage)
    later = again(path)
    assert later.load() == State()
    if damage:
        assert later.is_new
        assert path.with_suffix(".damaged").read_bytes() == damage
        assert "journal is damaged" in caplog.text
        later.recall_from([manifest(7)])
        assert later.highest_order(GROUP) == 7
    later.close()


def test_tables_that_contradict_themselves_are_damage_too(path: Path) -> None:
    Journal.open(path, now=NOON).close()
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE facts ADD COLUMN more TEXT")
        other.execute("INSERT INTO facts (name, value) VALUES ('a', 'b')")
        other.execute("PRAGMA writable_schema = ON")
        other.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'more TEXT', 'more TEXT NOT NULL')"
        )
    other.close()
    later = again(path)
    assert later.is_new
    later.close()


def test_report_numbers_after_a_loss_are_above_all_before(path: Path) -> None:
    first = Journal.open(path, now=NOON)
    queue(first, "a")
    first.close()
    path.write_bytes(b"garbage" * 100)
    later = again(path)
    queue(later, "a")
    assert later.reports()[0].sequence == int(NOON.timestamp()) + 1
    later.close()


def test_a_missing_journal_of_a_device_with_slots_counts_as_lost(path: Path) -> None:
    found = again(path)
    queue(found, "a")
    assert found.is_new
    assert found.reports()[0].sequence > 1_000_000
    found.close()


def test_a_stored_state_that_cannot_be_read_means_idle_and_keeps_counting(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue(journal, "attempt/12")
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO state VALUES (1, x'7b7d')")
    other.close()
    assert journal.load() == State(attempt=12)
    assert "cannot be read" in caplog.text


def test_a_journal_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        Journal.open(tmp_path / "none" / "journal.db", now=NOON)


def test_a_full_disk_is_told_and_the_old_state_stands(journal: Journal) -> None:
    journal.save(STATE)
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="cannot be written"):
        journal.set_fact("big", "x" * 1_000_000)
    assert journal.load() == STATE


def test_peeking_reads_beside_the_agent_and_writes_nothing(journal: Journal, path: Path) -> None:
    queue(journal, "a")
    other = Journal.peek(path)
    assert [entry.key for entry in other.reports()] == ["a"]
    with pytest.raises(StorageError, match="readonly"):
        queue(other, "b")
    other.close()


def test_peeking_never_makes_a_journal(path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Journal.peek(path)
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(StorageError, match="cannot be read"):
        Journal.peek(path)


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import State
journal = Journal.open(Path(sys.argv[1]), now=datetime.now(UTC))
for number in range(1, 10_000):
    journal.save(State(attempt=number))
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_writing_loses_nothing_that_returned(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [int(child.stdout.readline()) for _ in range(20)]
        child.kill()
        seen += [int(line) for line in child.stdout if line.endswith("\n")]
    journal = again(path)
    assert journal.load().attempt in (seen[-1], seen[-1] + 1)
    journal.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 40_000), st.binary(min_size=1, max_size=64))
def test_a_damaged_byte_anywhere_never_keeps_the_agent_from_starting(
    tmp_path_factory: pytest.TempPathFactory, place: int, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("damage") / "journal.db"
    first = Journal.open(path, now=NOON)
    first.save(STATE)
    queue(first, "a")
    first.close()
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place : place + len(noise)] = noise
    path.write_bytes(bytes(data))
    later = again(path)
    later.load()
    later.reports()
    later.setbacks()
    later.quarantined()
    later.save(STATE)
    assert later.load() == STATE
    later.close()


def test_rows_that_a_flipped_bit_made_unreadable_are_left_out(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue(journal, "attempt/1")
    queue(journal, "attempt/2")
    journal.set_back("ab", 1, NOON)
    journal.set_back("cd", 1, NOON)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE reports SET outcome = 'comm' WHERE key = 'attempt/1'")
        other.execute(
            "UPDATE reports SET key = CAST(x'617474656d70742fff' AS TEXT) WHERE sequence = 2"
        )
        other.execute("UPDATE setbacks SET at = 'noon' WHERE release = 'ab'")
        other.execute("INSERT INTO state VALUES (1, x'7b7d')")
    other.close()
    assert [entry.sequence for entry in journal.reports()] == [2]
    assert list(journal.setbacks()) == ["cd"]
    assert journal.load() == State(attempt=1)
    assert "left out" in caplog.text
