"""Tree-aggregated DP-FTRL: private prefix sums, without counting on how cohorts are drawn.

What a model is after t rounds is a prefix sum of their updates. Noise is added to the nodes of a
binary tree over the rounds, and a prefix is the sum of the nodes that tile it:

    round      1     2     3     4     5         prefix of 5 = node(1..4) + node(5..5)
    level 0   [1]   [2]   [3]   [4]   [5]
    level 1   [1     2]   [3     4]
    level 2   [1     2     3     4]

so t rounds cost the noise of at most log2(t) + 1 nodes, not of t. A round is released as its sum
plus the noise of its prefix minus that of the prefix before: whatever averages the released sums
ends at the noisy prefix, and any server optimiser is post-processing.

    a device takes part at most once between two restarts    (whoever draws cohorts keeps to that)

A restart begins a new tree with new noise, and is accounted as one: `events` counts every tree
that released anything. The noise of a node is a function of the state's seed and the node, so a
server that was restarted goes on with the noise it had; it must store a round's release before
anybody sees it, and never release two sums for one step.

Each prefix uses its nodes as they are; Honaker's estimator, which would also use their children
and save up to half of the variance, is not here.

Source: Kairouz et al., "Practical and Private (Deep) Learning without Sampling or Shuffling",
ICML 2021, sections 3 and 4 (restarts); Dwork et al. 2010 and Chan et al. 2011 (the tree).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.dp import limits, noise
from wildflower.strategies.dp.central import require_weight
from wildflower.strategies.dp.contribution import Contribution
from wildflower.strategies.dp.events import Tree
from wildflower.strategies.errors import RoundAbortedError, StoredStateError

KIND: Final = "wildflower.tree"
FORMAT: Final = 1
MAX_TREES: Final = 10_000


@dataclass(frozen=True, slots=True)
class TreeState:
    """What is stored between rounds.

    Attributes:
        seed: 32 or more secret random bytes, from which all noise of this training is made.
        step: Rounds that the current tree released.
        finished: Rounds that each tree before it released.
    """

    seed: bytes = field(repr=False)
    step: int = 0
    finished: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TreeDP:
    """Noise on the nodes of binary trees over the rounds.

    Attributes:
        noise_multiplier: Standard deviation of a node's noise over what one unit can add.
        contribution: What one unit can add; it stays the same for a whole training.
        steps: Most rounds of one tree.
        quantum: Largest rounding of an element in any round, if sums go through residues.
        statistic_quantum: Largest rounding of a statistic in any round.
    """

    noise_multiplier: float
    contribution: Contribution
    steps: int
    quantum: float = 0.0
    statistic_quantum: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        limits.noise_multiplier(self.noise_multiplier)
        limits.whole("steps", self.steps, 1, limits.MAX_ROUNDS)
        limits.number("quantum", self.quantum, 0.0, limits.LARGEST_NORM)
        limits.number("statistic_quantum", self.statistic_quantum, 0.0, limits.LARGEST_NORM)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of what one unit adds to a node."""
        return self.contribution.sensitivity(self.quantum, self.statistic_quantum)

    def release(self, state: TreeState, total: Sum) -> tuple[TreeState, Sum]:
        """Return the next state, and the sum with its noise; only this may be stored.

        Args:
            state: The state as last stored.
            total: Sum of updates that devices bounded by the same contribution.

        Raises:
            RoundAbortedError: The tree is complete and has to be restarted, or the sum is not of
                updates of weight 1.
            UpdateRefusedError: The sum is of another size, or lacks a statistic.
        """
        require_weight(total, self.contribution.size)
        if state.step >= self.steps:
            raise RoundAbortedError(
                f"the tree's {self.steps} rounds are over",
                hint="Restart the tree: it costs privacy once more, and devices may come again.",
            )
        after = replace(state, step=state.step + 1)
        grid = noise.grid_of(self.sensitivity)
        joint = np.rint(self.contribution.join_sum(total) / grid)
        joint += self._node(after, *_node_of(after.step))
        for level, index in _merged(after.step):
            joint -= self._node(after, level, index)
        joint *= grid
        return after, self.contribution.split(joint, total.clients)

    def _node(self, state: TreeState, level: int, index: int) -> npt.NDArray[np.float64]:
        """Return a node's noise in steps of the grid, shape (length,)."""
        purpose = f"tree/{len(state.finished)}/{level}/{index}".encode()
        return noise.on_grid(
            self.contribution.length,
            sensitivity=self.sensitivity,
            noise_multiplier=self.noise_multiplier,
            key=noise.derive(state.seed, purpose),
        )

    def events(self, state: TreeState) -> tuple[Tree, ...]:
        """Return what all releases so far are accounted as: one event for each tree."""
        used = [step for step in (*state.finished, state.step) if step]
        return tuple(Tree(self.noise_multiplier, step) for step in used)

    def deviation(self, step: int) -> float:
        """Return the standard deviation of the noise on an element of a prefix of `step` rounds."""
        return self.noise_multiplier * self.sensitivity * math.sqrt(step.bit_count())


def restart(state: TreeState) -> TreeState:
    """Return the state with a new tree; one that released nothing yet goes on.

    Raises:
        RoundAbortedError: There were too many trees.
    """
    if state.step == 0:
        return state
    if len(state.finished) >= MAX_TREES:
        raise RoundAbortedError(f"{MAX_TREES} trees are the most of one training")
    return TreeState(state.seed, 0, (*state.finished, state.step))


def _node_of(step: int) -> tuple[int, int]:
    """Return level and index of the largest node that ends at `step`."""
    level = (step & -step).bit_length() - 1
    return level, step >> level


def _merged(step: int) -> Iterator[tuple[int, int]]:
    """Yield the nodes that tile the prefix before `step`, and that its node takes the place of."""
    top, _ = _node_of(step)
    for level in range(top):
        yield level, (step - 1) >> level


def to_bytes(state: TreeState) -> bytes:
    """Return the canonical stored form, which is secret; `from_bytes(to_bytes(s)) == s`."""
    document = {"kind": KIND, "format": FORMAT, "seed": state.seed.hex()}
    document |= {"step": state.step, "finished": list(state.finished)}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def from_bytes(data: bytes) -> TreeState:
    """Return the state that `to_bytes` stored.

    Raises:
        StoredStateError: Not the stored state of a tree; its bytes are not repeated.
    """
    try:
        found: Any = json.loads(data)
        state = TreeState(bytes.fromhex(found["seed"]), found["step"], tuple(found["finished"]))
        limits.whole("step", state.step, 0, limits.MAX_ROUNDS)
        for step in state.finished:
            limits.whole("finished", step, 1, limits.MAX_ROUNDS)
        is_ours = len(state.seed) >= noise.KEY and len(state.finished) <= MAX_TREES
        if not is_ours or to_bytes(state) != data:
            raise StoredStateError("not the stored state of a tree")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoredStateError("not the stored state of a tree") from error
    return state
