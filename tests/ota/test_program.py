"""Programs of the owner's: real processes that end, fail, hang, flood and leave children behind."""

import os
import sys
import time
from pathlib import Path

import pytest

from wildflower.ota.device.program import MAX_OUTPUT, Ended, run_program
from wildflower.ota.errors import PostponedError, ProgramError


def run(directory: Path, script: str, *, timeout_s: float = 20.0, stop: bool = False) -> Ended:
    return run_program(
        ["/bin/sh", "-c", script],
        environment={"WHAT": "a value"},
        directory=directory,
        timeout_s=timeout_s,
        should_stop=lambda: stop,
    )


def test_its_code_and_its_words_come_back(tmp_path: Path) -> None:
    found = run(tmp_path, "echo one; echo two >&2; exit 3")
    assert found == Ended(3, b"one\ntwo\n")
    assert str(found) == "ended with 3: two"


def test_it_finds_what_it_was_given_and_nothing_of_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    found = run(tmp_path, 'echo "$WHAT"; echo "${A_SECRET-none}"; test -n "$PATH" && pwd')
    assert found.output.decode().splitlines() == ["a value", "none", str(tmp_path)]


def test_one_that_is_killed_is_told_with_its_signal(tmp_path: Path) -> None:
    found = run(tmp_path, "kill -9 $$")
    assert str(found) == "was ended by signal 9: it said nothing"


def test_one_that_never_stops_talking_is_cut_short(tmp_path: Path) -> None:
    found = run(tmp_path, "head -c 200000 /dev/zero | tr '\\0' x")
    assert found == Ended(0, b"x" * MAX_OUTPUT)
    assert len(found.last_line) == 300


def test_what_is_no_text_is_told_all_the_same(tmp_path: Path) -> None:
    assert run(tmp_path, "printf '\\377a'").last_line == "\N{REPLACEMENT CHARACTER}a"


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"/bin/sh did not end within 0\.3 s"):
        run(tmp_path, "sleep 100 & echo $! > child; wait", timeout_s=0.3)
    assert has_ended(int((tmp_path / "child").read_text()))


def test_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    found = run(tmp_path, "sleep 100 & echo $!")
    assert has_ended(int(found.output))


def test_an_agent_that_is_told_to_stop_does_not_wait(tmp_path: Path) -> None:
    with pytest.raises(PostponedError, match="told to stop while /bin/sh ran"):
        run(tmp_path, "sleep 100", stop=True)


@pytest.mark.parametrize(
    ("path", "told"), [("missing", "No such file"), ("plain", "Permission denied")]
)
def test_one_that_cannot_be_started_is_told(tmp_path: Path, path: str, told: str) -> None:
    (tmp_path / "plain").write_text("no program")
    with pytest.raises(ProgramError, match=f"{path} cannot be started: {told}"):
        run_program([str(tmp_path / path)], environment={}, directory=tmp_path, timeout_s=5.0)


def has_ended(process: int) -> bool:
    """Whether a process is gone, or dead and only not yet waited for."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        os.sched_yield()
    return False


def test_the_interpreter_itself_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('fine')"]
    found = run_program(command, environment={}, directory=tmp_path, timeout_s=20.0)
    assert found == Ended(0, b"fine\n")
