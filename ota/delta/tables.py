"""Which tables a delta carries: few enough to be cheap, many enough to fit. The server's side.

Both choices are by minimum description length: runs of symbols are merged while a run saved is
worth more than the bits lost, and so are the tables of blocks that resemble each other.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.delta.rans import SCALE, SYMBOLS, Symbols, Table

Counts = npt.NDArray[np.float64]
Bits = npt.NDArray[np.float64]

RUN_BITS: Final = 20.0  # a run is a length and a weight, of one or two bytes each
TABLE_RUNS: Final = 24  # what the runs of a typical table come to once they are merged
COMPARED: Final = 192  # blocks at a time: comparing takes the square of it


def counts_of(symbols: Symbols) -> Counts:
    """Return how often each symbol occurs, shape (256,)."""
    return np.bincount(symbols, minlength=SYMBOLS).astype(np.float64)


def entropy(counts: Counts) -> Bits:
    """Return the bits that symbols of these counts need at least, over the last axis.

    Example:
        >>> float(entropy(np.array([2.0, 2.0])))
        4.0
    """
    total = counts.sum(axis=-1)
    return np.asarray(_times_log(total) - _times_log(counts).sum(axis=-1))


def fit(counts: Counts) -> Table:
    """Return the table for symbols of these counts, of which at least one is above 0."""
    lengths, sums = np.ones(SYMBOLS), counts.copy()
    while len(sums) > 1:
        both = sums[:-1] + sums[1:], lengths[:-1] + lengths[1:]
        kept = _spread(sums, lengths)
        losses = _spread(*both) - kept[:-1] - kept[1:]
        at = int(losses.argmin())
        if losses[at] > RUN_BITS:
            break
        sums[at], lengths[at] = both[0][at], both[1][at]
        sums, lengths = np.delete(sums, at + 1), np.delete(lengths, at + 1)
    share = sums / lengths * SCALE / sums.sum()
    weights = np.where(sums > 0, np.maximum(1, np.rint(share)), 0).astype(int).tolist()
    runs = list(zip(lengths.astype(int).tolist(), weights, strict=True))
    return Table(tuple(runs if runs[-1][1] else runs[:-1]))


def cluster(blocks: Sequence[Counts], most: int) -> tuple[list[Table], list[int]]:
    """Return tables, at most so many, and for each block the number of its table."""
    groups = [[number] for number in range(len(blocks))]
    sums = list(blocks)
    while True:
        before = len(groups)
        merged: list[list[int]] = []
        totals: list[Counts] = []
        for begin in range(0, len(groups), COMPARED):
            part = slice(begin, begin + COMPARED)
            is_last = len(groups) <= COMPARED
            some, their = _merged(groups[part], sums[part], most if is_last else COMPARED // 2)
            merged, totals = merged + some, totals + their
        groups, sums = merged, totals
        if before <= COMPARED:
            break
    table_of = {number: index for index, group in enumerate(groups) for number in group}
    return [fit(total) for total in sums], [table_of[number] for number in range(len(blocks))]


def _merged(
    groups: Sequence[list[int]], sums: Sequence[Counts], most: int
) -> tuple[list[list[int]], list[Counts]]:
    """Merge the two groups that lose the least by it, until that no longer pays."""
    members, totals = [list(group) for group in groups], [one.copy() for one in sums]
    costs = [_cost(one) for one in totals]
    losses = np.full((len(totals), len(totals)), np.inf)
    for index in range(1, len(totals)):
        losses[index, :index] = _losses(index, totals, costs)
    alive = len(totals)
    while alive > 1:
        right, left = np.unravel_index(int(losses.argmin()), losses.shape)
        if losses[right, left] > 0 and alive <= most:
            break
        members[left] += members[right]
        totals[left] = totals[left] + totals[right]
        costs[left] = _cost(totals[left])
        members[right], costs[right] = [], np.inf
        losses[right, :] = losses[:, right] = np.inf
        fresh = np.append(_losses(len(totals), [*totals, totals[left]], [*costs, costs[left]]), 0.0)
        losses[left, :left] = fresh[:left]
        losses[left + 1 :, left] = fresh[left + 1 : -1]
        alive -= 1
    kept = [index for index, group in enumerate(members) if group]
    return [members[index] for index in kept], [totals[index] for index in kept]


def _losses(index: int, totals: Sequence[Counts], costs: Sequence[float]) -> Bits:
    """Return what merging one group with each one before it would cost; what is gone costs inf."""
    both = np.stack(totals[:index]) + totals[index]
    together = _cost_of_all(both)
    apart = np.array(costs[:index]) + costs[index]
    return np.where(np.isfinite(apart), together - np.where(np.isfinite(apart), apart, 0), np.inf)


def _cost(counts: Counts) -> float:
    return float(_cost_of_all(counts))


def _cost_of_all(counts: Counts) -> Bits:
    runs: Bits = np.minimum((counts > 0).sum(axis=-1), TABLE_RUNS) * RUN_BITS
    return entropy(counts) + runs


def _spread(sums: Counts, lengths: npt.NDArray[np.float64]) -> Bits:
    """Return what runs cost, up to a constant: each symbol of a run is as likely as the others."""
    bits: Bits = sums * np.log2(lengths) - _times_log(sums)
    return bits


def _times_log(values: npt.NDArray[np.float64]) -> Bits:
    return np.asarray(values * np.log2(np.maximum(values, 1.0)))
