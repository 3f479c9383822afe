"""A curious server learns nothing from an honest session, and all from a broken one."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from tests.secagg_fakes import Play, make_params

from wildflower.strategies.algorithms.fedavg import FedAvg
from wildflower.strategies.arrays import Update
from wildflower.strategies.attacks.curious import (
    Transcript,
    difference,
    reused_masks,
    search_keys,
    traces,
    unmask,
)
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import client
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg.masking import add_masks
from wildflower.strategies.secagg.messages import (
    SHARE,
    Delivery,
    Reveal,
    Roster,
    SessionParams,
    UnmaskRequest,
)

CLIENTS = 7


@dataclass
class Overheard(Play):
    """A session whose server writes everything down."""

    transcript: Transcript = field(default_factory=lambda: Transcript(make_params(CLIENTS)))
    secrets: dict[str, bytes] = field(default_factory=dict)

    def reply(self, device: str, message: object) -> None:
        self.transcript.hear(device, message)  # type: ignore[arg-type]  # a client's message
        super().reply(device, message)

    def share(self, rosters: Mapping[str, Roster]) -> dict[str, Delivery]:
        for device, roster in rosters.items():
            self.transcript.hear(device, roster)
            for index, secret in enumerate(self.states[device].secrets):
                self.secrets[f"{device}/{index}"] = secret
        return super().share(rosters)

    def mask(self, deliveries: Mapping[str, Delivery]) -> dict[str, UnmaskRequest]:
        for device, delivery in deliveries.items():
            self.transcript.hear(device, delivery)
        return super().mask(deliveries)


def play_to_masks(size: int = 5) -> tuple[Overheard, dict[str, UnmaskRequest]]:
    params = make_params(CLIENTS, size=size)
    play = Overheard(params, transcript=Transcript(params))
    return play, play.mask(play.share(play.advertise()))


def test_an_honest_session_gives_no_device_away() -> None:
    play, requests = play_to_masks()
    total = play.unmask(requests)
    assert np.array_equal(total, play.plain_sum())
    for device in play.devices:
        attempt = unmask(play.transcript, device)
        assert attempt.residues is None
        assert attempt.reason.startswith("too few shares of its masking key")
    assert reused_masks(play.transcript) == {}


def test_nor_does_one_in_which_a_device_is_lost_after_it_shared() -> None:
    params = make_params(CLIENTS)
    lost = [device for device, _ in zip(Play(params).devices, range(2), strict=False)]
    play = Overheard(params, {3: lost}, transcript=Transcript(params))
    play.run()
    for device in play.devices:
        attempt = unmask(play.transcript, device)
        assert attempt.residues is None
        assert (device in lost) == (attempt.reason == f"no masked update of {device[:8]}")


def test_before_anything_is_revealed_there_is_nothing_to_take_off() -> None:
    play, _ = play_to_masks()
    device = next(iter(play.devices))
    assert unmask(play.transcript, device).reason == "too few shares of its seed"


def forge(play: Overheard, victim: str, *, keys_of: list[str]) -> None:
    """Let every device give up its share of the victim's seed, and of some masking keys."""
    for holder, state in play.states.items():
        shares = {device: held for device, held in state.held.items() if len(held) > SHARE}
        seeds = {victim: state.held[victim][:SHARE]} if victim in state.held else {}
        keys = {device: shares[device][SHARE:] for device in keys_of if device in shares}
        play.transcript.hear(holder, Reveal(play.params.session, seeds, keys))


def test_devices_that_give_up_both_shares_give_the_update_away() -> None:
    play, _ = play_to_masks()
    for victim in play.devices:
        forge(play, victim, keys_of=[victim])
        attempt = unmask(play.transcript, victim)
        assert attempt.reason == ""
        assert attempt.residues is not None
        assert np.array_equal(attempt.residues, play.updates[victim])
        play.transcript.reveals.clear()


def test_so_do_devices_that_take_all_neighbours_of_one_for_dead() -> None:
    play, _ = play_to_masks()
    victim = list(play.devices)[3]
    forge(play, victim, keys_of=[device for device in play.devices if device != victim])
    attempt = unmask(play.transcript, victim)
    assert attempt.residues is not None
    assert np.array_equal(attempt.residues, play.updates[victim])


