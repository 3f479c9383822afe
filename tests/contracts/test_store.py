"""What every store promises, over memory, a SQLite file and a private PostgreSQL."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wildflower.server.errors import StartError, StoreError
from wildflower.server.memory import MemoryStore
from wildflower.server.records import (
    Artifact,
    Device,
    Event,
    JoinToken,
    Line,
    Model,
    PrivacyEntry,
    Record,
    ReleaseRecord,
    Report,
    Rollout,
    Round,
    StoredSummary,
    Training,
)
from wildflower.server.sql import SqlStore, query
from wildflower.server.store import Store
from wildflower.server.tables import EVENTS, METADATA, TABLES

NOW = datetime(2026, 11, 24, 8, 0, 0, 123456, tzinfo=UTC)
TOKEN = JoinToken("t1", "5ec1e7", NOW + timedelta(hours=1), uses_left=2, ring="default")
DEVICE = Device(
    device_id="d1",
    name="büro",
    public_key="PUBLIC",
    certificate="CERT",
    device_class="linux-generic",
    ring="default",
    node_id=2**64 - 1,
    self_report=b"{\x00\xff}",
    enrolled_at=NOW,
    last_seen=NOW,
)
TRAINING = Training(
    "tr1", "app:task", 3, True, {"quorum": 2.5, "mode": "x"}, "running", "", 2**63, NOW
)
ROUND = Round(
    "tr1/1", "tr1", 1, "recorded", "", ("d1", "d2"), (), "m", {"accuracy": 0.1}, b"s", NOW, NOW
)
EXAMPLES: dict[str, Record] = {
    "token": TOKEN,
    "device": DEVICE,
    "training": TRAINING,
    "round": ROUND,
    "model": Model("m", "digits", "app:task", "tr1", 3, {"loss": 1e-300}, NOW),
    "artifact": Artifact("a", "m", "linux-generic", "fp32", "model.ort", 2**31, "g", True, NOW),
    "line": Line("m", "built", "", b"\x00", NOW),
    "release": ReleaseRecord("r", "p", "auto", "digits", "digits.x", "x", 1, "a", "m", NOW),
    "rollout": Rollout("ro", ("r", "r2"), "running", "", b"", NOW),
    "report": Report("d1/1", "d1", 1, "committed", "ro", "r", "a", "", b"doc", b"sig", NOW),
    "summary": StoredSummary("d1/s/1", "d1", "s", 2**53, "a", "b", b"payload", NOW),
    "privacy": PrivacyEntry(
        *("tr1/1", "training", "device", "add-remove", 1e-15, {"noise_multiplier": 0.1}),
        *(50, 10**12, "tr1", NOW),
    ),
}
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
NO_POSTGRES = "PostgreSQL NOT TESTED: no server binaries; apt-get install postgresql"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Run a PostgreSQL of our own, as a user that is not root, which it refuses to run as."""
    if not BINARIES:
        pytest.skip(NO_POSTGRES)
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    binaries, port = BINARIES[-1], free_port()
    with TemporaryDirectory(prefix="wf-pg-") as name:
        home = Path(name)
        if prefix:
            shutil.chown(home, "postgres")

        def call(*command: str) -> None:
            subprocess.run([*prefix, *command], check=True, cwd="/", capture_output=True)

        data = str(home / "data")
        call(str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", "wild", "--no-sync")
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = str(binaries / "pg_ctl")
        call(control, "-D", data, "-w", "-l", str(home / "log"), "-o", options, "start")
        try:
            yield f"postgresql://wild@127.0.0.1:{port}"
        finally:
            call(control, "-D", data, "-w", "-m", "immediate", "stop")


def database(server: str) -> str:
    """Make a database of its own on the cluster; return its URL."""
    name = f"wild_{uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def sql_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a fresh database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/wild.db"
    return database(request.getfixturevalue("cluster"))


@pytest.fixture(scope="session")
def reused(cluster: str) -> Iterator[SqlStore]:
    """One migrated store on PostgreSQL: making one per test takes most of the suite's time."""
    with SqlStore.open(database(cluster)) as opened:
        yield opened


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "sqlite":
        with SqlStore.open(f"sqlite:///{tmp_path}/wild.db") as opened:
            yield opened
    else:
        kept: SqlStore = request.getfixturevalue("reused")
        names = ", ".join(f'"{name}"' for name in METADATA.tables)
        with kept._writing() as connection:
            connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY"))
        yield kept


@pytest.mark.parametrize("record", EXAMPLES.values(), ids=EXAMPLES)
def test_what_is_put_is_what_is_got(store: Store, record: Record) -> None:
    store.put(record)
    assert store.get(type(record), getattr(record, record.KEY)) == record
    assert store.all(type(record)) == [record]


def test_times_come_back_in_utc(store: Store) -> None:
    elsewhere = NOW.astimezone(tz=datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    store.put(replace(DEVICE, last_seen=elsewhere))
    found = store.get(Device, "d1")
    assert found is not None
    assert found.last_seen == NOW


def test_a_missing_record_is_none(store: Store) -> None:
    assert store.get(Device, "nobody") is None
    assert store.all(Device) == []
    assert store.change(Device, "nobody", running="a", events=[event("lost")]) is None
    assert store.events() == []


def test_replacing_keeps_the_place_in_the_order(store: Store) -> None:
    store.put(*(replace(DEVICE, device_id=name) for name in ("c", "a", "b")))
    store.put(replace(DEVICE, device_id="c", ring="new"))
    assert [device.device_id for device in store.all(Device)] == ["c", "a", "b"]
    assert store.all(Device)[0].ring == "new"


def test_the_last_of_two_records_with_one_key_wins(store: Store) -> None:
    store.put(replace(DEVICE, ring="one"), TOKEN, replace(DEVICE, ring="two"))
    assert [device.ring for device in store.all(Device)] == ["two"]


def test_all_returns_only_what_equals_every_field(store: Store) -> None:
    here = replace(DEVICE, device_id="here", ring="home", node_id=7)
    away = replace(DEVICE, device_id="away", ring="field", node_id=7, revoked=True)
    store.put(here, away, ROUND)
    assert store.all(Device, ring="home") == [here]
    assert store.all(Device, node_id=7) == [here, away]
    assert store.all(Device, node_id=7, revoked=True) == [away]
    assert store.all(Device, node_id=2**64 - 1) == []
    assert store.all(Round, cohort=("d1", "d2"), metrics={"accuracy": 0.1}) == [ROUND]


def test_all_finds_what_has_not_ended(store: Store) -> None:
    store.put(TRAINING, replace(TRAINING, training_id="tr2", finished_at=NOW))
    assert store.all(Training, finished_at=None) == [TRAINING]


def test_an_unknown_field_is_our_own_mistake(store: Store) -> None:
    with pytest.raises(ValueError, match="Device has no field colour"):
        store.all(Device, colour="red")
    with pytest.raises(ValueError, match="Device has no field colour"):
        store.change(Device, "d1", colour="red")


def test_adding_leaves_what_is_known_as_it_is(store: Store) -> None:
    report = EXAMPLES["report"]
    assert isinstance(report, Report)
    assert store.add(report, replace(report, report_id="d1/2")) == ["d1/1", "d1/2"]
    replay = replace(report, reason="changed")
    twice = replace(report, report_id="d1/0")
    assert store.add(replay, twice, twice, EXAMPLES["model"]) == ["d1/0", "m"]
    assert store.get(Report, "d1/1") == report
    assert [found.report_id for found in store.all(Report)] == ["d1/1", "d1/2", "d1/0"]


def test_nothing_is_put_by_an_empty_call(store: Store) -> None:
    store.put()
    assert store.add() == []
    assert store.events() == []


def test_a_change_touches_only_its_fields(store: Store) -> None:
    store.put(DEVICE)
    store.put(replace(DEVICE, revoked=True))
    changed = store.change(Device, "d1", ROUND, events=[event("seen")], running="a")
    assert changed == replace(DEVICE, revoked=True, running="a") == store.get(Device, "d1")
    assert store.get(Round, "tr1/1") == ROUND
    assert [found.kind for found in store.events()] == ["seen"]
    assert store.change(Device, "d1") == changed


def test_changes_of_two_threads_do_not_undo_each_other(store: Store) -> None:
    store.put(DEVICE)
    changes: list[dict[str, object]] = [
        {"running": "a"},
        {"revoked": True},
        {"ring": "r"},
        {"node_id": 5},
    ]
    in_threads(*(lambda fields=fields: store.change(Device, "d1", **fields) for fields in changes))
    expected = replace(DEVICE, running="a", revoked=True, ring="r", node_id=5)
    assert store.get(Device, "d1") == expected


def event(kind: str, **found: str | int | float | bool) -> Event:
    return Event(0, kind, "subject", found, NOW)


def in_threads(*work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_events_are_numbered_from_one_without_gaps(store: Store) -> None:
    store.put(events=[event("a", n=1, ok=True, share=0.5, why="x"), event("b")])
    store.put(DEVICE, events=[event("c")])
    assert [(found.number, found.kind) for found in store.events()] == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
    ]
    assert store.events()[0].fields == {"n": 1, "ok": True, "share": 0.5, "why": "x"}
    assert store.events()[0].at == NOW
    assert [found.kind for found in store.events(after=1)] == ["b", "c"]
    assert [found.kind for found in store.events(after=1, limit=1)] == ["b"]
    assert store.events(after=3) == []


def test_writers_in_many_threads_leave_no_gap(store: Store) -> None:
    def write() -> None:
        for _ in range(5):
            store.put(events=[event("one"), event("two")])

    in_threads(*[write] * 4)
    assert [found.number for found in store.events()] == list(range(1, 41))
    assert [found.kind for found in store.events()] == ["one", "two"] * 20


def test_a_token_is_spent_as_often_as_it_has_uses(store: Store) -> None:
    store.put(TOKEN)
    assert store.spend("t1", NOW) == replace(TOKEN, uses_left=1)
    assert store.spend("t1", NOW) == replace(TOKEN, uses_left=0)
    assert store.spend("t1", NOW) is None
    assert store.get(JoinToken, "t1") == replace(TOKEN, uses_left=0)


def test_an_expired_or_unknown_token_is_not_spent(store: Store) -> None:
    store.put(TOKEN)
    assert store.spend("t1", TOKEN.expires_at) is None
    assert store.spend("t2", NOW) is None
    assert store.spend("t1", TOKEN.expires_at - timedelta(microseconds=1)) is not None


def test_one_use_is_never_spent_twice(store: Store) -> None:
    store.put(replace(TOKEN, uses_left=3))
    spent: list[JoinToken | None] = []
    in_threads(*[lambda: spent.append(store.spend("t1", NOW))] * 8)
    assert sorted(token.uses_left for token in spent if token) == [0, 1, 2]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False),
        max_size=4,
    ),
    blob=st.binary(max_size=20),
)
def test_structures_and_bytes_survive(store: Store, values: dict[str, float], blob: bytes) -> None:
    stored = replace(ROUND, metrics=values, cohort=tuple(values), state=blob)
    store.put(stored)
    assert store.get(Round, "tr1/1") == stored


