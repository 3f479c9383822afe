"""The thin shell of `server.round_privacy`: budget before a round, ledger before its noise."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from wildflower.ota.release.provenance import DELTA, EPSILON
from wildflower.server.ledger import StoredLedger
from wildflower.server.records import Round, Training
from wildflower.server.round_privacy import RoundPrivacy
from wildflower.server.store import Store
from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.encodings import SumEncoding
from wildflower.strategies.round_request import RoundResult
from wildflower.strategies.secagg.keys import derive


@dataclass(frozen=True, slots=True)
class RoundRelease:
    """What one training's rounds may release, and the releasing of it.

    Attributes:
        store: The records.
        training: The training, its settings complete.
        key: 32 secret bytes of this server, from which a training's lasting noise comes.
        now: The clock.
        entropy: Returns so many secret random bytes.
    """

    store: Store
    training: Training
    key: bytes = field(repr=False)
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes] = field(repr=False)

    def privacy(self, number: int) -> RoundPrivacy | None:
        """Return the privacy of a round, None where the training has none."""
        training = self.training
        before = self.store.get(Round, f"{training.training_id}/{number - 1}")
        return RoundPrivacy.of(
            training.settings,
            training=training.training_id,
            number=number,
            rounds=training.rounds,
            before=before.metrics if before is not None else {},
        )

    def require(self, number: int, encoding: SumEncoding | None) -> None:
        """Allow a round that its budget can pay.

        Args:
            number: Number of the round.
            encoding: How updates would become residues, where devices add the noise.

        Raises:
            BudgetError: It would overspend; nobody was asked anything.
        """
        privacy = self.privacy(number)
        if privacy is not None:
            StoredLedger(self.store).require(privacy.planned(encoding, self.now()), privacy.budget)

    def taken(self, number: int) -> frozenset[str]:
        """Return the devices that must not be drawn into a round: their tree holds them already."""
        privacy = self.privacy(number)
        earlier = privacy.exclusive if privacy is not None else ()
        found = (self.store.get(Round, f"{self.training.training_id}/{n}") for n in earlier)
        return frozenset(device for one in found if one is not None for device in one.survivors)

    def release(
        self, number: int, attempt: int, result: RoundResult
    ) -> tuple[Sum, dict[str, float]]:
        """Return the sum that may be stored, and figures for the next round.

        Args:
            number: Number of the round.
            attempt: Which attempt at it, from 0.
            result: What came of its trips.

        Raises:
            BudgetError: It would overspend; the sum must be forgotten.
            StrategyError: The sum is not of bounded updates.
        """
        privacy = self.privacy(number)
        if privacy is None:
            return result.total, {}
        entry = privacy.entry(attempt, len(result.survivors), result.encoding, self.now())
        StoredLedger(self.store).record(entry, privacy.budget)
        released = privacy.release(
            result.total,
            result.encoding,
            entropy=self.entropy(32),
            seed=derive(self.key, b"", f"round-release/{self.training.training_id}".encode()),
        )
        spent = StoredLedger(self.store).read().spent(privacy.total, subject=entry.subject)
        figures = {EPSILON: spent, DELTA: privacy.total.delta}
        return released, {**figures, **privacy.next_figures(released)}
