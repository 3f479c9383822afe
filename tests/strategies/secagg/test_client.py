"""The client's half: what it refuses, what it repeats, and what it forgets."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secagg_fakes import NOW, Play, entropy_of, fleet, make_params

from wildflower.strategies.errors import ProtocolError, StoredStateError
from wildflower.strategies.secagg import client
from wildflower.strategies.secagg.client import TRANSITIONS
from wildflower.strategies.secagg.client_state import Phase, State
from wildflower.strategies.secagg.messages import (
    Delivery,
    Masked,
    Reveal,
    Roster,
    Shares,
    UnmaskRequest,
)

CA = fleet()[0].certificate


class Seat:
    """One client's place in a session of five: its states and what it is sent in each trip."""

    def __init__(self) -> None:
        play = Play(make_params(5))
        rosters = play.advertise()
        self.device = min(play.devices)
        self.identity = play.devices[self.device]
        self.params = play.params
        self.states = {Phase.ADVERTISED: play.states[self.device]}
        self.roster = rosters[self.device]
        deliveries = play.share(rosters)
        self.states[Phase.SHARED] = play.states[self.device]
        self.delivery = deliveries[self.device]
        self.states[Phase.OPENED] = client.open_shares(play.states[self.device], self.delivery)
        last = max(play.devices)
        play.gone = {3: [last]}
        requests = play.mask(deliveries)
        self.states[Phase.MASKED] = play.states[self.device]
        self.request = requests[self.device]
        self.residues = play.updates[self.device]
        play.unmask(requests)
        self.states[Phase.REVEALED] = play.states[self.device]
        self.others = sorted(set(play.devices) - {self.device})

    def share(self, state: State, roster: Roster) -> tuple[State, Shares]:
        return client.share(state, roster, ca=CA, now=NOW, entropy=entropy_of("again"))


SEAT = Seat()
SESSION = SEAT.params.session
STATES = SEAT.states


def test_the_phases_are_gone_through_in_the_order_of_the_table() -> None:
    assert [state.phase for state in STATES.values()] == list(Phase)
    steps = [set(TRANSITIONS[phase].values()) for phase in Phase]
    assert steps == [{after} for after in list(Phase)[1:]] + [set()]


def call(state: State, kind: type) -> object:
    """Have a client take one step."""
    if kind is Roster:
        return SEAT.share(state, SEAT.roster)
    if kind is Delivery:
        return client.open_shares(state, SEAT.delivery)
    if kind is Masked:
        return client.mask(state, SEAT.residues.copy())
    return client.reveal(state, SEAT.request)


KINDS = (Roster, Delivery, Masked, UnmaskRequest)


@pytest.mark.parametrize(("phase", "kind"), list(itertools.product(Phase, KINDS)))
def test_what_comes_too_early_or_twice_is_refused(phase: Phase, kind: type) -> None:
    state = STATES[phase]
    stored = state.to_bytes()
    step = KINDS.index(kind)
    is_repeated = step < list(Phase).index(phase) and kind is not Masked
    if kind in TRANSITIONS[phase] or is_repeated:
        call(state, kind)
    else:
        with pytest.raises(ProtocolError, match=f"{kind.__name__} in phase {phase}"):
            call(state, kind)
    assert state.to_bytes() == stored


@pytest.mark.parametrize("phase", list(Phase)[1:])
def test_the_same_request_gets_the_same_bytes_again(phase: Phase) -> None:
    state = State.from_bytes(STATES[phase].to_bytes())
    again = SEAT.share(state, SEAT.roster)
    assert again == (state, STATES[Phase.SHARED].shares)
    if phase is Phase.SHARED:
        return
    assert client.open_shares(state, SEAT.delivery) == state
    if phase is Phase.REVEALED:
        assert client.reveal(state, SEAT.request) == (state, STATES[phase].reveal)
        assert state.masked == STATES[Phase.MASKED].masked


def fewer(roster: Roster) -> Roster:
    return Roster(roster.session, roster.neighbours[:3])


