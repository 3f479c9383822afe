"""Each fault that has a name, on a device of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults import delta_scenarios, software_scenarios
from tests.faults.bench import Bench, bench, bench_of, pair
from tests.faults.scenarios import PADDING, SCENARIOS, WEATHER, Scenario, Weather, weather
from tests.faults.software import Labels

pytestmark = pytest.mark.timeout(600)
SAMPLE = {
    "cut every 10 %",
    "corrupt once",
    "clock to 2040 in mid-download",
    "running slot damaged",
    "delta corrupt always",
    "base of a delta damaged in mid-download",
    "agent killed while its handler works",
}


def drawn(table: Any) -> list[Any]:
    """Return a table's rows as parameters; those outside the sample are slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(case, id=name, marks=() if name in SAMPLE else slow)
        for name, case in table.items()
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("faults"), pair(padding=PADDING)) as found:
        yield found


@pytest.fixture
def fair(shared: Bench) -> Iterator[Bench]:
    """The bench as it was made, whatever the last scenario left."""
    now, timeout_s = shared.now, shared.timeout_s
    yield shared
    shared.now, shared.timeout_s = now, timeout_s
    shared.clear_up()


@pytest.mark.parametrize("case", drawn(WEATHER))
def test_a_network_that_cuts_lies_or_stalls_costs_bytes_and_nothing_else(
    fair: Bench, case: Weather
) -> None:
    weather(fair, case)


@pytest.fixture
def deltas(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, delta_scenarios.delta_pair()) as found:
        yield found


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[Labels]:
    with bench_of(Labels, tmp_path, pair()) as found:
        yield found


@pytest.mark.parametrize("scenario", drawn(delta_scenarios.SCENARIOS))
def test_what_may_happen_to_a_delta_or_its_base_costs_bytes_and_nothing_else(
    deltas: Bench, scenario: Scenario
) -> None:
    scenario(deltas)


@pytest.mark.parametrize("scenario", drawn(software_scenarios.SCENARIOS))
def test_what_may_happen_while_a_handler_works_is_survived(
    labels: Labels, scenario: Callable[[Labels], None]
) -> None:
    scenario(labels)


@pytest.mark.parametrize("scenario", drawn(SCENARIOS))
def test_what_may_happen_to_a_device_is_survived(fair: Bench, scenario: Scenario) -> None:
    scenario(fair)
