"""What stands between a round's messages and the app that trains: packing, guarding, masking.

An app is any Flower ClientApp, unchanged: it gets named arrays and a config, and answers arrays and
metrics with "num-examples". The mod unpacks the flat model for it, makes an update of its answer,
refuses one that would spoil the sum, and, in a secure round, masks it.

    query.secagg_advertise -> share -> (train | evaluate) -> query.secagg_unmask

In a secure round every state is stored before its answer is returned, so a device that restarts
gives the same answer again or none. In a plain round there is nothing to store.

An app's own error texts stay on the device: they may hold what masks are there to hide.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography import x509
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Layout, Update, Vector
from wildflower.strategies.errors import (
    AppFailedError,
    LayoutError,
    ProtocolError,
    StoredStateError,
    StrategyError,
    UpdateRefusedError,
)
from wildflower.strategies.flower_compat.messages import with_content
from wildflower.strategies.guards import check_update
from wildflower.strategies.secagg import client
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.keys import Identity
from wildflower.strategies.secagg.messages import Delivery, Roster, SessionParams, UnmaskRequest
from wildflower.strategies.secagg.sessions import KEEP_S, SessionStore

log = logging.getLogger(__name__)

REFUSED: Final = 1001
"""Error code of an answer: the request or the update was refused; the reason says why."""
FAILED: Final = 1002
"""Error code of an answer: the app failed; what it said is in the device's log."""

App = Callable[[Message, Context], Message]
"""A ClientApp, or anything that is called like one."""


