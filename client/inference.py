"""Runs the model that the device has committed, and records how it does.

    with ModelSlot(Path("/var/lib/wildflower")) as slot:
        answer = slot.infer(images)            # shape (n, ...), float32
        answer.predicted, answer.confidence, answer.artifact

The slot follows `slots/current`: between two inferences it looks whether the link has moved, and
if so loads the new model before it answers. So every answer comes from exactly one model, and an
update drops none. Every file's digest is checked against the manifest before each load; a slot
whose bytes are not what was signed is refused, and `slots/previous` answers in its place.

Running needs no network and no fresh metadata: what was committed may run.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.client.spool import Spool
from wildflower.ota.device.runtime import Array, LoadedModel, OrtRuntime, Runtime
from wildflower.ota.errors import FormatError, ModelError, RefusedError
from wildflower.ota.observe.baseline import Baseline, confidence, features
from wildflower.ota.observe.recorder import Recorder
from wildflower.ota.release.manifest import FileEntry, Release

log = logging.getLogger(__name__)

WINDOW_S: Final = 3600.0  # seconds; hourly summaries, as fleet monitors are read
Labels = Sequence[int] | npt.NDArray[np.integer[Any]]

UNREADABLE: Final = (RefusedError, FormatError, ModelError, OSError)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model answered to n inputs.

    Attributes:
        outputs: The model's outputs, shape (n, classes), float32.
        predicted: Index of the most likely class, shape (n,).
        confidence: Its probability, shape (n,), in [0, 1].
        labels: Names of the classes.
        artifact: Digest of the model file.
        release: Digest of the release it came with.
    """

    outputs: Array
    predicted: npt.NDArray[np.intp]
    confidence: Array
    labels: tuple[str, ...]
    artifact: str
    release: str


@dataclass(frozen=True, slots=True)
class _Installed:
    """One verified slot, loaded."""

    release: str
    artifact: str
    model: LoadedModel
    baseline: Baseline


