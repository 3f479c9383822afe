"""A device's answer to a one-shot session, and the sum that server and helpers make of them."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.one_shot_fakes import OneShotPlay, make_helpers, make_one_shot_params
from tests.secagg_fakes import NOW, entropy_of, fleet, make_authority, make_device, make_update

from wildflower.strategies.errors import ProtocolError, StoredStateError
from wildflower.strategies.keystream import CHUNK
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys, one_shot, one_shot_keys
from wildflower.strategies.secagg.one_shot_messages import HelperCard, OneShotParams, SealedSeeds

AUTHORITY, DEVICES = fleet()
HELPERS = make_helpers(2)
PLAY = OneShotPlay(make_one_shot_params(HELPERS, 5), HELPERS)
PINS = {helper.card.digest for helper in HELPERS}


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("size", [0, 1, 7, CHUNK // 4 - 1, CHUNK // 4 + 1])
@pytest.mark.parametrize("helpers", [1, 3])
def test_the_sum_is_the_plain_sum_bit_for_bit(size: int, helpers: int, bits: int) -> None:
    several = make_helpers(helpers)
    play = OneShotPlay(make_one_shot_params(several, 6, size=size, bits=bits), several)
    assert np.array_equal(play.unmasked(play.answers), play.plain_sum(play.answers))
    decoded = play.params.encoding.decode(play.unmasked(play.answers), 6)
    weights = [make_update(number, size).weight for number in range(6)]
    assert decoded.weight == sum(weights)


@given(st.integers(3, 16), st.data())
@settings(max_examples=25, deadline=None)
def test_any_devices_may_be_lost_before_they_answer(clients: int, data: st.DataObject) -> None:
    play = OneShotPlay(make_one_shot_params(HELPERS, clients), HELPERS)
    devices = sorted(play.answers)
    left = data.draw(st.lists(st.sampled_from(devices), min_size=3, unique=True))
    assert np.array_equal(play.unmasked(left), play.plain_sum(left))


def test_without_one_helper_nothing_is_unmasked() -> None:
    helpers = make_helpers(2)
    play = OneShotPlay(make_one_shot_params(helpers, 5), helpers)
    mask = helpers[0].sum(play.request(play.answers), now=NOW)
    total = play.unmasked(play.answers) + mask  # as if the first helper had not been asked
    differences = total - play.plain_sum(play.answers)
    assert np.count_nonzero(differences) == play.params.encoding.length


def test_masks_are_new_for_each_session_device_and_answer() -> None:
    first = DEVICES[0]
    other = OneShotPlay(replace(PLAY.params, session=b"o" * 32), HELPERS)
    same_update = (PLAY.updates[first.device_id], other.updates[first.device_id])
    assert np.array_equal(*same_update)
    answers = [
        PLAY.answers[first.device_id],
        other.answers[first.device_id],
        PLAY.answer(first, "again"),
    ]
    for one, two in itertools.combinations(answers, 2):
        assert one.masked.residues != two.masked.residues
        assert one.seeds.ephemeral != two.seeds.ephemeral


def test_each_helper_has_a_seed_of_its_own() -> None:
    """With one seed for all, any one of them could take all masks off."""
    seeds = PLAY.answers[DEVICES[0].device_id].seeds
    opened = [
        one_shot_keys.open_seed(PLAY.params, seeds, place, private=helper.private)
        for place, helper in enumerate(HELPERS)
    ]
    assert len(set(opened)) == len(HELPERS)
    with pytest.raises(ProtocolError, match="cannot be opened"):
        one_shot_keys.open_seed(PLAY.params, seeds, 1, private=HELPERS[0].private)


def test_a_seal_is_bound_to_the_helper_it_was_made_for() -> None:
    """Even if two helpers shared a key, neither's seal would open as the other's."""
    private = HELPERS[0].private
    card = HELPERS[0].card
    twin = replace(card, identity=HELPERS[1].card.identity)
    cards = tuple(sorted((card, twin), key=lambda each: each.digest))
    params = replace(PLAY.params, helpers=cards)
    made = one_shot.make_answer(
        params,
        DEVICES[0],
        PLAY.updates[DEVICES[0].device_id].copy(),
        smallest=3,
        entropy=entropy_of("twin"),
    )
    swapped = replace(made.answer.seeds, sealed=made.answer.seeds.sealed[::-1])
    for place in (0, 1):
        assert one_shot_keys.open_seed(params, made.answer.seeds, place, private=private)
        with pytest.raises(ProtocolError, match="cannot be opened"):
            one_shot_keys.open_seed(params, swapped, place, private=private)


def test_a_policy_below_three_devices_demands_three() -> None:
    made = one_shot.make_answer(
        PLAY.params,
        DEVICES[0],
        PLAY.updates[DEVICES[0].device_id].copy(),
        smallest=1,
        entropy=entropy_of("lax"),
    )
    assert made.answer.seeds.smallest == 3
    assert one_shot.Made.from_bytes(made.to_bytes()) == made


def check(params: OneShotParams, *, helpers: set[str] = PINS, smallest: int = 3) -> None:
    one_shot.check_params(params, helpers=helpers, smallest=smallest)


def test_a_session_as_the_policy_wants_it_is_joined() -> None:
    check(PLAY.params)
    check(PLAY.params, smallest=5)


def exchanged(card: HelperCard, **changes: object) -> OneShotParams:
    """Return the parameters with another card in place of one."""
    changed = replace(card, **changes)  # type: ignore[arg-type]  # a test's own values
    others = [each for each in PLAY.params.helpers if each != card]
    return replace(
        PLAY.params, helpers=tuple(sorted([changed, *others], key=lambda each: each.digest))
    )


OTHER = make_helpers(3)[0] if make_helpers(3)[0] not in HELPERS else make_helpers(3)[1]
REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "no helper is trusted": (lambda: check(PLAY.params, helpers=set()), "trusts no helper"),
    "an unknown helper": (
        lambda: check(PLAY.params, helpers={HELPERS[0].card.digest, "0" * 64}),
        "the session's helpers are",
    ),
    "a helper is left out": (
        lambda: check(replace(PLAY.params, helpers=(HELPERS[0].card,))),
        "the session's helpers are",
    ),
    "a helper too many": (
        lambda: check(PLAY.params, helpers={HELPERS[0].card.digest}),
        "the session's helpers are",
    ),
    "too small a session": (
        lambda: check(PLAY.params, smallest=6),
        "a session of 5 clients, this device joins 6 or more",
    ),
    "the server's own key on a helper's card": (
        lambda: check(exchanged(HELPERS[0].card, sealing_key=keys.public_key(b"s" * 32))),
        "is not signed by it",
    ),
    "another minimum on a helper's card": (
        lambda: check(exchanged(HELPERS[0].card, min_cohort=4)),
        "is not signed by it",
    ),
    "no point on the curve": (
        lambda: one_shot_keys.check_card(
            replace(HELPERS[0].card, identity=HELPERS[0].card.identity[:-1] + b"\0")
        ),
        "helper",
    ),
    "a key of another kind": (
        lambda: one_shot_keys.check_card(replace(HELPERS[0].card, identity=bytes(91))),
        "no P-256 key",
    ),
    "a signature that is none": (
        lambda: one_shot_keys.check_card(replace(HELPERS[0].card, signature=b"none")),
        "is not signed by it",
    ),
}


@pytest.mark.parametrize(("act", "why"), REFUSED.values(), ids=REFUSED)
def test_a_session_against_the_policy_is_refused(act: Callable[[], None], why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        act()


def test_a_key_of_low_order_is_refused_even_if_it_is_signed() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    identity = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    card = one_shot_keys.make_card(
        identity, bytes(32), 3, lambda data: key.sign(data, ec.ECDSA(SHA256()))
    )
    with pytest.raises(ProtocolError, match="low order"):
        one_shot_keys.check_card(card)


def test_the_stored_answer_comes_back_and_holds_no_seed() -> None:
    made = one_shot.make_answer(
        PLAY.params,
        DEVICES[0],
        PLAY.updates[DEVICES[0].device_id].copy(),
        smallest=3,
        entropy=entropy_of("stored"),
    )
    stored = made.to_bytes()
    assert one_shot.Made.from_bytes(stored) == made
    for card in PLAY.params.helpers:
        purpose = b"one-shot/seed/" + card.digest.encode()
        seed = keys.derive(entropy_of("stored"), PLAY.params.session, purpose)
        assert seed not in stored
        assert seed.hex().encode() not in stored


def test_nothing_that_the_server_gets_holds_a_seed_a_key_or_the_update() -> None:
    device, entropy = DEVICES[0], entropy_of("secrecy")
    plain = PLAY.updates[device.device_id]
    made = one_shot.make_answer(PLAY.params, device, plain.copy(), smallest=3, entropy=entropy)
    sent = flat.to_bytes(made.answer.to_fields())
    session = PLAY.params.session
    purposes = [b"one-shot/seed/" + card.digest.encode() for card in PLAY.params.helpers]
    seeds = [keys.derive(entropy, session, purpose) for purpose in purposes]
    ephemeral = keys.derive(entropy, session, b"one-shot/ephemeral")
    masks = [one_shot_keys.mask_key(seed, session) for seed in seeds]
    for secret in (entropy, *seeds, ephemeral, *masks, plain.tobytes()):
        for start in range(0, len(secret) - 7):
            assert secret[start : start + 8].hex().encode() not in sent


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[1:], lambda b: b[:40], lambda b: b.partition(b"\n")[0]]
)
def test_a_damaged_answer_is_told(damage: Callable[[bytes], bytes]) -> None:
    made = one_shot.Made(PLAY.params, next(iter(PLAY.answers.values())))
    with pytest.raises(StoredStateError, match="not the stored answer"):
        one_shot.Made.from_bytes(damage(made.to_bytes()))


def test_the_same_question_gets_the_same_answer_and_another_one_none() -> None:
    answer = next(iter(PLAY.answers.values()))
    made = one_shot.Made(PLAY.params, answer)
    assert one_shot.repeat_answer(made, PLAY.params) == answer
    with pytest.raises(ProtocolError, match="parameters of the session changed"):
        one_shot.repeat_answer(made, replace(PLAY.params, round=2))


def test_residues_of_another_encoding_are_our_own_mistake() -> None:
    for residues in (np.zeros(3, np.uint32), np.zeros(PLAY.params.encoding.length, np.uint16)):
        with pytest.raises(ValueError, match="residues"):
            one_shot.make_answer(
                PLAY.params, DEVICES[0], residues, smallest=3, entropy=entropy_of("x")
            )
    residues = PLAY.updates[DEVICES[0].device_id].copy()
    with pytest.raises(ValueError, match="at least 32"):
        one_shot.make_answer(PLAY.params, DEVICES[0], residues, smallest=3, entropy=b"short")


def verify(seeds: SealedSeeds, params: OneShotParams = PLAY.params) -> None:
    one_shot_keys.verify_seeds(params, seeds, ca=AUTHORITY.certificate, now=NOW)


SEEDS = PLAY.answers[DEVICES[0].device_id].seeds
STRANGER = make_device(make_authority())
FORGED: dict[str, tuple[Callable[[], None], str]] = {
    "another session": (lambda: verify(SEEDS, replace(PLAY.params, session=b"o" * 32)), "signed"),
    "another round": (lambda: verify(SEEDS, replace(PLAY.params, round=2)), "not signed by it"),
    "a lower demand": (lambda: verify(replace(SEEDS, smallest=4)), "not signed by it"),
    "another seal": (lambda: verify(replace(SEEDS, sealed=SEEDS.sealed[::-1])), "not signed"),
    "a seal too few": (lambda: verify(replace(SEEDS, sealed=SEEDS.sealed[:1])), "sealed 1 seeds"),
    "another key": (lambda: verify(replace(SEEDS, ephemeral=b"e" * 32)), "not signed by it"),
    "another device": (
        lambda: verify(replace(SEEDS, device=DEVICES[1].device_id)),
        "shows the certificate of",
    ),
    "a device of another CA": (
        lambda: verify(replace(SEEDS, certificate=STRANGER.certificate_der)),
        "not signed by the pinned CA",
    ),
    "an expired certificate": (
        lambda: one_shot_keys.verify_seeds(
            PLAY.params, SEEDS, ca=AUTHORITY.certificate, now=NOW + timedelta(days=9)
        ),
        "is valid from",
    ),
}


@pytest.mark.parametrize(("act", "why"), FORGED.values(), ids=FORGED)
def test_seeds_that_their_device_did_not_sign_are_refused(
    act: Callable[[], None], why: str
) -> None:
    with pytest.raises(ProtocolError, match=why):
        act()
