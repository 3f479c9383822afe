"""Files that are old or new after a power cut, and names that stay."""

import os
from pathlib import Path

import pytest

from wildflower.ota.release.files import make_directory, write_durably


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "below" / "name"
    write_durably(target, b"old")
    write_durably(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(target.parent.iterdir()) == [target]


def test_every_directory_that_is_made_is_named_durably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    make_directory(tmp_path / "one" / "two")
    assert synced == [str(tmp_path), str(tmp_path / "one")]
    make_directory(tmp_path / "one" / "two")
    assert len(synced) == 2


def test_a_file_in_the_way_of_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"")
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "name")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "name"
    write_durably(target, b"old")

    def fails(_: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no"):
        write_durably(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
