"""A helper's directory, and its real process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.round_fakes import FlowerApp
from tests.secagg_fakes import entropy_of

from wildflower.client.outgoing import Guard, Outgoing
from wildflower.server.helper import make_helper
from wildflower.simulation.grid import InProcessGrid
from wildflower.simulation.identities import SimulatedCa
from wildflower.strategies.mod import UpdateMod
from wildflower.strategies.secagg.one_shot_messages import HelperCard
from wildflower.strategies.secagg.one_shot_protection import OneShot
from wildflower.strategies.secagg.sessions import MemorySessions

READY_S = 60.0


def helper_directory(directory: Path, ca_pem: bytes, *, min_cohort: int = 3) -> HelperCard:
    """Make a helper; return its card."""
    return make_helper(
        directory,
        ca_pem=ca_pem,
        min_cohort=min_cohort,
        entropy=entropy_of("helper", directory),
        now=datetime.now(UTC),
    )


@contextmanager
def helper_process(
    directory: Path, port: int, *, deadly: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Run a helper, until the block ends; it accepts connections.

    Args:
        directory: The helper's.
        port: Of the loopback address.
        deadly: It is killed as soon as it has claimed a session.
    """
    where = ["--dir", str(directory), "--listen", f"127.0.0.1:{port}"]
    command = ["-m", "wildflower.cli", "helper", "run", *where]
    if deadly:
        command = [str(Path(__file__).parent / "helper_child.py"), str(directory), str(port)]
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert "helper ready" in line, line
            yield process
        finally:
            process.terminate()
            process.wait(READY_S)


def grid_of(ca: SimulatedCa, digest: str, devices: int) -> InProcessGrid:
    """Return nodes 11, 12, ... that train by 0.5 with weight 10 and pin one helper."""
    guarded = {}
    for number in range(devices):
        protection = OneShot(ca.enrol(), MemorySessions(), (digest,))
        guard = Guard(Outgoing("required", (protection,)), UpdateMod((protection,)))
        guarded[11 + number] = guard.around(FlowerApp(0.5, 10).app)
    return InProcessGrid(guarded)
