"""How an update leaves a device in a homomorphic session: encrypted to a key holder.

    invitation -> key checked against the pinned holder -> trained -> encrypted -> stored -> sent

Only the key holder can decrypt, and it is asked for the sum alone; the server that adds the
ciphertexts up cannot. Trusted is therefore that the two do not work together, and that the server
asks for the sum of all and not of one: the key holder cannot tell these apart.

Answers lie in a store of their own: other protections read every state in theirs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self

import numpy as np

from wildflower.strategies.errors import ProtocolError, StoredStateError
from wildflower.strategies.he import trust
from wildflower.strategies.he.bfv import PublicKey
from wildflower.strategies.he.messages import (
    DIGEST,
    MAX_RUN,
    SMALLEST,
    Encrypted,
    Invitation,
    cut,
    digest_of,
    join,
)
from wildflower.strategies.protection import Train
from wildflower.strategies.secagg.keys import Identity
from wildflower.strategies.secagg.sessions import SessionStore, erase_all, erase_obsolete

RECORD: Final = "he"
"""Name of the record that asks for an encrypted answer and carries it."""


@dataclass(frozen=True, slots=True)
class Made:
    """An answer that was made, and to what.

    Attributes:
        run: What its key is for.
        invitation: Digest of the invitation, 32 bytes.
        answer: What leaves, again and again.
    """

    run: str
    invitation: bytes
    answer: Encrypted

    def to_bytes(self) -> bytes:
        """Return the stored form; `from_bytes(made.to_bytes()) == made`."""
        fields = self.answer.to_fields()
        ciphertexts = fields.pop("ciphertexts")
        own = {"run": self.run, "invitation": self.invitation}
        return join({**fields, **own}, ciphertexts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            StoredStateError: Nothing of ours.
        """
        try:
            fields, ciphertexts = cut(data)
            run, invitation = fields.pop("run", None), fields.pop("invitation", None)
            answer = Encrypted.from_fields({**fields, "ciphertexts": list(ciphertexts)})
        except ProtocolError as error:
            raise StoredStateError(f"a stored answer cannot be read: {error}") from error
        if not isinstance(run, str) or not 1 <= len(run) <= MAX_RUN:
            raise StoredStateError("a stored answer lacks its run")
        if not isinstance(invitation, bytes) or len(invitation) != DIGEST:
            raise StoredStateError("a stored answer lacks its invitation's digest")
        return cls(run, invitation, answer)


@dataclass(frozen=True, slots=True)
class Homomorphic:
    """A device's way of answering homomorphic sessions, as `protection.Protection` says.

    Attributes:
        identity: The device's identity.
        sessions: Where its answers are kept, and nobody else's.
        key_holder: Id of the key holder that the device's owner trusts: `key_holder` in
            policy.toml; "" trusts none.
        min_cohort: Fewest devices whose sum this device joins.
        now: The present, with a time zone.
        entropy: Returns so many secret random bytes.
        record: Name of the record that asks for it and carries its answers.
    """

    identity: Identity
    sessions: SessionStore
    key_holder: str
    min_cohort: int = SMALLEST
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    entropy: Callable[[int], bytes] = os.urandom
    record: str = RECORD

    def answer(self, kind: str, fields: dict[str, Any], train: Train) -> Encrypted:
        """Return the answer to a session: the stored one, or one that is stored before.

        Args:
            kind: Flower's message type; training and evaluation are answered alike.
            fields: Of the record that asks.
            train: Has the app work; called at most once, and only for a session that is in order.

        Raises:
            ProtocolError: The session or its key is refused.
            StoredStateError: What is stored for it cannot be read.
            MissingPackageError: TenSEAL is not installed on this device.
            UpdateRefusedError: The app's update may not enter the sum.
        """
        del kind
        invitation = Invitation.from_fields(fields)
        if (stored := self.sessions.load(invitation.session)) is not None:
            return _again(Made.from_bytes(stored), invitation)
        key = self._checked(invitation)
        erase_obsolete(self.sessions, invitation.key.run, _run_of, now=self.now())
        encoding = invitation.encoding
        residues = encoding.encode(train(encoding), self.entropy(32))
        answer = self._signed(invitation, key.encrypt(residues.astype(np.uint16, copy=False)))
        made = Made(invitation.key.run, invitation.digest, answer)
        self.sessions.save(invitation.session, made.to_bytes(), now=self.now())
        return answer

    def made(self, fields: dict[str, Any]) -> bool:
        """Tell whether these are the fields of an answer that was made and stored here."""
        session = fields.get("session")
        stored = self.sessions.load(session) if isinstance(session, bytes) else None
        if stored is None:
            return False
        try:
            return Made.from_bytes(stored).answer.to_fields() == fields
        except StoredStateError:
            return False

    def end_all(self) -> None:
        """Forget every session: the training is over."""
        erase_all(self.sessions)

    def _checked(self, invitation: Invitation) -> PublicKey:
        """Return the key to encrypt under, once its holder's word is good enough."""
        trust.check_key(
            invitation.key, holder=self.key_holder, min_cohort=self.min_cohort, now=self.now()
        )
        if invitation.encoding.clients < self.min_cohort:
            raise ProtocolError(
                f"a cohort of {invitation.encoding.clients}, this device wants"
                f" {self.min_cohort} or more"
            )
        return PublicKey.load(invitation.key.context)

    def _signed(self, invitation: Invitation, ciphertexts: tuple[bytes, ...]) -> Encrypted:
        device = self.identity.device_id
        signed = trust.update_bytes(invitation, device, digest_of(ciphertexts))
        return Encrypted(
            invitation.session,
            device,
            ciphertexts,
            self.identity.certificate_der,
            self.identity.sign(signed),
        )


def _again(made: Made, invitation: Invitation) -> Encrypted:
    """Return the answer to a session that was answered already."""
    if made.invitation != invitation.digest:
        raise ProtocolError("this session was answered already, and asked something else then")
    return made.answer


def _run_of(stored: bytes) -> str:
    return Made.from_bytes(stored).run
