"""The trial: a release answers its golden inputs in a child process before it may run.

A child, because a model that crashes its runtime, eats the memory or never answers must cost the
release and not the agent. What is compared is signed with the release.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wildflower.ota.errors import PostponedError, TrialError
from wildflower.ota.release.manifest import TrialBudget

CHILD: Final = "wildflower.ota.device.trial_child"
TIMEOUT_S: Final = 60.0
GLANCE_S: Final = 0.1
"""How often the waiting parent looks whether it is told to stop."""
MAX_ANSWER: Final = 10_000  # bytes; real ones have about 120


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What the child measured.

    Attributes:
        difference: Largest absolute difference to the golden outputs; NaN if an output is not
            a finite number.
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
    if not result.agreement >= budget.min_agreement:
        return (
            f"golden answers agree in {result.agreement:.2f}, required {budget.min_agreement:.2f}"
        )
    if not result.latency_ms <= budget.latency_ms:
        return f"an inference takes {result.latency_ms:.3g} ms, allowed {budget.latency_ms:.3g} ms"
    if not result.rss_bytes <= budget.rss_bytes:
        return f"it takes {result.rss_bytes} bytes of memory, allowed {budget.rss_bytes}"
    return ""


def run_trial(
    model: Path,
    golden: Path,
    budget: TrialBudget,
    *,
    timeout_s: float = TIMEOUT_S,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrialResult:
    """Run a release's trial.

    Args:
        model: The model file.
        golden: `.npz` with `inputs` and `outputs`, float32.
        budget: What is allowed.
        timeout_s: After this many seconds the child is killed and the trial has failed.
        should_stop: Whether the agent is told to end; the trial is then run again later.

    Raises:
        TrialError: It failed; says found and allowed.
        PostponedError: `should_stop` said so.
    """
    command = [sys.executable, "-m", CHILD, str(model), str(golden)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            out, err = _wait(child, timeout_s, should_stop)
        finally:
            child.kill()
    if child.returncode != 0:
        raise TrialError(_ending(child.returncode, err))
    result = parse_result(out)
    if failure := verdict(result, budget):
        raise TrialError(failure)
    return result


def parse_result(answer: bytes) -> TrialResult:
    """Parse what the child printed: its last line. A model runs in there, so it is not trusted.

    Raises:
        TrialError: Not a result.
    """
    try:
        found = json.loads(answer[-MAX_ANSWER:].splitlines()[-1])
        return TrialResult(
            difference=float(found["difference"]),
            agreement=float(found["agreement"]),
            latency_ms=float(found["latency_ms"]),
            rss_bytes=int(found["rss_bytes"]),
        )
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise TrialError(f"the trial's answer cannot be read: {error!r}") from error


def _wait(
    child: "subprocess.Popen[bytes]", timeout_s: float, should_stop: Callable[[], bool]
) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return child.communicate(timeout=GLANCE_S)
        except subprocess.TimeoutExpired:
            if should_stop():
                raise PostponedError("told to stop in the middle of a trial") from None
            if time.monotonic() > deadline:
                raise TrialError(f"the trial did not end within {timeout_s:g} s") from None


def _ending(code: int, err: bytes) -> str:
    told = err[-MAX_ANSWER:].decode(errors="replace").strip().splitlines()
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the trial {how}: {told[-1][:300] if told else 'it said nothing'}"
