"""The store in SQLite or PostgreSQL.

Every write is one transaction and durable when the call returns: SQLite runs in WAL mode with
synchronous=FULL, because devices delete what we acknowledged. Writes take turns, in this process
by a lock, between processes by the database's (BEGIN IMMEDIATE, an advisory lock): events are
numbered without gaps, so a reader who remembers the last number it saw misses none.

    with SqlStore.open("sqlite:////srv/wildflower/wildflower.db") as store: ...
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event as hooks
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError, StatementError

from wildflower.server.errors import StartError, StoreError
from wildflower.server.records import Event, JoinToken, Record
from wildflower.server.tables import EVENTS, TABLES

R = TypeVar("R", bound=Record)
BUSY_MS: Final = 30_000  # a backup may hold SQLite's lock for seconds; nothing of ours does
WRITE_LOCK: Final = 0x77696C64  # "wild": PostgreSQL's advisory locks are numbered
MIGRATIONS: Final = Path(__file__).parent / "migrations"


class SqlStore:
    """`server.store.Store` over a SQL database. `open` brings its tables up to date first."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database and bring its tables up to date.

        Args:
            url: Such as `sqlite:////srv/wildflower.db` or `postgresql://user@host/name`.

        Raises:
            StartError: The URL is of no supported kind, the database cannot be reached, or a
                newer version of Wildflower has written it.
        """
        engine = _engine(url)
        try:
            with engine.connect().execution_options(writes=True) as connection, connection.begin():
                _migrate(connection)
        except CommandError as error:
            engine.dispose()
            raise StartError(
                f"the database {engine.url!r} does not fit this version: {error}",
                hint="Run the version of Wildflower that wrote it, or a newer one.",
            ) from error
        except SQLAlchemyError as error:
            engine.dispose()
            raise StartError(
                f"the database {engine.url!r} cannot be opened: {_cause(error)}",
                hint="Check `database` in server.toml and that the database runs.",
            ) from error
        return cls(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def put(self, *records: Record, events: Sequence[Event] = ()) -> None:
        """Insert or replace records by key, and append events, atomically and durably."""
        with self._writing() as connection:
            self._put(connection, records, events)

    def add(self, *records: Record) -> list[str]:
        """Insert the records whose keys are new; return the keys that were, in order."""
        new: list[str] = []
        with self._writing() as connection:
            for kind, rows in _rows(records):
                table = TABLES[kind]
                insert = self._insert(table).on_conflict_do_nothing().returning(table.c[kind.KEY])
                inserted = set(connection.scalars(insert, rows))
                keys = dict.fromkeys(row[kind.KEY] for row in rows)
                new += [key for key in keys if key in inserted]
        return new

    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of a kind with this key, or None."""
        table = TABLES[kind]
        with self._reading() as connection:
            row = connection.execute(_select(table).where(table.c[kind.KEY] == key)).first()
        return None if row is None else _record(kind, row)

    def change(
        self, kind: type[R], key: str, *also: Record, events: Sequence[Event] = (), **fields: object
    ) -> R | None:
        """Set some fields of one record, leaving its others; return what is stored now."""
        table = TABLES[kind]
        _check(kind, fields)
        where = table.c[kind.KEY] == key
        with self._writing() as connection:
            if fields:
                connection.execute(sa.update(table).where(where).values(fields))
            row = connection.execute(_select(table).where(where)).first()
            if row is None:
                return None
            self._put(connection, also, events)
        return _record(kind, row)

    def all(self, kind: type[R], **equal: object) -> list[R]:
        """Return a kind's records whose fields equal what is given, in order of insertion."""
        with self._reading() as connection:
            rows = connection.execute(query(kind, equal)).all()
        return [_record(kind, row) for row in rows]

    def spend(self, token_id: str, now: datetime) -> JoinToken | None:
        """Take one use of a join token, atomically; None if unknown, used up or expired."""
        table = TABLES[JoinToken]
        usable = (table.c.token_id == token_id, table.c.uses_left > 0, table.c.expires_at > now)
        spend = sa.update(table).where(*usable).values(uses_left=table.c.uses_left - 1)
        with self._writing() as connection:
            row = connection.execute(spend.returning(*_select(table).selected_columns)).first()
        return None if row is None else _record(JoinToken, row)

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return events with a number above `after`, in order."""
        found = sa.select(EVENTS).where(EVENTS.c.number > after).order_by(EVENTS.c.number)
        with self._reading() as connection:
            rows = connection.execute(found.limit(limit)).all()
        return [Event(**row._mapping) for row in rows]

    def _put(
        self, connection: sa.Connection, records: Sequence[Record], events: Sequence[Event]
    ) -> None:
        for kind, rows in _rows(records):
            insert = self._insert(TABLES[kind])
            replaced = {name: insert.excluded[name] for name in _names(kind) if name != kind.KEY}
            upsert = insert.on_conflict_do_update(index_elements=[kind.KEY], set_=replaced)
            connection.execute(upsert, rows)
        if events:
            last = connection.scalar(sa.select(sa.func.max(EVENTS.c.number))) or 0
            numbered = [replace(one, number=last + n) for n, one in enumerate(events, start=1)]
            names = [column.name for column in EVENTS.c]
            connection.execute(
                sa.insert(EVENTS),
                [{name: getattr(one, name) for name in names} for one in numbered],
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _own_errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with (
            self._turn,
            _own_errors(),
            self._engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITE_LOCK)))
            yield connection


def query(kind: type[R], equal: dict[str, object]) -> sa.Select[Any]:
    """Return the statement behind `SqlStore.all`; a test asks the database for its plan.

    Raises:
        ValueError: The kind has no such field.
    """
    _check(kind, equal)
    table = TABLES[kind]
    wanted = [table.c[name] == value for name, value in equal.items()]
    return _select(table).where(*wanted).order_by(table.c.position)


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise StartError(f"not a database URL: {url!r}", hint="Such as sqlite:////…") from error
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif parsed.get_backend_name() != "sqlite":
        raise StartError(
            f"database {parsed.get_backend_name()} is not supported",
            hint="Use sqlite:////path or postgresql://user@host/name.",
        )
    try:
        engine = sa.create_engine(parsed, pool_size=8, max_overflow=32)
    except ImportError as error:
        raise StartError(
            f"{error.name} is missing", hint="pip install 'wildflower[postgres]'"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        hooks.listen(engine, "connect", _prepare_sqlite)
        hooks.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        if isinstance(error, StatementError) and isinstance(error.orig, ValueError):
            raise error.orig from error  # a value that no column can hold: the caller's misuse
        raise StoreError(
            f"the database failed: {_cause(error)}",
            hint="Check that it runs and that its disk has space.",
        ) from error


def _cause(error: SQLAlchemyError) -> str:
    """Return what the driver said, without the statement and its parameters."""
    found = error.orig if isinstance(error, StatementError) and error.orig else error
    return str(found).strip().splitlines()[0] if str(found).strip() else type(found).__name__


def _names(kind: type[R]) -> tuple[str, ...]:
    return cast("tuple[str, ...]", kind.__slots__)


def _check(kind: type[R], fields: dict[str, object]) -> None:
    unknown = set(fields) - set(_names(kind))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")


def _select(table: sa.Table) -> sa.Select[Any]:
    return sa.select(*(column for column in table.c if column.name != "position"))


def _rows(records: Sequence[Record]) -> Iterator[tuple[type[Record], list[dict[str, Any]]]]:
    """Yield runs of records of one kind as rows; a run is one statement."""
    for _, run in itertools.groupby(records, key=lambda record: type(record).__name__):
        alike = list(run)
        kind = type(alike[0])
        names = _names(kind)
        yield kind, [{name: getattr(record, name) for name in names} for record in alike]


def _record(kind: type[R], row: sa.Row[Any]) -> R:
    return kind(**row._mapping)
