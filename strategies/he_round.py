"""A homomorphic round: one trip to the devices, then one question to the key holder.

    key      key holder -> the run's public key, with its promise
    train    devices -> ciphertexts, each signed, added up as they arrive
    decrypt  key holder -> what the sum of exactly these ciphertexts holds

A device may be lost at any time before its answer arrived: it is not in the sum. What the server
learns is the sum modulo 2**16, which is the plain fixed-point sum, bit for bit; with its keys it
cannot decrypt a ciphertext. The key holder answers one question for each round of a run, which is
one Flower run of a training: a round that aborts after that cannot be repeated in the same run. A
training that is resumed is a new run, with a new key.

One device can spoil a sum, by well-formed ciphertexts of nonsense: the key holder then finds no
sum, and the round ends without a model. Who it was nobody can tell.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from cryptography import x509
from flwr.app import RecordDict
from flwr.serverapp import Grid

from wildflower.strategies import round_messages as wire
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.errors import (
    MissingPackageError,
    ProtocolError,
    RoundAbortedError,
    SecAggError,
    UpdateRefusedError,
)
from wildflower.strategies.he import trust
from wildflower.strategies.he.bfv import PublicKey
from wildflower.strategies.he.messages import Encrypted, Invitation, RunKey, SumRequest
from wildflower.strategies.he.packing import BITS, require_headroom
from wildflower.strategies.he.protection import RECORD
from wildflower.strategies.round_request import (
    ROTATION,
    RoundRequest,
    RoundResult,
    encoding_of,
    model_of,
    trips_of,
)
from wildflower.strategies.secagg import keys
from wildflower.strategies.trip import Trips

TRAIN_SHARE: Final = 0.9
"""Part of a round's time that devices get; what is left is the key holder's."""


class KeyHolder(Protocol):
    """The key holder as the server reaches it.

    Promises: repeating a call changes nothing, so an implementation may do so until it is answered.
    """

    def key(self, run: str) -> RunKey:
        """Return a run's public key; it is made when it is first asked for.

        Raises:
            KeyHolderError: The key holder does not answer, or refuses.
        """
        ...

    def decrypt(self, request: SumRequest) -> npt.NDArray[np.uint16]:
        """Return the residues of a sum modulo 2**16, shape (request.length,).

        Raises:
            KeyHolderError: The key holder does not answer, or refuses.
            ProtocolError: The ciphertexts hold no such sum.
        """
        ...


def he_round(  # noqa: PLR0913  the shape of every kind of round, and the key holder
    grid: Grid,
    nodes: Sequence[int],
    request: RoundRequest,
    *,
    is_gone: Callable[[int], bool],
    entropy: bytes,
    ca_pem: bytes,
    key_holder: KeyHolder,
    evaluate_only: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> RoundResult:
    """Have devices train, and learn the sum of their updates and nothing else.

    Args:
        grid: Reaches the nodes.
        nodes: Node ids of the cohort, at most 127.
        request: What to do.
        is_gone: Tells whether a node lost its connection since the round began.
        entropy: 32 or more secret random bytes, for this call only.
        ca_pem: The enrolment CA whose devices may take part, PEM.
        key_holder: Who can decrypt: that of the devices' policies.
        evaluate_only: The devices do not train; only statistics are added up.
        on_stage: Is told the name of each stage as it begins.

    Raises:
        RoundAbortedError: Fewer devices than the quorum or than the key holder demands are left,
            more than a sum has room for, or the key holder is gone or refuses; nothing was
            revealed.
        LinkError: The grid lost its SuperLink.
    """
    trips = trips_of(grid, request, is_gone, on_stage)
    try:
        require_headroom(len(nodes))
        narrow = replace(request, bits=BITS)
        rotation = keys.derive(entropy, b"", b"he-round/rotation")[:ROTATION]
        encoding = encoding_of(narrow, len(nodes), rotation, evaluate_only=evaluate_only)
        run = f"{request.training}/{grid.run.run_id}"
        invitation = _invitation(
            trips, key_holder, run, number=request.number, encoding=encoding, entropy=entropy
        )
        collected = _Collected(invitation, keys.load_ca(ca_pem))
        kind = wire.EVALUATE if evaluate_only else wire.TRAIN
        survivors = _train(trips, nodes, request, kind, collected)
        residues = _decrypt(trips, collected, key_holder)
        total = encoding.decode(residues, len(survivors))
    except (SecAggError, MissingPackageError) as error:
        raise RoundAbortedError(f"homomorphic aggregation: {error}", hint=error.hint) from error
    return RoundResult(total, survivors, trips.refusals, trips.stages, encoding)


def _invitation(
    trips: Trips,
    key_holder: KeyHolder,
    run: str,
    *,
    number: int,
    encoding: SumEncoding,
    entropy: bytes,
) -> Invitation:
    """Return what devices are asked; refuse what the key holder would not decrypt."""
    trips.on_stage("key")
    start = time.monotonic()
    key = key_holder.key(run)
    trust.check_key(key, holder=key.holder, min_cohort=0, now=datetime.now(UTC))
    if key.run != run:
        raise ProtocolError(f"the key holder sends the key of {key.run!r}")
    if encoding.clients < key.min_cohort:
        raise ProtocolError(
            f"a cohort of {encoding.clients} devices, the key holder decrypts sums of"
            f" {key.min_cohort} or more",
            hint="Wait for more devices; the key holder's minimum is its own.",
        )
    session = keys.derive(entropy, b"", b"he-round/session")
    try:
        invitation = Invitation(session, number, key, encoding)
    except ValueError as error:
        raise ProtocolError(f"no session: {error}") from error
    trips.stages["key"] = time.monotonic() - start
    return invitation


class _Collected:
    """What has arrived: the sum of the ciphertexts, and whose they are."""

    def __init__(self, invitation: Invitation, ca: x509.Certificate) -> None:
        self.invitation, self._ca = invitation, ca
        self._devices: set[str] = set()
        self._sum = PublicKey.load(invitation.key.context).zero(invitation.encoding.length)

    def take(self, _: int, content: RecordDict) -> None:
        """Take one device's answer.

        Raises:
            StrategyError: It is no answer to this session.
        """
        answer = Encrypted.from_fields(wire.protected_fields(content, RECORD))
        trust.verify_update(self.invitation, answer, ca=self._ca, now=datetime.now(UTC))
        if answer.device in self._devices:
            raise UpdateRefusedError(f"device {answer.device} is at another node already")
        self._sum.add(answer.ciphertexts)
        self._devices.add(answer.device)

    @property
    def request(self) -> SumRequest:
        """What the key holder is asked."""
        return SumRequest(
            run=self.invitation.key.run,
            round=self.invitation.round,
            key=self.invitation.key.digest,
            addends=self._sum.addends,
            length=self.invitation.encoding.length,
            ciphertexts=self._sum.ciphertexts(),
        )


def _train(
    trips: Trips, nodes: Sequence[int], request: RoundRequest, kind: str, collected: _Collected
) -> tuple[int, ...]:
    """Ask the devices; return the nodes whose updates are in the sum, sorted."""
    asked = wire.protected_content(RECORD, collected.invitation)
    content = RecordDict({**model_of(request), **asked})
    survivors = trips.trip(
        kind,
        dict.fromkeys(nodes, content),
        collected.take,
        timeout_s=request.timeout_s * TRAIN_SHARE,
        stage="train",
    )
    trips.require(survivors, "sent an encrypted update")
    return tuple(sorted(survivors))


def _decrypt(trips: Trips, collected: _Collected, key_holder: KeyHolder) -> npt.NDArray[np.uint16]:
    """Have the sum decrypted."""
    trips.on_stage("decrypt")
    start = time.monotonic()
    residues = key_holder.decrypt(collected.request)
    trips.stages["decrypt"] = time.monotonic() - start
    return residues
