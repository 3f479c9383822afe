"""The build worker: JSON in, JSON out, whatever the model's code does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import ota_build_task
from tests.ota_build_task import examples, model_bytes, trained

from wildflower.ota import canonical
from wildflower.ota.build.gates import Budgets, GateReport
from wildflower.ota.build.worker import BuildRequest, serve
from wildflower.ota.delta.decode import decode
from wildflower.ota.device.profile import CLASSES
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import Requirement, TrialBudget

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("worker")
    (directory / "model.safetensors").write_bytes(model_bytes(trained()))
    examples().save(directory / "proxy.npz")
    return directory


def request(workplace: Path, **changes: object) -> dict[str, Any]:
    return {
        "app": "tests.ota_build_task:task",
        "model": str(workplace / "model.safetensors"),
        "proxy": str(workplace / "proxy.npz"),
        "classes": [*CLASSES],
        "store": str(workplace / "store"),
        "out": str(workplace / "out"),
    } | changes


def worker(data: bytes, *arguments: str) -> tuple[int, dict[str, Any], str]:
    child = subprocess.run(
        [sys.executable, "-m", "wildflower.ota.build.worker", *arguments],
        input=data,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    return child.returncode, json.loads(child.stdout), child.stderr.decode()


def in_process(found: dict[str, Any]) -> tuple[dict[str, Any], int]:
    tasks = {"tests.ota_build_task:task": ota_build_task.task}
    return serve(json.dumps(found).encode(), lambda: tasks.__getitem__)


def test_a_child_builds_what_it_is_asked_for(workplace: Path) -> None:
    code, told, progress = worker(json.dumps(request(workplace)).encode())
    assert code == 0
    assert [one["device_class"] for one in told["artifacts"]] == [*CLASSES]
    for one in told["artifacts"]:
        for file in (one, one["golden"], one["baseline"], one["gate_report"]):
            data = Path(file["path"]).read_bytes()
            assert (canonical.digest(data), len(data)) == (file["digest"], file["length"])
        report = GateReport.from_bytes(Path(one["gate_report"]["path"]).read_bytes())
        assert report.passed is one["passed"] is True
        assert report.artifact == one["digest"]
        assert Requirement(**one["requires"]).device_class == one["device_class"]
        assert TrialBudget(**one["trial"]).latency_ms == 50
    assert "artifact built" in progress


def test_a_child_that_fails_says_so_in_json_and_with_its_exit_code(workplace: Path) -> None:
    wanted = request(workplace, app="tests.ota_build_task:unexportable")
    code, told, progress = worker(json.dumps(wanted).encode())
    assert code == 1
    assert told["error"]["type"] == "ExportError"
    assert "aten::special_i1e" in told["error"]["message"]
    assert told["error"]["hint"]
    assert "build failed" in progress


def test_what_a_models_code_prints_does_not_reach_the_answer(workplace: Path) -> None:
    (workplace / "chatty.py").write_text(
        "import os\n"
        "from tests.ota_build_task import Quarters\n"
        "print('loading')\n"
        "os.write(1, b'from C')\n"
        "task = Quarters()\n"
    )
    wanted = request(workplace, app=str(workplace / "chatty.py"), classes=["linux-generic"])
    code, told, progress = worker(json.dumps(wanted).encode())
    assert (code, len(told["artifacts"])) == (0, 1)
    assert "from C" in progress


def test_a_task_that_cannot_be_found_is_told_with_its_hint(workplace: Path) -> None:
    code, told, _ = worker(json.dumps(request(workplace, app="nowhere:task")).encode())
    assert (code, told["error"]["type"]) == (1, "TaskError")


def test_another_finder_can_be_named(workplace: Path) -> None:
    (workplace / "finders.py").write_text(
        "from tests.ota_build_task import task\ndef find(reference):\n    return task\n"
    )
    wanted = request(workplace, app="anything", classes=["linux-generic"])
    child = subprocess.run(
        [sys.executable, "-m", "wildflower.ota.build.worker", "--finder", "finders:find"],
        input=json.dumps(wanted).encode(),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{workplace}"},
        check=False,
    )
    assert child.returncode == 0
    assert json.loads(child.stdout)["artifacts"][0]["passed"]


def test_a_missing_file_is_named(workplace: Path) -> None:
    for name in ("model", "proxy"):
        told, code = in_process(request(workplace, **{name: "/nowhere/at.all"}))
        assert (code, told["error"]["type"]) == (1, "FormatError")
        assert "/nowhere/at.all" in told["error"]["message"]


def test_a_proxy_set_without_targets_is_refused(workplace: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "half.npz", inputs=np.zeros((40, 1, 8, 8), np.float32))
    told, _ = in_process(request(workplace, proxy=str(tmp_path / "half.npz")))
    assert "inputs and targets" in told["error"]["message"]


def test_a_report_that_fails_is_an_answer_and_no_error(workplace: Path) -> None:
    wanted = request(workplace, classes=["linux-x86_64-avx2"], budgets={"max_size_int8": 0.01})
    told, code = in_process(wanted)
    assert (code, told["artifacts"][0]["passed"]) == (0, False)
    assert told["artifacts"][0]["failures"][0].startswith("size is")


BAD_REQUESTS = {
    "no JSON": b"{",
    "no object": b"[1]",
    "deep": b"[" * 100_000,
    "nothing": b"{}",
}


@pytest.mark.parametrize("data", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bytes_that_are_no_request_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="build request"):
        BuildRequest.from_json(data)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"app": 3}, "app must be text"),
        ({"app": ""}, "app must be text"),
        ({"model": "a\0b"}, "model must be text"),
        ({"classes": []}, "classes must be a list"),
        ({"classes": "linux-generic"}, "classes must be a list"),
        ({"classes": [3]}, "classes must be text"),
        ({"colour": "red"}, "unknown keys \\['colour'\\]"),
        ({"budgets": {"max_size": 1}}, "budgets must be numbers"),
        ({"budgets": {"max_size_int8": "small"}}, "budgets must be numbers"),
        ({"budgets": {"max_size_int8": True}}, "budgets must be numbers"),
        ({"budgets": []}, "budgets must be numbers"),
        ({"earlier": ["a.ort"]}, "earlier must be lists by class"),
        ({"earlier": {"linux-generic": "a.ort"}}, "earlier must be lists by class"),
        ({"earlier": {"linux-generic": [3]}}, "earlier must be text"),
    ],
)
def test_a_request_that_is_wrong_names_its_key(
    workplace: Path, change: dict[str, object], told: str
) -> None:
    with pytest.raises(FormatError, match=told):
        BuildRequest.from_json(json.dumps(request(workplace, **change)).encode())


def test_a_later_model_comes_with_its_delta_from_the_one_before(
    workplace: Path, tmp_path: Path
) -> None:
    wanted = {"classes": ["linux-generic"], "out": str(tmp_path / "first")}
    [first] = in_process(request(workplace, **wanted))[0]["artifacts"]
    assert first["deltas"] == []
    (tmp_path / "next.safetensors").write_bytes(model_bytes(trained(7)))
    earlier = {"linux-generic": [first["path"], str(tmp_path / "lost.ort")], "other": []}
    wanted |= {"model": str(tmp_path / "next.safetensors"), "out": str(tmp_path / "second")}
    [second] = in_process(request(workplace, **wanted, earlier=earlier))[0]["artifacts"]
    [delta] = second["deltas"]
    data, made = Path(delta["path"]).read_bytes(), bytearray()
    assert (canonical.digest(data), len(data)) == (delta["digest"], delta["length"])
    assert delta["base"] == first["digest"]
    old = memoryview(Path(first["path"]).read_bytes())
    whole = second["length"]
    decode(old, memoryview(data), made.extend, target=second["digest"], size=whole)
    assert made == Path(second["path"]).read_bytes()
    assert len(data) <= 0.7 * whole


def test_budgets_may_be_given_in_part(workplace: Path) -> None:
    data = json.dumps(request(workplace, budgets={"max_latency_ms": 5})).encode()
    assert BuildRequest.from_json(data).budgets == Budgets(max_latency_ms=5)


@given(st.binary(max_size=40), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_damaged_requests_are_refused_as_such(noise: bytes, at: int) -> None:
    data = json.dumps(request(Path("/somewhere"))).encode()
    at %= len(data)
    try:
        found = BuildRequest.from_json(data[:at] + noise + data[at + len(noise) :])
    except FormatError:
        return
    assert found.app
