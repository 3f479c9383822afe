"""One round over any Flower `Grid`: messages out, answers in, a sum at the end.

A round is one trip (plain) or four (secure):

    plain     train -> updates, each checked and added as it arrives
    secure    advertise -> share -> train -> unmask, as `secagg.server.Session` says

A device that is lost costs no time-out: a trip ends when everyone has answered, is gone, or its
time is over. Nothing is asked twice: a device that lost a message has lost its place in the round.
What a device sends can make that device a refusal, never the round a failure; the round fails only
when fewer than the quorum are left, or the masks cannot be taken off.

Not here: whom to invite, what becomes of the sum, what is stored (`server.rounds`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from flwr.app import RecordDict
from flwr.serverapp import Grid

from wildflower.strategies import round_messages as wire
from wildflower.strategies.algorithms.algorithm import Algorithm
from wildflower.strategies.errors import (
    RoundAbortedError,
    SecAggError,
    UpdateRefusedError,
)
from wildflower.strategies.guards import check_update
from wildflower.strategies.round_request import (
    ROTATION,
    RoundRequest,
    RoundResult,
    bounded_by,
    encoding_of,
    model_of,
    refuse_noise,
    trips_of,
)
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.graph import plan_graph
from wildflower.strategies.secagg.messages import (
    Advertisement,
    Masked,
    Reveal,
    SessionParams,
    Shares,
)
from wildflower.strategies.secagg.server import Session
from wildflower.strategies.trip import Take, Trips

SHARES_OF_TIME: Final[Mapping[str, float]] = {
    "advertise": 0.3,  # devices may still be starting
    "share": 0.1,
    "train": 0.5,
    "unmask": 0.1,
}
"""How a secure round's time is dealt out to its trips; what one leaves over is not used up."""


