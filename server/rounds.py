"""Trainings: one at a time, round after round, resumable from any stored point.

The thin shell of `strategies.round`: it stores each state before it does what that state owes
(`server.round_work`). Each start and each resume of a training is one Flower run. A SuperLink that
is lost costs the run and not the training: the round wakes in a new one.
"""

import contextlib
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from wildflower.server import training_settings
from wildflower.server.errors import SettingsError
from wildflower.server.events import Kind
from wildflower.server.initial_model import Origin, make_initial
from wildflower.server.one_round import OneRound, StoppingError
from wildflower.server.records import Model, Round, Training
from wildflower.server.round_work import RoundTools
from wildflower.strategies import round as machine
from wildflower.strategies.errors import LinkError, StrategyError

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)

MAX_ROUNDS: Final = 100_000
LINK_PAUSE_S: Final = 1.0  # before a new run, when the SuperLink was lost
WAKE_S: Final = 30.0  # a queue that was not woken looks after this long


@dataclass(frozen=True, slots=True)
class Learning:
    """What a server learns.

    Attributes:
        app: A task's reference, or the directory of a Flower app; "" for nothing.
        name: Name of the model's line.
        settings: What its trainings use that differs from `training_settings.DEFAULTS`.
    """

    app: str
    name: str
    settings: Mapping[str, float]


class Link(Protocol):
    """The way to Flower; `server.flower_link.FlowerLink`."""

    def run(self, name: str) -> "contextlib.AbstractContextManager[Grid]":
        """Start a Flower run and lend its grid."""
        ...


