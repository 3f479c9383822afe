"""The device's own policy, held against every message that is about to leave it.

A server can ask for anything; a device whose policy says `secagg: required` answers with what the
secure-aggregation protocol made for this very session, or with an error. The check is on the
message itself: an app that answers on its own, or goes around the mod, changes nothing.
"""

import logging
from dataclasses import dataclass
from typing import Final

from flwr.app import Context, Error, Message

from wildflower.strategies import round_messages as wire
from wildflower.strategies.errors import StoredStateError
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.mod import REFUSED, App, SecAggMod
from wildflower.strategies.secagg.sessions import SessionStore

log = logging.getLogger(__name__)

MAX_REASON: Final = 500
"""Characters of an error's reason that leave the device."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A Flower mod that stands outermost: what it returns is what is sent.

    Attributes:
        secagg: "allowed": the server decides; anything else, and above all "required": nothing
            leaves in plain.
        sessions: Where the states of the device's sessions are kept.
    """

    secagg: str
    sessions: SessionStore

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Have a message answered, unless no answer to it may leave."""
        if self.secagg == "allowed":
            return call_next(message, context)
        if wire.SECAGG not in message.content.config_records:
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
        """Tell whether a reply holds one message of a session of ours, as it was stored."""
        content = reply.content
        if list(content) != [wire.SECAGG] or wire.SECAGG not in content.config_records:
            return False
        fields = dict(content.config_records[wire.SECAGG])
        session = fields.get("session")
        stored = self.sessions.load(session) if isinstance(session, bytes) else None
        if stored is None:
            return False
        try:
            state = State.from_bytes(stored)
        except StoredStateError:
            return False
        made = (state.advertisement, state.shares, state.masked, state.reveal)
        return any(each is not None and each.to_fields() == fields for each in made)


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands around a device's app.

    Attributes:
        outgoing: The device's policy, outermost.
        mod: Packing and masking.
    """

    outgoing: Outgoing
    mod: SecAggMod

    def around(self, app: App) -> App:
        """Return the app behind the mod behind the policy."""

        def masked(message: Message, context: Context) -> Message:
            return self.mod(message, context, app)

        def answer(message: Message, context: Context) -> Message:
            return self.outgoing(message, context, masked)

        return answer
