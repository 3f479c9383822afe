"""What fetching may cost a device in bytes, counted over the looks and restarts that it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from wildflower.ota.device.journal import Journal
from wildflower.ota.release.budget import ByteBudget

BUDGET_TIMES: Final = 3
"""Times its length that an update may cost: twice from a source that lies, once from the next."""
BUDGET_MORE: Final = 1_000_000  # bytes, so that a small one may be cut and begun anew more often


@contextmanager
def counted(journal: Journal, purpose: str, about: str, lengths: int) -> Iterator[ByteBudget]:
    """Count what comes in the block on top of what the journal knows to have come before.

    Args:
        journal: The device's memory.
        purpose: Name of the journal's fact; one thing of a purpose is counted at a time.
        about: What is fetched, without a space; another one begins at 0.
        lengths: Bytes of everything that is fetched.
    """
    known, _, spent = journal.fact(purpose).partition(" ")
    before = int(spent) if known == about and spent.isdecimal() else 0
    budget = ByteBudget(BUDGET_TIMES * lengths + BUDGET_MORE, before)
    try:
        yield budget
    finally:
        if budget.spent > before:
            journal.set_fact(purpose, f"{about} {budget.spent}")
