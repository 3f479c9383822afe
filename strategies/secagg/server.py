"""The server's half of a secure-aggregation session.

    phase         receives         then
    ADVERTISING   Advertisement    rosters()     -> SHARING      a Roster for each
    SHARING       Shares           deliveries()  -> MASKING      a Delivery for each
    MASKING       Masked           requests()    -> UNMASKING    an UnmaskRequest for each
    UNMASKING     Reveal           total()       -> DONE         the sum of the survivors' residues

`receive` takes one client's message; a refused one (`ProtocolError`) changes nothing and makes its
sender a dropout, no more. The caller decides when it has waited long enough and closes the phase;
`is_enough` tells when waiting on cannot change the outcome. Clients may be lost in every phase: the
session ends with the exact sum of those whose masked update arrived, or in `SessionAbortedError`,
and the secrets it puts together are checked against what their owners signed.

Messages add up as they arrive: the server holds one vector, however many clients there are. The
session lives in memory; after a crash of the server the round begins a new one.

Source: Bell et al., CCS 2020, figure 2. One thing it leaves open: a client around which fewer than
`threshold` clients shared their secrets could never be unmasked; it is left out before it trains.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum, unique
from typing import Final, assert_never

import numpy as np
from cryptography import x509

from wildflower.strategies.errors import ProtocolError, SessionAbortedError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.graph import SMALLEST, neighbours
from wildflower.strategies.secagg.masking import add_masks
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
from wildflower.strategies.secagg.shamir import combine


@unique
class Phase(StrEnum):
    """What the server waits for."""

    ADVERTISING = "advertising"
    SHARING = "sharing"
    MASKING = "masking"
    UNMASKING = "unmasking"
    DONE = "done"
    ABORTED = "aborted"


Message = Advertisement | Shares | Masked | Reveal

ACCEPTED: Final[Mapping[Phase, type[Message]]] = {
    Phase.ADVERTISING: Advertisement,
    Phase.SHARING: Shares,
    Phase.MASKING: Masked,
    Phase.UNMASKING: Reveal,
}
"""What each phase receives; DONE and ABORTED receive nothing."""

TRANSITIONS: Final[Mapping[Phase, Phase]] = {
    Phase.ADVERTISING: Phase.SHARING,
    Phase.SHARING: Phase.MASKING,
    Phase.MASKING: Phase.UNMASKING,
    Phase.UNMASKING: Phase.DONE,
}
"""Where closing a phase leads, if the session can still finish; to ABORTED otherwise."""


class Session:
    """One session; it has identity and changes with each message.

    Attributes:
        params: What all clients agree on.
        phase: What it waits for.
    """

    def __init__(
        self, params: SessionParams, cohort: Collection[str], *, ca: x509.Certificate
    ) -> None:
        """Begin.

        Args:
            params: What is proposed to the clients.
            cohort: The device ids it is proposed to, at most params.clients.
            ca: The enrolment CA whose devices may take part.
        """
        if not SMALLEST <= len(set(cohort)) <= params.clients:
            raise ValueError(f"{len(set(cohort))} clients, the parameters are for {params.clients}")
        self.params = params
        self.phase = Phase.ADVERTISING
        self._ca = ca
        self._expected = frozenset(cohort)
        self._advertised: dict[str, Advertisement] = {}
        self._neighbours: dict[str, tuple[str, ...]] = {}
        self._shared: dict[str, Shares] = {}
        self._total: Residues = np.zeros(params.encoding.length, params.encoding.dtype)
        self._masked: set[str] = set()
        self._requests: dict[str, UnmaskRequest] = {}
        self._revealed: dict[str, Reveal] = {}

    @property
    def survivors(self) -> tuple[str, ...]:
        """Device ids of the clients in the sum, sorted; final once MASKING is closed."""
        return tuple(sorted(self._masked))

    @property
    def missing(self) -> frozenset[str]:
        """Device ids of the clients this phase still waits for."""
        return self._expected - self._arrived()

    @property
    def is_enough(self) -> bool:
        """True if waiting on cannot change the outcome: all are there, or all can be unmasked."""
        return not self.missing or (
            self.phase is Phase.UNMASKING and not self._unrecoverable(self._revealed)
        )

    def receive(self, sender: str, message: Message, *, now: datetime) -> None:
        """Take one client's message.

        Args:
            sender: The device id that the transport vouches for.
            message: What it sent; the same client's second message of a phase is refused.
            now: The present, with a time zone.

        Raises:
            ProtocolError: Not what this phase expects of this client; nothing changed.
        """
        if ACCEPTED.get(self.phase) is not type(message):
            raise ProtocolError(f"{type(message).__name__} while {self.phase}")
        if message.session != self.params.session:
            raise ProtocolError(f"{type(message).__name__} of another session")
        if sender not in self._expected:
            raise ProtocolError(f"{sender} is not expected while {self.phase}")
        if sender in self._arrived():
            raise ProtocolError(f"a second {type(message).__name__} of {sender}")
        match message:
            case Advertisement():
                self._take_advertisement(sender, message, now)
            case Shares():
                self._take_shares(sender, message)
            case Masked():
                self._take_masked(sender, message)
            case Reveal():
                self._take_reveal(sender, message)
            case _:
                assert_never(message)

    def _arrived(self) -> frozenset[str]:
        match self.phase:
            case Phase.ADVERTISING:
                return frozenset(self._advertised)
            case Phase.SHARING:
                return frozenset(self._shared)
            case Phase.MASKING:
                return frozenset(self._masked)
            case Phase.UNMASKING | Phase.DONE | Phase.ABORTED:
                return frozenset(self._revealed)
            case _:
                assert_never(self.phase)

    def _take_advertisement(self, sender: str, message: Advertisement, now: datetime) -> None:
        if message.device != sender:
            raise ProtocolError(f"{sender} advertises keys of {message.device}")
        keys.verify(self.params, message, ca=self._ca, now=now)
        for public in (message.sealing_key, message.masking_key):
            keys.check_order(public)  # it would make every neighbour give up
        self._advertised[sender] = message

    def _take_shares(self, sender: str, message: Shares) -> None:
        if set(message.sealed) != set(self._neighbours[sender]):
            raise ProtocolError(
                f"{sender} shares with {len(message.sealed)} clients, its neighbours are"
                f" {len(self._neighbours[sender])} others"
            )
        self._shared[sender] = message

    def _take_masked(self, sender: str, message: Masked) -> None:
        if len(message.residues) != self._total.nbytes:
            raise ProtocolError(
                f"{sender} sends {len(message.residues)} bytes of residues, expected"
                f" {self._total.nbytes}"
            )
        np.add(self._total, message.vector(self._total.dtype), out=self._total)
        self._masked.add(sender)

    def _take_reveal(self, sender: str, message: Reveal) -> None:
        request = self._requests[sender]
        if (set(message.seeds), set(message.keys)) != (set(request.alive), set(request.dead)):
            raise ProtocolError(f"{sender} reveals other shares than it was asked for")
        self._revealed[sender] = message

    def rosters(self, *, entropy: bytes) -> dict[str, Roster]:
        """Close ADVERTISING; return what each client that advertised gets.

        Args:
            entropy: 32 random bytes that decide who is whose neighbour.

        Raises:
            SessionAbortedError: Too few clients advertised.
        """
        after = self._close(Phase.ADVERTISING)
        self._require(len(self._advertised), "advertised keys")
        self._neighbours = neighbours(self._advertised, self.params.degree, entropy=entropy)
        self._expected, self.phase = frozenset(self._advertised), after
        return {
            device: Roster(self.params.session, tuple(self._advertised[other] for other in listed))
            for device, listed in self._neighbours.items()
        }

    def deliveries(self) -> dict[str, Delivery]:
        """Close SHARING; return what each client that goes on gets.

        Raises:
            SessionAbortedError: Too few clients shared their secrets.
        """
        after = self._close(Phase.SHARING)
        self._require(len(self._shared), "shared their secrets")
        going_on = set(self._shared)
        while lonely := {
            device for device in going_on if self._holders(device, going_on) < self.params.threshold
        }:
            going_on -= lonely
        self._require(len(going_on), "shared their secrets and have neighbours that did")
        self._expected, self.phase = frozenset(going_on), after
        return {
            device: Delivery(
                self.params.session,
                {
                    other: self._shared[other].sealed[device]
                    for other in self._neighbours[device]
                    if other in going_on
                },
            )
            for device in sorted(going_on)
        }

    def requests(self) -> dict[str, UnmaskRequest]:
        """Close MASKING; return what each survivor is asked for.

        Raises:
            SessionAbortedError: Too few masked updates arrived.
        """
        after = self._close(Phase.MASKING)
        dead = self._expected - self._masked
        self._require(len(self._masked), "sent their masked update")
        self._requests = {
            device: UnmaskRequest(
                self.params.session,
                tuple(sorted({device, *self._neighbours[device]} & self._masked)),
                tuple(sorted(dead & set(self._neighbours[device]))),
            )
            for device in sorted(self._masked)
        }
        if lost := self._unrecoverable(self._masked):
            raise self._abort(
                f"{len(self._masked)} masked updates arrived, the masks of {len(lost)} clients can"
                f" not be taken off with them: {self.params.threshold} holders each are needed"
            )
        self._expected, self.phase = frozenset(self._masked), after
        return dict(self._requests)

    def total(self) -> Residues:
        """Close UNMASKING; return the sum of the survivors' residues, shape (length,).

        Raises:
            SessionAbortedError: Too few clients answered, or their shares do not fit.
        """
        after = self._close(Phase.UNMASKING)
        if lost := self._unrecoverable(self._revealed):
            raise self._abort(
                f"{len(self._revealed)} of {len(self._masked)} clients answered: the masks of"
                f" {len(lost)} cannot be taken off, {self.params.threshold} shares each are needed"
            )
        plus: list[bytes] = []
        minus = [self._own_mask(device) for device in self.survivors]
        for device in sorted(self._gone()):
            self._collect_pair_masks(device, plus, minus)
        add_masks(self._total, plus, minus)
        self.phase = after
        return self._total

    def _close(self, phase: Phase) -> Phase:
        if self.phase is not phase:
            raise ProtocolError(f"closing {phase} while {self.phase}")
        return TRANSITIONS[phase]

    def _require(self, count: int, did: str) -> None:
        needed = max(SMALLEST, self.params.threshold)
        if count < needed:
            raise self._abort(
                f"{count} of {len(self._expected)} clients {did}, {needed} are needed"
            )

    def _abort(self, reason: str) -> SessionAbortedError:
        self.phase = Phase.ABORTED
        return SessionAbortedError(reason, hint="No sum was revealed; begin a new session.")

    def _holders(self, device: str, among: Collection[str]) -> int:
        """Return how many of `among` hold a share of the device's secrets, itself included."""
        return len(({device, *self._neighbours[device]}).intersection(among))

    def _gone(self) -> set[str]:
        """Return who shared secrets, is not in the sum, and left a mask in it."""
        return {device for request in self._requests.values() for device in request.dead}

    def _unrecoverable(self, answering: Collection[str]) -> set[str]:
        """Return the clients whose masks the reveals of `answering` cannot take off."""
        return {
            device
            for device in self._masked | self._gone()
            if self._holders(device, answering) < self.params.threshold
        }

    def _shares_of(self, device: str) -> dict[int, bytes]:
        """Return the revealed shares of a device's secret by their points."""
        found: dict[int, bytes] = {}
        for point, holder in enumerate(sorted({device, *self._neighbours[device]}), start=1):
            if (reveal := self._revealed.get(holder)) is not None:
                shares = reveal.seeds if device in self._masked else reveal.keys
                found[point] = shares[device]
        return found

    def _own_mask(self, device: str) -> bytes:
        seed = self._recover(device)
        if keys.seed_digest(self.params.session, seed) != self._advertised[device].seed_digest:
            raise self._abort(f"the revealed shares are not those of the seed of {device}")
        return keys.self_mask_key(seed, self.params.session)

    def _collect_pair_masks(self, device: str, plus: list[bytes], minus: list[bytes]) -> None:
        """Undo what the neighbours of a client that is gone added for it."""
        private = self._recover(device)
        if keys.public_key(private) != self._advertised[device].masking_key:
            raise self._abort(f"the revealed shares are not those of the key of {device}")
        pair_mask_key = keys.pair_mask_keys(private, self.params.session)
        for other in self._neighbours[device]:
            if other in self._masked:
                key = pair_mask_key(self._advertised[other].masking_key)
                (minus if other < device else plus).append(key)

    def _recover(self, device: str) -> bytes:
        try:
            return combine(self._shares_of(device), self.params.threshold)
        except ProtocolError as error:
            raise self._abort(f"the shares of {device}: {error}") from error
