"""A refusal on its way: from the device's journal, signed, to what `fleet ls` shows."""

from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.attacks.bench import TIMESTAMP, Bench, Mirror
from tests.client_fakes import MemoryChannel, today
from tests.ota_fakes import FaultServer
from tests.record_fakes import device

from wildflower.client.agent import Agent
from wildflower.client.identity import Identity
from wildflower.ota.errors import RefusedError
from wildflower.server.api.fleet import device_view
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Presence
from wildflower.server.reception import Reception
from wildflower.server.records import Device, Report


class Counter(MemoryChannel):
    """The device channel without gRPC: what comes goes to the server's reception."""

    def __init__(self, reception: Reception, sender: Device) -> None:
        super().__init__()
        self.reception, self.sender = reception, sender

    def report(self, document: bytes, signature: bytes) -> int:
        return self.reception.report(self.sender, document, signature)


def test_a_refusal_reaches_the_operator_once_and_in_words(bench: Bench) -> None:
    identity = Identity.load(bench.kit.directory)
    store, presence = MemoryStore(), Presence()
    sender = device("kitchen", device_id=identity.device_id, public_key=identity.public_key_pem)
    store.put(sender)
    counter = Counter(Reception(store, invited=lambda _: "", now=today), sender)
    mirror = Mirror(bench.releases)
    mirror.instead[TIMESTAMP] = b"{}"
    with FaultServer(mirror) as server:
        bench.kit.changes["endpoints_device"] = server.url
        for _ in range(3):
            with bench.kit.on() as updates:
                nothing = cast(Any, None)  # what sends reports asks for neither
                agent = Agent(
                    config=updates.config,
                    identity=identity,
                    channel=counter,
                    updates=updates,
                    spool=nothing,
                    training=nothing,
                    now=today,
                    stop=nothing,
                    random=Random(0),
                )
                with pytest.raises(RefusedError):
                    updates.look()
                agent.send_reports()
    refusals = store.all(Report, device_id=sender.device_id, outcome="refused")
    assert len(refusals) == 1
    known = store.get(Device, sender.device_id)
    assert known is not None
    view = device_view(cast(Any, SimpleNamespace(store=store, presence=presence)), known)
    assert view.last_outcome == "refused"
    assert view.last_reason.startswith(f"{server.url} served metadata: malformed: ")
    assert view.running == bench.first.release.artifact.digest
