"""One round: its stored state, and the shell that stores first and acts second."""

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from wildflower.server.events import Kind
from wildflower.server.records import Event, Record, Round, Training
from wildflower.server.round_work import Outcome, RoundTools, RoundWork
from wildflower.strategies import round as machine
from wildflower.strategies.errors import LinkError, StrategyError

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)

OVER: Final = (machine.Phase.RECORDED, machine.Phase.ABORTED)


class StoppingError(Exception):
    """The server stops; what was stored goes on at its next start."""


class OneRound:
    """One round: its stored state, and the shell that stores first and acts second."""

    def __init__(self, tools: RoundTools, training: Training, number: int) -> None:
        self._tools, self._training = tools, training
        self._key = f"{training.training_id}/{number}"
        stored = tools.store.get(Round, self._key)
        self._began = stored.started_at if stored else tools.now()
        if stored is not None:
            self._state = machine.from_bytes(stored.state)
            self._resumed = True
        else:
            quorum = int(training.settings["quorum"])
            self._state = machine.Round(
                training.training_id, number, quorum, secure=training.secure
            )
            self._resumed = False

    def drive(self, grid: "Grid", stopping: threading.Event) -> machine.Round:
        """Do what the round owes until it owes nothing; return its last state.

        Raises:
            LinkError: The SuperLink is lost; what is stored goes on in a new run.
        """
        if machine.owed(self._state) is None:
            return self._state
        self._advance(Outcome(machine.Woke()) if self._resumed else None)
        work = RoundWork(self._tools, self._training, grid, self._reached)
        while (effect := machine.owed(self._state)) is not None:
            try:
                outcome = work.run(effect, self._state)
            except LinkError:
                raise
            except StrategyError as error:
                outcome = Outcome(machine.Failed(str(error)))
            if stopping.is_set():
                raise StoppingError  # a round cut short by us has not failed
            self._advance(outcome)
        return self._state

    def _reached(self, stage: str) -> None:
        if self._state.phase is machine.Phase.TRAINING:
            self._advance(Outcome(machine.Reached(stage)))

    def _advance(self, outcome: Outcome | None) -> None:
        """Store the state that follows, with everything that belongs to it."""
        before = self._state
        if outcome is not None:
            self._state = machine.step(before, outcome.event)
        is_new = outcome is None
        told = [*self._told(before, is_new=is_new), *(outcome.told if outcome else ())]
        records = outcome.records if outcome else ()
        self._tools.store.put(self._record(), *records, events=told)
        self._tools.bus.ring()
        log.info("round %s", self._state.phase, extra={"round": self._key})

    def _record(self) -> Record:
        state = self._state
        known = self._tools.store.get(Round, self._key)
        return Round(
            round_id=self._key,
            training_id=state.training,
            number=state.number,
            phase=state.phase.value,
            reason=state.reason,
            cohort=state.cohort,
            survivors=state.survivors,
            model=state.model,
            metrics={**(known.metrics if known else {}), **state.metrics},
            state=machine.to_bytes(state),
            started_at=self._began,
            finished_at=self._tools.now() if state.phase in OVER else None,
        )

    def _told(self, before: machine.Round, *, is_new: bool) -> Iterator[Event]:
        """Yield the events of a step."""
        state, make = self._state, self._tools.bus.make
        if is_new:
            yield make(Kind.ROUND_STARTED, self._key, number=state.number, secure=state.secure)
        elif state.phase is machine.Phase.RECORDED:
            figures = dict(state.metrics)
            yield make(
                Kind.ROUND_RECORDED,
                self._key,
                number=state.number,
                model=state.model,
                survivors=len(state.survivors),
                **figures,
            )
        elif state.phase is machine.Phase.ABORTED:
            yield make(Kind.ROUND_ABORTED, self._key, number=state.number, reason=state.reason)
        elif (state.phase, state.stage) != (before.phase, before.stage):
            yield make(
                Kind.ROUND_STAGE,
                self._key,
                number=state.number,
                stage=state.stage or state.phase.value,
                cohort=len(state.cohort),
                connected=len(state.connected),
                survivors=len(state.survivors),
            )
