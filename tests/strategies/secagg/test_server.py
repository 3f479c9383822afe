"""The server's half: exact sums whoever is lost, or no sum at all."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.secagg_fakes import NOW, Play, entropy_of, fleet, make_params

from wildflower.strategies.errors import ProtocolError, SessionAbortedError
from wildflower.strategies.secagg import client, keys
from wildflower.strategies.secagg.messages import (
    SHARE,
    Advertisement,
    Masked,
    Reveal,
    SessionParams,
    Shares,
)
from wildflower.strategies.secagg.server import ACCEPTED, TRANSITIONS, Phase, Session

TRIPS = (1, 2, 3, 4)


def lose(params: SessionParams, trip: int, count: int) -> Play:
    """Return a session that loses some devices before a trip."""
    devices = fleet()[1][: params.clients]
    return Play(params, gone={trip: [device.device_id for device in devices[:count]]})


@pytest.mark.parametrize("clients", [3, 4, 5, 8, 12])
def test_the_sum_is_the_plain_fixed_point_sum_bit_for_bit(clients: int) -> None:
    play = Play(make_params(clients))
    assert np.array_equal(play.run(), play.plain_sum())
    assert play.session.survivors == tuple(sorted(play.devices))
    assert (play.refusals, play.session.phase) == ({}, Phase.DONE)


def test_the_decoded_sum_is_the_weighted_one() -> None:
    play = lose(make_params(8), 3, 2)
    total = play.params.encoding.decode(play.run(), len(play.session.survivors))
    plain = play.params.encoding.decode(play.plain_sum(), 6)
    assert np.array_equal(total.vector, plain.vector)
    assert total.clients == 6
    assert total.weight == plain.weight > 0


@pytest.mark.parametrize("trip", TRIPS)
def test_in_a_ring_a_lost_client_costs_no_more_either(trip: int) -> None:
    play = lose(make_params(12, degree=6, threshold=4), trip, 2)
    assert np.array_equal(play.run(), play.plain_sum())


def test_clients_may_be_lost_in_every_trip_of_one_session() -> None:
    params = make_params(12, degree=10, threshold=5)
    devices = [device.device_id for device in fleet()[1]]
    play = Play(params, gone={trip: [devices[trip]] for trip in TRIPS})
    assert np.array_equal(play.run(), play.plain_sum())
    assert len(play.session.survivors) == 9


def test_a_client_left_alone_in_the_ring_is_left_out_before_it_trains() -> None:
    play = Play(make_params(12, degree=6, threshold=4))
    rosters = play.advertise()
    around = {
        device: {each.device for each in roster.neighbours} for device, roster in rosters.items()
    }
    lonely = min(rosters)
    # The nearest on the ring have the most neighbours in common with it.
    nearest = sorted(around[lonely], key=lambda other: -len(around[other] & around[lonely]))[:4]
    play.gone = {2: nearest}
    deliveries = play.share(rosters)
    assert set(play.devices) - set(deliveries) == {lonely, *nearest}
    assert np.array_equal(play.unmask(play.mask(deliveries)), play.plain_sum())


def test_a_ring_that_falls_apart_before_training_ends_the_session() -> None:
    play = Play(make_params(12, degree=4, threshold=5))
    rosters = play.advertise()
    play.gone = {2: [min(rosters)]}
    with pytest.raises(SessionAbortedError, match="have neighbours that did, 5 are needed"):
        play.share(rosters)


def test_a_ring_that_falls_apart_while_training_asks_nobody_for_shares() -> None:
    play = Play(make_params(12, degree=4, threshold=5))
    rosters = play.advertise()
    deliveries = play.share(rosters)
    play.gone = {3: [min(rosters)]}
    with pytest.raises(SessionAbortedError, match="11 masked updates arrived, the masks of"):
        play.mask(deliveries)
    assert play.session.phase is Phase.ABORTED


def test_what_the_server_sees_of_extreme_updates_looks_uniform() -> None:
    play = Play(make_params(3, size=60_000))
    for device, value in zip(play.devices, (0, 0xFFFFFFFF, 0x7FFFFFFF), strict=True):
        play.updates[device] = np.full(play.params.encoding.length, value, np.uint32)
    assert np.array_equal(play.run(), play.plain_sum())
    vectors = [m.vector(np.dtype(np.uint32)) for m in play.sent if isinstance(m, Masked)]
    for vector in vectors:
        for byte in range(4):
            counts = np.bincount(vector.view(np.uint8)[byte::4], minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-9
    for left, right in itertools.combinations(vectors, 2):
        assert abs(np.corrcoef(left, right)[0, 1]) * np.sqrt(left.size) < 7


def test_no_two_sessions_send_the_same_masked_update() -> None:
    sent = []
    for session in (bytes(32), b"s" * 32):
        play = Play(make_params(3, session=session))
        play.run()
        sent.append({message.residues for message in play.sent if isinstance(message, Masked)})
    assert not sent[0] & sent[1]


def test_waiting_on_is_over_as_soon_as_every_mask_can_be_taken_off() -> None:
    play = Play(make_params(8))
    requests = play.mask(play.share(play.advertise()))
    enough = []
    for device, request in requests.items():
        enough.append(play.session.is_enough)
        message = client.reveal(play.states[device], request)[1]
        play.session.receive(device, message, now=NOW)
    assert enough == [False] * 5 + [True] * 3
    assert play.session.missing == frozenset()
    assert np.array_equal(play.session.total(), play.plain_sum())


def test_a_phase_that_has_just_begun_waits_for_everybody() -> None:
    play = Play(make_params(3))
    assert play.session.missing == frozenset(play.devices)
    rosters = play.advertise()
    assert not play.session.is_enough
    deliveries = play.share(rosters)
    assert not play.session.is_enough
    play.mask(deliveries)
    assert not play.session.is_enough


def test_the_cohort_fits_the_parameters() -> None:
    devices = [device.device_id for device in fleet()[1]]
    for cohort in (devices[:2], devices[:5]):
        with pytest.raises(ValueError, match="the parameters are for 4"):
            Session(make_params(4), cohort, ca=fleet()[0].certificate)


class Stop:
    """A session of four, halted in each phase, with a message that the phase would take."""

    def __init__(self, phase: Phase) -> None:
        self.play = play = Play(make_params(4))
        self.device = min(play.devices)
        self.session = play.session
        order: tuple[Any, ...] = (play.advertise, play.share, play.mask, play.unmask)
        result: Any = None
        for index, step in enumerate(order):
            play.gone = {index + 1: [self.device]} if list(Phase)[index] is phase else {}
            if list(Phase)[index] is phase:
                break
            result = step(result) if index else step()
        self.result = result

    def message(self) -> Any:
        """Return what the halted device would send."""
        play, device = self.play, self.device
        match self.session.phase:
            case Phase.ADVERTISING:
                return client.advertise(play.params, play.devices[device], entropy=bytes(32))[1]
            case Phase.SHARING:
                ca = play.authority.certificate
                roster, entropy = self.result[device], entropy_of("x")
                return client.share(play.states[device], roster, ca=ca, now=NOW, entropy=entropy)[1]
            case Phase.MASKING:
                opened = client.open_shares(play.states[device], self.result[device])
                return client.mask(opened, play.updates[device].copy())[1]
            case _:
                return client.reveal(play.states[device], self.result[device])[1]


OPEN = list(ACCEPTED)


@pytest.mark.parametrize("phase", OPEN)
def test_a_phase_takes_its_own_message_once(phase: Phase) -> None:
    stop = Stop(phase)
    message = stop.message()
    assert type(message) is ACCEPTED[phase]
    stop.session.receive(stop.device, message, now=NOW)
    with pytest.raises(ProtocolError, match="a second"):
        stop.session.receive(stop.device, message, now=NOW)


@pytest.mark.parametrize("phase", OPEN)
def test_a_phase_refuses_strangers_and_other_sessions(phase: Phase) -> None:
    stop = Stop(phase)
    message = stop.message()
    with pytest.raises(ProtocolError, match="is not expected while"):
        stop.session.receive("00" * 32, message, now=NOW)
    with pytest.raises(ProtocolError, match="of another session"):
        stop.session.receive(stop.device, replace(message, session=b"o" * 32), now=NOW)
    assert stop.device in stop.session.missing


@pytest.mark.parametrize(("phase", "sent"), list(itertools.product(Phase, OPEN)))
def test_a_phase_refuses_the_messages_of_the_others(phase: Phase, sent: Phase) -> None:
    if phase is sent:
        return
    session = Play(make_params(4)).session
    session.phase = phase
    with pytest.raises(ProtocolError, match=f"{ACCEPTED[sent].__name__} while {phase}"):
        session.receive(fleet()[1][0].device_id, Stop(sent).message(), now=NOW)


def closers(session: Session) -> dict[Phase, Any]:
    return {
        Phase.ADVERTISING: lambda: session.rosters(entropy=bytes(32)),
        Phase.SHARING: session.deliveries,
        Phase.MASKING: session.requests,
        Phase.UNMASKING: session.total,
    }


@pytest.mark.parametrize(("phase", "closed"), list(itertools.product(Phase, OPEN)))
def test_phases_are_closed_in_the_order_of_the_table(phase: Phase, closed: Phase) -> None:
    if phase is closed:
        assert TRANSITIONS[phase] is list(Phase)[list(Phase).index(phase) + 1]
        return
    session = Play(make_params(4)).session
    session.phase = phase
    with pytest.raises(ProtocolError, match=f"closing {closed} while {phase}"):
        closers(session)[closed]()
    assert session.phase is phase


def tampered(params: SessionParams, tamper: Any) -> Play:
    return Play(params, tamper=tamper)


def spoil(kind: type, victim: str, **changes: Any) -> Any:
    """Return a tampering that changes one device's message of one kind."""

    def tamper(device: str, message: Any) -> Any:
        given: Any = message
        if device != victim or type(message) is not kind:
            return message
        return replace(given, **{k: v(given) for k, v in changes.items()})

    return tamper


