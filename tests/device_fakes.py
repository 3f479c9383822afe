"""Releases for devices: a tiny real model with its golden rows, and rollouts that offer it."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tests.slots_fakes import WIDTH, reference, scaling_model

from wildflower.ota.device.profile import SelfReport
from wildflower.ota.device.runtime import OrtRuntime
from wildflower.ota.release.manifest import FileEntry, Lineage, Release, Requirement, TrialBudget
from wildflower.ota.rollout.document import Order, RolloutDocument

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
CLASS = "linux-generic"
GROUP = f"light.{CLASS}"


def golden_of(model: bytes, *, off: float = 0.0, sign: float = 1.0) -> bytes:
    """Return golden rows of a model; `off` and `sign` make them those of another one."""
    inputs = np.random.default_rng(1).normal(size=(8, WIDTH)).astype(np.float32)
    outputs = sign * OrtRuntime().load(model).run(inputs) + np.float32(off)
    buffer = io.BytesIO()
    np.savez(buffer, inputs=inputs, outputs=outputs.astype(np.float32))
    return buffer.getvalue()


@dataclass(frozen=True)
class Bundle:
    """A release and the bytes of its files by digest."""

    release: Release
    blobs: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        return self.release.digest

    def lay_out(self, directory: Path) -> dict[str, Path]:
        """Write the files into a directory, by digest; return where each lies, by name."""
        directory.mkdir(parents=True, exist_ok=True)
        for digest, data in self.blobs.items():
            (directory / digest).write_bytes(data)
        return {entry.name: directory / entry.digest for entry in self.release.files}


def bundle(
    order: int = 1,
    *,
    scale: float = 1.0,
    golden: bytes | None = None,
    padding: int = 0,
    **changes: Any,
) -> Bundle:
    """Return a release of a model of its own; `changes` replace fields of the manifest.

    Args:
        order: Its order.
        scale: What its model multiplies with.
        golden: Its golden rows, if not those of the model.
        padding: Bytes to add to a file that no trial reads, to make it long.
    """
    model = scaling_model(scale)
    contents = {
        "model": ("model.onnx", model),
        "golden": ("golden.npz", golden if golden is not None else golden_of(model)),
        "baseline": ("baseline.json", reference().to_bytes() + bytes(padding)),
    }
    entries = tuple(
        FileEntry(role, name, hashlib.sha256(data).hexdigest(), len(data))
        for role, (name, data) in contents.items()
    )
    release = Release(
        model_name="light",
        target_group=GROUP,
        order=order,
        files=entries,
        requires=Requirement(CLASS, "onnxruntime", "1.20", "2", 17, "0.0.1", 1, 1),
        trial=TrialBudget(1e-3, 1.0, 1000.0, 2**33),
        lineage=Lineage("ab" * 32, "t1", 1, "cd" * 32),
        not_before=NOON,
    )
    blobs = {hashlib.sha256(data).hexdigest(): data for _, data in contents.values()}
    return Bundle(replace(release, **changes), blobs)


def manifest(order: int = 1, **changes: Any) -> Release:
    """Return a release without real files, for tests that never open them."""
    entries = tuple(
        FileEntry(role, f"{role}.bin", hashlib.sha256(f"{role}{order}".encode()).hexdigest(), 10)
        for role in ("model", "golden", "baseline")
    )
    release = Release(
        model_name="light",
        target_group=GROUP,
        order=order,
        files=entries,
        requires=Requirement(CLASS, "onnxruntime", "1.20", "2", 17, "0.1", 1000, 1000),
        trial=TrialBudget(1e-3, 1.0, 50.0, 10**9),
        lineage=Lineage("ab" * 32, "", 0, ""),
        not_before=NOON,
    )
    return replace(release, **changes)


def document(release: Release, **changes: Any) -> RolloutDocument:
    """Return a rollout that offers a release to everybody."""
    found = RolloutDocument(
        rollout=f"r{release.order}",
        target_group=release.target_group,
        order=Order.INSTALL,
        release_path=f"models/auto/{release.target_group}/{release.order}.json",
        release=release.digest,
        salt="00ff",
        permille=1000,
        not_before=NOON,
        window_s=0,
    )
    return replace(found, **changes)


def self_report(**changes: Any) -> SelfReport:
    report = SelfReport(
        machine="x86_64",
        cpu_flags=("avx2",),
        ram_bytes=2000,
        disk_bytes=2000,
        agent="0.1.0",
        runtimes={"onnxruntime": "1.22.1"},
    )
    return replace(report, **changes)
