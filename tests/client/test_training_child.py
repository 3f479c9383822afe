"""The training process: one at a time, restarted only where an invitation came too late."""

import signal
import sys
from pathlib import Path

import pytest
from tests.client_fakes import until

from wildflower.client.training_child import RACE_S, TrainingProcess

WAITS = (sys.executable, "-c", "import threading; threading.Event().wait()")
DEAF = (
    sys.executable,
    "-c",
    "import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); threading.Event().wait()",
)
ENDS = (sys.executable, "-c", "pass")
FAILS = (sys.executable, "-c", "raise SystemExit(1)")


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def ended(training: TrainingProcess) -> None:
    until(lambda: not training.is_running)


def test_an_invitation_starts_it_and_a_second_one_starts_no_other(tmp_path: Path) -> None:
    training = TrainingProcess(tmp_path, WAITS)
    assert not training.is_running
    training.invite()
    first = training._child
    training.invite()
    assert training.is_running
    assert training._child is first
    training.end()
    assert not training.is_running
    assert first is not None
    assert first.returncode == -signal.SIGTERM


def test_ending_what_does_not_run_is_nothing(tmp_path: Path) -> None:
    TrainingProcess(tmp_path).end()


def ignores(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line for line in lines if line.startswith("SigIgn:")).split()[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_process_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wildflower.client.training_child.GRACE_S", 0.1)
    training = TrainingProcess(tmp_path, DEAF)
    training.invite()
    child = training._child
    assert child is not None
    until(lambda: ignores(child.pid, signal.SIGTERM))
    training.end()
    assert child.returncode == -signal.SIGKILL


def test_one_that_ended_is_noticed_and_may_be_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    training = TrainingProcess(tmp_path, ENDS, clock)
    training.invite()
    ended(training)
    clock.seconds = RACE_S
    training.tend()
    assert not training.is_running
    training.invite()
    assert training._child is not None
    training.end()


def test_an_invitation_that_came_too_late_for_the_one_that_ended_starts_another(
    tmp_path: Path,
) -> None:
    clock = Clock()
    training = TrainingProcess(tmp_path, ENDS, clock)
    training.invite()
    first = training._child
    ended(training)
    clock.seconds = RACE_S / 2
    training.tend()
    assert training._child is not None
    assert training._child is not first
    training.end()


def test_one_that_failed_is_told_and_not_started_over_and_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = TrainingProcess(tmp_path, FAILS, Clock())
    training.invite()
    ended(training)
    training.tend()
    training.tend()
    assert training._child is None
    assert "training process ended" in caplog.text


def test_the_real_one_is_the_trainer_of_this_directory(tmp_path: Path) -> None:
    training = TrainingProcess(tmp_path)
    training.invite()
    child = training._child
    assert child is not None
    assert child.args == (sys.executable, "-m", "wildflower.client.trainer", "--dir", str(tmp_path))
    training.end()
