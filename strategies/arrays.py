"""Models as values: named arrays, their flat form, their file form, and what clients send.

Everything that is averaged, masked or clipped is ONE float32 vector; a `Layout` says which part of
it is which array. (Flower moves every array as an object of its own, and 122 small ones take six
times as long as the same bytes in one.) On disk a model is a safetensors file with sorted names,
and its digest is the SHA-256 of that file.

    layout.unpack(layout.pack(parameters)) == parameters    for numbers that float32 holds
    from_safetensors(to_safetensors(parameters)) == parameters
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.strategies.errors import LayoutError

Vector = npt.NDArray[np.float32]
"""A flat model or update, shape (n,)."""

Parameters = Mapping[str, npt.NDArray[Any]]
"""Named arrays of a model, as in a PyTorch state dict."""

MAX_ARRAYS: Final = 10_000
DTYPES: Final = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One array's place in the vector: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which part of the flat vector is which array; entries are sorted by name."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, parameters: Parameters) -> Self:
        """Return the layout of named arrays.

        Raises:
            LayoutError: Too many arrays, or a dtype that cannot be averaged.
        """
        entries = tuple(
            Entry(name, tuple(array.shape), array.dtype.name)
            for name, array in sorted(parameters.items())
        )
        unknown = sorted({entry.dtype for entry in entries} - DTYPES)
        if unknown or len(entries) > MAX_ARRAYS:
            raise LayoutError(
                f"{len(entries)} arrays, dtypes that cannot be averaged: {unknown}",
                hint=f"At most {MAX_ARRAYS} arrays of {', '.join(sorted(DTYPES))}.",
            )
        return cls(entries)

    @property
    def size(self) -> int:
        """Number of elements of the vector."""
        return sum(entry.size for entry in self.entries)

    def pack(self, parameters: Parameters) -> Vector:
        """Return the arrays as one vector, shape (size,).

        Raises:
            LayoutError: The names or shapes are not this layout's.
        """
        found = {name: tuple(array.shape) for name, array in parameters.items()}
        expected = {entry.name: entry.shape for entry in self.entries}
        if found != expected:
            wrong = sorted(set(found.items()) ^ set(expected.items()))[:4]
            raise LayoutError(f"arrays differ from the model's: {wrong}")
        vector = np.empty(self.size, np.float32)
        offset = 0
        for entry in self.entries:
            part = np.asarray(parameters[entry.name]).ravel()
            vector[offset : offset + entry.size] = part
            offset += entry.size
        return vector

    def unpack(self, vector: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the named arrays of a vector, in their own dtypes; integers are rounded.

        Raises:
            LayoutError: The vector has another size.
        """
        if vector.shape != (self.size,):
            raise LayoutError(f"expected a vector of {self.size} elements, found {vector.shape}")
        arrays: dict[str, npt.NDArray[Any]] = {}
        offset = 0
        for entry in self.entries:
            part = vector[offset : offset + entry.size].reshape(entry.shape)
            if not entry.dtype.startswith("float"):
                part = np.asarray(np.rint(part))  # of a scalar array it makes a bare number
            arrays[entry.name] = part.astype(entry.dtype)
            offset += entry.size
        return arrays

    def to_list(self) -> list[list[Any]]:
        """Return the layout as plain lists, for documents."""
        return [[entry.name, list(entry.shape), entry.dtype] for entry in self.entries]

    @classmethod
    def from_list(cls, rows: Any) -> Self:
        """Parse what `to_list` wrote.

        Raises:
            LayoutError: Not a layout.
        """
        try:
            entries = tuple(Entry(name, tuple(shape), dtype) for name, shape, dtype in rows)
            wrong = [entry for entry in entries if not _is_entry(entry)]
        except (TypeError, ValueError) as error:
            raise LayoutError(f"not a layout: {error}") from error
        if wrong or len(entries) > MAX_ARRAYS:
            raise LayoutError(f"not a layout: {len(entries)} entries, wrong are {wrong[:4]!r:.200}")
        names = [entry.name for entry in entries]
        if names != sorted(set(names)):
            raise LayoutError("not a layout: names are not sorted, or one is twice in it")
        return cls(entries)


def _is_entry(entry: Entry) -> bool:
    sizes = all(type(n) is int and n >= 0 for n in entry.shape)
    return type(entry.name) is str and sizes and entry.dtype in DTYPES


@dataclass(frozen=True, slots=True)
class Update:
    """What one client adds to a round.

    Attributes:
        vector: Local model minus global model, shape (n,), float32.
        weight: Its weight in the mean, usually a number of examples; above 0.
        statistics: Named sums that are added up over the cohort, such as counts of examples.
    """

    vector: Vector = field(repr=False)
    weight: float
    statistics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """An aggregated model.

    Attributes:
        parameters: Its named arrays.
        digest: SHA-256 of its safetensors file, hex.
    """

    parameters: Parameters = field(repr=False)
    digest: str

    @classmethod
    def of(cls, parameters: Parameters) -> Self:
        """Name the parameters by the digest of their file."""
        return cls(parameters, hashlib.sha256(to_safetensors(parameters)).hexdigest())


def to_safetensors(parameters: Parameters) -> bytes:
    """Return the bytes of the model's file; equal parameters give equal bytes."""
    from safetensors.numpy import save

    # Not ascontiguousarray: that would give arrays without a dimension one.
    plain = {name: np.asarray(array, order="C") for name, array in sorted(parameters.items())}
    return bytes(save(plain))


def from_safetensors(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Parse a model's file.

    Raises:
        LayoutError: Not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(sorted(load(data).items()))
    except (SafetensorError, ValueError, KeyError) as error:
        raise LayoutError(f"not a safetensors model: {error}") from error