def test_shares_of_fewer_holders_than_the_threshold_are_worth_nothing() -> None:
    play, _ = play_to_masks()
    victim = next(iter(play.devices))
    forge(play, victim, keys_of=[victim])
    for holder in list(play.transcript.reveals)[: CLIENTS - play.params.threshold + 1]:
        del play.transcript.reveals[holder]
    assert unmask(play.transcript, victim).residues is None


def test_two_updates_under_one_mask_give_their_difference_away() -> None:
    params = make_params(CLIENTS)
    play = Overheard(params, transcript=Transcript(params))
    deliveries = play.share(play.advertise())
    device = next(iter(play.devices))
    opened = client.open_shares(play.states[device], deliveries[device])
    play.mask(deliveries)
    other = play.updates[device] + np.uint32(5)
    _, again = client.mask(opened, other)
    play.transcript.hear(device, again)
    found = reused_masks(play.transcript)
    assert set(found) == {device}
    assert (found[device] == 5).all()


def test_what_is_sent_again_unchanged_gives_nothing_away() -> None:
    play, _ = play_to_masks()
    device, [masked] = next(iter(play.transcript.masked.items()))
    play.transcript.hear(device, masked)
    assert reused_masks(play.transcript) == {}


def test_messages_of_another_session_are_not_mixed_in() -> None:
    play, _ = play_to_masks()
    foreign = replace(make_params(CLIENTS), session=bytes(31) + b"\1")
    empty = Transcript(foreign)
    for message in play.sent:
        empty.hear("", message)
    empty.hear("", play.params)
    assert empty == Transcript(foreign)


ONE = Update(np.array([0.5, -0.25], np.float32), 3.0, {"loss": 1.5})
TWO = Update(np.array([1.0, 2.0], np.float32), 5.0, {"loss": 0.5})


def test_two_sums_that_differ_by_a_device_are_that_devices_update() -> None:
    rule = FedAvg()
    small = rule.add(rule.zero(2), ONE)
    found = difference(rule.add(small, TWO), small)
    assert found.vector.tolist() == TWO.vector.tolist()
    assert (found.weight, found.statistics) == (5.0, {"loss": 0.5})


def test_a_difference_needs_a_larger_cohort() -> None:
    rule = FedAvg()
    small = rule.add(rule.zero(2), ONE)
    with pytest.raises(ValueError, match="has to be the larger"):
        difference(small, rule.add(small, TWO))


def guesses(bits: int) -> list[bytes]:
    return [hashlib.sha256(number.to_bytes(2)).digest() for number in range(2**bits)]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_mask_of_a_guessable_key_is_taken_off(dtype: type[np.uint16] | type[np.uint32]) -> None:
    space = guesses(12)
    update: Residues = np.arange(-10, 10).astype(dtype)
    masked = update.copy()
    add_masks(masked, [space[3456 - 1]], [])
    found = search_keys(masked, space, largest=16)
    assert found == space[3455]
    add_masks(masked, [], [found])
    assert np.array_equal(masked, update)


def test_a_mask_of_a_session_is_not_among_the_guesses() -> None:
    play, _ = play_to_masks()
    levels = play.params.encoding.levels  # type: ignore[attr-defined]  # a fixed-point encoding
    for device in list(play.devices)[:2]:
        [masked] = play.transcript.vectors(device)
        assert search_keys(masked, guesses(10), largest=levels) is None


def test_no_secret_is_in_a_message_as_it_is() -> None:
    play, requests = play_to_masks(size=64)
    play.unmask(requests)
    sent = [flat.to_bytes(message.to_fields()) for message in play.sent]
    updates = {device: play.updates[device].tobytes() for device in play.devices}
    assert len(play.secrets) == 3 * CLIENTS
    # all holders gave up their shares of each seed, never the seed
    assert traces(sent, {**play.secrets, **updates}) == []


def test_a_secret_in_a_message_is_found_wherever_it_begins() -> None:
    secret = bytes(range(100, 132))
    sent = [b"nothing", b"xx" + secret[5:13] + b"yy"]
    assert traces(sent, {"seed": secret, "other": bytes(32)}) == ["seed"]
    assert traces([b"", b"abc"], {"short": b"abc", "empty": b"zz"}) == ["short"]


def test_the_parameters_are_heard_once() -> None:
    params: SessionParams = make_params(CLIENTS)
    transcript = Transcript(params)
    transcript.hear("", params)
    assert transcript == Transcript(params)
