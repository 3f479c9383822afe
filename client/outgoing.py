"""The device's own policy, held against every message that is about to leave it.

A server can ask for anything; a device whose policy says `secagg: required` answers with what one
of its protections (secure aggregation, above all) made for this very session, or with an error.
The check is on the message itself: an app that answers on its own, or goes around the mod, changes
nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flwr.app import Context, Error, Message

from wildflower.client.privacy_guard import PrivacyGuard
from wildflower.strategies.mod import REFUSED, App, UpdateMod
from wildflower.strategies.protection import Protection

log = logging.getLogger(__name__)

MAX_REASON: Final = 500
"""Characters of an error's reason that leave the device."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A Flower mod that stands outermost: what it returns is what is sent.

    Attributes:
        secagg: "allowed": the server decides; anything else, and above all "required": nothing
            leaves in plain.
        protections: The ways in which updates of this device may be protected.
    """

    secagg: str
    protections: Sequence[Protection]

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Have a message answered, unless no answer to it may leave."""
        if self.secagg == "allowed":
            return call_next(message, context)
        if not any(each.record in message.content.config_records for each in self.protections):
            return self._refusal(message, "its policy demands secure aggregation")
        reply = call_next(message, context)
        if reply.has_error():
            reason = reply.error.reason or ""
            return Message(Error(reply.error.code, reason[:MAX_REASON]), reply_to=message)
        if not self._is_protected(reply):
            return self._refusal(message, "the answer was not what secure aggregation made")
        return reply

    def _refusal(self, message: Message, why: str) -> Message:
        log.warning("nothing sent", extra={"kind": message.metadata.message_type, "why": why})
        return Message(Error(REFUSED, f"the device refuses: {why}"), reply_to=message)

    def _is_protected(self, reply: Message) -> bool:
        """Tell whether a reply holds one message of one protection of ours, as it was stored."""
        content = reply.content
        for protection in self.protections:
            if list(content) == [protection.record] and protection.record in content.config_records:
                return protection.made(dict(content.config_records[protection.record]))
        return False


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands around a device's app.

    Attributes:
        outgoing: The device's policy on protections.
        mod: Packing and protecting.
        privacy: The device's privacy budget, outermost; None for a device that keeps no book.
    """

    outgoing: Outgoing
    mod: UpdateMod
    privacy: PrivacyGuard | None = None

    def around(self, app: App) -> App:
        """Return the app behind the mod behind the policy."""

        def masked(message: Message, context: Context) -> Message:
            return self.mod(message, context, app)

        def answer(message: Message, context: Context) -> Message:
            return self.outgoing(message, context, masked)

        def paid(message: Message, context: Context) -> Message:
            if self.privacy is None:
                return answer(message, context)
            return self.privacy(message, context, answer)

        return paid
