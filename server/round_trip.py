"""Which protocol a round speaks: one function for each protection that a training may ask for."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.grouped_round import grouped_round
from wildflower.strategies.he_round import he_round
from wildflower.strategies.one_shot_round import one_shot_round
from wildflower.strategies.round_request import RoundRequest, RoundResult
from wildflower.strategies.secagg.grouped import Grouping
from wildflower.strategies.trips import plain_round, secure_round

if TYPE_CHECKING:
    from flwr.serverapp import Grid


@dataclass(frozen=True, slots=True)
class Peer:
    """A helper or key holder: where it listens, and whose key answers there.

    Attributes:
        url: `https://host:port`.
        digest: SHA-256 of its key, hex.
    """

    url: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the peer of `https://host:port#digest`; `server.settings` checked the form."""
        url, _, digest = text.partition("#")
        return cls(url, digest)


@dataclass(frozen=True, slots=True)
class Parties:
    """Whom the server's rounds rely on.

    Attributes:
        ca_pem: The enrolment CA whose devices may take part, PEM.
        noise_key: 32 secret bytes, from which noise comes that lasts for a whole training.
        helpers: Helpers of one-shot rounds.
        key_holder: Key holder of homomorphic rounds.
        key_holder_token: File that holds what it knows this server by.
    """

    ca_pem: bytes
    noise_key: bytes = field(default=bytes(32), repr=False)
    helpers: tuple[Peer, ...] = ()
    key_holder: Peer | None = None
    key_holder_token: Path = Path()


@dataclass(frozen=True, slots=True)
class Trip:
    """One round to be made.

    Attributes:
        grid: Reaches the nodes.
        nodes: Node ids of the cohort.
        request: What to do.
        is_gone: Tells whether a node lost its connection since the round began.
        on_stage: Is told the name of each stage as it begins.
        evaluate_only: The devices do not train; only statistics are added up.
        grouping: How a grouped round divides the cohort.
    """

    grid: "Grid"
    nodes: Sequence[int]
    request: RoundRequest = field(repr=False)
    is_gone: Callable[[int], bool]
    on_stage: Callable[[str], None]
    evaluate_only: bool
    grouping: Grouping

    def by(self, protocol: Callable[..., RoundResult], **parties: Any) -> RoundResult:
        """Make the round by a protocol, whose own arguments are its parties."""
        return protocol(
            self.grid,
            self.nodes,
            self.request,
            is_gone=self.is_gone,
            on_stage=self.on_stage,
            evaluate_only=self.evaluate_only,
            **parties,
        )


def go(protection: str, trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    """Make a round.

    Args:
        protection: One of `PROTOCOLS`.
        trip: The round.
        parties: Whom it relies on.
        entropy: 32 secret random bytes, for this call only.

    Raises:
        StrategyError: Fewer devices than the quorum are left, the sum cannot be opened, or a party
            that the round relies on is not configured or does not answer.
    """
    return PROTOCOLS[protection](trip, parties, entropy)


def _plain(trip: Trip, _: Parties, __: bytes) -> RoundResult:
    return trip.by(plain_round, algorithm=FedAvg())


def _secagg(trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    return trip.by(secure_round, entropy=entropy, ca_pem=parties.ca_pem)


def _grouped(trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    return trip.by(grouped_round, entropy=entropy, ca_pem=parties.ca_pem, grouping=trip.grouping)


def _one_shot(trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    from wildflower.server.helper_link import HelperLink

    if not parties.helpers:
        raise RoundAbortedError(
            "a one-shot round needs helpers, and this server knows none",
            hint="Set helpers in server.toml to what `wildflower helper show` prints.",
        )
    with ExitStack() as stack:
        links = [
            stack.enter_context(HelperLink.connect(peer.url, peer.digest))
            for peer in parties.helpers
        ]
        return trip.by(one_shot_round, entropy=entropy, ca_pem=parties.ca_pem, helpers=links)


def _homomorphic(trip: Trip, parties: Parties, entropy: bytes) -> RoundResult:
    from wildflower.server.keyholder_link import KeyHolderLink

    peer = parties.key_holder
    if peer is None:
        raise RoundAbortedError(
            "a homomorphic round needs a key holder, and this server knows none",
            hint="Set key_holder in server.toml to what `wildflower keyholder show` prints.",
        )
    token = read_token(parties.key_holder_token)
    with closing(KeyHolderLink(peer.url, peer.digest, token)) as link:
        return trip.by(he_round, entropy=entropy, ca_pem=parties.ca_pem, key_holder=link)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        RoundAbortedError: It cannot be read.
    """
    try:
        return path.read_text().strip()
    except (OSError, ValueError) as error:
        raise RoundAbortedError(
            f"the key holder's token {path} cannot be read: {error}",
            hint="Copy there what `wildflower keyholder init` wrote; key_holder_token names it.",
        ) from error


PROTOCOLS: Final[Mapping[str, Callable[[Trip, Parties, bytes], RoundResult]]] = {
    "plain": _plain,
    "secagg": _secagg,
    "grouped": _grouped,
    "one-shot": _one_shot,
    "he": _homomorphic,
}
"""By the training's setting "protection"."""
