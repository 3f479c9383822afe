"""What turns updates into residues and a sum of residues into a `Sum`, whichever way it does it.

    fixed-point    `fixed_point.Encoding`: the plain weighted sum, within a quantum per client
    skellam        `dp.distributed.SkellamEncoding`: the sum with noise that hides each client

A session's parameters hold one; what it is stands in its field "encoding".
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np

from wildflower.strategies import fixed_point
from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Encoding, Field, Residues


class SumEncoding(Protocol):
    """An encoding; two equal ones are interchangeable.

    Promise: `decode` of the sum modulo 2**bits of any `clients` encoded updates is their sum, as
    exactly as the encoding says, and no sum of `clients` or fewer wraps unnoticed.
    """

    @property
    def size(self) -> int:
        """Elements of the model's vector."""
        ...

    @property
    def clients(self) -> int:
        """Upper bound of the cohort's size."""
        ...

    @property
    def min_cohort(self) -> int:
        """Fewest updates in a sum: with fewer, a noise of many parts is too small."""
        ...

    @property
    def bits(self) -> int:
        """Width of a residue, 16 or 32."""
        ...

    @property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """Type of a residue."""
        ...

    @property
    def length(self) -> int:
        """Number of residues of one encoded update."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics that are added up."""
        ...

    def encode(self, update: Update, entropy: bytes) -> Residues:
        """Return the residues of an update, shape (length,); `entropy` is 32 secret bytes."""
        ...

    def decode(self, total: Residues, clients: int) -> Sum:
        """Return what the residues of `clients` updates add up to."""
        ...

    def to_fields(self) -> dict[str, Field]:
        """Return the flat form, "encoding" among its names."""
        ...


def _skellam(fields: Mapping[str, object]) -> SumEncoding:
    from wildflower.strategies.dp.distributed import SkellamEncoding

    return SkellamEncoding.from_fields(fields)


READERS: Final[Mapping[str, Callable[[Mapping[str, object]], SumEncoding]]] = {
    fixed_point.KIND: Encoding.from_fields,
    "skellam": _skellam,
}


def read_encoding(fields: Mapping[str, object]) -> SumEncoding:
    """Parse what `to_fields` wrote.

    Raises:
        ProtocolError: Not an encoding, or of a kind that is not known here.
        CapacityError: One whose sums do not fit.
    """
    kind = fields.get("encoding")
    if not isinstance(kind, str) or kind not in READERS:
        raise ProtocolError(f"not an encoding: {kind!r}, known are {', '.join(READERS)}")
    return READERS[kind](fields)
