"""int8: smaller, the same answers, the same bytes; and never int8 in name only."""

import numpy as np
import pytest
import torch
from tests.ota_build_task import examples, trained
from torch import nn

from wildflower.ota.build.export import reference, to_onnx
from wildflower.ota.build.quantise import quantised_share, to_int8
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import QuantiseError

INPUTS = examples().inputs
CALIBRATION, REST = INPUTS[:250], INPUTS[250:]


@pytest.fixture(scope="module")
def fp32() -> bytes:
    return to_onnx(trained(), INPUTS)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_an_int8_model_is_small_and_answers_the_same(fp32: bytes, reduce_range: bool) -> None:
    int8 = to_int8(fp32, CALIBRATION, reduce_range=reduce_range)
    assert len(int8) < 0.45 * len(fp32)
    expected = reference(trained(), REST)
    found = OrtRuntime().load(int8).run(REST)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.98
    assert quantised_share(int8) == (1.0, [])


def test_two_quantisations_give_the_same_bytes(fp32: bytes) -> None:
    first = to_int8(fp32, CALIBRATION, reduce_range=True)
    assert first == to_int8(fp32, CALIBRATION.copy(), reduce_range=True)


def test_weights_keep_to_seven_bits_where_kernels_would_saturate(fp32: bytes) -> None:
    onnx = pytest.importorskip("onnx")
    for reduce_range, largest in ((True, 64), (False, 127)):
        graph = onnx.load_from_string(to_int8(fp32, CALIBRATION, reduce_range=reduce_range)).graph
        weights = [
            onnx.numpy_helper.to_array(one).astype(int)
            for one in graph.initializer
            if one.data_type == onnx.TensorProto.INT8 and len(one.dims) >= 2
        ]
        assert max(int(np.abs(array).max()) for array in weights) == largest


class Recurrent(nn.Module):
    """An LSTM, whose weights the quantiser leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.lstm(x.squeeze(1))[0][:, -1])
        return answer


def test_a_model_that_stays_fp32_is_not_called_int8() -> None:
    fp32 = to_onnx(Recurrent(), INPUTS)
    with pytest.raises(QuantiseError, match="LSTM stay fp32") as caught:
        to_int8(fp32, CALIBRATION[:32], reduce_range=False)
    assert "fp32 recipe" in caught.value.hint


def test_a_model_without_weights_has_nothing_to_quantise() -> None:
    fp32 = to_onnx(nn.Flatten(), INPUTS)
    with pytest.raises(QuantiseError, match="only 0%"):
        to_int8(fp32, CALIBRATION[:32], reduce_range=False)


def test_answers_are_not_rounded_to_256_values(fp32: bytes) -> None:
    int8 = to_int8(fp32, CALIBRATION, reduce_range=True)
    assert len(np.unique(OrtRuntime().load(int8).run(CALIBRATION))) > 256
    graph = pytest.importorskip("onnx").load_from_string(int8).graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    assert last.op_type == "Gemm"


def test_quantising_prints_nothing(fp32: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    to_int8(fp32, CALIBRATION[:32], reduce_range=True)
    assert capfd.readouterr() == ("", "")
