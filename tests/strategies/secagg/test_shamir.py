"""Secret sharing: numbers by hand, the threshold, and damaged shares."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.secagg.shamir import PRIME, SHARE, combine, split_secret

SECRETS = st.binary(min_size=32, max_size=32)


def share(value: int) -> bytes:
    return (value % PRIME).to_bytes(SHARE, "big")


def test_a_line_and_a_parabola_worked_out_by_hand() -> None:
    # f(x) = 7 + 5x: f(1) = 12, f(3) = 22
    assert int.from_bytes(combine({1: share(12), 3: share(22)}, 2), "big") == 7
    # f(x) = 3 - 2x + x^2: f(1) = 2, f(2) = 3, f(4) = 11
    shares = {4: share(11), 1: share(2), 2: share(3)}
    assert int.from_bytes(combine(shares, 3), "big") == 3


def test_the_field_is_the_prime_that_holds_every_secret() -> None:
    assert pow(2, PRIME - 1, PRIME) == pow(3, PRIME - 1, PRIME) == 1
    top = b"\xff" * 32
    shares = split_secret(top, 2, (1, 2), entropy=bytes(32))
    assert combine(dict(enumerate(shares, start=1)), 2) == top


@given(SECRETS, st.integers(1, 5), SECRETS)
@settings(max_examples=25)
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, t: int, entropy: bytes) -> None:
    points = (1, 2, 4, 7, 9)
    shares = dict(zip(points, split_secret(secret, t, points, entropy=entropy), strict=True))
    for some in itertools.combinations(points, t):
        assert combine({point: shares[point] for point in some}, t) == secret
    assert combine(shares, t) == secret


def test_fewer_shares_than_the_threshold_are_refused() -> None:
    shares = split_secret(bytes(32), 3, (1, 2, 3), entropy=bytes(32))
    with pytest.raises(ProtocolError, match="2 shares, 3 are needed"):
        combine({1: shares[0], 2: shares[1]}, 3)


def test_one_share_less_fits_every_secret() -> None:
    held = {1: split_secret(b"s" * 32, 2, (1, 2), entropy=bytes(32))[0]}
    for secret in (0, 1, 2**256 - 1):
        # the line through (0, secret) and the held share gives a second share that fits both
        slope = int.from_bytes(held[1], "big") - secret
        other = {**held, 2: share(secret + 2 * slope)}
        assert int.from_bytes(combine(other, 2), "big") == secret


def test_shares_that_belong_to_no_secret_are_noticed() -> None:
    with pytest.raises(ProtocolError, match="do not belong"):
        combine({1: share(PRIME - 1)}, 1)


def test_the_polynomial_depends_on_the_entropy() -> None:
    left = split_secret(bytes(32), 2, (1,) * 1 + (2,), entropy=b"a" * 32)
    right = split_secret(bytes(32), 2, (1, 2), entropy=b"b" * 32)
    assert set(left) & set(right) == set()


@pytest.mark.parametrize(
    ("secret", "threshold", "points", "entropy"),
    [
        (bytes(31), 1, (1,), bytes(32)),
        (bytes(32), 0, (1,), bytes(32)),
        (bytes(32), 2, (1,), bytes(32)),
        (bytes(32), 2, (1, 1), bytes(32)),
        (bytes(32), 1, (0,), bytes(32)),
        (bytes(32), 1, (1,), bytes(31)),
    ],
)
def test_misuse_is_refused(
    secret: bytes, threshold: int, points: tuple[int, ...], entropy: bytes
) -> None:
    with pytest.raises(ValueError, match=r"secret of|points are"):
        split_secret(secret, threshold, points, entropy=entropy)
