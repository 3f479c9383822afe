"""The build cache: what it remembers, what it does not believe, and who may share it."""

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wildflower.ota.build.store import BuildStore, Outputs

KEY = "ab" * 32
OUTPUTS: Outputs = {"model": b"weights", "golden": b"rows"}


def made_twice(store: BuildStore) -> tuple[int, bool]:
    """Return how often the stage ran in two rounds, and whether the second was cached."""
    runs: list[None] = []

    def make() -> Outputs:
        runs.append(None)
        return OUTPUTS

    store.made(KEY, make)
    outputs, is_cached = store.made(KEY, make)
    assert outputs == OUTPUTS
    return len(runs), is_cached


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the kernel refuse longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_stage_runs_once(tmp_path: Path) -> None:
    assert made_twice(BuildStore(tmp_path)) == (1, True)


def test_outputs_survive_the_process(tmp_path: Path) -> None:
    BuildStore(tmp_path).put(KEY, OUTPUTS)
    assert BuildStore(tmp_path).get(KEY) == OUTPUTS


def test_an_unknown_key_has_no_outputs(tmp_path: Path) -> None:
    assert BuildStore(tmp_path).get(KEY) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("folder", ["outputs", "keys"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, folder: str, damage: str) -> None:
    store = BuildStore(tmp_path)
    store.put(KEY, OUTPUTS)
    for file in (tmp_path / folder).iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "flip" else data[:-1])
        if damage == "remove":
            file.unlink()
    assert store.get(KEY) is None
    assert made_twice(store) == (1, True)


def test_an_entry_that_is_another_document_is_built_again(tmp_path: Path) -> None:
    store = BuildStore(tmp_path)
    entry = tmp_path / "keys" / f"{KEY}.json"
    for text in (
        '{"format":1,"kind":"wildflower.build-entry"}',
        '{"format":1,"kind":"wildflower.build-entry","outputs":[]}',
        '{"format":1,"kind":"wildflower.build-entry","outputs":{"model":"../../etc/passwd"}}',
    ):
        entry.write_text(text)
        assert store.get(KEY) is None


def test_a_failed_write_leaves_no_half_output(tmp_path: Path) -> None:
    store = BuildStore(tmp_path)
    with files_of_at_most(4), pytest.raises(OSError, match="too large"):
        store.put(KEY, OUTPUTS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.get(KEY) is None


def test_builds_side_by_side_agree(tmp_path: Path) -> None:
    found: list[object] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(BuildStore(tmp_path).made(KEY, lambda: OUTPUTS)[0])
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [OUTPUTS] * 8
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [f"{KEY}.json"]
