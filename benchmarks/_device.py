"""What a device does to its application, its memory and the network, on a real repository.

    hot_swap()        pauses and lost answers while releases are swapped under continuous inference
    agent_memory()    what the agent of a device that only infers takes above the model itself
    refresh()         CPU time of a first look: metadata verified from the root on, release read
    idle_poll()       what a look at nothing new costs on the wire

Pauses are those that we make: where that is allowed, the application runs at real-time priority,
so that neighbours of the machine cannot stop it in mid-answer (`hot_swap_real_time` says whether).
The server is on loopback with TLS, client certificates, signatures and TUF metadata; the device is
enrolled. Times depend on what else the machine does; counts and bytes do not.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tests.client_fakes import LONG_AGO, FakeServer
from tests.device_fakes import bundle
from tests.faults.bench import Shelf
from tests.ota_fakes import FaultServer
from tests.slots_fakes import WIDTH, flip, install

from benchmarks._real_time import at_real_time
from wildflower.client.inference import ModelSlot

SMALL: Final = 256
"""Units of the two hidden layers: a model of 0.3 MB, as in the demo."""
LARGE: Final = 1024
"""A model of 4 MB. ONNX Runtime keeps Python's lock while it loads one: the pause grows with it."""
PADDING: Final = 4_000_000
"""Bytes beside the model that a device has to fetch."""
LIMIT_S: Final = 30.0
"""A swap that takes longer is none."""


@dataclass(frozen=True, slots=True)
class Swaps:
    """What an application saw while releases were swapped.

    Attributes:
        swaps: How often.
        asked: Questions.
        dropped: Questions without an answer, or with one that no single model gives.
        pause_ms: The longest answer around each swap, in ms.
        run_ms: The same without the time for which the kernel gave the core to other processes.
        plain_ms: Every other answer, in ms.
        is_real_time: Whether no neighbour could take the core away.
    """

    swaps: int
    asked: int
    dropped: int
    pause_ms: tuple[float, ...]
    run_ms: tuple[float, ...]
    plain_ms: tuple[float, ...]
    is_real_time: bool

    def figures(self) -> dict[str, float]:
        """Return the figures by their keys."""
        return {
            "hot_swap_dropped": self.dropped,
            "hot_swap_pause_ms_p99": round(float(np.percentile(self.pause_ms, 99)), 2),
            "hot_swap_pause_run_ms_p99": round(float(np.percentile(self.run_ms, 99)), 2),
            "hot_swap_plain_ms_p99": round(float(np.percentile(self.plain_ms, 99)), 2),
            "hot_swap_swaps": self.swaps,
            "hot_swap_real_time": int(self.is_real_time),
        }


