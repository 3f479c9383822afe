"""The runtime that build and devices share: what it runs, what it refuses, what it needs."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import ModelError


def graph(inputs: int = 1) -> bytes:
    """Return a model that adds its inputs to themselves, rows of 3."""
    names = [f"x{number}" for number in range(inputs)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in names
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Add", [names[0], names[-1]], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "sum", values, [output]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def test_a_model_runs_at_every_batch_size() -> None:
    loaded = OrtRuntime().load(graph())
    for batch in (1, 3, 7):
        rows = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
        outputs = loaded.run(rows)
        assert np.array_equal(outputs, 2 * rows)
        assert outputs.dtype == np.float32


def test_a_model_says_what_it_expects() -> None:
    found = OrtRuntime().load(graph()).describe()
    assert (found.input_name, found.input_shape, found.output_name) == ("x0", (None, 3), "y")
    assert found.runtime == "onnxruntime"


@pytest.mark.parametrize(
    "rows",
    [np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float64), np.zeros(3, np.float32)],
    ids=["another shape", "another type", "no batch"],
)
def test_inputs_that_do_not_fit_are_an_error_of_ours(rows: np.ndarray) -> None:
    with pytest.raises(ModelError, match="cannot answer"):
        OrtRuntime().load(graph()).run(rows)


def test_a_model_of_two_inputs_is_refused() -> None:
    with pytest.raises(ModelError, match="one input, found 2"):
        OrtRuntime().load(graph(inputs=2))


def test_an_operator_that_the_runtime_does_not_know_is_named() -> None:
    model = onnx.load_from_string(graph())
    model.graph.node[0].op_type = "Sparkle"
    with pytest.raises(ModelError, match="Sparkle"):
        OrtRuntime().load(model.SerializeToString())


@given(st.binary(max_size=60), st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_bytes_that_are_no_model_are_refused(noise: bytes, at: int) -> None:
    data = graph()
    for damaged in (noise, data[: at % len(data)]):
        with pytest.raises(ModelError):
            OrtRuntime().load(damaged)


def test_peak_memory_grows_with_what_was_held() -> None:
    code = (
        "import numpy as np; from wildflower.ota.device.runtime import peak_rss;"
        "before = peak_rss(); held = np.ones(60_000_000, np.int8); print(peak_rss() - before)"
    )  # in a process of its own: this one may have held more before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) > 40_000_000


def test_a_child_reports_its_own_peak_and_not_its_parents() -> None:
    held = np.ones(200_000_000, np.int8)
    code = "from wildflower.ota.device.runtime import peak_rss; print(peak_rss())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(child.stdout) < 120_000_000
    assert held.any()


def test_a_device_runs_models_without_the_tools_that_built_them() -> None:
    code = (
        "import sys; from wildflower.ota.device.runtime import OrtRuntime; "
        "OrtRuntime().load(sys.stdin.buffer.read()); "
        "print({'torch', 'onnx', 'flwr', 'wildflower.ota.build'} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], input=graph(), capture_output=True, check=True
    )
    assert child.stdout.decode().strip() == "set()"
