"""An int8 ONNX file that follows the one released before it; the rules are `ota.delta.quantiser`'s.

The graph and the ranges of activations are the last release's. From the new model come weights,
biases and whatever else its graph holds, each as near to the last release as the rules allow. The
master is the new model in fp32 as the quantiser saw it: optimised, batch norms folded.

| tensor of the last release | becomes |
|---|---|
| int8, around 0 (a weight) | its scales follow, its integers are held |
| int32 (a bias) | its scale is input's times weight's, its integers are held |
| uint8 with a zero point (a constant that is treated like an activation) | its integers are held |
| float (not quantised) | moves by whole steps, `ota.delta.fp32` |
| anything else | must be equal in the new int8 build |
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from wildflower.ota.delta.fp32 import SHARE, coded
from wildflower.ota.delta.quantiser import FIRST, Rules, followed, held, held_bias
from wildflower.ota.errors import QuantiseError

if TYPE_CHECKING:
    import onnx

SUFFIX: Final = "_quantized"  # what ONNX Runtime's quantiser appends to a tensor's name
HINT: Final = "Release the model's own build, whole."


@dataclass(frozen=True, slots=True)
class _Quantised:
    """One quantised tensor of the graph, by the names of its initializers."""

    name: str
    scale: str
    zero_point: str
    axis: int

    @property
    def source(self) -> str:
        return self.name.removesuffix(SUFFIX)


def follow(previous: bytes, naive: bytes, master: bytes, *, rules: Rules, limit: int) -> bytes:
    """Return the next release.

    Args:
        previous: The last release, int8 ONNX in QDQ form.
        naive: The new model's own int8 build.
        master: The new model in fp32, as that build's quantiser saw it.
        rules: How much may stay as it is.
        limit: Largest integer of a weight: 127, or 64 where the range is reduced.

    Raises:
        QuantiseError: The models are not of one architecture.
    """
    import onnx

    model = onnx.load_from_string(previous)
    fresh, masters = _tensors(naive), _tensors(master)
    _check_graphs(model, onnx.load_from_string(naive))
    tensors = {one.name: one for one in model.graph.initializer}
    follower = _Follower(tensors, masters, rules, limit)
    quantised = list(_quantised(model.graph, tensors))
    done = set[str]()
    for one in quantised:
        done |= follower.tensor(one)
    done |= follower.biases(model.graph, {one.name: one for one in quantised})
    done |= _activation_ranges(model.graph)
    used = {name for node in model.graph.node for name in node.input}
    for name in (tensors.keys() & used) - done:  # what the quantiser left unused stays as it is
        follower.rest(name, fresh)
    return bytes(model.SerializeToString(deterministic=True))


def first(naive: bytes, master: bytes, *, limit: int) -> bytes:
    """Return a release that others can follow: `naive` with scales that have a short mantissa."""
    return follow(naive, naive, master, rules=FIRST, limit=limit)


class _Follower:
    """Moves the tensors of the last release, in place."""

    def __init__(
        self,
        tensors: "dict[str, onnx.TensorProto]",
        masters: dict[str, npt.NDArray[Any]],
        rules: Rules,
        limit: int,
    ) -> None:
        self._tensors, self._masters = tensors, masters
        self._rules, self._limit = rules, limit

    def tensor(self, one: _Quantised) -> set[str]:
        """Move a weight or a constant; return the names of what has been seen to."""
        integers = self._array(one.name)
        names = {one.name, one.scale, one.zero_point}
        if self._is_bias(one.name):
            return names  # a bias waits for the scales of its weight
        master = self._master(one.source, integers.shape)
        scales = self._array(one.scale).reshape(-1)
        axis = one.axis if scales.size > 1 else None
        zero = int(self._array(one.zero_point).reshape(-1)[0]) if one.zero_point else 0
        around = integers.astype(np.int32) - zero
        if integers.dtype == np.int8 and zero == 0:
            scales = followed(master, around, scales, self._rules, limit=self._limit, axis=axis)
            bounds = (-self._limit, self._limit)
        else:
            info = np.iinfo(integers.dtype)
            bounds = (info.min - zero, info.max - zero)
        found = held(master, around, scales, self._rules, bounds=bounds, axis=axis)
        self._put(one.name, (found + zero).astype(integers.dtype))
        self._put(one.scale, scales.reshape(self._array(one.scale).shape))
        return names

    def biases(self, graph: "onnx.GraphProto", quantised: dict[str, _Quantised]) -> set[str]:
        """Move the biases: what a layer takes third, beside its input and its weight."""
        makers = {name: node for node in graph.node for name in node.output}
        done = set[str]()
        for node in graph.node:
            inputs = [makers.get(name) for name in node.input[:3]]
            found = [one for one in inputs if one is not None and one.op_type == "DequantizeLinear"]
            if len(found) < 3:
                continue
            entry, weight, bias = (one.input for one in found)
            if bias[0] in quantised and bias[0] not in done and self._is_bias(bias[0]):
                self._bias(quantised[bias[0]], entry[1], weight)
                done.add(bias[0])
        left = [name for name in quantised if name not in done and self._is_bias(name)]
        if left:
            raise QuantiseError(f"bias {left[0]!r} belongs to no layer", hint=HINT)
        return done

    def rest(self, name: str, fresh: dict[str, npt.NDArray[Any]]) -> None:
        """Move what is not quantised."""
        values = self._array(name)
        if values.dtype == np.float32 and name in self._masters:
            master = self._master(name, values.shape).astype(np.float32)
            found = coded(values.reshape(-1), master.reshape(-1), SHARE)
            self._put(name, found[0].reshape(values.shape) if found is not None else master)
        elif name not in fresh or not np.array_equal(fresh[name], values):
            raise QuantiseError(f"tensor {name!r} is another than in the last release", hint=HINT)

    def _bias(self, one: _Quantised, entry_scale: str, weight: Sequence[str]) -> None:
        before = self._array(one.scale)
        product = self._array(entry_scale).reshape(-1) * self._array(weight[1]).reshape(-1)
        scales = np.broadcast_to(product.astype(np.float32), before.reshape(-1).shape)
        integers = self._array(one.name)
        master = self._master(one.source, integers.shape)
        products = self._array(weight[0]).size / integers.size
        self._put(one.scale, scales.reshape(before.shape))
        self._put(
            one.name,
            held_bias(master, integers, scales, self._rules, products=max(1.0, products)),
        )

    def _is_bias(self, name: str) -> bool:
        return bool(self._array(name).dtype == np.int32)

    def _master(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        found = self._masters.get(name)
        if found is None or found.shape != shape:
            what = "is not" if found is None else f"has shape {found.shape}, not {shape},"
            raise QuantiseError(f"tensor {name!r} {what} in the new model", hint=HINT)
        return found.astype(np.float64)

    def _array(self, name: str) -> npt.NDArray[Any]:
        from onnx import numpy_helper

        found: npt.NDArray[Any] = numpy_helper.to_array(self._tensors[name])
        return found

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        from onnx import numpy_helper

        # A copy each time: `raw_data` in place of whatever form the quantiser chose.
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.array(values, order="C"), name))


def _tensors(data: bytes) -> dict[str, npt.NDArray[Any]]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(data).graph
    return {one.name: numpy_helper.to_array(one) for one in graph.initializer}


def steps_of(data: bytes) -> dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]]:
    """Return the integers of each weight in int8, and the steps that multiply them, by its name.

    Args:
        data: An int8 ONNX file in QDQ form.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(data).graph
    tensors = {one.name: one for one in graph.initializer}
    found = {}
    for one in _quantised(graph, tensors):
        integers = numpy_helper.to_array(tensors[one.name])
        if integers.dtype in (np.int8, np.uint8):
            scales = numpy_helper.to_array(tensors[one.scale]).astype(np.float64)
            shape = [-1 if at == one.axis else 1 for at in range(integers.ndim)]
            steps = scales.reshape(shape if scales.size > 1 else [1] * integers.ndim)
            found[one.source] = (integers.astype(np.int32), steps)
    return found


def _quantised(
    graph: "onnx.GraphProto", tensors: "dict[str, onnx.TensorProto]"
) -> Iterator[_Quantised]:
    """Yield each initializer that a node dequantises, once."""
    seen = set[str]()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            continue
        name, scale, zero_point = (*node.input, "")[:3]
        if name not in seen:
            seen.add(name)
            axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
            yield _Quantised(name, scale, zero_point, axis)


def _activation_ranges(graph: "onnx.GraphProto") -> set[str]:
    """Return the names of the scales and zero points of what flows: they stay as they are."""
    kinds = ("QuantizeLinear", "DequantizeLinear")
    return {name for node in graph.node if node.op_type in kinds for name in node.input[1:]}


def _check_graphs(old: "onnx.ModelProto", new: "onnx.ModelProto") -> None:
    """Demand the same nodes in the same order."""
    nodes = [
        [(node.op_type, list(node.input), list(node.output)) for node in one.graph.node]
        for one in (old, new)
    ]
    if nodes[0] != nodes[1]:
        raise QuantiseError("the new model's graph is another than the last release's", hint=HINT)
