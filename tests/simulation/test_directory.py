from pathlib import Path

import pytest

from wildflower.simulation.errors import DirectoryError
from wildflower.simulation.local.directory import claimed, is_ours, prepare, require


def test_a_directory_with_other_files_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(DirectoryError, match="not empty"):
        prepare(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "three years of work"


def test_a_fleet_of_ours_starts_clean_again(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "devices" / "old").mkdir()
    (tmp_path / "devices" / "link").symlink_to(tmp_path.parent)
    prepare(tmp_path)
    assert list((tmp_path / "devices").iterdir()) == []
    assert tmp_path.parent.exists()


def test_a_foreign_marker_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / ".wildflower").write_text('{"kind": "server", "format": 1}')
    assert not is_ours(tmp_path)
    (tmp_path / ".wildflower").write_text("{")
    assert not is_ours(tmp_path)


def test_two_commands_cannot_work_in_one_directory(tmp_path: Path) -> None:
    with (
        claimed(tmp_path),
        pytest.raises(DirectoryError, match="another command"),
        claimed(tmp_path),
    ):
        pass
    with claimed(tmp_path):
        pass


def test_a_missing_fleet_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError) as caught:
        require(tmp_path)
    assert "local up" in caught.value.hint
