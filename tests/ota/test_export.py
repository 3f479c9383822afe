"""Export: PyTorch's answers, at any batch size, in the same bytes each time."""

import hashlib
import logging
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from tests.ota_build_task import Net, Spectral, examples, trained
from torch import nn

from wildflower.ota.build.export import (
    STRATEGIES,
    Strategy,
    opset_of,
    reference,
    strip,
    to_onnx,
)
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import ExportError

INPUTS = examples().inputs


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_each_strategy_gives_pytorchs_answers_at_every_batch(
    net: nn.Module, strategy: Strategy
) -> None:
    data = to_onnx(net, INPUTS, [strategy])
    loaded = OrtRuntime().load(data)
    for batch in (1, 3, 50):
        expected = reference(net, INPUTS[:batch])
        assert np.abs(loaded.run(INPUTS[:batch]) - expected).max() < 1e-4
    assert opset_of(data) == strategy.opset


def test_two_exports_give_the_same_bytes(net: nn.Module) -> None:
    assert to_onnx(net, INPUTS) == to_onnx(trained(), INPUTS)


def test_another_process_gives_the_same_bytes(net: nn.Module) -> None:
    code = (
        "import sys, hashlib; from tests.ota_build_task import *; "
        "from wildflower.ota.build.export import to_onnx; "
        "sys.stdout.write(hashlib.sha256(to_onnx(trained(), examples().inputs)).hexdigest())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert child.stdout.decode() == hashlib.sha256(to_onnx(net, INPUTS)).hexdigest()


def test_nothing_in_the_file_tells_where_it_was_built(net: nn.Module) -> None:
    for strategy in STRATEGIES:
        assert b"site-packages" not in (data := to_onnx(net, INPUTS, [strategy]))
        assert b".py" not in data


def test_stripping_reaches_into_branches() -> None:
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    constant = onnx.helper.make_node("Constant", [], ["y"], value=one, doc_string="/home/me.py")
    branch = onnx.helper.make_graph([constant], "branch", [], [value])
    condition = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    choose = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([choose], "main", [condition], [value]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.helper.set_model_props(model, {"host": "builder-7"})
    data = model.SerializeToString()
    assert b"me.py" in data
    assert b"builder-7" in data
    assert b"me.py" not in strip(data)
    assert b"builder-7" not in strip(data)


def test_an_operator_without_a_counterpart_is_named() -> None:
    with pytest.raises(ExportError, match=r"operator aten::special_i1e has no counterpart") as e:
        to_onnx(Spectral(), INPUTS)
    assert "forward()" in e.value.hint


def test_an_operator_that_dynamo_misses_is_named_as_dynamo_calls_it() -> None:
    with pytest.raises(ExportError, match=r"operator prims::bessel_i1e has no counterpart"):
        to_onnx(Spectral(), INPUTS, [STRATEGIES[1]])


class FixedBatch(Net):
    """Answers for one row whatever it is given: what some exports silently do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:1]


class Wavering(Net):
    """Traced in one branch, run in another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2 if len(x) == 1 else 1)


def test_a_graph_that_fits_one_batch_size_only_is_refused() -> None:
    with pytest.raises(ExportError, match=r"legacy: at batch 3: answers differ"):
        to_onnx(Wavering(), INPUTS, STRATEGIES[:1])


def other_shape(model: nn.Module, example: torch.Tensor, opset: int) -> bytes:
    fixed = FixedBatch().eval()
    fixed.load_state_dict(model.state_dict())
    return STRATEGIES[0].export(fixed, example, opset)


def other_type(_model: nn.Module, _example: torch.Tensor, _opset: int) -> bytes:
    source = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["batch", 4])
    target = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([cast], "cast", [source], [target]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def not_onnx(_model: nn.Module, _example: torch.Tensor, _opset: int) -> bytes:
    raise RuntimeError("out of luck")


def invalid(model: nn.Module, example: torch.Tensor, opset: int) -> bytes:
    broken = onnx.load_from_string(STRATEGIES[0].export(model, example, opset))
    broken.graph.node[0].op_type = "Sparkle"
    return bytes(broken.SerializeToString())


def test_each_strategy_that_fails_says_why() -> None:
    ways = [
        Strategy("one", 17, other_shape),
        Strategy("two", 17, not_onnx),
        Strategy("three", 17, other_type),
    ]
    told = r"one: at batch 3: shape.*; two: .*out of luck; three: the model cannot answer"
    with pytest.raises(ExportError, match=told):
        to_onnx(Net(), INPUTS, ways)


def test_a_graph_that_is_no_valid_onnx_is_refused() -> None:
    with pytest.raises(ExportError, match=r"bad: the exported model is not valid.*Sparkle"):
        to_onnx(Net(), INPUTS, [Strategy("bad", 17, invalid)])


def test_the_next_strategy_takes_over_where_one_fails(net: nn.Module) -> None:
    ways = [Strategy("none", 17, not_onnx), STRATEGIES[0]]
    assert to_onnx(net, INPUTS, ways) == to_onnx(net, INPUTS)


def test_fewer_inputs_than_the_largest_batch_are_a_misuse(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="needs 3 inputs, found 2"):
        to_onnx(net, INPUTS[:2])


def test_exporting_prints_nothing_and_leaves_logging_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with pytest.raises(ExportError):
        to_onnx(Spectral(), INPUTS, STRATEGIES[:1])
    assert capfd.readouterr() == ("", "")
    assert logger.level == level
