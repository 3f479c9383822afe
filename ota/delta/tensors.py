"""Finds the tensors of a model's file, whatever its format. The server's side."""

from wildflower.ota.delta import onnx_segments, ort_segments, pte_segments, tflite_segments
from wildflower.ota.delta.segments import Region
from wildflower.ota.errors import FormatError


def regions_of(data: bytes) -> tuple[Region, ...]:
    """Return the tensors of an ORT, TFLite, ExecuTorch or ONNX file; none of another format's.

    A file that only looks like one of them gets no tensors either: its delta is longer for it, and
    no less right.
    """
    match data[4:8]:
        case ort_segments.IDENTIFIER:
            find = ort_segments.regions
        case tflite_segments.IDENTIFIER:
            find = tflite_segments.regions
        case pte_segments.IDENTIFIER:
            find = pte_segments.regions
        case _:
            find = onnx_segments.regions
    try:
        return find(data)
    except FormatError:
        return ()