# What only a database can show ---------------------------------------------------------------


def test_everything_is_there_after_a_restart(sql_url: str) -> None:
    with SqlStore.open(sql_url) as first:
        first.put(*EXAMPLES.values(), events=[event("before")])
    with SqlStore.open(sql_url) as second:
        for record in EXAMPLES.values():
            assert second.all(type(record)) == [record]
        second.put(events=[event("after")])
        assert [(found.number, found.kind) for found in second.events()] == [
            (1, "before"),
            (2, "after"),
        ]


def test_migrations_make_exactly_the_tables(sql_url: str) -> None:
    SqlStore.open(sql_url).close()
    engine = engine_of(sql_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def engine_of(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def test_two_processes_that_write_at_once_leave_no_gap(sql_url: str) -> None:
    with SqlStore.open(sql_url) as first, SqlStore.open(sql_url) as second:
        first.put(replace(TOKEN, uses_left=10))

        def write(store: SqlStore) -> None:
            for _ in range(10):
                store.put(events=[event("one")])
                store.spend("t1", NOW)

        in_threads(lambda: write(first), lambda: write(second))
        assert [found.number for found in first.events()] == list(range(1, 21))
        token = second.get(JoinToken, "t1")
    assert token is not None
    assert token.uses_left == 0


WRITING = """
import sys
from datetime import datetime, timezone
from wildflower.server.records import Event
from wildflower.server.sql import SqlStore
store = SqlStore.open(sys.argv[1])
for number in range(1, 1_000_000):
    store.put(events=[Event(0, "a", str(number), {}, datetime.now(timezone.utc))] * 3)
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(sql_url: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITING, sql_url], stdout=subprocess.PIPE)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(20)][-1]
    child.kill()
    child.communicate()
    with SqlStore.open(sql_url) as store:
        found = store.events()
    assert len(found) >= 3 * acknowledged
    assert len(found) % 3 == 0  # each transaction whole
    assert [one.number for one in found] == list(range(1, len(found) + 1))


def test_a_write_that_fails_leaves_nothing(sql_url: str) -> None:
    with SqlStore.open(sql_url) as store:
        broken = replace(TRAINING, created_at=NOW.replace(tzinfo=None))
        with pytest.raises(ValueError, match="without a zone"):
            store.put(DEVICE, broken, events=[event("lost")])
        assert store.all(Device) == []
        assert store.events() == []


def test_a_change_and_its_event_are_one_transaction(sql_url: str) -> None:
    with SqlStore.open(sql_url) as store:
        store.put(DEVICE)
        lost = Event(0, "lost", "subject", {}, NOW.replace(tzinfo=None))
        with pytest.raises(ValueError, match="without a zone"):
            store.change(Device, "d1", ROUND, events=[lost], running="a")
        assert store.get(Device, "d1") == DEVICE
        assert store.get(Round, "tr1/1") is None


def test_a_database_of_a_newer_version_is_left_alone(sql_url: str) -> None:
    SqlStore.open(sql_url).close()
    engine = engine_of(sql_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StartError, match="does not fit this version") as caught:
        SqlStore.open(sql_url)
    assert "newer" in caught.value.hint


def test_a_database_that_fails_later_says_so(sql_url: str) -> None:
    with SqlStore.open(sql_url) as store:
        engine = engine_of(sql_url)
        with engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE device"))
        engine.dispose()
        with pytest.raises(StoreError, match="the database failed") as caught:
            store.put(DEVICE)
        assert "CERT" not in str(caught.value)
        with pytest.raises(StoreError):
            store.all(Device)


def test_a_database_that_is_not_there_says_so(tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/missing/wild.db"
    with pytest.raises(StartError, match="cannot be opened") as caught:
        SqlStore.open(nowhere)
    assert "server.toml" in caught.value.hint
    port = free_port()
    with pytest.raises(StartError, match="cannot be opened") as caught:
        SqlStore.open(f"postgresql://wild:sesame@127.0.0.1:{port}/wild")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "found"), [("mysql://x/y", "mysql is not supported"), ("wild.db", "not a database")]
)
def test_another_kind_of_database_is_refused(wrong: str, found: str) -> None:
    with pytest.raises(StartError, match=found):
        SqlStore.open(wrong)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StartError, match="psycopg is missing") as caught:
        SqlStore.open("postgresql://wild@127.0.0.1/wild")
    assert caught.value.hint == "pip install 'wildflower[postgres]'"


def test_acknowledged_writes_are_on_disk(tmp_path: Path) -> None:
    with SqlStore.open(f"sqlite:///{tmp_path}/wild.db") as store, store._reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


INDEXED = [
    (kind, column.name)
    for kind, table in TABLES.items()
    for column in table.c
    if column.index or column.unique
]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[sa.Select[Any]], str]]:
    """Return a function that asks SQLite how it would answer a statement."""
    url = f"sqlite:///{tmp_path_factory.mktemp('plan')}/wild.db"
    SqlStore.open(url).close()
    engine = engine_of(url)

    def plan(statement: sa.Select[Any]) -> str:
        literal = statement.compile(engine, compile_kwargs={"literal_binds": True})
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {literal}").all()
        return "; ".join(str(row[-1]) for row in rows)

    yield plan
    engine.dispose()


@pytest.mark.parametrize(
    ("kind", "column"), INDEXED, ids=[f"{kind.__name__}-{column}" for kind, column in INDEXED]
)
def test_asking_by_an_indexed_field_reads_no_whole_table(
    planner: Callable[[sa.Select[Any]], str], kind: type[Record], column: str
) -> None:
    plan = planner(query(kind, {column: 1 if column == "node_id" else "x"}))
    assert "USING INDEX" in plan
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan  # no sorting either


def test_reading_on_in_the_events_reads_no_whole_table(
    planner: Callable[[sa.Select[Any]], str],
) -> None:
    later = sa.select(EVENTS).where(EVENTS.c.number > 5).order_by(EVENTS.c.number).limit(10)
    assert "USING INTEGER PRIMARY KEY" in planner(later)


def test_every_field_has_its_column() -> None:
    assert set(TABLES) == {type(record) for record in EXAMPLES.values()}
    for record in EXAMPLES.values():
        names = [column.name for column in TABLES[type(record)].c]
        assert names == ["position", *(field.name for field in fields(record))]
    assert [column.name for column in EVENTS.c] == [field.name for field in fields(Event)]
