"""python-tuf's client beside ours: both work, and the judges see what is wrong."""

from collections.abc import Iterator, Mapping

import pytest
from benchmarks._tuf_peer import OURS, PLAIN, RENAMED, Crashes, Side, fate_of, side_by_side
from tests.faults.crashes import Matrix
from tests.faults.scenarios import Weather
from tests.faults.strace import is_here

PADDING = 100_000
needs_strace = pytest.mark.skipif(not is_here(), reason="strace is not here: apt install strace")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Side]]:
    with side_by_side(tmp_path_factory.mktemp("peer"), PADDING) as found:
        yield found


@pytest.mark.parametrize("name", [PLAIN, RENAMED, OURS])
def test_an_update_arrives_in_fair_weather_after_the_root_was_rotated(
    sides: Mapping[str, Side], name: str
) -> None:
    side = sides[name]
    device = side.bench.copy()
    assert not side.has_arrived(device)
    assert side.bench.run(device).failures == ()
    assert side.has_arrived(device)
    assert side.end.losses(device) == []
    assert side.bench.complaints(device) == []
    assert len(list(device.rglob("2.root.json"))) == 1


def test_only_ours_goes_on_where_it_was_cut_off(sides: Mapping[str, Side]) -> None:
    case = Weather({"cut": PADDING // 2})
    found = {name: fate_of(sides[name], case) for name in (PLAIN, OURS)}
    assert found[OURS].arrived
    assert found[OURS].ratio < 1.05
    assert not found[PLAIN].arrived
    assert found[PLAIN].recovered
    assert found[PLAIN].ratio > 3
    assert str(found[PLAIN]) == f"does not arrive {found[PLAIN].ratio:.2f}"


def test_nobody_installs_what_is_corrupt(sides: Mapping[str, Side]) -> None:
    for name in (PLAIN, OURS):
        found = fate_of(sides[name], Weather({"corrupt": -1}))
        assert (found.arrived, found.torn, found.recovered) == (False, False, True)


def test_the_judge_sees_a_file_that_is_torn_or_gone(sides: Mapping[str, Side]) -> None:
    side = sides[PLAIN]
    device = side.bench.copy()
    model = device / "files" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    (device / "files" / "golden.npz").unlink()
    assert side.bench.complaints(device) == ["model.onnx is torn", "golden.npz is gone"]


@needs_strace
def test_crashes_of_its_client_are_counted_and_recovered_from(sides: Mapping[str, Side]) -> None:
    side = sides[PLAIN]
    matrix = Matrix(side.bench, [side.end], side.bench.base, every=5)
    counted = Crashes.of(matrix.kills())
    assert counted.points > 3
    assert counted.lost == 0
    both = counted + Crashes(2, 1, 1)
    assert str(both) == f"{counted.torn + 1} torn, 1 lost of {counted.points + 2}"


def test_crashes_that_never_came_are_no_success() -> None:
    with pytest.raises(RuntimeError, match="nothing was ever hit"):
        Crashes.of([])
