from dataclasses import replace

import pytest
from tests.record_fakes import AVX2, NOW, artifact, device, digest_of, model, release, report

from wildflower.server.errors import ConflictError, NotFoundError
from wildflower.server.memory import MemoryStore
from wildflower.server.records import Device, Round, Training
from wildflower.server.trace import Chain, trace

ARTIFACT, MODEL, RELEASE = digest_of("artifact"), digest_of("model"), digest_of("release")
GATES = digest_of("gates of artifact")
TRAINING = "training-1"


def ran(name: str) -> Device:
    return device(name, running=ARTIFACT)


@pytest.fixture
def store() -> MemoryStore:
    """A loop that has gone round once: two devices committed what a round of three made."""
    made = MemoryStore()
    cohort = ("a", "b", "c")
    round_ = Round(
        *(f"{TRAINING}/1", TRAINING, 1, "recorded", "", cohort, cohort, MODEL),
        *({"dp_epsilon": 2.5}, b"", NOW),
    )
    settings = {"protection": "secagg", "dp": "central"}
    training = Training(TRAINING, "task:digits", 1, True, settings, "finished", "", 1, NOW, NOW)
    made.put(training, round_, model(), artifact("artifact"), release("release", order=4))
    for name in ("camera", "door"):
        one = ran(name)
        made.put(one, report(one, "committed", release=RELEASE, running=ARTIFACT, rollout="r"))
    made.put(device("bare"))
    return made


def chain(name: str = "camera") -> Chain:
    """Return the whole chain of a device."""
    return Chain(
        device=digest_of(name),
        device_name=name,
        artifact=ARTIFACT,
        device_class=AVX2,
        release=RELEASE,
        order=4,
        gate_report=GATES,
        passed=True,
        model=MODEL,
        training=TRAINING,
        round_number=1,
        survivors=3,
        secure=True,
        method="secagg+central+fedavg",
        epsilon=2.5,
    )


@pytest.mark.parametrize("asked", ["camera", digest_of("camera"), digest_of("camera")[:6]])
def test_a_device_leads_to_the_round_that_made_what_it_runs(store: MemoryStore, asked: str) -> None:
    found = trace(store, asked)
    assert (found.kind, found.subject) == ("device", digest_of("camera"))
    assert found.chains == [chain()]


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (ARTIFACT, "artifact"),
        (GATES, "gate report"),
        (RELEASE, "release"),
        (MODEL, "model"),
        (f"{TRAINING}/1", "round"),
        (TRAINING, "training"),
        (MODEL[:6], "model"),
    ],
)
def test_every_link_leads_to_every_device_that_runs_it(
    store: MemoryStore, asked: str, kind: str
) -> None:
    found = trace(store, asked)
    assert found.kind == kind
    assert found.chains == [chain("camera"), chain("door")]


def test_a_device_that_runs_nothing_has_an_empty_chain(store: MemoryStore) -> None:
    [found] = trace(store, "bare").chains
    assert found == Chain(device=digest_of("bare"), device_name="bare", device_class=AVX2)


def test_what_nothing_runs_yet_has_a_chain_without_a_device(store: MemoryStore) -> None:
    for name in ("camera", "door"):
        store.change(Device, digest_of(name), running="")
    ends = replace(chain(), device="", device_name="")
    for asked in (ARTIFACT, RELEASE, MODEL, TRAINING):
        assert trace(store, asked).chains == [ends]


def test_a_model_that_was_not_built_ends_at_its_round(store: MemoryStore) -> None:
    store.put(model("fresh"))
    [found] = trace(store, digest_of("fresh")).chains
    assert (found.model, found.round_number, found.artifact) == (digest_of("fresh"), 1, "")


def test_a_round_that_made_no_model_has_no_chain(store: MemoryStore) -> None:
    store.put(Round("other/1", "other", 1, "aborted", "why", (), (), "", {}, b"", NOW))
    assert trace(store, "other/1").chains == []


def test_a_release_that_was_signed_elsewhere_is_followed_as_far_as_it_is_known(
    store: MemoryStore,
) -> None:
    foreign = release("foreign", artifact=digest_of("theirs"), model=digest_of("their model"))
    store.put(foreign)
    [found] = trace(store, foreign.digest).chains
    assert (found.artifact, found.model) == (digest_of("theirs"), digest_of("their model"))
    assert (found.training, found.gate_report, found.passed) == ("", "", False)


def test_the_release_is_the_one_the_device_signed_and_not_one_of_the_same_file(
    store: MemoryStore,
) -> None:
    again = release("again", order=5)
    store.put(again)
    assert trace(store, "camera").chains == [chain()]
    camera = ran("camera")
    store.put(report(camera, "committed", 12, release=again.digest, running=ARTIFACT))
    store.put(report(camera, "committed", 11, release=RELEASE, running=ARTIFACT))
    assert trace(store, "camera").chains[0].order == 5
    assert [one.device_name for one in trace(store, RELEASE).chains] == ["door"]


def test_a_rolled_back_release_is_not_what_runs(store: MemoryStore) -> None:
    camera = ran("camera")
    store.put(report(camera, "rolled-back", 2, release=digest_of("bad"), running=ARTIFACT))
    assert trace(store, "camera").chains == [chain()]


def test_a_report_on_another_file_says_nothing_of_what_runs(store: MemoryStore) -> None:
    store.change(Device, digest_of("camera"), running=digest_of("side-loaded"))
    [found] = trace(store, "camera").chains
    assert (found.artifact, found.release, found.model) == (digest_of("side-loaded"), "", "")


@pytest.mark.parametrize("asked", ["", "nothing", digest_of("camera")[:5], digest_of("x")])
def test_what_is_not_known_is_not_found(store: MemoryStore, asked: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        trace(store, asked)
    assert "6 characters" in caught.value.hint


def test_a_beginning_that_several_share_is_a_conflict_that_names_them(store: MemoryStore) -> None:
    store.put(replace(model("x"), digest="abcdef1"), artifact("y", digest="abcdef2"))
    with pytest.raises(ConflictError, match="model abcdef1") as caught:
        trace(store, "abcdef")
    assert "artifact abcdef2" in str(caught.value)


def test_two_devices_of_one_name_are_a_conflict(store: MemoryStore) -> None:
    store.put(replace(device("twin"), name="camera"))
    with pytest.raises(ConflictError, match="camera"):
        trace(store, "camera")


def test_a_whole_name_outweighs_the_beginning_of_another(store: MemoryStore) -> None:
    store.put(replace(device("second"), name="camera-2"))
    assert trace(store, "camera").subject == digest_of("camera")
