"""A server's directory with a real repository, and a real release signer beside it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.ota_fakes import CLASS, Origin, release_of

from wildflower.ota.build.gates import Bound, GateReport, gate
from wildflower.ota.release.manifest import Lineage, Release
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord

MODEL = "ab" * 32
PATIENCE_S = 30.0


def today() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Case:
    """A release and the evidence for it."""

    release: Release
    gate_report: GateReport
    round_record: RoundRecord

    def with_report(self, **changes: Any) -> "Case":
        """Return the case with another gate report, which the manifest names."""
        report = replace(self.gate_report, **changes)
        lineage = replace(self.release.lineage, gate_report=report.digest)
        return replace(self, gate_report=report, release=replace(self.release, lineage=lineage))


def case(order: int = 1, data: bytes = b"the artifact", **changes: Any) -> Case:
    """Return a release that may be signed; `changes` replace fields of the manifest."""
    release = release_of(data, order)
    report = GateReport(
        artifact=release.artifact.digest,
        model=MODEL,
        device_class=CLASS,
        recipe="fp32-ort",
        results=tuple(
            gate(name, 0.0, Bound.AT_MOST, 1.0) for name in ("parity", "size", "accuracy")
        ),
        toolchain={"onnx": "1.20"},
    )
    method = Method("fedavg", "secagg")
    record = RoundRecord("t1", 3, MODEL, 8, 7, True, {"accuracy": 0.9}, today(), method)
    lineage = Lineage(MODEL, record.training, record.number, report.digest)
    return Case(replace(release, lineage=lineage, **changes), report, record)


def server_directory(directory: Path) -> Origin:
    """Make what `server init` makes, as far as publishing needs it."""
    return Origin(directory, today())


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that another process brings about."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come about")


def start_signer(directory: Path) -> subprocess.Popen[str]:
    """Start a signer's process; it may not be ready yet."""
    return subprocess.Popen(
        [sys.executable, "-m", "wildflower.server.signer", "--dir", str(directory)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent / "src")},
    )


@contextmanager
def signer_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the release signer as the server does, until SIGTERM."""
    with start_signer(directory) as process:
        try:
            until((directory / "signer.sock").exists)
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