def plain_round(
    grid: Grid,
    nodes: Sequence[int],
    request: RoundRequest,
    *,
    is_gone: Callable[[int], bool],
    algorithm: Algorithm[Any],
    evaluate_only: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> RoundResult:
    """Have devices train, and add up what they send in plain.

    Args:
        grid: Reaches the nodes.
        nodes: Node ids of the cohort.
        request: What to do.
        is_gone: Tells whether a node lost its connection since the round began.
        algorithm: Adds the updates up.
        evaluate_only: The devices do not train; only statistics are added up.
        on_stage: Is told the name of each stage as it begins.

    Raises:
        RoundAbortedError: Fewer devices than the quorum are left.
        CombinationError: The request's noise is made in parts.
        LinkError: The grid lost its SuperLink.
    """
    refuse_noise(request, "a plain update holds a part of it only")
    trips = trips_of(grid, request, is_gone, on_stage)
    total = algorithm.zero(0 if evaluate_only else request.layout.size)
    size = total.vector.size

    def take(_: int, content: RecordDict) -> None:
        nonlocal total
        update = wire.read_update(content, size, request.names, evaluate_only=evaluate_only)
        check_update(update, size, evaluate_only=evaluate_only)
        total = algorithm.add(total, bounded_by(update, request, evaluate_only=evaluate_only))

    kind = wire.EVALUATE if evaluate_only else wire.TRAIN
    content = model_of(request)
    survivors = trips.trip(
        kind, dict.fromkeys(nodes, content), take, timeout_s=request.timeout_s, stage="train"
    )
    trips.require(survivors, "sent an update that counts")
    return RoundResult(total, tuple(sorted(survivors)), trips.refusals, trips.stages)


def secure_round(
    grid: Grid,
    nodes: Sequence[int],
    request: RoundRequest,
    *,
    is_gone: Callable[[int], bool],
    entropy: bytes,
    ca_pem: bytes,
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
        evaluate_only: The devices do not train; only statistics are added up.
        on_stage: Is told the name of each stage as it begins.

    Raises:
        RoundAbortedError: Fewer devices than the quorum are left, or the masks cannot be taken
            off; nothing was revealed.
        LinkError: The grid lost its SuperLink.
    """
    trips = trips_of(grid, request, is_gone, on_stage)
    try:
        params = _params(request, len(nodes), entropy, evaluate_only=evaluate_only)
        secure = _SecureTrips(trips, request, params, entropy, keys.load_ca(ca_pem))
        secure.advertise(nodes)
        secure.share()
        secure.train(wire.EVALUATE if evaluate_only else wire.TRAIN)
        return secure.unmask()
    except SecAggError as error:
        raise RoundAbortedError(f"secure aggregation: {error}", hint=error.hint) from error


def _params(
    request: RoundRequest, clients: int, entropy: bytes, *, evaluate_only: bool
) -> SessionParams:
    """Return the session's parameters; an evaluation adds up no vector."""
    graph = plan_graph(clients, request.security)
    rotation = keys.derive(entropy, b"", b"trips/rotation")[:ROTATION]
    encoding = encoding_of(request, clients, rotation, evaluate_only=evaluate_only)
    session = keys.derive(entropy, b"", b"trips/session")
    return SessionParams(
        session, request.training, request.number, graph.threshold, graph.degree, encoding
    )


class _SecureTrips:
    """The four trips of a secure round; each needs what the one before left here."""

    def __init__(
        self,
        trips: Trips,
        request: RoundRequest,
        params: SessionParams,
        entropy: bytes,
        ca: x509.Certificate,
    ) -> None:
        self._trips, self._request, self._params = trips, request, params
        self._entropy, self._ca = entropy, ca
        self._devices: dict[int, str] = {}

    def advertise(self, nodes: Sequence[int]) -> None:
        """Propose the session; learn which device is at which node."""
        advertised: dict[int, Advertisement] = {}

        def take(node: int, content: RecordDict) -> None:
            found = Advertisement.from_fields(wire.secagg_fields(content))
            if found.device in self._devices.values():
                raise UpdateRefusedError(f"device {found.device} is at another node already")
            self._devices[node], advertised[node] = found.device, found

        proposal = wire.secagg_content(self._params)
        self._trip("advertise", wire.ADVERTISE, dict.fromkeys(nodes, proposal), take)
        self._trips.require(list(advertised), "advertised keys")
        self._session = Session(self._params, set(self._devices.values()), ca=self._ca)
        for node, advertisement in advertised.items():
            try:
                self._receive(node, advertisement)
            except SecAggError as error:
                self._trips.refuse(node, str(error))

    def share(self) -> None:
        """Tell each device its neighbours' keys; take its sealed shares."""
        rosters = self._session.rosters(entropy=keys.derive(self._entropy, b"", b"trips/ring"))
        self._trip(
            "share",
            wire.SHARE,
            self._addressed(rosters),
            lambda node, content: self._receive(
                node, Shares.from_fields(wire.secagg_fields(content))
            ),
        )

    def train(self, kind: str) -> None:
        """Hand out the shares and the model; take the masked updates."""
        model = model_of(self._request)
        deliveries = self._addressed(self._session.deliveries())
        self._trips.require(list(deliveries), "shared their secrets")
        contents = {
            node: RecordDict({**model, **delivery}) for node, delivery in deliveries.items()
        }
        taken = self._trip(
            "train",
            kind,
            contents,
            lambda node, content: self._receive(
                node, Masked.from_fields(wire.secagg_fields(content))
            ),
        )
        self._trips.require(taken, "sent a masked update")
        self._survivors = tuple(sorted(taken))

    def unmask(self) -> RoundResult:
        """Ask the survivors for the shares that take the masks off; return the sum."""
        self._trip(
            "unmask",
            wire.UNMASK,
            self._addressed(self._session.requests()),
            lambda node, content: self._receive(
                node, Reveal.from_fields(wire.secagg_fields(content))
            ),
            is_enough=lambda: self._session.is_enough,
        )
        residues = self._session.total()
        total = self._params.encoding.decode(residues, len(self._survivors))
        lost = {n: why for n, why in self._trips.refusals.items() if n not in self._survivors}
        encoding = self._params.encoding
        return RoundResult(total, self._survivors, lost, self._trips.stages, encoding)

    def _trip(
        self,
        stage: str,
        kind: str,
        contents: Mapping[int, RecordDict],
        take: Take,
        is_enough: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        timeout_s = self._request.timeout_s * SHARES_OF_TIME[stage]
        return self._trips.trip(
            kind, contents, take, timeout_s=timeout_s, stage=stage, is_enough=is_enough
        )

    def _receive(self, node: int, message: Advertisement | Shares | Masked | Reveal) -> None:
        self._session.receive(self._devices[node], message, now=datetime.now(UTC))

    def _addressed(self, messages: Mapping[str, wire.Fielded]) -> dict[int, RecordDict]:
        """Return the contents by node of messages by device."""
        nodes = {device: node for node, device in self._devices.items()}
        return {nodes[device]: wire.secagg_content(message) for device, message in messages.items()}
