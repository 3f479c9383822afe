"""What the operator API works with, and how it finds what a request names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol, TypeVar, cast

from fastapi import Depends, Request

from wildflower.ota.release.manifest import Release
from wildflower.ota.rollout.policy import Plan
from wildflower.server.api.views import InvitationView, Page, StatusView
from wildflower.server.errors import ConflictError, NotFoundError
from wildflower.server.events import EventBus
from wildflower.server.records import Line, Record, Rollout, Training
from wildflower.server.rollouts import GroupProgress
from wildflower.server.store import Store

R = TypeVar("R", bound=Record)
V = TypeVar("V")

LATEST = "latest"
MIN_PREFIX = 6
MAX_PAGE = 1000


class Trains(Protocol):
    """`server.rounds.RoundRunner`."""

    def plan(self, rounds: int, settings: Mapping[str, float | str]) -> Training:
        """Ask for a training."""
        ...


class Builds(Protocol):
    """`server.line.LineRunner`."""

    def submit(self, digest: str) -> Line:
        """Send a model into the release line."""
        ...


class RollsOut(Protocol):
    """`server.rollouts.RolloutRunner`."""

    def create(self, releases: "list[str]", plan: Plan) -> Rollout:
        """Begin a rollout."""
        ...

    def abort(self, rollout_id: str, reason: str, *, roll_back: bool = True) -> Rollout:
        """End a rollout."""
        ...

    def progress(self, rollout: Rollout) -> list[GroupProgress]:
        """Return how far each target group is."""
        ...


class Publishes(Protocol):
    """`server.publish.Publisher`."""

    def approved(self, metadata: bytes, manifest: Release, statement: bytes = b"") -> str:
        """Publish a release that offline keys signed; return its target path."""
        ...

    def statement(self, path: str) -> bytes:
        """Return the statement beside the manifest of a target path; b"" if there is none."""
        ...

    def current(self, role: str) -> bytes:
        """Return a role's metadata as it is published."""
        ...


class Files(Protocol):
    """`server.blobs.BlobStore`."""

    def put(self, data: bytes) -> str:
        """Store bytes."""
        ...

    def read(self, digest: str) -> bytes:
        """Return a blob's bytes."""
        ...

    def path(self, digest: str) -> Path:
        """Return where a blob lies."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        ...


class Knows(Protocol):
    """`server.presence.Presence`."""

    def connected(self, device_id: str) -> bool:
        """Whether a device is connected."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything that an operator's request may reach.

    Attributes:
        token: What an operator must show.
        store: The records.
        bus: Wakes who follows events.
        files: The blobs.
        presence: Knows who is connected.
        rounds: Plans trainings.
        line: Builds models.
        rollouts: Brings releases to devices.
        publisher: The TUF repository's writer.
        invite: Makes a join token for a ring, a number of uses and a number of seconds.
        status: Tells how the server is.
    """

    token: str = field(repr=False)
    store: Store
    bus: EventBus
    files: Files
    presence: Knows
    rounds: Trains
    line: Builds
    rollouts: RollsOut
    publisher: Publishes
    invite: Callable[[str, int, float], InvitationView]
    status: Callable[[], StatusView]


def desk_of(request: Request) -> Desk:
    """Return the desk of the application that serves a request."""
    return cast("Desk", request.app.state.desk)


DeskHere = Annotated[Desk, Depends(desk_of)]


def find(store: Store, kind: type[R], key: str) -> R:
    """Return the record with a key, or the only one that begins like it, or the latest.

    Raises:
        NotFoundError: There is none.
        ConflictError: Several begin like that.
    """
    exact = store.get(kind, key)
    if exact is not None:
        return exact
    every = store.all(kind)
    if key == LATEST and every:
        return every[-1]
    found = [one for one in every if len(key) >= MIN_PREFIX and key_of(one).startswith(key)]
    if len(found) > 1:
        raise ConflictError(f"{len(found)} things begin with {key!r}", hint="Give more characters.")
    if not found:
        raise NotFoundError(f"there is no {kind.__name__.lower()} {key[:80]!r}")
    return found[0]


def key_of(record: Record) -> str:
    """Return a record's key."""
    return str(getattr(record, type(record).KEY))


def page(records: list[R], cursor: str, limit: int, view: Callable[[R], V]) -> Page[V]:
    """Return the part of a list that follows a cursor, which is the key of the last one seen.

    Raises:
        NotFoundError: Nothing has that key.
    """
    start = 0
    if cursor:
        keys = [key_of(record) for record in records]
        if cursor not in keys:
            raise NotFoundError(f"there is no such cursor: {cursor[:80]!r}")
        start = keys.index(cursor) + 1
    part = records[start : start + limit]
    more = start + limit < len(records)
    return Page([view(record) for record in part], key_of(part[-1]) if more and part else "")
