"""The builder: an artifact per class, gated, reproducible, and not built twice."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import ota_build_task
from tests.ota_build_task import examples, model_bytes, task, trained

from wildflower.ota import canonical
from wildflower.ota.build import builder as module
from wildflower.ota.build.builder import (
    GOLDEN_ROWS,
    Buildable,
    Builder,
    BuiltArtifact,
    Proxy,
)
from wildflower.ota.build.export import load_parameters
from wildflower.ota.build.gates import Budgets, GateReport
from wildflower.ota.build.measure import cpu_flags, footprint_of, run_alone
from wildflower.ota.build.recipes import RECIPES, recipe_for
from wildflower.ota.build.store import BuildStore
from wildflower.ota.device.profile import CLASSES
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import BuildError, ExportError, FormatError, GateError
from wildflower.ota.observe.baseline import Baseline, Outputs

DATA = examples()
PROXY = Proxy(DATA.inputs, DATA.targets)
MODEL = model_bytes(trained())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache: Path) -> dict[str, BuiltArtifact]:
    artifacts = Builder(task, PROXY, BuildStore(cache)).build(MODEL, [*CLASSES])
    return {one.device_class: one for one in artifacts}


def test_every_device_class_has_a_recipe_and_an_artifact(built: dict[str, BuiltArtifact]) -> None:
    assert {*RECIPES} == {*CLASSES} == {*built}
    assert len({one.report.artifact for one in built.values()}) == 3


@pytest.mark.parametrize("name", CLASSES)
def test_an_artifact_passes_its_gates_and_its_report_is_about_it(
    built: dict[str, BuiltArtifact], name: str
) -> None:
    one = built[name]
    assert (one.report.passed, one.report.failures) == (True, ())
    assert one.report.artifact == canonical.digest(one.model)
    assert one.report.model == canonical.digest(MODEL)
    assert GateReport.from_bytes(one.report.to_bytes()) == one.report


@pytest.mark.parametrize("name", CLASSES)
def test_golden_outputs_are_this_artifacts_own(built: dict[str, BuiltArtifact], name: str) -> None:
    one = built[name]
    with np.load(io.BytesIO(one.golden)) as golden:
        inputs, outputs = golden["inputs"], golden["outputs"]
    assert (len(inputs), inputs.dtype, outputs.dtype) == (GOLDEN_ROWS, np.float32, np.float32)
    assert np.array_equal(OrtRuntime().load(one.model).run(inputs), outputs)


def test_golden_rows_had_no_part_in_the_calibration() -> None:
    seen = {row.tobytes() for row in PROXY.inputs[: PROXY.half]}
    assert not any(row.tobytes() in seen for row in PROXY.golden)


def test_a_baseline_fits_the_task(built: dict[str, BuiltArtifact]) -> None:
    found = Baseline.from_bytes(built["linux-generic"].baseline)
    assert (found.labels, found.outputs, found.rows) == (task.labels, Outputs.LOGITS, 250)


def test_a_trial_allows_rounding_and_catches_saturation(built: dict[str, BuiltArtifact]) -> None:
    assert built["linux-generic"].trial.tolerance < 0.01
    vnni = built["linux-x86_64-vnni"]
    with np.load(io.BytesIO(vnni.golden)) as golden:
        spread = float(np.ptp(golden["outputs"]))
    assert 0 < vnni.trial.tolerance < 0.05 * spread


def test_requirements_say_what_a_device_must_offer(built: dict[str, BuiltArtifact]) -> None:
    for one in built.values():
        assert one.requires.device_class == one.device_class
        assert one.requires.opset == 17
        assert one.requires.disk_bytes >= 2 * len(one.model)
        assert 30_000_000 < one.requires.ram_bytes < one.trial.rss_bytes < 500_000_000
    assert built["linux-x86_64-vnni"].requires.runtime_min == "1.20"


def test_a_second_build_comes_from_the_cache_in_under_a_second(
    cache: Path, built: dict[str, BuiltArtifact]
) -> None:
    begin = time.perf_counter()
    again = Builder(task, PROXY, BuildStore(cache)).build(MODEL, [*CLASSES])
    assert time.perf_counter() - begin < 1
    assert all(one.is_cached for one in again)
    first = {name: replace(one, is_cached=True) for name, one in built.items()}
    assert {one.device_class: one for one in again} == first


def test_two_builds_give_the_same_bytes(tmp_path: Path, built: dict[str, BuiltArtifact]) -> None:
    for one in Builder(task, PROXY, BuildStore(tmp_path)).build(MODEL, [*CLASSES]):
        first = built[one.device_class]
        assert not one.is_cached
        assert (one.model, one.golden, one.baseline) == (first.model, first.golden, first.baseline)


class Doubled(ota_build_task.Net):
    """The same parameters, other answers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class OtherCode(ota_build_task.Quarters):
    """The task after somebody edited its code."""

    def build_model(self) -> torch.nn.Module:
        return Doubled()


