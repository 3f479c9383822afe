import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from wildflower.ota.delta.encode import diff
from wildflower.ota.delta.segments import Kind, Region
from wildflower.ota.device.patching import patch
from wildflower.ota.errors import DeltaError, StorageError
from wildflower.ota.release.manifest import FileEntry

OLD = np.random.default_rng(0).normal(size=5000).astype(np.float32)
NEW = OLD * np.float32(1.001)
THERE = [Region("w", 0, OLD.nbytes, Kind.FLOAT32)]
DELTA = diff(OLD.tobytes(), NEW.tobytes(), THERE, THERE)
ENTRY = FileEntry("model", "model.onnx", hashlib.sha256(NEW.tobytes()).hexdigest(), NEW.nbytes)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "slot").mkdir()
    (tmp_path / "downloads").mkdir()
    (tmp_path / "slot" / "model.onnx").write_bytes(OLD.tobytes())
    (tmp_path / "downloads" / "delta").write_bytes(DELTA)
    return tmp_path


def run(place: Path) -> None:
    downloads = place / "downloads"
    patch(place / "slot" / "model.onnx", downloads / "delta", downloads / "model.onnx", ENTRY)


def names(place: Path) -> set[str]:
    return {one.name for one in (place / "downloads").iterdir()}


def test_the_new_file_is_made_and_the_old_one_stays(place: Path) -> None:
    run(place)
    assert (place / "downloads" / "model.onnx").read_bytes() == NEW.tobytes()
    assert (place / "slot" / "model.onnx").read_bytes() == OLD.tobytes()
    assert names(place) == {"delta", "model.onnx"}


def test_a_right_file_is_left_as_it_is_even_without_its_delta(place: Path) -> None:
    run(place)
    (place / "downloads" / "delta").unlink()
    run(place)
    assert (place / "downloads" / "model.onnx").read_bytes() == NEW.tobytes()


def test_a_torn_target_and_a_leftover_are_made_anew(place: Path) -> None:
    (place / "downloads" / "model.onnx").write_bytes(NEW.tobytes()[:999])
    (place / "downloads" / ".model.onnx.patched").write_bytes(b"half")
    run(place)
    assert (place / "downloads" / "model.onnx").read_bytes() == NEW.tobytes()
    assert names(place) == {"delta", "model.onnx"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("slot/model.onnx", NEW.tobytes()),
        ("slot/model.onnx", b""),
        ("slot/model.onnx", None),
        ("downloads/delta", DELTA[:-1]),
        ("downloads/delta", b"not a delta"),
        ("downloads/delta", b""),
        ("downloads/delta", None),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    place: Path, file: str, content: bytes | None
) -> None:
    if content is None:
        (place / file).unlink()
    else:
        (place / file).write_bytes(content)
    with pytest.raises(DeltaError) as caught:
        run(place)
    assert names(place) <= {"delta"}
    assert caught.value.hint == "Fetch the whole file."


def test_a_place_that_cannot_be_written_is_a_storage_error(place: Path) -> None:
    (place / "downloads" / ".model.onnx.patched").mkdir()
    with pytest.raises(StorageError):
        run(place)


def test_a_full_disk_is_a_storage_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        run(place)
    assert names(place) == {"delta"}