@dataclass(frozen=True, slots=True)
class SecAggMod:
    """A Flower mod: call it with a message, its context and the app.

    Attributes:
        identity: The device's identity.
        ca: The enrolment CA that was pinned; its devices' keys are believed.
        sessions: Where session states are kept.
        min_cohort: Fewest clients whose sum this device joins.
        now: The present, with a time zone.
        entropy: Returns so many secret random bytes.
    """

    identity: Identity
    ca: x509.Certificate
    sessions: SessionStore
    min_cohort: int = client.SMALLEST
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    entropy: Callable[[int], bytes] = os.urandom

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Answer a message; what is refused is answered with an error that says why."""
        try:
            content = self._answer(message, context, call_next)
        except AppFailedError as error:
            return Message(Error(FAILED, str(error)), reply_to=message)
        except StrategyError as error:
            log.warning("refused", extra={"kind": message.metadata.message_type, "why": str(error)})
            return Message(Error(REFUSED, f"refused: {error}"), reply_to=message)
        return Message(content, reply_to=message)

    def end_all(self) -> None:
        """Forget every session: the training is over."""
        for session, _ in list(self.sessions.sessions()):
            self.sessions.erase(session)

    def _answer(self, message: Message, context: Context, call_next: App) -> RecordDict:
        match message.metadata.message_type:
            case wire.ADVERTISE:
                return self._advertise(wire.secagg_fields(message.content))
            case wire.SHARE:
                return self._share(Roster.from_fields(wire.secagg_fields(message.content)))
            case wire.UNMASK:
                request = UnmaskRequest.from_fields(wire.secagg_fields(message.content))
                return self._reveal(request)
            case wire.TRAIN | wire.EVALUATE if wire.is_model(message.content):
                if wire.SECAGG in message.content.config_records:
                    return self._masked(message, context, call_next)
                return self._plain(message, context, call_next)
            case _:  # a message of someone else's server, for someone else's app
                return _run(call_next, message, context).content

    def _advertise(self, fields: dict[str, Any]) -> RecordDict:
        params = SessionParams.from_fields(fields)
        if (found := self._load(params.session)) is not None:
            return wire.secagg_content(client.advertise_again(found, params))
        self._forget_others(params.training)
        state, advertisement = client.advertise(
            params, self.identity, entropy=self.entropy(32), smallest=self.min_cohort
        )
        self._save(state)
        return wire.secagg_content(advertisement)

    def _share(self, roster: Roster) -> RecordDict:
        state, shares = client.share(
            self._require(roster.session),
            roster,
            ca=self.ca,
            now=self.now(),
            entropy=self.entropy(32),
        )
        self._save(state)
        return wire.secagg_content(shares)

    def _masked(self, message: Message, context: Context, call_next: App) -> RecordDict:
        delivery = Delivery.from_fields(wire.secagg_fields(message.content))
        state = client.open_shares(self._require(delivery.session), delivery)
        if state.masked is not None:
            return wire.secagg_content(state.masked)
        self._save(state)
        encoding = state.params.encoding
        names = tuple(name for name, _ in encoding.statistics)
        evaluate_only = message.metadata.message_type == wire.EVALUATE
        update = _updated(message, context, call_next, names)
        if evaluate_only:
            update = replace(update, vector=np.zeros(encoding.size, np.float32), weight=0.0)
        check_update(update, encoding.size, evaluate_only=evaluate_only)
        residues = encoding.encode(update, self.entropy(32))
        state, masked = client.mask(state, residues)
        self._save(state)
        return wire.secagg_content(masked)

    def _plain(self, message: Message, context: Context, call_next: App) -> RecordDict:
        _, _, names = wire.read_model(message.content)
        evaluate_only = message.metadata.message_type == wire.EVALUATE
        update = _updated(message, context, call_next, names)
        return wire.update_content(update, evaluate_only=evaluate_only)

    def _reveal(self, request: UnmaskRequest) -> RecordDict:
        state, reveal = client.reveal(self._require(request.session), request)
        self._save(state)
        return wire.secagg_content(reveal)

    def _load(self, session: bytes) -> State | None:
        stored = self.sessions.load(session)
        return None if stored is None else State.from_bytes(stored)

    def _require(self, session: bytes) -> State:
        state = self._load(session)
        if state is None:
            raise ProtocolError("this device is in no such session: it is over, or was lost")
        return state

    def _save(self, state: State) -> None:
        self.sessions.save(state.params.session, state.to_bytes(), now=self.now())

    def _forget_others(self, training: str) -> None:
        """Forget the sessions that a new one of a training makes obsolete, and old ones."""
        for session, saved in list(self.sessions.sessions()):
            try:
                state = self._load(session)
            except StoredStateError:
                state = None
            is_old = self.now() - saved > timedelta(seconds=KEEP_S)
            if state is None or is_old or state.params.training == training:
                self.sessions.erase(session)


def _run(app: App, message: Message, context: Context) -> Message:
    """Call the app.

    Raises:
        AppFailedError: It failed.
    """
    try:
        reply = app(message, context)
    except Exception as error:  # whatever a user's app raises
        log.exception("the app failed", extra={"kind": message.metadata.message_type})
        raise AppFailedError(f"the app failed: {type(error).__name__}") from error
    if reply.has_error():
        log.error("the app answered with an error", extra={"code": reply.error.code})
        raise AppFailedError(f"the app answered with error {reply.error.code}")
    return reply


def _updated(message: Message, context: Context, app: App, names: tuple[str, ...]) -> Update:
    """Have the app train or evaluate; return its update.

    Raises:
        AppFailedError: It failed.
        LayoutError: The message holds no model, or the app's arrays are not the model's.
        UpdateRefusedError: The app's answer is no update.
    """
    vector, layout, _ = wire.read_model(message.content)
    reply = _run(app, with_content(message, _unpacked(message.content, vector, layout)), context)
    if len(reply.content.metric_records) != 1:
        raise UpdateRefusedError(
            f"the app answers {len(reply.content.metric_records)} MetricRecords, expected one"
        )
    metrics = wire.scalars(next(iter(reply.content.metric_records.values())))
    if wire.WEIGHT not in metrics:
        raise UpdateRefusedError(f"the app's metrics lack {wire.WEIGHT!r}")
    if message.metadata.message_type == wire.EVALUATE:
        change: Vector = np.zeros(layout.size, np.float32)
    else:
        change = layout.pack(_arrays(reply.content)) - vector
    return Update(change, metrics[wire.WEIGHT], wire.statistics_of(metrics, names))


def _unpacked(content: RecordDict, vector: Vector, layout: Layout) -> RecordDict:
    """Return what the app gets: named arrays, and the config."""
    parameters = layout.unpack(vector)
    names = list(parameters)
    if all(name.isdecimal() for name in names):  # an app that knows its arrays by their order
        names.sort(key=int)
    config = content.config_records.get(wire.CONFIG, ConfigRecord())
    return RecordDict(
        {
            wire.ARRAYS: ArrayRecord({name: Array(parameters[name]) for name in names}),
            wire.CONFIG: config,
        }
    )


def _arrays(content: RecordDict) -> dict[str, npt.NDArray[Any]]:
    if len(content.array_records) != 1:
        raise UpdateRefusedError(
            f"the app answers {len(content.array_records)} ArrayRecords, expected one"
        )
    record = next(iter(content.array_records.values()))
    try:
        return {name: array.numpy() for name, array in record.items()}
    except (TypeError, ValueError, OSError, EOFError) as error:
        raise LayoutError(f"an array of the app cannot be read: {error}") from error
