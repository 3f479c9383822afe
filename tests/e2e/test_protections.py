"""Every way of protecting updates, over real agents, real helpers and a real key holder."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.e2e.commands import ROOT, await_connected, processes_of, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TASK = ROOT / "examples" / "own-task" / "task.py"
DEVICES = 9


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def add_to(path: Path, section: str, *lines: str) -> None:
    """Set keys of a TOML file, in a section or, with "", at its top level."""
    keys = {line.partition(" ")[0] for line in lines}
    kept = [x for x in path.read_text().splitlines() if x.partition(" ")[0] not in keys]
    if not section:
        text = [*lines, *kept]
    elif f"[{section}]" in kept:
        place = kept.index(f"[{section}]") + 1
        text = [*kept[:place], *lines, *kept[place:]]
    else:
        text = [*kept, f"[{section}]", *lines]
    path.write_text("\n".join(text) + "\n")


@contextmanager
def running(*command: str) -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-m", "wildflower.cli", *command])
    try:
        yield
    finally:
        child.terminate()
        child.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fleet whose server and devices know one helper and one key holder; yield the server."""
    place = tmp_path_factory.mktemp("protections")
    data, fleet = place / "digits.npz", place / "fleet"
    subprocess.run([sys.executable, str(TASK), str(data)], check=True)
    run(
        "local up", "--dir", str(fleet), "--devices", str(DEVICES), "--model", str(TASK),
        "--data", str(data),
    )  # fmt: skip
    ca = fleet / "server/ca/ca.pem"
    helper = run("helper init", "--dir", str(place / "helper"), "--ca", str(ca))
    holder = run("keyholder init", "--dir", str(place / "holder"))
    ports = free_port(), free_port()
    shutil.copy(holder["token"], fleet / "server/key_holder.token")
    add_to(
        fleet / "server/server.toml", "privacy",
        f'helpers = ["https://127.0.0.1:{ports[0]}#{helper["digest"]}"]',
        f'key_holder = "https://127.0.0.1:{ports[1]}#{holder["digest"]}"',
    )  # fmt: skip
    for policy in fleet.glob("devices/*/policy.toml"):
        add_to(
            policy, "",
            f'helpers = ["{helper["digest"]}"]', f'key_holder = "{holder["digest"]}"',
        )  # fmt: skip
    with ExitStack() as stack:
        for name, port in zip(("helper", "keyholder"), ports, strict=True):
            where = place / {"keyholder": "holder"}.get(name, name)
            listen = f"127.0.0.1:{port}"
            stack.enter_context(running(name, "run", "--dir", str(where), "--listen", listen))
        run("local kill", "server", "--restart", "--dir", str(fleet))
        await_connected(DEVICES, "--dir", str(fleet / "server"))
        yield fleet / "server"
        run("local down", "--dir", str(fleet))
    assert processes_of(fleet) == []


WAYS = {
    "masks": ("--set", "bits=16", "--set", "adversary=semi-malicious"),
    "helpers": ("--protection", "one-shot"),
    "groups": ("--protection", "grouped", "--set", "rule=median"),
    "ciphertexts": ("--protection", "he"),
    "noise by the server": ("--set", "dp=central", "--set", "dp_norm=2", "--set", "dp_noise=0.1"),
    "noise by the devices": (
        *("--set", "dp=distributed", "--set", "bits=16"),
        *("--set", "dp_norm=2", "--set", "dp_noise=0.1"),
    ),
    "noise and helpers": (
        *("--protection", "one-shot", "--set", "dp=distributed"),
        *("--set", "dp_norm=2", "--set", "dp_noise=0.1"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_round_over_real_agents(server: Path, way: str) -> None:
    told = run("round start", "--rounds", "1", "--wait", *WAYS[way], "--dir", str(server))
    assert told["training"]["phase"] == "finished", told["training"]["reason"]
    assert len(told["rounds"][0]["survivors"]) >= DEVICES - 1
    assert re.fullmatch("[0-9a-f]{64}", told["rounds"][0]["model"])
