"""The helper's half of a one-shot session: it opens seeds and tells the sum of their masks, once.

    verify every device -> open every seed -> claim the session -> add the masks up

A helper sees device ids, sealed seeds and the size of the model; it never sees an update, masked or
not. It keeps devices safe from a server that asks twice: the difference of the sums over two
cohorts is one device's mask. So a session belongs to the first request that was in order, for good:

* that claim is durable before a byte of the answer is computed;
* the same request gets the same answer again, which follows from the request and the helper's key,
  so a helper that was killed in between has lost nothing and stores no masks;
* any other request for the session is refused, as is one with too few devices: fewer than the
  helper's own minimum, or than any device in it demands.

A request that is refused before its claim costs nothing: the server may leave the device out that
the refusal names, and ask again. `check` tells that of a single device ahead of time.

What one helper cannot see: whether the devices are real (`one_shot_keys`), and whether the server
subtracts what it was told. A helper that lies spoils the sum; it learns nothing by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import numpy as np
from cryptography import x509

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import one_shot_keys
from wildflower.strategies.secagg.masking import add_masks
from wildflower.strategies.secagg.one_shot_messages import (
    HelperCard,
    OneShotParams,
    SealedSeeds,
    SumRequest,
)


class Claims(Protocol):
    """Which request a session belongs to.

    An implementation keeps these promises: of several claims of one session, at once or one after
    the other, the first wins; when `claim` returns, that holds for ever, also after a power cut.
    """

    def claim(self, session: bytes, request: bytes, *, now: datetime) -> bytes:
        """Claim a session for a request, unless it is claimed already.

        Args:
            session: The session's id, 32 bytes.
            request: Digest of the request, 32 bytes.
            now: The present, with a time zone.

        Returns:
            The digest of the request that the session belongs to.
        """
        ...


class MemoryClaims:
    """Claims in memory, for simulations: they last as long as the process."""

    def __init__(self) -> None:
        self._claimed: dict[bytes, bytes] = {}

    def claim(self, session: bytes, request: bytes, *, now: datetime) -> bytes:  # noqa: ARG002
        """Claim a session for a request, unless it is claimed already."""
        return self._claimed.setdefault(session, request)


@dataclass(frozen=True, slots=True)
class Helper:
    """One helper.

    Attributes:
        card: Its card.
        private: The private half of the card's sealing key, 32 bytes.
        ca: The enrolment CA whose devices it believes.
        claims: Which sessions it has answered.
    """

    card: HelperCard
    private: bytes = field(repr=False)
    ca: x509.Certificate
    claims: Claims

    def check(self, request: SumRequest, *, now: datetime) -> None:
        """Refuse devices that `sum` would refuse, whatever their number; nothing is claimed.

        Args:
            request: The parameters, and the seeds of some of the session's devices.
            now: The present, with a time zone.

        Raises:
            ProtocolError: Seeds that their device did not make for this session and this helper.
        """
        self._open(request, now)

    def sum(self, request: SumRequest, *, now: datetime) -> Residues:
        """Return the sum of the masks that a session's devices sealed to this helper.

        Args:
            request: The parameters, and the seeds of all devices in the sum.
            now: The present, with a time zone.

        Returns:
            Residues, shape (request.params.encoding.length,).

        Raises:
            ProtocolError: Too few devices, forged seeds, or a session that was answered for
                another request.
        """
        seeds = self._open(request, now)
        _require_cohort(self.card, request.params, request.seeds)
        digest = request.digest
        if self.claims.claim(request.params.session, digest, now=now) != digest:
            raise ProtocolError(
                "this session was answered already, to another request",
                hint="Two sums could be subtracted from each other: begin a new session.",
            )
        encoding, session = request.params.encoding, request.params.session
        total: Residues = np.zeros(encoding.length, encoding.dtype)
        add_masks(total, [one_shot_keys.mask_key(seed, session) for seed in seeds], [])
        return total

    def _open(self, request: SumRequest, now: datetime) -> list[bytes]:
        """Return the seeds of a request's devices."""
        params = request.params
        if self.card not in params.helpers:
            raise ProtocolError(
                f"helper {self.card.digest[:12]} has no part in this session, or had another card",
                hint="Its card is printed by: wildflower helper show",
            )
        place = params.helpers.index(self.card)
        for seeds in request.seeds:
            one_shot_keys.verify_seeds(params, seeds, ca=self.ca, now=now)
        return [
            one_shot_keys.open_seed(params, seeds, place, private=self.private)
            for seeds in request.seeds
        ]


def _require_cohort(card: HelperCard, params: OneShotParams, seeds: Sequence[SealedSeeds]) -> None:
    needed = max([card.min_cohort, *(each.smallest for each in seeds)])
    if len(seeds) < needed:
        raise ProtocolError(
            f"{len(seeds)} devices are in the sum, {needed} are needed",
            hint="The most that the helper and the policies of these devices demand counts.",
        )
    if len(seeds) > params.encoding.clients:
        raise ProtocolError(
            f"{len(seeds)} devices are in the sum, the session is for {params.encoding.clients}"
        )
