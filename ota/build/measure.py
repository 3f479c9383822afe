"""Measures an artifact the way a device would run it: the same runtime code, one thread.

Answers are computed in this process; time and memory come from a child that imports what a device
imports and nothing else, because a process that holds torch is five times as large.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.build.gates import Measurement
from wildflower.ota.device.runtime import Array, OrtRuntime, peak_rss
from wildflower.ota.errors import GateError

WARM_UP: Final = 10  # inferences; the first ones pay for memory and caches
RUNS: Final = 200  # inferences; their median moves by a few percent between runs
CHILD_TIMEOUT_S: Final = 120.0

CHILD: Final = (sys.executable, "-m", "wildflower.ota.build.measure")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process needs that only runs the model.

    Attributes:
        latency_ms: Median time of one inference at batch 1, one thread.
        rss_bytes: Peak resident memory.
    """

    latency_ms: float
    rss_bytes: int


def measure(
    model: bytes,
    inputs: Array,
    targets: npt.NDArray[Any],
    reference: Array,
    *,
    reference_size: int,
) -> Measurement:
    """Run a model on labelled rows and compare it with PyTorch's answers.

    Args:
        model: Bytes of its file.
        inputs: Shape (n, ...), n >= 1.
        targets: The right class of each row, shape (n,).
        reference: PyTorch's outputs, shape (n, classes).
        reference_size: Bytes of the fp32 ONNX file.

    Raises:
        ModelError: The model cannot be loaded or run.
        GateError: The child that measures time and memory failed.
    """
    outputs = OrtRuntime().load(model).run(inputs)
    footprint = footprint_of(model, inputs[:1])
    scale = max(1.0, float(np.abs(reference).max()))
    return Measurement(
        rows=len(inputs),
        error=float(np.abs(outputs - reference).max()) / scale,
        agreement=float((outputs.argmax(1) == reference.argmax(1)).mean()),
        correct=int((outputs.argmax(1) == targets).sum()),
        reference_correct=int((reference.argmax(1) == targets).sum()),
        size=len(model),
        reference_size=reference_size,
        latency_ms=footprint.latency_ms,
        rss_bytes=footprint.rss_bytes,
    )


def footprint_of(model: bytes, example: Array, *, timeout_s: float = CHILD_TIMEOUT_S) -> Footprint:
    """Return time and memory of a process that only runs the model.

    Args:
        model: Bytes of its file.
        example: One input, shape (1, ...).
        timeout_s: When to give up.

    Raises:
        GateError: The child failed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="wildflower-measure-") as directory:
        file, rows = Path(directory, "model"), Path(directory, "example.npy")
        file.write_bytes(model)
        np.save(rows, example)
        try:
            child = subprocess.run(
                [*CHILD, str(file), str(rows)],
                capture_output=True,
                timeout=timeout_s,
                check=True,
            )
            return Footprint(**json.loads(child.stdout))
        except subprocess.TimeoutExpired as error:
            raise GateError(f"measuring took more than {timeout_s:g} s") from error
        except subprocess.CalledProcessError as error:
            told = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise GateError(f"measuring ended with {error.returncode}: {told}") from error


def cpu_flags() -> tuple[str, ...]:
    """Return this host's CPU flags, sorted, as Linux names them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return tuple(sorted(flags.partition(":")[2].split()))


def run_alone(model: Path, example: Path) -> Footprint:
    """Measure in this very process: what the child does."""
    loaded, inputs = OrtRuntime().load(model.read_bytes()), np.load(example, allow_pickle=False)
    for _ in range(WARM_UP):
        loaded.run(inputs)
    taken = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        loaded.run(inputs)
        taken.append(time.perf_counter() - begin)
    return Footprint(float(np.median(taken)) * 1000, peak_rss())


if __name__ == "__main__":
    found = run_alone(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(json.dumps({"latency_ms": found.latency_ms, "rss_bytes": found.rss_bytes}))
