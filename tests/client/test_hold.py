"""The update lock: who holds, until when, and what a holder's end leaves."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.client.errors import HoldError
from wildflower.client.hold import BUSY, LONGEST_S, MAX_HOLDS, Holds, seconds_since_boot

CHILD = """
import sys
from pathlib import Path
from wildflower.client.hold import Holds
with Holds(Path(sys.argv[1])).hold("in a child", max_s=600):
    print("held", flush=True)
    sys.stdin.read()
"""


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_hold_stands_for_the_length_of_its_block(tmp_path: Path, clock: Clock) -> None:
    holds = Holds(tmp_path, clock)
    assert holds.standing() == ()
    with holds.hold("measuring", max_s=60) as held:
        (found,) = holds.standing()
        assert (found.name, found.reason, found.left_s) == (held.name, "measuring", 60)
        assert found.holder == f"process {os.getpid()}"
        assert str(found).endswith("holds for 60 s more: measuring")
    assert holds.standing() == ()
    assert held.left_s == 0.0
    assert list((tmp_path / "holds").glob("*.hold")) == []


def test_a_hold_ends_with_an_error_in_its_block(tmp_path: Path, clock: Clock) -> None:
    holds = Holds(tmp_path, clock)
    with contextlib.suppress(RuntimeError), holds.hold("measuring", max_s=60):
        raise RuntimeError
    assert holds.standing() == ()


def test_a_hold_ends_by_itself(tmp_path: Path, clock: Clock) -> None:
    holds = Holds(tmp_path, clock)
    with holds.hold("measuring", max_s=60) as held:
        clock.at += 59.5
        assert len(holds.standing()) == 1
        assert held.left_s == 0.5
        clock.at += 0.5
        assert holds.standing() == ()
        assert held.left_s == 0.0


def test_a_hold_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        holds = Holds(tmp_path)
        assert [hold.reason for hold in holds.standing()] == ["in a child"]
        with holds.switching() as held:
            assert len(held) == 1
        child.kill()
    assert holds.standing() == ()
    assert list((tmp_path / "holds").glob("*.hold")) == []


def test_several_may_hold_and_the_last_one_counts(tmp_path: Path, clock: Clock) -> None:
    holds = Holds(tmp_path, clock)
    first, second = (holds.take(why, max_s=10, holder=why) for why in ("a", "b"))
    first.release()
    first.release()
    assert [hold.holder for hold in holds.standing()] == ["b"]
    second.release()
    with holds.switching() as held:
        assert held == ()


def test_no_hold_begins_in_the_middle_of_a_switch(tmp_path: Path) -> None:
    holds, began = Holds(tmp_path), threading.Event()
    holds.take("before", max_s=10).release()

    def take() -> None:
        with holds.hold("late", max_s=10):
            began.set()

    with holds.switching() as held:
        assert held == ()
        thread = threading.Thread(target=take)
        thread.start()
        assert not began.wait(0.1)
    assert began.wait(10)
    thread.join()


def test_who_is_just_beginning_a_hold_keeps_a_switch_waiting(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    holds.take("before", max_s=10).release()
    with holds._locked(1), holds.switching() as held:  # 1: shared, as in the middle of `take`
        assert held == (BUSY,)


def test_a_device_that_nobody_ever_held_may_switch(tmp_path: Path) -> None:
    with Holds(tmp_path).switching() as held:
        assert held == ()
    assert not (tmp_path / "holds").exists()


def test_a_switch_clears_what_was_torn(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    holds.take("a", max_s=1).release()
    (tmp_path / "holds" / "ab.new").write_bytes(b"")
    with holds.switching():
        pass
    assert not (tmp_path / "holds" / "ab.new").exists()


@pytest.mark.parametrize(
    ("reason", "max_s"),
    [("", 1), ("a\nb", 1), ("a" * 201, 1), ("a", 0), ("a", LONGEST_S + 1), ("a", float("nan"))],
)
def test_a_hold_without_reason_or_end_is_our_own_mistake(
    tmp_path: Path, reason: str, max_s: float
) -> None:
    with pytest.raises(ValueError, match=r"reason is|max_s is"):
        Holds(tmp_path).take(reason, max_s=max_s)


def test_a_program_that_forgets_to_end_its_holds_is_refused(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    held = [holds.take("again", max_s=10) for _ in range(MAX_HOLDS)]
    with pytest.raises(HoldError, match="64 holds stand") as caught:
        holds.take("again", max_s=10)
    assert "status" in caught.value.hint
    for one in held:
        one.release()


def test_a_directory_that_is_none_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HoldError, match="no hold in") as caught:
        Holds(tmp_path / "file").take("a", max_s=1)
    assert "user" in caught.value.hint


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda found: json.dumps(found).encode()),
        st.fixed_dictionaries(
            {"reason": st.text(), "holder": st.integers(), "until_s": st.floats() | st.integers()}
        ).map(lambda found: json.dumps(found).encode()),
        st.just(b"[" * 4000),
    )
)
def test_whatever_a_file_says_nobody_holds_longer_than_allowed(data: bytes) -> None:
    found = Holds(Path("none"), lambda: 1000.0)._parsed("x", data)
    assert found is None or 0.0 < found.left_s <= LONGEST_S


def test_the_clock_of_holds_cannot_be_set() -> None:
    first = seconds_since_boot()
    assert 0 < first <= seconds_since_boot()


def test_a_hold_that_ends_while_it_is_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "holds").mkdir()
    (tmp_path / "holds" / "gone.hold").symlink_to("nowhere")
    assert Holds(tmp_path).standing() == ()
