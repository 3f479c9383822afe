"""The trial: a release answers its golden inputs in a child process before it may run.

A child, because a model that crashes its runtime, eats the memory or never answers must cost the
release and not the agent. What is compared is signed with the release.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.ota.errors import TrialError
from wildflower.ota.release.manifest import TrialBudget

CHILD: Final = "wildflower.ota.device.trial_child"
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What the child measured.

    Attributes:
        difference: Largest absolute difference to the golden outputs.
        agreement: Share of rows whose arg max agrees, in [0, 1].
        latency_ms: Median time of one inference.
        rss_bytes: Largest resident memory of the child.
    """

    difference: float
    agreement: float
    latency_ms: float
    rss_bytes: int


def verdict(result: TrialResult, budget: TrialBudget) -> str:
    """Return why a trial failed, found and allowed in one sentence; "" if it passed."""
    # `not <=` instead of `>`: an output that is NaN must fail, and NaN compares false to all.
    if not result.difference <= budget.tolerance:
        return f"golden outputs differ by {result.difference:.4g}, allowed {budget.tolerance:.4g}"
    if result.agreement < budget.min_agreement:
        return (
            f"golden answers agree in {result.agreement:.2f}, required {budget.min_agreement:.2f}"
        )
    if result.latency_ms > budget.latency_ms:
        return f"an inference takes {result.latency_ms:.3g} ms, allowed {budget.latency_ms:.3g} ms"
    if result.rss_bytes > budget.rss_bytes:
        return f"it takes {result.rss_bytes} bytes of memory, allowed {budget.rss_bytes}"
    return ""


def run_trial(
    model: Path, golden: Path, budget: TrialBudget, *, timeout_s: float = TIMEOUT_S
) -> TrialResult:
    """Run a release's trial.

    Args:
        model: The model file.
        golden: `.npz` with `inputs` and `outputs`, float32.
        budget: What is allowed.
        timeout_s: After this many seconds the child is killed and the trial has failed.

    Raises:
        TrialError: It failed; says found and allowed.
    """
    command = [sys.executable, "-m", CHILD, str(model), str(golden)]
    try:
        child = subprocess.run(
            command, capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise TrialError(f"the trial did not end within {timeout_s:.0f} s") from error
    if child.returncode != 0:
        told = child.stderr.decode(errors="replace").strip().splitlines()
        last = told[-1][:300] if told else ""
        raise TrialError(f"the trial ended with code {child.returncode}: {last}")
    try:
        result = TrialResult(**json.loads(child.stdout.splitlines()[-1]))
    except (ValueError, TypeError, IndexError) as error:
        raise TrialError(f"the trial's answer cannot be read: {error}") from error
    if failure := verdict(result, budget):
        raise TrialError(failure)
    return result
