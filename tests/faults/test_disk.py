"""The replay of a disk: what is written, what is synced, and what a power cut leaves of both."""

from pathlib import Path

import pytest
from tests.faults.bench import Bench
from tests.faults.benches import MATRICES
from tests.faults.disk import Disk, View, files
from tests.faults.strace import Call, Fault, read_log


def disk_of(root: Path, *calls: Call) -> Disk:
    disk = Disk(root)
    for call in calls:
        disk.apply(call)
    return disk


def content(disk: Disk, view: View) -> dict[str, bytes]:
    return dict(files(disk.tree, view))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "old").write_bytes(b"old")
    return tmp_path


def write(root: Path, name: str, data: bytes, *more: str) -> list[Call]:
    """Return the calls that write a file anew; `more` are names of calls on it that follow."""
    path = str(root / name)
    return [
        Call("openat", 1, path, flags="O_WRONLY|O_CREAT|O_TRUNC", result=3),
        Call("write", 1, path, descriptor=3, data=data, result=len(data)),
        *(Call(one, 1, path, descriptor=3) for one in more),
    ]


def test_what_was_never_synced_is_lost_or_zeros(root: Path) -> None:
    disk = disk_of(root, *write(root, "new", b"data"))
    assert content(disk, View.LIVE) == {"new": b"data", "old": b"old"}
    assert content(disk, View.LOST) == {"old": b"old"}
    assert content(disk, View.ZEROED) == {"new": bytes(4), "old": b"old"}


def test_a_synced_file_needs_a_synced_name(root: Path) -> None:
    calls = write(root, "new", b"data", "fsync")
    assert content(disk_of(root, *calls), View.LOST) == {"old": b"old"}
    calls.append(Call("fsync", 2, str(root)))
    assert content(disk_of(root, *calls), View.LOST) == {"new": b"data", "old": b"old"}


def test_a_rename_lasts_when_its_directory_is_synced(root: Path) -> None:
    calls = write(root, "new", b"data", "fdatasync", "close")
    calls.append(Call("rename", 1, str(root / "new"), str(root / "old")))
    assert content(disk_of(root, *calls), View.LOST) == {"old": b"old"}
    assert content(disk_of(root, *calls), View.ZEROED) == {"old": b"data"}
    calls.append(Call("fsync", 2, str(root)))
    assert content(disk_of(root, *calls), View.LOST) == {"old": b"data"}


def test_only_what_was_written_since_the_sync_is_zeros(root: Path) -> None:
    path = str(root / "new")
    calls = write(root, "new", b"abcdef", "fsync")
    calls.append(Call("pwrite64", 1, path, descriptor=3, data=b"XY", offset=2, result=2))
    disk = disk_of(root, *calls)
    assert content(disk, View.LIVE)["new"] == b"abXYef"
    assert content(disk, View.ZEROED)["new"] == b"ab\0\0ef"


def test_a_call_that_failed_changed_nothing(root: Path) -> None:
    assert content(disk_of(root, Call("unlink", 1, str(root / "old"), result=-1)), View.LIVE)


def test_states_that_differ_have_different_digests(root: Path) -> None:
    disk = disk_of(root, *write(root, "new", b"data", "fsync"))
    assert len({disk.digest(view) for view in View}) == 2  # live and zeroed are the same here


def test_lines_of_strace_are_read_as_the_calls_they_are(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        'openat(AT_FDCWD</work>, "/d/a \\"b\\"", O_WRONLY|O_CREAT|O_CLOEXEC, 0644) = 7</d/a>\n'
        'pwrite64(7</d/a>, "\\0\\1x\\377\\n", 5, 4096) = 5\n'
        'write(7</d/a>, "x", 1) = -1 ENOSPC (No space left on device) (INJECTED)\n'
        "ftruncate(7</d/a>, 12) = 0\n"
        'unlinkat(9</d/e>, "f", AT_REMOVEDIR) = 0\n'
        "sendfile(7</d/a>, 8</d/c>, [0] => [65], 8388608) = 65\n"
        'rename("/d/a", "/d/b" <unfinished ...>) = ?\n'
        "+++ killed by SIGKILL +++\n"
    )
    assert read_log(log) == [
        Call("openat", 1, '/d/a "b"', flags="O_WRONLY|O_CREAT|O_CLOEXEC", result=7),
        Call("pwrite64", 1, "/d/a", "", 7, b"\0\1x\377\n", 4096, result=5),
        Call("write", 1, "/d/a", "", 7, b"x", result=-1),
        Call("ftruncate", 1, "/d/a", "", 7, offset=12),
        Call("unlinkat", 1, "/d/e/f", flags="AT_REMOVEDIR"),
        Call("sendfile", 1, "/d/a", "/d/c", 7, result=65),
    ]


def is_replayed(bench: Bench, base: Path, fault: Fault | None = None) -> bool:
    """Whether the replay of a run ends as the disk that the run left."""
    device = bench.copy(base)
    disk = Disk(device)
    for call in bench.trace(device, fault).calls:
        disk.apply(call)
    return content(disk, View.LIVE) == content(Disk(device), View.LIVE)


def test_the_replay_of_an_update_is_the_disk_that_it_left(tmp_path: Path) -> None:
    with MATRICES["update"](tmp_path, 1) as matrix:
        assert is_replayed(matrix.bench, matrix.base)
        assert is_replayed(matrix.bench, matrix.base, Fault("rename", "8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_so_it_is_of_every_matrix(tmp_path: Path, name: str) -> None:
    with MATRICES[name](tmp_path, 1) as matrix:
        assert is_replayed(matrix.bench, matrix.base)
