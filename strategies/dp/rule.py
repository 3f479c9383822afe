"""What a device does to its own update before it leaves: the client's half of every DP mechanism.

    central      clip, weight 1, bounded statistics      the server adds the noise to the sum
    distributed  the same; then `SkellamEncoding` adds the device's share of the noise
    local        the same, and all of the noise

The rule travels in the round's config, so an unchanged app trains as it always did; the device
applies it to the app's answer.

    ClientRule.from_config(rule.to_config()) == rule
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np

from wildflower.strategies.arrays import Update
from wildflower.strategies.dp import limits, local
from wildflower.strategies.dp.contribution import (
    SHARE,
    WITHIN,
    Contribution,
    Statistics,
    is_within,
    parse_statistics,
    statistics_text,
)
from wildflower.strategies.errors import ProtocolError

PREFIX: Final = "dp-"
NORM: Final = "dp-norm"
STATISTICS: Final = "dp-statistics"
SHARE_KEY: Final = "dp-share"
NOISE: Final = "dp-noise"
_TYPES: Final[Mapping[str, type]] = {NORM: float, STATISTICS: str, SHARE_KEY: float, NOISE: float}


@dataclass(frozen=True, slots=True)
class ClientRule:
    """How a device bounds its update.

    Attributes:
        norm: Largest L2 norm of the update.
        statistics: The statistics that may leave, and their bounds. `WITHIN` is computed here:
            1 if the update was within the norm, for adaptive clipping.
        share: Share of the squared norm that the statistics take.
        local_noise: Noise multiplier of local noise; 0 for none.
    """

    norm: float
    statistics: Statistics = ()
    share: float = SHARE
    local_noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a rule that makes no sense."""
        self.contribution(0)
        if self.local_noise:
            limits.noise_multiplier(self.local_noise, NOISE)

    def contribution(self, size: int) -> Contribution:
        """Return what one device may add to a sum over models of `size` elements."""
        return Contribution(size, self.norm, self.statistics, self.share)

    def bound(self, update: Update, entropy: bytes, *, evaluate_only: bool = False) -> Update:
        """Return what may leave the device: clipped, of weight 1, with the named statistics only.

        Args:
            update: The app's answer as an update.
            entropy: 32 or more secret random bytes, for this call only; used by local noise.
            evaluate_only: Only the statistics count; the vector becomes zeros, the weight 0.

        Raises:
            UpdateRefusedError: Not finite, or a named statistic is missing.
        """
        within = {WITHIN: float(is_within(update, self.norm))}
        named = replace(update, statistics={**update.statistics, **within})
        if evaluate_only:
            alone = replace(named, vector=np.zeros(0, np.float32))
            zeros = np.zeros_like(update.vector)
            return replace(self._bound(alone, entropy), vector=zeros, weight=0.0)
        return self._bound(named, entropy)

    def _bound(self, update: Update, entropy: bytes) -> Update:
        contribution = self.contribution(update.vector.size)
        if not self.local_noise:
            return contribution.clip(update)
        return local.randomise(
            update, contribution, noise_multiplier=self.local_noise, entropy=entropy
        )

    def to_config(self) -> dict[str, str | float]:
        """Return the entries of the round's config that carry the rule."""
        return {
            NORM: float(self.norm),
            STATISTICS: statistics_text(self.statistics),
            SHARE_KEY: float(self.share),
            NOISE: float(self.local_noise),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """Parse what `to_config` wrote; None where the config asks for no rule.

        Other keys that begin with "dp-" are not this rule's: the device's own training reads them.

        Raises:
            ProtocolError: Half a rule, or one that makes no sense. Nothing may leave then.
        """
        found = {key: config[key] for key in _TYPES if key in config}
        if not found:
            return None
        wrong = [key for key, kind in _TYPES.items() if type(found.get(key)) is not kind]
        if wrong:
            raise ProtocolError(
                f"the round's privacy rule lacks {wrong}, or they are of another type",
                hint="Server and device are of different versions: update the older one.",
            )
        try:
            statistics = parse_statistics(found[STATISTICS])
            return cls(found[NORM], statistics, found[SHARE_KEY], found[NOISE])
        except ValueError as error:
            raise ProtocolError(f"the round's privacy rule: {error}") from error
