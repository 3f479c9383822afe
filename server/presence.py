"""Which devices are connected right now, and what to whisper to them.

A device is present while its Watch stream is open. Each connection is an *epoch*: who remembers a
device's epoch can tell "still there" from "gone and back", as a round must, because a message that
went to the lost connection is gone.

Hints are whispers: a device that misses one looks for itself at its next check-in. So a device's
pending hints are few, the same one is never pending twice, and the oldest go first.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import Final

MAX_PENDING: Final = 8  # hints that wait for one device


@unique
class HintKind(StrEnum):
    """What a hint is about."""

    TRAINING = "training"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Hint:
    """One whisper; `training` is the id of the training a device is invited to."""

    kind: HintKind
    training: str = ""


@dataclass(slots=True, eq=False)
class Watcher:
    """One open Watch stream.

    Attributes:
        device_id: Whose.
        wake: Called, from any thread, when there is something to take or the stream shall end.
        ended: Whether the stream shall end: the device has opened another, or was cut off.
    """

    device_id: str
    wake: Callable[[], None]
    ended: bool = False
    pending: OrderedDict[Hint, None] = field(default_factory=OrderedDict)


class Presence:
    """The open streams. Safe to use from several threads; nothing here blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[str, Watcher] = {}
        self._epochs: dict[str, int] = {}

    def connected(self, device_id: str) -> bool:
        """Whether the device has an open stream."""
        with self._lock:
            return device_id in self._watchers

    def epoch(self, device_id: str) -> int:
        """Return how often the device has connected since this server started."""
        with self._lock:
            return self._epochs.get(device_id, 0)

    def devices(self) -> list[str]:
        """Return the ids of the connected devices, sorted."""
        with self._lock:
            return sorted(self._watchers)

    def hint(self, device_ids: Iterable[str], kind: HintKind | str, training: str = "") -> int:
        """Leave a hint for devices; return how many of them are connected to get it.

        Args:
            device_ids: Whom.
            kind: "training" or "release".
            training: Id of the training, for "training".
        """
        hint = Hint(HintKind(kind), training)
        reached = [watcher for name in device_ids if (watcher := self._leave(name, hint))]
        for watcher in reached:
            watcher.wake()
        return len(reached)

    def disconnect(self, device_id: str) -> None:
        """End the device's stream, as when it is revoked."""
        with self._lock:
            watcher = self._watchers.pop(device_id, None)
        if watcher is not None:
            _end(watcher)

    def close(self) -> None:
        """End every stream, as when the server stops."""
        for device_id in self.devices():
            self.disconnect(device_id)

    def attach(self, device_id: str, wake: Callable[[], None]) -> Watcher:
        """Count a new stream in; an older one of the same device ends."""
        watcher = Watcher(device_id, wake)
        with self._lock:
            older = self._watchers.get(device_id)
            self._watchers[device_id] = watcher
            self._epochs[device_id] = self._epochs.get(device_id, 0) + 1
        if older is not None:
            _end(older)
        return watcher

    def detach(self, watcher: Watcher) -> bool:
        """Count a stream out; return whether its device is gone with it."""
        with self._lock:
            if self._watchers.get(watcher.device_id) is watcher:
                del self._watchers[watcher.device_id]
            return watcher.device_id not in self._watchers

    def take(self, watcher: Watcher) -> list[Hint]:
        """Return the stream's pending hints, oldest first; they are pending no longer."""
        with self._lock:
            taken = list(watcher.pending)
            watcher.pending.clear()
            return taken

    def _leave(self, device_id: str, hint: Hint) -> Watcher | None:
        with self._lock:
            watcher = self._watchers.get(device_id)
            if watcher is not None:
                watcher.pending[hint] = None
                if len(watcher.pending) > MAX_PENDING:
                    watcher.pending.popitem(last=False)
            return watcher


def _end(watcher: Watcher) -> None:
    watcher.ended = True
    watcher.wake()
