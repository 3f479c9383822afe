"""What a device makes of a rollout: requirements, admission, ramps, orders back."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_fakes import CLASS, NOON, document, manifest, self_report

from wildflower.ota.device import decision
from wildflower.ota.device.decision import Setback, Shortcoming, Standing
from wildflower.ota.device.machine import (
    Failed,
    Offered,
    Paused,
    Phase,
    Recalled,
    Resumed,
    State,
    Withdrawn,
)
from wildflower.ota.device.report import Outcome
from wildflower.ota.release.manifest import Ceiling
from wildflower.ota.rollout.document import Order

OLD, NEW = manifest(1), manifest(2)
DEVICES = [f"{number:064x}" for number in range(200)]
HERE = Standing("00" * 32, CLASS, running=OLD, has_previous=True, highest_order=1)


def requiring(**changes: Any) -> Any:
    return replace(NEW.requires, **changes)


LACKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "class": (
        {"device_class": "linux-x86_64-vnni"},
        {},
        "device class: found linux-generic, expected linux-x86_64-vnni",
    ),
    "no runtime": ({}, {"runtimes": {}}, "onnxruntime: found none, expected >= 1.20, < 2"),
    "old runtime": (
        {},
        {"runtimes": {"onnxruntime": "1.19.2"}},
        "onnxruntime: found 1.19.2, expected >= 1.20, < 2",
    ),
    "new runtime": (
        {},
        {"runtimes": {"onnxruntime": "2.0"}},
        "onnxruntime: found 2.0, expected >= 1.20, < 2",
    ),
    "operator set": (
        {"opset": 23},
        {},
        "operator set of onnxruntime 1.22.1: found at most 22, expected 23",
    ),
    "agent": ({"agent_min": "0.2"}, {}, "agent: found 0.1.0, expected >= 0.2"),
    "memory": (
        {"ram_bytes": 2001},
        {},
        "memory: found 2000 bytes, expected >= 2001 bytes",
    ),
    "disk": (
        {"disk_bytes": 2001},
        {},
        "free disk: found 2000 bytes, expected >= 2001 bytes",
    ),
}


@pytest.mark.parametrize(("requires", "reported", "told"), LACKS.values(), ids=LACKS)
def test_what_a_device_lacks_is_told_with_found_and_expected(
    requires: dict[str, Any], reported: dict[str, Any], told: str
) -> None:
    release = manifest(2, requires=requiring(**requires))
    failed = decision.qualify(release, HERE, self_report(**reported))
    assert failed == Failed(Outcome.INCOMPATIBLE, told)


def test_everything_that_is_missing_is_told_at_once() -> None:
    found = decision.shortcomings(
        requiring(ram_bytes=9000, disk_bytes=9000), self_report(agent="0"), "other"
    )
    assert [lack.what for lack in found] == ["device class", "agent", "memory", "free disk"]
    assert str(found[1]) == str(Shortcoming("agent", "0", ">= 0.1"))


def test_a_device_that_has_just_enough_qualifies() -> None:
    exact = requiring(
        ram_bytes=2000, disk_bytes=2000, runtime_min="1.22.1", agent_min="0.1.0", opset=22
    )
    assert decision.qualify(manifest(2, requires=exact), HERE, self_report()) is None


@pytest.mark.parametrize(
    ("runtime", "version"), [("onnxruntime", "1.99.0"), ("ai-edge-litert", "1.25")]
)
def test_the_operator_set_of_a_runtime_that_nobody_measured_is_left_to_the_trial(
    runtime: str, version: str
) -> None:
    news = manifest(2, requires=requiring(runtime=runtime, opset=99))
    assert decision.qualify(news, HERE, self_report(runtimes={runtime: version})) is None


def test_a_downgrade_is_refused() -> None:
    failed = decision.qualify(OLD, replace(HERE, highest_order=3), self_report())
    told = "order 1 is below 3, which this device had; it goes back by a signed order alone"
    assert failed == Failed(Outcome.REFUSED, told)


def test_the_highest_order_itself_may_come_back() -> None:
    assert decision.qualify(NEW, replace(HERE, highest_order=2), self_report()) is None


def test_a_release_without_golden_rows_is_refused() -> None:
    bare = manifest(2, files=tuple(e for e in NEW.files if e.role != "golden"))
    failed = decision.qualify(bare, HERE, self_report())
    assert failed == Failed(
        Outcome.REFUSED, "found files for baseline, model, expected model, golden, baseline"
    )


@pytest.mark.parametrize("name", ["manifest.json", "model.bin"])
def test_files_that_would_overwrite_each_other_are_refused(name: str) -> None:
    files = tuple(replace(e, name=name) if e.role == "golden" else e for e in NEW.files)
    failed = decision.qualify(manifest(2, files=files), HERE, self_report())
    assert failed == Failed(Outcome.REFUSED, "two files of one name, or one called manifest.json")


OBSTACLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "paused": ({"order": Order.PAUSE}, {}, "the rollout's order is pause"),
    "going back": ({"order": Order.ROLL_BACK}, {}, "the rollout's order is roll-back"),
    "running": ({}, {"running": NEW}, "it runs already"),
    "quarantined": (
        {},
        {"quarantined": frozenset({NEW.digest})},
        "it failed its trial on this device",
    ),
    "role": (
        {"release_path": "models/approved/light.linux-generic/2.json"},
        {},
        "role 'approved' may not sign for this device",
    ),
    "no path": ({"release_path": "elsewhere"}, {}, "role '' may not sign for this device"),
    "set back": (
        {},
        {"setbacks": {NEW.digest: Setback(1, NOON)}},
        "it is tried again later",
    ),
    "not begun": (
        {"not_before": NOON + timedelta(seconds=1)},
        {},
        "the rollout is not here yet",
    ),
    "not admitted": ({"permille": 0}, {}, "the rollout is not here yet"),
    "none": ({}, {}, ""),
    "set back long ago": (
        {},
        {"setbacks": {NEW.digest: Setback(1, NOON - timedelta(minutes=5))}},
        "",
    ),
    "set back in 2040, by a clock that was put right": (
        {},
        {"setbacks": {NEW.digest: Setback(1, NOON + timedelta(days=5000))}},
        "",
    ),
    "nothing runs": ({}, {"running": None}, ""),
}


@pytest.mark.parametrize(("changes", "where", "told"), OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles_are_named(changes: dict[str, Any], where: dict[str, Any], told: str) -> None:
    standing = replace(HERE, **where)
    assert decision.obstacle(document(NEW, **changes), standing, NOON) == told


def test_the_device_takes_the_lower_of_ceiling_and_document() -> None:
    release = manifest(2, ramp=(Ceiling(NOON, 100), Ceiling(NOON + timedelta(days=1), 500)))
    found = document(release)

    def offered(days: int) -> int:
        now = NOON + timedelta(days=days)
        return sum(
            decision.offer(found, release, replace(HERE, device_id=one), now) is not None
            for one in DEVICES
        )

    assert 0 < offered(0) < offered(1) < len(DEVICES)
    narrow = document(release, permille=50)
    first = decision.offer(narrow, release, replace(HERE, device_id=DEVICES[0]), NOON)
    assert first is None or first == Offered(release, "r2")


def test_nothing_is_offered_before_the_signed_day() -> None:
    release = manifest(2, not_before=NOON + timedelta(days=1))
    assert decision.offer(document(release), release, HERE, NOON) is None


def test_a_window_spreads_the_devices_and_leaves_none_out() -> None:
    found = document(NEW, window_s=1000)

    def reached(seconds: int) -> int:
        now = NOON + timedelta(seconds=seconds)
        return sum(decision.is_open(found, one, now) for one in DEVICES)

    assert reached(0) < 5
    assert 60 < reached(500) < 140
    assert reached(1000) == len(DEVICES)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_widening_never_drops_a_device(low: int, high: int) -> None:
    low, high = sorted((low, high))
    for one in DEVICES[:20]:
        before = decision.is_open(document(NEW, permille=low), one, NOON)
        assert not before or decision.is_open(document(NEW, permille=high), one, NOON)


def test_an_order_back_takes_only_those_who_run_it() -> None:
    back = document(OLD, order=Order.ROLL_BACK)
    assert decision.recall(back, HERE, NOON) == Recalled(OLD, "r1")
    for where in ({"running": NEW}, {"running": None}, {"has_previous": False}):
        assert decision.recall(back, replace(HERE, **where), NOON) is None
    assert decision.recall(document(OLD), HERE, NOON) is None
    assert decision.recall(replace(back, permille=0), HERE, NOON) is None


def test_a_device_without_an_earlier_slot_says_that_it_cannot_go_back() -> None:
    back = document(OLD, order=Order.ROLL_BACK)
    first = replace(HERE, has_previous=False)
    assert decision.cannot_go_back(back, first, NOON)
    assert not decision.cannot_go_back(back, HERE, NOON)
    assert not decision.cannot_go_back(document(OLD), first, NOON)


WAY = State(Phase.FETCHING, NEW, "r2", attempt=1)
HALTED = replace(WAY, phase=Phase.PAUSED)
ON_PROBATION = replace(WAY, phase=Phase.PROBATION, since=NOON)
NEWS: dict[str, tuple[State, Any, Any]] = {
    "goes on": (WAY, document(NEW), None),
    "paused": (WAY, document(NEW, order=Order.PAUSE), Paused()),
    "still paused": (HALTED, document(NEW, order=Order.PAUSE), None),
    "resumed": (HALTED, document(NEW), Resumed()),
    "taken back": (WAY, document(NEW, order=Order.ROLL_BACK), Withdrawn()),
    "superseded": (WAY, document(manifest(3)), Withdrawn()),
    "superseded in a pause": (HALTED, document(manifest(3)), Withdrawn()),
    "gone": (WAY, None, Withdrawn()),
    "narrowed": (WAY, document(NEW, permille=0), Withdrawn()),
    "in its trial": (replace(WAY, phase=Phase.TRIAL), None, None),
    "on probation": (ON_PROBATION, document(NEW), None),
    "paused on probation": (ON_PROBATION, document(NEW, order=Order.PAUSE), None),
    "superseded on probation": (ON_PROBATION, document(manifest(3)), None),
    "gone on probation": (ON_PROBATION, None, None),
    "taken back on probation": (
        ON_PROBATION,
        document(NEW, order=Order.ROLL_BACK),
        Recalled(NEW, "r2"),
    ),
    "taken back on probation, but not here": (
        ON_PROBATION,
        document(NEW, order=Order.ROLL_BACK, permille=0),
        None,
    ),
    "idle": (State(), None, None),
}


@pytest.mark.parametrize(("state", "found", "event"), NEWS.values(), ids=NEWS)
def test_a_fresh_document_stops_what_is_not_decided(state: State, found: Any, event: Any) -> None:
    assert decision.reconsider(state, found, HERE.device_id, NOON) == event


def test_setbacks_wait_twice_as_long_each_time_up_to_a_day() -> None:
    waits = [Setback(count, NOON).retry_at() - NOON for count in range(1, 12)]
    assert waits[:3] == [timedelta(minutes=5), timedelta(minutes=10), timedelta(minutes=20)]
    assert waits[-1] == Setback(10**6, NOON).retry_at() - NOON == timedelta(days=1)


NUMBERS = st.lists(st.integers(0, 50), min_size=1, max_size=4)


@settings(max_examples=100)
@given(NUMBERS, NUMBERS)
def test_versions_compare_as_their_numbers_do(one: list[int], other: list[int]) -> None:
    def text(numbers: list[int]) -> str:
        return ".".join(map(str, numbers))

    def padded(numbers: list[int]) -> list[int]:
        return numbers + [0] * (4 - len(numbers))

    key: Callable[[str], tuple[int, ...]] = decision.version_key
    assert (key(text(one)) < key(text(other))) == (padded(one) < padded(other))


def test_a_version_that_is_none_is_below_all() -> None:
    assert decision.version_key("unknown") == () < decision.version_key("0.0.1")


@pytest.mark.parametrize(
    "path",
    [
        "software/labels.json",
        "targets/auto/light.linux-generic/3.json",
        "models/timestamp/light.linux-generic/3.json",
        "models/auto/../../software/labels.json",
        "models/auto/../3.json",
        "models/auto/%2e%2e/3.json",
        "models/auto/light\\linux/3.json",
        "models/auto/li\0ght/3.json",
        "models/auto/l\u0131ght.linux-generic/3.json",
        f"models/auto/{'x' * 200}/3.json",
        "/models/auto/3.json",
        "models/auto/other.linux-generic/3.json",
        "auto/light.linux-generic/3.json",
        "models/auto/light.linux-generic/",
        "models/auto",
        "",
    ],
)
def test_a_document_that_names_no_release_of_its_group_is_forged(path: str) -> None:
    told = decision.forgery(document(NEW, release_path=path))
    assert told == (
        f"rollout r{NEW.order} names {path[:200]!r}, expected a release of {NEW.target_group}"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"window_s": 2**53 - 1},
        {"not_before": datetime.max.replace(tzinfo=UTC), "window_s": 1000},
        {"not_before": datetime.min.replace(tzinfo=UTC), "window_s": 2**53 - 1},
    ],
)
def test_a_time_that_no_calendar_has_is_far_away(changes: dict[str, Any]) -> None:
    assert not decision.is_open(document(NEW, **changes), "ab" * 32, NOON)


@pytest.mark.parametrize("role", ["auto", "approved"])
def test_a_document_that_names_a_release_is_not(role: str) -> None:
    path = f"models/{role}/light.linux-generic/3.json"
    assert decision.forgery(document(NEW, release_path=path)) == ""


def test_a_document_beyond_the_signed_ramp_is_told_unless_clocks_may_differ() -> None:
    steps = (Ceiling(NOON, 50), Ceiling(NOON + timedelta(days=2), 1000))
    release = replace(NEW, ramp=steps)
    told = decision.overreach(document(release), release, NOON)
    assert told.endswith(
        f"1000 of 1000 devices to install release {NEW.order}; signed are 50 of 1000"
    )
    assert decision.overreach(document(release), release, NOON + timedelta(days=1)) == ""
    assert decision.overreach(document(release, permille=50), release, NOON) == ""
    assert decision.overreach(document(release, order=Order.PAUSE), release, NOON) == ""


def test_a_version_of_any_length_is_compared() -> None:
    assert decision.version_key("9" * 5000) > decision.version_key("1.20")