def test_code_that_answers_otherwise_is_built_anew(
    cache: Path, built: dict[str, BuiltArtifact]
) -> None:
    (other,) = Builder(OtherCode(), PROXY, BuildStore(cache)).build(MODEL, ["linux-generic"])
    assert not other.is_cached
    assert other.model != built["linux-generic"].model


def test_a_budget_that_is_not_met_fails_the_report_and_not_the_build(cache: Path) -> None:
    strict = Budgets(max_size_int8=0.01)
    builder = Builder(task, PROXY, BuildStore(cache), budgets=strict)
    (one,) = builder.build(MODEL, ["linux-x86_64-avx2"])
    assert not one.report.passed
    assert one.report.failures[0].startswith("size is 0.3")


def test_a_model_that_cannot_be_exported_names_its_operator(cache: Path) -> None:
    with pytest.raises(ExportError, match="aten::special_i1e"):
        Builder(ota_build_task.unexportable, PROXY, BuildStore(cache)).build(
            MODEL, ["linux-generic"]
        )


def test_an_unknown_class_is_told_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="toaster") as caught:
        Builder(task, PROXY, BuildStore(tmp_path)).build(b"", ["toaster"])
    assert "linux-generic" in caught.value.hint
    with pytest.raises(BuildError):
        recipe_for("")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"not a model", "not a safetensors model"),
        (model_bytes(torch.nn.Linear(2, 2)), "does not fit the task"),
    ],
    ids=["no safetensors", "another architecture"],
)
def test_a_file_that_is_not_this_tasks_model_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(FormatError, match=told):
        load_parameters(task.build_model(), data)


class Mislabelled(ota_build_task.Quarters):
    """Three names for four outputs."""

    labels = ("a", "b", "c")


def test_a_task_needs_a_label_for_each_output(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="3 labels"):
        Builder(Mislabelled(), PROXY, BuildStore(tmp_path)).build(MODEL, ["linux-generic"])


@pytest.mark.parametrize(
    "proxy",
    [Proxy(DATA.inputs[:31], DATA.targets[:31]), Proxy(DATA.inputs, DATA.targets[:-1])],
    ids=["too few", "a target missing"],
)
def test_proxy_rows_must_be_enough_and_labelled(tmp_path: Path, proxy: Proxy) -> None:
    with pytest.raises(FormatError, match="proxy set"):
        Builder(task, proxy, BuildStore(tmp_path))


def test_a_model_that_ends_in_no_quantised_layer_gets_a_tolerance_all_the_same(
    cache: Path,
) -> None:
    class Softmax(ota_build_task.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(super().forward(x), 1)

    class Shares(ota_build_task.Quarters):
        def build_model(self) -> torch.nn.Module:
            return Softmax()

    (one,) = Builder(Shares(), PROXY, BuildStore(cache)).build(MODEL, ["linux-x86_64-avx2"])
    assert 0 < one.trial.tolerance <= 0.02
    assert Baseline.from_bytes(one.baseline).outputs is Outputs.PROBABILITIES


def test_the_host_knows_its_own_cpu() -> None:
    flags = cpu_flags()
    assert flags == tuple(sorted(flags))
    assert len(flags) > 5


def test_a_child_that_cannot_run_the_model_is_a_gate_error() -> None:
    with pytest.raises(GateError, match="measuring ended with 1"):
        footprint_of(b"no model", DATA.inputs[:1])


def test_a_child_that_takes_too_long_is_a_gate_error(built: dict[str, BuiltArtifact]) -> None:
    with pytest.raises(GateError, match=r"more than 0\.001 s"):
        footprint_of(built["linux-generic"].model, DATA.inputs[:1], timeout_s=0.001)


def test_a_process_can_measure_itself(tmp_path: Path, built: dict[str, BuiltArtifact]) -> None:
    (tmp_path / "model").write_bytes(built["linux-generic"].model)
    np.save(tmp_path / "example.npy", DATA.inputs[:1])
    found = run_alone(tmp_path / "model", tmp_path / "example.npy")
    assert 0 < found.latency_ms < 1000
    assert found.rss_bytes > 10_000_000


def test_a_task_is_all_that_the_build_asks_for() -> None:
    subject: Buildable = task
    assert subject.name == "quarters"
    assert json.loads(canonical.to_bytes({"rows": module.GOLDEN_ROWS})) == {"rows": 16}
