"""The model slot: one model per answer, only what was signed, and every answer counted."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.slots_fakes import LABELS, NOON, WIDTH, commit, flip, install, reference, scaling_model

from wildflower.client.hold import Holds
from wildflower.client.inference import ModelSlot, Session
from wildflower.client.installed import choose
from wildflower.client.spool import Spool
from wildflower.ota.device.runtime import LoadedModel, OrtRuntime
from wildflower.ota.errors import ModelError, RefusedError
from wildflower.ota.observe.summary import Summary

BRIGHT = np.ones((1, WIDTH), np.float32)
ROWS = np.stack([np.full(WIDTH, 1, np.float32), np.full(WIDTH, -1, np.float32)])


def spooled(root: Path) -> list[Summary]:
    return [Summary.from_bytes(data) for _, data in Spool(root / "spool").pending(10_000)]


def test_the_committed_model_answers(tmp_path: Path) -> None:
    slot = commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        answer = model.infer(ROWS)
    assert answer.predicted.tolist() == [1, 0]
    assert answer.outputs.tolist() == [[-4, 4], [4, -4]]
    assert answer.confidence == pytest.approx([1 / (1 + np.exp(-8))] * 2)
    assert (answer.labels, answer.release) == (LABELS, slot.name)


def test_an_update_is_followed_between_two_inferences(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        before = model.infer(BRIGHT)
        commit(tmp_path, scaling_model(3), order=2)
        after = model.infer(BRIGHT)
    assert (before.outputs[0, 1], after.outputs[0, 1]) == (4, 12)
    assert before.artifact != after.artifact


def test_a_session_keeps_its_model_until_it_ends(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        with model.session() as session:
            first = session.infer(BRIGHT)
            commit(tmp_path, scaling_model(3), order=2)
            second = session.infer(BRIGHT)
        assert first.artifact == second.artifact != model.infer(BRIGHT).artifact


def test_swaps_under_load_drop_no_answer_and_mix_none(tmp_path: Path) -> None:
    models = {scale: scaling_model(scale) for scale in (1, 3)}
    slots = [install(tmp_path, models[scale], order=scale) for scale in (1, 3)]
    flip(slots[0])
    answers: list[tuple[str, float]] = []
    slot = ModelSlot(tmp_path)

    def ask() -> None:
        for _ in range(200):
            answer = slot.infer(BRIGHT)
            answers.append((answer.release, float(answer.outputs[0, 1])))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    turn = 0
    while any(thread.is_alive() for thread in threads):
        flip(slots[turn := 1 - turn])
    for thread in threads:
        thread.join()
    slot.close()
    assert len(answers) == 600
    assert {*answers} <= {(slots[0].name, 4.0), (slots[1].name, 12.0)}
    assert sum(summary.n for summary in spooled(tmp_path)) == 600


@pytest.mark.parametrize("victim", ["model.onnx", "baseline.json", "manifest.json"])
def test_a_file_that_is_not_what_was_signed_is_refused(tmp_path: Path, victim: str) -> None:
    file = commit(tmp_path, scaling_model(1)) / victim
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RefusedError, match="signed was") as caught, ModelSlot(tmp_path) as model:
        model.infer(BRIGHT)
    assert victim.split(".", maxsplit=1)[0] in str(caught.value)
    assert spooled(tmp_path) == []


def test_a_damaged_release_leaves_the_previous_one_answering(tmp_path: Path) -> None:
    good = commit(tmp_path, scaling_model(1))
    bad = commit(tmp_path, scaling_model(3), order=2)
    (bad / "model.onnx").write_bytes(b"damaged")
    with ModelSlot(tmp_path) as model:
        assert model.infer(BRIGHT).release == good.name
        assert "model.onnx has digest" in model.refusal
        flip(good)
        assert model.infer(BRIGHT).release == good.name
        assert model.refusal == ""


def test_a_release_repaired_under_the_same_name_is_taken_up(tmp_path: Path) -> None:
    good = commit(tmp_path, scaling_model(1))
    bad = commit(tmp_path, scaling_model(3), order=2)
    (bad / "model.onnx").write_bytes(b"damaged")
    with ModelSlot(tmp_path) as model:
        assert model.infer(BRIGHT).release == good.name
        install(tmp_path, scaling_model(3), order=2)
        flip(bad)
        assert model.infer(BRIGHT).release == bad.name


def test_what_is_in_memory_answers_when_no_slot_can(tmp_path: Path) -> None:
    good = commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        model.infer(BRIGHT)
        flip(tmp_path / "slots" / ("00" * 32))
        assert model.infer(BRIGHT).release == good.name
        assert "slots/previous" in model.refusal
        (tmp_path / "slots" / "current").unlink()
        assert model.infer(BRIGHT).release == good.name


def test_a_device_without_a_release_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="slots/current") as caught:
        ModelSlot(tmp_path).infer(BRIGHT)
    assert "agent" in caught.value.hint


def test_every_answer_is_counted(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        answer = model.infer(ROWS, [1, 1])
        model.infer(ROWS, np.array([0, -1]))
        model.infer(ROWS)
    (summary,) = spooled(tmp_path)
    assert (summary.artifact, summary.baseline) == (answer.artifact, reference().digest)
    assert (summary.n, summary.errors, summary.labelled, summary.correct) == (6, 0, 3, 1)
    assert summary.classes.tolist() == [3, 3]


def test_a_failed_inference_is_counted_as_such(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        model.infer(BRIGHT)
        with pytest.raises(ModelError, match="cannot answer"):
            model.infer(np.ones((2, WIDTH + 1), np.float32))
        with pytest.raises(ModelError, match="not finite"):
            model.infer(np.full((1, WIDTH), np.nan, np.float32))
    (summary,) = spooled(tmp_path)
    assert (summary.n, summary.errors) == (1, 3)


def test_a_model_of_another_number_of_classes_is_an_error(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1, classes=3))
    with ModelSlot(tmp_path) as model, pytest.raises(ModelError, match="expected outputs"):
        model.infer(BRIGHT)


def test_labels_must_be_as_many_as_inputs(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model, pytest.raises(ValueError, match="1 labels for 2 inputs"):
        model.infer(ROWS, [1])


def test_a_summary_is_cut_when_its_window_is_over(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    now = [NOON]
    with ModelSlot(tmp_path, window_s=60, clock=lambda: now[0]) as model:
        model.infer(BRIGHT)
        assert spooled(tmp_path) == []
        now[0] += timedelta(seconds=61)
        model.infer(BRIGHT)
        (summary,) = spooled(tmp_path)
    assert (summary.start, summary.end, summary.n) == (NOON, NOON + timedelta(seconds=61), 2)


def test_a_summary_speaks_of_one_artifact(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        model.infer(ROWS)
        commit(tmp_path, scaling_model(3), order=2)
        model.infer(BRIGHT)
    first, second = spooled(tmp_path)
    assert (first.n, second.n) == (2, 1)
    assert first.artifact != second.artifact


def test_nothing_inferred_is_nothing_to_tell(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        assert model.cut() is None
        model.infer(BRIGHT)
        assert model.cut() == 1
        assert model.cut() is None


def test_dropped_summaries_are_owned_up_to(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as model:
        (tmp_path / "spool" / "dropped").write_text("4")
        model.infer(BRIGHT)
    assert [summary.dropped for summary in spooled(tmp_path)] == [4]


def test_windows_are_labelled_in_utc(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    before = datetime.now(UTC)
    with ModelSlot(tmp_path) as model:
        model.infer(BRIGHT)
    (summary,) = spooled(tmp_path)
    assert summary.start is not None
    assert summary.end is not None
    assert before <= summary.start <= summary.end <= datetime.now(UTC)


class SlowRuntime(OrtRuntime):
    """Loads a second model only when it is allowed to."""

    def __init__(self) -> None:
        self.loads = 0
        self.may_load = threading.Event()

    def load(self, model: bytes) -> LoadedModel:
        self.loads += 1
        if self.loads > 1:
            assert self.may_load.wait(10)
        return super().load(model)


def swapped(slot: ModelSlot, session: Session) -> float:
    """Infer until what was loaded beside is in place; return what it answers."""
    assert slot._loading is not None
    slot._loading.join(10)
    return float(session.infer(BRIGHT).outputs[0, 1])


def test_a_session_answers_from_the_old_model_while_the_new_one_is_loaded(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    runtime = SlowRuntime()
    with ModelSlot(tmp_path, runtime=runtime) as slot:
        session = slot.session()
        assert runtime.loads == 1  # ready before the first question
        session.infer(BRIGHT)
        commit(tmp_path, scaling_model(3), order=2)
        assert [session.infer(BRIGHT).outputs[0, 1] for _ in range(3)] == [4, 4, 4]
        runtime.may_load.set()
        assert swapped(slot, session) == 12
        assert session.infer(BRIGHT).outputs[0, 1] == 12
        assert runtime.loads == 2
    assert [summary.n for summary in spooled(tmp_path)] == [4, 2]


def test_a_release_that_is_overtaken_while_it_is_loaded_is_not_the_last(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    runtime = SlowRuntime()
    with ModelSlot(tmp_path, runtime=runtime) as slot:
        session = slot.session()
        commit(tmp_path, scaling_model(3), order=2)
        session.infer(BRIGHT)
        commit(tmp_path, scaling_model(5), order=3)
        runtime.may_load.set()
        first = swapped(slot, session)
        session.infer(BRIGHT)
        assert (first in (12, 20), swapped(slot, session) if first == 12 else first) == (True, 20)


def test_a_session_goes_on_when_what_comes_is_not_what_was_signed(tmp_path: Path) -> None:
    good = commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as slot:
        session = slot.session()
        flip(tmp_path / "slots" / ("00" * 32))
        flip(tmp_path / "slots" / ("00" * 32), "previous")
        assert session.infer(BRIGHT).release == good.name
        assert swapped(slot, session) == 4
        assert "slots/previous" in slot.refusal
        assert session.infer(BRIGHT).release == good.name
        assert slot._loading is None  # it is not tried again until the link moves


def test_a_session_cuts_its_summaries_in_order(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    now = [NOON]
    with ModelSlot(tmp_path, window_s=60, clock=lambda: now[0]) as slot:
        session = slot.session()
        for _ in range(4):
            now[0] += timedelta(seconds=61)
            session.infer(BRIGHT)
        with session:
            now[0] += timedelta(seconds=61)
            session.infer(BRIGHT)
    starts = [summary.start for summary in spooled(tmp_path)]
    assert len(starts) == 5
    assert starts == sorted(starts, key=str)


def test_what_is_asked_inside_a_kept_session_is_the_kept_model_s(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1))
    with ModelSlot(tmp_path) as slot:
        with slot.session() as kept:
            commit(tmp_path, scaling_model(3), order=2)
            inside = [slot.infer(BRIGHT), slot.session().infer(BRIGHT), kept.infer(BRIGHT)]
        assert {float(one.outputs[0, 1]) for one in inside} == {4}
        assert slot.infer(BRIGHT).outputs[0, 1] == 12
    assert [summary.n for summary in spooled(tmp_path)] == [3, 1]


def test_a_session_of_nothing_is_refused_at_once(tmp_path: Path) -> None:
    slot = ModelSlot(tmp_path)
    with pytest.raises(RefusedError, match="slots/current"):
        slot.session()
    with pytest.raises(RefusedError), Session(slot):
        pass
    assert slot._turn.acquire(blocking=False)


def test_a_hold_of_a_slot_is_seen_by_the_device(tmp_path: Path) -> None:
    with ModelSlot(tmp_path) as slot, slot.hold("measuring", max_s=60) as held:
        (found,) = Holds(tmp_path).standing()
        assert (found.reason, held.left_s > 50) == ("measuring", True)
    assert Holds(tmp_path).standing() == ()


def test_a_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "lamp", scaling_model(1))
    monkeypatch.setenv("WILDFLOWER_ROOT", str(tmp_path))
    with ModelSlot("lamp") as slot:  # a directory below the root
        assert slot.infer(BRIGHT).outputs[0, 1] == 4
    monkeypatch.setenv("WILDFLOWER_ROOT", str(tmp_path / "lamp"))
    with ModelSlot("light") as slot:  # what the root itself runs
        assert slot.infer(BRIGHT).outputs[0, 1] == 4
    with pytest.raises(RefusedError, match="runs a model 'vision'; found light") as caught:
        ModelSlot("vision")
    assert "WILDFLOWER_ROOT" in caught.value.hint
    monkeypatch.setenv("WILDFLOWER_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(RefusedError, match="found none"):
        ModelSlot("vision")


@pytest.mark.parametrize("name", ["", "../etc", "/var/lib", "a/b", ".hidden", "a" * 101])
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="as a Path"):
        ModelSlot(name)


def test_a_session_that_cannot_store_a_summary_goes_on_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    commit(tmp_path, scaling_model(1))
    now = [NOON]
    with ModelSlot(tmp_path, window_s=60, clock=lambda: now[0]) as slot:
        session = slot.session()
        monkeypatch.setattr("wildflower.client.spool.Spool.append", full)
        now[0] += timedelta(seconds=61)
        session.infer(BRIGHT)
        slot._await_writing()
        assert session.infer(BRIGHT).outputs[0, 1] == 4
        monkeypatch.undo()
    assert "a summary is lost" in caplog.text
    assert [summary.n for summary in spooled(tmp_path)] == [1]


def test_loading_lets_others_have_their_turn_and_is_the_same_release(tmp_path: Path) -> None:
    slot = commit(tmp_path, scaling_model(1.0))
    turns: list[int] = []
    found = choose(tmp_path / "slots", OrtRuntime(), lambda: turns.append(1))
    assert found.installed is not None
    assert (found.installed.release, found.installed.recorder.recorded) == (slot.name, 0)
    assert len(turns) >= 4


def test_counting_begins_anew_after_a_cut(tmp_path: Path) -> None:
    commit(tmp_path, scaling_model(1.0))
    with ModelSlot(tmp_path) as slot:
        for rows in (ROWS, BRIGHT):
            slot.infer(rows)
            slot.cut()
    assert [one.n for one in spooled(tmp_path)] == [2, 1]
