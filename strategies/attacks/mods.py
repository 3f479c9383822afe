"""Attacks at their places in a Flower message's way: in the app, at the device's door, on the wire.

    app = ClientApp(mods=[ByzantineMod(sign_flip)])     the app lies; everything around it is honest
    door = tampered(app, wire.UNMASK, change)           the server asks for more than it may
    heard = listening(transcripts)                      the server remembers all it carries

`ByzantineMod` works in plain Flower and behind secure aggregation alike: it stands between the app
and whatever packs and masks its answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from wildflower.strategies import round_messages as wire
from wildflower.strategies.arrays import Layout, Update
from wildflower.strategies.attacks.byzantine import Attack
from wildflower.strategies.attacks.curious import Message as Heard
from wildflower.strategies.attacks.curious import Transcript
from wildflower.strategies.errors import SecAggError
from wildflower.strategies.flower_compat.messages import SERVER_NODE, with_content
from wildflower.strategies.secagg.fields import Fields
from wildflower.strategies.secagg.messages import (
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
)

App = Callable[[Message, Context], Message]
"""A ClientApp, or anything that is called like one."""

_READERS: Final[Mapping[str, Callable[[Fields], Heard]]] = {
    "params": SessionParams.from_fields,
    "advertisement": Advertisement.from_fields,
    "roster": Roster.from_fields,
    "delivery": Delivery.from_fields,
    "masked": Masked.from_fields,
    "reveal": Reveal.from_fields,
}
"""What a curious server learns from, by the kind that its record states."""


@dataclass(frozen=True, slots=True)
class ByzantineMod:
    """A Flower mod whose app sends something else than it learned.

    Attributes:
        attack: What becomes of the update: the trained arrays minus those that were sent.
    """

    attack: Attack

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Have the app train, and change what it answers; anything but training passes."""
        reply = call_next(message, context)
        if message.metadata.message_type != wire.TRAIN or reply.has_error():
            return reply
        [(name, trained)] = reply.content.array_records.items()
        [metrics] = reply.content.metric_records.values()
        sent = {key: each.numpy() for key, each in _only(message.content).items()}
        layout = Layout.of(sent)
        before = layout.pack(sent)
        after = layout.pack({key: each.numpy() for key, each in trained.items()})
        weight = wire.scalars(metrics)[wire.WEIGHT]
        attacked = self.attack(Update(after - before, weight, {}))
        metrics[wire.WEIGHT] = attacked.weight
        with np.errstate(invalid="ignore"):  # an attack may well be infinite
            arrays = layout.unpack(before + attacked.vector)
        reply.content[name] = ArrayRecord({key: Array(arrays[key]) for key in trained})
        return reply


def tampered(app: App, kind: str, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> App:
    """Return the app behind a server that changes what it asks for.

    Args:
        app: What is called with the changed message.
        kind: Flower's type of the messages that are changed, such as `round_messages.UNMASK`.
        change: Gets the fields of the message's "secagg" record, returns others.
    """

    def answer(message: Message, context: Context) -> Message:
        record = message.content.config_records.get(wire.SECAGG)
        if message.metadata.message_type != kind or record is None:
            return app(message, context)
        changed = ConfigRecord(dict(change(dict(record))))
        content = RecordDict({**message.content, wire.SECAGG: changed})
        return app(with_content(message, content), context)

    return answer


def listening(transcripts: dict[bytes, Transcript]) -> Callable[[Message], None]:
    """Return what hears a grid's messages (`InProcessGrid(..., watch=...)`).

    Args:
        transcripts: Gets a transcript for each session whose parameters were heard, by its id.
            What is no message of a session is passed over.
    """
    devices: dict[int, str] = {}

    def hear(message: Message) -> None:
        heard = _heard(message)
        if heard is None:
            return
        meta = message.metadata
        node = meta.dst_node_id if meta.src_node_id == SERVER_NODE else meta.src_node_id
        if isinstance(heard, SessionParams):
            transcripts.setdefault(heard.session, Transcript(heard))
        if isinstance(heard, Advertisement):
            devices[node] = heard.device
        if heard.session in transcripts and node in devices:
            transcripts[heard.session].hear(devices[node], heard)

    return hear


def _heard(message: Message) -> Heard | None:
    if message.has_error() or wire.SECAGG not in message.content.config_records:
        return None
    fields = dict(message.content.config_records[wire.SECAGG])
    reader = _READERS.get(str(fields.get("kind")))
    try:
        return None if reader is None else reader(fields)
    except SecAggError:
        return None


def _only(content: RecordDict) -> ArrayRecord:
    [record] = content.array_records.values()
    return record
