import os
import textwrap
from pathlib import Path

import pytest

from wildflower.simulation.errors import ProcessError
from wildflower.simulation.local import processes
from wildflower.simulation.local.processes import Process


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that starts a child, says so, and stays until it is ended."""
    (tmp_path / "sleeper.py").write_text(
        textwrap.dedent(
            """
            import signal, subprocess, sys
            child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
            if "stubborn" in sys.argv:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready", child.pid, flush=True)
            signal.pause()
            while True:
                signal.pause()
            """
        )
    )
    return tmp_path


def started(folder: Path, *arguments: str) -> Process:
    log = folder / "sleeper.log"
    process = processes.spawn(
        "sleeper", "sleeper", arguments, log, environment={"PYTHONPATH": str(folder)}
    )
    while "ready" not in processes.last_lines(process):
        processes.require_alive(process)
    return process


@pytest.mark.parametrize("manner", ["willing", "stubborn"])
def test_stopping_a_process_leaves_nothing_of_its_session(script: Path, manner: str) -> None:
    process = started(script, manner)
    assert processes.is_alive(process)
    assert processes.session_members(process.pid)
    processes.stop([process], grace_s=0.5)
    assert processes.orphans([process]) == []


def test_a_killed_leader_leaves_children_that_stop_finds(script: Path) -> None:
    process = started(script)
    processes.kill(process)
    assert not processes.is_alive(process)
    assert processes.orphans([process]) != []
    processes.stop([process], grace_s=0.5)
    assert processes.orphans([process]) == []


def test_a_pid_that_was_given_away_is_not_ours() -> None:
    me = Process("me", os.getpid(), processes.start_time(os.getpid()), "")
    impostor = Process("me", os.getpid(), me.started + 1, "")
    assert processes.is_alive(me)
    assert not processes.is_alive(impostor)


def test_a_dead_process_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("raise SystemExit('no luck today')")
    process = processes.spawn(
        "failing", "failing", [], tmp_path / "log", environment={"PYTHONPATH": str(tmp_path)}
    )
    while processes.is_alive(process):
        pass
    with pytest.raises(ProcessError, match="no luck today"):
        processes.require_alive(process)
    processes.reap()


def test_processes_are_remembered(tmp_path: Path) -> None:
    fleet = [Process("server", 1, 2, "log"), Process("device-1", 3, 4, "log")]
    processes.save(tmp_path, fleet)
    assert processes.load(tmp_path) == fleet


def test_a_torn_or_missing_memory_is_an_empty_one(tmp_path: Path) -> None:
    assert processes.load(tmp_path) == []
    (tmp_path / "processes.json").write_text('[{"name"')
    assert processes.load(tmp_path) == []


def test_a_tethered_process_ends_with_the_one_who_started_it(script: Path) -> None:
    (script / "starter.py").write_text(
        textwrap.dedent(
            """
            import os
            from pathlib import Path
            from wildflower.simulation.local import processes
            here = Path(__file__).parent
            child = processes.spawn("s", "sleeper", [], here / "child.log", die_with_parent=True,
                                    environment={"PYTHONPATH": str(here)})
            processes.save(here, [child])
            while "ready" not in processes.last_lines(child):
                pass
            os.kill(os.getpid(), 9)
            """
        )
    )
    starter = processes.spawn(
        "starter", "starter", [], script / "log", environment={"PYTHONPATH": str(script)}
    )
    while processes.is_alive(starter):
        pass
    [child] = processes.load(script)
    while processes.is_alive(child):
        pass
    processes.stop([child, starter])


def test_no_process_has_no_start_time() -> None:
    assert processes.start_time(2**22 + 1) == 0
