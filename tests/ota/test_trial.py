"""The trial: real children, real models, and what a bad release cannot do to the agent."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device_fakes import golden_of
from tests.slots_fakes import WIDTH, scaling_model

from wildflower.ota.device import trial
from wildflower.ota.device.trial import TrialResult, parse_result, run_trial, verdict
from wildflower.ota.device.trial_child import measure
from wildflower.ota.errors import ModelError, PostponedError, TrialError
from wildflower.ota.release.manifest import TrialBudget

MODEL = scaling_model(1.0)
BUDGET = TrialBudget(tolerance=1e-3, min_agreement=1.0, latency_ms=1000.0, rss_bytes=2**33)
GOOD = TrialResult(difference=0.0, agreement=1.0, latency_ms=1.0, rss_bytes=1000)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    (tmp_path / "golden.npz").write_bytes(golden_of(MODEL))
    return tmp_path / "model.onnx", tmp_path / "golden.npz"


def test_a_good_release_passes_in_a_real_child(files: tuple[Path, Path]) -> None:
    result = run_trial(*files, BUDGET)
    assert result.difference <= 1e-6
    assert result.agreement == 1.0
    assert 0 < result.latency_ms < 1000
    assert 10**7 < result.rss_bytes < 2**33


def test_golden_outputs_of_another_model_fail_with_found_and_allowed(
    files: tuple[Path, Path],
) -> None:
    files[1].write_bytes(golden_of(MODEL, off=0.5))
    with pytest.raises(TrialError, match=r"golden outputs differ by 0\.5, allowed 0\.001"):
        run_trial(*files, BUDGET)


def test_a_model_that_cannot_be_loaded_fails(files: tuple[Path, Path]) -> None:
    files[0].write_bytes(b"not a model")
    with pytest.raises(TrialError, match=r"ended with code 1: .*cannot be loaded"):
        run_trial(*files, BUDGET)


CRASHES = {
    "signal": ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9: it said nothing"),
    "code": ("import sys; sys.exit(3)", "ended with code 3"),
    "garbage": ("print('all is well')", "cannot be read"),
    "silence": ("pass", "cannot be read"),
    "time": ("import threading; threading.Event().wait()", "did not end within 0.2 s"),
}


@pytest.mark.parametrize(("code", "told"), CRASHES.values(), ids=CRASHES)
def test_a_child_that_crashes_hangs_or_lies_fails(
    code: str, told: str, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_child.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(trial, "CHILD", "bad_child")
    with pytest.raises(TrialError, match=told):
        run_trial(*files, BUDGET, timeout_s=0.2 if "within" in told else 60)


def test_an_agent_that_is_told_to_end_does_not_wait_for_a_trial(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_child.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(trial, "CHILD", "slow_child")
    stop = threading.Event()
    stop.set()
    with pytest.raises(PostponedError, match="in the middle of a trial"):
        run_trial(*files, BUDGET, should_stop=stop.is_set)


VERDICTS = {
    "good": ({}, ""),
    "at every limit": (
        {"difference": 1e-3, "latency_ms": 1000.0, "rss_bytes": 2**33},
        "",
    ),
    "other outputs": ({"difference": 2e-3}, "golden outputs differ by 0.002, allowed 0.001"),
    "not a number": ({"difference": float("nan")}, "golden outputs differ by nan"),
    "other answers": ({"agreement": 0.5}, "golden answers agree in 0.50, required 1.00"),
    "slow": ({"latency_ms": 1001.0}, "an inference takes 1e+03 ms, allowed 1e+03 ms"),
    "never": ({"latency_ms": float("nan")}, "an inference takes nan ms"),
    "fat": ({"rss_bytes": 2**33 + 1}, "it takes 8589934593 bytes of memory, allowed 8589934592"),
}


@pytest.mark.parametrize(("changes", "told"), VERDICTS.values(), ids=VERDICTS)
def test_verdicts(changes: dict[str, float], told: str) -> None:
    found = verdict(replace(GOOD, **changes), BUDGET)  # type: ignore[arg-type]  # fields by name
    assert found.startswith(told)
    assert bool(found) == bool(told)


@given(st.binary(max_size=200))
def test_whatever_a_child_prints_is_a_result_or_a_failure(data: bytes) -> None:
    try:
        found = parse_result(data)
    except TrialError:
        return
    assert isinstance(found, TrialResult)


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{}",
        b'{"difference": "x", "agreement": 1, "latency_ms": 1, "rss_bytes": 1}',
        b'{"difference": 0, "agreement": 1, "latency_ms": 1, "rss_bytes": Infinity}',
        b"[" * 9000,
    ],
)
def test_an_answer_that_is_none_fails(answer: bytes) -> None:
    with pytest.raises(TrialError, match="cannot be read"):
        parse_result(answer)


def test_the_last_line_counts(files: tuple[Path, Path]) -> None:
    line = json.dumps({"difference": 0, "agreement": 1, "latency_ms": 1.0, "rss_bytes": 1000})
    assert parse_result(f"a library greets\n{line}\n".encode()) == GOOD


def test_what_is_measured_is_what_the_model_does(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(golden_of(MODEL, sign=-1.0))
    found = measure(MODEL, files[1])
    assert found["agreement"] == 0.0
    assert found["difference"] > 0.1


def test_outputs_that_are_not_finite_are_found(files: tuple[Path, Path]) -> None:
    found = measure(scaling_model(float("nan")), files[1])
    assert np.isnan(found["difference"])


def test_golden_outputs_of_another_shape_are_told(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[1].write_bytes(golden_of(scaling_model(1.0, classes=3)))
    with pytest.raises(ValueError, match=r"outputs have shape \(8, 2\), golden ones \(8, 3\)"):
        measure(MODEL, files[1])


def test_golden_inputs_of_another_width_are_told(tmp_path: Path) -> None:
    wide = np.zeros((2, WIDTH + 1), np.float32)
    np.savez(tmp_path / "golden.npz", inputs=wide, outputs=np.zeros((2, 2), np.float32))
    with pytest.raises(ModelError, match="cannot answer"):
        measure(MODEL, tmp_path / "golden.npz")


def test_the_child_loads_nothing_but_numpy_and_the_runtime() -> None:
    code = (
        "import sys, wildflower.ota.device.trial_child;"
        "print(sorted({m.split('.')[0] for m in sys.modules}"
        " & {'torch', 'onnx', 'flwr', 'grpc', 'httpx', 'tuf', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
