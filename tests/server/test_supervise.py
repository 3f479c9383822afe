"""Children are kept running, are told of, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from tests.server_base_fakes import until

from wildflower.server.errors import StartError
from wildflower.server.supervise import Child, Supervisor, become

SERVES = """
import signal, subprocess, sys, time
from pathlib import Path
if "grandchild" in sys.argv:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path("grandchild").write_text(str(child.pid))
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("I serve", flush=True)
Path("ready").write_text("yes")
while True:
    signal.pause()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serves.py").write_text(textwrap.dedent(SERVES))
    return tmp_path


def child(*arguments: str, name: str = "child") -> Child:
    command = [sys.executable, "serves.py", *arguments]
    return Child(name, command, lambda: Path("ready").exists(), {"SEEN": "yes"})


def logs() -> Path:
    return Path("logs")


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_child_is_ready_when_it_says_so_and_gone_after_the_block() -> None:
    with Supervisor([child()], logs()) as supervisor:
        supervisor.wait_ready(20)
        [status] = supervisor.status()
        assert (status.name, status.state, status.restarts) == ("child", "running", 0)
        assert psutil.Process(status.pid).environ()["SEEN"] == "yes"
    assert is_gone(status.pid)
    assert [one.state for one in supervisor.status()] == ["ended"]
    assert (logs() / "child.log").read_text() == "I serve\n"


def test_a_killed_child_is_started_again_and_counted() -> None:
    with Supervisor([child()], logs()) as supervisor:
        supervisor.wait_ready(20)
        first = supervisor.status()[0].pid
        os.kill(first, signal.SIGKILL)
        until(lambda: supervisor.status()[0].pid not in (0, first), 20)
        assert supervisor.status()[0].restarts == 1


def test_a_child_that_starts_again_is_not_ready_before_it_serves() -> None:
    with Supervisor([child()], logs()) as supervisor:
        supervisor.wait_ready(20)
        Path("serves.py").write_text("import signal; signal.pause()")
        Path("ready").unlink()
        os.kill(supervisor.status()[0].pid, signal.SIGKILL)
        until(lambda: supervisor.status()[0].restarts == 1, 20)
        assert not supervisor.is_ready


def test_a_child_that_cannot_start_is_told_with_the_end_of_its_log() -> None:
    failing = Child("broken", [sys.executable, "-c", "exit('no luck today')"], lambda: False)
    with (
        Supervisor([failing], logs()) as supervisor,
        pytest.raises(StartError, match=r"(?s)broken did not start.*no luck today") as caught,
    ):
        supervisor.wait_ready(1.5)
    assert "broken.log" in caught.value.hint
    restarts = supervisor.status()[0].restarts
    assert 1 <= restarts <= 3, "the pause between two starts doubles"


def test_waiting_for_a_child_can_be_given_up() -> None:
    never = Child("never", [sys.executable, "-c", "import signal; signal.pause()"], lambda: False)
    with Supervisor([never], logs()) as supervisor:
        supervisor.wait_ready(60, give_up=lambda: True)


def test_a_stubborn_child_is_killed_after_the_grace() -> None:
    with Supervisor([child("stubborn")], logs(), grace_s=0.3) as supervisor:
        supervisor.wait_ready(20)
        pid = supervisor.status()[0].pid
    assert is_gone(pid)


def test_what_a_child_has_started_ends_with_it() -> None:
    with Supervisor([child("grandchild")], logs()) as supervisor:
        supervisor.wait_ready(20)
        grandchild = int(Path("grandchild").read_text())
        assert not is_gone(grandchild)
    assert is_gone(grandchild)


def test_children_end_with_a_supervisor_that_is_killed(place: Path) -> None:
    code = """
        import signal, sys
        from pathlib import Path
        from wildflower.server.supervise import Child, Supervisor
        child = Child("child", [sys.executable, "serves.py"], Path("ready").exists)
        with Supervisor([child], Path("logs")) as supervisor:
            supervisor.wait_ready(20)
            Path("pid").write_text(str(supervisor.status()[0].pid))
            Path("up").write_text("yes")
            signal.pause()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=place)
    until(lambda: Path("up").exists(), 20)
    pid = int(Path("pid").read_text())
    process.kill()
    process.wait()
    until(lambda: is_gone(pid), 20)


def test_a_child_whose_parent_has_gone_does_not_begin() -> None:
    with pytest.raises(SystemExit) as caught:
        become(parent=1 if os.getppid() != 1 else 2, command=["true"])
    assert caught.value.code == 0


def test_several_children_are_kept_side_by_side() -> None:
    pair = [child(name="one"), child(name="two")]
    with Supervisor(pair, logs()) as supervisor:
        supervisor.wait_ready(20)
        pids = {one.pid for one in supervisor.status()}
        assert len(pids) == 2
    assert all(map(is_gone, pids))
