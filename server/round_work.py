"""What a round owes the world, done: draw, invite, train, apply, evaluate, record.

Each effect of `strategies.round` is a method that returns what happened, with the records and
events that are stored in the same transaction. All of them may be repeated: blobs and models are
named by their digests, and what a device sends is used once or not at all.

The state of federated averaging is its model: it is taken from the model's file, so that a resumed
training needs nothing else.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from wildflower.server import aggregates
from wildflower.server.cohort import Drawing, Gathering
from wildflower.server.events import EventBus, Kind
from wildflower.server.records import Event, Model, Record, Round, Training
from wildflower.server.round_release import RoundRelease
from wildflower.server.round_trip import Parties, Trip, go
from wildflower.server.store import Store
from wildflower.strategies import round as machine
from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import GlobalModel, Layout, from_safetensors, to_safetensors
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import RoundAbortedError, SecAggError
from wildflower.strategies.round_request import (
    ROTATION,
    RoundRequest,
    RoundResult,
    encoding_of,
)
from wildflower.strategies.secagg.graph import Adversary, Security
from wildflower.strategies.secagg.grouped import Grouping, Rule

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)

LOCAL_KEYS: Final[Mapping[str, str]] = {
    "epochs": "epochs",
    "batch_size": "batch-size",
    "learning_rate": "learning-rate",
    "momentum": "momentum",
}
"""Settings of a training that the devices' app is told, by the name it knows them by."""


