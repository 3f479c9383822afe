"""The client's half of a secure-aggregation session.

    ADVERTISED -Roster-> SHARED -Delivery-> OPENED -Masked-> MASKED -UnmaskRequest-> REVEALED

A session begins with `advertise`; each further request of the server is one function that takes the
state and returns the next one and the reply. The caller (the mod of the client app) stores the new
state *before* it sends the reply: then a client sends at most one masked update and one reveal per
session, whatever happens to it. A repeated request gets the stored bytes again; one that differs
from what was answered is refused, because two different answers could be subtracted.

Illegal requests raise `ProtocolError` and the state stands. What the client guards:

* keys come from devices of the pinned CA and were signed for this session and these parameters;
* neither too few neighbours nor, later, too few survivors: the sum hides nobody otherwise;
* of one client it gives either the share of the seed or that of the key, never both;
* its policy's smallest cohort. Who is in a ring's far side only the server knows; what a client can
  check is the whole cohort of a complete graph, and its neighbourhood otherwise.

Source: Bell et al., CCS 2020, figure 2 (see `messages` for where we deviate).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.client_state import Phase, State
from wildflower.strategies.secagg.masking import add_masks
from wildflower.strategies.secagg.messages import (
    SHARE,
    Advertisement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    SessionParams,
    Shares,
    UnmaskRequest,
)
from wildflower.strategies.secagg.shamir import split_secret

SMALLEST: Final = 3  # clients in a sum: that of two tells each what the other one sent


Request = Roster | Delivery | Masked | UnmaskRequest

TRANSITIONS: Final[Mapping[Phase, Mapping[type[Request], Phase]]] = {
    Phase.ADVERTISED: {Roster: Phase.SHARED},
    Phase.SHARED: {Delivery: Phase.OPENED},
    Phase.OPENED: {Masked: Phase.MASKED},
    Phase.MASKED: {UnmaskRequest: Phase.REVEALED},
    Phase.REVEALED: {},
}
"""The whole protocol on one screen; `Masked` is the client's own doing, between two requests."""

Message = TypeVar("Message", Roster, Delivery, UnmaskRequest)

_ANSWERED: Final = {Roster: 0, Delivery: 1, UnmaskRequest: 2}
"""Places of the requests' digests in `State.requests`."""


def advertise(
    params: SessionParams,
    identity: keys.Identity,
    *,
    entropy: bytes,
    smallest: int = SMALLEST,
) -> tuple[State, Advertisement]:
    """Begin a session.

    Args:
        params: What the server proposes.
        identity: The device's identity.
        entropy: 32 or more secret random bytes, for this session only.
        smallest: Fewest clients whose sum the device's policy lets it join.

    Raises:
        ProtocolError: The session is smaller than the policy allows.
    """
    if len(entropy) < 32:
        raise ValueError(f"entropy has {len(entropy)} bytes, at least 32 are needed")
    if params.clients < smallest:
        raise ProtocolError(
            f"a session of {params.clients} clients, this device joins {smallest} or more",
            hint="Lower min_cohort in the device's policy, or ask for a larger cohort.",
        )
    sealing, masking, seed = (
        keys.derive(entropy, params.session, purpose)
        for purpose in (b"client/sealing", b"client/masking", b"client/seed")
    )
    unsigned = Advertisement(
        params.session,
        identity.device_id,
        keys.public_key(sealing),
        keys.public_key(masking),
        keys.seed_digest(params.session, seed),
        identity.certificate_der,
        b"",
    )
    advertisement = replace(unsigned, signature=identity.sign(keys.signed_bytes(params, unsigned)))
    state = State(
        Phase.ADVERTISED,
        params,
        identity.device_id,
        smallest,
        advertisement,
        (sealing, masking, seed),
    )
    return state, advertisement


