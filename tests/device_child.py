"""A device's update as a process of its own that kills itself at a chosen point.

python tests/device_child.py DIRECTORY WHERE NUMBER

WHERE is "store", "stored", "act" or "acted": before or after the n-th state is stored, before or
after the n-th effect is carried out. NUMBER 0 never kills. The release lies in DIRECTORY/shelf.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from wildflower.client.config import AgentConfig
from wildflower.client.fetcher import Fetcher
from wildflower.client.health import Watcher
from wildflower.ota.device import shell
from wildflower.ota.device.decision import Standing
from wildflower.ota.device.effects import Effect
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.machine import Event, Offered, Phase, State
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import PostponedError
from wildflower.ota.release.budget import ByteBudget
from wildflower.ota.release.manifest import FileEntry, Release
from wildflower.ota.rollout.document import RolloutDocument

NOW = datetime(2026, 6, 2, tzinfo=UTC)


@dataclass
class Fuse:
    """Kills this process, as a power cut would, at the n-th time of one place."""

    place: str
    number: int
    seen: dict[str, int] = field(default_factory=dict)

    def burn(self, place: str) -> None:
        self.seen[place] = self.seen.get(place, 0) + 1
        if (place, self.seen[place]) == (self.place, self.number):
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Shelf:
    """Releases from a directory."""

    directory: Path

    def refresh(self) -> None:
        """There is no news."""

    def rollout(self, target_group: str) -> RolloutDocument | None:
        return RolloutDocument.from_bytes((self.directory / "rollout.json").read_bytes())

    def fetch(
        self,
        entry: FileEntry,
        destination: Path,
        *,
        should_stop: Callable[[], bool],
        budget: ByteBudget | None,
    ) -> None:
        partial = destination.with_suffix(".part")
        partial.write_bytes((self.directory / entry.digest).read_bytes())
        partial.replace(destination)


@dataclass
class Store:
    """The journal, with the fuse before and after each save."""

    journal: Journal
    fuse: Fuse

    def load(self) -> State:
        return self.journal.load()

    def save(self, state: State) -> None:
        self.fuse.burn("store")
        self.journal.save(state)
        self.fuse.burn("stored")


def main(directory: Path, fuse: Fuse) -> None:
    journal, slots = Journal.open(directory / "journal.db", now=NOW), Slots(directory / "slots")
    config = AgentConfig(
        device_id="ab" * 32,
        device_class="linux-generic",
        health_check="check",
        directory=directory,
    )
    looks = itertools.count(0, 10)  # one every ten seconds
    watcher = Watcher(config, journal, slots, lambda: NOW, lambda: next(looks), lambda: False)
    fetcher = Fetcher(
        config=config,
        journal=journal,
        slots=slots,
        releases=Shelf(directory / "shelf"),
        standing=lambda: Standing("ab" * 32, "linux-generic"),
        watch=watcher.look,
        now=lambda: NOW,
        should_stop=lambda: False,
    )

    def run(effect: Effect) -> Event:
        fuse.burn("act")
        event = fetcher.run(effect)
        fuse.burn("acted")
        return event

    store = Store(journal, fuse)
    release = Release.from_bytes((directory / "shelf" / "manifest.json").read_bytes())
    see_through(lambda: shell.wake(store, run, fetcher.received()), store, run)
    state = journal.load()
    done = [entry.release for entry in journal.reports()]
    if state.phase is Phase.IDLE and release.digest not in done:
        see_through(lambda: shell.handle(store, run, Offered(release, "r1")), store, run)
    journal.close()


def see_through(begin: Callable[[], None], store: Store, run: shell.Runner) -> None:
    """Begin, then look again for as long as an effect is postponed: it is on probation."""
    go = begin
    while True:
        try:
            return go()
        except PostponedError:
            go = partial(shell.resume, store, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Fuse(sys.argv[2], int(sys.argv[3])))
