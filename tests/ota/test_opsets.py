"""What is said of a runtime's operator sets is what the installed one does."""

import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from wildflower.ota.device.decision import version_key
from wildflower.ota.device.opsets import LAST_MEASURED, ONNX_RUNTIME, highest_opset


def adding(opset: int) -> bytes:
    """Return a model of an operator set: y = x + x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "adding", [x], [y])
    opsets = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_the_installed_runtime_knows_what_the_table_says_and_no_more() -> None:
    highest = highest_opset("onnxruntime", version_key(onnxruntime.__version__))
    assert highest is not None, "measure the installed version and extend the table"
    providers = ["CPUExecutionProvider"]
    InferenceSession(adding(highest), providers=providers)
    with pytest.raises(Exception, match=r"(?i)opset"):
        InferenceSession(adding(highest + 1), providers=providers)


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("1.19.2", None),
        ("1.20.0", 21),
        ("1.21.1", 22),
        ("1.22", 22),
        ("1.23.2", 23),
        ("1.24.4", 25),
        ("1.31.1", 26),
        ("1.32.7", 28),
        ("1.33.0", None),
        ("2", None),
        ("unknown", None),
    ],
)
def test_a_version_is_told_by_the_last_measured_one_before_it(
    version: str, told: int | None
) -> None:
    assert highest_opset("onnxruntime", version_key(version)) == told


def test_the_table_rises_and_ends_with_what_was_measured_last() -> None:
    versions, opsets = zip(*ONNX_RUNTIME, strict=True)
    assert list(versions) == sorted(set(versions))
    assert list(opsets) == sorted(set(opsets))
    assert versions[-1] <= LAST_MEASURED


def test_other_runtimes_are_not_judged() -> None:
    assert highest_opset("ai-edge-litert", (1, 25)) is None