VICTIM, OTHER = sorted(device.device_id for device in fleet()[1][:8])[:2]


def without_first(shares: Any) -> dict[str, bytes]:
    return dict(list(shares.items())[1:])


SPOILT: dict[str, tuple[Any, str, int]] = {
    "an exchanged key": (
        spoil(Advertisement, VICTIM, masking_key=lambda m: m.sealing_key),
        "are not signed by it",
        7,
    ),
    "another's name": (spoil(Advertisement, VICTIM, device=lambda _: OTHER), "advertises keys", 7),
    "a share too few": (
        spoil(Shares, VICTIM, sealed=lambda m: without_first(m.sealed)),
        "shares with 6 clients",
        7,
    ),
    "residues too few": (
        spoil(Masked, VICTIM, residues=lambda m: m.residues[:-4]),
        "sends 28 bytes of residues, expected 32",
        7,
    ),
    "a seed share too few": (
        spoil(Reveal, VICTIM, seeds=lambda m: without_first(m.seeds)),
        "other shares than it was asked for",
        8,
    ),
}


@pytest.mark.parametrize(("tamper", "reason", "left"), SPOILT.values(), ids=SPOILT)
def test_a_refused_message_makes_its_sender_a_dropout(tamper: Any, reason: str, left: int) -> None:
    play = tampered(make_params(8), tamper)
    assert np.array_equal(play.run(), play.plain_sum())
    assert len(play.session.survivors) == left
    assert list(play.refusals) == [VICTIM]
    assert reason in play.refusals[VICTIM]


