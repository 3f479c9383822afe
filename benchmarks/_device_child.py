"""The process that `benchmarks._device` measures: an agent without its channel, as on a device.

Nothing is imported at the top that is to be measured.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wildflower.client.updates import Updates
    from wildflower.ota.release.fetch import ReleaseClient


def memory(directory: Path, model: Path) -> dict[str, float]:
    """Load a model with the bare runtime; then become an agent, refresh, fetch and install."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((1, 4), np.float32)})
    before = rss_mib()
    updates = agent_of(directory)
    updates.begin()
    updates.look()
    after = rss_mib()
    heavy = sorted({"grpc", "flwr", "torch", "onnx", "sqlmodel"} & {*sys.modules})
    if heavy or not updates.slots.running():
        raise RuntimeError(f"loaded {heavy}, runs {updates.slots.running()!r}")
    return {"model_mib": before, "agent_mib": after, "above_mib": after - before}


def refresh(directory: Path, times: int, source: str) -> dict[str, list[float]]:
    """Look for the first time, again and again; the first of all only warms up."""
    found = []
    for _ in range(times + 1):
        with tempfile.TemporaryDirectory() as empty:
            client = client_of(directory, Path(empty), source)
            began = time.process_time()
            with client.kept():
                client.refresh()
                document = client.rollout("light.linux-generic")
                assert document is not None
                client.release(document.release_path, accepted=("auto",), expected=document.release)
            found.append((time.process_time() - began) * 1000)
    return {"cpu_ms": found[1:]}


def look(directory: Path, times: int) -> dict[str, str]:
    """Be an agent for so many looks."""
    updates = agent_of(directory)
    updates.begin()
    for _ in range(times):
        updates.look()
    updates.end()
    return {"running": updates.slots.running()}


def agent_of(directory: Path) -> "Updates":
    """Return the updates of a device, wired as `client.daemon` does it."""
    import wildflower.client.lean  # noqa: F401

    # isort: split
    from wildflower.client.config import load_config
    from wildflower.client.policy import load_policy
    from wildflower.client.updates import Updates
    from wildflower.ota.device.journal import Journal
    from wildflower.ota.device.slots import Slots

    return Updates(
        config=load_config(directory),
        policy=load_policy(directory),
        journal=Journal.open(directory / "journal.db", now=now()),
        slots=Slots(directory / "slots"),
        releases=client_of(directory, directory / "tuf"),
        now=now,
        should_stop=lambda: False,
    )


def client_of(directory: Path, cache: Path, source: str = "") -> "ReleaseClient":
    """Return a device's way to releases, or to those of one source."""
    import wildflower.client.lean  # noqa: F401

    # isort: split
    from wildflower.client.config import load_config
    from wildflower.client.identity import Identity
    from wildflower.ota.release.connection import Connection
    from wildflower.ota.release.fetch import ReleaseClient

    identity, config = Identity.load(directory), load_config(directory)
    context = identity.ssl_context()
    return ReleaseClient(
        cache,
        identity.root,
        (source,) if source else config.all_sources,
        lambda: Connection(context, timeout_s=30.0),
        now,
    )


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def rss_mib() -> float:
    """Return the resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not say")


def main() -> None:
    """Do what the first argument says; print one line of JSON."""
    what, directory, rest, *more = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    told: object
    match what:
        case "memory":
            told = memory(directory, Path(rest))
        case "refresh":
            told = refresh(directory, int(rest), *more)
        case _:
            told = look(directory, int(rest))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
