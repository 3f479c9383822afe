"""The scripts in deploy/image-updates do what Mender and RAUC ask of them, on a real device."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.client_fakes import FakeServer, today
from tests.device_fakes import GROUP, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import offer

from wildflower.ota.device.slots import Slots
from wildflower.ota.release.parcel import write_parcel
from wildflower.server.blobs import BlobStore
from wildflower.server.sneakernet import pack_release

SCRIPTS = Path(__file__).parents[1] / "deploy" / "image-updates"
WILDFLOWER = Path(sys.executable).with_name("wildflower")


@dataclass
class Machine:
    """A machine whose system is updated by somebody else, with a device on it.

    Attributes:
        root: A directory of its own.
        server: Where its releases come from.
        changes: What to change in the environment of what is called.
    """

    root: Path
    server: FakeServer
    changes: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> Path:
        return self.root / "device"

    @property
    def running(self) -> str:
        return Slots(self.device / "slots").running()

    @property
    def service(self) -> list[str]:
        """What was asked of the service manager."""
        log = self.root / "systemctl.log"
        return log.read_text().splitlines() if log.exists() else []

    def program(self, name: str, script: str) -> None:
        """Put a program in front of the machine's own."""
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def pack(self, directory: Path) -> Path:
        """Export what is rolled out now, as an operator does."""
        blobs = BlobStore(self.root / "blobs")
        for data in self.server.releases.blobs.values():
            blobs.put(data)
        directory.mkdir(parents=True, exist_ok=True)
        found = pack_release(self.server.releases.directory, blobs, GROUP, release="", now=today())
        write_parcel(directory / "digits.tar", found.contents)
        return directory / "digits.tar"

    def call(
        self, script: str, *words: str | Path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "WILDFLOWER": str(WILDFLOWER),
            "WILDFLOWER_APPLY": str(SCRIPTS / "wildflower-apply"),
            "WILDFLOWER_DIR": str(self.device),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [SCRIPTS / script, *words],
            env=environment | more | self.changes,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with FakeServer(tmp_path / "server") as server:
        server.enrol(tmp_path / "device")
        found = Machine(tmp_path, server)
        found.program("systemctl", f'echo "$@" >> {tmp_path}/systemctl.log')
        yield found


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Return the directory that Mender hands to a module."""
    (tmp_path / "payload" / "tmp").mkdir(parents=True)
    return tmp_path / "payload"


def test_mender_installs_a_model_and_may_commit_or_go_back_only_where_nothing_changed(
    machine: Machine, artifact: Path
) -> None:
    one = offer(machine.server, 1)
    machine.pack(artifact / "files")
    assert machine.call("mender-module", "SupportsRollback").stdout == "Yes\n"
    assert machine.call("mender-module", "NeedsArtifactReboot", artifact).stdout == "No\n"
    for state in ("Download", "ArtifactInstall", "ArtifactCommit", "Cleanup", "OfLaterProtocols"):
        done = machine.call("mender-module", state, artifact)
        assert (done.returncode, done.stderr) == (0, ""), state
    assert machine.running == one.digest
    assert machine.service == ["stop wildflower-agent", "start wildflower-agent"]
    assert not list(machine.device.glob(".carried*"))

    back = machine.call("mender-module", "ArtifactRollback", artifact)  # another payload failed
    assert (back.returncode, machine.running) == (1, one.digest)
    assert "wildflower rollout abort" in back.stderr


def test_a_model_that_fails_its_trial_fails_menders_artifact_and_the_one_before_stays(
    machine: Machine, artifact: Path
) -> None:
    good = offer(machine.server, 1)
    assert machine.call("wildflower-apply", machine.pack(machine.root / "stick")).returncode == 0
    offer(machine.server, 2, golden=golden_of(scaling_model(2.0), off=0.5))
    machine.pack(artifact / "files")
    failed = machine.call("mender-module", "ArtifactInstall", artifact)
    assert failed.returncode == 1
    assert "rolled-back: " in failed.stderr
    assert machine.running == good.digest
    assert machine.service[-1] == "start wildflower-agent"
    assert machine.call("mender-module", "ArtifactRollback", artifact).returncode == 0


def test_what_an_owner_keeps_out_is_no_success(machine: Machine) -> None:
    subprocess.run(
        [WILDFLOWER, "agent", "pause", "--reason", "trade fair", "--dir", machine.device],
        check=True,
        capture_output=True,
    )
    offer(machine.server, 1)
    failed = machine.call("wildflower-apply", machine.pack(machine.root / "stick"))
    assert (failed.returncode, machine.running) == (1, "")
    assert "waits: paused on this device: trade fair" in failed.stdout
    assert "What ran before goes on" in failed.stderr


def test_a_file_that_is_no_bundle_fails_and_the_agent_is_started_again(machine: Machine) -> None:
    noise = machine.root / "noise.tar"
    noise.write_bytes(b"noise")
    assert machine.call("wildflower-apply", noise).returncode == 1
    assert machine.call("wildflower-apply", machine.root / "gone.tar").returncode != 0
    assert machine.service == ["stop wildflower-agent", "start wildflower-agent"] * 2


def test_a_model_rides_in_a_bundle_of_rauc_and_never_fails_it(machine: Machine) -> None:
    mounted = machine.root / "mounted"
    mounted.mkdir()
    where = {"RAUC_BUNDLE_MOUNT_POINT": str(mounted), "WILDFLOWER_SERVICE": ""}
    assert machine.call("rauc-post-install", **where).returncode == 0  # nothing rides along
    one = offer(machine.server, 1)
    machine.pack(mounted / "wildflower")
    assert machine.call("rauc-post-install", **where).returncode == 0
    assert machine.running == one.digest
    (mounted / "wildflower" / "digits.tar").write_bytes(b"noise")
    refused = machine.call("rauc-post-install", **where)
    assert (refused.returncode, machine.running) == (0, one.digest)
    assert "not installed; what ran before goes on" in refused.stderr
    assert machine.service == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root updates a system")
def test_root_acts_as_the_devices_owner(machine: Machine) -> None:
    one = offer(machine.server, 1)
    shutil.chown(machine.device, "nobody")
    machine.program("runuser", f'echo "$2" > {machine.root}/user; shift 3; exec "$@"')
    assert machine.call("wildflower-apply", machine.pack(machine.root / "stick")).returncode == 0
    assert (machine.root / "user").read_text() == "nobody\n"
    assert machine.running == one.digest


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_a_script_is_plain_sh(script: str) -> None:
    path = SCRIPTS / script
    assert path.read_text().startswith("#!/bin/sh\n")
    assert os.access(path, os.X_OK)
    subprocess.run(["sh", "-n", path], check=True)
