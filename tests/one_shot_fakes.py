"""One-shot sessions for tests: real identities, real helpers, no network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tests.secagg_fakes import NOW, entropy_of, fleet, make_update

from wildflower.simulation.helpers import SimulatedHelper
from wildflower.strategies.fixed_point import Encoding, Residues
from wildflower.strategies.one_shot_round import HelperLink
from wildflower.strategies.secagg import one_shot
from wildflower.strategies.secagg.helper import Helper, MemoryClaims
from wildflower.strategies.secagg.keys import Identity
from wildflower.strategies.secagg.one_shot_messages import (
    OneShotAnswer,
    OneShotParams,
    SumRequest,
)


def make_helpers(count: int, *, min_cohort: int = 3) -> tuple[Helper, ...]:
    """Return helpers that believe the test fleet's CA, sorted as parameters name them."""
    ca = fleet()[0].certificate
    made = (
        SimulatedHelper(ca, entropy_of("helper", number), min_cohort=min_cohort).helper
        for number in range(count)
    )
    return tuple(sorted(made, key=lambda helper: helper.card.digest))


def make_one_shot_params(
    helpers: Iterable[Helper | HelperLink],
    clients: int = 8,
    *,
    size: int = 5,
    session: bytes = bytes(32),
    bits: int = 32,
) -> OneShotParams:
    encoding = Encoding.for_cohort(
        size=size, clip=1.0, max_weight=100.0, clients=clients, statistics=("loss",), bits=bits
    )
    return OneShotParams(session, "t1", 1, encoding, tuple(helper.card for helper in helpers))


@dataclass
class OneShotPlay:
    """A session of the test fleet's devices; what is sent is turned into its flat form and back."""

    params: OneShotParams
    helpers: Sequence[Helper] = ()
    smallest: int = 3
    devices: Sequence[Identity] = field(default_factory=lambda: fleet()[1])
    updates: dict[str, Residues] = field(default_factory=dict)
    answers: dict[str, OneShotAnswer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, device in enumerate(self.devices[: self.params.encoding.clients]):
            self.updates[device.device_id] = self.encoded(number)
            self.answers[device.device_id] = self.answer(device)

    def encoded(self, number: int) -> Residues:
        update = make_update(number, self.params.encoding.size)
        return self.params.encoding.encode(update, entropy_of("rounding", number))

    def answer(self, device: Identity, *parts: object) -> OneShotAnswer:
        """Return a device's answer; `parts` tell one of several apart."""
        made = one_shot.make_answer(
            self.params,
            device,
            self.updates[device.device_id].copy(),
            smallest=self.smallest,
            entropy=entropy_of(device.device_id, self.params.session, *parts),
        )
        return OneShotAnswer.from_fields(made.answer.to_fields())

    def request(self, devices: Iterable[str]) -> SumRequest:
        seeds = tuple(self.answers[device].seeds for device in sorted(devices))
        return SumRequest.from_fields(SumRequest(self.params, seeds).to_fields())

    def unmasked(self, devices: Iterable[str]) -> Residues:
        """Return what server and helpers make of these answers; the helpers are asked anew."""
        chosen, dtype = sorted(devices), self.params.encoding.dtype
        total = np.zeros(self.params.encoding.length, dtype)
        for device in chosen:
            total += self.answers[device].masked.vector(dtype)
        for helper in self.helpers:
            fresh = replace(helper, claims=MemoryClaims())
            total -= fresh.sum(self.request(chosen), now=NOW)
        return total

    def plain_sum(self, devices: Iterable[str]) -> Residues:
        """Return the sum of these devices' residues, added in the open."""
        total = np.zeros(self.params.encoding.length, self.params.encoding.dtype)
        for device in devices:
            total += self.updates[device]
        return total
