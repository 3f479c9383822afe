"""The frozen one-shot sessions in tests/goldens/secagg: messages of fixed seeds, and refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding as Form
from cryptography.hazmat.primitives.serialization import PublicFormat
from tests.one_shot_fakes import OneShotPlay, make_one_shot_params
from tests.secagg_fakes import NOW, entropy_of
from tests.secagg_vectors import Json, RepeatableDevice, cast, fixed_key

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.secagg import fields as flat
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.helper import Helper, MemoryClaims
from wildflower.strategies.secagg.masking import add_masks
from wildflower.strategies.secagg.one_shot_keys import make_card, mask_key, open_seed
from wildflower.strategies.secagg.one_shot_messages import HelperCard, OneShotAnswer, SumRequest

PLACE = Path(__file__).parents[2] / "goldens" / "secagg"
CLIENTS = 4


def repeatable_helper(number: int) -> Helper:
    authority, _ = cast(CLIENTS)
    key = fixed_key("helper", number)
    signer = RepeatableDevice(key, "", b"")
    spki = key.public_key().public_bytes(Form.DER, PublicFormat.SubjectPublicKeyInfo)
    private = entropy_of("helper's sealing key", number)
    card = make_card(spki, keys.public_key(private), 3, signer.sign)
    return Helper(card, private, authority.certificate, MemoryClaims())


def played(bits: int) -> OneShotPlay:
    helpers = sorted(map(repeatable_helper, range(2)), key=lambda helper: helper.card.digest)
    session = entropy_of("one-shot session", bits)
    params = make_one_shot_params(helpers, CLIENTS, session=session, bits=bits)
    return OneShotPlay(params, helpers, devices=cast(CLIENTS)[1])


def stored(message: Any) -> str:
    return flat.to_bytes(message.to_fields()).decode()


def vector_of(play: OneShotPlay) -> Json:
    """Return a session in which the last device is lost."""
    ca, devices = play.helpers[0].ca, sorted(play.answers)[:-1]
    request = play.request(devices)
    return {
        "ca": ca.public_bytes(Form.DER).hex(),
        "now": NOW.isoformat(),
        "params": stored(play.params),
        "residues": {device: play.updates[device].tobytes().hex() for device in play.updates},
        "entropy": {
            device: entropy_of(device, play.params.session).hex() for device in play.updates
        },
        "answers": {device: stored(answer) for device, answer in play.answers.items()},
        "request": stored(request),
        "helpers": [
            {
                "private": helper.private.hex(),
                "card": stored(helper.card),
                "sum": helper.sum(request, now=NOW).tobytes().hex(),
            }
            for helper in play.helpers
        ],
        "sum": play.unmasked(devices).tobytes().hex(),
        "refused": refusals(play, request),
    }


def refusals(play: OneShotPlay, request: SumRequest) -> Json:
    """Return requests that the first helper, who has answered `request`, refuses, and why."""
    first, *others = request.seeds
    third = play.request(sorted(play.answers)).seeds[-1]
    flipped = bytes([first.sealed[0][0] ^ 1]) + first.sealed[0][1:]
    made = {
        "a second cohort": replace(request, seeds=(*others, third)),
        "two devices": replace(request, seeds=tuple(others)),
        "another session": replace(request, params=replace(play.params, session=bytes(32))),
        "another round": replace(request, params=replace(play.params, round=2)),
        "an altered seal": replace(
            request, seeds=(replace(first, sealed=(flipped, *first.sealed[1:])), *others)
        ),
        "a lower demand": replace(request, seeds=(replace(first, smallest=4), *others)),
    }
    return {name: {"request": stored(each), "why": why(play, each)} for name, each in made.items()}


def why(play: OneShotPlay, request: SumRequest) -> str:
    with pytest.raises(ProtocolError) as caught:
        play.helpers[0].sum(request, now=NOW)
    return str(caught.value)


def frozen(bits: int) -> Json:
    found: Json = json.loads((PLACE / f"one-shot-{bits}.json").read_text())
    return found


@pytest.mark.parametrize("bits", [16, 32])
def test_the_seeds_give_the_very_same_messages_sums_and_refusals(
    bits: int, update_goldens: bool
) -> None:
    made = vector_of(played(bits))
    if update_goldens:
        text = json.dumps(made, indent=1, sort_keys=True)
        (PLACE / f"one-shot-{bits}.json").write_text(f"{text}\n")
    assert made == frozen(bits)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_helper_that_knows_its_key_alone_finds_the_sum(bits: int) -> None:
    vector = frozen(bits)
    ca = x509.load_der_x509_certificate(bytes.fromhex(vector["ca"]))
    request = SumRequest.from_fields(flat.from_bytes(vector["request"].encode()))
    dtype = request.params.encoding.dtype
    total = np.zeros(request.params.encoding.length, dtype)
    for seeds in request.seeds:
        stored_answer = vector["answers"][seeds.device].encode()
        answer = OneShotAnswer.from_fields(flat.from_bytes(stored_answer))
        assert answer.seeds == seeds
        total += answer.masked.vector(dtype)
    for told in vector["helpers"]:
        card = HelperCard.from_fields(flat.from_bytes(told["card"].encode()))
        helper = Helper(card, bytes.fromhex(told["private"]), ca, MemoryClaims())
        mask = helper.sum(request, now=NOW)
        assert mask.tobytes().hex() == told["sum"]
        total -= mask
        for refused in vector["refused"].values():
            asked = SumRequest.from_fields(flat.from_bytes(refused["request"].encode()))
            with pytest.raises(ProtocolError) as caught:
                helper.sum(asked, now=NOW)
            assert str(caught.value) == refused["why"]
    assert total.tobytes().hex() == vector["sum"]


@pytest.mark.parametrize("bits", [16, 32])
def test_the_frozen_sum_is_that_of_the_residues(bits: int) -> None:
    vector = frozen(bits)
    request = SumRequest.from_fields(flat.from_bytes(vector["request"].encode()))
    rows = [
        np.frombuffer(bytes.fromhex(vector["residues"][seeds.device]), f"<u{bits // 8}")
        for seeds in request.seeds
    ]
    assert np.add.reduce(rows, dtype=f"<u{bits // 8}").tobytes().hex() == vector["sum"]


def test_one_opened_seed_is_one_mask() -> None:
    """By hand: what the first device sent, less the masks of its two seeds, is its residues."""
    play = played(32)
    device, answer = next(iter(play.answers.items()))
    seeds = [
        open_seed(play.params, answer.seeds, place, private=helper.private)
        for place, helper in enumerate(play.helpers)
    ]
    found = answer.masked.vector(np.dtype(np.uint32)).copy()
    add_masks(found, [], [mask_key(seed, play.params.session) for seed in seeds])
    assert np.array_equal(found, play.updates[device])