def test_a_different_request_in_the_same_session_is_refused() -> None:
    state = STATES[Phase.REVEALED]
    delivery = Delivery(SESSION, dict(list(SEAT.delivery.sealed.items())[:3]))
    request = replace(SEAT.request, dead=())
    steps: list[Callable[[], object]] = [
        lambda: SEAT.share(state, fewer(SEAT.roster)),
        lambda: client.open_shares(state, delivery),
        lambda: client.reveal(state, request),
    ]
    for step in steps:
        with pytest.raises(ProtocolError, match="a second, different") as caught:
            step()
        assert "subtracted" in caught.value.hint


def test_an_invitation_is_answered_again_only_with_the_same_parameters() -> None:
    state = STATES[Phase.SHARED]
    assert client.advertise_again(state, SEAT.params) == state.advertisement
    with pytest.raises(ProtocolError, match="parameters of the session changed"):
        client.advertise_again(state, make_params(5, threshold=4))


def test_a_device_joins_no_session_smaller_than_its_policy() -> None:
    with pytest.raises(ProtocolError, match="of 5 clients, this device joins 6 or more") as caught:
        client.advertise(SEAT.params, SEAT.identity, entropy=bytes(32), smallest=6)
    assert "min_cohort" in caught.value.hint


def test_short_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="entropy has 31 bytes"):
        client.advertise(SEAT.params, SEAT.identity, entropy=bytes(31))


def test_keys_are_new_in_every_session() -> None:
    made = [
        client.advertise(make_params(5, session=session), SEAT.identity, entropy=bytes(32))[1]
        for session in (bytes(32), b"s" * 32)
    ]
    found = {key for a in made for key in (a.sealing_key, a.masking_key, a.seed_digest)}
    assert len(found) == 6


def rosters() -> dict[str, tuple[Roster, str]]:
    neighbours = SEAT.roster.neighbours
    first, second = neighbours[:2]
    own = STATES[Phase.ADVERTISED].advertisement
    listed = (*neighbours[1:], own)
    forged = replace(first, masking_key=second.masking_key)
    foreign = replace(first, certificate=second.certificate)
    old = replace(first, session=b"o" * 32)
    return {
        "of another session": (Roster(b"o" * 32, neighbours), "Roster of another session"),
        "itself": (Roster(SESSION, (own, *neighbours)), "its own neighbour"),
        "itself instead of another": (Roster(SESSION, listed), "its own neighbour"),
        "nobody": (Roster(SESSION, ()), "a roster of 0 neighbours, allowed are 2 to 4"),
        "too few": (Roster(SESSION, (first,)), "a roster of 1 neighbours, allowed are 2 to 4"),
        "one twice": (Roster(SESSION, (first, first, second)), "names a client twice"),
        "unsorted": (Roster(SESSION, (second, first)), "not sorted"),
        "an exchanged key": (Roster(SESSION, (forged, second)), "not signed by it"),
        "another certificate": (Roster(SESSION, (foreign, second)), "shows the certificate of"),
        "a replayed key": (Roster(SESSION, (old, second)), "belongs to another session"),
    }


@pytest.mark.parametrize(("roster", "reason"), rosters().values(), ids=rosters())
def test_a_bad_roster_is_refused(roster: Roster, reason: str) -> None:
    state = STATES[Phase.ADVERTISED]
    stored = state.to_bytes()
    with pytest.raises(ProtocolError, match=reason):
        SEAT.share(state, roster)
    assert state.to_bytes() == stored


def test_a_roster_of_more_than_the_degree_is_refused() -> None:
    sparse = make_params(12, degree=4, threshold=3)
    state, _ = client.advertise(sparse, SEAT.identity, entropy=bytes(32))
    dense = Play(make_params(12, degree=6, threshold=3)).advertise()
    one_too_many = Roster(SESSION, dense[SEAT.device].neighbours[:5])
    with pytest.raises(ProtocolError, match="a roster of 5 neighbours, allowed are 2 to 4"):
        SEAT.share(state, one_too_many)


