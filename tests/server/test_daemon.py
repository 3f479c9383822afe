"""A real server: its directory, its processes, its listeners, and what is left of it."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from tests.server_base_fakes import until

from wildflower.server.cli.remote import Remote
from wildflower.server.daemon import learning, run_server
from wildflower.server.errors import SettingsError, StartError
from wildflower.server.initialise import Options, initialise
from wildflower.server.settings import Settings, load_settings
from wildflower.server.tokens import parse


def initialised(place: Path) -> Path:
    options = Options(profile="demo", free_ports=True, settings={"model_name": "tiny"})
    initialise(place, options, now=datetime.now(UTC))
    return place


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a server that nobody has started."""
    return initialised(tmp_path_factory.mktemp("idle") / "server")


@dataclass
class Host:
    """A directory with a server, and its process."""

    home: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def remote(self) -> Remote:
        return Remote.of_directory(self.home)

    def run(self) -> subprocess.Popen[bytes]:
        """Return the server's process, started if there is none."""
        if self.process is not None and self.process.poll() is None:
            return self.process
        path = self.home / "logs" / "server.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "wildflower.server.daemon", "--dir", str(self.home)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.process = process
        until(lambda: self.remote.is_ready() or process.poll() is not None, 60)
        assert process.poll() is None, path.read_text()
        return process


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(initialised(tmp_path_factory.mktemp("daemon") / "server"))
    yield made
    if made.process is not None:
        made.process.terminate()
        made.process.wait()


@pytest.fixture
def server(host: Host) -> subprocess.Popen[bytes]:
    """A server that runs."""
    return host.run()


@pytest.fixture
def home(host: Host) -> Path:
    return host.home


Running = subprocess.Popen[bytes]


def test_a_server_says_what_it_runs_and_where_it_listens(server: Running, home: Path) -> None:
    status = Remote.of_directory(home).status()
    assert status.ready
    assert {one.name: one.state for one in status.processes} == {
        "superlink": "running",
        "signer": "running",
    }
    told = json.loads((home / "server.status.json").read_text())
    assert (told["pid"], told["ready"], told["listeners"]) == (server.pid, True, status.listeners)
    for address in status.listeners.values():
        host, _, port = address.rpartition("//")[2].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5):
            pass


def test_what_devices_reach_is_encrypted_under_the_enrolment_ca(
    server: Running, home: Path
) -> None:
    listeners = Remote.of_directory(home).status().listeners
    trusted = ssl.create_default_context(cafile=home / "ca" / "ca.pem")
    with httpx.Client(verify=trusted, trust_env=False) as client:
        assert (
            client.get(f"{listeners['enrol']}/v1/ca").content
            == (home / "ca" / "ca.pem").read_bytes()
        )
        root = client.get(f"{listeners['device']}/tuf/metadata/1.root.json")
        assert root.content == (home / "tuf" / "metadata" / "1.root.json").read_bytes()
        assert client.post(f"{listeners['device']}/v1/fleet/ping").status_code == 403


def test_an_invitation_names_the_server_and_what_to_trust(server: Running, home: Path) -> None:
    told = Remote.of_directory(home).invite(ring="lab", uses=2)
    invitation = parse(told.token)
    assert invitation.url == load_settings(home).enrol_url
    assert (told.ring, told.uses) == ("lab", 2)


def test_its_children_are_started_again(server: Running, home: Path) -> None:
    remote = Remote.of_directory(home)
    before = {one.name: one.pid for one in remote.status().processes}
    os.kill(before["signer"], signal.SIGKILL)
    until(lambda: remote.status().processes[1].restarts == 1 and remote.is_ready(), 30)
    after = {one.name: one.pid for one in remote.status().processes}
    assert after["superlink"] == before["superlink"]
    assert after["signer"] != before["signer"]


def test_a_second_server_in_the_directory_refuses(server: Running, home: Path) -> None:
    with pytest.raises(StartError, match=r"runs in .* already"):
        run_server(home, threading.Event())
    assert Remote.of_directory(home).is_ready()


def test_a_told_server_ends_and_leaves_no_process(home: Path, server: Running) -> None:
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert len(family) >= 3
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    assert [one for one in family if one.is_running() and one.status() != "zombie"] == []
    assert not (home / "server.status.json").exists()
    assert not Remote.of_directory(home).is_ready()


@pytest.mark.parametrize("key", ["enrol_port", "operator_port", "superlink_port"])
def test_a_port_in_use_is_named_with_its_key(idle: Path, key: str) -> None:
    settings = load_settings(idle)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.ports[key]))
        other.listen()
        with pytest.raises(StartError, match=rf"port {settings.ports[key]} .*{key}.* in use"):
            run_server(idle, threading.Event())


def test_a_server_without_a_port_is_not_started(idle: Path, tmp_path: Path) -> None:
    text = (idle / "server.toml").read_text()
    port = load_settings(idle).enrol_port
    (tmp_path / "server.toml").write_text(text.replace(str(port), "0"))
    with pytest.raises(SettingsError, match="enrol_port = 0"):
        run_server(tmp_path, threading.Event())


def test_an_error_at_the_start_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wildflower.server.daemon", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "server.toml is missing" in line
    assert "wildflower server init" in line


def test_a_server_that_is_told_to_end_while_it_starts_ends(idle: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    run_server(idle, stopping, on_ready=lambda: pytest.fail("it never got ready"))
    assert not (idle / "server.status.json").exists()


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        ("", ""),
        ("package.module:task", "package.module:task"),
        ("named", "named"),
        ("task.py", "/srv/wf/task.py"),
        ("/opt/task.py", "/opt/task.py"),
        ("apps/flower", "/srv/wf/apps/flower"),
    ],
)
def test_what_is_learned_is_found_from_the_server_s_directory(app: str, expected: str) -> None:
    settings = Settings(directory=Path("/srv/wf"), app=app, model_name="line", quorum=4)
    found = learning(settings)
    assert (found.app, found.name, found.settings["quorum"]) == (expected, "line", 4)