def deep_model(sign: float, hidden: int) -> bytes:
    """Return a model whose second output has this sign for a bright input."""
    shapes = [(WIDTH, hidden), (hidden, hidden), (hidden, 2)]
    weights = [np.full(shape, 1.0 / shape[0], np.float32) for shape in shapes]
    weights[-1] *= np.array([-sign, sign], np.float32)
    names = ["x", "h1", "h2", "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(3)]
    head = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    tail = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    held = [numpy_helper.from_array(one, f"w{n}") for n, one in enumerate(weights)]
    graph = helper.make_graph(nodes, "deep", [head], [tail], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def hot_swap(swaps: int = 100, hidden: int = SMALL) -> Swaps:
    """Infer without a break while another thread flips `slots/current` between two releases.

    Args:
        swaps: How often it is flipped; each time the session has taken up the one before.
        hidden: Units of the model's hidden layers.
    """
    question = np.ones((1, WIDTH), np.float32)
    with tempfile.TemporaryDirectory() as place:
        slots = [
            install(Path(place), deep_model(sign, hidden), order=n)
            for n, sign in ((1, 1.0), (2, -1.0))
        ]
        right = {slots[0].name: 1.0, slots[1].name: -1.0}
        flip(slots[0])
        flipper = _Flipper(slots, swaps)
        dropped, asked = 0, 0
        plain: list[tuple[float, float]] = []
        around: list[tuple[float, float]] = []
        pauses: list[tuple[float, ...]] = []
        queue = RunQueue()
        with at_real_time() as is_real_time, ModelSlot(Path(place)) as slot:
            session = slot.session()
            flipper.start()
            while flipper.is_alive():
                is_swapping = flipper.is_pending
                waited_ms, began = queue.waited_ms(), time.perf_counter()
                answer = session.infer(question)
                took_ms = (time.perf_counter() - began) * 1000
                took = (took_ms, took_ms - (queue.waited_ms() - waited_ms))
                dropped += np.sign(answer.outputs[0, 1]) != right[answer.release]
                (around if is_swapping else plain).append(took)
                if flipper.saw(answer.release):
                    pauses.append(tuple(max(column) for column in zip(*around, strict=True)))
                    asked += len(around)
                    around = []
        flipper.join()
        queue.close()
    walls, runs = zip(*pauses, strict=True)
    plain_ms = tuple(wall for wall, _ in plain)
    return Swaps(len(pauses), asked + len(plain), int(dropped), walls, runs, plain_ms, is_real_time)


class RunQueue:
    """For how long this thread was ready to run and did not: Linux's schedstat."""

    def __init__(self) -> None:
        path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  read a thousand times

    def close(self) -> None:
        """Ask no more."""
        self._file.close()

    def waited_ms(self) -> float:
        """Return how long so far, in ms."""
        self._file.seek(0)
        return int(self._file.read(100).split()[1]) / 1e6


class _Flipper(threading.Thread):
    """Flips, waits until the application's answers are the new release's, flips again."""

    def __init__(self, slots: list[Path], swaps: int) -> None:
        super().__init__(daemon=True)
        self._slots, self._swaps = slots, swaps
        self._wanted = ""
        self._taken_up = threading.Event()

    @property
    def is_pending(self) -> bool:
        """Whether a flip has not been taken up."""
        return bool(self._wanted)

    def saw(self, release: str) -> bool:
        """Tell which release answered; return whether a flip was taken up with it."""
        if release != self._wanted:
            return False
        self._wanted = ""
        self._taken_up.set()
        return True

    def run(self) -> None:
        """Flip so many times."""
        for number in range(1, self._swaps + 1):
            slot = self._slots[number % 2]
            self._taken_up.clear()
            self._wanted = slot.name
            flip(slot)
            if not self._taken_up.wait(LIMIT_S):
                raise TimeoutError(f"swap {number} was not taken up within {LIMIT_S} s")
            time.sleep(0.01)  # answers that have nothing to do with a swap


@contextmanager
def fleet_of_one(place: Path) -> Iterator[tuple[FakeServer, Path]]:
    """Serve one release to one enrolled device, for the length of the block."""
    with FakeServer(place / "server") as server:
        directory = server.enrol(place / "device")
        one = bundle(1, padding=PADDING, not_before=LONG_AGO)
        server.releases.publish(one)
        server.releases.roll_out(one)
        (place / "model.onnx").write_bytes(deep_model(1.0, LARGE))
        yield server, directory


def agent_memory() -> dict[str, float]:
    """Return the memory of an agent that has refreshed and installed, in a process of its own."""
    with tempfile.TemporaryDirectory() as place, fleet_of_one(Path(place)) as (_, directory):
        told = _child("memory", directory, Path(place) / "model.onnx")
    return {"agent_rss_mib_inference_only": round(told["above_mib"], 1)}


def refresh(times: int = 15) -> dict[str, float]:
    """Return the CPU time of a first look: refresh, rollout and release, verified from the root.

    Once from a mirror without TLS, where it is verifying alone, and once from the server, to which
    a connection is opened with a client certificate.
    """
    with (
        at_real_time(),  # servers and child inherit it
        tempfile.TemporaryDirectory() as place,
        fleet_of_one(Path(place)) as (server, directory),
    ):
        with FaultServer(Shelf(server.releases)) as mirror:
            plain = _child("refresh", directory, times, mirror.url)
        told = _child("refresh", directory, times, server.url)
    return {
        "refresh_lookup_ms": round(statistics.median(plain["cpu_ms"]), 1),
        "refresh_lookup_tls_ms": round(statistics.median(told["cpu_ms"]), 1),
    }


def idle_poll() -> dict[str, float]:
    """Return what one more look costs on the wire when the device runs what is rolled out."""
    with tempfile.TemporaryDirectory() as place, fleet_of_one(Path(place)) as (server, directory):
        _child("look", directory, 1)  # installs
        begins = len(server.asked)
        _child("look", directory, 2)
        two = len(server.asked) - begins
        _child("look", directory, 3)
        paths = server.asked[begins + two + two :]
        files = [server.releases.directory / path.lstrip("/").replace("%2F", "/") for path in paths]
        sizes = [file.stat().st_size for file in files if file.is_file()]  # 404 has no body
    return {"idle_poll_bytes": sum(sizes), "idle_poll_requests": len(paths)}


def _child(what: str, *arguments: object) -> dict[str, Any]:
    """Measure in a fresh process, so that nothing of ours is counted."""
    command = [sys.executable, "-m", "benchmarks._device_child", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _large(swaps: int) -> dict[str, float]:
    found = hot_swap(swaps, LARGE).figures()
    names = ("hot_swap_pause_ms_p99", "hot_swap_pause_run_ms_p99")
    return {f"{name}_4mb": found[name] for name in names}


def figures(*, quick: bool = False) -> dict[str, float]:
    """Return all figures of a device.

    Args:
        quick: Whether fewer repetitions are enough.
    """
    return (
        hot_swap(20 if quick else 100).figures()
        | _large(20 if quick else 50)
        | agent_memory()
        | refresh(5 if quick else 15)
        | idle_poll()
    )


if __name__ == "__main__":
    print(json.dumps(figures(quick="--quick" in sys.argv), indent=2))
