"""A one-shot round: one trip to the devices, then one question to each helper.

    train    devices -> masked updates, added up as they arrive; their sealed seeds, kept
    sum      helpers -> the sum of the masks of exactly these devices, taken off

A device may be lost at any time before its answer arrived: it is not in the sum, and no mask of
its is. Afterwards nobody is asked but the helpers, who are told who is in the sum. Each seal is
shown to its helper as it arrives (`HelperLink.check`), because a seal that cannot be opened, found
out at the end, would spoil a sum that it is in already.

What the server learns is the sum, if the session's helpers answer; it could ask each for one sum
only. Not here: the helper (`secagg.helper`), the way to it (`server.helper_link`).
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import numpy as np
from cryptography import x509
from flwr.app import RecordDict
from flwr.serverapp import Grid

from wildflower.strategies import round_messages as wire
from wildflower.strategies.errors import (
    ProtocolError,
    RoundAbortedError,
    SecAggError,
    UpdateRefusedError,
)
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.round_request import (
    ROTATION,
    RoundRequest,
    RoundResult,
    encoding_of,
    model_of,
    trips_of,
)
from wildflower.strategies.secagg import keys, one_shot_keys
from wildflower.strategies.secagg.one_shot_messages import (
    HelperCard,
    OneShotAnswer,
    OneShotParams,
    SealedSeeds,
    SumRequest,
)
from wildflower.strategies.secagg.one_shot_protection import RECORD
from wildflower.strategies.trip import Trips

TRAIN_SHARE: Final = 0.9
"""Part of a round's time that devices get; what is left is the helpers'."""


class HelperLink(Protocol):
    """A helper as the server reaches it.

    Promises: repeating a call changes nothing, so an implementation may do so until it is answered.
    """

    @property
    def card(self) -> HelperCard:
        """The helper's card; that it is the one whose digest was configured has been checked."""
        ...

    def check(self, request: SumRequest) -> None:
        """Have the helper look at a device's seeds.

        Raises:
            HelperError: It does not answer.
            ProtocolError: It refuses them.
        """
        ...

    def sum(self, request: SumRequest) -> Residues:
        """Return the sum of the masks of a request's devices.

        Raises:
            HelperError: It does not answer, or what it answers is no such sum.
            ProtocolError: It refuses.
        """
        ...


