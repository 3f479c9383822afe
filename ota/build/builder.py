"""Builds, for each device class, an artifact and everything that a release of it needs.

    model, task, proxy rows -> export -> the recipe's stages -> assess -> gates

Each stage's outputs are looked up by `line.key` first, so what did not change is not built again.
A model's architecture is code and has no digest; what it *computes* has. So PyTorch's answers to
the proxy rows enter the export's key, and editing the task's code makes a new artifact exactly if
it makes other answers.

Proxy rows belong to the operator: the first half calibrates, the second half is for the gates and
has no part in the build; sixteen of it travel with the release as golden inputs.
"""

import io
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from wildflower.ota import canonical
from wildflower.ota.build import convert, export, quantise
from wildflower.ota.build.gates import Budgets, GateReport, Measurement, Precision, judge
from wildflower.ota.build.line import Stage
from wildflower.ota.build.measure import cpu_flags, measure
from wildflower.ota.build.recipes import ASSESS, EXPORT, Recipe, recipe_for
from wildflower.ota.build.run import Inputs, Run
from wildflower.ota.build.store import BuildStore, Outputs
from wildflower.ota.build.successor import (
    SUCCEED,
    SUCCEED_FP32,
    Judge,
    coded_successor,
    successor,
)
from wildflower.ota.device.profile import CLASSES, SelfReport
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import FormatError
from wildflower.ota.observe import baseline
from wildflower.ota.release.manifest import Requirement, TrialBudget

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

GOLDEN_ROWS: Final = 16
MIN_ROWS: Final = 2 * GOLDEN_ROWS
TOOLS: Final = ("numpy", "onnx", "onnxruntime", "torch")
AGENT_MIN: Final = "0.1.0"  # the first that reads this form of manifest
MIB: Final = 1024 * 1024


class Buildable(Protocol):
    """What the build needs of a task; `strategies.task.Task` is one."""

    @property
    def name(self) -> str:
        """Name of the model's line."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes, in the order of the model's outputs."""
        ...

    def build_model(self) -> "torch.nn.Module":
        """Return a fresh model of the task's architecture."""
        ...


@dataclass(frozen=True, slots=True)
class Proxy:
    """The operator's own labelled rows.

    Attributes:
        inputs: Shape (n, ...), n >= 32, float32.
        targets: Shape (n,), indices of classes.
    """

    inputs: Array
    targets: npt.NDArray[Any]

    @property
    def half(self) -> int:
        """Index of the first row that calibration does not see."""
        return len(self.inputs) // 2

    @property
    def golden(self) -> Array:
        """The rows that travel with the release, spread evenly over the gates' half."""
        places = np.linspace(self.half, len(self.inputs) - 1, GOLDEN_ROWS).astype(np.intp)
        return self.inputs[places]


@dataclass(frozen=True, slots=True)
class BuiltArtifact:
    """Everything that a release of one device class needs.

    Attributes:
        device_class: The class.
        recipe: How it was built.
        model: Bytes of the model's file.
        golden: Bytes of the `.npz` with `inputs` and this artifact's own `outputs`.
        baseline: Bytes of the baseline document.
        report: The gates.
        requires: What a device must offer.
        trial: What it must show on the device.
        is_cached: Whether every stage came from the cache.
    """

    device_class: str
    recipe: Recipe
    model: bytes
    golden: bytes
    baseline: bytes
    report: GateReport
    requires: Requirement
    trial: TrialBudget
    is_cached: bool


@dataclass(frozen=True, slots=True)
class _Source:
    """What the artifacts of one model are made from: its file, its export, PyTorch's answers."""

    model: bytes
    onnx: bytes
    answers: Array


