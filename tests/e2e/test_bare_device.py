"""A device with the base install alone enrols, updates and answers, without torch or flwr."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.commands import ROOT, processes_of, run
from tests.test_packaging import build, checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TASK = ROOT / "examples" / "own-task" / "task.py"
ABSENT = ("torch", "flwr", "onnx", "sqlmodel", "fastapi", "opacus", "tenseal", "ray")
ASK = """
import sys, numpy as np
from pathlib import Path
from wildflower.client import ModelSlot
with ModelSlot(Path(sys.argv[1])) as slot:
    answer = slot.infer(np.zeros((1, 64), np.float32))
print(answer.artifact)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds what `pip install wildflower` brings."""
    folder = tmp_path_factory.mktemp("bare")
    wheel = build("wheel", checkout(folder / "checkout"))
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return python


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fleet with a published release."""
    folder = tmp_path_factory.mktemp("fleet")
    data, place = folder / "digits.npz", folder / "fleet"
    subprocess.run([sys.executable, str(TASK), str(data)], check=True)
    own = ("--devices", "4", "--model", str(TASK), "--data", str(data))
    try:
        run("local up", "--dir", str(place), *own)
        run("round start", "--rounds", "2", "--wait", "--dir", str(place / "server"))
        assert run("build", "--wait", "--dir", str(place / "server"))["phase"] == "published"
        yield place
    finally:
        run("local down", "--dir", str(place))


def bare(python: Path, *arguments: str) -> str:
    """Run something in the bare environment; return what it printed."""
    clean = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WILDFLOWER_SERVER_DIR")
    }
    done = subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, env=clean, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_base_install_holds_nothing_heavy(python: Path) -> None:
    installed = bare(python, "-m", "pip", "list", "--format", "freeze").lower().splitlines()
    names = {line.partition("==")[0] for line in installed}
    assert names & set(ABSENT) == set()
    assert "onnxruntime" in names


def test_every_command_of_a_missing_extra_says_what_to_install(python: Path) -> None:
    ended = subprocess.run(
        [str(python), "-m", "wildflower.cli", "demo"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "pip install 'wildflower[all]'" in ended.stderr


def test_a_bare_device_enrols_updates_and_answers(python: Path, fleet: Path) -> None:
    server, device = ("--dir", str(fleet / "server")), fleet.parent / "bare-device"
    token = run("device invite", *server)["token"]
    bare(
        python, "-m", "wildflower.cli", "device", "enroll", token, "--dir", str(device),
        "--name", "bare", "--device-class", "linux-generic",
    )  # fmt: skip
    agent = subprocess.Popen(
        [str(python), "-m", "wildflower.client.daemon", "--dir", str(device)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        done = run("rollout create", "--min-reports", "5", "--wait", *server)
        assert done.get("rollout", done)["phase"] == "done"
        devices = {row["name"]: row for row in run("fleet ls", *server)["devices"]}
        assert bare(python, "-c", ASK, str(device)).strip() == devices["bare"]["running"] != ""
    finally:
        agent.terminate()
        assert agent.wait(10) == 0
    assert processes_of(device) == []