class Blobs(Protocol):
    """Files named by their digest; `server.blobs.BlobStore`."""

    def put(self, data: bytes) -> str:
        """Store bytes durably; return their digest."""
        ...

    def read(self, digest: str) -> bytes:
        """Return a blob's bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an effect came to.

    Attributes:
        event: For the round's machine.
        records: To be stored with the state that follows.
        told: Events to be stored with it.
    """

    event: machine.Event
    records: tuple[Record, ...] = ()
    told: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundTools:
    """What all rounds of a server share.

    Attributes:
        store: The records.
        bus: Makes events.
        blobs: Where aggregates and models go.
        gathering: Draws and invites.
        parties: Whom protected rounds rely on.
        now: The clock.
        entropy: Returns so many secret random bytes.
    """

    store: Store
    bus: EventBus
    blobs: Blobs
    gathering: Gathering
    parties: Parties
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoundWork:
    """The effects of one training's rounds over one Flower run.

    Attributes:
        tools: What all rounds share.
        training: The training, its settings complete.
        grid: Reaches the devices.
        on_stage: Is told the name of each stage of a trip as it begins.
    """

    tools: RoundTools
    training: Training
    grid: "Grid"
    on_stage: Callable[[str], None]

    def run(self, effect: machine.Effect, state: machine.Round) -> Outcome:
        """Do what a round owes.

        Raises:
            RoundAbortedError: It cannot succeed.
            LinkError: The SuperLink is lost.
        """
        match effect:
            case machine.DrawCohort(quorum=quorum):
                return self._draw(state.number, quorum)
            case machine.Invite(cohort):
                return self._invite(cohort)
            case machine.Train(connected, _, quorum):
                return self._train(state, connected, quorum)
            case machine.Apply(aggregate):
                return self._apply(state, aggregate)
            case machine.Evaluate(model):
                return self._evaluate(state, model)
            case machine.Record():
                return Outcome(machine.Recorded())
            case _:
                assert_never(effect)

    def number(self, name: str) -> float:
        """Return a numeric setting of the training."""
        return float(self.training.settings[name])

    @property
    def releases(self) -> RoundRelease:
        """What may be released of this training's sums."""
        tools = self.tools
        key = tools.parties.noise_key
        return RoundRelease(tools.store, self.training, key, tools.now, tools.entropy)

    def _draw(self, number: int, quorum: int) -> Outcome:
        self.releases.require(number, self._planned_encoding(number, quorum))
        drawn = self.tools.gathering.draw(
            quorum,
            self.number("join_s"),
            Drawing(
                int(self.number("cohort")),
                random.Random(self.tools.entropy(16)),  # noqa: S311  seeded with secret bytes
                by_coins=self.training.settings["selection"] == "poisson",
                without=self.releases.taken(number),
            ),
        )
        return Outcome(machine.Drawn(tuple(drawn)))

    def _planned_encoding(self, number: int, quorum: int) -> SumEncoding | None:
        """Return how updates would become residues if the whole cohort came."""
        privacy = self.releases.privacy(number)
        if privacy is None or not privacy.distributed_noise:
            return None
        request = self._request(number, self._origin(number).digest, quorum)
        clients = max(privacy.cohort, quorum)
        return encoding_of(request, clients, bytes(ROTATION), evaluate_only=False)

    def _invite(self, cohort: tuple[str, ...]) -> Outcome:
        found = self.tools.gathering.gather(
            self.grid, cohort, self.training.training_id, self.number("join_s")
        )
        return Outcome(machine.Gathered(tuple(found)))

    def _train(self, state: machine.Round, connected: tuple[str, ...], quorum: int) -> Outcome:
        origin = self._origin(state.number)
        request = self._request(state.number, origin.digest, quorum)
        began = time.monotonic()
        result, devices = self._trip(connected, request, evaluate_only=False)
        total, for_next = self.releases.release(state.number, state.wakes, result)
        found = aggregates.figures(total)
        metrics = {**found.trained, **for_next, "seconds": time.monotonic() - began}
        aggregate = self.tools.blobs.put(aggregates.to_bytes(total))
        survivors = tuple(devices[node] for node in result.survivors)
        event = machine.Aggregated(survivors, aggregate, metrics)
        return Outcome(event, *self._measured(origin, found.measured))

    def _apply(self, state: machine.Round, aggregate: str) -> Outcome:
        parameters = from_safetensors(self.tools.blobs.read(self._origin(state.number).digest))
        layout, rule = Layout.of(parameters), FedAvg()
        total = aggregates.from_bytes(self.tools.blobs.read(aggregate))
        after, _ = rule.apply(rule.init(layout.pack(parameters)), total)
        made = GlobalModel.of(layout.unpack(rule.model(after)))
        self.tools.blobs.put(to_safetensors(made.parameters))
        model = Model(
            digest=made.digest,
            name=str(self.training.settings["name"]),
            app=self.training.app,
            training_id=self.training.training_id,
            round_number=state.number,
            metrics={},
            created_at=self.tools.now(),
        )
        return Outcome(machine.Applied(made.digest), (model,))

    def _evaluate(self, state: machine.Round, model: str) -> Outcome:
        """Have the last model measured in a session of its own; the next round measures others."""
        is_private = self.releases.privacy(state.number) is not None
        if state.number < self.training.rounds or is_private:  # it would be one release more
            return Outcome(machine.Evaluated({}))
        try:
            gathering = self.tools.gathering
            join_s = self.number("join_s")
            here = gathering.gather(self.grid, state.cohort, self.training.training_id, join_s)
            request = self._request(state.number + 1, model, state.quorum)
            result, _ = self._trip(tuple(here), request, evaluate_only=True)
        except (RoundAbortedError, SecAggError) as error:  # SecAgg's: a helper is gone
            log.warning("last model not evaluated: %s", error, extra={"model": model})
            return Outcome(machine.Evaluated({}))
        measured = aggregates.figures(result.total, evaluate_only=True).measured
        record = self.tools.store.get(Model, model)
        records = (replace(record, metrics=measured),) if record else ()
        told = self._evaluated(state.number, measured)
        return Outcome(machine.Evaluated(measured), records, told)

    def _trip(
        self, devices: tuple[str, ...], request: RoundRequest, *, evaluate_only: bool
    ) -> tuple[RoundResult, Mapping[int, str]]:
        """Ask the devices; return what came of it, and which device is which node."""
        nodes = self.tools.gathering.nodes(devices)
        trip = Trip(
            self.grid,
            sorted(nodes),
            request,
            is_gone=self.tools.gathering.watch(nodes),
            on_stage=self.on_stage,
            evaluate_only=evaluate_only,
            grouping=Grouping(
                int(self.number("groups")), rule=Rule(str(self.training.settings["rule"]))
            ),
        )
        protection = str(self.training.settings["protection"])
        result = go(protection, trip, self.tools.parties, self.tools.entropy(32))
        for node, why in result.refusals.items():
            log.warning("not in the sum: %s", why, extra={"device_id": nodes[node]})
        return result, nodes

    def _request(self, number: int, model: str, quorum: int) -> RoundRequest:
        parameters = from_safetensors(self.tools.blobs.read(model))
        layout = Layout.of(parameters)
        settings, privacy = self.training.settings, self.releases.privacy(number)
        config: dict[str, float | int | str] = {"seed": int(self.number("seed"))}
        config |= {name: settings[key] for key, name in LOCAL_KEYS.items() if key in settings}
        if privacy is not None:
            config |= privacy.config
        return RoundRequest(
            training=self.training.training_id,
            number=number,
            layout=layout,
            vector=layout.pack(parameters),
            config=config,
            statistics=tuple(str(settings["statistics"]).split(";")),
            clip=self.number("clip"),
            max_weight=self.number("max_weight"),
            timeout_s=self.number("deadline_s"),
            min_clients=quorum,
            bits=int(self.number("bits")),
            security=Security(
                self.number("corrupt"),
                self.number("dropout"),
                Adversary(str(settings["adversary"])),
            ),
            rule=privacy.rule if privacy is not None else None,
            noise=privacy.distributed_noise if privacy is not None else 0.0,
        )

    def _origin(self, number: int) -> Model:
        """Return the model that a round starts from."""
        training_id = self.training.training_id
        if number == 1:
            digest = str(self.training.settings["initial"])
        else:
            before = self.tools.store.get(Round, f"{training_id}/{number - 1}")
            assert before is not None, "rounds run in order"  # noqa: S101
            digest = before.model
        found = self.tools.store.get(Model, digest)
        assert found is not None, "a model is stored with the round that made it"  # noqa: S101
        return found

    def _measured(
        self, model: Model, metrics: Mapping[str, float]
    ) -> tuple[tuple[Record, ...], tuple[Event, ...]]:
        """Return what becomes known of the model that a round started from."""
        if not metrics:
            return (), ()
        records: list[Record] = [replace(model, metrics={**model.metrics, **metrics})]
        made = self.tools.store.get(Round, f"{model.training_id}/{model.round_number}")
        if made is not None:
            records.append(replace(made, metrics={**made.metrics, **metrics}))
        return tuple(records), self._evaluated(model.round_number, metrics)

    def _evaluated(self, number: int, metrics: Mapping[str, float]) -> tuple[Event, ...]:
        subject = f"{self.training.training_id}/{number}"
        told = self.tools.bus.make(
            Kind.ROUND_STAGE, subject, stage="measured", number=number, **metrics
        )
        return (told,)
