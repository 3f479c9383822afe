"""`.ort`: the same answers, the same bytes, whatever the hash maps of the day."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from tests.ota_build_task import examples, trained

from wildflower.ota.build.convert import canonical, to_ort
from wildflower.ota.build.export import to_onnx
from wildflower.ota.build.quantise import to_int8
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.errors import ExportError

INPUTS = examples().inputs


@pytest.fixture(scope="module")
def fp32() -> bytes:
    return to_onnx(trained(), INPUTS)


def test_the_converted_model_gives_the_same_answers(fp32: bytes) -> None:
    ort = to_ort(fp32)
    assert ort[4:8] == b"ORTM"
    expected = OrtRuntime().load(fp32).run(INPUTS)
    assert np.abs(OrtRuntime().load(ort).run(INPUTS) - expected).max() < 1e-4
    assert len(ort) < 1.5 * len(fp32)


def test_conversions_give_the_same_bytes_every_time(fp32: bytes) -> None:
    int8 = to_int8(fp32, INPUTS[:64], reduce_range=True)
    for model in (fp32, int8):
        assert len({to_ort(model) for _ in range(6)}) == 1


def test_another_process_gives_the_same_bytes(fp32: bytes) -> None:
    code = (
        "import sys, hashlib; from wildflower.ota.build.convert import to_ort; "
        "sys.stdout.write(hashlib.sha256(to_ort(sys.stdin.buffer.read())).hexdigest())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], input=fp32, capture_output=True, check=True
    )
    assert child.stdout.decode() == hashlib.sha256(to_ort(fp32)).hexdigest()


def test_what_is_canonical_stays_as_it_is(fp32: bytes) -> None:
    ort = to_ort(fp32)
    assert canonical(ort) == ort


def test_what_is_no_model_is_an_error_of_ours() -> None:
    with pytest.raises(ExportError, match=r"cannot become \.ort"):
        to_ort(b"no model")


@pytest.mark.parametrize("damage", ["identifier", "resolver", "short"])
def test_a_file_laid_out_otherwise_is_refused(fp32: bytes, damage: str) -> None:
    ort = bytearray(to_ort(fp32))
    if damage == "identifier":
        ort[4:8] = b"ORTX"
    if damage == "resolver":
        root = int.from_bytes(ort[:4], "little")
        vtable = root - int.from_bytes(ort[root : root + 4], "little", signed=True)
        ort[vtable + 10 : vtable + 12] = b"\0\0"
    data = bytes(ort[:40]) if damage == "short" else bytes(ort)
    with pytest.raises(ExportError, match=r"\.ort file"):
        canonical(data)


def test_converting_prints_nothing(fp32: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    to_ort(fp32)
    assert capfd.readouterr() == ("", "")