def advertise_again(state: State, params: SessionParams) -> Advertisement:
    """Return the stored advertisement to a server that asks again.

    Raises:
        ProtocolError: The parameters changed.
    """
    if params.digest != state.params.digest:
        raise ProtocolError("the parameters of the session changed since its keys were signed")
    return state.advertisement


def share(
    state: State, roster: Roster, *, ca: x509.Certificate, now: datetime, entropy: bytes
) -> tuple[State, Shares]:
    """Share the secrets among the neighbours.

    Args:
        state: In ADVERTISED; in a later phase the same roster gets the same shares again.
        roster: The neighbours.
        ca: The pinned enrolment CA.
        now: The present, with a time zone.
        entropy: 32 or more secret random bytes, for this call only.

    Raises:
        ProtocolError: Too few or too many neighbours, itself among them, or keys that are not
            theirs.
    """
    phase, request = _admit(state, roster)
    if state.shares is not None:
        return state, state.shares
    _check_roster(state, roster)
    for neighbour in roster.neighbours:
        keys.verify(state.params, neighbour, ca=ca, now=now)
    sealing, masking, seed = state.secrets
    session = state.params.session
    holders = sorted({state.device, *(each.device for each in roster.neighbours)})
    of_seed = _split(state, seed, holders, keys.derive(entropy, session, b"client/of-seed"))
    of_key = _split(state, masking, holders, keys.derive(entropy, session, b"client/of-key"))
    sealing_key = keys.agreement(sealing, session, b"seal")
    shares = Shares(
        session,
        {
            each.device: keys.seal(
                sealing_key(each.sealing_key),
                _nonce(entropy, session, each.device),
                of_seed[each.device] + of_key[each.device],
                keys.route(session, state.device, each.device),
            )
            for each in roster.neighbours
        },
    )
    after = replace(
        state,
        phase=phase,
        requests=(*state.requests, request),
        neighbours=roster.neighbours,
        shares=shares,
        held={state.device: of_seed[state.device]},
    )
    return after, shares


def open_shares(state: State, delivery: Delivery) -> State:
    """Open what the neighbours sealed; do it before training, which a refusal would waste.

    Args:
        state: In SHARED; in a later phase the same delivery changes nothing, and `state.masked`
            is the reply if there is one already.
        delivery: The sealed shares of those neighbours that are still there.

    Raises:
        ProtocolError: Too few neighbours are left, unknown ones, or forged shares.
    """
    phase, request = _admit(state, delivery)
    if request in state.requests:
        return state
    known = {each.device: each for each in state.neighbours}
    if not set(delivery.sealed) <= set(known):
        raise ProtocolError(f"shares of {len(set(delivery.sealed) - set(known))} unknown clients")
    if len(delivery.sealed) + 1 < state.needed:
        raise ProtocolError(
            f"{len(delivery.sealed) + 1} clients are left around this one, {state.needed} needed"
        )
    session = state.params.session
    sealing_key = keys.agreement(state.secrets[0], session, b"seal")
    held = {
        device: keys.unseal(
            sealing_key(known[device].sealing_key),
            sealed,
            keys.route(session, device, state.device),
        )
        for device, sealed in delivery.sealed.items()
    }
    return replace(
        state, phase=phase, requests=(*state.requests, request), held={**state.held, **held}
    )


def mask(state: State, residues: Residues) -> tuple[State, Masked]:
    """Mask an encoded update, once; the secrets are gone afterwards.

    Args:
        state: In OPENED.
        residues: The encoded update, shape (params.encoding.length,); it is masked in place, so
            that nothing unmasked is left behind and no second vector needs memory.

    Raises:
        ProtocolError: There is a masked update already, or it is too early for one.
    """
    phase = _target(state, Masked)
    encoding = state.params.encoding
    if residues.shape != (encoding.length,) or residues.dtype != encoding.dtype:
        raise ValueError(
            f"{encoding.length} residues of {encoding.bits} bits, found {residues.dtype}"
            f" of shape {residues.shape}"
        )
    _, masking, seed = state.secrets
    session = state.params.session
    pair_mask_key = keys.pair_mask_keys(masking, session)
    plus: list[bytes] = [keys.self_mask_key(seed, session)]
    minus: list[bytes] = []
    for neighbour in state.neighbours:
        if neighbour.device in state.held:
            key = pair_mask_key(neighbour.masking_key)
            (plus if state.device < neighbour.device else minus).append(key)
    add_masks(residues, plus, minus)
    masked = Masked.of(session, residues)
    return replace(state, phase=phase, secrets=(), neighbours=(), masked=masked), masked


