"""What a fleet survives: its server killed between rounds, Ctrl-C, and a neighbour."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.commands import ROOT, await_connected, processes_of, run, wildflower

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TASK = ROOT / "examples" / "own-task" / "task.py"


def demo(place: Path, *more: str) -> "subprocess.Popen[str]":
    heeding = ["env", "--default-signal=INT"]  # a shell's background jobs begin without Ctrl-C
    command = [sys.executable, "-m", "wildflower.cli", "demo", "--dir", str(place), *more]
    return subprocess.Popen(
        heeding + command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never told")


def test_agents_come_back_by_themselves_when_the_server_is_killed(tmp_path: Path) -> None:
    data, place = tmp_path / "digits.npz", tmp_path / "fleet"
    subprocess.run([sys.executable, str(TASK), str(data)], check=True)
    server = ("--dir", str(place / "server"))
    try:
        run(
            "local up", "--dir", str(place), "--devices", "4", "--model", str(TASK),
            "--data", str(data),
        )  # fmt: skip
        run("round start", "--rounds", "1", "--wait", *server)
        run("local kill", "server", "--restart", "--dir", str(place))
        await_connected(4, *server)
        again = run("round start", "--rounds", "1", "--wait", *server)
        assert again["training"]["phase"] == "finished"
        assert len(again["rounds"][0]["survivors"]) == 4
    finally:
        run("local down", "--dir", str(place))
    assert processes_of(place) == []


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    process = demo(tmp_path / "demo")
    try:
        wait_for(process, "Enrol devices")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert processes_of(tmp_path) == []


def test_a_killed_demo_takes_its_processes_along(tmp_path: Path) -> None:
    process = demo(tmp_path / "demo")
    wait_for(process, "Start the server")
    process.kill()
    process.communicate()
    while processes_of(tmp_path):  # the time-out of the test bounds this
        pass


def test_one_directory_takes_one_demo_and_two_take_two(tmp_path: Path) -> None:
    small = ("--devices", "4", "--rounds", "1", "--format", "json")
    first, second = demo(tmp_path / "one", *small), demo(tmp_path / "two", *small)
    try:
        wait_for(first, "Start the server")
        code, answer, _ = wildflower("demo", "--dir", str(tmp_path / "one"), timeout_s=60)
        assert (code, answer["error"]["type"]) == (1, "DirectoryError")
        for process in (first, second):
            output, told = process.communicate(timeout=500)
            assert process.returncode == 0, f"{output}\n{told}"
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert processes_of(tmp_path) == []
