"""Arrays as other programs send them: `.npy` bytes or JSON. Nothing in them is executed.

Source: the NPY format, numpy.lib.format, versions 1.0 and 2.0.
"""

import io
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.client.errors import RequestError
from wildflower.ota.device.runtime import Array

MAX_BODY: Final = 16 * 2**20  # bytes; 26 images of 224 x 224 x 3 in float32
MAX_DIMENSIONS: Final = 8
MAX_ROWS: Final = 65_536
MAX_HEADER: Final = 10_000  # bytes, as numpy itself allows
FORMAT: Final[Any] = np.lib.format  # half of it carries no types
KINDS: Final = "fiub"
"""Floats, integers, truth values: what becomes float32 without a question."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a program asks.

    Attributes:
        inputs: Shape (n, ...), float32, n >= 1.
        labels: The right class of each input, -1 where it is not known; None for none.
    """

    inputs: Array
    labels: list[int] | None = None


def from_npy(data: bytes) -> Question:
    """Parse the bytes of a `.npy` file.

    Raises:
        RequestError: Not such bytes, or an array that no model is asked with.
    """
    file = io.BytesIO(data)
    try:
        version = FORMAT.read_magic(file)
        read = {
            (1, 0): FORMAT.read_array_header_1_0,
            (2, 0): FORMAT.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read(file, max_header_size=MAX_HEADER)
    except Exception as error:  # its parser evaluates a literal: almost anything may be raised
        raise RequestError(f"not an array in NPY format 1.0 or 2.0: {error}") from error
    _check(shape, dtype)
    body = memoryview(data)[file.tell() :]
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(body) != expected:
        raise RequestError(f"found {len(body)} bytes of numbers, the header says {expected}")
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if is_fortran else "C")
    return Question(_finite(array))


def from_json(data: bytes) -> Question:
    """Parse `{"inputs": [[...], ...], "labels": [...]}`; labels may be missing.

    Raises:
        RequestError: Not such a document, or an array that no model is asked with.
    """
    document = read_object(data, allowed=("inputs", "labels"))
    if "inputs" not in document:
        raise RequestError("found no inputs", hint='Send {"inputs": [[...], ...]}.')
    try:
        array = np.array(document["inputs"])
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise RequestError(f"inputs are not rows of one shape: {error}") from error
    _check(array.shape, array.dtype)
    inputs, labels = _finite(array), document.get("labels")
    if labels is None:
        return Question(inputs)
    if not isinstance(labels, list) or not all(type(one) is int for one in labels):
        raise RequestError("labels are not a list of whole numbers")
    if len(labels) != len(inputs):
        raise RequestError(f"{len(labels)} labels for {len(inputs)} inputs")
    return Question(inputs, labels)


def read_object(data: bytes, *, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Parse a JSON object that has these keys at most.

    Raises:
        RequestError: Not JSON, not an object, or an unknown key.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RequestError(f"expected an object, found {type(document).__name__}")
    unknown = [key for key in document if key not in allowed]
    if unknown:
        raise RequestError(f"unknown key {unknown[0][:80]!r}", hint=f"Known: {', '.join(allowed)}")
    return document


def to_npy(array: npt.NDArray[Any]) -> bytes:
    """Return the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    FORMAT.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in KINDS or dtype.hasobject:
        raise RequestError(f"expected numbers, found {str(dtype)[:80]}")
    if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(size >= 1 for size in shape):
        raise RequestError(
            f"expected 1 to {MAX_DIMENSIONS} dimensions, none empty, found {str(shape)[:80]}"
        )
    if shape[0] > MAX_ROWS:
        raise RequestError(f"at most {MAX_ROWS} inputs at once, found {shape[0]}")


def _finite(array: npt.NDArray[Any]) -> Array:
    with np.errstate(over="ignore"):
        inputs = array.astype(np.float32)
    if not np.isfinite(inputs).all():
        raise RequestError("inputs are not finite in float32")
    return inputs
