"""Differential privacy: mechanisms, and what they cost."""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.strategies.dp.accounting import Method, epsilon_of
    from wildflower.strategies.dp.audit import epsilon_lower_bound
    from wildflower.strategies.dp.calibration import Budget, noise_for, rounds_for
    from wildflower.strategies.dp.central import AdaptiveClipping, CentralDP
    from wildflower.strategies.dp.contribution import Bounds, Contribution
    from wildflower.strategies.dp.distributed import SkellamEncoding
    from wildflower.strategies.dp.events import Gaussian, Relation, Sampling, Scheme, Skellam, Tree
    from wildflower.strategies.dp.rule import ClientRule
    from wildflower.strategies.dp.tree import TreeDP, TreeState

__all__ = [
    "AdaptiveClipping",
    "Bounds",
    "Budget",
    "CentralDP",
    "ClientRule",
    "Contribution",
    "Gaussian",
    "Method",
    "Relation",
    "Sampling",
    "Scheme",
    "Skellam",
    "SkellamEncoding",
    "Tree",
    "TreeDP",
    "TreeState",
    "epsilon_lower_bound",
    "epsilon_of",
    "noise_for",
    "rounds_for",
]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "AdaptiveClipping": "central",
        "Bounds": "contribution",
        "Budget": "calibration",
        "CentralDP": "central",
        "ClientRule": "rule",
        "Contribution": "contribution",
        "Gaussian": "events",
        "Method": "accounting",
        "Relation": "events",
        "Sampling": "events",
        "Scheme": "events",
        "Skellam": "events",
        "SkellamEncoding": "distributed",
        "Tree": "events",
        "TreeDP": "tree",
        "TreeState": "tree",
        "epsilon_lower_bound": "audit",
        "epsilon_of": "accounting",
        "noise_for": "calibration",
        "rounds_for": "calibration",
    },
)