def test_as_many_neighbours_as_the_threshold_asks_for_are_enough() -> None:
    shares = SEAT.share(STATES[Phase.ADVERTISED], Roster(SESSION, SEAT.roster.neighbours[:2]))[1]
    assert len(shares.sealed) == SEAT.params.threshold - 1


def test_keys_signed_for_other_parameters_are_refused() -> None:
    other = make_params(5, threshold=4)
    state, _ = client.advertise(other, SEAT.identity, entropy=bytes(32))
    with pytest.raises(ProtocolError, match="not signed by it for this session"):
        SEAT.share(state, SEAT.roster)


def test_an_expired_certificate_in_the_roster_is_refused() -> None:
    with pytest.raises(ProtocolError, match="is valid from"):
        client.share(
            STATES[Phase.ADVERTISED],
            SEAT.roster,
            ca=CA,
            now=NOW + timedelta(days=2),
            entropy=bytes(32),
        )


def deliveries() -> dict[str, tuple[Delivery, str]]:
    sealed = dict(SEAT.delivery.sealed)
    first, second = sorted(sealed)[:2]
    flipped = sealed[first][:-1] + bytes([sealed[first][-1] ^ 1])
    swapped = {**sealed, first: sealed[second], second: sealed[first]}
    return {
        "of another session": (Delivery(b"o" * 32, sealed), "Delivery of another session"),
        "forged": (Delivery(SESSION, {**sealed, first: flipped}), "forged"),
        "swapped": (Delivery(SESSION, swapped), "forged, altered or misdirected"),
        "from a stranger": (Delivery(SESSION, {**sealed, "00" * 32: flipped}), "1 unknown clients"),
        "from itself": (Delivery(SESSION, {**sealed, SEAT.device: flipped}), "1 unknown clients"),
        "too few": (Delivery(SESSION, {first: sealed[first]}), "2 clients are left around"),
    }


