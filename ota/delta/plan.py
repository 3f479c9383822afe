"""How a device gets from the artifact it has to the one it should have: by a delta, or whole.

Two decisions, both pure:

* The server's, at release: from which earlier releases deltas are offered. Each must be at most
  `MAX_SHARE` of the whole, because a delta that saves little costs a device its old file's
  reading and a server a place in every cache.
* The device's, at fetch: the smallest offer that fits what it has. A delta that failed is not
  tried again; then the whole file is fetched, if the device's owner lets a fallback cost that much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

MAX_SHARE: Final = 0.7
LAST: Final = 3  # releases back from which deltas are offered


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to an artifact.

    Attributes:
        base: Digest of the artifact that it starts from; "" for the whole file.
        digest: Digest of the bytes to fetch.
        size: How many there are.
    """

    base: str
    digest: str
    size: int

    @property
    def is_delta(self) -> bool:
        """Whether it needs an old file."""
        return bool(self.base)


def bases(earlier: Sequence[str], target: str, *, last: int = LAST) -> tuple[str, ...]:
    """Return the artifacts from which a delta to the new one is to be made, the newest first.

    Args:
        earlier: Digests of the artifacts of a target group's releases, the oldest first.
        target: Digest of the new one.
        last: How many releases back devices may be.
    """
    newest = dict.fromkeys(reversed(earlier))
    newest.pop(target, None)
    return tuple(newest)[:last]


def is_worthwhile(delta: int, whole: int) -> bool:
    """Whether a delta of so many bytes is to be offered beside a whole file of so many."""
    return delta <= MAX_SHARE * whole


def choose(offers: Iterable[Offer], *, has: str, failed: Iterable[str] = ()) -> Offer | None:
    """Return the smallest offer that this device can use; None if there is none.

    Args:
        offers: What the release offers.
        has: Digest of the artifact in the committed slot; "" if there is none.
        failed: Digests of deltas that did not give the artifact here.
    """
    usable = [
        one
        for one in offers
        if not one.is_delta or (one.base == has and one.digest not in frozenset(failed))
    ]
    return min(usable, key=lambda one: (one.size, one.is_delta), default=None)


def may_fall_back(whole: Offer, *, spent: int, budget: int | None) -> bool:
    """Whether a device whose delta failed may fetch the whole file now.

    Args:
        whole: The offer of the whole file.
        spent: Bytes that this update has fetched so far.
        budget: Bytes that an update may fetch; None for no limit.
    """
    return budget is None or spent + whole.size <= budget