def one_shot_round(  # noqa: PLR0913  the shape of every kind of round, and the helpers
    grid: Grid,
    nodes: Sequence[int],
    request: RoundRequest,
    *,
    is_gone: Callable[[int], bool],
    entropy: bytes,
    ca_pem: bytes,
    helpers: Sequence[HelperLink],
    evaluate_only: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> RoundResult:
    """Have devices train, and learn the sum of their updates and nothing else.

    Args:
        grid: Reaches the nodes.
        nodes: Node ids of the cohort.
        request: What to do.
        is_gone: Tells whether a node lost its connection since the round began.
        entropy: 32 or more secret random bytes, for this call only.
        ca_pem: The enrolment CA whose devices may take part, PEM.
        helpers: Whose masks hide the updates: those of the devices' policies, all of them.
        evaluate_only: The devices do not train; only statistics are added up.
        on_stage: Is told the name of each stage as it begins.

    Raises:
        RoundAbortedError: Fewer devices than the quorum or than a helper demands are left, or a
            helper is gone or refuses; nothing was revealed. Its name is in the message.
        LinkError: The grid lost its SuperLink.
    """
    trips = trips_of(grid, request, is_gone, on_stage)
    try:
        params = _params(request, len(nodes), entropy, helpers, evaluate_only=evaluate_only)
        collected = _Collected(params, helpers, keys.load_ca(ca_pem))
        survivors = _train(trips, nodes, request, collected, evaluate_only=evaluate_only)
        total = _unmask(trips, collected)
        decoded = params.encoding.decode(total, len(survivors))
    except SecAggError as error:
        raise RoundAbortedError(f"one-shot aggregation: {error}", hint=error.hint) from error
    return RoundResult(decoded, survivors, trips.refusals, trips.stages, params.encoding)


def _params(
    request: RoundRequest,
    clients: int,
    entropy: bytes,
    helpers: Sequence[HelperLink],
    *,
    evaluate_only: bool,
) -> OneShotParams:
    """Return the session's parameters; what no helper would add up is refused right away."""
    rotation = keys.derive(entropy, b"", b"one-shot-round/rotation")[:ROTATION]
    encoding = encoding_of(request, clients, rotation, evaluate_only=evaluate_only)
    cards = sorted((each.card for each in helpers), key=lambda card: card.digest)
    for card in cards:
        one_shot_keys.check_card(card)
        if clients < card.min_cohort:
            raise ProtocolError(
                f"a cohort of {clients} devices, helper {card.digest[:12]} adds up"
                f" {card.min_cohort} or more",
                hint="Wait for more devices; the helper's minimum is its own.",
            )
    session = keys.derive(entropy, b"", b"one-shot-round/session")
    try:
        return OneShotParams(session, request.training, request.number, encoding, tuple(cards))
    except ValueError as error:
        raise ProtocolError(f"no session: {error}") from error


class _Collected:
    """What has arrived: the sum of the masked updates, and whose they are."""

    def __init__(
        self, params: OneShotParams, helpers: Sequence[HelperLink], ca: x509.Certificate
    ) -> None:
        self.params, self.helpers, self._ca = params, helpers, ca
        self.total: Residues = np.zeros(params.encoding.length, params.encoding.dtype)
        self._seeds: dict[str, SealedSeeds] = {}

    def take(self, _: int, content: RecordDict) -> None:
        """Take one device's answer.

        Raises:
            StrategyError: It is no answer to this session, or a helper cannot use it.
        """
        answer = OneShotAnswer.from_fields(wire.protected_fields(content, RECORD))
        seeds, masked = answer.seeds, answer.masked
        if masked.session != self.params.session:
            raise ProtocolError(f"{seeds.device} answers another session")
        if seeds.device in self._seeds:
            raise UpdateRefusedError(f"device {seeds.device} is at another node already")
        if len(masked.residues) != self.total.nbytes:
            raise ProtocolError(
                f"{seeds.device} sends {len(masked.residues)} bytes of residues, expected"
                f" {self.total.nbytes}"
            )
        one_shot_keys.verify_seeds(self.params, seeds, ca=self._ca, now=datetime.now(UTC))
        for helper in self.helpers:
            helper.check(SumRequest(self.params, (seeds,)))
        self._seeds[seeds.device] = seeds
        np.add(self.total, masked.vector(self.total.dtype), out=self.total)

    @property
    def request(self) -> SumRequest:
        """What the helpers are asked."""
        return SumRequest(self.params, tuple(self._seeds[each] for each in sorted(self._seeds)))


def _train(
    trips: Trips,
    nodes: Sequence[int],
    request: RoundRequest,
    collected: _Collected,
    *,
    evaluate_only: bool,
) -> tuple[int, ...]:
    """Ask the devices; return the nodes whose updates are in the sum, sorted."""
    asked = wire.protected_content(RECORD, collected.params)
    content = RecordDict({**model_of(request), **asked})
    survivors = trips.trip(
        wire.EVALUATE if evaluate_only else wire.TRAIN,
        dict.fromkeys(nodes, content),
        collected.take,
        timeout_s=request.timeout_s * TRAIN_SHARE,
        stage="train",
    )
    trips.require(survivors, "sent a masked update")
    return tuple(sorted(survivors))


def _unmask(trips: Trips, collected: _Collected) -> Residues:
    """Take the masks off.

    Raises:
        SecAggError: A helper is gone, or refuses.
    """
    trips.on_stage("sum")
    start, total = time.monotonic(), collected.total
    request = collected.request
    for helper in collected.helpers:
        np.subtract(total, helper.sum(request), out=total)
    trips.stages["sum"] = time.monotonic() - start
    return total
