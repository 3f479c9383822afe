"""The device's side of a one-shot session: the pure half, its answer stored before it is sent.

    (train | evaluate) -> checked against the owner's list -> trained -> masked -> stored -> sent

The answers lie in a store of their own: other protections read every state in theirs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from wildflower.strategies import round_messages as wire
from wildflower.strategies.errors import ProtocolError, StoredStateError
from wildflower.strategies.protection import Train
from wildflower.strategies.secagg import one_shot
from wildflower.strategies.secagg.keys import Identity
from wildflower.strategies.secagg.one_shot_messages import (
    SMALLEST,
    OneShotAnswer,
    OneShotParams,
)
from wildflower.strategies.secagg.sessions import SessionStore, erase_all, erase_obsolete

RECORD: Final = "one-shot"
"""Name of the record that asks for a one-shot answer and carries it."""


@dataclass(frozen=True, slots=True)
class OneShot:
    """One-shot sessions, as `protection.Protection` says.

    Attributes:
        identity: The device's identity.
        sessions: Where its answers are kept, and nobody else's.
        helpers: Digests of the helpers that the device's owner trusts: `helpers` in policy.toml.
        min_cohort: Fewest devices whose sum this device joins.
        now: The present, with a time zone.
        entropy: Returns so many secret random bytes.
        record: Name of the record that asks for it and carries its answers.
    """

    identity: Identity
    sessions: SessionStore
    helpers: tuple[str, ...]
    min_cohort: int = SMALLEST
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    entropy: Callable[[int], bytes] = os.urandom
    record: str = RECORD

    def answer(self, kind: str, fields: dict[str, Any], train: Train) -> OneShotAnswer:
        """Answer a training or an evaluation: with the stored answer, or a new one.

        Raises:
            StrategyError: It is refused; the reason says why.
        """
        if kind not in {wire.TRAIN, wire.EVALUATE}:
            raise ProtocolError(f"a one-shot session has no message {kind!r}")
        params = OneShotParams.from_fields(fields)
        if (stored := self.sessions.load(params.session)) is not None:
            return one_shot.repeat_answer(one_shot.Made.from_bytes(stored), params)
        one_shot.check_params(params, helpers=self.helpers, smallest=self.min_cohort)
        erase_obsolete(self.sessions, params.training, _training_of, now=self.now())
        residues = params.encoding.encode(train(params.encoding), self.entropy(32))
        made = one_shot.make_answer(
            params,
            self.identity,
            residues,
            smallest=self.min_cohort,
            entropy=self.entropy(32),
        )
        self.sessions.save(params.session, made.to_bytes(), now=self.now())
        return made.answer

    def made(self, fields: dict[str, Any]) -> bool:
        """Tell whether these are the fields of an answer that was made and stored here."""
        session = fields.get("session")
        stored = self.sessions.load(session) if isinstance(session, bytes) else None
        if stored is None:
            return False
        try:
            return one_shot.Made.from_bytes(stored).answer.to_fields() == fields
        except StoredStateError:
            return False

    def end_all(self) -> None:
        """Forget every session: the training is over."""
        erase_all(self.sessions)


def _training_of(stored: bytes) -> str:
    return one_shot.Made.from_bytes(stored).params.training