class Builder:
    """Builds artifacts of one task from one set of proxy rows."""

    def __init__(
        self, task: Buildable, proxy: Proxy, store: BuildStore, *, budgets: Budgets | None = None
    ) -> None:
        """Take what all builds share.

        Raises:
            FormatError: Too few proxy rows, or not as many targets as inputs.
        """
        if len(proxy.inputs) < MIN_ROWS or len(proxy.inputs) != len(proxy.targets):
            raise FormatError(
                f"the proxy set has {len(proxy.inputs)} inputs and {len(proxy.targets)} targets",
                hint=f"The build needs at least {MIN_ROWS} labelled examples.",
            )
        self._task = task
        self._proxy = proxy
        self._store = store
        self._budgets = budgets or Budgets()
        self._versions = {name: version(name) for name in TOOLS} | {
            "python": platform.python_version()
        }
        self._toolchain = _digest_of(self._versions)

    def build(
        self,
        model: bytes,
        device_classes: Sequence[str],
        previous: Mapping[str, bytes] = MappingProxyType({}),
    ) -> list[BuiltArtifact]:
        """Build an artifact for each device class.

        Args:
            model: The global model's safetensors file.
            device_classes: Names of the classes.
            previous: By class, the artifact released last; it is followed where that costs no
                more than `ota.build.successor` says and the gates let it pass.

        Raises:
            BuildError: A class without a recipe, an operator without a counterpart, a model that
                cannot be quantised, or a gate that cannot be evaluated.
            FormatError: The file is not a model of this task.
        """
        recipes = {name: recipe_for(name) for name in device_classes}
        network = export.load_parameters(self._task.build_model(), model)
        answers = export.reference(network, self._proxy.inputs)
        if answers.shape != (len(self._proxy.inputs), len(self._task.labels)):
            raise FormatError(
                f"the model answers with {answers.shape}, the task has {len(self._task.labels)} "
                "labels"
            )
        run = Run(self._store, self._toolchain)
        onnx = run.stage(
            EXPORT,
            {"model": model, "answers": answers, "calibration": self._calibration},
            lambda: export.to_onnx(network, self._calibration),
        )
        source = _Source(model, onnx, answers)
        return [
            self._artifact(name, recipe, source, previous.get(name), Run.after(run))
            for name, recipe in recipes.items()
        ]

    @property
    def _calibration(self) -> Array:
        return self._proxy.inputs[: self._proxy.half]

    def _artifact(
        self,
        device_class: str,
        recipe: Recipe,
        source: "_Source",
        previous: bytes | None,
        run: Run,
    ) -> BuiltArtifact:
        own = source.onnx
        for stage in recipe.stages:
            own = self._apply(stage, own, run)
        judged = partial(self._judged, device_class, recipe, source, run=run)
        made, precision = self._successor(recipe, own, source, previous, run)
        following = judged(made, precision=precision)
        if following.report.passed or made == own:
            return following
        return judged(own, precision=recipe.precision)

    def _successor(
        self,
        recipe: Recipe,
        own: bytes,
        source: "_Source",
        previous: bytes | None,
        run: Run,
    ) -> tuple[bytes, Precision]:
        """Return the artifact that is made for its delta, and what its weights are."""
        half = self._proxy.half
        judge = Judge(self._calibration, self._proxy.targets[:half], source.answers[:half])
        inputs: Inputs = {
            "own": own,
            "model": source.onnx,
            "previous": previous or b"",
            "inputs": judge.inputs,
            "targets": judge.targets,
            "answers": judge.answers,
        }
        if recipe.precision is Precision.INT8:
            reduce_range = bool(recipe.stages[0].parameters["reduce_range"])
            make = partial(successor, own, source.onnx, previous, judge, reduce_range=reduce_range)
            return run.stage(SUCCEED, inputs, make), Precision.INT8

        def coded() -> Outputs:
            model, precision = coded_successor(own, previous, judge)
            return {"model": model, "precision": precision.encode()}

        made = run.outputs(SUCCEED_FP32, inputs, coded)
        return made["model"], Precision(made["precision"].decode())

    def _judged(
        self,
        device_class: str,
        recipe: Recipe,
        source: "_Source",
        data: bytes,
        *,
        precision: Precision,
        run: Run,
    ) -> BuiltArtifact:
        assessed = self._assess(data, source.onnx, source.answers, run)
        found = Measurement(**json.loads(assessed["measurement"]))
        is_target_cpu = _is_host(device_class)
        report = GateReport(
            artifact=canonical.digest(data),
            model=canonical.digest(source.model),
            device_class=device_class,
            recipe=recipe.name,
            results=judge(found, self._budgets, precision, is_target_cpu=is_target_cpu),
            toolchain=self._versions,
        )
        files = (data, assessed["golden"], assessed["baseline"])
        log.info(
            "artifact built",
            extra={
                "device_class": device_class,
                "recipe": recipe.name,
                "artifact": report.artifact,
                "passed": report.passed,
                "cached": run.is_cached,
            },
        )
        return BuiltArtifact(
            device_class,
            recipe,
            *files,
            report=report,
            requires=self._requires(device_class, recipe, source.onnx, found, files),
            trial=self._trial(recipe, found, source.answers),
            is_cached=run.is_cached,
        )

    def _apply(self, stage: Stage, data: bytes, run: Run) -> bytes:
        if stage.name == "quantise":
            reduce_range = bool(stage.parameters["reduce_range"])
            return run.stage(
                stage,
                {"model": data, "calibration": self._calibration},
                lambda: quantise.to_int8(data, self._calibration, reduce_range=reduce_range),
            )
        return run.stage(stage, {"model": data}, lambda: convert.to_ort(data))

    def _assess(self, data: bytes, onnx: bytes, answers: Array, run: Run) -> Outputs:
        """Return the measurement, golden rows and baseline of an artifact, as this host finds them.

        The host is part of the key: another CPU rounds int8 otherwise and takes another time.
        """
        rows = slice(self._proxy.half, None)
        inputs, targets = self._proxy.inputs[rows], self._proxy.targets[rows]

        def make() -> Outputs:
            found = measure(data, inputs, targets, answers[rows], reference_size=len(onnx))
            reference = baseline.of(
                self._task.labels, self._calibration, answers[: self._proxy.half]
            )
            return {
                "measurement": canonical.to_bytes(asdict(found)),
                "golden": golden_bytes(data, self._proxy.golden),
                "baseline": reference.to_bytes(),
            }

        host = {"machine": platform.machine(), "flags": list(cpu_flags())}
        labels = json.dumps(list(self._task.labels)).encode()
        named: Inputs = {
            "model": data,
            "reference": onnx,
            "answers": answers,
            "inputs": self._proxy.inputs,
            "targets": targets,
            "labels": labels,
            "host": _canonical(host),
        }
        return run.outputs(ASSESS, named, make)

    def _requires(
        self,
        device_class: str,
        recipe: Recipe,
        onnx: bytes,
        found: Measurement,
        files: tuple[bytes, ...],
    ) -> Requirement:
        return Requirement(
            device_class=device_class,
            runtime="onnxruntime",
            runtime_min=recipe.runtime_min or ".".join(version("onnxruntime").split(".")[:2]),
            runtime_below="2",
            opset=export.opset_of(onnx),
            agent_min=AGENT_MIN,
            ram_bytes=-(-found.rss_bytes // MIB) * MIB,
            disk_bytes=2 * sum(len(data) for data in files),  # part file and slot together
        )

    def _trial(self, recipe: Recipe, found: Measurement, answers: Array) -> TrialBudget:
        """Return what a trial must show: the build host's answers, up to correct rounding.

        fp32 kernels differ by 1e-5 of the largest output at most; int8 ones by a step or two, of
        the 255 that 8 bits divide the answers' span into, where a wrong kernel is off by dozens.
        """
        scale = float(np.abs(answers).max())
        tolerance = self._budgets.max_error * max(1.0, scale)
        if recipe.precision is Precision.INT8:
            tolerance = 2 * float(np.ptp(answers)) / 255
        return TrialBudget(
            tolerance=tolerance,
            min_agreement=0.9,  # of 16 rows one may lie on the border of two classes
            latency_ms=self._budgets.max_latency_ms,
            # A trial also holds the agent's own modules, and page size is the device's matter.
            rss_bytes=(-(-2 * found.rss_bytes // MIB) + 64) * MIB,
        )


def golden_bytes(model: bytes, inputs: Array) -> bytes:
    """Return an `.npz` of inputs and this artifact's outputs, both float32."""
    file = io.BytesIO()
    np.savez(file, inputs=inputs, outputs=OrtRuntime().load(model).run(inputs))
    return file.getvalue()


def _is_host(device_class: str) -> bool:
    """Whether this host keeps the promise of a device class."""
    report = SelfReport(platform.machine(), cpu_flags(), 0, 0, "", {})
    return CLASSES[device_class].fits(report)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return canonical.to_bytes(dict(document))


def _digest_of(document: Mapping[str, Any]) -> str:
    return canonical.digest(_canonical(document))
