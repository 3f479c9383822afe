"""Rounds of the demo's model in the field: a real server, eight real agents, loopback TLS.

The same fleet trains twice, once securely and once in plain; the first round of each is not
counted, because in it the devices' training processes start.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from wildflower.client.policy import load_policy, save_policy
from wildflower.server.api.views import EventView
from wildflower.server.cli.remote import Remote
from wildflower.simulation.local.launch import Launch, launch
from wildflower.strategies.trips import SHARES_OF_TIME

WAIT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class FieldRounds:
    """What rounds took in the field.

    Attributes:
        secure_s: Seconds of a secure round, the median.
        plain_s: Seconds of a plain round, the median.
        trips: Messages that each device answers in a secure round.
        plain_trips: Likewise in a plain one.
    """

    secure_s: float
    plain_s: float
    trips: int
    plain_trips: int


def field_rounds(*, devices: int, rounds: int) -> FieldRounds:
    """Start a fleet, train, end it."""
    with tempfile.TemporaryDirectory(prefix="wildflower-field-") as place:
        fleet = launch(Launch(directory=Path(place) / "fleet", devices=devices, tethered=True))
        try:
            for home in (fleet.directory / "devices").iterdir():  # as the devices' owners would
                save_policy(replace(load_policy(home), secagg="allowed"), home)
            secure_s, trips = _train(fleet.remote(), "secagg", rounds)
            plain_s, plain_trips = _train(fleet.remote(), "plain", rounds)
        finally:
            fleet.down()
    return FieldRounds(secure_s, plain_s, trips, plain_trips)


def _train(remote: Remote, protection: str, rounds: int) -> tuple[float, int]:
    """Train; return the seconds of a round and its trips."""
    seen = remote.status().last_event
    asked = remote.start_training(rounds=rounds + 1, settings={"protection": protection})
    stages: Counter[str] = Counter()

    def watch(event: EventView) -> bool | None:
        if not event.subject.startswith(asked.training_id):
            return None
        if event.kind == "round.stage" and event.fields.get("stage") in SHARES_OF_TIME:
            stages[event.subject] += 1
        if event.kind == "training.aborted":
            raise RuntimeError(f"the training was aborted: {event.fields.get('reason')}")
        return True if event.kind == "training.finished" else None

    remote.wait_for(watch, after=seen, timeout_s=WAIT_S)
    lasted = [
        (each.finished_at - each.started_at).total_seconds()
        for each in remote.rounds(asked.training_id)[1:]
        if each.finished_at is not None
    ]
    return median(lasted), max(stages.values())
