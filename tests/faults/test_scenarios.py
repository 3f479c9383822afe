"""Each fault that has a name, on a device of its own."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.faults.bench import Bench, bench, pair
from tests.faults.scenarios import PADDING, SCENARIOS, WEATHER, Scenario, Weather, weather

pytestmark = pytest.mark.timeout(600)
SAMPLE = {"cut every 10 %", "corrupt once", "clock to 2040 in mid-download", "running slot damaged"}


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


@pytest.mark.parametrize("scenario", drawn(SCENARIOS))
def test_what_may_happen_to_a_device_is_survived(fair: Bench, scenario: Scenario) -> None:
    scenario(fair)
