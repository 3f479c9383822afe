"""Distributed noise: sums, sensitivity, wrapping, what is accounted, what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wildflower.strategies.arrays import Update
from wildflower.strategies.dp.accounting import epsilon_of
from wildflower.strategies.dp.contribution import Bounds, Contribution
from wildflower.strategies.dp.distributed import OVERFLOW, SkellamEncoding
from wildflower.strategies.dp.events import Gaussian, Sampling, Scheme
from wildflower.strategies.errors import CapacityError, ProtocolError, UpdateRefusedError

ROTATION = bytes(range(16))
LOSS = ("loss", Bounds(0.0, 8.0))
HITS = ("hits", Bounds(0.0, 100.0))


def encoding_of(size: int = 1000, **changes: Any) -> SkellamEncoding:
    given_ = {"noise_multiplier": 1.0, "clients": 10, "min_cohort": 8, "rotation": ROTATION}
    contribution = Contribution(size, changes.pop("norm", 1.0), changes.pop("statistics", ()))
    return SkellamEncoding.for_cohort(contribution, **{**given_, **changes})


def update_of(seed: int, size: int, norm: float = 2.0, **statistics: float) -> Update:
    vector = np.random.default_rng(seed).standard_t(3, size).astype(np.float32)
    length = float(np.linalg.norm(vector)) or 1.0
    return Update((vector * (norm / length)).astype(np.float32), 1.0, statistics)


def total_of(encoding: SkellamEncoding, updates: list[Update]) -> Any:
    rows = [encoding.encode(each, i.to_bytes(32)) for i, each in enumerate(updates)]
    return np.stack(rows).sum(axis=0, dtype=encoding.dtype)


def test_at_16_bits_the_error_is_that_of_central_noise() -> None:
    size, clients = 1 << 17, 40
    encoding = encoding_of(size, clients=clients, min_cohort=clients)
    updates = [update_of(i, size) for i in range(clients)]
    exact = sum((encoding.contribution.join(each) for each in updates), start=np.zeros(size))
    found = encoding.decode(total_of(encoding, updates), clients)
    ratio = math.sqrt(float(np.mean((found.vector - exact) ** 2))) / encoding.norm
    assert 0.99 < ratio <= 1.02
    assert (found.weight, found.clients) == (clients, clients)
    price = epsilon_of([encoding.event(clients)], delta=1e-5)
    central = epsilon_of([Gaussian(1.0)], delta=1e-5, method="rdp")
    assert central < price < central * 1.0001


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("size", [0, 1, 3, 100, 1025])
def test_sums_come_out_with_the_noise_they_should_have(bits: int, size: int) -> None:
    encoding = encoding_of(size, bits=bits, statistics=(LOSS, HITS), noise_multiplier=0.05)
    updates = [update_of(i, size, 0.5, loss=float(i % 8), hits=50.0) for i in range(9)]
    joint = sum((encoding.contribution.join(each) for each in updates), start=np.zeros(size + 2))
    found = encoding.decode(total_of(encoding, updates), 9)
    error = encoding.contribution.join_sum(found) - joint
    sigma = 0.05 * encoding.inflation * encoding.contribution.radius * math.sqrt(9 / 8)
    rounding = 3 / encoding.scale
    assert np.abs(error).max() < 6 * (sigma + rounding)
    assert found.statistics["loss"] != sum(each.statistics["loss"] for each in updates)
    assert encoding.names == ("loss", "hits")
    assert found.weight == (9.0 if size else 0.0)


def test_nothing_is_padded_and_16_bits_are_2_bytes() -> None:
    encoding = encoding_of(1100, statistics=(LOSS,))
    residues = encoding.encode(update_of(0, 1100, loss=1.0), bytes(32))
    assert residues.shape == (1101,) == (encoding.length,)
    assert residues.dtype == encoding.dtype == np.uint16
    assert encoding_of(5, bits=32).dtype == np.uint32


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(1, 64), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.floats(-1e9, 1e9),
    st.sampled_from([(0.05, 10, 16), (1.0, 10, 16), (4.0, 1000, 16), (1.0, 10, 32)]),
    st.binary(min_size=32, max_size=32),
)
def test_no_update_is_ever_longer_than_the_accounted_sensitivity(
    vector: Any, loss: float, given_: tuple[float, int, int], entropy: bytes
) -> None:
    noise, clients, bits = given_
    encoding = encoding_of(
        vector.size,
        statistics=(LOSS,),
        noise_multiplier=noise,
        clients=clients,
        min_cohort=clients,
        bits=bits,
    )
    integers = [int(x) for x in encoding.integers(Update(vector, 1.0, {"loss": loss}), entropy)]
    assert math.sqrt(sum(x * x for x in integers)) <= encoding.l2
    assert sum(abs(x) for x in integers) <= encoding.l1 * (1 + 1e-12)


def worst_cases(size: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        np.eye(1, size)[0],
        np.eye(1, size, size - 1)[0],
        np.ones(size),
        np.where(np.arange(size) % 2, 1.0, -1.0),
        rng.normal(size=size),
        rng.standard_cauchy(size),
        np.full(size, 1e-30),
    ]


@pytest.mark.parametrize("case", range(7))
def test_adversarial_updates_are_within_the_sensitivity_too(case: int) -> None:
    encoding = encoding_of(777, noise_multiplier=3.0, clients=1000, min_cohort=10)
    vector = (worst_cases(777)[case] * 1e6).astype(np.float32)
    for seed in range(30):
        found = encoding.integers(Update(vector, 1.0, {}), seed.to_bytes(32))
        assert math.sqrt(int(np.dot(found, found))) <= encoding.l2


def test_the_worst_cohort_does_not_wrap() -> None:
    """All devices send the same longest update in one element: the signal is the largest."""
    clients, size = 200, 64
    encoding = encoding_of(size, clients=clients, min_cohort=clients, noise_multiplier=0.05)
    assert -45 < encoding.overflow <= OVERFLOW
    vector = np.eye(1, size, 5)[0].astype(np.float32)
    found = encoding.decode(total_of(encoding, [Update(vector, 1.0, {})] * clients), clients)
    assert np.allclose(found.vector, vector * clients, atol=6 * 0.05 * encoding.inflation + 1)


def test_the_noise_is_that_of_the_devices_that_were_there() -> None:
    encoding = encoding_of(20_000, clients=50, min_cohort=10)
    zero = Update(np.zeros(20_000, np.float32), 1.0, {})
    for present in (10, 40):
        found = encoding.decode(total_of(encoding, [zero] * present), present)
        expected = encoding.inflation * math.sqrt(present / 10)
        assert np.std(found.vector) == pytest.approx(expected, rel=0.03)
        assert encoding.event(present).noise_multiplier == pytest.approx(math.sqrt(present / 10))
    prices = [epsilon_of([encoding.event(n)], delta=1e-5) for n in (5, 10, 40)]
    assert prices[0] > prices[1] > prices[2]
    assert prices[1] == pytest.approx(4.7285, abs=1e-3)


def test_an_event_says_how_the_cohort_was_drawn() -> None:
    sampling = Sampling(Scheme.POISSON, 10, 100)
    found = encoding_of().event(8, sampling)
    assert (found.sampling, found.l2, found.l1) == (sampling, encoding_of().l2, encoding_of().l1)
    with pytest.raises(ValueError, match="survivors is 11"):
        encoding_of().event(11)


def test_other_entropy_is_other_noise() -> None:
    encoding, update = encoding_of(), update_of(0, 1000)
    one, two = (encoding.encode(update, bytes([i]) * 32) for i in range(2))
    assert np.mean(one == two) < 0.05
    assert np.array_equal(one, encoding.encode(update, bytes(32)))
    with pytest.raises(ValueError, match="32 secret random bytes"):
        encoding.encode(update, bytes(16))


@pytest.mark.parametrize(
    ("update", "match"),
    [
        (Update(np.ones(1000, np.float32), 2.0, {}), "weight is 2: user-level privacy"),
        (Update(np.full(1000, np.nan, np.float32), 1.0, {}), "NaN"),
        (Update(np.full(1000, np.inf, np.float32), 1.0, {}), "infinite"),
        (Update(np.ones(999, np.float32), 1.0, {}), "shape"),
    ],
)
def test_updates_that_cannot_be_bounded_are_refused(update: Update, match: str) -> None:
    with pytest.raises(UpdateRefusedError, match=match):
        encoding_of().encode(update, bytes(32))


def test_a_missing_statistic_is_refused_and_an_evaluation_needs_no_weight() -> None:
    encoding = encoding_of(0, statistics=(LOSS,))
    nothing = np.zeros(0, np.float32)
    with pytest.raises(UpdateRefusedError, match="missing"):
        encoding.encode(Update(nothing, 1.0, {}), bytes(32))
    assert encoding.encode(Update(nothing, 0.0, {"loss": 1.0}), bytes(32)).shape == (1,)


def test_a_sum_that_cannot_be_is_refused() -> None:
    encoding = encoding_of()
    for wrong in (np.zeros(999, np.uint16), np.zeros(1000, np.uint32)):
        with pytest.raises(ProtocolError, match="expected 1000 residues"):
            encoding.decode(wrong, 9)
    for clients in (7, 11):
        with pytest.raises(ProtocolError, match=f"{clients} updates .* for 8 to 10"):
            encoding.decode(np.zeros(1000, np.uint16), clients)


ENCODINGS = [
    encoding_of(),
    encoding_of(0, statistics=(LOSS, HITS), bits=32),
    encoding_of(5, statistics=(LOSS,), norm=1e-3),
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_stored_form_is_the_same_encoding(encoding: SkellamEncoding) -> None:
    assert SkellamEncoding.from_fields(encoding.to_fields()) == encoding


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.binary()
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*ENCODINGS[0].to_fields(), "other"]), VALUES, min_size=1))
def test_other_fields_are_refused_or_an_encoding(changes: dict[str, Any]) -> None:
    try:
        found = SkellamEncoding.from_fields({**ENCODINGS[0].to_fields(), **changes})
    except (ProtocolError, CapacityError):
        return
    assert SkellamEncoding.from_fields(found.to_fields()) == found


@pytest.mark.parametrize("key", list(ENCODINGS[0].to_fields()))
def test_a_missing_field_is_refused(key: str) -> None:
    fields = ENCODINGS[0].to_fields()
    del fields[key]
    with pytest.raises(ProtocolError, match=f"wrong are \\['{key}'\\]"):
        SkellamEncoding.from_fields(fields)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoding": "fixed-point"}, "skellam expected"),
        ({"bits": 8}, "bits is 8, allowed are"),
        ({"norm": -1.0}, "norm is -1"),
        ({"noise_multiplier": 0.0}, "noise_multiplier is 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier is nan"),
        ({"clients": 0}, "clients is 0"),
        ({"min_cohort": 11}, "min_cohort is 11, .* from 1 to 10"),
        ({"scale": 0.0}, "scale is 0"),
        ({"rotation": "00"}, "rotation is 16 bytes in hex"),
        ({"rotation": "Z" * 32}, "rotation is 16 bytes in hex"),
        ({"statistics": "loss"}, "not an encoding"),
        ({"share": 0.0}, "share is 0"),
    ],
)
def test_absurd_fields_are_refused_by_key_and_range(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        SkellamEncoding.from_fields({**ENCODINGS[0].to_fields(), **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scale": ENCODINGS[0].scale * 1.5}, "wraps 16-bit residues with probability up to 2"),
        ({"scale": ENCODINGS[0].scale * 1e4, "bits": 32}, "noise has the variance"),
        ({"scale": 3.0}, "lengthens an update"),
    ],
)
def test_what_does_not_fit_is_a_capacity_error(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(CapacityError, match=match):
        SkellamEncoding.from_fields({**ENCODINGS[0].to_fields(), **changes})


def test_too_small_noise_to_draw_is_a_capacity_error() -> None:
    fields = ENCODINGS[0].to_fields()
    changes = {"noise_multiplier": 0.001, "scale": 1.0, "size": 1, "min_cohort": 10}
    with pytest.raises(CapacityError, match="noise has the variance"):
        SkellamEncoding.from_fields({**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"clients": 0}, "clients is 0"),
        ({"min_cohort": 0}, "min_cohort is 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1"),
        ({"rotation": bytes(15)}, "rotation is 16 bytes"),
        ({"bits": 12}, "bits is 12"),
        ({"size": 0}, "size \\+ statistics is 0"),
    ],
)
def test_absurd_parameters_of_a_cohort_are_refused_by_key(
    changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        encoding_of(**changes)


def test_a_cohort_that_16_bits_cannot_hold_is_refused_and_32_bits_hold_it() -> None:
    given_: dict[str, Any] = {"size": 4, "clients": 10_000, "min_cohort": 10_000}
    with pytest.raises(CapacityError, match=r"wraps|lengthens"):
        encoding_of(**given_)
    assert encoding_of(**given_, bits=32).inflation < 1.01
