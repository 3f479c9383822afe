"""The device's privacy budget, held against every message that is about to leave it.

    message -> PrivacyGuard (budget) -> Outgoing (masks) -> mod (clipping, noise, masking) -> app

Where `policy.toml` sets `max_epsilon_per_month`, an answer leaves only if it is differentially
private for the policy's unit, if the month can still pay for it, and after it has been paid.

    unit      what makes an answer private            where that happens     what it costs
    device    a rule that clips, and noise on the sum  the mod, or the server  the request's claim
    example   DP-SGD                                   our own training only   the steps it took

For the unit "device" the mod clips, whatever the app does; that the sum gets the noise that the
request claims is a server's word, unless the noise is the device's own. For the unit "example" an
app of someone else cannot be believed: only training of ours can write the spend that lets an
answer out, so an app that answers on its own gets nothing past this guard.

A server that asks again for an answer that it got is answered without a second payment only while
the budget still has room for one: a device that cannot tell the two apart would rather be silent.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flwr.app import Array, Context, Error, Message, RecordDict

from wildflower.client.dp_training import PrivatePlan
from wildflower.client.errors import ClientError, PolicyError
from wildflower.client.privacy_book import Book, PrivacyBook, Spend
from wildflower.strategies import round_messages as wire
from wildflower.strategies.dp import claim
from wildflower.strategies.dp.events import Event, Gaussian
from wildflower.strategies.errors import StrategyError
from wildflower.strategies.mod import REFUSED, App
from wildflower.strategies.protection import Protection

log = logging.getLogger(__name__)

MAX_REASON: Final = 200
"""Characters of an error's reason that leave the device."""


@dataclass(frozen=True, slots=True)
class PrivacyGuard:
    """A Flower mod that stands outside of everything else.

    Attributes:
        book: What was spent.
        protections: What answers trips of its own, alone, with keys and shares: nothing of the
            examples is in them, so they cost nothing.
        limit: Largest epsilon of 30 days; 0 for none.
        unit: "device" or "example".
        delta: At which it is told.
    """

    book: PrivacyBook
    protections: Sequence[Protection] = ()
    limit: float = 0.0
    unit: str = "device"
    delta: float = 1e-5

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        """Have a message answered, unless the answer must not leave or cannot be paid."""
        if not self.limit or self._is_free(message):
            return call_next(message, context)
        try:
            price = self._price(message)
            before = self.book.read()
            if price is not None:
                self._require(before, price)
            reply = call_next(message, context)
            if reply.has_error():
                reason = (reply.error.reason or "")[:MAX_REASON]
                return Message(Error(reply.error.code, reason), reply_to=message)
            self._pay(before, price, digest_of(reply.content))
        except (ClientError, StrategyError) as error:
            why = {"kind": message.metadata.message_type, "why": str(error)}
            log.warning("nothing sent", extra=why)
            return Message(Error(REFUSED, f"the device refuses: {error}"), reply_to=message)
        return reply

    def charge(self, event: Event) -> float:
        """Pay for a private training of ours, before it begins.

        Args:
            event: What it will release of each example.

        Returns:
            The epsilon per example that this device has spent in its life, this included.

        Raises:
            PolicyError: The month cannot pay for it, or the book cannot be read or written.
        """
        if self.limit and self.unit == "example":
            self._require(self.book.read(), event)
        self.book.record([("example", event)])
        return self.book.read().epsilon("example", delta=self.delta)

    def _is_free(self, message: Message) -> bool:
        if message.metadata.message_type in (wire.TRAIN, wire.EVALUATE):
            return False
        return any(each.record in message.content.config_records for each in self.protections)

    def _price(self, message: Message) -> Event | None:
        """Return what an answer will cost; None if training itself will know.

        Raises:
            PolicyError: No answer to this message is private.
        """
        content, kind = message.content, message.metadata.message_type
        if kind not in (wire.TRAIN, wire.EVALUATE) or not wire.is_model(content):
            raise PolicyError(f"its privacy budget allows no answer to {kind[:40]!r}")
        config = dict(content.config_records.get(wire.CONFIG, {}))
        if self.unit != "example":
            return _price_of(config)
        if kind == wire.EVALUATE:
            raise PolicyError("its policy protects examples, an evaluation adds them up exactly")
        if PrivatePlan.of(config) is None:
            raise PolicyError("its policy protects examples, and the request asks for no DP-SGD")
        return None

    def _require(self, book: Book, event: Event) -> None:
        spend = Spend(self.book.now(), self.unit, event)
        book.require(spend, delta=self.delta, limit=self.limit)

    def _pay(self, before: Book, price: Event | None, answer: str) -> None:
        """Write down what an answer costs, unless it was paid already.

        Raises:
            PolicyError: It was to be paid by training, and training did not.
        """
        if answer in before.answers:
            return
        if price is not None:
            self.book.record([(self.unit, price)], answer=answer)
        elif self.book.read().events("example") != before.events("example"):
            self.book.record([], answer=answer)
        else:
            raise PolicyError("its policy protects examples, and the answer was not made by DP-SGD")


def _price_of(config: Mapping[str, object]) -> Event:
    """Return what an answer costs the whole device.

    Raises:
        PolicyError: Nothing bounds what it says of the device.
    """
    from wildflower.strategies.dp.rule import ClientRule

    rule, event = ClientRule.from_config(config), claim.from_config(config)
    if rule is not None and rule.local_noise:
        # The server sees who answers: a neighbour is another answer, not none (`dp.local`), and
        # what is replaced moves by twice what is added.
        return Gaussian(rule.local_noise / 2)
    if rule is None or event is None:
        raise PolicyError("it has a privacy budget, and the request is not differentially private")
    return claim.of_one_answer(event)


def digest_of(content: RecordDict) -> str:
    """Return the SHA-256 of everything that an answer holds, in hex."""
    found = hashlib.sha256()
    for name in sorted(content):
        record = content[name]
        found.update(f"{type(record).__name__}/{name}\n".encode())
        for key in sorted(record):
            value = record[key]
            data = value.data if isinstance(value, Array) else value
            data = data if isinstance(data, bytes) else repr(data).encode()
            kind = f"{value.dtype}{value.shape}" if isinstance(value, Array) else type(value)
            found.update(f"{key!r}/{kind}/{len(data)}\n".encode() + data)
    return found.hexdigest()
