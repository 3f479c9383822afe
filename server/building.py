"""The build, asked for by the server: `ota.build.worker` as a child, its files taken in as blobs.

What the child answered is kept in `build/answers/<model>.json`: a manifest needs more of it than
the records hold. It can be lost: the build is cached and answers the same again.
"""

import json
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from wildflower.ota.device.profile import CLASSES
from wildflower.ota.errors import BuildError
from wildflower.ota.release.files import write_durably
from wildflower.ota.release.manifest import Delta, FileEntry, Requirement, TrialBudget
from wildflower.server.supervise import run_once

log = logging.getLogger(__name__)

WORKER: Final = "wildflower.ota.build.worker"
TIME_S: Final = 1800.0  # a model's code may do anything; a large one takes minutes

Answer = Mapping[str, Any]
Earlier = Mapping[str, Sequence[str]]
"""By device class, digests of the artifacts that were released before, the oldest first."""
NONE: Final[Earlier] = MappingProxyType({})


class BlobFiles(Protocol):
    """Files named by their digest; `server.blobs.BlobStore`."""

    def put_file(self, source: Path) -> str:
        """Store a copy of a file durably; return its digest."""
        ...

    def path(self, digest: str) -> Path:
        """Return where a blob lies."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        ...


@dataclass(frozen=True, slots=True)
class Built:
    """One artifact and everything that a release of it needs; its files are blobs.

    Attributes:
        device_class: The class.
        recipe: Name of how it was built.
        files: The model, its golden rows, its baseline.
        gate_report: Digest of the gates' report.
        passed: Whether every gate passed.
        failures: Why not, a sentence a gate.
        requires: What a device must offer.
        trial: What it must show on the device.
        deltas: Ways to the model from artifacts that were released before; blobs too.
    """

    device_class: str
    recipe: str
    files: tuple[FileEntry, ...]
    gate_report: str
    passed: bool
    failures: tuple[str, ...]
    requires: Requirement
    trial: TrialBudget
    deltas: tuple[Delta, ...] = ()

    @property
    def artifact(self) -> FileEntry:
        """The model's file."""
        return self.files[0]

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Answer) -> Self:
        """Return what `to_json` stored.

        Raises:
            KeyError, TypeError: Not the stored form.
        """
        return cls(
            device_class=str(found["device_class"]),
            recipe=str(found["recipe"]),
            files=tuple(FileEntry(**entry) for entry in found["files"]),
            gate_report=str(found["gate_report"]),
            passed=bool(found["passed"]),
            failures=tuple(found["failures"]),
            requires=Requirement(**found["requires"]),
            trial=TrialBudget(**found["trial"]),
            deltas=tuple(Delta(**entry) for entry in found.get("deltas", ())),
        )


class Build:
    """Builds models in child processes.

    Args:
        directory: Of the build's cache and answers.
        blobs: Where models come from and artifacts go.
        proxy: The operator's labelled rows, or None where there are none.
        run: Runs the worker on a request and returns its answer, as `run_worker`.
        classes: The device classes to build for.
    """

    def __init__(
        self,
        directory: Path,
        blobs: BlobFiles,
        proxy: Path | None,
        run: Callable[[Answer], Answer],
        classes: Sequence[str] = tuple(CLASSES),
    ) -> None:
        self._directory, self._blobs, self._proxy = directory, blobs, proxy
        self._run, self._classes = run, classes

    def make(self, model: str, app: str, earlier: Earlier = NONE) -> list[Built]:
        """Build a model for every device class; what is cached is not built again.

        Args:
            model: Digest of the global model.
            app: Reference of its task.
            earlier: What deltas are made from.

        Raises:
            BuildError: It cannot be built; the reason is the worker's.
        """
        if self._proxy is None:
            raise BuildError(
                "nothing can be built: there is no proxy set for calibration and gates",
                hint="Set `proxy_data` in server.toml to an .npz with inputs and targets.",
            )
        out = Path(tempfile.mkdtemp(prefix="out-", dir=self._directory))
        try:
            answer = self._run(
                {
                    "app": app,
                    "model": str(self._blobs.path(model)),
                    "proxy": str(self._proxy),
                    "classes": list(self._classes),
                    "store": str(self._directory / "cache"),
                    "out": str(out),
                    "earlier": {name: self._paths(earlier[name]) for name in earlier},
                }
            )
            if "error" in answer:
                told = answer["error"]
                raise BuildError(f"{told['type']}: {told['message']}", hint=told["hint"])
            built = [self._taken_in(one) for one in answer["artifacts"]]
        finally:
            shutil.rmtree(out, ignore_errors=True)
        document = json.dumps([one.to_json() for one in built]).encode()
        write_durably(self._answer(model), document)
        return built

    def made(self, model: str, app: str, earlier: Earlier = NONE) -> list[Built]:
        """Return what was built from a model, built again as `make` does if that is lost.

        Raises:
            BuildError: It cannot be built again.
        """
        try:
            found = json.loads(self._answer(model).read_bytes())
            built = [Built.from_json(one) for one in found]
        except (OSError, ValueError, KeyError, TypeError):
            return self.make(model, app, earlier)
        files = [entry.digest for one in built for entry in one.files]
        files += [delta.digest for one in built for delta in one.deltas]
        return built if all(map(self._blobs.has, files)) else self.make(model, app, earlier)

    def _paths(self, digests: Sequence[str]) -> list[str]:
        return [str(self._blobs.path(one)) for one in digests if self._blobs.has(one)]

    def _taken_in(self, one: Answer) -> Built:
        golden, baseline = one["golden"], one["baseline"]
        deltas = one.get("deltas", ())
        for part in (one, golden, baseline, one["gate_report"], *deltas):
            self._blobs.put_file(Path(part["path"]))
        return Built(
            device_class=one["device_class"],
            recipe=one["recipe"],
            files=(
                FileEntry("model", one["file_name"], one["digest"], one["length"]),
                FileEntry("golden", "golden.npz", golden["digest"], golden["length"]),
                FileEntry("baseline", "baseline.json", baseline["digest"], baseline["length"]),
            ),
            gate_report=one["gate_report"]["digest"],
            passed=one["passed"],
            failures=tuple(one.get("failures", ())),
            requires=Requirement(**one["requires"]),
            trial=TrialBudget(**one["trial"]),
            deltas=tuple(Delta(each["base"], each["digest"], each["length"]) for each in deltas),
        )

    def _answer(self, model: str) -> Path:
        return self._directory / "answers" / f"{model}.json"


def run_worker(
    request: Answer,
    log_path: Path,
    stopping: threading.Event,
    *,
    worker: str = WORKER,
    time_s: float = TIME_S,
) -> Answer:
    """Run the worker on one request; return its answer.

    Args:
        request: See `ota.build.worker`.
        log_path: Where the worker's log goes.
        stopping: Ends the worker when set.
        worker: The module to run.
        time_s: How long it may take, in seconds.

    Raises:
        BuildError: It crashed, took too long, or was stopped.
    """
    done = run_once(
        [sys.executable, "-m", worker],
        stopping=stopping,
        time_s=time_s,
        data=json.dumps(request).encode(),
        log_path=log_path,
    )
    try:
        found: Answer = json.loads(done.output)
    except ValueError as error:
        is_ended = done.code is None
        why = "was stopped or took too long" if is_ended else f"ended with code {done.code}"
        raise BuildError(f"the build's process {why}", hint=f"Its log: {log_path}") from error
    return found
