"""Installs software other than models, by the handlers that the device's owner has put there.

    handlers/<name>            the owner's programs, executable
    software/<digest>/files/   what was fetched for one of them
    software/<digest>/state/   what it wants to keep from one step to the next

A handler is called as `handlers/<name> <step> <directory>`, where the directory holds `files` and
`state`. It has a time limit, finds nothing of the agent's in its environment, and what it says last
goes into the report. Exit code 0 says that the step is done.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, assert_never

import wildflower
from wildflower.client.fetcher import Releases, running_artifact
from wildflower.client.spending import counted
from wildflower.ota.device import handlers
from wildflower.ota.device.decision import version_key
from wildflower.ota.device.handlers import (
    Act,
    Call,
    Done,
    Event,
    Failed,
    Fetch,
    MustRestart,
    Offered,
    Phase,
    Report,
    Restart,
    State,
    Step,
    Woke,
)
from wildflower.ota.device.journal import Journal
from wildflower.ota.device.program import Ended, run_program
from wildflower.ota.device.report import Outcome
from wildflower.ota.device.slots import Slots, check_file, storage_error
from wildflower.ota.errors import (
    BudgetError,
    FetchError,
    FormatError,
    PostponedError,
    ProgramError,
    RefusedError,
)
from wildflower.ota.release.files import make_directory
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.software import Software

log = logging.getLogger(__name__)

STATE: Final = "software"
"""The journal's fact: the state of what is being installed."""
SPENT: Final = "software-spent"
"""And what its files have cost so far, in bytes."""
LINE: Final = "software/"
"""The journal orders lines of software as it orders target groups, under this prefix."""
YES: Final = "yes"
"""What a handler says to NeedsRestart if it does."""
GLANCE_S: Final = 0.1
"""How often is looked whether a step has ended that an agent before this one began."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """One device's handlers.

    Attributes:
        directory: The device's directory.
        device_class: The class it was enrolled in.
        accepted: Lines of software that its owner's policy accepts.
        timeout_s: A step that takes longer has failed.
        journal: Its memory.
        slots: Its slots, for reports.
        releases: Where files come from.
        now: Its clock.
        should_stop: Whether the agent is told to end.
        restart: Ends the agent, so that it is started anew.
        why_wait: Tells why nothing large is fetched now; "" if it may be.
    """

    directory: Path
    device_class: str
    accepted: tuple[str, ...]
    timeout_s: float
    journal: Journal
    slots: Slots
    releases: Releases
    now: Callable[[], datetime]
    should_stop: Callable[[], bool]
    restart: Callable[[], None]
    why_wait: Callable[[], str] = lambda: ""

    def begin(self, *, was_clean: bool) -> None:
        """Pick up what a stop, a crash or a wanted restart left.

        Args:
            was_clean: Whether the agent ended because it was told to.

        Raises:
            PostponedError: It cannot go on now.
            StorageError: The disk is full, read-only or broken.
        """
        state = self.load()
        self._sweep(state)
        if isinstance(act := handlers.owed(state), Call):
            self._outwait(self._place(act.software))
        if state.phase is Phase.RESTARTING or not (was_clean or state.phase is Phase.IDLE):
            self._save(handlers.step(state, Woke()))
        self.resume()

    def offer(self, software: Software) -> bool:
        """Install software that is signed for this device, unless it is refused or not new.

        Args:
            software: From a target that the role `software` signed.

        Returns:
            Whether it was begun.

        Raises:
            PostponedError: It cannot go on now; `resume` goes on.
            StorageError: The disk is full, read-only or broken.
        """
        if self.load().software is not None:
            return False
        if software.order <= self.journal.highest_order(LINE + software.name):
            return False
        if why := self.refusal(software):
            self._report(software, Outcome.REFUSED, why)
            return False
        self._save(handlers.step(State(), Offered(software)))
        self.resume()
        return True

    def refusal(self, software: Software) -> str:
        """Return why this device does not install it, found and expected; "" if it may."""
        if software.name not in self.accepted:
            accepted = ", ".join(self.accepted) or "none"
            return f"line of software: found {software.name}, the owner accepts {accepted}"
        if software.device_class not in ("", self.device_class):
            return f"device class: found {self.device_class}, expected {software.device_class}"
        if version_key(wildflower.__version__) < version_key(software.agent_min):
            return f"agent: found {wildflower.__version__}, expected >= {software.agent_min}"
        if not os.access(self._program(software), os.X_OK):
            return f"this device has no handler {software.handler!r}"
        return ""

    def resume(self) -> None:
        """Go on until nothing is owed, each state being stored before its act.

        Raises:
            PostponedError: It cannot go on now.
            StorageError: The disk is full, read-only or broken.
        """
        while act := handlers.owed(state := self.load()):
            self._save(handlers.step(state, self._run(act)))

    def load(self) -> State:
        """Return the state last saved; one that cannot be read means idle, and it begins anew."""
        text = self.journal.fact(STATE)
        try:
            return State.from_bytes(text.encode()) if text else State()
        except FormatError as error:
            log.error("state of software cannot be read, idle again: %s", error)
            return State()

    def _save(self, state: State) -> None:
        self.journal.set_fact(STATE, state.to_bytes().decode())
        log.info("software %s", state.phase.value, extra={"reason": state.reason})

    def _run(self, act: Act) -> Event:
        match act:
            case Fetch(software):
                return self._fetch(software)
            case Call():
                return self._call(act)
            case Restart():
                self.restart()
                raise PostponedError("the agent is to be started anew")
            case Report(software, reason):
                self._conclude(software, reason)
                return Done()
            case _:
                assert_never(act)

    def _fetch(self, software: Software) -> Event:
        files = self._place(software) / "files"
        try:
            make_directory(files)
            make_directory(self._place(software) / "state")
        except OSError as error:
            raise storage_error(error, files) from error
        missing = [entry for entry in software.files if not (files / entry.name).exists()]
        try:
            self.slots.require_space(sum(entry.length for entry in missing))
            self._fetch_files(software, missing)
            for entry in software.files:
                check_file(files / entry.name, entry)
        except BudgetError as error:
            return Failed(f"{error}. {error.hint}")
        except FetchError as error:
            raise PostponedError(str(error)) from error
        except RefusedError as error:
            return Failed(str(error))
        return Done()

    def _fetch_files(self, software: Software, missing: list[FileEntry]) -> None:
        """Fetch what is missing, when the owner's rules allow and within a budget of bytes."""
        lengths = sum(entry.length for entry in software.files)
        with counted(self.journal, SPENT, software.digest, lengths) as budget:
            for entry in missing:
                if why := self.why_wait():
                    raise PostponedError(why)
                self.releases.fetch(
                    entry,
                    self._place(software) / "files" / entry.name,
                    should_stop=lambda: self.should_stop() or bool(self.why_wait()),
                    budget=budget,
                )

    def _call(self, act: Call) -> Event:
        """Let the handler do a step, and read what it makes of it."""
        place = self._place(act.software)
        try:
            if act.step in (Step.DOWNLOAD, Step.INSTALL):  # a disk may have changed them since
                for entry in act.software.files:
                    check_file(place / "files" / entry.name, entry)
            ended = self._ask(act, place)
        except (ProgramError, RefusedError) as error:
            return Failed(f"{act.step}: {error}")
        if ended.code != 0:
            return Failed(f"{act.step} {ended}")
        if act.step is Step.NEEDS_RESTART and ended.last_line.lower() == YES:
            return MustRestart()
        return Done()

    def _ask(self, act: Call, place: Path) -> Ended:
        with _claimed(place) as claim:
            return run_program(
                [str(self._program(act.software)), act.step.value, str(place)],
                environment={
                    "WILDFLOWER_DIR": str(self.directory),
                    "WILDFLOWER_SOFTWARE": act.software.name,
                    "WILDFLOWER_ORDER": str(act.software.order),
                },
                directory=place,
                timeout_s=self.timeout_s,
                should_stop=self.should_stop,
                inherited=claim,
            )

    def _sweep(self, state: State) -> None:
        """Remove what belongs to no installation: a power cut may bring back what was removed."""
        kept = state.software.digest if state.software else ""
        for place in (self.directory / "software").glob("*"):
            if place.name != kept:
                shutil.rmtree(place, ignore_errors=True)

    def _outwait(self, place: Path) -> None:
        """Wait for a handler that outlives the agent that called it, killed all of a sudden.

        Two of them at once would undo each other's work. One that never ends is outwaited: it may
        be what the handler has started for good.

        Raises:
            PostponedError: The agent is told to end.
        """
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            with _claimed(place) as claim:
                if claim or not place.exists():
                    return
            if self.should_stop():
                raise PostponedError("told to stop while a handler of an agent before this runs")
            time.sleep(GLANCE_S)
        log.warning("a handler that an agent before this one called has not ended")

    def _conclude(self, software: Software, reason: str) -> None:
        if reason:
            self._report(software, Outcome.FAILED, reason)
        else:
            self._report(software, Outcome.COMMITTED, "")
        # What failed here is not tried again either: a new order is a new try.
        self.journal.raise_order(LINE + software.name, software.order)
        shutil.rmtree(self._place(software), ignore_errors=True)

    def _report(self, software: Software, outcome: Outcome, reason: str) -> None:
        self.journal.queue(
            f"software/{software.digest}/{outcome.value}",
            outcome,
            rollout="",
            release=software.digest,
            running=running_artifact(self.slots),
            reason=reason,
            at=self.now(),
        )

    def _program(self, software: Software) -> Path:
        return self.directory / "handlers" / software.handler

    def _place(self, software: Software) -> Path:
        return self.directory / "software" / software.digest


@contextmanager
def _claimed(place: Path) -> Iterator[tuple[int, ...]]:
    """Hold a directory by a lock that passes to whoever inherits its descriptor.

    Yields:
        The descriptor; nothing if somebody holds the directory, or it cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            claim = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, claim)
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield ()
            return
        yield (claim,)
