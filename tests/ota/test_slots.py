"""Slots: complete or not there, pointers old or new, whatever is pulled when."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_fakes import Bundle, bundle

from wildflower.ota.device.slots import Slots, check_file, storage_error
from wildflower.ota.errors import RefusedError, StorageError

FIRST, SECOND, THIRD = bundle(1), bundle(2, scale=2.0), bundle(3, scale=3.0)


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "slots")


def stage(slots: Slots, one: Bundle) -> None:
    slots.stage(one.release, one.lay_out(slots.root.parent / "downloads"))


def commit(slots: Slots, *ones: Bundle) -> None:
    for one in ones:
        stage(slots, one)
        slots.switch(one.digest)


def test_a_staged_release_is_complete_and_runs_nowhere(slots: Slots) -> None:
    stage(slots, FIRST)
    assert slots.is_complete(FIRST.release)
    assert slots.manifest(FIRST.digest) == FIRST.release
    assert (slots.running(), slots.before()) == ("", "")
    assert sorted(path.name for path in slots.root.iterdir()) == [FIRST.digest]


def test_files_of_a_slot_are_read_only(slots: Slots) -> None:
    stage(slots, FIRST)
    modes = {path.stat().st_mode & 0o777 for path in slots.path(FIRST.digest).iterdir()}
    assert modes == {0o444}


def test_staging_again_changes_nothing(slots: Slots) -> None:
    stage(slots, FIRST)
    before = slots.path(FIRST.digest).stat().st_ino
    stage(slots, FIRST)
    assert slots.path(FIRST.digest).stat().st_ino == before


def test_a_slot_whose_byte_was_changed_is_not_complete_and_is_staged_anew(slots: Slots) -> None:
    stage(slots, FIRST)
    victim = slots.path(FIRST.digest) / "model.onnx"
    victim.chmod(0o644)
    victim.write_bytes(b"\0" + victim.read_bytes()[1:])
    assert not slots.is_complete(FIRST.release)
    stage(slots, FIRST)
    assert slots.is_complete(FIRST.release)


def test_a_slot_without_a_file_or_with_another_manifest_is_not_complete(slots: Slots) -> None:
    stage(slots, FIRST)
    (slots.path(FIRST.digest) / "golden.npz").unlink()
    assert not slots.is_complete(FIRST.release)
    manifest = slots.path(FIRST.digest) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(SECOND.release.to_bytes())
    assert slots.manifest(FIRST.digest) is None
    manifest.write_bytes(b"{}")
    assert slots.manifest(FIRST.digest) is None
    assert slots.releases() == []


def test_a_wrong_file_is_refused_with_found_and_expected(slots: Slots, tmp_path: Path) -> None:
    files = FIRST.lay_out(tmp_path / "downloads")
    files["model.onnx"].write_bytes(b"short")
    with pytest.raises(RefusedError, match=r"model\.onnx: found 5 bytes .* signed are \d+"):
        slots.stage(FIRST.release, files)
    assert slots.running() == ""
    assert not slots.path(FIRST.digest).exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"model\.onnx is missing"):
        check_file(tmp_path / "none", FIRST.release.artifact)


def test_a_commit_keeps_the_one_before(slots: Slots) -> None:
    commit(slots, FIRST, SECOND)
    assert (slots.running(), slots.before()) == (SECOND.digest, FIRST.digest)
    slots.switch(SECOND.digest)
    assert (slots.running(), slots.before()) == (SECOND.digest, FIRST.digest)
    assert not (slots.root / "current").readlink().is_absolute()


def test_going_back_returns_to_the_one_before_once(slots: Slots) -> None:
    commit(slots, FIRST, SECOND)
    assert slots.go_back(SECOND.digest) == FIRST.digest
    assert slots.go_back(SECOND.digest) == FIRST.digest
    assert slots.before() == ""


def test_a_device_without_an_earlier_release_is_never_switched_off(slots: Slots) -> None:
    commit(slots, FIRST)
    assert slots.go_back(FIRST.digest) == FIRST.digest


def test_a_device_goes_back_to_what_it_was_delivered_with(slots: Slots) -> None:
    commit(slots, FIRST, SECOND)
    slots.go_back(SECOND.digest)
    (slots.root / "factory").symlink_to(THIRD.digest)
    stage(slots, THIRD)
    assert slots.go_back(FIRST.digest) == THIRD.digest


def test_going_back_skips_a_slot_that_is_gone(slots: Slots) -> None:
    commit(slots, FIRST, SECOND)
    shutil.rmtree(slots.path(FIRST.digest))
    assert slots.before() == ""
    assert slots.go_back(SECOND.digest) == SECOND.digest


def test_collecting_keeps_current_previous_and_factory(slots: Slots) -> None:
    commit(slots, FIRST, SECOND)
    stage(slots, THIRD)
    extra = bundle(4, scale=4.0)
    stage(slots, extra)
    (slots.root / "factory").symlink_to(THIRD.digest)
    (slots.root / ".half.partial").mkdir()
    (slots.root / ".current.new").symlink_to("nowhere")
    assert slots.collect() == sorted([".current.new", ".half.partial", extra.digest])
    assert [one.order for one in slots.releases()] == [1, 2, 3]
    assert slots.collect() == []


def test_what_a_pointer_names_is_never_discarded(slots: Slots) -> None:
    commit(slots, FIRST, SECOND)
    stage(slots, THIRD)
    for one in (FIRST, SECOND, THIRD):
        slots.discard(one.digest)
    assert [one.order for one in slots.releases()] == [1, 2]


def test_too_little_space_is_told_before_anything_is_written(slots: Slots) -> None:
    slots.require_space(0)
    with pytest.raises(StorageError, match=r"\d+ bytes are free in .*, installing needs \d+"):
        slots.require_space(2**60)


@contextmanager
def disk(monkeypatch: pytest.MonkeyPatch, *, fails_at: int) -> Iterator[list[str]]:
    """Let the n-th change of the disk fail as a full one does; tell what was asked of it."""
    asked: list[str] = []

    def watched(name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            asked.append(name)
            if len(asked) == fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (os, "fsync"),
            (shutil, "copyfile"),
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "symlink_to"),
        ):
            patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield asked


def install(slots: Slots, files: dict[str, Path]) -> None:
    slots.stage(SECOND.release, files)
    slots.switch(SECOND.digest)


@pytest.mark.parametrize("fails_at", range(1, 18))
def test_a_full_disk_at_any_step_leaves_what_runs_and_a_second_try_succeeds(
    slots: Slots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails_at: int
) -> None:
    commit(slots, FIRST)
    files = SECOND.lay_out(tmp_path / "more")
    with (
        disk(monkeypatch, fails_at=fails_at) as asked,
        pytest.raises(StorageError, match="No space left") as told,
    ):
        install(slots, files)
    assert len(asked) == fails_at
    assert "disk is full" in told.value.hint
    assert slots.running() in (FIRST.digest, SECOND.digest)
    assert slots.is_complete(FIRST.release)
    install(slots, files)
    assert (slots.running(), slots.before()) == (SECOND.digest, FIRST.digest)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_while_going_back_leaves_what_runs(
    slots: Slots, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    commit(slots, FIRST, SECOND)
    with disk(monkeypatch, fails_at=fails_at), pytest.raises(StorageError):
        slots.go_back(SECOND.digest)
    assert slots.go_back(SECOND.digest) == FIRST.digest


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "may not write"), (errno.EIO, "")],
)
def test_storage_errors_say_what_to_do(number: int, hint: str, tmp_path: Path) -> None:
    error = storage_error(OSError(number, os.strerror(number)), tmp_path)
    assert hint in error.hint
    assert str(tmp_path) in str(error)


MOVES = st.lists(
    st.tuples(st.sampled_from(["commit", "back", "discard", "collect"]), st.integers(0, 2)),
    max_size=8,
)


@settings(max_examples=20, deadline=None)
@given(MOVES)
def test_whatever_happens_something_complete_runs_once_something_was_committed(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]]
) -> None:
    slots = Slots(tmp_path_factory.mktemp("device") / "slots")
    ones = (FIRST, SECOND, THIRD)
    commit(slots, FIRST)
    for move, which in moves:
        match move:
            case "commit":
                commit(slots, ones[which])
            case "back":
                slots.go_back(ones[which].digest)
            case "discard":
                slots.discard(ones[which].digest)
            case _:
                slots.collect()
        running = slots.manifest(slots.running())
        assert running is not None
        assert slots.is_complete(running)
