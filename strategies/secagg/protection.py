"""The device's side of secure aggregation: the pure client, its state stored before each answer.

    query.secagg_advertise -> share -> (train | evaluate) -> query.secagg_unmask

A device that restarts gives the same answer again or none.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from wildflower.strategies import round_messages as wire
from wildflower.strategies.errors import ProtocolError, StoredStateError
from wildflower.strategies.protection import Train
from wildflower.strategies.secagg import client
from wildflower.strategies.secagg.client_state import State
from wildflower.strategies.secagg.keys import Identity
from wildflower.strategies.secagg.messages import (
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)
from wildflower.strategies.secagg.sessions import SessionStore, erase_all, erase_obsolete


@dataclass(frozen=True, slots=True)
class SecAgg:
    """Secure aggregation, as `protection.Protection` says.

    Attributes:
        identity: The device's identity.
        ca: The enrolment CA that was pinned; its devices' keys are believed.
        sessions: Where session states are kept.
        min_cohort: Fewest clients whose sum this device joins.
        now: The present, with a time zone.
        entropy: Returns so many secret random bytes.
        record: Name of the record that its messages travel in.
    """

    identity: Identity
    ca: x509.Certificate
    sessions: SessionStore
    min_cohort: int = client.SMALLEST
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    entropy: Callable[[int], bytes] = os.urandom
    record: str = wire.SECAGG

    def answer(
        self, kind: str, fields: dict[str, Any], train: Train
    ) -> Advertisement | Shares | Masked | Reveal:
        """Answer a message of a session.

        Raises:
            StrategyError: It is refused; the reason says why.
        """
        match kind:
            case wire.ADVERTISE:
                return self._advertise(SessionParams.from_fields(fields))
            case wire.SHARE:
                return self._share(Roster.from_fields(fields))
            case wire.UNMASK:
                return self._reveal(UnmaskRequest.from_fields(fields))
            case wire.TRAIN | wire.EVALUATE:
                return self._masked(Delivery.from_fields(fields), train)
            case _:
                raise ProtocolError(f"secure aggregation has no message {kind!r}")

    def made(self, fields: dict[str, Any]) -> bool:
        """Tell whether this very answer was made, and stored, here."""
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

    def end_all(self) -> None:
        """Forget every session: the training is over."""
        erase_all(self.sessions)

    def _advertise(self, params: SessionParams) -> Advertisement:
        if (found := self._load(params.session)) is not None:
            return client.advertise_again(found, params)
        erase_obsolete(self.sessions, params.training, _training_of, now=self.now())
        state, advertisement = client.advertise(
            params, self.identity, entropy=self.entropy(32), smallest=self.min_cohort
        )
        self._save(state)
        return advertisement

    def _share(self, roster: Roster) -> Shares:
        before = self._require(roster.session)
        state, shares = client.share(
            before, roster, ca=self.ca, now=self.now(), entropy=self.entropy(32)
        )
        self._save(state, before)
        return shares

    def _masked(self, delivery: Delivery, train: Train) -> Masked:
        before = self._require(delivery.session)
        state = client.open_shares(before, delivery)
        if state.masked is not None:
            return state.masked
        self._save(state, before)
        encoding = state.params.encoding
        residues = encoding.encode(train(encoding), self.entropy(32))
        state, masked = client.mask(state, residues)
        self._save(state)
        return masked

    def _reveal(self, request: UnmaskRequest) -> Reveal:
        before = self._require(request.session)
        state, reveal = client.reveal(before, request)
        self._save(state, before)
        return reveal

    def _load(self, session: bytes) -> State | None:
        stored = self.sessions.load(session)
        return None if stored is None else State.from_bytes(stored)

    def _require(self, session: bytes) -> State:
        state = self._load(session)
        if state is None:
            raise ProtocolError("this device is in no such session: it is over, or was lost")
        return state

    def _save(self, state: State, before: State | None = None) -> None:
        """Save a state, unless a repeated request left it as it was."""
        if state is not before:
            self.sessions.save(state.params.session, state.to_bytes(), now=self.now())


def _training_of(stored: bytes) -> str:
    return State.from_bytes(stored).params.training
