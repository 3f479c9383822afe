import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import (
    MAX_DELTAS,
    Ceiling,
    Delta,
    FileEntry,
    Lineage,
    Release,
    Requirement,
    TrialBudget,
    target_path,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RELEASE = Release(
    model_name="digits",
    target_group="digits.linux-generic",
    order=3,
    files=(
        FileEntry("model", "model.ort", "ab" * 32, 123_600),
        FileEntry("golden", "golden.npz", "cd" * 32, 51_000),
        FileEntry("baseline", "baseline.json", "ef" * 32, 9_000),
    ),
    requires=Requirement(
        device_class="linux-generic",
        runtime="onnxruntime",
        runtime_min="1.20",
        runtime_below="2",
        opset=17,
        agent_min="0.1",
        ram_bytes=80_000_000,
        disk_bytes=400_000,
    ),
    trial=TrialBudget(tolerance=0.001, min_agreement=0.9, latency_ms=50.0, rss_bytes=200_000_000),
    lineage=Lineage("12" * 32, "0a71f47a", 3, "34" * 32),
    not_before=NOW,
    ramp=(Ceiling(NOW, 100), Ceiling(NOW + timedelta(hours=1), 1000)),
)
GOLDEN = Path(__file__).parents[1] / "goldens" / "release-manifest.json"


def changed(path: tuple[str | int, ...], value: Any) -> bytes:
    """Return the manifest's bytes with one value changed."""
    document = json.loads(RELEASE.to_bytes())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return canonical.to_bytes(document)


def test_a_manifest_comes_back_as_it_was() -> None:
    assert Release.from_bytes(RELEASE.to_bytes()) == RELEASE


def test_its_bytes_stay_what_devices_have_verified(update_goldens: bool) -> None:
    if update_goldens:
        GOLDEN.write_bytes(RELEASE.to_bytes())
    assert RELEASE.to_bytes() == GOLDEN.read_bytes()
    assert RELEASE.digest == canonical.digest(GOLDEN.read_bytes())


def test_a_probation_is_signed_and_none_is_not_mentioned() -> None:
    watched = replace(RELEASE, trial=replace(RELEASE.trial, probation_s=60))
    assert Release.from_bytes(watched.to_bytes()) == watched
    assert b"probation" in watched.to_bytes()
    assert b"probation" not in RELEASE.to_bytes()


def test_files_are_found_by_what_they_are_for() -> None:
    assert RELEASE.artifact.name == "model.ort"
    assert RELEASE.file("golden").digest == "cd" * 32
    with pytest.raises(FormatError, match="has no baseline"):
        replace(RELEASE, files=RELEASE.files[:2]).file("baseline")


OUT_OF_RANGE: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "order": (("order",), 0),
    "a path for a name": (("files", 0, "name"), "../model.ort"),
    "an empty name": (("files", 0, "name"), ""),
    "a group that is a path": (("target_group",), "a/b"),
    "a digest that is none": (("files", 0, "digest"), "xyz"),
    "an empty file": (("files", 0, "length"), 0),
    "a file that is too long": (("files", 0, "length"), 2**31 + 1),
    "an unknown role": (("files", 1, "role"), "script"),
    "a role twice": (("files", 1, "role"), "model"),
    "no model": (("files", 0, "role"), "golden"),
    "a ramp beyond all": (("ramp", 0, "permille"), 1001),
    "a ramp below nothing": (("ramp", 0, "permille"), -1),
    "files that are no list": (("files",), 3),
    "a file with too much": (("files", 0, "mode"), 0o755),
    "a time that is none": (("not_before",), "soon"),
    "an order that is none": (("order",), "third"),
    "a lineage that lacks": (("lineage",), {}),
    "a name that is none": (("files", 0, "name"), None),
    "a digest that is a number": (("files", 0, "digest"), 12),
    "a length that is a text": (("files", 0, "length"), "9"),
    "a length that is a truth": (("files", 0, "length"), True),
    "a length with a fraction": (("files", 0, "length"), 9.5),
    "a role that is a list": (("files", 0, "role"), []),
    "a model that is none": (("lineage", "model"), None),
    "a gate report that is an object": (("lineage", "gate_report"), {}),
    "a version that is a number": (("requires", "runtime_min"), 1.2),
    "memory that is a text": (("requires", "ram_bytes"), "2000"),
    "a tolerance that is a text": (("trial", "tolerance"), "0.1"),
    "a budget that is none": (("trial",), None),
    "a probation of years": (("trial", "probation_s"), 30 * 86_400 + 1),
    "a probation that is over": (("trial", "probation_s"), -1),
    "a probation that is written though there is none": (("trial", "probation_s"), 0),
    "a probation that is a text": (("trial", "probation_s"), "60"),
    "something that this version does not know": (("something",), 1),
}


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_value_out_of_range_is_no_manifest(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(FormatError):
        Release.from_bytes(changed(path, value))


@pytest.mark.parametrize("key", sorted(json.loads(RELEASE.to_bytes())))
def test_a_manifest_that_lacks_a_key_is_none(key: str) -> None:
    document = json.loads(RELEASE.to_bytes())
    del document[key]
    with pytest.raises(FormatError):
        Release.from_bytes(canonical.to_bytes(document))


@given(st.binary(max_size=100), st.integers(0, 2000))
def test_damaged_bytes_never_give_the_same_manifest(noise: bytes, at: int) -> None:
    whole = RELEASE.to_bytes()
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        found = Release.from_bytes(damaged)
    except FormatError:
        return
    assert (found == RELEASE) is (damaged == whole)


def test_a_ramp_lifts_the_ceiling_step_by_step() -> None:
    second = timedelta(seconds=1)
    assert RELEASE.ceiling(NOW - second) == 0
    assert RELEASE.ceiling(NOW) == 100
    assert RELEASE.ceiling(NOW + timedelta(hours=1) - second) == 100
    assert RELEASE.ceiling(NOW + timedelta(hours=1)) == 1000


def test_without_a_ramp_only_the_first_moment_counts() -> None:
    free = replace(RELEASE, ramp=())
    assert free.ceiling(NOW) == 1000
    assert free.ceiling(NOW - timedelta(seconds=1)) == 0


def test_a_ramp_that_has_not_begun_lets_nobody() -> None:
    later = replace(RELEASE, ramp=(Ceiling(NOW + timedelta(days=1), 500),))
    assert later.ceiling(NOW) == 0


def test_a_manifest_lies_where_its_role_may_sign() -> None:
    assert target_path("approved", "d.c", 12) == "models/approved/d.c/12.json"


def deltas(count: int) -> tuple[Delta, ...]:
    return tuple(Delta(f"{n:064x}", f"{n + 100:064x}", 80_000) for n in range(count))


SHORTER = replace(RELEASE, deltas=deltas(MAX_DELTAS))


def test_a_manifest_with_deltas_comes_back_as_it_was() -> None:
    assert Release.from_bytes(SHORTER.to_bytes()) == SHORTER


def test_a_manifest_without_deltas_does_not_speak_of_them() -> None:
    assert b"deltas" not in RELEASE.to_bytes()
    with pytest.raises(FormatError, match="does not know"):
        Release.from_bytes(changed(("deltas",), []))


def test_a_delta_may_have_seven_tenths_of_the_file_and_no_byte_more() -> None:
    most = int(0.7 * RELEASE.artifact.length)
    replace(RELEASE, deltas=(replace(deltas(1)[0], length=most),)).check()
    with pytest.raises(FormatError, match=f"a delta of {most + 1} bytes to a file of 123600"):
        replace(RELEASE, deltas=(replace(deltas(1)[0], length=most + 1),)).check()


ONE = {"base": "00" * 32, "digest": "11" * 32, "length": 9}
NO_DELTAS: dict[str, Any] = {
    "no list": 3,
    "a text": "deltas",
    "more than five": [ONE | {"base": f"{n:064x}"} for n in range(6)],
    "a base twice": [ONE, ONE | {"digest": "22" * 32}],
    "from the file itself": [ONE | {"base": RELEASE.artifact.digest}],
    "a base that is none": [ONE | {"base": "../slot"}],
    "a digest that is none": [ONE | {"digest": ""}],
    "an empty delta": [ONE | {"length": 0}],
    "a length that is a text": [ONE | {"length": "9"}],
    "a length that is a truth": [ONE | {"length": True}],
    "a delta that lacks": [{"base": "00" * 32}],
    "a delta with too much": [ONE | {"codec": "lzma"}],
}


@pytest.mark.parametrize("value", NO_DELTAS.values(), ids=NO_DELTAS)
def test_deltas_out_of_bounds_are_no_manifest(value: Any) -> None:
    with pytest.raises(FormatError):
        Release.from_bytes(changed(("deltas",), value))
