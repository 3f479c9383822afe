"""One walk through the stages of a build, each looked up by what goes into it before it is made."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wildflower.ota import canonical
from wildflower.ota.build.line import Stage, key
from wildflower.ota.build.store import BuildStore, Outputs

log = logging.getLogger(__name__)

Inputs = Mapping[str, bytes | npt.NDArray[Any]]


class Run:
    """Looks stages up and remembers whether all of them were there."""

    def __init__(self, store: BuildStore, toolchain: str) -> None:
        self._store = store
        self._toolchain = toolchain
        self.is_cached = True

    @classmethod
    def after(cls, run: "Run") -> "Run":
        """Return a run for one artifact, cached only if what came before it was."""
        mine = cls(run._store, run._toolchain)
        mine.is_cached = run.is_cached
        return mine

    def outputs(self, stage: Stage, inputs: Inputs, make: Callable[[], Outputs]) -> Outputs:
        """Return a stage's outputs, made now if they are not in the store."""
        digests = {name: canonical.digest(_bytes_of(value)) for name, value in inputs.items()}
        found, is_cached = self._store.made(key(stage, digests, self._toolchain), make)
        log.info("stage done", extra={"stage": stage.name, "cached": is_cached})
        self.is_cached = self.is_cached and is_cached
        return found

    def stage(self, stage: Stage, inputs: Inputs, make: Callable[[], bytes]) -> bytes:
        """Return the one output of a stage that makes a model, as `outputs`."""
        return self.outputs(stage, inputs, lambda: {"model": make()})["model"]


def _bytes_of(value: bytes | npt.NDArray[Any]) -> bytes:
    """Return what a digest is taken of: for arrays, their type and shape too."""
    if isinstance(value, bytes):
        return value
    return f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
