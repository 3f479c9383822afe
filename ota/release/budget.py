"""What one update may cost in bytes, over all its files, sources and tries."""

from dataclasses import dataclass

from wildflower.ota.errors import BudgetError


@dataclass(slots=True)
class ByteBudget:
    """How many bytes one update may cost, whatever they were good for.

    Attributes:
        limit: Bytes that may come in all.
        spent: Bytes that have come.
    """

    limit: int
    spent: int = 0

    def spend(self, count: int) -> None:
        """Count bytes that have come.

        Raises:
            BudgetError: They are more than may come.
        """
        self.spent += count
        if self.spent > self.limit:
            raise BudgetError(
                f"{self.spent} bytes have come for this update, allowed are {self.limit}",
                hint="A source sends the same bytes again and again; what has arrived is kept.",
            )