class RoundRunner:
    """Runs trainings in a thread of its own.

    Args:
        tools: What all rounds share; `tools.gathering.stopping` is set at the end.
        link: The way to Flower.
        learning: What is learned.
        initial: Makes the model a training starts from, as `make_initial`.
    """

    def __init__(
        self,
        tools: RoundTools,
        link: Link,
        learning: Learning,
        initial: Callable[[str, int, Path], Origin] = make_initial,
    ) -> None:
        self._tools = tools
        self._stopping = tools.gathering.stopping
        self._link = link
        self._learning = learning
        self._initial = initial
        self._thread = threading.Thread(target=self._work, name="rounds", daemon=True)

    def __enter__(self) -> "RoundRunner":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._tools.bus.ring()
        self._thread.join()

    def plan(self, rounds: int, settings: Mapping[str, float | str]) -> Training:
        """Ask for a training; it waits for those asked for before.

        Args:
            rounds: How many rounds.
            settings: What differs from the server's own; see `training_settings`.

        Raises:
            SettingsError: A setting is unknown or out of range, or there is nothing to learn.
        """
        app = self._learning.app
        if not app:
            raise SettingsError(
                "this server has nothing to learn: app = ''", hint="Set `app` in server.toml."
            )
        if not 1 <= rounds <= MAX_ROUNDS:
            raise SettingsError(f"rounds = {rounds}: allowed is 1 to {MAX_ROUNDS}")
        complete = training_settings.complete(self._learning.settings, settings)
        training = Training(
            training_id=self._tools.entropy(8).hex(),
            app=app,
            rounds=rounds,
            secure=complete["protection"] != "plain",
            settings=complete,
            phase="planned",
            reason="",
            run_id=0,
            created_at=self._tools.now(),
        )
        self._tools.store.put(training)
        self._tools.bus.ring()
        return training

    def active(self) -> Training | None:
        """Return the training that runs."""
        running = self._tools.store.all(Training, phase="running")
        return running[0] if running else None

    def invited(self, device_id: str) -> str:
        """Return the id of the training that a device is invited to, "" for none."""
        training = self.active()
        if training is None:
            return ""
        rounds = self._tools.store.all(Round, training_id=training.training_id)
        current = rounds[-1] if rounds else None
        is_drawn = current is not None and device_id in current.cohort
        return training.training_id if is_drawn else ""

    def run_pending(self) -> None:
        """Run every training that is stored and not over, in this thread."""
        while not self._stopping.is_set():
            waiting = self._tools.store.all(Training, phase="planned")
            training = self.active() or next(iter(waiting), None)
            if training is None:
                return
            self._run(training)

    def _work(self) -> None:
        while not self._stopping.is_set():
            seen = self._tools.bus.changes
            try:
                self.run_pending()
            except StoppingError:
                return
            except Exception:
                log.exception("the round runner met an unexpected error; it tries again")
                self._stopping.wait(LINK_PAUSE_S)
            if not self._stopping.is_set():
                self._tools.bus.wait(seen, WAKE_S)

    def _run(self, training: Training) -> None:
        """Run one training to its end, in as many Flower runs as that takes."""
        try:
            training = self._started(training)
        except StrategyError as error:
            if not self._stopping.is_set():  # a child cut short by us has not failed
                self._end(training, "aborted", str(error))
            return
        while not self._stopping.is_set():
            try:
                with self._link.run(training.training_id) as grid:
                    self._rounds(training, grid)
                    return
            except LinkError as error:
                log.warning("Flower run lost: %s", error, extra={"training": training.training_id})
                self._stopping.wait(LINK_PAUSE_S)

    def _started(self, training: Training) -> Training:
        """Store what a training starts from; once."""
        if training.phase == "running":
            return training
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "model.safetensors"
            origin = self._initial(training.app, int(training.settings["seed"]), out)
            digest = self._tools.blobs.put(out.read_bytes())
        settings: dict[str, float | str] = {
            "clip": origin.clip,
            **training.settings,
            "name": self._learning.name,
            "statistics": ";".join(origin.statistics),
            "is_task": float(origin.is_task),
            "initial": digest,
            "population": float(max(1, len(self._tools.gathering.eligible()))),
        }
        started = replace(training, phase="running", settings=settings)
        name = self._learning.name
        model = Model(digest, name, training.app, training.training_id, 0, {}, self._tools.now())
        told = self._tools.bus.make(
            Kind.TRAINING_STARTED,
            training.training_id,
            rounds=training.rounds,
            secure=training.secure,
            name=name,
        )
        self._tools.store.put(started, *self._unless_known(model), events=[told])
        self._tools.bus.ring()
        return started

    def _unless_known(self, model: Model) -> list[Model]:
        """An untrained model of an earlier training keeps the figures that are known of it."""
        return [] if self._tools.store.get(Model, model.digest) else [model]

    def _rounds(self, training: Training, grid: "Grid") -> None:
        """Run the rounds that are left over one grid, then end the training."""
        training = replace(training, run_id=_run_id(grid))
        self._tools.store.change(Training, training.training_id, run_id=training.run_id)
        for number in range(1, training.rounds + 1):
            state = OneRound(self._tools, training, number).drive(grid, self._stopping)
            if state.phase is machine.Phase.ABORTED:
                self._end(training, "aborted", f"Round {number}: {state.reason}")
                return
        self._end(training, "finished", "", model=self._last_model(training))

    def _last_model(self, training: Training) -> str:
        last = self._tools.store.get(Round, f"{training.training_id}/{training.rounds}")
        return last.model if last else ""

    def _end(self, training: Training, phase: str, reason: str, model: str = "") -> Training:
        ended = replace(training, phase=phase, reason=reason, finished_at=self._tools.now())
        kind = Kind.TRAINING_FINISHED if phase == "finished" else Kind.TRAINING_ABORTED
        fields: dict[str, Any] = {"model": model} if model else {"reason": reason}
        told = self._tools.bus.make(kind, training.training_id, **fields)
        self._tools.store.put(ended, events=[told])
        self._tools.bus.ring()
        log.info("training %s", phase, extra={"training": training.training_id, "reason": reason})
        return ended


def _run_id(grid: "Grid") -> int:
    return int(grid.run.run_id)
