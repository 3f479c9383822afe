"""Calls to a SuperLink: with a patience, their errors translated; objects pushed and pulled.

A message travels as a tree of objects, each named by its SHA-256: the message, its records, their
arrays. Who sends first announces the tree, then pushes the objects the other side lacks.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, TypeVar

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import RunNotRunningException

from wildflower.strategies.errors import (
    LinkError,
    LinkRefusedError,
    RunEndedError,
    UnreachableError,
)
from wildflower.strategies.flower_compat.messages import name

Q = TypeVar("Q")
R = TypeVar("R")

BUSY: Final = frozenset({502, 503, 504})
"""HTTP status codes of a server or proxy that may answer later."""

RETRY_S: Final = 0.25  # seconds between two attempts

PULL_RETRY_S: Final = 0.05  # an object is announced before it is there; Flower's default is 1

RUN_OVER: Final = frozenset(
    {ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, ApiErrorCode.RUN_ALREADY_FINISHED}
)
"""Flower's error codes that say that a run is no longer running."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let only `LinkError`s out.

    Raises:
        UnreachableError: No answer, or one that says "later".
        RunEndedError: The run is over.
        LinkRefusedError: Any other refusal.
    """
    try:
        yield
    except httpx.TransportError as error:
        raise UnreachableError(f"the SuperLink does not answer: {error}") from error
    except httpx.HTTPStatusError as error:
        _translate(error)
    except RunNotRunningException as error:
        raise RunEndedError("the Flower run is over") from error
    except (ObjectPullError, ObjectPushError) as error:
        raise LinkRefusedError(f"an object of a message was lost: {error}") from error


def _translate(error: httpx.HTTPStatusError) -> NoReturn:
    status, text = error.response.status_code, error.response.text
    if status in BUSY:
        raise UnreachableError(f"the SuperLink answers {status}: try later") from error
    found = FlowerError.from_json(text)
    if found is not None and found.code in RUN_OVER:
        raise RunEndedError("the Flower run is over") from error
    if status == httpx.codes.UNAUTHORIZED and TASK_TOKEN_HEADER in error.request.headers:
        raise RunEndedError("the Flower run was stopped, or let go unheard of") from error
    said = text[:200] if found is None else f"{found.message} (code {int(found.code)})"
    raise LinkRefusedError(
        f"the SuperLink answers {status} to {error.request.url.path}: {said}"
    ) from error


def call(what: Callable[[Q], R], request: Q, *, patience_s: float = 0.0) -> R:
    """Make a call; while the other side does not answer, repeat it until the patience is over.

    Raises:
        LinkError: See `translated`.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            with translated():
                return what(request)
        except UnreachableError:
            if time.monotonic() + RETRY_S > end:
                raise
            threading.Event().wait(RETRY_S)


class NotThereYetError(UnreachableError):
    """A message is announced, but its sender has not pushed all its objects yet."""


def pull(tree: ObjectTree, pull_object: Callable[[str], bytes], *, wait_s: float) -> Message:
    """Fetch the objects of a message and put it together.

    Args:
        tree: The message's objects.
        pull_object: Fetches one by its id.
        wait_s: How long to wait for objects that are announced; Flower's default is two hours.

    Raises:
        NotThereYetError: Objects are missing, and `wait_s` is 0.
        LinkRefusedError: An object is lost, altered, or not what it should be.
        UnreachableError: The other side does not answer.
    """

    def pull_now(object_id: str) -> bytes:
        try:
            return pull_object(object_id)
        except ObjectUnavailableError as error:
            raise NotThereYetError(str(error)) from error

    ids = [node.object_id for node in iterate_object_tree(tree)]
    with translated():
        contents = pull_objects(
            ids,
            pull_object if wait_s else pull_now,
            max_time=wait_s,
            initial_backoff=PULL_RETRY_S,
        )
    altered = [key for key, data in contents.items() if get_object_id(data) != key]
    if altered:
        raise LinkRefusedError(f"{len(altered)} of {len(contents)} objects were altered")
    try:
        message = inflate_object_from_contents(tree.object_id, contents)
    except Exception as error:  # whatever Flower's parsers raise for the other side's bytes
        raise LinkRefusedError(f"objects that make no message: {type(error).__name__}") from error
    if not isinstance(message, Message):
        raise LinkRefusedError(f"expected a message, found {type(message).__name__}")
    name(message, tree.object_id)
    return message


def push(message: Message, push_object: Callable[[str, bytes], None], wanted: set[str]) -> None:
    """Send those objects of a message that the other side lacks.

    Raises:
        LinkError: The other side does not take one, or does not answer.
    """
    with translated():
        push_objects(get_all_nested_objects(message), push_object, object_ids_to_push=wanted)


class Heartbeat:
    """Tells the SuperLink every few seconds that we are there, from a thread of its own.

    It ends neither the process nor the connection: what it finds out is kept in `failure`.
    """

    def __init__(self, beat: Callable[[], bool], every_s: float) -> None:
        self._beat, self._every_s = beat, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.failure: LinkError | None = None
        """Why the SuperLink no longer knows us; None while it does."""

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what the last heartbeat found out, if it was refused."""
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with translated():
                    known = self._beat()
                self.failure = None if known else RunEndedError("the SuperLink has let us go")
            except UnreachableError:
                pass  # it may come back; whoever needs it meets the error itself
            except LinkError as error:
                self.failure = error
            self._stop.wait(self._every_s)
