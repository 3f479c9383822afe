"""Runs the model that the device has committed, and records how it does.

   with ModelSlot("vision") as slot:           # or the device's directory, as a Path
       answer = slot.infer(images)             # shape (n, ...), float32
       answer.predicted, answer.confidence, answer.artifact

The slot follows `slots/current`: between two inferences it looks whether the link has moved. Every
answer comes from exactly one model, and an update drops none. Three ways to ask:

* `slot.infer` takes up a new release at once: the next answer is the new model's.
* `slot.session()` never waits for one: the old model answers while the new one is loaded beside
  it, and between two inferences they are swapped.
* `with slot.session() as session` keeps one model to its end.

`slot.hold` keeps the device from switching at all for a while (`client.hold`).

Every file's digest is checked against the manifest before each load; a slot whose bytes are not
what was signed is refused, and `slots/previous` answers in its place. Running needs no network and
no fresh metadata: what was committed may run.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from wildflower.client.doubt import raise_doubt
from wildflower.client.hold import Held, Holds
from wildflower.client.installed import Choice, Installed, Link, Loading, choose, find_device
from wildflower.client.installed import identity_of as identity
from wildflower.client.spool import Spool
from wildflower.ota.device.runtime import Array, OrtRuntime, Runtime
from wildflower.ota.errors import ModelError, RefusedError
from wildflower.ota.observe.baseline import Baseline, confidence, features
from wildflower.ota.observe.recorder import Recorder

log = logging.getLogger(__name__)

WINDOW_S: Final = 3600.0  # seconds; hourly summaries, as fleet monitors are read
Labels = Sequence[int] | npt.NDArray[np.integer[Any]]


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
class _Window:
    """Inferences of one artifact that a summary will speak of."""

    recorder: Recorder
    start: datetime
    end: datetime


class ModelSlot:
    """The user's way to the committed model. Threads may share one; they take turns."""

    def __init__(
        self,
        device: Path | str,
        *,
        runtime: Runtime | None = None,
        window_s: float = WINDOW_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open a device; the model itself is loaded by the first inference or session.

        Args:
            device: The device's directory, the one that holds `slots`; or the model's name, for
                a device below /var/lib/wildflower (`client.installed.find_device`).
            runtime: What runs the model; ONNX Runtime if not given.
            window_s: Seconds after which a summary goes into the spool.
            clock: Tells the time that windows are labelled with, in UTC.

        Raises:
            RefusedError: No device runs a model of that name.
            ValueError: Not a name.
        """
        root = find_device(device) if isinstance(device, str) else device
        self._slots = root / "slots"
        self._spool = Spool(root / "spool")
        self._holds = Holds(root)
        self._runtime = runtime or OrtRuntime()
        self._window_s = window_s
        self._clock = clock
        self._turn = threading.RLock()
        self._seen: Link | None = None
        self._installed: Installed | None = None
        self._recorder: Recorder | None = None
        self._loading: Loading | None = None
        self._writer = ThreadPoolExecutor(1, "summary")  # its thread begins with the first one
        self._writing: Future[None] | None = None
        self._kept = 0  # sessions that keep the model
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
        with self._turn:
            answer = self._answer(self._follow(), inputs, labels)
            if self._is_window_over():
                self.cut()
            return answer

    def session(self) -> "Session":
        """Return a session that is ready to answer.

        Raises:
            RefusedError: No slot holds what its manifest says.
        """
        with self._turn:
            if self._installed is None:
                self._follow()
        return Session(self)

    @property
    def loaded(self) -> Installed:
        """What is in memory; there is something once a session was made."""
        assert self._installed is not None  # noqa: S101
        return self._installed

    @contextmanager
    def hold(self, reason: str, *, max_s: float) -> Iterator[Held]:
        """Keep the device from switching to a new release for the length of the block.

        Downloads go on. It ends by itself after `max_s`; a signed order to leave the release that
        runs, or one that failed its probation, does not wait for it.

        Args:
            reason: Why, for whoever asks what an update waits for.
            max_s: Seconds, in (0, 86400].

        Raises:
            HoldError: The device's directory cannot be written, or too many hold.
            ValueError: The reason or the seconds are out of range.
        """
        with self._holds.hold(reason, max_s=max_s) as held:
            yield held

    def cut(self) -> int | None:
        """Put the summary of the inferences since the last one into the spool.

        Returns:
            Its sequence in the spool, or None if nothing was inferred.
        """
        with self._turn:
            self._await_writing()
            window = self._take_window()
        return self._write(window) if window is not None else None

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

    def _follow(self) -> Installed:
        """Return the model that `slots/current` names, loading it now if the link has moved."""
        if self._kept:
            return self.loaded
        if self._installed is None or identity(self._slots) != self._seen:
            self._loading = None
            self._take_up(choose(self._slots, self._runtime), self.cut)
        return self.loaded

    def _stay_ahead(self) -> Installed:
        """Return the model that is ready; load what `slots/current` names beside it."""
        if self._kept:
            return self.loaded
        if identity(self._slots) != self._seen and self._loading is None:
            self._loading = Loading(self._slots, self._runtime)
            self._loading.start()
        elif self._loading is not None and (choice := self._loading.choice) is not None:
            self._loading = None
            self._take_up(choice, self._cut_beside)
        return self.loaded

    def _take_up(self, choice: Choice, cut: Callable[[], object]) -> None:
        """Run what was chosen from now on; what is in memory goes on if nothing could be."""
        self.refusal, installed = choice.refusal, choice.installed
        if choice.refusal and choice.link is not None:
            raise_doubt(self._slots.parent)
        if installed is None:
            if self._installed is None:
                hint = "The agent installs a release: `wildflower agent doctor` says what is wrong."
                raise RefusedError(self.refusal, hint=hint)
        elif self._installed is None or installed.artifact != self._installed.artifact:
            cut()  # before the swap: a summary speaks of one artifact
            self._recorder = installed.recorder
            log.info("model loaded", extra={"artifact": installed.artifact})
        self._installed, self._seen = installed or self._installed, choice.link

    def _is_window_over(self) -> bool:
        return (self._clock() - self._start).total_seconds() >= self._window_s

    def _cut_beside(self) -> None:
        """Cut without waiting for the disk."""
        window = self._take_window()
        if window is not None:
            self._writing = self._writer.submit(self._write_beside, window)

    def _await_writing(self) -> None:
        if self._writing is not None:
            wait([self._writing])  # summaries keep their order

    def _take_window(self) -> _Window | None:
        """Return what was recorded since the last cut, and begin anew."""
        recorder, start, self._start = self._recorder, self._start, self._clock()
        if recorder is None or self._installed is None or not recorder.recorded:
            return None
        self._recorder = None  # the next answer makes one, if it is not another model's
        return _Window(recorder, start, self._start)

    def _write_beside(self, window: _Window) -> None:
        try:
            self._write(window)
        except OSError as error:
            log.error("a summary is lost: %s", error)

    def _write(self, window: _Window) -> int:
        dropped = self._spool.take_dropped()
        summary = window.recorder.cut(start=window.start, end=window.end, dropped=dropped)
        return self._spool.append(summary.to_bytes())

    def _answer(self, installed: Installed, inputs: Array, labels: Labels | None) -> Answer:
        recorder = self._recorder or Recorder(installed.artifact, installed.baseline)
        self._recorder = recorder
        inputs = np.asarray(inputs, np.float32)
        if labels is not None and len(labels) != len(inputs):
            raise ValueError(f"{len(labels)} labels for {len(inputs)} inputs")
        begin = time.perf_counter()
        try:
            outputs = installed.model.run(inputs)
            latency_ms = (time.perf_counter() - begin) * 1000
            answer = _judged(installed, outputs)
        except ModelError:
            recorder.fail(len(inputs))
            raise
        _record(recorder, features(inputs), latency_ms, answer)
        if labels is not None:
            for expected, found in zip(labels, answer.predicted, strict=True):
                if expected >= 0:
                    recorder.label(bool(expected == found))
        return answer


class Session:
    """Inferences without a pause; made by `ModelSlot.session`.

    As it is, it swaps to a new release between two inferences, once that is loaded. As a context
    manager it keeps one model to the end of the block, and other threads wait for it.
    """

    def __init__(self, slot: ModelSlot) -> None:
        self._slot = slot

    def infer(self, inputs: Array, labels: Labels | None = None) -> Answer:
        """Return the model's answer; see `ModelSlot.infer`."""
        slot = self._slot
        with slot._turn:
            answer = slot._answer(slot._stay_ahead(), inputs, labels)
            if slot._is_window_over() and not slot._kept:
                slot._cut_beside()
            return answer

    def __enter__(self) -> Self:
        self._slot._turn.acquire()
        try:
            self._slot._follow()
            self._slot._kept += 1
        except BaseException:
            self._slot._turn.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._slot._kept -= 1
            if self._slot._is_window_over():
                self._slot.cut()
        finally:
            self._slot._turn.release()


def _judged(installed: Installed, outputs: Array) -> Answer:
    baseline: Baseline = installed.baseline
    expected = len(baseline.labels)
    if outputs.ndim != 2 or outputs.shape[1] != expected:
        raise ModelError(f"expected outputs (n, {expected}), found {outputs.shape}")
    if not np.isfinite(outputs).all():
        raise ModelError("the model's outputs are not finite")
    return Answer(
        outputs,
        outputs.argmax(1),
        confidence(outputs, baseline.outputs),
        baseline.labels,
        installed.artifact,
        installed.release,
    )


def _record(recorder: Recorder, columns: Array, latency_ms: float, answer: Answer) -> None:
    rows = zip(columns, answer.predicted, answer.confidence, strict=True)
    for row, predicted, certainty in rows:
        recorder.record(row, latency_ms, int(predicted), float(certainty))