def reveal(state: State, request: UnmaskRequest) -> tuple[State, Reveal]:
    """Give up the seed shares of the alive and the key shares of the dead, once.

    Args:
        state: In MASKED; in REVEALED the same request gets the same answer.
        request: Who is in the sum and who is not.

    Raises:
        ProtocolError: The request would expose a client, this one or another.
    """
    phase, digest = _admit(state, request)
    if state.reveal is not None:
        return state, state.reveal
    alive, dead = set(request.alive), set(request.dead)
    if alive & dead or len(alive) + len(dead) != len(request.alive) + len(request.dead):
        raise ProtocolError("a client is listed twice: alive and dead, or repeated")
    if state.device not in alive:
        raise ProtocolError("this client is not among the alive, though it sent its update")
    if not alive | dead <= set(state.held):
        raise ProtocolError(f"{len((alive | dead) - set(state.held))} clients are unknown here")
    if len(alive) < state.needed:
        raise ProtocolError(f"{len(alive)} clients are left in the sum, {state.needed} needed")
    answer = Reveal(
        state.params.session,
        {device: state.held[device][:SHARE] for device in request.alive},
        {device: state.held[device][SHARE:] for device in request.dead},
    )
    after = replace(state, phase=phase, requests=(*state.requests, digest), held={}, reveal=answer)
    return after, answer


def _target(state: State, kind: type[Request]) -> Phase:
    target = TRANSITIONS[state.phase].get(kind)
    if target is None:
        raise ProtocolError(f"{kind.__name__} in phase {state.phase}")
    return target


def _admit(state: State, message: Message) -> tuple[Phase, bytes]:
    """Return the next phase and the message's digest; the present phase for a repeated message."""
    if message.session != state.params.session:
        raise ProtocolError(f"{type(message).__name__} of another session")
    digest = flat.digest(message.to_fields())
    place = _ANSWERED[type(message)]
    if place < len(state.requests):
        if state.requests[place] != digest:
            raise ProtocolError(
                f"a second, different {type(message).__name__} in one session",
                hint="Two answers could be subtracted from each other: begin a new session.",
            )
        return state.phase, digest
    return _target(state, type(message)), digest


def _split(state: State, secret: bytes, holders: Sequence[str], entropy: bytes) -> dict[str, bytes]:
    """Return each holder's share; its point is its place among the sorted holders, from 1."""
    points = range(1, len(holders) + 1)
    parts = split_secret(secret, state.params.threshold, points, entropy=entropy)
    return dict(zip(holders, parts, strict=True))


def _nonce(entropy: bytes, session: bytes, device: str) -> bytes:
    return keys.derive(entropy, session, b"client/nonce/" + device.encode())[: keys.NONCE]


def _check_roster(state: State, roster: Roster) -> None:
    devices = [each.device for each in roster.neighbours]
    if state.device in devices:
        raise ProtocolError("this client is listed as its own neighbour")
    if devices != sorted(set(devices)):
        raise ProtocolError("the roster is not sorted, or names a client twice")
    if not state.needed <= len(devices) + 1 <= state.params.degree + 1:
        raise ProtocolError(
            f"a roster of {len(devices)} neighbours, allowed are {state.needed - 1}"
            f" to {state.params.degree}"
        )
