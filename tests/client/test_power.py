"""What a machine says of its battery and network, and that downloads heed it."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client_fakes import LONG_AGO, FakeServer
from tests.delta_fakes import delta_of, digest_of, model_of, offer_deltas, with_deltas
from tests.device_fakes import bundle
from tests.update_fakes import Kit, blobs_asked, offer

from wildflower.client.policy import Policy
from wildflower.client.power import FRESH_S, METERED_FILE, SUPPLIES, Senses, Timing
from wildflower.ota.device.conditions import Conditions, Metered, Rules, Window
from wildflower.ota.device.machine import Phase
from wildflower.ota.device.slots import Slots

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def machine(
    root: Path, metered: str = "", supplies: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Path:
    for name, values in supplies.items():
        folder = root / SUPPLIES / name
        folder.mkdir(parents=True)
        for key, value in values.items():
            (folder / key).write_text(f"{value}\n")
    if metered:
        (root / METERED_FILE).parent.mkdir(parents=True)
        (root / METERED_FILE).write_text(metered)
    return root


def battery(capacity: str, status: str = "Discharging", **more: str) -> dict[str, str]:
    return {"type": "Battery", "capacity": capacity, "status": status, **more}


def mains(online: str) -> dict[str, str]:
    return {"type": "Mains", "online": online}


@pytest.mark.parametrize(
    ("supplies", "percent", "charging"),
    [
        ({}, None, False),
        ({"BAT0": battery("37")}, 37, False),
        ({"BAT0": battery("37", "Charging")}, 37, True),
        ({"BAT0": battery("100", "Full")}, 100, True),
        ({"BAT0": battery("37"), "AC": mains("1")}, 37, True),
        ({"BAT0": battery("37"), "AC": mains("0")}, 37, False),
        ({"BAT0": battery("5"), "BAT1": battery("80")}, 80, False),
        ({"mouse": battery("9", scope="Device")}, None, False),
        ({"BAT0": battery("nonsense")}, None, False),
        ({"BAT0": battery("250")}, 100, False),
        ({"AC": mains("1")}, None, True),
    ],
)
def test_battery_and_mains_are_read_from_what_linux_says(
    supplies: dict[str, dict[str, str]], percent: int | None, charging: bool, tmp_path: Path
) -> None:
    found = Senses(machine(tmp_path, supplies=supplies)).look()
    assert (found.battery_percent, found.charging) == (percent, charging)


@pytest.mark.parametrize(
    ("told", "metered"),
    [
        ("", False),
        ("no", False),
        ("no (guessed)", False),
        ("unknown", False),
        ("yes", True),
        ("?", True),
    ],
)
def test_a_file_says_whether_the_network_is_metered(
    told: str, metered: bool, tmp_path: Path
) -> None:
    assert Senses(machine(tmp_path, told)).look().metered is metered


@pytest.mark.parametrize(
    ("program", "metered"),
    [
        ("print('no (guessed)')", False),
        ("print('yes')", True),
        ("print('no'); raise SystemExit(1)", True),
        ("pass", True),
    ],
)
def test_a_command_says_it_and_one_that_fails_counts_as_dear(
    program: str, metered: bool, tmp_path: Path
) -> None:
    command = f'{sys.executable} -c "{program}"'
    assert Senses(tmp_path, command).look().metered is metered


@pytest.mark.parametrize("command", ["/missing/program", "unfinished 'quote"])
def test_a_command_that_cannot_be_run_counts_as_dear(command: str, tmp_path: Path) -> None:
    assert Senses(tmp_path, command).look().metered


def test_the_file_is_believed_before_the_command(tmp_path: Path) -> None:
    assert not Senses(machine(tmp_path, "no"), "/missing/program").look().metered


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(noise=st.binary(max_size=200))
def test_noise_in_any_of_the_files_ends_nothing(noise: bytes, tmp_path: Path) -> None:
    folder = tmp_path / SUPPLIES / "BAT0"
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / METERED_FILE).parent.mkdir(parents=True, exist_ok=True)
    for path in (folder / "type", folder / "capacity", folder / "status", tmp_path / METERED_FILE):
        path.write_bytes(noise)
    (folder / "type").write_text("Battery")
    found = Senses(tmp_path).look()
    assert found.battery_percent is None or 0 <= found.battery_percent <= 100


@dataclass
class World:
    """How things are, as a test sets it."""

    conditions: Conditions = field(default_factory=Conditions)
    steady_s: float = 0.0
    looks: int = 0

    def look(self) -> Conditions:
        self.looks += 1
        return self.conditions

    def timing(self, rules: Rules) -> Timing:
        return Timing(rules, self.look, lambda: NOON, lambda: self.steady_s)


def test_things_are_looked_at_again_after_a_while_and_not_at_every_chunk() -> None:
    world = World()
    timing = world.timing(Rules(battery_min=50))
    assert [timing.why_wait(True) for _ in range(100)] == [""] * 100
    world.conditions = Conditions(battery_percent=49)
    assert timing.why_wait(True) == ""
    world.steady_s += FRESH_S
    assert timing.why_wait(True) == timing.why_wait(False)
    assert "49 %" in timing.why_wait(True)
    assert world.looks == 2


def test_an_owner_who_allows_everything_costs_no_look() -> None:
    world = World()
    assert world.timing(Policy().fetching).why_wait(True) == ""
    assert world.looks == 0


def test_the_policy_file_names_the_rules() -> None:
    policy = Policy(metered="delta", battery_min=30, window="01:00-05:00")
    assert policy.fetching == Rules(Metered.DELTA, 30, Window.parse("01:00-05:00"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with FakeServer(tmp_path / "server") as found:
        yield found


@pytest.fixture
def kit(server: FakeServer, tmp_path: Path) -> Kit:
    return Kit(server.enrol(tmp_path / "device"))


def look(kit: Kit, timing: Timing) -> Phase:
    with kit.wired() as updates:
        updates.why_wait = timing.why_wait
        updates.begin()
        updates.look()
        updates.end()
        return updates.journal.load().phase


@pytest.mark.parametrize("allowed", ["never", "delta"])
def test_no_model_is_fetched_over_a_metered_network_until_it_is_not(
    allowed: str, kit: Kit, server: FakeServer
) -> None:
    one = offer(server, 1)
    world = World(Conditions(metered=True))
    timing = world.timing(Rules(Metered(allowed)))
    assert look(kit, timing) is Phase.FETCHING
    assert blobs_asked(server) == 0
    assert kit.told() == []
    world.conditions, world.steady_s = Conditions(), FRESH_S
    assert look(kit, timing) is Phase.IDLE
    assert kit.running == one.digest


def test_a_battery_that_runs_low_stops_a_download_which_goes_on_later(
    kit: Kit, server: FakeServer
) -> None:
    one = bundle(1, padding=3_000_000, not_before=LONG_AGO)
    server.releases.publish(one)
    server.releases.roll_out(one)
    baseline = one.release.file("baseline")
    part = kit.directory / "downloads" / f"{baseline.digest}.part"

    def drained(_: bool) -> str:
        return "battery" if part.exists() and part.stat().st_size > 0 else ""

    with kit.wired() as updates:
        updates.why_wait = drained
        updates.begin()
        updates.look()
        updates.end()
    kept = part.stat().st_size
    assert 0 < kept < baseline.length
    asked = blobs_asked(server)
    assert look(kit, World().timing(Rules())) is Phase.IDLE
    assert blobs_asked(server) == asked + 1
    assert kit.running == one.digest


@pytest.mark.parametrize("allowed", ["never", "delta"])
def test_a_delta_is_what_an_owner_may_let_through_a_metered_network(
    allowed: str, kit: Kit, server: FakeServer
) -> None:
    first, slots = with_deltas(1), Slots(kit.directory / "slots")
    slots.stage(first.release, first.lay_out(kit.directory / "laid-out"))
    slots.switch(first.digest)
    two = offer_deltas(server, 2, ((model_of(1), delta_of(1, 2)),))
    look(kit, World(Conditions(metered=True)).timing(Rules(Metered(allowed))))
    assert kit.running == (two.digest if allowed == "delta" else first.digest)
    assert (digest_of(delta_of(1, 2)) in server.served) is (allowed == "delta")
    assert digest_of(model_of(2)) not in server.served