class ModelSlot:
    """The user's way to the committed model. Threads may share one; they take turns."""

    def __init__(
        self,
        root: Path,
        *,
        runtime: Runtime | None = None,
        window_s: float = WINDOW_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the device directory; the model itself is loaded by the first inference.

        Args:
            root: The device's directory, the one that holds `slots`.
            runtime: What runs the model; ONNX Runtime if not given.
            window_s: Seconds after which a summary goes into the spool.
            clock: Tells the time that windows are labelled with, in UTC.
        """
        self._slots = root / "slots"
        self._spool = Spool(root / "spool")
        self._runtime = runtime or OrtRuntime()
        self._window_s = window_s
        self._clock = clock
        self._turn = threading.RLock()
        self._seen: tuple[int, int] | None = None
        self._installed: _Installed | None = None
        self._recorder: Recorder | None = None
        self._start = clock()
        self.refusal: str = ""
        """Why `slots/current` was refused; "" while it is what runs."""

    def infer(self, inputs: Array, labels: Labels | None = None) -> Answer:
        """Return the committed model's answer.

        Args:
            inputs: Shape (n, ...), float32, n >= 1.
            labels: The right class of each input where it is known, -1 where not.

        Raises:
            RefusedError: No slot holds what its manifest says.
            ModelError: The model cannot answer these inputs, or not with finite numbers.
            ValueError: Not as many labels as inputs.
        """
        with self.session() as session:
            return session.infer(inputs, labels)

    @contextmanager
    def session(self) -> Iterator["Session"]:
        """Hold on to one model for several inferences; an update waits for the end.

        Raises:
            RefusedError: No slot holds what its manifest says.
        """
        with self._turn:
            installed = self._follow()
            assert self._recorder is not None  # noqa: S101  # _follow made it
            yield Session(installed, self._recorder)
            if (self._clock() - self._start).total_seconds() >= self._window_s:
                self.cut()

    def cut(self) -> int | None:
        """Put the summary of the inferences since the last one into the spool.

        Returns:
            Its sequence in the spool, or None if nothing was inferred.
        """
        with self._turn:
            recorder, start, self._start = self._recorder, self._start, self._clock()
            if recorder is None or not recorder.recorded:
                return None
            dropped = self._spool.take_dropped()
            summary = recorder.cut(start=start, end=self._start, dropped=dropped)
            return self._spool.append(summary.to_bytes())

    def close(self) -> None:
        """Put what was recorded into the spool."""
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _follow(self) -> _Installed:
        """Return the model that `slots/current` names, loading it if the link has moved."""
        link = self._identity()
        if self._installed is not None and link == self._seen:
            return self._installed
        installed = self._load(self._installed)
        if self._installed is None or installed.artifact != self._installed.artifact:
            self.cut()  # before the swap: a summary speaks of one artifact
            self._recorder = Recorder(installed.artifact, installed.baseline)
            log.info("model loaded", extra={"artifact": installed.artifact})
        self._installed, self._seen = installed, link
        return installed

    def _identity(self) -> tuple[int, int] | None:
        """Return what changes whenever the link is flipped, even to the same release."""
        try:
            found = (self._slots / "current").lstat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _load(self, running: _Installed | None) -> _Installed:
        """Return the first that is what was signed: current, previous, what is in memory."""
        reasons = []
        for name in ("current", "previous"):
            try:
                installed = load_slot(self._slots / name, self._runtime)
            except UNREADABLE as error:
                reasons.append(f"slots/{name}: {error}")
                log.error("slot refused", extra={"slot": name, "reason": str(error)})
            else:
                self.refusal = "; ".join(reasons)
                return installed
        self.refusal = "; ".join(reasons)
        if running is not None:
            return running
        raise RefusedError(
            self.refusal, hint="The agent installs a release: `wildflower agent status` shows it."
        )


class Session:
    """Inferences with one model; made by `ModelSlot.session`."""

    def __init__(self, installed: _Installed, recorder: Recorder) -> None:
        self._installed = installed
        self._recorder = recorder

    def infer(self, inputs: Array, labels: Labels | None = None) -> Answer:
        """Return the model's answer; see `ModelSlot.infer`."""
        inputs = np.asarray(inputs, np.float32)
        if labels is not None and len(labels) != len(inputs):
            raise ValueError(f"{len(labels)} labels for {len(inputs)} inputs")
        begin = time.perf_counter()
        try:
            outputs = self._installed.model.run(inputs)
            latency_ms = (time.perf_counter() - begin) * 1000
            answer = self._answer(outputs)
        except ModelError:
            self._recorder.fail(len(inputs))
            raise
        self._record(features(inputs), latency_ms, answer)
        if labels is not None:
            for expected, found in zip(labels, answer.predicted, strict=True):
                if expected >= 0:
                    self._recorder.label(bool(expected == found))
        return answer

    def _answer(self, outputs: Array) -> Answer:
        expected = len(self._installed.baseline.labels)
        if outputs.ndim != 2 or outputs.shape[1] != expected:
            raise ModelError(f"expected outputs (n, {expected}), found {outputs.shape}")
        if not np.isfinite(outputs).all():
            raise ModelError("the model's outputs are not finite")
        return Answer(
            outputs,
            outputs.argmax(1),
            confidence(outputs, self._installed.baseline.outputs),
            self._installed.baseline.labels,
            self._installed.artifact,
            self._installed.release,
        )

    def _record(self, columns: Array, latency_ms: float, answer: Answer) -> None:
        rows = zip(columns, answer.predicted, answer.confidence, strict=True)
        for row, predicted, certainty in rows:
            self._recorder.record(row, latency_ms, int(predicted), float(certainty))


def load_slot(slot: Path, runtime: Runtime) -> _Installed:
    """Load a slot whose every byte is what was signed.

    The slot is the directory `slots/<digest of the manifest>`, or a link to it, so its name vouches
    for the manifest and the manifest for the files.

    Raises:
        RefusedError: A digest is not the one that was signed.
        FormatError: The manifest or the baseline cannot be read.
        ModelError: The runtime cannot load the model.
        OSError: A file is missing.
    """
    directory = slot.resolve(strict=True)
    manifest = (directory / "manifest.json").read_bytes()
    _check(manifest, directory.name, "the manifest")
    release = Release.from_bytes(manifest)
    model = _read(directory, release.artifact)
    baseline = Baseline.from_bytes(_read(directory, release.file("baseline")))
    return _Installed(directory.name, release.artifact.digest, runtime.load(model), baseline)


def _read(directory: Path, entry: FileEntry) -> bytes:
    data = (directory / entry.name).read_bytes()
    _check(data, entry.digest, entry.name)
    return data


def _check(data: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise RefusedError(f"{name} has digest {found[:16]}, signed was {expected[:16]}")
