"""The spool: durable, ordered, bounded, and hard to break."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.client.spool import KEPT, MAX_PAYLOAD, QUOTA, RECORD, SEGMENT, Spool


def payload(number: int, size: int = 40) -> bytes:
    return f"{number:06d}".encode().ljust(size, b".")


def fill(spool: Spool, count: int, size: int = 40) -> list[tuple[int, bytes]]:
    return [(spool.append(payload(at, size)), payload(at, size)) for at in range(count)]


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.seg"))


def test_payloads_come_back_in_order_until_they_are_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    stored = fill(spool, 5)
    assert [sequence for sequence, _ in stored] == [1, 2, 3, 4, 5]
    assert spool.pending(10) == stored
    assert spool.pending(2) == stored[:2]
    spool.ack(3)
    assert spool.pending(10) == stored[3:]


def test_everything_survives_the_process(tmp_path: Path) -> None:
    stored = fill(Spool(tmp_path), 3)
    Spool(tmp_path).ack(1)
    again = Spool(tmp_path)
    assert again.pending(10) == stored[1:]
    assert again.append(b"next") == 4


def test_a_stream_keeps_its_name_and_another_spool_has_another(tmp_path: Path) -> None:
    first = Spool(tmp_path / "a")
    assert len(first.stream) == 16
    assert Spool(tmp_path / "a").stream == first.stream != Spool(tmp_path / "b").stream


def test_an_acknowledged_log_never_reuses_a_sequence(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fill(spool, 3)
    spool.ack(3)
    assert spool.pending(10) == []
    assert spool.append(b"x") == 4
    assert Spool(tmp_path).append(b"y") == 5
    assert [sequence for sequence, _ in spool.pending(10)] == [4, 5]


def test_what_was_acknowledged_takes_a_bounded_space(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for at in range(10 * KEPT):
        spool.ack(spool.append(payload(at, SEGMENT // 2)))
        assert len(segments(tmp_path)) <= KEPT
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 2 * KEPT * SEGMENT


def test_the_last_ones_can_be_seen_again_after_they_were_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    stored = fill(spool, 200, size=1000)
    spool.ack(200)
    assert spool.pending(10) == []
    assert spool.recent(100) == stored[-100:]
    stored.append((spool.append(b"next"), b"next"))
    assert spool.recent(3) == stored[-3:]
    left = spool.recent(10**6)
    assert left == stored[-len(left) :]
    assert Spool(tmp_path / "empty").recent(5) == []


def test_an_old_or_exaggerated_acknowledgement_does_no_harm(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    stored = fill(spool, 4)
    spool.ack(2)
    spool.ack(1)
    assert spool.pending(10) == stored[2:]
    spool.ack(10**15)
    assert spool.append(b"x") == 5
    assert spool.pending(10) == [(5, b"x")]


def test_a_long_log_lies_in_segments_that_go_one_by_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    stored = fill(spool, 400, size=1000)
    many = len(segments(tmp_path))
    assert many >= 6
    assert spool.pending(1000) == stored
    spool.ack(330)
    assert KEPT < len(segments(tmp_path)) < many
    assert spool.pending(1000) == stored[330:]


def test_the_oldest_gives_way_when_the_quota_is_reached_and_is_counted(tmp_path: Path) -> None:
    quota = 4 * SEGMENT
    spool = Spool(tmp_path, quota=quota)
    stored = fill(spool, 600, size=1000)
    left = spool.pending(1000)
    assert left == stored[-len(left) :]
    assert spool.dropped == 600 - len(left) > 0
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= quota + SEGMENT
    assert spool.take_dropped() == 600 - len(left)
    assert (spool.take_dropped(), spool.dropped) == (0, 0)


def test_what_was_acknowledged_is_not_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, quota=4 * SEGMENT)
    for at in range(600):
        spool.ack(spool.append(payload(at, 1000)) - 1)
    assert spool.dropped == 0


def test_misuse_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        Spool(tmp_path, quota=SEGMENT)
    with pytest.raises(ValueError, match="at most"):
        Spool(tmp_path).append(bytes(MAX_PAYLOAD + 1))


@pytest.mark.parametrize("cut", [1, RECORD.size - 1, RECORD.size, RECORD.size + 39])
def test_a_torn_tail_costs_the_record_that_was_being_written(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path)
    stored = fill(spool, 3)
    tail = segments(tmp_path)[-1]
    whole = RECORD.size + 40
    os.truncate(tail, 2 * whole + cut)
    again = Spool(tmp_path)
    assert again.pending(10) == stored[:2]
    sequence = again.append(b"after")
    assert sequence > 2
    assert again.pending(10) == [*stored[:2], (sequence, b"after")]


def test_an_empty_tail_is_filled_and_a_missing_one_forgiven(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fill(spool, 1)
    os.truncate(segments(tmp_path)[-1], 0)
    assert spool.append(b"x") == 1
    assert spool.pending(10) == [(1, b"x")]


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("long") / "spool"
    fill(Spool(directory), 200, size=700)
    return directory


@given(at=st.integers(0, 10**6), flip=st.integers(1, 255), acked=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_flipped_byte_costs_at_most_its_segment(
    tmp_path_factory: pytest.TempPathFactory, long_log: Path, at: int, flip: int, acked: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    shutil.copytree(long_log, directory, dirs_exist_ok=True)
    spool = Spool(directory)
    stored = spool.pending(1000)
    spool.ack(acked)
    files = segments(directory)
    victim = files[at % len(files)]
    data = bytearray(victim.read_bytes())
    data[at % len(data)] ^= flip
    victim.write_bytes(data)

    again = Spool(directory)
    left = again.pending(1000)
    assert {*left} <= {*stored[acked:]}
    assert left == sorted(left)
    assert len(left) >= 200 - acked - SEGMENT // 700 - 1
    sequence = again.append(b"after")
    assert sequence > 200
    again.ack(sequence)
    assert again.pending(1000) == []
    assert again.append(b"later") > sequence


@given(st.dictionaries(st.sampled_from(["ack", "dropped"]), st.binary(max_size=20)))
@settings(max_examples=20, deadline=None)
def test_damaged_counters_do_not_keep_it_from_opening(
    tmp_path_factory: pytest.TempPathFactory, noise: dict[str, bytes]
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    fill(Spool(directory), 3)
    for name, data in noise.items():
        (directory / name).write_bytes(data)
    spool = Spool(directory)
    assert spool.append(b"x") >= 4
    assert len(spool.pending(10)) <= 4


def test_strange_files_beside_the_log_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.seg").write_bytes(b"mine")
    (tmp_path / "readme.txt").write_bytes(b"mine")
    spool = Spool(tmp_path)
    stored = fill(spool, 2)
    assert spool.pending(10) == stored
    spool.ack(2)
    assert (tmp_path / "notes.seg").read_bytes() == b"mine"


def test_a_segment_that_goes_away_while_it_is_read_is_skipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / f"{1:020d}.seg").symlink_to("gone meanwhile")
    assert spool.pending(10) == []


@pytest.mark.parametrize("text", ["9" * 30, "-4", "", "x"])
def test_a_counter_beyond_all_measure_counts_from_zero(tmp_path: Path, text: str) -> None:
    spool = Spool(tmp_path)
    stored = fill(spool, 2)
    (tmp_path / "ack").write_text(text)
    assert spool.pending(10) == stored
    assert spool.append(b"x") == 3


def append_many(directory: Path, writer: int, count: int) -> None:
    spool = Spool(directory)
    for at in range(count):
        spool.append(f"{writer}-{at}".encode())


def test_several_processes_may_append(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append_many, args=(tmp_path, n, 40)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = Spool(tmp_path).pending(1000)
    assert [sequence for sequence, _ in found] == [*range(1, 121)]
    assert len({data for _, data in found}) == 120


WRITER = """
import sys
from pathlib import Path
from wildflower.client.spool import Spool
spool = Spool(Path(sys.argv[1]), quota=QUOTA)
while True:
    print(spool.append(b"x" * 500), flush=True)
""".replace("QUOTA", str(QUOTA))


@pytest.mark.parametrize("lines", [1, 30, 90])
def test_a_killed_writer_loses_nothing_that_append_returned_for(tmp_path: Path, lines: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(lines):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    told = [int(line) for line in writer.stdout.read().split()]
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    spool = Spool(tmp_path)
    kept = [sequence for sequence, _ in spool.pending(10**6)]
    assert kept[: len(told) + lines] == [*range(1, lines + len(told) + 1)]
    assert spool.append(b"on") > kept[-1]
