"""What stands between a round's messages and the app that trains: packing, guarding, protecting.

An app is any Flower ClientApp, unchanged: it gets named arrays and a config, and answers arrays and
metrics with "num-examples". The mod unpacks the flat model for it, makes an update of its answer,
refuses one that would spoil the sum, and hands it to the protection that the round asks for.

An app's own error texts stay on the device: they may hold what masks are there to hide.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Layout, Update, Vector
from wildflower.strategies.dp.rule import ClientRule
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import (
    AppFailedError,
    LayoutError,
    StrategyError,
    UpdateRefusedError,
)
from wildflower.strategies.flower_compat.messages import with_content
from wildflower.strategies.guards import check_update
from wildflower.strategies.protection import Protection

log = logging.getLogger(__name__)

REFUSED: Final = 1001
"""Error code of an answer: the request or the update was refused; the reason says why."""
FAILED: Final = 1002
"""Error code of an answer: the app failed; what it said is in the device's log."""

App = Callable[[Message, Context], Message]
"""A ClientApp, or anything that is called like one."""


@dataclass(frozen=True, slots=True)
class UpdateMod:
    """A Flower mod: call it with a message, its context and the app.

    Attributes:
        protections: The ways in which updates of this device may be protected.
        entropy: Returns so many secret random bytes.
    """

    protections: Sequence[Protection]
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
        for protection in self.protections:
            protection.end_all()

    def _answer(self, message: Message, context: Context, app: App) -> RecordDict:
        kind, content = message.metadata.message_type, message.content
        for protection in self.protections:
            if protection.record in content.config_records:
                return wire.protected_content(
                    protection.record,
                    protection.answer(
                        kind,
                        wire.protected_fields(content, protection.record),
                        lambda encoding: self._guarded(message, context, app, encoding),
                    ),
                )
        if kind in {wire.TRAIN, wire.EVALUATE} and wire.is_model(content):
            return self._plain(message, context, app)
        return _run(app, message, context).content  # of someone else's server, for someone's app

    def _guarded(
        self, message: Message, context: Context, app: App, encoding: SumEncoding
    ) -> Update:
        """Return the app's update as a sum takes it; an evaluation adds up no vector."""
        evaluate_only = message.metadata.message_type == wire.EVALUATE
        update = self._bounded(message, context, app, encoding.names)
        if evaluate_only:
            update = replace(update, vector=np.zeros(encoding.size, np.float32), weight=0.0)
        check_update(update, encoding.size, evaluate_only=evaluate_only)
        return update

    def _plain(self, message: Message, context: Context, app: App) -> RecordDict:
        _, _, names = wire.read_model(message.content)
        evaluate_only = message.metadata.message_type == wire.EVALUATE
        update = self._bounded(message, context, app, names)
        return wire.update_content(update, evaluate_only=evaluate_only)

    def _bounded(
        self, message: Message, context: Context, app: App, names: tuple[str, ...]
    ) -> Update:
        """Return the app's update within the round's privacy rule, if it has one."""
        update = _updated(message, context, app, names)
        config = message.content.config_records.get(wire.CONFIG, ConfigRecord())
        rule = ClientRule.from_config(dict(config))
        if rule is None:
            return update
        evaluate_only = message.metadata.message_type == wire.EVALUATE
        return rule.bound(update, self.entropy(32), evaluate_only=evaluate_only)


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
