"""What a curious server can try with what passes through its hands.

    transcript = Transcript(params)
    transcript.hear(device, message)      each message to or from a device
    unmask(transcript, device)            one device's update, if the shares for it were given up
    reused_masks(transcript)              what cancels if one mask covered two updates
    difference(larger, smaller)           the device by which two cohorts differ
    search_keys(masked, keys, largest)    a mask made of a guessable key
    traces(messages, secrets)             secrets that are in messages as they are

None of it works on an honest run, and each of it works where the protocol is broken in the way it
looks for; tests show both. It is a yardstick, not a proof.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, assert_never

import numpy as np

from wildflower.strategies.algorithms.algorithm import Sum
from wildflower.strategies.arrays import Update
from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.masking import add_masks
from wildflower.strategies.secagg.messages import (
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)
from wildflower.strategies.secagg.shamir import combine

Message = (
    SessionParams | Advertisement | Roster | Shares | Delivery | Masked | UnmaskRequest | Reveal
)

PROBE: Final = 8
"""Elements that a guessed key is tried on: enough that a wrong one is not small on all of them."""

TRACE: Final = 8
"""Bytes of a secret that make a trace of it: by chance, none is found in gigabytes."""


@dataclass
class Transcript:
    """All that a server saw of one session.

    Attributes:
        params: The session's parameters.
        advertised: Device id to its public keys.
        rosters: Device id to the sorted ids of its neighbours.
        delivered: Device id to the neighbours whose shares it got.
        masked: Device id to the masked updates it sent; an honest device sends one.
        reveals: Device id to the reveals it sent; an honest device sends one.
    """

    params: SessionParams
    advertised: dict[str, Advertisement] = field(default_factory=dict)
    rosters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    delivered: dict[str, frozenset[str]] = field(default_factory=dict)
    masked: dict[str, list[Masked]] = field(default_factory=dict)
    reveals: dict[str, list[Reveal]] = field(default_factory=dict)

    def hear(self, device: str, message: Message) -> None:
        """Take note of a message to or from a device; of another session, of nothing."""
        if message.session != self.params.session:
            return
        match message:
            case Advertisement():
                self.advertised[device] = message
            case Roster():
                self.rosters[device] = tuple(each.device for each in message.neighbours)
            case Delivery():
                self.delivered[device] = frozenset(message.sealed)
            case Masked():
                self.masked.setdefault(device, []).append(message)
            case Reveal():
                self.reveals.setdefault(device, []).append(message)
            case SessionParams() | Shares() | UnmaskRequest():
                pass  # known, sealed to others, or the server's own words
            case _:
                assert_never(message)

    def vectors(self, device: str) -> list[Residues]:
        """Return the masked updates of a device, shape (length,) each."""
        dtype = np.dtype(self.params.encoding.dtype)
        return [message.vector(dtype) for message in self.masked.get(device, ())]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of an attack on one device.

    Attributes:
        residues: The device's encoded update, shape (length,), or None.
        reason: What was missing; "" if nothing was.
    """

    residues: Residues | None
    reason: str


def unmask(transcript: Transcript, device: str) -> Attempt:
    """Try to take all masks off one device's update.

    Its own mask needs the shares of its seed; each pair mask needs the shares of its own masking
    key or of the neighbour's. A server that is answered honestly gets one or the other, never both.
    """
    if not transcript.masked.get(device):
        return Attempt(None, f"no masked update of {device[:8]}")
    session = transcript.params.session
    seed = _combined(transcript, device, of_key=False)
    if seed is None:
        return Attempt(None, "too few shares of its seed")
    plus, minus = list[bytes](), [keys.self_mask_key(seed, session)]
    for other in sorted(transcript.delivered.get(device, ())):
        key = _pair_key(transcript, device, other, session)
        if key is None:
            return Attempt(None, f"too few shares of its masking key, and of that of {other[:8]}")
        (minus if device < other else plus).append(key)
    residues = transcript.vectors(device)[0].copy()
    add_masks(residues, plus, minus)
    return Attempt(residues, "")


def _pair_key(transcript: Transcript, device: str, other: str, session: bytes) -> bytes | None:
    """Return the key of the mask that two devices share, from either's private key."""
    for one, two in ((device, other), (other, device)):
        private = _combined(transcript, one, of_key=True)
        if private is not None:
            return keys.pair_mask_keys(private, session)(transcript.advertised[two].masking_key)
    return None


def _combined(transcript: Transcript, device: str, *, of_key: bool) -> bytes | None:
    """Return a device's masking key or seed, if enough shares of it were revealed."""
    shares: dict[int, bytes] = {}
    holders = sorted({device, *transcript.rosters.get(device, ())})
    for point, holder in enumerate(holders, start=1):
        for reveal in transcript.reveals.get(holder, ()):
            given = reveal.keys if of_key else reveal.seeds
            if device in given:
                shares[point] = given[device]
    try:
        return combine(shares, transcript.params.threshold)
    except ProtocolError:
        return None


def reused_masks(transcript: Transcript) -> dict[str, Residues]:
    """Return, by device, the difference of two updates that went out under one mask."""
    return {
        device: np.subtract(two, one)
        for device in transcript.masked
        for one, two in combinations(transcript.vectors(device), 2)
        if not np.array_equal(one, two)
    }


def difference(larger: Sum, smaller: Sum) -> Update:
    """Return what is in one sum and not in another: the mean update of those it has more.

    Args:
        larger: A sum over a cohort.
        smaller: A sum over a part of it, of the same updates.

    Raises:
        ValueError: The first has no more clients or weight than the second.
    """
    weight = larger.weight - smaller.weight
    if larger.clients <= smaller.clients or not weight > 0:
        raise ValueError(
            f"{larger.clients} clients of weight {larger.weight:g}, and {smaller.clients} of"
            f" {smaller.weight:g}: the first cohort has to be the larger"
        )
    statistics = {
        name: value - smaller.statistics.get(name, 0.0) for name, value in larger.statistics.items()
    }
    vector = ((larger.vector - smaller.vector) / weight).astype(np.float32)
    return Update(vector, weight, statistics)


def search_keys(masked: Residues, guesses: Iterable[bytes], largest: int) -> bytes | None:
    """Return the key whose mask leaves small residues when it is taken off, or None.

    Args:
        masked: Residues under one mask of `secagg.masking`; the first `PROBE` are looked at.
        guesses: Keys to try, 32 bytes each.
        largest: Largest absolute value of an update's residue; far below half of the modulus.
    """
    probe = masked[:PROBE]
    signed = np.int16 if probe.itemsize == 2 else np.int32
    for key in guesses:
        tried = probe.copy()
        add_masks(tried, [], [key])
        if np.abs(tried.view(signed).astype(np.int64)).max(initial=0) <= largest:
            return key
    return None


def traces(messages: Iterable[bytes], secrets: Mapping[str, bytes]) -> list[str]:
    """Return the names of the secrets of which `TRACE` bytes in a row are in a message.

    Args:
        messages: What was sent, as bytes.
        secrets: Name to the bytes that nobody may see, such as an update's or a seed's.
    """
    sent = list(messages)
    return [
        name
        for name, secret in secrets.items()
        if any(
            secret[start : start + TRACE] in message
            for start in range(max(1, len(secret) - TRACE + 1))
            for message in sent
        )
    ]
