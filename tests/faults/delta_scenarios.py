"""Faults while a model is made from the one that runs and a delta: what the network and disk do.

Each takes a bench whose second release comes with a delta from the first. A delta that cannot be
had, or that does not fit, costs its bytes: the whole model is fetched instead, in the same update.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.delta_fakes import delta_of, model_of, with_deltas
from tests.device_fakes import Bundle
from tests.faults.bench import Bench
from tests.faults.scenarios import Scenario, Weather, arrived, steady
from tests.ota_fakes import Faults


def delta_pair() -> tuple[Bundle, Bundle]:
    """Return two releases; the second comes with a delta from the first."""
    return with_deltas(1), with_deltas(2, ((model_of(1), delta_of(1, 2)),))


def share(percent: int) -> int:
    """Return the bytes that are so many hundredths of the delta."""
    return len(delta_of(1, 2)) * percent // 100


WHOLE: Final = 1 + len(model_of(2)) / len(delta_of(1, 2))
"""Bytes of a delta that is of no use and of the whole model, by the delta's."""
BUFFERS: Final = 16_000_000 / len(delta_of(1, 2))
"""Bytes of a small file that never ends: they fill sockets, the device reads a few of them."""
WEATHER: Final[Mapping[str, Weather]] = {
    "delta cut every 50 %": Weather({"cut": share(50)}, ratio=1.05),
    "delta cut every 10 %": Weather({"cut": share(10)}, ratio=1.05),
    "delta cut every 2 %": Weather({"cut": share(2)}, ratio=1.25),
    "delta corrupt once": Weather({"corrupt": 1}, ratio=2.1),
    "delta corrupt always": Weather({"corrupt": -1}, ratio=WHOLE + 1.1),
    "delta ended early": Weather({"cut": share(40), "unframed": True}, ratio=1.05),
    "delta said to be longer": Weather({"liar": 1000}, ratio=WHOLE + 1.1),
    "delta endless": Weather({"endless": True}, ratio=BUFFERS),
    "delta stalled": Weather({"stall": share(40)}, timeout_s=0.5, ratio=1.05),
    "delta of a wrong range": Weather({"cut": share(50)}, {"wrong_range": True}, ratio=WHOLE + 1.1),
    "delta gone": Weather({"busy": 99, "busy_status": 404}, ratio=WHOLE),
    "delta redirected for ever": Weather({"location": "/blobs/again"}, ratio=WHOLE),
}


def weather(bench: Bench, case: Weather) -> float:
    """Let the device update while its delta has a weather; return the bytes sent by its size."""
    device, (delta,) = bench.copy(), bench.second.release.deltas
    foul = Faults(**case.faults)
    later = foul if case.then is None else Faults(**case.then)
    asked: list[str] = []

    def before(path: str) -> None:
        is_delta = path.endswith(delta.digest)
        asked.extend([path] * is_delta)
        bench.server.faults = Faults() if not is_delta else foul if len(asked) == 1 else later

    bench.shelf.before, bench.server.served, bench.timeout_s = before, 0, case.timeout_s
    ended = bench.run(device)
    assert ended.status == 0, ended
    assert asked
    steady(bench, device)
    others = [entry.length for entry in bench.second.release.files if entry.role != "model"]
    ratio = bench.server.served / (delta.length + sum(others))
    bench.clear_weather()
    bench.later(device)
    arrived(bench, device)
    assert ratio <= case.ratio, ratio
    return ratio


def damage(bench: Bench, device: Path) -> None:
    """Change what the running slot holds, as a disk does."""
    model = device / "slots" / bench.first.digest / bench.first.release.artifact.name
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(data)


def base_damaged(bench: Bench) -> None:
    """The model that the delta is from is damaged: found, and the whole one is fetched."""
    device = bench.copy()
    damage(bench, device)
    bench.run(device)
    bench.later(device)
    arrived_whole(bench, device)


def base_damaged_meanwhile(bench: Bench) -> None:
    """The disk changes it when the delta is on its way: what is made of both is not the model."""
    device, (delta,) = bench.copy(), bench.second.release.deltas

    def before(path: str) -> None:
        if path.endswith(delta.digest):
            damage(bench, device)

    bench.shelf.before = before
    bench.run(device)
    bench.clear_weather()
    bench.later(device)
    arrived_whole(bench, device)


def arrived_whole(bench: Bench, device: Path) -> None:
    """The second release runs; its model was fetched and not made."""
    steady(bench, device)
    assert (device / "slots" / "current").readlink().name == bench.second.digest
    whole = f"/blobs/{bench.second.release.artifact.digest}"
    assert whole in [path for path, _ in bench.server.asked]


def in_weather(case: Weather) -> Scenario:
    """Return a weather as a scenario."""

    def scenario(bench: Bench) -> None:
        weather(bench, case)

    return scenario


SCENARIOS: Final[Mapping[str, Callable[[Bench], None]]] = {
    **{name: in_weather(case) for name, case in WEATHER.items()},
    "base of a delta damaged": base_damaged,
    "base of a delta damaged in mid-download": base_damaged_meanwhile,
}