@pytest.mark.parametrize(("delivery", "reason"), deliveries().values(), ids=deliveries())
def test_bad_shares_are_refused_before_training(delivery: Delivery, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        client.open_shares(STATES[Phase.SHARED], delivery)


def unmask_requests() -> dict[str, tuple[UnmaskRequest, str]]:
    alive, dead = SEAT.request.alive, SEAT.request.dead
    everyone = tuple(sorted((*alive, *dead)))
    others = tuple(device for device in everyone if device != SEAT.device)
    make = UnmaskRequest
    return {
        "of another session": (make(b"o" * 32, alive, dead), "of another session"),
        "in both lists": (make(SESSION, everyone, dead), "listed twice"),
        "twice alive": (make(SESSION, (*alive, alive[0]), dead), "listed twice"),
        "twice dead": (make(SESSION, alive, (*dead, *dead)), "listed twice"),
        "itself dead": (make(SESSION, others, (SEAT.device,)), "not among the alive"),
        "itself absent": (make(SESSION, others, ()), "not among the alive"),
        "a stranger alive": (make(SESSION, (*alive, "00" * 32), dead), "1 clients are unknown"),
        "a stranger dead": (make(SESSION, alive, ("00" * 32,)), "1 clients are unknown"),
        "too few alive": (make(SESSION, alive[:2], dead), "2 clients are left in the sum, 3"),
    }


@pytest.mark.parametrize(("request_", "reason"), unmask_requests().values(), ids=unmask_requests())
def test_a_request_that_would_expose_a_client_is_refused(
    request_: UnmaskRequest, reason: str
) -> None:
    with pytest.raises(ProtocolError, match=reason):
        client.reveal(STATES[Phase.MASKED], request_)


def test_a_client_whose_policy_wants_more_refuses_a_smaller_sum() -> None:
    strict = replace(STATES[Phase.MASKED], smallest=5)
    with pytest.raises(ProtocolError, match="4 clients are left in the sum, 5 needed"):
        client.reveal(strict, SEAT.request)


def test_in_a_ring_the_threshold_decides() -> None:
    ring = replace(STATES[Phase.MASKED], smallest=12, params=make_params(12))
    assert not ring.params.is_complete
    assert ring.needed == ring.params.threshold


def test_of_one_client_only_one_kind_of_share_is_given() -> None:
    answer = STATES[Phase.REVEALED].reveal
    assert answer is not None
    assert set(answer.seeds) == set(SEAT.request.alive)
    assert set(answer.keys) == set(SEAT.request.dead) == {max(SEAT.others)}


@pytest.mark.parametrize(
    "residues", [np.zeros(3, np.uint32), SEAT.residues.astype(np.uint64)], ids=["short", "wide"]
)
def test_only_encoded_updates_are_masked(residues: Any) -> None:
    with pytest.raises(ValueError, match="residues"):
        client.mask(STATES[Phase.OPENED], residues)


def test_masking_leaves_the_callers_residues_alone() -> None:
    before = SEAT.residues.copy()
    masked = client.mask(STATES[Phase.OPENED], SEAT.residues.copy())[1]
    assert np.array_equal(SEAT.residues, before)
    assert not np.array_equal(masked.vector(before.dtype), before)


@pytest.mark.parametrize("phase", Phase)
def test_a_stored_state_comes_back(phase: Phase) -> None:
    assert State.from_bytes(STATES[phase].to_bytes()) == STATES[phase]


def test_secrets_are_gone_once_they_are_used() -> None:
    secrets = STATES[Phase.ADVERTISED].secrets
    assert len(set(secrets)) == 3
    for phase in (Phase.MASKED, Phase.REVEALED):
        stored = STATES[phase].to_bytes()
        assert not any(secret in stored or secret.hex().encode() in stored for secret in secrets)
    assert STATES[Phase.REVEALED].held == {}


@pytest.mark.parametrize("phase", Phase)
def test_secrets_do_not_show(phase: Phase) -> None:
    state = STATES[phase]
    shown = repr(state)
    hidden = [*STATES[Phase.ADVERTISED].secrets, *STATES[Phase.MASKED].held.values()]
    assert not any(repr(secret)[2:-1] in shown for secret in hidden)


def test_no_secret_and_no_plain_residue_is_sent() -> None:
    replies = [
        STATES[Phase.SHARED].shares,
        STATES[Phase.MASKED].masked,
        STATES[Phase.ADVERTISED].advertisement,
        STATES[Phase.REVEALED].reveal,
    ]
    sent = b"".join(repr(reply and reply.to_fields()).encode() for reply in replies)
    plain = SEAT.residues.tobytes()
    for secret in (*STATES[Phase.ADVERTISED].secrets, plain, plain[:12]):
        assert repr(secret)[2:-1].encode() not in sent


@given(st.sampled_from(Phase), st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_state_is_refused_or_another_state(phase: Phase, data: st.DataObject) -> None:
    stored = bytearray(STATES[phase].to_bytes())
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] = data.draw(st.integers(0, 255))
    try:
        state = State.from_bytes(bytes(stored))
    except StoredStateError:
        return
    assert State.from_bytes(state.to_bytes()) == state


@given(st.binary(max_size=50))
@settings(max_examples=30)
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(StoredStateError, match="not the stored state"):
        State.from_bytes(data)


def test_a_state_that_lacks_what_its_phase_holds_is_refused() -> None:
    for state, phase in ((STATES[Phase.ADVERTISED], Phase.SHARED), (STATES[Phase.SHARED], "no")):
        stored = state.to_bytes().replace(
            f'"phase":"{state.phase}"'.encode(), f'"phase":"{phase}"'.encode()
        )
        with pytest.raises(StoredStateError):
            State.from_bytes(stored)
    torn = STATES[Phase.MASKED].to_bytes().partition(b"\n")[0] + b"\n"
    with pytest.raises(StoredStateError, match="a state in phase masked holds"):
        State.from_bytes(torn)


def test_a_reveal_is_what_the_server_reads() -> None:
    answer = STATES[Phase.REVEALED].reveal
    assert answer is not None
    assert Reveal.from_fields(answer.to_fields()) == answer
