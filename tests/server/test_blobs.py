import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wildflower.server.blobs import PIECE, BlobStore
from wildflower.server.errors import BlobError, NotFoundError


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100))
def test_what_is_put_is_read_under_its_digest(blobs: BlobStore, data: bytes) -> None:
    digest = blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert blobs.has(digest)
    assert blobs.read(digest) == data
    with blobs.open(digest) as file:
        assert file.read() == data
    blobs.check(digest)


def test_a_file_is_copied_piece_by_piece(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(os.urandom(PIECE + 1))
    digest = blobs.put_file(source)
    assert blobs.path(digest).read_bytes() == source.read_bytes()
    blobs.check(digest)


def test_blobs_lie_in_folders_of_two_digits_and_cannot_be_written(blobs: BlobStore) -> None:
    path = blobs.path(blobs.put(b"model"))
    assert path.parent.name == path.name[:2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_putting_the_same_again_changes_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    assert blobs.put(b"model") == blobs.put(b"model")
    assert len([path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("name", ["0" * 64, "", "../../etc/passwd", "A" * 64, "0" * 63 + "/"])
def test_what_is_not_there_is_not_found(blobs: BlobStore, name: str) -> None:
    assert not blobs.has(name)
    with pytest.raises(NotFoundError, match="no blob"):
        blobs.path(name)
    with pytest.raises(NotFoundError), blobs.open(name):
        pass
    with pytest.raises(NotFoundError):
        blobs.read(name)


def test_a_flipped_byte_is_noticed(blobs: BlobStore) -> None:
    digest = blobs.put(b"model")
    path = blobs.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"moder")
    with pytest.raises(
        BlobError, match=f"{digest} is damaged.*{hashlib.sha256(b'moder').hexdigest()}"
    ):
        blobs.read(digest)
    with pytest.raises(BlobError, match="damaged"):
        blobs.check(digest)


def test_a_copy_that_fails_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        blobs.put_file(tmp_path)

    def broken() -> object:
        yield b"half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        blobs._write(broken())  # type: ignore[arg-type]  # a generator of bytes
    assert list((tmp_path / "blobs").iterdir()) == []
