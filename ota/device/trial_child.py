"""The trial's child process: load, run the golden inputs, measure, say so in one line of JSON.

python -m wildflower.ota.device.trial_child MODEL GOLDEN.npz
"""

import ctypes
import json
import signal
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from wildflower.ota.device.runtime import OrtRuntime, peak_rss

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
REPEATS: Final = 20
"""Inferences that are timed, after those that warm up."""


def measure(model: bytes, golden: Path) -> dict[str, float | int]:
    """Return what `ota.device.trial.TrialResult` holds.

    Raises:
        ModelError: The model cannot be loaded or run.
        ValueError: The golden file has not what it should have.
    """
    with np.load(golden, allow_pickle=False) as arrays:
        inputs, expected = arrays["inputs"], arrays["outputs"]
    loaded = OrtRuntime().load(model)
    outputs = loaded.run(inputs)
    if outputs.shape != expected.shape:
        raise ValueError(f"outputs have shape {outputs.shape}, golden ones {expected.shape}")
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        loaded.run(inputs[:1])
        times.append(time.perf_counter() - began)
    agree = outputs.argmax(axis=-1) == expected.argmax(axis=-1)
    return {
        "difference": float(np.abs(outputs - expected).max()),
        "agreement": float(agree.mean()),
        "latency_ms": 1000 * float(np.median(times)),
        "rss_bytes": peak_rss(),
    }


def die_with_parent() -> None:
    """Ask the kernel to end this process when the agent's thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    found = measure(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