def test_keys_of_low_order_are_refused_before_they_reach_the_neighbours() -> None:
    play = Play(make_params(4))
    device = play.devices[min(play.devices)]
    message = client.advertise(play.params, device, entropy=bytes(32))[1]
    for name in ("sealing_key", "masking_key"):
        weak: Any = replace(message, **{name: bytes(32)})  # type: ignore[arg-type]  # two names
        signed = replace(weak, signature=device.sign(keys.signed_bytes(play.params, weak)))
        with pytest.raises(ProtocolError, match="low order"):
            play.session.receive(device.device_id, signed, now=NOW)


def lie(name: str, value: bytes) -> Any:
    """Return a tampering that changes one share of one device's reveal."""

    def change(message: Any) -> dict[str, bytes]:
        shares = dict(getattr(message, name))
        return {**shares, max(shares): value} if shares else shares

    return change


WRONG = {
    "another share": bytes(SHARE - 1) + b"\1",
    "no element of a secret": b"\xff" * SHARE,
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("name", "secret"), [("seeds", "seed"), ("keys", "key")])
def test_a_wrong_share_ends_the_session_and_never_gives_a_wrong_sum(
    name: str, secret: str, value: bytes
) -> None:
    play = tampered(make_params(8), spoil(Reveal, VICTIM, **{name: lie(name, value)}))
    play.gone = {3: [max(play.devices)]}
    with pytest.raises(SessionAbortedError, match=rf"not those of the {secret}|the shares of"):
        play.run()
    assert play.session.phase is Phase.ABORTED


def test_shares_that_fit_no_secret_end_the_session() -> None:
    play = Play(make_params(3))
    requests = play.mask(play.share(play.advertise()))
    # With all three shares -1 the line through them is -1 at 0: no 32-byte secret.
    element = (2**256 + 296).to_bytes(SHARE, "big")
    for device, request in requests.items():
        answer = Reveal(bytes(32), dict.fromkeys(request.alive, element), {})
        play.session.receive(device, answer, now=NOW)
    with pytest.raises(SessionAbortedError, match="do not belong to one secret"):
        play.session.total()
