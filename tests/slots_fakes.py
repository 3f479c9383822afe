"""Slots as the agent leaves them: directories named by manifest, links that flip."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from wildflower.ota.observe import baseline
from wildflower.ota.release.manifest import FileEntry, Lineage, Release, Requirement, TrialBudget

LABELS = ("dark", "bright")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
WIDTH = 4


def scaling_model(scale: float, classes: int = 2) -> bytes:
    """Return a model whose outputs are the sum of the input, negated and not, times `scale`."""
    signs = [-1.0, 1.0, 0.0][:classes]
    weights = np.repeat(np.array([signs], np.float32), WIDTH, axis=0) * np.float32(scale)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "scaling",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def reference() -> baseline.Baseline:
    inputs = np.random.default_rng(0).normal(size=(50, WIDTH)).astype(np.float32)
    return baseline.of(LABELS, inputs, np.stack([-inputs.sum(1), inputs.sum(1)], 1))


def install(root: Path, model: bytes, *, order: int = 1) -> Path:
    """Put a release into a slot and return the slot; no link is moved."""
    edges = reference().to_bytes()
    files = {"model": ("model.onnx", model), "baseline": ("baseline.json", edges)}
    release = Release(
        model_name="light",
        target_group="light.linux-generic",
        order=order,
        files=tuple(
            FileEntry(role, name, hashlib.sha256(data).hexdigest(), len(data))
            for role, (name, data) in files.items()
        ),
        requires=Requirement("linux-generic", "onnxruntime", "1.20", "2", 17, "0.1.0", 1, 1),
        trial=TrialBudget(1e-4, 1.0, 50.0, 10**9),
        lineage=Lineage("ab" * 32, "", 0, ""),
        not_before=NOON,
    )
    slot = root / "slots" / release.digest
    slot.mkdir(parents=True, exist_ok=True)
    (slot / "manifest.json").write_bytes(release.to_bytes())
    for name, data in files.values():
        (slot / name).write_bytes(data)
    return slot


def flip(slot: Path, name: str = "current") -> None:
    """Make a link name this slot, by a rename."""
    new = slot.parent / f".{name}"
    new.symlink_to(slot.name)
    new.replace(slot.parent / name)


def commit(root: Path, model: bytes, *, order: int = 1) -> Path:
    """Install a release and make it current; what was current becomes previous."""
    slot, current = install(root, model, order=order), root / "slots" / "current"
    if current.is_symlink():
        flip(current.resolve(), "previous")
    flip(slot)
    return slot
